//! What a rollout is at one moment: the fold of its events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::event::{Breach, CheckResult, Planned, Verdict};
use super::members::{Member, Members};
use super::plan::{Plan, Retry, Wave, WaveKind};
use super::{Effect, Rejection, ReleaseId, Step};
use crate::domain::event::Actor;
use crate::domain::id::{CheckName, NodeId};
use crate::domain::origin::Origin;
use crate::domain::time::UnixMicros;

/// A rollout: a plan, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    pub(super) plan: Arc<Plan>,
    pub(super) waves: Arc<[Wave]>,
    pub(super) origins: Arc<BTreeMap<String, Origin>>,
    pub(super) asked_by: Option<Actor>,
    pub(super) members: Members,
    pub(super) late: BTreeSet<NodeId>,
    pub(super) phase: Phase,
    pub(super) hold: Option<Hold>,
    /// What has to follow the fact with this number; set and cleared by events, so that no crash loses it.
    pub(super) owed: Option<(Owed, u32)>,
    pub(super) forgiven: Forgiven,
    /// When it stands still; stops while paused, and while it waits for a person.
    pub(super) stands_still_at: Option<UnixMicros>,
    /// The last wave that had begun when the first node became healthy: later ones can carry its word.
    pub(super) proved_in: Option<u16>,
    /// How many waves were promoted.
    pub(super) promoted: usize,
    pub(super) controller: NodeId,
    pub(super) term: u64,
    /// How many facts there were.
    pub(super) facts: u32,
}

/// How far a rollout has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A second person has to agree.
    AwaitingApproval,
    /// It may start; or there is nothing to do.
    Ready {
        /// Whether every target runs the release.
        runs_already: bool,
    },
    /// On the way forward.
    Forward(At),
    /// On the way back.
    Back {
        /// Which nodes go back together; more may follow that were heard of late.
        waves: Vec<Vec<NodeId>>,
        /// Where it is.
        at: At,
        /// What the end is called when all went back.
        then: Verdict,
        /// The fact that turned it round.
        since: u32,
    },
    /// No new node; those under way reach their verdict.
    Stopping {
        /// What the end is called.
        then: Verdict,
        /// When it ends even without the last verdict.
        until: UnixMicros,
        /// The fact that stopped it.
        since: u32,
    },
    /// It is over.
    Ended(Verdict),
}

/// Where in a list of waves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// Before the wave with this index.
    Before(usize),
    /// After the wave before this index, until a person says so.
    Promotion(usize),
    /// In the wave with this index; its nodes are under way.
    Open(usize),
    /// In the wave with this index; every node has its verdict.
    Settled {
        /// The index.
        wave: usize,
        /// When the wait is over.
        bake_until: UnixMicros,
        /// How far the checks are.
        checks: BTreeMap<CheckName, CheckRun>,
    },
}

/// How far a check is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckRun {
    pub(super) taken: u32,
    pub(super) good: u32,
    pub(super) bad: u32,
    pub(super) inconclusive: u32,
    pub(super) errors_in_a_row: u32,
    pub(super) next_at: UnixMicros,
    pub(super) result: Option<CheckResult>,
}

impl CheckRun {
    pub(super) fn new(next_at: UnixMicros) -> Self {
        Self {
            taken: 0,
            good: 0,
            bad: 0,
            inconclusive: 0,
            errors_in_a_row: 0,
            next_at,
            result: None,
        }
    }
}

/// What has to follow a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owed {
    /// `on_failure`.
    Failure(Breach),
    /// `on_inconclusive = "pause"`.
    Inconclusive,
}

/// Why nothing new begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hold {
    /// Whether somebody said so: that one knows what is to follow. Else it waits for anybody.
    pub(super) commanded: bool,
    pub(super) progress_left_ms: u64,
}

/// What has been told as too much, and is not told again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Forgiven {
    pub(super) failed: usize,
    pub(super) unreachable: usize,
    pub(super) canary: bool,
    pub(super) checks: BTreeSet<(usize, CheckName)>,
}

/// What a rollout knows of one of its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It has no order.
    NotStarted,
    /// It has the order, and nothing was heard.
    Ordered,
    /// It changes.
    Started {
        /// When it has failed.
        until: UnixMicros,
    },
    /// It is healthy on the release.
    Healthy,
    /// It is not.
    Failed {
        /// Whether that counts against `max_failures`.
        counted: bool,
        /// Whether it went back by itself.
        returned: bool,
    },
    /// It is away, and the rollout goes on without it.
    Lost {
        /// Whether that counts against `max_unreachable`.
        counted: bool,
    },
    /// It has the order to go back.
    Returning {
        /// When that has failed.
        until: UnixMicros,
    },
    /// It is back on the earlier release.
    Returned,
    /// It could not go back.
    ReturnFailed,
}

impl NodeState {
    /// Says whether it has an order without a verdict.
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Ordered | Self::Started { .. } | Self::Returning { .. })
    }
}

/// Says that an event cannot follow the state: the log is not whole, or not of this rollout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{event}` cannot follow on a rollout that is {state}")]
pub struct IllegalEvent {
    /// The state's name.
    pub state: &'static str,
    /// The event's type.
    pub event: &'static str,
}

impl Rollout {
    /// Begins the fold with a plan.
    pub fn new(planned: &Planned) -> Self {
        let plan = &planned.plan;
        let unhealthy = |node: &NodeId| {
            planned
                .before
                .get(node)
                .is_some_and(|before| before.release.is_some() && !before.healthy)
        };
        let members = (1..).zip(&planned.waves).flat_map(|(number, wave)| {
            wave.nodes.iter().map(move |node| {
                let counts = wave.kind == WaveKind::Canary || !unhealthy(node);
                let (state, with) = (NodeState::NotStarted, (Step::Apply, number));
                (node.clone(), Member { wave: number, with, state, away: None, counts })
            })
        });
        let phase = match plan.parameters.require_approval && !planned.runs_already {
            true => Phase::AwaitingApproval,
            false => Phase::Ready { runs_already: planned.runs_already },
        };
        Self {
            plan: Arc::new(plan.clone()),
            waves: planned.waves.clone().into(),
            origins: Arc::new(planned.origins.clone()),
            asked_by: planned.by.clone(),
            members: members.collect(),
            late: BTreeSet::new(),
            phase,
            hold: None,
            owed: None,
            forgiven: Forgiven::default(),
            stands_still_at: None,
            proved_in: None,
            promoted: 0,
            controller: planned.controller.clone(),
            term: planned.term,
            facts: 1,
        }
    }

    /// Returns the plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns how far it has come.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Says whether nothing new begins until somebody decides.
    pub fn is_paused(&self) -> bool {
        self.hold.is_some() && !matches!(self.phase, Phase::Ended(_))
    }

    /// Returns who led it last, and in which term.
    pub fn leader(&self) -> (&NodeId, u64) {
        (&self.controller, self.term)
    }

    /// Returns how it ended, once it has.
    pub fn verdict(&self) -> Option<Verdict> {
        match self.phase {
            Phase::Ended(verdict) => Some(verdict),
            _ => None,
        }
    }

    /// Returns what is known of a target.
    pub fn node(&self, node: &NodeId) -> Option<NodeState> {
        self.members.get(node).map(|member| member.state)
    }

    /// Says whether it went on without a target of which nothing was heard.
    pub fn has_lost(&self) -> bool {
        self.members.tally().lost > 0
    }

    /// Returns the state's name, as it is printed.
    pub fn state(&self) -> &'static str {
        match &self.phase {
            Phase::Ended(verdict) => verdict.as_str(),
            _ if self.hold.is_some() => "paused",
            Phase::AwaitingApproval => "awaiting_approval",
            Phase::Ready { .. } => "planned",
            Phase::Forward(At::Promotion(_)) => "awaiting_promotion",
            Phase::Forward(At::Open(wave) | At::Settled { wave, .. } | At::Before(wave)) => {
                match self.waves.get(*wave).is_some_and(|wave| wave.kind == WaveKind::Canary) {
                    true => "canary",
                    false => "rolling",
                }
            }
            Phase::Back { .. } => "rolling_back",
            Phase::Stopping { .. } => "stopping",
        }
    }

    /// Returns what a person is awaited for, as the command that lets it go on; nothing where it goes on by itself, or
    /// somebody paused it, who knows what is to follow.
    pub fn waits_for(&self) -> Option<&'static str> {
        match (&self.phase, self.hold) {
            (Phase::Ended(_), _) | (_, Some(Hold { commanded: true, .. })) => None,
            (_, Some(_)) if self.canary_has_failed() => Some("abort"),
            (_, Some(_)) => Some("resume"),
            (Phase::AwaitingApproval, None) => Some("approve"),
            (Phase::Forward(At::Promotion(_)), None) => Some("promote"),
            (_, None) => None,
        }
    }

    /// Says whether the canary that is open failed: nobody resumes past it, since the nodes behind it would refuse their
    /// orders for want of its signed results.
    pub(super) fn canary_has_failed(&self) -> bool {
        self.forgiven.canary && self.open_kind() == Some(WaveKind::Canary)
    }

    /// Returns the exit code of whoever waits for it: the verdict's, 14 while a person is awaited, none otherwise.
    pub fn exit_code(&self) -> Option<u8> {
        match &self.phase {
            Phase::Ended(verdict) => Some(verdict.exit_code()),
            _ => self.waits_for().map(|_| 14),
        }
    }

    /// Returns the release that a node should have which joins or comes back now.
    ///
    /// The wanted one only once the rollout succeeded: a node that comes late is never the first to try something.
    pub fn converge_to(&self) -> Option<ReleaseId> {
        match self.phase {
            Phase::Ended(Verdict::Succeeded) => Some(self.plan.release),
            _ => self.plan.back_to,
        }
    }

    /// Returns what a new wish needs that goes on with this one: the targets that are not on the release, and the
    /// canaries that proved it.
    ///
    /// # Errors
    ///
    /// It is under way, or nothing is left to do.
    pub fn retry(&self) -> Result<(BTreeSet<NodeId>, Retry), Rejection> {
        if self.verdict().is_none() {
            return Err(Rejection::NotEnded);
        }
        let left = |member: &Member| member.state != NodeState::Healthy;
        let nodes: BTreeSet<NodeId> = self
            .members
            .iter()
            .filter(|(_, member)| left(member))
            .map(|(node, _)| node.clone())
            .collect();
        if nodes.is_empty() {
            return Err(Rejection::NothingLeft);
        }
        // A canary proves the release as long as it still runs it.
        let canary = self.plan.canary();
        let proven = canary.iter().all(|node| !nodes.contains(node));
        let canary = if proven { canary.to_vec() } else { Vec::new() };
        Ok((nodes, Retry { of: self.plan.intent, canary }))
    }

    /// Returns what should be under way. Any controller that holds the events gets the same.
    pub fn effects(&self) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Phase::Ended(state) = self.phase {
            return vec![Effect::Ended { state, exit_code: state.exit_code() }];
        }
        let orders = self.members.keys().filter_map(|node| Some((node, self.order_of(node)?)));
        effects.extend(orders.map(|(node, (step, wave))| {
            let node = node.clone();
            Effect::Order { node, step, wave }
        }));
        effects.extend(self.due_checks());
        effects.extend(self.wake_at().map(Effect::WakeAt));
        effects
    }

    /// Returns the order that a node should have, and the number of its wave as orders carry it.
    pub fn order_of(&self, node: &NodeId) -> Option<(Step, u16)> {
        let member = self.members.get(node)?;
        let way = match self.phase {
            Phase::Ended(_) => return None,
            Phase::Back { .. } => Step::Return,
            _ => Step::Apply,
        };
        match member.state {
            NodeState::Ordered | NodeState::Started { .. } if way == Step::Apply => {
                Some((way, self.wave_of(member)))
            }
            NodeState::Lost { .. } => Some((way, self.wave_of(member))),
            NodeState::Returning { .. } => Some((Step::Return, member.wave)),
            _ => None,
        }
    }

    /// Returns the number of a node's wave as orders carry it. Without a canary the first wave proves the release to the
    /// others, and as long as none of its nodes did, the next one is the first: whoever was to prove it may have stayed away.
    fn wave_of(&self, member: &Member) -> u16 {
        let is_first = self.proved_in.is_none_or(|wave| member.wave <= wave);
        match self.plan.proofs().is_empty() && is_first {
            true => 1,
            false => member.wave,
        }
    }

    /// Returns the measurements that are to be made.
    pub fn due_checks(&self) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some((wave, checks)) = self.open_checks() {
            for (check, run) in checks.iter().filter(|(_, run)| run.result.is_none()) {
                let (check, number) = (check.clone(), run.taken + 1);
                effects.push(Effect::RunCheck { check, wave, number, at: run.next_at });
            }
        }
        effects
    }

    /// Returns the checks that run, with the number of their wave.
    pub(super) fn open_checks(&self) -> Option<(u16, &BTreeMap<CheckName, CheckRun>)> {
        match self.at()? {
            At::Settled { wave, checks, .. } => Some((number(*wave), checks)),
            _ => None,
        }
    }

    /// Returns where it is in the waves of the way forward or back.
    pub(super) fn at(&self) -> Option<&At> {
        match &self.phase {
            Phase::Forward(at) | Phase::Back { at, .. } => Some(at),
            _ => None,
        }
    }

    /// Returns the nodes of the wave with this index, of the way that it is on.
    pub(super) fn nodes_of(&self, wave: usize) -> &[NodeId] {
        match &self.phase {
            Phase::Back { waves, .. } => waves.get(wave).map_or(&[], Vec::as_slice),
            _ => self.waves.get(wave).map_or(&[], |wave| &wave.nodes),
        }
    }

    /// Returns the next deadline.
    pub fn wake_at(&self) -> Option<UnixMicros> {
        let member = self.members.next_deadline(self.baking()).map(|(until, _)| *until);
        let bake = match self.at() {
            Some(At::Settled { bake_until, .. }) => Some(*bake_until),
            _ => None,
        };
        let stop = match self.phase {
            Phase::Stopping { until, .. } => Some(until),
            _ => None,
        };
        [member, bake, stop, self.stands_still_at].into_iter().flatten().min()
    }

    /// Returns the number of the wave that is not behind: its nodes are waited for even when they are healthy.
    pub(super) fn baking(&self) -> Option<u16> {
        match self.phase {
            Phase::Forward(At::Open(wave) | At::Settled { wave, .. }) => Some(number(wave)),
            _ => None,
        }
    }
}

/// Returns the number of a wave: they count from 1.
pub(super) fn number(wave: usize) -> u16 {
    u16::try_from(wave + 1).unwrap_or(u16::MAX)
}
