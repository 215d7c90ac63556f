//! What is to be done after a decision, and whether it must wait until the decision is on disk.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::event::Outcome;
use super::id::{ActionName, Digest, Generation, InstanceId, IntentId, RunId, ServiceId};
use super::release::{ReleaseId, Step};
use super::time::UnixMicros;

/// Something to be done, with the one thing that the shell has to know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Waits until the events of this decision are durable: whatever a wish asked for, an answer, an
    /// acknowledgement.
    Promise(Act),
    /// Does not wait: what is wanted is durable already, and a power cut that loses the record loses the
    /// processes too.
    Repair(Act),
}

impl Effect {
    /// Returns what is to be done.
    pub fn act(&self) -> &Act {
        match self {
            Self::Promise(act) | Self::Repair(act) => act,
        }
    }
}

/// What can be done. Doing it again is harmless: the keeper executes an operation once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Start a process; answered by `Started` or `StartFailed`. Operation: [`Operation::Spawn`].
    ///
    /// A spawn that still waits for the disk when agent and keeper meet anew is dropped by the shell: the meeting
    /// asks again for each one that is still due.
    Spawn {
        /// Which slot.
        instance: InstanceId,
        /// The number of the start.
        run: RunId,
        /// The spec in force when it was decided. Another one that is in force by the time it is started is taken
        /// instead, and `Started` says which it was.
        spec: Digest,
    },
    /// Send a signal to the main process of a run; answered by `SignalDelivered` when an intent asked.
    Signal {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it; a signal never reaches a later one.
        run: RunId,
        /// The signal's number.
        signal: i32,
        /// Under which name the keeper executes it once.
        operation: Operation,
    },
    /// Kill every process of a run; answered by `TreeGone`.
    KillTree {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
    },
    /// Run a command of the service beside a run; answered by `HookEnded`.
    RunHook {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
        /// Which command.
        hook: Hook,
        /// Under which name the keeper executes it once.
        operation: Operation,
    },
    /// Tell the keeper that the end of a run is durable, so that it may forget it.
    Acknowledge {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
    },
    /// Wake the node at a time; replaces a deadline of the same timer.
    SetTimer {
        /// What for.
        timer: Timer,
        /// The deadline as it was recorded; it comes back with the timer and tells a stale one.
        at: UnixMicros,
        /// How long from the time of the decision, in milliseconds. The shell counts it on the monotonic clock.
        after_ms: u64,
    },
    /// Forget a deadline.
    CancelTimer {
        /// What for.
        timer: Timer,
    },
    /// Say once more that a run is ready, as soon as its start was told: a sign may be faster than that.
    KeepReady {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
        /// How it said so.
        how: String,
    },
    /// Run a declared action; answered by `ActionStarted` and `ActionEnded`.
    StartAction {
        /// The wish that asked for it; also its operation.
        intent: IntentId,
        /// Whose action.
        service: ServiceId,
        /// Which one.
        action: ActionName,
        /// Its parameters, defaults not filled in.
        params: BTreeMap<String, String>,
    },
    /// Tell the keeper that the end of an action is durable, so that it may forget it.
    AcknowledgeAction {
        /// The wish that asked for it.
        intent: IntentId,
    },
    /// Kill every process of an action.
    KillAction {
        /// The wish that asked for it.
        intent: IntentId,
    },
    /// Read the spec files; answered by `SpecAdopted` and `SpecRemoved` for each service and then `Applied`.
    LoadSpecs {
        /// The wish that asked for it.
        intent: IntentId,
        /// These services, or all of them when empty.
        services: Vec<ServiceId>,
    },
    /// Have the files and the effective spec of a release, or of what is returned to; answered by `Staged`.
    Stage {
        /// Of which service.
        service: ServiceId,
        /// The number of the step; it comes back with the answer.
        generation: Generation,
        /// Whether the release is taken up or left.
        step: Step,
        /// The release; absent: the spec files alone.
        release: Option<ReleaseId>,
        /// The effective spec that ran, when it is returned to.
        spec: Option<Digest>,
    },
    /// Look at what a service runs; answered by `Proved`.
    ProveRelease {
        /// Which service.
        service: ServiceId,
        /// The number of the step; it comes back with the answer.
        generation: Generation,
        /// Since when it has been well, which comes back as well.
        since: UnixMicros,
        /// The main process of its first instance, when it has one.
        pid: Option<u32>,
    },
    /// Remove the files of releases that nothing can return to.
    PruneReleases {
        /// Of which service.
        service: ServiceId,
    },
    /// Answer whoever asked.
    Answer {
        /// The wish.
        intent: IntentId,
        /// What to say.
        reply: Reply,
    },
    /// End the agent: nothing is left to be done.
    StopAgent {
        /// Whether services go on without it.
        leave_running: bool,
    },
}

/// What can be said about a wish that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It was taken and is being carried out; the outcome follows.
    InProgress,
    /// It came to this, at the first or at any later asking.
    Outcome(Outcome),
}

/// A command of the service that the state machine itself asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// `stop.pre`.
    PreStop,
    /// `reload.by = "exec"`.
    Reload,
}

/// What a deadline is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A run has to be ready.
    Ready(InstanceId, RunId),
    /// A phase of a stop is over.
    Stop(InstanceId, RunId),
    /// The next start is due.
    Backoff(InstanceId),
    /// A reload has to be done.
    Reload(InstanceId, RunId),
    /// A run counts as stable, so that an alert ends.
    Stable(InstanceId, RunId),
    /// A wish has to come to its outcome.
    Intent(IntentId),
    /// An action has to be over.
    Action(IntentId),
    /// A release was healthy for long enough, or has failed to be.
    Release(ServiceId),
    /// The time is over for which keys of a service were set.
    Override(ServiceId),
}

/// Names one thing that the keeper is asked to do, so that a repeat of the request is not a repeat of the deed.
///
/// It follows from what is asked, never from when: after any crash the same request has the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// The start of a run.
    Spawn(InstanceId, RunId),
    /// What the stop of a run asks for, by phase.
    Stop(InstanceId, RunId),
    /// What the stop of a run asks of those that its main process left behind.
    StopRest(InstanceId, RunId),
    /// The command before a stop.
    PreStop(InstanceId, RunId),
    /// What a wish asks of one instance.
    Wish(IntentId, InstanceId),
    /// The action that a wish asks for.
    Action(IntentId),
}

impl Operation {
    /// Returns the id that travels to the keeper: the first 16 bytes of SHA-256 over its parts.
    pub fn id(&self) -> [u8; 16] {
        let mut hash = Sha256::new_with_prefix(b"smgr-operation-v1\0");
        let mut instance = |kind: u8, instance: &InstanceId| {
            hash.update([kind]);
            // A name holds no zero byte, so the parts cannot run into one another.
            hash.update(instance.service.as_str().as_bytes());
            hash.update([0]);
            hash.update(instance.index.to_be_bytes());
        };
        match self {
            Self::Spawn(id, run) => {
                instance(1, id);
                hash.update(run.0.to_be_bytes());
            }
            Self::Stop(id, run) => {
                instance(2, id);
                hash.update(run.0.to_be_bytes());
            }
            Self::StopRest(id, run) => {
                instance(6, id);
                hash.update(run.0.to_be_bytes());
            }
            Self::PreStop(id, run) => {
                instance(3, id);
                hash.update(run.0.to_be_bytes());
            }
            Self::Wish(intent, id) => {
                instance(4, id);
                hash.update(intent.0);
            }
            Self::Action(intent) => {
                hash.update([5]);
                hash.update(intent.0);
            }
        }
        let digest = hash.finalize();
        std::array::from_fn(|i| digest[i])
    }
}
