//! Where one run of an instance stands, and what is known of its process.

use serde::{Deserialize, Serialize};

use crate::domain::effect::Timer;
use crate::domain::event::{
    Event, Exit, InstanceStarted, Next, RunResult, StateName, StopPhase, StopReason,
};
use crate::domain::id::{Digest, InstanceId, RunId, ServiceId};
use crate::domain::time::UnixMicros;

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
    /// Why none could be started: the step and the reason, cut; absent where one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_started: Option<String>,
}

/// How many characters of the reason why a process could not be started are kept in the state.
const NOT_STARTED_CHARS_MAX: usize = 160;

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

    pub(super) fn from_next(next: Next) -> Option<Self> {
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
    /// Returns the one deadline that it has.
    pub(super) fn deadline(&self, id: &InstanceId) -> Option<(Timer, UnixMicros)> {
        match self {
            Self::Starting { main, ready_by } => {
                ready_by.map(|at| (Timer::Ready(id.clone(), main.run), at))
            }
            Self::Running { main } => {
                main.stable_at.map(|at| (Timer::Stable(id.clone(), main.run), at))
            }
            Self::Reloading { main, until } => Some((Timer::Reload(id.clone(), main.run), *until)),
            Self::Stopping { run, until, .. } => Some((Timer::Stop(id.clone(), *run), *until)),
            Self::Backoff { until } => Some((Timer::Backoff(id.clone()), *until)),
            Self::Inactive
            | Self::Waiting { .. }
            | Self::Spawning { .. }
            | Self::Completed
            | Self::Failed => None,
        }
    }

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

    pub(in crate::domain) fn main_mut(&mut self) -> Option<&mut Main> {
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

impl Main {
    pub(super) fn new(at: UnixMicros, run: RunId, body: &InstanceStarted) -> Self {
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

impl LastRun {
    /// Returns what an event says of the end of a run, when it tells of one.
    pub(super) fn of(at: UnixMicros, run: Option<RunId>, event: &Event) -> Option<Self> {
        let run = run?;
        match event {
            Event::InstanceStartFailed(body) => {
                let why = format!("{}: {}", body.step, body.why);
                let why = why.chars().take(NOT_STARTED_CHARS_MAX).collect();
                let result = RunResult::Resources;
                Some(Self { run, result, at, process: None, not_started: Some(why) })
            }
            Event::InstanceExited(body) => {
                let process = LastProcess {
                    memory_peak_bytes: Some(body.usage.memory_peak_bytes).filter(|peak| *peak > 0),
                    pid: body.pid,
                    exit: body.exit,
                    oom_killed: body.oom_killed,
                    ran_ms: body.ran_ms,
                };
                Some(Self {
                    run,
                    result: body.result,
                    at,
                    process: Some(process),
                    not_started: None,
                })
            }
            _ => None,
        }
    }
}
