//! How a run is brought down: the command before, the drain, the signal, the kill.

use super::Turn;
use crate::domain::effect::{Act, Hook, Operation};
use crate::domain::event::{
    Because, Context, Event, InstanceStopped, InstanceStopping, Next, StopPhase, StopReason,
};
use crate::domain::id::{InstanceId, RunId};
use crate::domain::instance::{Left, State, Then};

/// How long after a kill of the whole tree the next one is tried, in milliseconds. A process in an uninterruptible
/// call of the kernel outlives any number of them.
pub(super) const KILL_RETRY_MS: u64 = 10_000;

/// How far apart two kills of a tree may be, in milliseconds.
pub(super) const KILL_RETRY_MS_MAX: u64 = 10 * 60_000;

impl Turn<'_> {
    /// Begins to stop whatever there is of the run that counts.
    pub(super) fn begin_stop(&mut self, id: &InstanceId, then_start: bool, reason: StopReason) {
        if let Some(run) = self.state(id).and_then(State::run) {
            self.begin_stop_of(id, run, then_start, reason);
        }
    }

    /// Begins to stop whatever there is of one run.
    pub(super) fn begin_stop_of(
        &mut self,
        id: &InstanceId,
        run: RunId,
        then_start: bool,
        reason: StopReason,
    ) {
        let rules = self.stop_rules(&id.service);
        let serves = self.instance(id).is_some_and(|instance| {
            instance.coming().is_none_or(|coming| coming.state.run() != Some(run))
        });
        let first = match self.of_run(id, run).filter(|_| serves) {
            Some(state) if state.is_ready() && rules.pre.is_some() => StopPhase::PreStop,
            Some(state) if state.is_ready() && rules.drain.0 > 0 => StopPhase::Drain,
            // Who never was ready has no traffic to move away.
            _ => StopPhase::Term,
        };
        self.enter(id, run, first, then_start, reason);
    }

    /// Goes on with a stop whose phase is over.
    pub(super) fn next_phase(&mut self, id: &InstanceId, run: RunId) {
        let Some(State::Stopping { phase, then, reason, .. }) = self.of_run(id, run) else {
            return;
        };
        let (then_start, reason) = (then.starts(), *reason);
        let next = match phase {
            StopPhase::PreStop if self.stop_rules(&id.service).drain.0 > 0 => StopPhase::Drain,
            StopPhase::PreStop | StopPhase::Drain => StopPhase::Term,
            StopPhase::Term | StopPhase::Kill => StopPhase::Kill,
        };
        self.enter(id, run, next, then_start, reason);
    }

    fn enter(
        &mut self,
        id: &InstanceId,
        run: RunId,
        phase: StopPhase,
        then_start: bool,
        reason: StopReason,
    ) {
        let Some(state) = self.of_run(id, run) else { return };
        let rules = self.stop_rules(&id.service);
        let lasts_ms = match phase {
            StopPhase::PreStop => rules.pre_timeout.0,
            StopPhase::Drain => rules.drain.0,
            StopPhase::Term => rules.timeout.0,
            // Twice as long each time, so that a process that cannot die does not fill the log.
            StopPhase::Kill => match state {
                State::Stopping { phase: StopPhase::Kill, began_at, .. } => {
                    self.now().ms_since(*began_at).clamp(KILL_RETRY_MS, KILL_RETRY_MS_MAX)
                }
                _ => KILL_RETRY_MS,
            },
        };
        let body = InstanceStopping {
            from: state.name(),
            phase,
            until: self.now().plus_ms(lasts_ms),
            then_start,
            reason,
        };
        let begins = !matches!(state, State::Stopping { .. });
        let is_followed = begins && reason != StopReason::HandedOver;
        let context = match self.asked_by(id) {
            None if is_followed => Context::run(id, run).with(self.stopped_by(id, reason)),
            _ => self.about(id, run),
        };
        self.emit(context, Event::InstanceStopping(body));
        self.ask_to_end(id, run);
    }

    /// Asks the keeper for what the present phase of a stop consists of. Asking again is harmless.
    pub(super) fn ask_to_end(&mut self, id: &InstanceId, run: RunId) {
        let Some(State::Stopping { left, phase, reason, .. }) = self.of_run(id, run) else {
            return;
        };
        let (phase, reason) = (*phase, *reason);
        let (alive, is_asked) = (matches!(left, Left::Alive(_)), *left == Left::Asked);
        let rules = self.stop_rules(&id.service);
        let act = match phase {
            StopPhase::Kill => Act::KillTree { instance: id.clone(), run },
            StopPhase::Drain => return,
            StopPhase::Term if !is_asked => Act::Signal {
                operation: match alive {
                    true => Operation::Stop(id.clone(), run),
                    false => Operation::StopRest(id.clone(), run),
                },
                instance: id.clone(),
                run,
                signal: rules.signal.number(),
            },
            StopPhase::PreStop if alive => Act::RunHook {
                instance: id.clone(),
                run,
                hook: Hook::PreStop,
                operation: Operation::PreStop(id.clone(), run),
            },
            StopPhase::Term | StopPhase::PreStop => return,
        };
        // Only the beginning of a stop that somebody asked for has to be durable before it is felt.
        match (phase, reason) {
            (StopPhase::Kill, _)
            | (_, StopReason::ReadyTimeout | StopReason::Leftover | StopReason::Unhealthy) => {
                self.repair(act);
            }
            (
                _,
                StopReason::Wish
                | StopReason::Update
                | StopReason::Dependency
                | StopReason::HandedOver,
            ) => {
                self.promise(act);
            }
        }
    }

    /// The main process has ended in a stop and left others behind: each is asked to end as it was. There is nobody left
    /// to move traffic away from, so that is not waited for.
    pub(super) fn end_rest(&mut self, id: &InstanceId, run: RunId) {
        let Some(State::Stopping { phase, then, reason, .. }) = self.of_run(id, run) else {
            return;
        };
        match phase {
            StopPhase::PreStop | StopPhase::Drain => {
                let (then_start, reason) = (then.starts(), *reason);
                self.enter(id, run, StopPhase::Term, then_start, reason);
            }
            StopPhase::Term | StopPhase::Kill => self.ask_to_end(id, run),
        }
    }

    /// Says what is to follow a stop that is under way.
    pub(super) fn redirect(&mut self, id: &InstanceId, then_start: bool) {
        let Some(State::Stopping { run, phase, until, reason, .. }) = self.state(id) else {
            return;
        };
        let body = InstanceStopping {
            from: crate::domain::event::StateName::Stopping,
            phase: *phase,
            until: *until,
            then_start,
            reason: *reason,
        };
        let context = self.about(id, *run);
        self.emit(context, Event::InstanceStopping(body));
    }

    /// Returns whose act a stop follows that no open wish asks for.
    fn stopped_by(&self, id: &InstanceId, reason: StopReason) -> Because {
        match reason {
            StopReason::Wish | StopReason::Update if self.head().stopping.is_some() => {
                self.head().stopping_by.clone()
            }
            StopReason::Wish | StopReason::Update => self
                .service(&id.service)
                .map(|service| service.changed_by.clone())
                .unwrap_or_default(),
            StopReason::ReadyTimeout
            | StopReason::Leftover
            | StopReason::Dependency
            | StopReason::HandedOver
            | StopReason::Unhealthy => Because::default(),
        }
    }

    /// Ends a stop: no process of the run is left.
    pub(super) fn stopped(&mut self, id: &InstanceId, run: RunId) {
        let Some(instance) = self.instance(id) else { return };
        let Some(State::Stopping { then, began_at, reason, .. }) = instance.of_run(run) else {
            return;
        };
        let took_ms = self.now().ms_since(*began_at);
        let next = self.next_after(id, *then);
        let is_asked_for = *reason == StopReason::Update || self.is_asked_for(id, instance);
        let body = InstanceStopped { next, took_ms, fresh: next == Next::AtOnce && is_asked_for };
        self.emit(self.about(id, run), Event::InstanceStopped(body));
    }

    /// Returns what follows an end, given that a start at once is possible only when nothing is waited for.
    pub(super) fn next_after(&self, id: &InstanceId, then: Then) -> Next {
        match then {
            Then::Start | Then::StartAt(_) if !self.is_wanted(id) => Next::Inactive,
            Then::Start if self.unmet(&id.service).on.is_empty() => Next::AtOnce,
            Then::Start => Next::At(self.now()),
            Then::StartAt(_) | Then::Inactive | Then::Completed | Then::Failed => then.into(),
        }
    }

    /// Ends an instance that has no process but wants one.
    pub(super) fn rest(&mut self, id: &InstanceId) {
        let body = InstanceStopped { next: Next::Inactive, took_ms: 0, fresh: false };
        let stopped_by = || self.stopped_by(id, StopReason::Wish);
        let because = self.asked_by(id).unwrap_or_else(stopped_by);
        self.emit(Context::instance(id).with(because), Event::InstanceStopped(body));
    }
}
