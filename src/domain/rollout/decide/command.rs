//! What people want of a rollout.

use crate::domain::event::Actor;
use crate::domain::id::{IntentId, NodeId};
use crate::domain::origin::Origin;
use crate::domain::rollout::event::{
    Answered, Ended, Paused, Resumed, RollbackStarted, RolloutEvent, Stopping, Verdict, Why,
};
use crate::domain::rollout::input::{Command, Rejection};
use crate::domain::rollout::parameters::Skip;
use crate::domain::rollout::plan::chunks;
use crate::domain::rollout::state::{At, NodeState, Phase, Rollout};
use crate::domain::time::UnixMicros;

use super::VERDICT_SLACK_MS;

/// Why a rollout turns round or stops.
pub(super) struct Turn<'a> {
    pub(super) cause: Why,
    pub(super) by: Option<&'a Actor>,
    pub(super) origin: Option<Origin>,
}

impl Rollout {
    pub(super) fn command(
        &self,
        now: UnixMicros,
        cause: Why,
        by: Option<&Actor>,
        command: &Command,
    ) -> Result<Vec<RolloutEvent>, Rejection> {
        if let Some(verdict) = self.verdict() {
            return Err(Rejection::Ended(verdict.as_str()));
        }
        let turn = Turn { cause, by, origin: None };
        match command {
            Command::Pause => self.pause_by(now, turn),
            Command::Resume => self.resume(now, turn),
            Command::Promote => match self.phase {
                Phase::Forward(At::Promotion(_)) => {
                    Ok(vec![RolloutEvent::Promoted(turn.answered())])
                }
                _ => Err(Rejection::NoPromotionAwaited),
            },
            Command::Approve => self.approve(turn),
            Command::Abort { rollback } => Ok(self.abort(now, turn, *rollback)),
            Command::Supersede { with } => {
                Ok(vec![self.end(turn, Verdict::Superseded, Some(*with))])
            }
        }
    }

    fn pause_by(&self, now: UnixMicros, turn: Turn<'_>) -> Result<Vec<RolloutEvent>, Rejection> {
        if self.hold.is_some() {
            return Err(Rejection::AlreadyPaused);
        }
        if matches!(self.phase, Phase::Stopping { .. }) {
            return Err(Rejection::Ending);
        }
        Ok(vec![self.pause(now, turn)])
    }

    /// Returns the fact that nothing new begins.
    pub(super) fn pause(&self, now: UnixMicros, turn: Turn<'_>) -> RolloutEvent {
        let full = self.plan.parameters.progress_deadline_ms;
        let progress_left_ms = match (&self.hold, self.stands_still_at) {
            (Some(hold), _) => hold.progress_left_ms,
            (None, Some(at)) => at.ms_since(now),
            (None, None) => full,
        };
        let (cause, by, origin) = (turn.cause, turn.by.cloned(), turn.origin);
        RolloutEvent::Paused(Paused { cause, by, progress_left_ms, origin })
    }

    fn resume(&self, now: UnixMicros, turn: Turn<'_>) -> Result<Vec<RolloutEvent>, Rejection> {
        let hold = self.hold.ok_or(Rejection::NotPaused)?;
        if self.canary_has_failed() {
            return Err(Rejection::CanaryFailed);
        }
        let left_ms = match hold.progress_left_ms {
            0 => self.plan.parameters.progress_deadline_ms,
            left_ms => left_ms,
        };
        let (cause, by, until) = (turn.cause, turn.by.cloned(), now.plus_ms(left_ms));
        Ok(vec![RolloutEvent::Resumed(Resumed { cause, by, until })])
    }

    fn approve(&self, turn: Turn<'_>) -> Result<Vec<RolloutEvent>, Rejection> {
        if self.phase != Phase::AwaitingApproval {
            return Err(Rejection::NoApprovalAwaited);
        }
        let name = |actor: &Actor| (actor.kind, actor.name.clone());
        match (&self.asked_by, turn.by) {
            (Some(asked), Some(by)) if name(asked) == name(by) => {
                Err(Rejection::SamePerson(asked.name.to_string()))
            }
            _ => Ok(vec![RolloutEvent::Approved(turn.answered())]),
        }
    }

    fn abort(&self, now: UnixMicros, turn: Turn<'_>, rollback: bool) -> Vec<RolloutEvent> {
        match (&self.phase, rollback) {
            // It does what is asked already.
            (Phase::Back { .. }, true) | (Phase::Stopping { .. }, false) => Vec::new(),
            _ if !self.members.values().any(|member| is_touched(member.state)) => {
                vec![self.end(turn, Verdict::Aborted, None)]
            }
            (_, true) => vec![self.turn_back(now, turn, Verdict::Aborted)],
            (_, false) => vec![self.stop(now, turn, Verdict::Aborted, None)],
        }
    }

    /// Returns the fact that everything touched goes back; or that nothing can.
    pub(super) fn turn_back(&self, now: UnixMicros, turn: Turn<'_>, then: Verdict) -> RolloutEvent {
        let to = match self.plan.way_back() {
            Ok(to) => to,
            Err(why) => {
                let then = if then == Verdict::RolledBack { Verdict::Stopped } else { then };
                return self.stop(now, turn, then, Some(why));
            }
        };
        let (cause, by, origin) = (turn.cause, turn.by.cloned(), turn.origin);
        let waves = self.way_back();
        RolloutEvent::RollbackStarted(RollbackStarted { cause, by, to, waves, then, origin })
    }

    /// Returns the touched nodes in the order in which they go back: failing ones first, then as they came.
    fn way_back(&self) -> Vec<Vec<NodeId>> {
        let state = |node: &NodeId| self.members.get(node).map(|member| member.state);
        let reached = |node: &&NodeId| {
            state(node).is_some_and(|state| {
                // One that went back by itself is there already, and takes no second order for it.
                let is_back = matches!(
                    state,
                    NodeState::Lost { .. }
                        | NodeState::Returned
                        | NodeState::Failed { returned: true, .. }
                );
                is_touched(state) && !is_back
            })
        };
        let of = |failing: bool| {
            let is_failed = |node: &&NodeId| matches!(state(node), Some(NodeState::Failed { .. }));
            let touched = self.waves.iter().flat_map(|wave| &wave.nodes).filter(reached);
            touched.filter(move |node| is_failed(node) == failing).cloned()
        };
        let mut nodes: Vec<NodeId> = of(true).chain(of(false)).collect();
        let rules = &self.plan.parameters.rollback;
        let size = nodes.len();
        let mut waves = Vec::new();
        if !rules.skip.contains(&Skip::Canary) && !self.plan.parameters.canary.is_zero() {
            let canaries = self.plan.parameters.canary.batch_of(self.plan.size()).min(size);
            let rest = nodes.split_off(canaries);
            waves.push(std::mem::replace(&mut nodes, rest));
        }
        waves.extend(chunks(nodes, &rules.max_parallel, size));
        waves.retain(|wave| !wave.is_empty());
        waves
    }

    /// Returns the fact that no new node gets an order any more.
    pub(super) fn stop(
        &self,
        now: UnixMicros,
        turn: Turn<'_>,
        then: Verdict,
        no_way_back: Option<&str>,
    ) -> RolloutEvent {
        let wait_ms = self.plan.parameters.healthy_deadline_ms + VERDICT_SLACK_MS;
        RolloutEvent::Stopping(Stopping {
            cause: turn.cause,
            by: turn.by.cloned(),
            then,
            no_way_back: no_way_back.map(str::to_owned),
            until: now.plus_ms(wait_ms),
            origin: turn.origin,
        })
    }

    /// Returns the fact that it is over.
    pub(super) fn end(
        &self,
        turn: Turn<'_>,
        state: Verdict,
        superseded_by: Option<IntentId>,
    ) -> RolloutEvent {
        let is_changed = |state: NodeState| {
            is_touched(state)
                && !matches!(state, NodeState::Returned | NodeState::Failed { returned: true, .. })
        };
        let changed = self.members.values().any(|member| is_changed(member.state));
        RolloutEvent::Ended(Ended {
            cause: turn.cause,
            by: turn.by.cloned(),
            state,
            exit_code: state.exit_code(),
            changed,
            superseded_by,
        })
    }
}

impl Turn<'_> {
    fn answered(self) -> Answered {
        Answered { cause: self.cause, by: self.by.cloned() }
    }
}

/// Says whether a node may run something else than before.
fn is_touched(state: NodeState) -> bool {
    state != NodeState::NotStarted
}
