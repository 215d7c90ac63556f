//! One slot of a service: the ten states, and which fact leads from which state to which.
//!
//! This file only folds. What is decided, and why, is in `decide`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use super::effect::Timer;
use super::event::{
    Because, Context, Event, Exit, InstanceExited, InstanceStarted, InstanceStarting,
    InstanceStopping, Next, RunResult, StateName, StopPhase, StopReason, Summarized,
};
use super::health::{Check, Failing};
use super::id::{CheckName, Digest, InstanceId, RunId, ServiceId};
use super::time::UnixMicros;

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

/// The end of the last run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// Its number.
    pub run: RunId,
    /// What its end means for the service.
    pub result: RunResult,
    /// When it ended.
    pub at: UnixMicros,
    /// What is known of its process; absent when none could be started.
    pub process: Option<LastProcess>,
}

/// The process of the last run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastProcess {
    /// Its process id.
    pub pid: u32,
    /// As the kernel told it.
    pub exit: Exit,
    /// Whether its memory limit ended it.
    pub oom_killed: bool,
    /// How long it ran, in milliseconds.
    pub ran_ms: u64,
    /// The most memory that it had, bytes; absent when it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
}

/// A live main process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Main {
    /// The number of the start.
    pub run: RunId,
    /// Its process id.
    pub pid: u32,
    /// Its pidfs inode; 0 when it is not known.
    pub pidfd_inode: u64,
    /// The spec that it was started from, or a later one that says the same of its process.
    pub spec: Digest,
    /// When it was started.
    pub started_at: UnixMicros,
    /// When it counts as stable again; present only while its restart alert fires.
    pub stable_at: Option<UnixMicros>,
}

/// Where an instance stands. What is valid in one state only, lives in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not wanted, no process.
    #[default]
    Inactive,
    /// Wanted, and these services are not there yet.
    Waiting {
        /// Which.
        on: Vec<ServiceId>,
    },
    /// The keeper was asked for a process. Shown as `starting`.
    Spawning {
        /// The number of the start.
        run: RunId,
    },
    /// A process is there and not ready yet.
    Starting {
        /// The process.
        main: Main,
        /// When it has failed to be ready.
        ready_by: Option<UnixMicros>,
    },
    /// Alive and ready.
    Running {
        /// The process.
        main: Main,
    },
    /// Alive, taking in a new configuration.
    Reloading {
        /// The process.
        main: Main,
        /// When the reload has failed.
        until: UnixMicros,
    },
    /// On the way down; ends when no process of the run is left.
    Stopping {
        /// The number of the start.
        run: RunId,
        /// What is left.
        left: Left,
        /// How far it is.
        phase: StopPhase,
        /// When the phase is over.
        until: UnixMicros,
        /// When the stop began.
        began_at: UnixMicros,
        /// Why.
        reason: StopReason,
        /// What follows.
        then: Then,
    },
    /// Ended; the next start is scheduled.
    Backoff {
        /// When.
        until: UnixMicros,
    },
    /// Ended with success, and that was wanted.
    Completed,
    /// Given up.
    Failed,
}

/// What is left of a run that is being stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Left {
    /// The keeper has not said yet whether there is a process.
    Asked,
    /// The main process, and whatever it started.
    Alive(Main),
    /// At most what the main process started.
    Rest,
}

/// What follows a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// Rest.
    Inactive,
    /// The next run, at once.
    Start,
    /// The next run, at a time.
    StartAt(UnixMicros),
    /// Rest, as wanted.
    Completed,
    /// Rest, given up.
    Failed,
}

impl Then {
    /// Says whether a run follows.
    pub fn starts(self) -> bool {
        matches!(self, Self::Start | Self::StartAt(_))
    }

    fn from_next(next: Next) -> Option<Self> {
        match next {
            Next::AtOnce => Some(Self::Start),
            Next::At(at) => Some(Self::StartAt(at)),
            Next::Completed => Some(Self::Completed),
            Next::Failed => Some(Self::Failed),
            Next::Inactive => Some(Self::Inactive),
            Next::Stopping => None,
        }
    }
}

impl From<Then> for Next {
    fn from(then: Then) -> Self {
        match then {
            Then::Inactive => Self::Inactive,
            Then::Start => Self::AtOnce,
            Then::StartAt(at) => Self::At(at),
            Then::Completed => Self::Completed,
            Then::Failed => Self::Failed,
        }
    }
}

impl State {
    /// Returns the state by the name that people read.
    pub fn name(&self) -> StateName {
        match self {
            Self::Inactive => StateName::Inactive,
            Self::Waiting { .. } => StateName::Waiting,
            Self::Spawning { .. } | Self::Starting { .. } => StateName::Starting,
            Self::Running { .. } => StateName::Running,
            Self::Reloading { .. } => StateName::Reloading,
            Self::Stopping { .. } => StateName::Stopping,
            Self::Backoff { .. } => StateName::Backoff,
            Self::Completed => StateName::Completed,
            Self::Failed => StateName::Failed,
        }
    }

    /// Returns the name that errors print; it tells `spawning` from `starting`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Waiting { .. } => "waiting",
            Self::Spawning { .. } => "spawning",
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::Reloading { .. } => "reloading",
            Self::Stopping { .. } => "stopping",
            Self::Backoff { .. } => "backoff",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// Returns the main process while one lives.
    pub fn main(&self) -> Option<&Main> {
        match self {
            Self::Starting { main, .. } | Self::Running { main } | Self::Reloading { main, .. } => {
                Some(main)
            }
            Self::Stopping { left: Left::Alive(main), .. } => Some(main),
            Self::Stopping { left: Left::Asked | Left::Rest, .. }
            | Self::Inactive
            | Self::Waiting { .. }
            | Self::Spawning { .. }
            | Self::Backoff { .. }
            | Self::Completed
            | Self::Failed => None,
        }
    }

    pub(super) fn main_mut(&mut self) -> Option<&mut Main> {
        match self {
            Self::Starting { main, .. } | Self::Running { main } | Self::Reloading { main, .. } => {
                Some(main)
            }
            Self::Stopping { left: Left::Alive(main), .. } => Some(main),
            Self::Stopping { left: Left::Asked | Left::Rest, .. }
            | Self::Inactive
            | Self::Waiting { .. }
            | Self::Spawning { .. }
            | Self::Backoff { .. }
            | Self::Completed
            | Self::Failed => None,
        }
    }

    /// Returns the run of which a process may live.
    pub fn run(&self) -> Option<RunId> {
        match self {
            Self::Spawning { run } | Self::Stopping { run, .. } => Some(*run),
            Self::Starting { main, .. } | Self::Running { main } | Self::Reloading { main, .. } => {
                Some(main.run)
            }
            Self::Inactive
            | Self::Waiting { .. }
            | Self::Backoff { .. }
            | Self::Completed
            | Self::Failed => None,
        }
    }

    /// Says whether nothing runs and nothing is scheduled.
    pub fn at_rest(&self) -> bool {
        matches!(self, Self::Inactive | Self::Completed | Self::Failed)
    }

    /// Says whether it is between two states that last.
    pub fn is_under_way(&self) -> bool {
        matches!(
            self,
            Self::Waiting { .. }
                | Self::Spawning { .. }
                | Self::Starting { .. }
                | Self::Stopping { .. }
        )
    }

    /// Says whether a process of this run is awaited that the keeper has not told of.
    pub fn awaits_start(&self, of: RunId) -> bool {
        matches!(
            self,
            Self::Spawning { run } | Self::Stopping { left: Left::Asked, run, .. } if *run == of
        )
    }

    /// Says whether it serves: alive and ready.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Reloading { .. })
    }
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
        }
    }

    /// Says whether it serves: alive, ready, and no check says that it should get no traffic.
    pub fn is_ready(&self) -> bool {
        self.state.is_ready() && !self.checks.values().any(Check::is_unready)
    }

    /// Returns the number of the next start.
    pub fn next_run(&self) -> RunId {
        RunId(self.last_run.0 + 1)
    }

    /// Returns the one deadline that its state has.
    pub fn deadline(&self, id: &InstanceId) -> Option<(Timer, UnixMicros)> {
        match &self.state {
            State::Starting { main, ready_by } => {
                ready_by.map(|at| (Timer::Ready(id.clone(), main.run), at))
            }
            State::Running { main } => {
                main.stable_at.map(|at| (Timer::Stable(id.clone(), main.run), at))
            }
            State::Reloading { main, until } => Some((Timer::Reload(id.clone(), main.run), *until)),
            State::Stopping { run, until, .. } => Some((Timer::Stop(id.clone(), *run), *until)),
            State::Backoff { until } => Some((Timer::Backoff(id.clone()), *until)),
            State::Inactive
            | State::Waiting { .. }
            | State::Spawning { .. }
            | State::Completed
            | State::Failed => None,
        }
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
        let next = self.after(at, run, event).ok_or(illegal)?;
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

    /// Returns the state after the event: `None` when it is illegal, `Some(None)` when the state stays.
    #[expect(
        clippy::option_option,
        reason = "illegal and unchanged are different answers, used in one place"
    )]
    fn after(&self, at: UnixMicros, run: Option<RunId>, event: &Event) -> Option<Option<State>> {
        let ours = self.state.run().is_some() && self.state.run() == run;
        match (&self.state, event) {
            (
                State::Inactive
                | State::Waiting { .. }
                | State::Spawning { .. }
                | State::Backoff { .. }
                | State::Completed
                | State::Failed,
                Event::InstanceStarting(InstanceStarting { .. }),
            ) => match run {
                Some(run) if run > self.last_run => Some(Some(State::Spawning { run })),
                _ => None,
            },
            (
                State::Inactive
                | State::Waiting { .. }
                | State::Backoff { .. }
                | State::Completed
                | State::Failed,
                Event::InstanceWaiting(body),
            ) => Some(Some(State::Waiting { on: body.on.clone() })),

            (State::Spawning { .. }, Event::InstanceStarted(body)) if ours => {
                let main = Main::new(at, run?, body);
                match body.to {
                    StateName::Running => Some(Some(State::Running { main })),
                    _ => Some(Some(State::Starting { main, ready_by: body.ready_by })),
                }
            }
            (
                State::Stopping { left: Left::Asked, phase, until, began_at, reason, then, .. },
                Event::InstanceStarted(body),
            ) if ours => Some(Some(State::Stopping {
                run: run?,
                left: Left::Alive(Main::new(at, run?, body)),
                phase: *phase,
                until: *until,
                began_at: *began_at,
                reason: *reason,
                then: *then,
            })),
            (
                State::Spawning { .. } | State::Stopping { left: Left::Asked, .. },
                Event::InstanceStartFailed(body),
            ) if ours => match (body.to, body.next_attempt_at) {
                (StateName::Backoff, Some(until)) => Some(Some(State::Backoff { until })),
                (StateName::Failed, None) => Some(Some(State::Failed)),
                (StateName::Inactive, None) => Some(Some(State::Inactive)),
                _ => None,
            },

            (State::Starting { main, .. } | State::Running { main }, Event::InstanceReady(_)) if ours => {
                Some(Some(State::Running { main: main.clone() }))
            }

            (
                State::Starting { .. } | State::Running { .. } | State::Reloading { .. },
                Event::InstanceExited(body),
            ) if ours => self.after_exit(at, body).map(Some),
            (
                State::Stopping { left: Left::Alive(_), run, phase, until, began_at, reason, then },
                Event::InstanceExited(body),
            ) if ours && body.next == Next::Stopping => Some(Some(State::Stopping {
                run: *run,
                left: Left::Rest,
                phase: *phase,
                until: *until,
                began_at: *began_at,
                reason: *reason,
                then: body.then.and_then(Then::from_next).unwrap_or(*then),
            })),

            (
                State::Spawning { .. }
                | State::Starting { .. }
                | State::Running { .. }
                | State::Reloading { .. }
                | State::Stopping { .. },
                Event::InstanceStopping(body),
            ) if ours => Some(Some(self.after_stopping(at, run?, body))),
            (
                State::Stopping { left: Left::Asked | Left::Rest, .. },
                Event::InstanceStopped(body),
            ) if ours => self.rest_or_start(body.next).map(Some),
            (State::Waiting { .. } | State::Backoff { .. }, Event::InstanceStopped(body))
                if body.next == Next::Inactive =>
            {
                Some(Some(State::Inactive))
            }

            (State::Running { main }, Event::InstanceReloading(body)) if ours => {
                Some(Some(State::Reloading { main: main.clone(), until: body.until }))
            }
            (State::Reloading { main, .. }, Event::InstanceReloaded(_)) if ours => {
                Some(Some(State::Running { main: main.clone() }))
            }

            (
                State::Starting { .. }
                | State::Running { .. }
                | State::Reloading { .. }
                | State::Stopping { left: Left::Alive(_), .. },
                Event::InstanceAdopted(_),
            ) if ours => Some(None),
            (
                State::Starting { .. } | State::Running { .. } | State::Reloading { .. },
                Event::InstanceHealthy(_) | Event::InstanceUnhealthy(_),
            ) if ours => Some(None),
            (_, Event::InstanceSignalled(_)) => Some(None),
            (State::Running { main }, Event::AlertResolved(body)) if is_restart_limit(&body.alert) => {
                Some(Some(State::Running { main: Main { stable_at: None, ..main.clone() } }))
            }
            (_, Event::AlertFired(_) | Event::AlertResolved(_) | Event::LinesDropped(_)) => Some(None),
            (_, Event::Summarized(body)) => Some(Some(self.after_summary(body))),

            (
                State::Running { .. }
                | State::Starting { .. }
                | State::Reloading { .. }
                | State::Stopping { .. },
                Event::InstanceStarting(_) | Event::InstanceWaiting(_),
            )
            | (State::Spawning { .. }, Event::InstanceWaiting(_))
            | (
                _,
                Event::InstanceStarted(_)
                | Event::InstanceStartFailed(_)
                | Event::InstanceReady(_)
                | Event::InstanceHealthy(_)
                | Event::InstanceUnhealthy(_)
                | Event::InstanceExited(_)
                | Event::InstanceStopping(_)
                | Event::InstanceStopped(_)
                | Event::InstanceReloading(_)
                | Event::InstanceReloaded(_)
                | Event::InstanceAdopted(_),
            )
            // Facts about something else than an instance.
            | (
                _,
                Event::LogOpened(_)
                | Event::Baseline(_)
                | Event::LogRetired(_)
                | Event::LogUnavailable(_)
                | Event::LogRecovered(_)
                | Event::AgentStarted(_)
                | Event::AgentStopping(_)
                | Event::AgentStopped(_)
                | Event::KeeperStarted(_)
                | Event::TrustChanged(_)
                | Event::ServiceAdded(_)
                | Event::ServiceRemoved(_)
                | Event::DesiredChanged(_)
                | Event::IntentAccepted(_)
                | Event::IntentRefused(_)
                | Event::IntentExecuted(_)
                | Event::ActionStarted(_)
                | Event::ActionEnded(_)
                | Event::OrderAccepted(_)
                | Event::ReleaseStaged(_)
                | Event::ReleaseApplied(_)
                | Event::ReleaseHealthy(_)
                | Event::ReleaseFailed(_)
                | Event::ReleaseReturned(_)
                | Event::ReleaseRefused(_)
                | Event::Rollout(_),
            ) => None,
        }
    }

    fn after_exit(&self, at: UnixMicros, body: &InstanceExited) -> Option<State> {
        match (body.next, body.then) {
            (Next::Stopping, Some(then)) => Some(State::Stopping {
                run: self.state.run()?,
                left: Left::Rest,
                phase: StopPhase::Kill,
                until: body.until?,
                began_at: at,
                reason: StopReason::Leftover,
                then: Then::from_next(then)?,
            }),
            (Next::Stopping, None) => None,
            (next, _) => self.rest_or_start(next),
        }
    }

    fn after_stopping(&self, at: UnixMicros, run: RunId, body: &InstanceStopping) -> State {
        let left = match &self.state {
            State::Stopping { left, .. } => left.clone(),
            state => state.main().map_or(Left::Asked, |main| Left::Alive(main.clone())),
        };
        let began_at = match &self.state {
            State::Stopping { began_at, .. } => *began_at,
            _ => at,
        };
        let then = if body.then_start { Then::Start } else { Then::Inactive };
        let kept = match &self.state {
            // An escalation keeps what was to follow, down to the time of a scheduled start.
            State::Stopping { then: before, .. } if before.starts() == body.then_start => *before,
            _ => then,
        };
        State::Stopping {
            run,
            left,
            phase: body.phase,
            until: body.until,
            began_at,
            reason: body.reason,
            then: kept,
        }
    }

    fn rest_or_start(&self, next: Next) -> Option<State> {
        match next {
            Next::AtOnce => Some(State::Spawning { run: self.next_run() }),
            Next::At(until) => Some(State::Backoff { until }),
            Next::Completed => Some(State::Completed),
            Next::Failed => Some(State::Failed),
            Next::Inactive => Some(State::Inactive),
            Next::Stopping => None,
        }
    }

    fn after_summary(&self, body: &Summarized) -> State {
        let spec = self.state.main().map_or(Digest([0; 32]), |main| main.spec);
        match body.live {
            Some((run, pid)) => State::Running {
                main: Main {
                    run,
                    pid,
                    pidfd_inode: 0,
                    spec,
                    started_at: body.last_at,
                    stable_at: None,
                },
            },
            None => State::Backoff { until: body.last_at },
        }
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
            Event::InstanceHealthy(body) if body.in_a_row == 0 => {
                self.checks.remove(&body.check);
            }
            Event::InstanceHealthy(body) => {
                self.checks.insert(body.check.clone(), Check { since: at, failing: None });
            }
            Event::InstanceUnhealthy(body) => {
                let failing =
                    Failing { on_failure: body.on_failure, message: body.message.clone() };
                let check = Check { since: at, failing: Some(failing) };
                self.checks.insert(body.check.clone(), check);
            }
            Event::InstanceAdopted(_) => self.adopted_at = Some(at),
            Event::InstanceStartFailed(body) => {
                self.same_exits = 0;
                self.backoff.restarts = body.restarts;
                self.backoff.base_ms = body.base_ms;
                self.backoff.window_since = body.window_since;
                self.backoff.window_restarts = body.window_restarts;
                self.last =
                    run.map(|run| LastRun { run, result: RunResult::Resources, at, process: None });
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
                let process = LastProcess {
                    memory_peak_bytes: Some(body.usage.memory_peak_bytes).filter(|peak| *peak > 0),
                    pid: body.pid,
                    exit: body.exit,
                    oom_killed: body.oom_killed,
                    ran_ms: body.ran_ms,
                };
                self.last =
                    run.map(|run| LastRun { run, result: body.result, at, process: Some(process) });
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

/// The name of the alert that a restart limit fires, after the service's name and a slash.
pub(super) const RESTART_LIMIT: &str = "/restart-limit";

fn is_restart_limit(alert: &str) -> bool {
    alert.ends_with(RESTART_LIMIT)
}

/// Returns the name of an alert without that of its service.
fn short_name(alert: &str) -> &str {
    alert.split_once('/').map_or(alert, |(_, name)| name)
}

impl Main {
    fn new(at: UnixMicros, run: RunId, body: &InstanceStarted) -> Self {
        Self {
            run,
            pid: body.pid,
            pidfd_inode: body.pidfd_inode,
            spec: body.spec,
            started_at: at,
            stable_at: body.stable_at,
        }
    }
}
