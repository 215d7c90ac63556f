//! One slot of a service: the run that counts, and in a handover the one beside it.
//!
//! This folder only folds. What is decided, and why, is in `decide`.

mod after;
mod beside;
mod state;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use super::effect::Timer;
use super::event::{Because, Context, Event, InstanceStarting};
use super::health::{Check, Failing};
use super::id::{CheckName, Digest, InstanceId, RunId, ServiceId};
use super::time::UnixMicros;

pub use beside::Beside;
pub use state::{LastProcess, LastRun, Left, Main, State, Then};

/// Says that an event cannot have happened in the state that was folded before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{event}` cannot follow the state `{state}`")]
pub struct IllegalEvent {
    /// The state, by name.
    pub state: &'static str,
    /// The type of the event.
    pub event: &'static str,
}

/// A slot of a service. Each start of it is a run with a number that is never used twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The highest number that was given to a start; 0 before the first.
    pub last_run: RunId,
    /// Where it stands.
    pub state: State,
    /// Since when it is in this state.
    pub since: UnixMicros,
    /// What the next restart is computed from.
    pub backoff: Backoff,
    /// Whose act it is under way for, and what led to it; nobody's when it is where it was going, or by policy.
    #[serde(default, skip_serializing_if = "Because::is_nobody")]
    pub because: Because,
    /// How the last run that ended did so.
    pub last: Option<LastRun>,
    /// How many runs in a row ended as the last one did, that one included.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub same_exits: u32,
    /// When its run was found alive by parts of smgr that did not start it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted_at: Option<UnixMicros>,
    /// The alerts of its spec that fire, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub firing: BTreeMap<String, Firing>,
    /// What is known of the checks of its run, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<CheckName, Check>,
    /// What its process was started after: the starts so far of each service whose restarts it follows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub started_after: BTreeMap<ServiceId, u64>,
    /// The second run of it, in a handover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Box<Beside>>,
    /// The spec of a run that was to take over and failed: it is not tried again by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gave_up: Option<Digest>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// An alert that fires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firing {
    /// Since when.
    pub since: UnixMicros,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// In words.
    pub summary: String,
}

impl Instance {
    /// Builds a slot whose first run has the number after `floor`.
    pub fn new(floor: RunId) -> Self {
        Self {
            last_run: floor,
            state: State::Inactive,
            since: UnixMicros::default(),
            backoff: Backoff::default(),
            because: Because::default(),
            last: None,
            same_exits: 0,
            adopted_at: None,
            firing: BTreeMap::new(),
            checks: BTreeMap::new(),
            started_after: BTreeMap::new(),
            beside: None,
            gave_up: None,
        }
    }

    /// Says whether nothing of it runs and nothing is scheduled.
    pub fn at_rest(&self) -> bool {
        self.state.at_rest() && self.beside.is_none()
    }

    /// Says whether it serves: alive, ready, and no check says that it should get no traffic.
    pub fn is_ready(&self) -> bool {
        self.state.is_ready() && !self.checks.values().any(Check::is_unready)
    }

    /// Returns the number of the next start.
    pub fn next_run(&self) -> RunId {
        RunId(self.last_run.0 + 1)
    }

    /// Counts what was started from `kept` as started from `digest`, which says the same of a process.
    pub(super) fn keep(&mut self, kept: Option<Digest>, digest: Digest) {
        let beside = self.beside.as_mut().map(|beside| {
            if Some(beside.spec) == kept {
                beside.spec = digest;
            }
            &mut beside.state
        });
        let states = [Some(&mut self.state), beside].into_iter().flatten();
        for main in states.filter_map(State::main_mut).filter(|main| Some(main.spec) == kept) {
            main.spec = digest;
        }
    }

    /// Returns the deadlines of its runs: one for each state that has one.
    pub fn deadlines(&self, id: &InstanceId) -> BTreeMap<Timer, UnixMicros> {
        let beside = self.beside.as_ref().and_then(|beside| match (&beside.state, beside.until) {
            (State::Starting { main, .. } | State::Running { main }, Some(until)) => {
                Some((Timer::Ready(id.clone(), main.run), until))
            }
            (state, _) => state.deadline(id),
        });
        self.state.deadline(id).into_iter().chain(beside).collect()
    }

    /// Folds one fact about this slot. On an error nothing has changed.
    ///
    /// # Errors
    ///
    /// The event cannot follow the state, or names another run than the one that it has.
    pub fn evolve(
        &mut self,
        at: UnixMicros,
        context: &Context,
        event: &Event,
    ) -> Result<(), IllegalEvent> {
        let run = context.run;
        let illegal = IllegalEvent { state: self.state.label(), event: event.kind() };
        if let Event::InstanceStarting(InstanceStarting { beside: Some(spec), .. }) = event {
            return self.begin_beside(at, context, *spec).ok_or(illegal);
        }
        if self.is_beside(run) && !is_of_slot(event) {
            let label = self.beside.as_ref().map_or("none", |beside| beside.state.label());
            let illegal = IllegalEvent { state: label, event: event.kind() };
            self.evolve_beside(at, context, event).ok_or(illegal)?;
            if let Some(last) = LastRun::of(at, run, event) {
                self.last = Some(last);
            }
            return Ok(());
        }
        let next = self.state.after(at, run, self.last_run, event).ok_or(illegal)?;
        self.remember(at, run, event);
        let was_stopping = matches!(self.state, State::Stopping { .. });
        if let Some(next) = next {
            if next.name() != self.state.name() {
                self.since = at;
            }
            if let State::Spawning { run } | State::Starting { main: Main { run, .. }, .. } = next {
                self.last_run = self.last_run.max(run);
            }
            if let Some(main) = next.main() {
                self.last_run = self.last_run.max(main.run);
            }
            self.state = next;
        }
        self.because = match event {
            Event::InstanceStarting(_) | Event::InstanceWaiting(_) | Event::InstanceStopping(_) => {
                context.authority()
            }
            // What follows an end that nobody asked for follows from the policy.
            Event::InstanceExited(_) if !was_stopping => Because::default(),
            _ if self.state.is_under_way() => std::mem::take(&mut self.because),
            _ => Because::default(),
        };
        Ok(())
    }

    /// Folds what an event says beside the state. Called for legal events only.
    fn remember(&mut self, at: UnixMicros, run: Option<RunId>, event: &Event) {
        match event {
            Event::InstanceStarting(body) if body.fresh => {
                self.backoff.reset();
                self.same_exits = 0;
            }
            Event::InstanceStopped(body) if body.fresh => {
                self.backoff.reset();
                self.same_exits = 0;
            }
            Event::InstanceStarted(body) => {
                self.adopted_at = None;
                self.checks.clear();
                self.started_after.clone_from(&body.after);
            }
            Event::InstanceHealthy(_) | Event::InstanceUnhealthy(_) => {
                note_check(&mut self.checks, at, event);
            }
            Event::InstanceAdopted(_) => self.adopted_at = Some(at),
            Event::InstanceStartFailed(body) => {
                self.same_exits = 0;
                self.backoff.restarts = body.restarts;
                self.backoff.base_ms = body.base_ms;
                self.backoff.window_since = body.window_since;
                self.backoff.window_restarts = body.window_restarts;
                self.last = LastRun::of(at, run, event);
            }
            Event::InstanceExited(body) => {
                self.backoff.restarts = body.restarts;
                self.backoff.base_ms = body.base_ms;
                self.backoff.window_since = body.window_since;
                self.backoff.window_restarts = body.window_restarts;
                self.adopted_at = None;
                self.checks.clear();
                let ended_so = |last: &LastRun| last.process.map(|process| process.exit);
                let is_same = self.last.as_ref().and_then(ended_so) == Some(body.exit);
                self.same_exits = if is_same { self.same_exits.saturating_add(1) } else { 1 };
                self.last = LastRun::of(at, run, event);
            }
            Event::AlertFired(body) if is_restart_limit(&body.alert) => {
                self.backoff.alerting = true;
            }
            Event::AlertFired(body) => {
                let (severity, summary) = (body.severity.clone(), body.summary.clone());
                let firing = Firing { since: at, severity, summary };
                self.firing.insert(short_name(&body.alert).to_owned(), firing);
            }
            Event::AlertResolved(body) if is_restart_limit(&body.alert) => {
                self.backoff.alerting = false;
            }
            Event::AlertResolved(body) => {
                self.firing.remove(short_name(&body.alert));
            }
            _ => {}
        }
    }
}

/// Says whether an event is about the slot, whatever run it names.
fn is_of_slot(event: &Event) -> bool {
    matches!(
        event,
        Event::InstanceSignalled(_)
            | Event::AlertFired(_)
            | Event::AlertResolved(_)
            | Event::LinesDropped(_)
            | Event::Summarized(_)
    )
}

/// Folds what is known of a check.
fn note_check(checks: &mut BTreeMap<CheckName, Check>, at: UnixMicros, event: &Event) {
    match event {
        Event::InstanceHealthy(body) if body.in_a_row == 0 => {
            checks.remove(&body.check);
        }
        Event::InstanceHealthy(body) => {
            checks.insert(body.check.clone(), Check { since: at, failing: None });
        }
        Event::InstanceUnhealthy(body) => {
            let failing = Failing { on_failure: body.on_failure, message: body.message.clone() };
            checks.insert(body.check.clone(), Check { since: at, failing: Some(failing) });
        }
        _ => {}
    }
}

/// The name of the alert that a restart limit fires, after the service's name and a slash.
pub(super) const RESTART_LIMIT: &str = "/restart-limit";

fn is_restart_limit(alert: &str) -> bool {
    alert.ends_with(RESTART_LIMIT)
}

/// Returns the name of an alert without that of its service.
fn short_name(alert: &str) -> &str {
    alert.split_once('/').map_or(alert, |(_, name)| name)
}
