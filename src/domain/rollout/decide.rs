//! What an input leads to. Decides one fact at a time, each on the state after the one before.

mod advance;
mod command;
mod report;

use std::collections::{BTreeMap, VecDeque};

use super::event::{CheckMeasured, NodeSeen, Planned, RolloutEvent, TakenOver, Why};
use super::input::{Input, Measure, Observed, Rejection};
use super::plan::{Plan, Wave, WaveKind};
use super::state::{At, Rollout};
use crate::domain::event::Actor;
use crate::domain::id::{CheckName, NodeId};
use crate::domain::origin::Origin;
use crate::domain::time::UnixMicros;

/// How much later than a node a controller gives up on it: the node's own verdict says more.
pub const VERDICT_SLACK_MS: u64 = 5_000;

/// How long a node that was away may take to tell what it did meanwhile.
pub const SEEN_GRACE_MS: u64 = 30_000;

/// What is said of a plan when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The plan.
    pub plan: Plan,
    /// Who asked.
    pub by: Option<Actor>,
    /// Why, in their words.
    pub reason: String,
    /// Where the values of the parameters come from, by key.
    pub origins: BTreeMap<String, Origin>,
    /// What runs where.
    pub before: BTreeMap<NodeId, Observed>,
    /// Who leads.
    pub controller: NodeId,
    /// In which term.
    pub term: u64,
}

/// The facts that an input leads to: each is decided on the state after the one before.
#[derive(Debug)]
pub struct Follows {
    now: UnixMicros,
    due: VecDeque<RolloutEvent>,
    /// How many more may follow.
    left: usize,
}

impl Follows {
    fn new(on: &Rollout, now: UnixMicros, first: Vec<RolloutEvent>) -> Self {
        // Each node has at most three facts at one moment, each wave and check a few: beyond that something turns in
        // circles, and what is left waits for the next input.
        let left = 64 + 4 * (on.members.len() + on.waves.len());
        Self { now, due: first.into(), left }
    }

    /// Returns the next fact; it has to be taken into the state before the next call.
    pub fn next(&mut self, on: &Rollout) -> Option<RolloutEvent> {
        if let Some(event) = self.due.pop_front() {
            return Some(event);
        }
        let event = on.advance(self.now)?;
        debug_assert!(self.left > 0, "a rollout turns in circles: {event:?}");
        self.left = self.left.checked_sub(1)?;
        Some(event)
    }

    fn until_the_end(mut self, mut on: Rollout) -> Vec<RolloutEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next(&on) {
            on.evolve(&event).expect("decided on this state: see the cases of decide");
            events.push(event);
        }
        events
    }
}

impl Rollout {
    /// Opens a rollout: its first facts, `rollout.planned` first.
    pub fn open(opening: Opening, now: UnixMicros) -> Vec<RolloutEvent> {
        let Opening { plan, by, reason, origins, before, controller, term } = opening;
        let runs = |node: &NodeId| {
            before.get(node).is_some_and(|node| node.healthy && node.release == Some(plan.release))
        };
        let runs_already = plan.targets().all(runs);
        let planned = Planned {
            cause: Why::Intent(plan.intent),
            digest: plan.digest(),
            waves: drawn_forward(&plan, &before),
            plan,
            by,
            reason,
            origins,
            before,
            runs_already,
            controller,
            term,
        };
        let rollout = Self::new(&planned);
        let follows = Follows::new(&rollout, now, Vec::new());
        let planned = RolloutEvent::Planned(Box::new(planned));
        std::iter::once(planned).chain(follows.until_the_end(rollout)).collect()
    }

    /// Says what an input leads to, up to where nothing follows any more. Changes nothing; empty when it is no news.
    ///
    /// It looks ahead on a copy. Whoever takes facts in one by one, as [`Story::decide`](super::Story::decide) does,
    /// needs none.
    ///
    /// # Errors
    ///
    /// See [`follows`](Self::follows).
    pub fn decide(&self, now: UnixMicros, input: &Input) -> Result<Vec<RolloutEvent>, Rejection> {
        let mut follows = self.follows(now, input)?;
        Ok(match follows.next(self) {
            None => Vec::new(),
            Some(first) => {
                follows.due.push_front(first);
                follows.until_the_end(self.clone())
            }
        })
    }

    /// Says what an input leads to, fact by fact. Changes nothing.
    ///
    /// `now` must not be earlier than at the call before; after a start or a change of the lease the first input has
    /// to be [`Input::TakenOver`], or the time without a leader would fail nodes.
    ///
    /// # Errors
    ///
    /// A command cannot be taken, or a controller has no right to lead. Nothing else is ever refused.
    pub fn follows(&self, now: UnixMicros, input: &Input) -> Result<Follows, Rejection> {
        let first = match input {
            Input::Command { intent, by, command } => {
                self.command(now, Why::Intent(*intent), by.as_ref(), command)?
            }
            Input::TakenOver { controller, term, grace_ms } => {
                self.taken_over(now, controller, *term, *grace_ms)?
            }
            _ if self.verdict().is_some() => Vec::new(),
            Input::Node { node, report, .. } => self.report(now, input.cause(), node, report),
            Input::Check { check, wave, number, measure, value } => {
                self.check(now, check, *wave, *number, *measure, value)
            }
            Input::Tick => Vec::new(),
        };
        Ok(Follows::new(self, now, first))
    }

    fn taken_over(
        &self,
        now: UnixMicros,
        controller: &NodeId,
        term: u64,
        grace_ms: u64,
    ) -> Result<Vec<RolloutEvent>, Rejection> {
        let (known, in_force) = self.leader();
        if term < in_force || (term == in_force && controller != known) {
            return Err(Rejection::StaleTerm { term: in_force, controller: known.clone() });
        }
        if self.verdict().is_some() {
            return Ok(Vec::new());
        }
        let (controller, grace_until) = (controller.clone(), now.plus_ms(grace_ms));
        let (cause, after) = (Why::Time, self.facts);
        let taken = TakenOver { cause, controller, term, after, grace_until };
        Ok(vec![RolloutEvent::TakenOver(taken)])
    }

    fn check(
        &self,
        now: UnixMicros,
        check: &CheckName,
        wave: u16,
        number: u32,
        measure: Measure,
        value: &str,
    ) -> Vec<RolloutEvent> {
        let Some((open, checks)) = self.open_checks() else { return Vec::new() };
        let due = |name: &CheckName| {
            checks.get(name).is_some_and(|run| run.result.is_none() && run.taken + 1 == number)
        };
        let Some(rules) = self.plan.parameters.checks.get(check) else { return Vec::new() };
        if open != wave || !due(check) {
            return Vec::new();
        }
        vec![RolloutEvent::CheckMeasured(CheckMeasured {
            cause: Why::Time,
            check: check.clone(),
            wave,
            number,
            measure,
            value: value.to_owned(),
            next_at: now.plus_ms(rules.interval_ms),
        })]
    }

    /// Returns where the value of a key comes from.
    fn origin(&self, key: &str) -> Option<Origin> {
        self.origins.get(key).cloned()
    }

    /// Names the last fact as a cause.
    fn last(&self) -> Why {
        Why::Fact(self.facts - 1)
    }

    fn seen(&self, now: UnixMicros, cause: Why, node: &NodeId) -> RolloutEvent {
        let grace_until = now.plus_ms(SEEN_GRACE_MS);
        RolloutEvent::NodeSeen(NodeSeen { cause, node: node.clone(), grace_until })
    }

    /// Returns the kind of the wave that is open on the way forward.
    pub(super) fn open_kind(&self) -> Option<WaveKind> {
        match &self.phase {
            super::Phase::Forward(At::Open(wave) | At::Settled { wave, .. }) => {
                self.waves.get(*wave).map(|wave| wave.kind)
            }
            _ => None,
        }
    }
}

/// Draws the nodes that are not healthy forward, into a wave of their own behind those that have to prove the release:
/// waiting for health that they do not have would hold up what might cure them, and taking them away takes nothing away.
fn drawn_forward(plan: &Plan, before: &BTreeMap<NodeId, Observed>) -> Vec<Wave> {
    let sick = |node: &NodeId| {
        before.get(node).is_some_and(|before| before.release.is_some() && !before.healthy)
    };
    // Behind a canary everybody has its word, as the nodes of a retry have. Where all may go first, these do.
    let unproved = match plan.unproved_max() {
        first if plan.canary().is_empty() && first < plan.size() => first,
        _ => 0,
    };
    let (mut waves, mut drawn) = (Vec::new(), Vec::new());
    let (mut at, mut passed) = (0, 0);
    for wave in &plan.waves {
        let (sick, well): (Vec<_>, Vec<_>) = match wave.kind {
            WaveKind::Batch if passed >= unproved => wave.nodes.iter().cloned().partition(sick),
            _ => {
                at += 1;
                (Vec::new(), wave.nodes.clone())
            }
        };
        passed += wave.nodes.len();
        drawn.extend(sick);
        if !well.is_empty() {
            waves.push(Wave { kind: wave.kind, nodes: well });
        }
    }
    if !drawn.is_empty() {
        waves.insert(at, Wave { kind: WaveKind::Unhealthy, nodes: drawn });
    }
    waves
}
