//! Given a plan and what happened, then the facts that follow.

mod complaints;
mod failures;
mod large;
mod plans;

use std::collections::{BTreeMap, BTreeSet};

use super::view::Record;
use super::*;
use crate::domain::event::{Actor, Exit};
use crate::domain::id::{CheckName, Digest, EpochId, EventId, Generation, IntentId, NodeId, Seq};
use crate::domain::intent::ActorKind;
use crate::domain::selector::Roster;
use crate::domain::time::UnixMicros;

pub(super) const NEW: ReleaseId = ReleaseId(Digest([2; 32]));
pub(super) const OLD: ReleaseId = ReleaseId(Digest([1; 32]));
pub(super) const EXE: Digest = Digest([7; 32]);
pub(super) const GENERATION: Generation = Generation(42);
const BEGIN: UnixMicros = UnixMicros(1_795_000_000_000_000);

pub(super) fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

pub(super) fn names(nodes: usize) -> Vec<NodeId> {
    (1..=nodes).map(|number| node(&format!("n{number}"))).collect()
}

pub(super) fn roster(nodes: usize) -> Roster {
    let labels = |at: usize| BTreeMap::from([("zone".to_owned(), format!("z{}", at % 3))]);
    names(nodes).into_iter().enumerate().map(|(at, node)| (node, labels(at))).collect()
}

/// A plan by name over so many nodes, with a release to go back to.
pub(super) fn plan(nodes: usize, parameters: Parameters) -> Plan {
    make(nodes, Some(OLD), None, None, parameters)
}

pub(super) fn make(
    nodes: usize,
    back_to: Option<ReleaseId>,
    emergency: Option<&str>,
    retry: Option<(BTreeSet<NodeId>, Retry)>,
    parameters: Parameters,
) -> Plan {
    planned(nodes, (back_to, false), emergency, retry, parameters)
}

/// A plan over so many nodes; of the pair the second says that nothing of the service is anywhere.
pub(super) fn plan_of(
    nodes: usize,
    whence: (Option<ReleaseId>, bool),
    emergency: Option<&str>,
    parameters: Parameters,
) -> Plan {
    planned(nodes, whence, emergency, None, parameters)
}

fn planned(
    nodes: usize,
    (back_to, is_new): (Option<ReleaseId>, bool),
    emergency: Option<&str>,
    retry: Option<(BTreeSet<NodeId>, Retry)>,
    parameters: Parameters,
) -> Plan {
    let roster = roster(nodes);
    let (targets, retry) = match retry {
        Some((targets, retry)) => (targets, Some(retry)),
        None => (roster.keys().cloned().collect(), None),
    };
    Plan::new(&PlanRequest {
        intent: IntentId([9; 16]),
        service: "web".parse().unwrap(),
        generation: GENERATION,
        release: NEW,
        back_to,
        emergency: emergency.map(str::to_owned),
        retry,
        targets: &targets,
        roster: &roster,
        roster_digest: Digest([5; 32]),
        away: &BTreeSet::new(),
        is_new,
        parameters: &parameters,
    })
    .unwrap()
}

/// Returns the nodes that may take the release of such a wish unproved.
pub(super) fn first(
    nodes: usize,
    back_to: Option<ReleaseId>,
    parameters: &Parameters,
) -> Vec<NodeId> {
    let roster = roster(nodes);
    may_go_first(&PlanRequest {
        intent: IntentId([9; 16]),
        service: "web".parse().unwrap(),
        generation: GENERATION,
        release: NEW,
        back_to,
        emergency: None,
        retry: None,
        targets: &roster.keys().cloned().collect(),
        roster: &roster,
        roster_digest: Digest([5; 32]),
        away: &BTreeSet::new(),
        is_new: false,
        parameters,
    })
}

pub(super) fn by_name() -> Parameters {
    Parameters { order: Order::Name, ..Parameters::default() }
}

/// A rollout with its facts and a clock.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) rollout: Rollout,
    pub(super) facts: Vec<RolloutEvent>,
    pub(super) now: UnixMicros,
    seq: u64,
    /// The same rollout, taken in fact by fact.
    story: Story,
    /// The orders that are out, changed only where a fact says that it concerns them.
    out: BTreeMap<NodeId, (Step, u16)>,
}

impl Run {
    pub(super) fn of(plan: Plan) -> Self {
        let healthy = Observed { release: plan.back_to, healthy: true };
        let before = plan.targets().map(|node| (node.clone(), healthy.clone())).collect();
        Self::open(plan, before)
    }

    pub(super) fn open(plan: Plan, before: BTreeMap<NodeId, Observed>) -> Self {
        let opening = Opening {
            plan,
            by: Some(person("alice")),
            reason: String::new(),
            origins: BTreeMap::new(),
            before,
            controller: node("c1"),
            term: 1,
        };
        let facts = Rollout::open(opening, BEGIN);
        let rollout = Rollout::replay(&facts).unwrap().unwrap();
        let mut story = Story::default();
        for (at, event) in facts.iter().enumerate() {
            story.take(Record { id: id(at), at: BEGIN, event: event.clone() });
        }
        let (now, out) = (BEGIN, BTreeMap::new());
        let mut run = Self { rollout, facts: Vec::new(), now, seq: 0, story, out };
        run.note(facts);
        run
    }

    /// Keeps facts, and brings the orders of those that they concern in line.
    fn note(&mut self, facts: Vec<RolloutEvent>) {
        let targets: Vec<NodeId> = self.rollout.plan().targets().cloned().collect();
        for node in facts.iter().flat_map(|fact| match fact.concerns() {
            Concerns::Nodes(nodes) => nodes,
            Concerns::All => &targets,
        }) {
            match self.rollout.order_of(node) {
                Some(order) => drop(self.out.insert(node.clone(), order)),
                None => drop(self.out.remove(node)),
            }
        }
        let effects = self.rollout.effects().into_iter().filter_map(|effect| match effect {
            Effect::Order { node, step, wave } => Some((node, (step, wave))),
            _ => None,
        });
        assert_eq!(
            effects.collect::<BTreeMap<_, _>>(),
            self.out,
            "facts concern more than they say"
        );
        self.facts.extend(facts);
    }

    /// Takes an input and returns the types of the facts that followed.
    pub(super) fn input(&mut self, input: &Input) -> Result<Vec<&'static str>, Rejection> {
        let decided = self.rollout.decide(self.now, input);
        let mut written = Vec::new();
        let taken = self.story.decide(self.now, input, |event| {
            written.push(event.clone());
            Some(id(self.facts.len() + written.len()))
        });
        assert_eq!(taken, decided.as_ref().map(Vec::len).map_err(Clone::clone));
        let events = decided?;
        assert_eq!(written, events, "what is taken in fact by fact is not what was foreseen");
        for event in &events {
            self.rollout.evolve(event).unwrap();
        }
        let kinds = events.iter().map(|e| e.kind().strip_prefix("rollout.").unwrap()).collect();
        self.note(events);
        assert_eq!(
            Rollout::replay(&self.facts).unwrap().as_ref(),
            Some(&self.rollout),
            "the log is not the state"
        );
        assert_eq!(self.story.state(), Some(&self.rollout));
        Ok(kinds)
    }

    pub(super) fn report(&mut self, name: &str, report: NodeReport) -> Vec<&'static str> {
        self.seq += 1;
        let (origin, epoch) = (node(name), EpochId(1));
        let event = Some(EventId { origin, epoch, seq: Seq(self.seq) });
        self.input(&Input::Node { node: node(name), event, report }).unwrap()
    }

    pub(super) fn healthy(&mut self, name: &str) -> Vec<&'static str> {
        self.report(name, NodeReport::Applied { generation: GENERATION });
        self.report(name, healthy())
    }

    pub(super) fn fails(&mut self, name: &str) -> Vec<&'static str> {
        self.report(name, NodeReport::Applied { generation: GENERATION });
        self.report(name, failed())
    }

    pub(super) fn returned(&mut self, name: &str) -> Vec<&'static str> {
        self.report(name, returned())
    }

    pub(super) fn command(&mut self, command: Command) -> Result<Vec<&'static str>, Rejection> {
        let (intent, by) = (IntentId([3; 16]), Some(person("bob")));
        self.input(&Input::Command { intent, by, command })
    }

    pub(super) fn tick(&mut self, ms: u64) -> Vec<&'static str> {
        self.now = self.now.plus_ms(ms);
        self.input(&Input::Tick).unwrap()
    }

    /// Returns who has which order.
    pub(super) fn orders(&self) -> Vec<(String, Step)> {
        let effects = self.rollout.effects().into_iter();
        effects
            .filter_map(|effect| match effect {
                Effect::Order { node, step, .. } => Some((node.to_string(), step)),
                _ => None,
            })
            .collect()
    }

    pub(super) fn applies(&self) -> Vec<String> {
        self.orders_of(Step::Apply)
    }

    pub(super) fn returns(&self) -> Vec<String> {
        self.orders_of(Step::Return)
    }

    fn orders_of(&self, wanted: Step) -> Vec<String> {
        let orders = self.orders().into_iter();
        orders.filter(|(_, step)| *step == wanted).map(|(node, _)| node).collect()
    }

    pub(super) fn kinds(&self) -> Vec<&'static str> {
        self.facts.iter().map(RolloutEvent::kind).collect()
    }

    pub(super) fn ended(&self) -> &Ended {
        match self.facts.last() {
            Some(RolloutEvent::Ended(ended)) => ended,
            other => panic!("not ended: {other:?}"),
        }
    }
}

/// Names the fact with this place in the log of `c1`.
fn id(at: usize) -> EventId {
    EventId { origin: node("c1"), epoch: EpochId(1), seq: Seq(at as u64) }
}

pub(super) fn person(name: &str) -> Actor {
    Actor { kind: ActorKind::Human, name: name.parse().unwrap(), key: None, note: String::new() }
}

pub(super) fn healthy() -> NodeReport {
    NodeReport::Healthy {
        generation: GENERATION,
        release: NEW,
        running: Some(EXE),
        ready_ms: 2_000,
        held_ms: 10_000,
    }
}

pub(super) fn failed() -> NodeReport {
    let failure = Failure {
        why: String::new(),
        exit: Some(Exit::Code(1)),
        ran_ms: Some(311),
        phase: "starting".to_owned(),
        ..Failure::of("exit_code")
    };
    NodeReport::Failed { generation: GENERATION, failure }
}

pub(super) fn returned() -> NodeReport {
    NodeReport::Returned {
        generation: Generation(GENERATION.0 + 1),
        to: Some(OLD),
        took_ms: 40,
        kept_serving: true,
    }
}

pub(super) fn check(name: &str) -> (CheckName, Check) {
    let check = Check {
        probe: CheckProbe::Http { url: "http://probe.example/ok".to_owned() },
        interval_ms: 5_000,
        count: 3,
        failure_limit: 0,
        consecutive_error_limit: 1,
        on_inconclusive: OnInconclusive::Pause,
        dry_run: false,
    };
    (name.parse().unwrap(), check)
}
