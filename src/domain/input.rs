//! Everything that can wake a node, as one closed list.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::code::Code;
use super::effect::{Effect, Hook, Timer};
use super::event::{Actor, Context, Detached, Event, Exit, PartStarted, Usage};
use super::health::Verdict;
use super::id::{
    AlertName, CheckName, Digest, Generation, InstanceId, IntentId, NodeId, RunId, ServiceId,
};
use super::intent::Action;
use super::release::Step;
use super::spec::Spec;
use super::time::{Now, UnixMicros};

/// What a decision may look at beside the folded state.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// The moment of the decision.
    pub now: Now,
    /// The effective specs that the node has adopted. A service that is on its way out keeps its entry until
    /// it is gone from the node.
    pub specs: &'a BTreeMap<ServiceId, Arc<Spec>>,
    /// Fresh random bits, for jitter.
    pub entropy: u64,
    /// Whether `Reconcile` was decided since the agent and the keeper last met. Until then nothing is started
    /// or stopped: what runs is not known.
    pub reconciled: bool,
    /// The service through which the node is heard, when it is one of its own: the last to go down.
    pub bus: Option<&'a ServiceId>,
}

/// What has happened, to be appended in this order, and what is to be done about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The facts, each with what it is about.
    pub events: Vec<(Context, Event)>,
    /// What follows, in this order.
    pub effects: Vec<Effect>,
}

/// A verified intent: signature, audience, grant, freshness and parameters were checked by the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Its id, chosen by the signer.
    pub id: IntentId,
    /// SHA-256 of the signed bytes.
    pub digest: Digest,
    /// What is wanted.
    pub action: Action,
    /// When it was signed.
    pub issued_at: UnixMicros,
    /// From when on it is not taken any more.
    pub expires_at: UnixMicros,
    /// The number of the desired state, for a wish that carries one: an older one is refused.
    pub generation: Option<Generation>,
    /// Who signed.
    pub by: Actor,
    /// Whether it was signed by this machine's own key and came to its own socket, where nobody else can send again
    /// what was sent.
    pub is_own: bool,
    /// The controller's order in which it came, when it did.
    pub order: Option<OrderMark>,
}

/// What a verified order says beside the intent inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderMark {
    /// Which step of the intent.
    pub step: Step,
    /// The plan.
    pub plan: Digest,
    /// The term.
    pub term: u64,
    /// Which controller.
    pub controller: NodeId,
    /// When that verified the intent.
    pub verified_at: UnixMicros,
    /// The wave, from 1.
    pub wave: u16,
    /// Whether it is taken only where nothing of the service is, or was: no node has proved the release.
    pub is_unproved: bool,
}

/// Files and spec of a release that are here, verified. `World::specs` holds the spec already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedRelease {
    /// How people call it.
    pub version: String,
    /// SHA-256 of the effective spec.
    pub digest: Digest,
    /// Where that was read, in words.
    pub origin: String,
    /// SHA-256 of the artifact.
    pub artifact: Option<Digest>,
    /// SHA-256 over its files as they lie here.
    pub tree: Option<Digest>,
    /// The size of its files, in bytes.
    pub bytes: u64,
}

/// The end of a run, as the keeper tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// As the kernel told it.
    pub exit: Exit,
    /// What it used.
    pub usage: Usage,
    /// Whether its memory limit ended it.
    pub oom_killed: bool,
    /// How long it ran, in milliseconds.
    pub ran_ms: u64,
    /// Whether no process of the run is left.
    pub tree_empty: bool,
    /// Its last log lines, kept beside the log.
    pub tail: Option<Detached>,
}

/// A run that the keeper knows: alive, or ended and not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptRun {
    /// Which slot.
    pub instance: InstanceId,
    /// Which start of it.
    pub run: RunId,
    /// Its main process.
    pub pid: u32,
    /// The pidfs inode.
    pub pidfd_inode: u64,
    /// The spec it was started from, as the memo of the spawn says.
    pub spec: Digest,
    /// How it ended, when it did.
    pub ended: Option<Ended>,
}

/// An action that the keeper knows: alive, or ended and not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAction {
    /// The wish that asked for it.
    pub intent: IntentId,
    /// How it ended and how long it ran in milliseconds, when it did.
    pub ended: Option<(Exit, u64)>,
}

/// What the keeper knows at the moment at which agent and keeper meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The keeper. It knows which operations an earlier one of the same boot carried out.
    pub keeper: PartStarted,
    /// Whether the agent is new too: then it does not know which of its requests were answered.
    pub agent_is_new: bool,
    /// How long nobody supervised, in milliseconds.
    pub away_ms: u64,
    /// All runs.
    pub runs: Vec<KeptRun>,
    /// All actions.
    pub actions: Vec<KeptAction>,
}

/// What is told with an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// In words, short: it is folded.
    pub summary: String,
    /// The annotations of the spec, with names expanded.
    pub annotations: BTreeMap<String, String>,
    /// The last line that was its cause, kept beside the log.
    pub line: Option<Detached>,
}

/// What wakes a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Somebody asks for something.
    Wish(Wish),
    /// The keeper made a process.
    Started {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
        /// The main process.
        pid: u32,
        /// The pidfs inode.
        pidfd_inode: u64,
        /// The spec that the spawn named.
        spec: Digest,
    },
    /// No process could be made.
    StartFailed {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
        /// What was being done.
        step: String,
        /// The kernel's error number, 0 when the fault is ours or the spec's.
        errno: i32,
        /// In words.
        why: String,
    },
    /// A run said that it is ready; in a reload by `notify`, that it is done.
    Ready {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
        /// How it said so.
        how: String,
    },
    /// The main process of a run ended.
    Exited {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
        /// The main process.
        pid: u32,
        /// How.
        ended: Ended,
    },
    /// No process of a run is left.
    TreeGone {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
    },
    /// A signal that a wish asked for was delivered, or not.
    SignalDelivered {
        /// The wish.
        intent: IntentId,
        /// Which slot.
        instance: InstanceId,
        /// Whether it reached the process.
        delivery: Delivery,
    },
    /// A command of the service ended.
    HookEnded {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
        /// Which command.
        hook: Hook,
        /// How.
        exit: Exit,
    },
    /// The cause of an alert has lasted as long as its spec says.
    AlertRaised {
        /// Which slot.
        instance: InstanceId,
        /// Which alert of its spec.
        alert: AlertName,
        /// What to tell.
        alarm: Alarm,
    },
    /// The cause of an alert has been gone as long as its spec says.
    AlertOver {
        /// Which slot.
        instance: InstanceId,
        /// Which alert of its spec.
        alert: AlertName,
    },
    /// A check of a run passes or fails.
    Checked {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
        /// Which check of its spec.
        check: CheckName,
        /// What was found.
        verdict: Verdict,
    },
    /// A deadline passed.
    Timer {
        /// What for.
        timer: Timer,
        /// The deadline as it was set.
        at: UnixMicros,
    },
    /// The keeper started an action.
    ActionStarted {
        /// The wish that asked for it.
        intent: IntentId,
    },
    /// An action ended, or could not be started.
    ActionEnded {
        /// The wish that asked for it.
        intent: IntentId,
        /// How.
        end: ActionEnd,
    },
    /// A service was read and is to be supervised by this spec, which `World::specs` already holds.
    SpecAdopted {
        /// Which service.
        service: ServiceId,
        /// SHA-256 of the canonical effective spec.
        digest: Digest,
        /// Where it was read.
        origin: String,
        /// The wish that asked for it, when one did.
        intent: Option<IntentId>,
        /// The spec before, when a process that was started from it need not be started anew.
        keeps: Option<Digest>,
        /// The keys whose effective value changes, for people.
        keys: Vec<String>,
    },
    /// A service is not to be supervised any more.
    SpecRemoved {
        /// Which service.
        service: ServiceId,
        /// The wish that asked for it, when one did.
        intent: Option<IntentId>,
    },
    /// The spec files were read, as a wish asked for.
    Applied {
        /// The wish.
        intent: IntentId,
        /// Why nothing was adopted: code and words.
        failed: Option<(String, String)>,
    },
    /// Files and spec of a release are here, or are not to be had.
    Staged {
        /// Of which service.
        service: ServiceId,
        /// The number of the step.
        generation: Generation,
        /// What is here; else the code and the words.
        staged: Result<StagedRelease, (Code, String)>,
    },
    /// What a service runs was looked at.
    Proved {
        /// Which service.
        service: ServiceId,
        /// The number of the step.
        generation: Generation,
        /// Since when it had been well, as [`crate::domain::effect::Act::ProveRelease`] named it.
        since: UnixMicros,
        /// SHA-256 of its program, if that could be read; or in words why that is not the one of the release.
        running: Result<Option<Digest>, String>,
    },
    /// Agent and keeper met: the first input of an agent, and one for each keeper that follows.
    Reconcile(Kept),
    /// The agent was asked to end by a signal.
    Shutdown {
        /// Whether services go on without it.
        leave_running: bool,
    },
}

/// What became of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It reached the process.
    Delivered,
    /// The process was gone.
    Gone,
    /// The kernel refused, with this error number.
    Refused(i32),
    /// The keeper died with the request: nobody can tell.
    Lost,
}

/// How an action ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionEnd {
    /// It ran.
    Exited {
        /// As the kernel told it.
        exit: Exit,
        /// How long it ran, in milliseconds.
        ran_ms: u64,
    },
    /// It could not be started.
    NotStarted {
        /// In words.
        why: String,
    },
    /// The keeper died with it and nobody saw the end.
    Lost,
}
