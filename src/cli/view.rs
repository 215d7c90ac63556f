//! What was answered to a status query, and what it amounts to: ready, unwell, the exit code.

use std::collections::BTreeMap;

use super::selector::Selector;
use crate::domain::code::ExitCode;
use crate::domain::event::{Desired, StateName};
use crate::domain::id::NodeId;
use crate::domain::selector::Roster;
use crate::wire::status::{Condition, FleetNode, FleetStatus, InstanceStatus, NodeStatus};

/// What is known of some nodes, from whomever it was heard.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// What nodes said, or a controller of nodes that it heard lately.
    pub nodes: Vec<NodeStatus>,
    /// Who is not heard.
    pub missing: Vec<NodeId>,
    /// What was known of those of them that were heard before, as [`FleetNode::silenced`] has it.
    pub lost: Vec<NodeStatus>,
    /// What root says of the nodes.
    pub labels: Roster,
    /// How far clocks were from a controller's, in milliseconds.
    pub clocks: BTreeMap<NodeId, u64>,
    /// The rollouts that are remembered, the last one first, where they were asked for.
    pub rollouts: Vec<serde_json::Value>,
    /// What somebody set of the one service that is looked at, by key, where it was asked for.
    pub set: serde_json::Map<String, serde_json::Value>,
}

impl Picture {
    /// Divides a fleet into what its nodes say and those of whom nothing is heard.
    pub fn of(fleet: &FleetStatus) -> Self {
        let mut picture = Self::default();
        for node in &fleet.nodes {
            match node.status.as_deref().filter(|_| node.reachable) {
                Some(status) => picture.nodes.push(status.clone()),
                None => picture.missing.push(node.node.clone()),
            }
            picture.learn(node);
        }
        picture
    }

    /// Takes in what a controller knows of a node beside what the node says itself.
    pub fn learn(&mut self, known: &FleetNode) {
        self.labels.insert(known.node.clone(), known.labels.clone());
        self.clocks.extend(known.clock_off_ms.map(|off| (known.node.clone(), off)));
        if self.missing.contains(&known.node) {
            self.lost.extend(known.silenced());
        }
    }

    /// Keeps some nodes only.
    pub fn retain(&mut self, is_meant: impl Fn(&NodeId) -> bool) {
        self.nodes.retain(|status| is_meant(&status.node));
        self.missing.retain(&is_meant);
        self.lost.retain(|status| is_meant(&status.node));
    }

    /// Looks at it.
    pub fn view(&self) -> View<'_> {
        View {
            nodes: &self.nodes,
            missing: &self.missing,
            lost: &self.lost,
            known: Some(self),
            ..View::default()
        }
    }
}

/// The answers of some nodes, and the nodes that were asked and did not answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct View<'a> {
    /// What the nodes said.
    pub nodes: &'a [NodeStatus],
    /// Who did not answer in time. What runs there is not known.
    pub missing: &'a [NodeId],
    /// What was known of those of them that were heard before.
    pub lost: &'a [NodeStatus],
    /// What others than the nodes know of them.
    pub known: Option<&'a Picture>,
    /// Which instances were asked for; `None` for all.
    pub selector: Option<&'a Selector>,
    /// Whether these nodes were named: then one that did not answer counts.
    pub named: bool,
    /// Whether there are other nodes too, so that names need theirs.
    pub in_fleet: bool,
}

/// Whether an instance serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// Nobody can tell; never success.
    Unknown,
}

/// Returns whether an instance serves: its condition `Ready`, else what its state says.
pub fn readiness(instance: &InstanceStatus) -> Readiness {
    let condition = instance.conditions.get("Ready");
    match (instance.state, condition) {
        (StateName::Unknown, _) | (_, Some(Condition { status: None, .. })) => Readiness::Unknown,
        (_, Some(Condition { status: Some(true), .. })) => Readiness::Yes,
        (_, Some(Condition { status: Some(false), .. })) => Readiness::No,
        // Where nothing says when it is ready, it is ready by having started.
        (StateName::Running | StateName::Reloading, None) => Readiness::Yes,
        (_, None) => Readiness::No,
    }
}

/// How near an instance is to what is wanted of it. The unwell come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Nobody can tell.
    Unknown,
    /// Not as wanted.
    Unwell,
    /// As wanted.
    Well,
}

/// Returns how near an instance is to what is wanted of it.
pub fn health(instance: &InstanceStatus) -> Health {
    if instance.state == StateName::Unknown {
        return Health::Unknown;
    }
    let well = match instance.desired {
        Desired::Running => match readiness(instance) {
            Readiness::Unknown => return Health::Unknown,
            Readiness::Yes => true,
            Readiness::No => false,
        },
        Desired::Completed => instance.state == StateName::Completed,
        Desired::Stopped => {
            matches!(
                instance.state,
                StateName::Inactive | StateName::Completed | StateName::Stopping
            )
        }
    };
    if well { Health::Well } else { Health::Unwell }
}

impl<'a> View<'a> {
    /// Everything that one node said.
    pub fn of(node: &'a NodeStatus) -> Self {
        Self { nodes: std::slice::from_ref(node), ..Self::default() }
    }

    /// Says whether names need their node.
    pub fn has_several_nodes(&self) -> bool {
        self.in_fleet || self.nodes.len() + self.missing.len() > 1
    }

    /// Returns what is known of all nodes, of those that are silent too.
    pub fn heard(&self) -> impl Iterator<Item = &'a NodeStatus> + use<'a> {
        self.nodes.iter().chain(self.lost)
    }

    /// Returns the instances asked for, the unwell first, then by name.
    pub fn instances(&self) -> Vec<(&'a NodeStatus, &'a InstanceStatus)> {
        let mut all: Vec<_> = self
            .heard()
            .flat_map(|node| node.instances.iter().map(move |instance| (node, instance)))
            .filter(|(node, instance)| {
                self.selector.is_none_or(|selector| {
                    selector.matches(&instance.service, instance.index, &node.node)
                })
            })
            .collect();
        all.sort_by_key(|(node, instance)| {
            (health(instance), &instance.service, instance.index, &node.node)
        });
        all
    }

    /// Returns how `smgr status` exits: a question that was answered is a success; with a selector
    /// it says whether what is desired is there, and with a node whether that answered.
    pub fn exit(&self) -> ExitCode {
        let Some(selector) = self.selector else {
            return match self.named && !self.missing.is_empty() {
                true => ExitCode::NotReady,
                false => ExitCode::Done,
            };
        };
        let instances = self.instances();
        let is_missing = self.missing.iter().any(|node| selector.may_be_on(node));
        let is_wanted = |instance: &InstanceStatus| instance.desired != Desired::Stopped;
        let falls_short = instances.iter().any(|(_, instance)| match health(instance) {
            Health::Well => false,
            Health::Unwell => is_wanted(instance),
            Health::Unknown => true,
        });
        if falls_short || is_missing {
            ExitCode::NotReady
        } else if instances.is_empty() {
            ExitCode::NotFound
        } else {
            ExitCode::Done
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn exit(selector: &str, missing: &[&str]) -> ExitCode {
        let nodes = [sample::node()];
        let missing: Vec<NodeId> = missing.iter().map(|name| name.parse().unwrap()).collect();
        let selector = (!selector.is_empty()).then(|| selector.parse().unwrap());
        let selector = selector.as_ref();
        View { nodes: &nodes, missing: &missing, selector, ..View::default() }.exit()
    }

    #[test]
    fn without_a_selector_a_question_was_answered() {
        assert_eq!(exit("", &["n6"]), ExitCode::Done);
    }

    #[test]
    fn a_node_that_was_named_and_did_not_answer_is_not_as_asked() {
        let missing = ["n6".parse().unwrap()];
        let view = View { missing: &missing, named: true, ..View::default() };
        assert_eq!(view.exit(), ExitCode::NotReady);
        assert_eq!(View { missing: &[], ..view }.exit(), ExitCode::Done);
    }

    #[test]
    fn with_a_selector_the_exit_code_says_whether_what_is_desired_is_there() {
        assert_eq!(exit("web", &[]), ExitCode::Done);
        assert_eq!(exit("worker", &[]), ExitCode::NotReady);
        assert_eq!(exit("nothing", &[]), ExitCode::NotFound);
        assert_eq!(exit("web@n2", &[]), ExitCode::NotFound);
    }

    #[test]
    fn a_node_that_did_not_answer_is_unknown_and_never_success() {
        assert_eq!(exit("web", &["n6"]), ExitCode::NotReady);
        assert_eq!(exit("web@n1", &["n6"]), ExitCode::Done);
        assert_eq!(exit("web@n6", &["n6"]), ExitCode::NotReady);
    }

    #[test]
    fn what_is_stopped_as_wanted_is_well_and_what_is_not_observable_is_not() {
        let mut node = sample::node();
        let worker = &mut node.instances[0];
        worker.desired = Desired::Stopped;
        assert_eq!(health(worker), Health::Unwell);
        worker.state = StateName::Inactive;
        assert_eq!(health(worker), Health::Well);
        worker.state = StateName::Unknown;
        assert_eq!(health(worker), Health::Unknown);
    }
}
