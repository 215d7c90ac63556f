//! What an input leads to. Decides one fact at a time, each on the state after the one before.

mod advance;
mod command;
mod report;

use std::collections::BTreeMap;

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
    /// Whether nodes that run the release already are restarted.
    pub force: bool,
    /// Who leads.
    pub controller: NodeId,
    /// In which term.
    pub term: u64,
}

impl Rollout {
    /// Opens a rollout: its first facts, `rollout.planned` first.
    pub fn open(opening: Opening, now: UnixMicros) -> Vec<RolloutEvent> {
        let Opening { plan, by, reason, origins, before, force, controller, term } = opening;
        let runs = |node: &NodeId| {
            before.get(node).is_some_and(|node| node.healthy && node.release == Some(plan.release))
        };
        let runs_already = !force && plan.targets().all(runs);
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
        let mut events = vec![RolloutEvent::Planned(Box::new(planned))];
        rollout.settle(now, &mut events);
        events
    }

    /// Says what an input leads to. Changes nothing; empty when it is no news.
    ///
    /// `now` must not be earlier than at the call before; after a start or a change of the lease the first input has
    /// to be [`Input::TakenOver`], or the time without a leader would fail nodes.
    ///
    /// # Errors
    ///
    /// A command cannot be taken, or a controller has no right to lead. Nothing else is ever refused.
    pub fn decide(&self, now: UnixMicros, input: &Input) -> Result<Vec<RolloutEvent>, Rejection> {
        let mut events = match input {
            Input::Command { intent, by, command } => {
                self.command(now, Why::Intent(*intent), by.as_ref(), command)?
            }
            Input::TakenOver { controller, term, grace_ms } => {
                self.taken_over(now, controller, *term, *grace_ms)?
            }
            _ if self.verdict().is_some() => return Ok(Vec::new()),
            Input::Node { node, report, .. } => self.report(now, input.cause(), node, report),
            Input::Check { check, wave, number, measure, value } => {
                self.check(now, check, *wave, *number, *measure, value)
            }
            Input::Tick => Vec::new(),
        };
        if events.is_empty() && self.advance(now).is_empty() {
            return Ok(events);
        }
        let mut next = self.clone();
        for event in &events {
            next.evolve(event).expect("decided on this state: see the cases of decide");
        }
        next.settle(now, &mut events);
        Ok(events)
    }

    /// Adds what follows without any further input.
    fn settle(mut self, now: UnixMicros, events: &mut Vec<RolloutEvent>) {
        // Each node has at most three facts at one moment, each wave and check a few: beyond that something turns in
        // circles, and what is left waits for the next input.
        let facts_max = 64 + 4 * (self.members.len() + self.waves.len());
        for _ in 0..facts_max {
            let more = self.advance(now);
            if more.is_empty() {
                return;
            }
            for event in &more {
                self.evolve(event).expect("decided on this state: see the cases of advance");
            }
            events.extend(more);
        }
        debug_assert!(false, "a rollout turns in circles: {:?}", events.last());
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
    fn open_kind(&self) -> Option<WaveKind> {
        match &self.phase {
            super::Phase::Forward(At::Open(wave) | At::Settled { wave, .. }) => {
                self.waves.get(*wave).map(|wave| wave.kind)
            }
            _ => None,
        }
    }
}

/// Draws the nodes that are not healthy forward, into a wave of their own behind the canary: waiting for health that
/// they do not have would hold up what might cure them, and taking them away takes nothing away.
fn drawn_forward(plan: &Plan, before: &BTreeMap<NodeId, Observed>) -> Vec<Wave> {
    let sick = |node: &NodeId| {
        before.get(node).is_some_and(|before| before.release.is_some() && !before.healthy)
    };
    let mut waves = Vec::new();
    let mut drawn = Vec::new();
    for wave in &plan.waves {
        let (sick, well): (Vec<_>, Vec<_>) = match wave.kind {
            WaveKind::Batch => wave.nodes.iter().cloned().partition(sick),
            _ => (Vec::new(), wave.nodes.clone()),
        };
        drawn.extend(sick);
        if !well.is_empty() {
            waves.push(Wave { kind: wave.kind, nodes: well });
        }
    }
    if !drawn.is_empty() {
        let at = usize::from(waves.first().is_some_and(|wave| wave.kind == WaveKind::Canary));
        waves.insert(at, Wave { kind: WaveKind::Unhealthy, nodes: drawn });
    }
    waves
}
