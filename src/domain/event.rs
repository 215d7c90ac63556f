//! Events: facts in the past tense, each with everything that folding it needs.
//!
//! An event type is `noun.past_tense`, is never renamed, and says by its `critical` bit whether a version that does
//! not know it may pass over it. Bodies are additive for ever: a field is added with a default, never removed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::controller::{
    ControllerLed, ControllerSteppedDown, LogForked, NodeSeen, NodeUnreachable, PlacementHeld,
    PlacementOrdered,
};
use super::health::{InstanceHealthy, InstanceUnhealthy};
use super::id::{
    ActionName, BootId, Digest, EpochId, EventId, Generation, InstanceId, IntentId, Kid, Principal,
    RunId, Seq, ServiceId,
};
use super::intent::{Action, ActorKind};
use super::overrides::{ConfigChanged, ConfigExpired};
use super::release::{
    OrderAccepted, ReleaseApplied, ReleaseFailed, ReleaseHealthy, ReleaseId, ReleaseRefused,
    ReleaseRemoved, ReleaseReturned, ReleaseStaged,
};
use super::time::UnixMicros;

/// What an event says beside its body: who, where, why. Times and numbers are given by the shell.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Context {
    /// The instance or, without an index, the service that it is about.
    pub service: Option<ServiceId>,
    /// The slot of the service.
    pub index: Option<u16>,
    /// The start of the slot.
    pub run: Option<RunId>,
    /// Which event or intent led to it.
    pub cause: Option<Cause>,
    /// On whose authority.
    pub by: Option<Actor>,
}

impl Context {
    /// About one run of one instance.
    pub fn run(instance: &InstanceId, run: RunId) -> Self {
        Self { run: Some(run), ..Self::instance(instance) }
    }

    /// About one instance.
    pub fn instance(instance: &InstanceId) -> Self {
        Self {
            service: Some(instance.service.clone()),
            index: Some(instance.index),
            ..Self::default()
        }
    }

    /// About one service.
    pub fn service(service: &ServiceId) -> Self {
        Self { service: Some(service.clone()), ..Self::default() }
    }

    /// Adds what led to it and on whose authority.
    #[must_use]
    pub fn because(self, cause: Option<Cause>, by: Option<Actor>) -> Self {
        Self { cause, by, ..self }
    }

    /// Adds what led to it and on whose authority, known together.
    #[must_use]
    pub fn with(self, because: Because) -> Self {
        self.because(because.cause, because.by)
    }

    /// Returns what led to it and on whose authority.
    pub fn authority(&self) -> Because {
        Because { cause: self.cause.clone(), by: self.by.clone() }
    }

    /// Returns the instance when the event is about one.
    pub fn instance_id(&self) -> Option<InstanceId> {
        Some(InstanceId { service: self.service.clone()?, index: self.index? })
    }
}

/// What led to an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// An event of this or another log.
    Event(EventId),
    /// An event of the same log and epoch.
    Seq(Seq),
    /// A signed intent.
    Intent(IntentId),
}

/// What led to something, and on whose authority, as far as somebody's act did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Because {
    /// Which event or intent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Whose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
}

impl Because {
    /// Says whether nobody's act led to it.
    pub fn is_nobody(&self) -> bool {
        *self == Self::default()
    }
}

/// On whose authority something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Actor {
    /// Person, job, local root, policy of the service, or smgr itself.
    pub kind: ActorKind,
    /// The principal's name in the trust document.
    pub name: Principal,
    /// The key that signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Kid>,
    /// What the signer said of itself, inside the signature: `sudo by bob`, a CI run's address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl Actor {
    /// Returns the address of the CI run that its note names: `run https://… commit 77ab0c1`.
    pub fn run_url(&self) -> Option<&str> {
        self.noted("run").filter(|url| url.starts_with("https://") || url.starts_with("http://"))
    }

    /// Returns the commit that its note names.
    pub fn commit(&self) -> Option<&str> {
        self.noted("commit").filter(|commit| commit.bytes().all(|it| it.is_ascii_hexdigit()))
    }

    fn noted(&self, name: &str) -> Option<&str> {
        let mut words = self.note.split_whitespace();
        words.find(|word| *word == name).and_then(|_| words.next())
    }
}

macro_rules! events {
    (
        $(#[$of:meta])* pub enum $name:ident $(, $family:ident($family_of:ty) of $prefix:literal)?;
        $( $(#[$doc:meta])* $kind:literal $critical:ident $variant:ident($body:ty), )*
    ) => {
        $(#[$of])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name {
            $( $(#[$doc])* $variant($body), )*
            $(
                #[doc = "A fact of a family that has types of its own; see its list of them."]
                $family(Box<$family_of>),
            )?
        }

        impl $name {
            /// Every type that is listed here, with its critical bit.
            pub const KINDS: &[(&str, bool)] = &[$( ($kind, $crate::domain::event::is_critical!($critical)), )*];

            /// Returns the type, `noun.past_tense`.
            pub fn kind(&self) -> &'static str {
                match self {
                    $( Self::$variant(_) => $kind, )*
                    $( Self::$family(fact) => fact.kind(), )?
                }
            }

            /// Says whether a version that does not know the type must refuse to fold past it.
            pub fn critical(&self) -> bool {
                match self {
                    $( Self::$variant(_) => $crate::domain::event::is_critical!($critical), )*
                    $( Self::$family(fact) => fact.critical(), )?
                }
            }

            /// Writes the body alone.
            pub fn serialize_body<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $( Self::$variant(body) => ::serde::Serialize::serialize(body, serializer), )*
                    $( Self::$family(fact) => fact.serialize_body(serializer), )?
                }
            }

            /// Reads the body of a known type; `None` when this version does not know the type.
            pub fn deserialize_body<'de, D: ::serde::Deserializer<'de>>(
                kind: &[u8],
                deserializer: D,
            ) -> Result<Option<Self>, D::Error> {
                match kind {
                    $( kind if kind == $kind.as_bytes() => <$body as ::serde::Deserialize>::deserialize(deserializer).map(Self::$variant).map(Some), )*
                    $( kind if kind.starts_with($prefix) => {
                        let fact = <$family_of>::deserialize_body(kind, deserializer)?;
                        Ok(fact.map(Box::new).map(Self::$family))
                    } )?
                    _ => Ok(None),
                }
            }
        }

        #[cfg(test)]
        impl $name {
            /// Returns each type with the JSON Schema of its body.
            pub(crate) fn schemas() -> Vec<(&'static str, schemars::Schema)> {
                vec![$( ($kind, schemars::schema_for!($body)), )*]
            }
        }
    };
}

macro_rules! is_critical {
    (critical) => {
        true
    };
    (optional) => {
        false
    };
}

pub(crate) use {events, is_critical};

events! {
    /// Every fact of a node that this version can write and fold.
    pub enum Event, Rollout(super::rollout::RolloutFact) of b"rollout.";

    /// A log, or a new epoch of it, began.
    "log.opened" critical LogOpened(LogOpened),
    /// A part of the whole folded state, at the head of a segment.
    "log.baseline" critical Baseline(Baseline),
    /// Whole sealed segments were dropped by retention.
    "log.retired" optional LogRetired(LogRetired),
    /// The log could not be written for a while.
    "log.unavailable" optional LogUnavailable(LogUnavailable),
    /// The log can be written again.
    "log.recovered" optional LogRecovered(LogRecovered),
    /// The agent began to work.
    "agent.started" optional AgentStarted(PartStarted),
    /// The agent is on its way down; nothing is started any more.
    "agent.stopping" critical AgentStopping(AgentStopping),
    /// The agent ended in good order.
    "agent.stopped" optional AgentStopped(PartStopped),
    /// A keeper began to work.
    "keeper.started" optional KeeperStarted(PartStarted),
    /// A newer trust document was taken in.
    "trust.changed" critical TrustChanged(TrustChanged),
    /// A service was added, or its spec was replaced.
    "service.added" critical ServiceAdded(ServiceAdded),
    /// A service is no longer supervised.
    "service.removed" critical ServiceRemoved(ServiceRemoved),
    /// What is wanted of a service changed.
    "service.desired_changed" critical DesiredChanged(DesiredChanged),
    /// An instance wants to run and waits for something.
    "instance.waiting" critical InstanceWaiting(InstanceWaiting),
    /// A process was asked of the keeper; from here on the run's number is used up.
    "instance.starting" critical InstanceStarting(InstanceStarting),
    /// A process was started for an instance.
    "instance.started" critical InstanceStarted(InstanceStarted),
    /// No process could be started.
    "instance.start_failed" critical InstanceStartFailed(InstanceStartFailed),
    /// The instance said that it is ready.
    "instance.ready" critical InstanceReady(InstanceReady),
    /// The main process ended.
    "instance.exited" critical InstanceExited(InstanceExited),
    /// A stop began or escalated.
    "instance.stopping" critical InstanceStopping(InstanceStopping),
    /// A stop ended: no process of the run is left.
    "instance.stopped" critical InstanceStopped(InstanceStopped),
    /// A reload was asked for.
    "instance.reloading" critical InstanceReloading(InstanceReloading),
    /// A reload ended.
    "instance.reloaded" critical InstanceReloaded(InstanceReloaded),
    /// A signal that somebody asked for reached the main process, or could not.
    "instance.signalled" critical InstanceSignalled(InstanceSignalled),
    /// A run that outlived a part of the manager is supervised again.
    "instance.adopted" optional InstanceAdopted(InstanceAdopted),
    /// A wish was verified and taken; nothing ran before this was durable.
    "intent.accepted" critical IntentAccepted(IntentAccepted),
    /// A wish was verified and refused.
    "intent.refused" optional IntentRefused(IntentRefused),
    /// A wish came to its one outcome.
    "intent.executed" critical IntentExecuted(IntentExecuted),
    /// A declared action began to run.
    "action.started" critical ActionStarted(ActionStarted),
    /// A declared action ended.
    "action.ended" critical ActionEnded(ActionEnded),
    /// An alert began to fire.
    "alert.fired" optional AlertFired(AlertFired),
    /// An alert ended.
    "alert.resolved" optional AlertResolved(AlertResolved),
    /// Log lines of a service were dropped.
    "lines.dropped" optional LinesDropped(LinesDropped),
    /// What happened while the log could not be written, folded into one.
    "service.summarized" optional Summarized(Summarized),
    /// A health check passes that did not.
    "instance.healthy" optional InstanceHealthy(InstanceHealthy),
    /// A health check fails that did not.
    "instance.unhealthy" optional InstanceUnhealthy(InstanceUnhealthy),
    /// The run beside the one that counted took its place.
    "instance.handed_over" critical InstanceHandedOver(InstanceHandedOver),
    /// A controller's step of a rollout was verified and taken.
    "order.accepted" critical OrderAccepted(OrderAccepted),
    /// The files of a release are here, verified.
    "release.staged" optional ReleaseStaged(ReleaseStaged),
    /// A service is to run from another release.
    "release.applied" critical ReleaseApplied(ReleaseApplied),
    /// A service runs from its release and was healthy for long enough.
    "release.healthy" critical ReleaseHealthy(ReleaseHealthy),
    /// A release could not be taken up.
    "release.failed" critical ReleaseFailed(ReleaseFailed),
    /// A service runs again from what it ran from before.
    "release.returned" critical ReleaseReturned(ReleaseReturned),
    /// A service was taken away as somebody wished, and nothing of it runs.
    "release.removed" optional ReleaseRemoved(ReleaseRemoved),
    /// A verified order was refused.
    "release.refused" optional ReleaseRefused(ReleaseRefused),
    /// Keys of a service are set by a wish, or not any more.
    "config.changed" critical ConfigChanged(ConfigChanged),
    /// The time is over for which keys of a service were set.
    "config.expired" critical ConfigExpired(ConfigExpired),
    /// A controller began to work.
    "controller.started" optional ControllerStarted(PartStarted),
    /// A controller began to decide.
    "controller.led" critical ControllerLed(ControllerLed),
    /// A controller decides no more.
    "controller.stepped_down" optional ControllerSteppedDown(ControllerSteppedDown),
    /// A controller heard nothing of a node for too long.
    "node.unreachable" optional NodeUnreachable(NodeUnreachable),
    /// A controller heard a node again.
    "node.seen" optional NodeSeen(NodeSeen),
    /// A log does not extend what a controller has of it.
    "log.forked" optional LogForked(LogForked),
    /// A node gets a service or loses it by a wish that stands.
    "placement.ordered" optional PlacementOrdered(PlacementOrdered),
    /// Nothing more moves, though a service is not where a wish wants it.
    "placement.held" optional PlacementHeld(PlacementHeld),
}

/// Why an epoch began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EpochReason {
    /// The first start of this log.
    FirstStart,
    /// A witness knew more of this log than the log did.
    WitnessAhead,
    /// The file, a root or the replay did not hold.
    Integrity,
}

/// The end of the epoch before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Predecessor {
    /// Its id.
    pub epoch: EpochId,
    /// How many events of it were folded.
    pub size: u64,
    /// The Merkle root over them.
    pub root: Digest,
}

/// Body of `log.opened`, always the first event of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogOpened {
    /// Why the epoch began.
    pub reason: EpochReason,
    /// What it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<Predecessor>,
    /// The version that wrote it.
    pub version: String,
}

/// Body of `log.baseline`: one part of the folded state, so that replay can start here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Baseline {
    /// Place of this part, from 0. Part 0 replaces whatever was folded before.
    pub part: u32,
    /// How many parts there are.
    pub parts: u32,
    /// The version of the folding rules.
    pub fold: u32,
    /// SHA-256 over the whole folded state as it stands after the last part.
    pub state_hash: Digest,
    /// A MessagePack map: the part of the state.
    #[serde(with = "serde_bytes")]
    #[cfg_attr(test, schemars(with = "String", extend("contentEncoding" = "base64")))]
    pub state: Vec<u8>,
}

/// Body of `log.retired`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogRetired {
    /// The epoch of the dropped events.
    pub epoch: EpochId,
    /// The first dropped event.
    pub first: Seq,
    /// The last dropped event.
    pub last: Seq,
    /// The root over the epoch up to `last`.
    pub root: Digest,
}

/// Body of `log.unavailable`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogUnavailable {
    /// `full`, `stalled` or `failed`.
    pub kind: String,
    /// The system's words.
    pub why: String,
}

/// Leaves out what counts nothing, so that records of before keep their bytes.
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Body of `log.recovered`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogRecovered {
    /// How long nothing could be written, in milliseconds.
    pub unavailable_ms: u64,
    /// Events that were written late.
    pub late: u64,
    /// Events that were folded into summaries.
    pub summarized: u64,
    /// Events of no service, for which there was no room: nothing tells more of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
}

/// Body of `agent.started` and `keeper.started`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PartStarted {
    /// The part's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its user id.
    pub uid: u32,
    /// The boot it runs in.
    pub boot: BootId,
    /// How its predecessor ended, when it did not end in good order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Exit>,
    /// How long the part was away, in milliseconds.
    #[serde(default)]
    pub away_ms: u64,
    /// Drawn anew at each start of the part: two starts never share it.
    #[serde(default)]
    pub incarnation: u64,
}

/// Body of `agent.stopping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AgentStopping {
    /// Whether services go on without it.
    pub leave_running: bool,
}

/// Body of `agent.stopped`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PartStopped {
    /// Whether services go on without it.
    pub services_left_running: bool,
}

/// Body of `trust.changed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TrustChanged {
    /// The document's version.
    pub version: u64,
    /// SHA-256 of the signed bytes.
    pub digest: Digest,
}

/// What is wanted of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// Up.
    Running,
    /// Down; survives restart and reboot.
    #[default]
    Stopped,
    /// A oneshot that is to run to its end.
    Completed,
}

/// Body of `service.added`. The text of the spec is detached: it may hold values of the environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServiceAdded {
    /// SHA-256 of the canonical effective spec.
    pub digest: Digest,
    /// Where it was read: `services.d/web.toml`.
    pub origin: String,
    /// How many slots it has.
    pub instances: u16,
    /// What is wanted of it when nobody has said otherwise.
    pub desired: Desired,
    /// The spec before, when a process that was started from it need not be started anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps: Option<Digest>,
    /// The keys whose effective value is another than in the spec before, the first 64 of them; none where there was none
    /// before, or nobody compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
}

/// Body of `service.removed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServiceRemoved {
    /// The digest it had last.
    pub digest: Digest,
}

/// Body of `service.desired_changed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DesiredChanged {
    /// What is wanted from here on.
    pub desired: Desired,
    /// The number of this wish; an older one is refused.
    pub generation: Generation,
}

/// The ten states of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StateName {
    /// Not wanted, no process.
    #[default]
    Inactive,
    /// Wanted, blocked on something.
    Waiting,
    /// A process is there and not ready yet.
    Starting,
    /// Alive and started.
    Running,
    /// Alive, taking in a new configuration.
    Reloading,
    /// On the way down; ends when the tree is empty.
    Stopping,
    /// Ended; the next start is scheduled.
    Backoff,
    /// A oneshot ended with a success code.
    Completed,
    /// Gave up.
    Failed,
    /// Not observable; never success.
    Unknown,
}

/// How a run ended, in systemd's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RunResult {
    /// With one of the success codes, or by the signal that stopped it.
    Success,
    /// With another code.
    ExitCode,
    /// By a signal.
    Signal,
    /// By a signal, with a core.
    CoreDump,
    /// Killed because memory ran out.
    OomKill,
    /// Not ready, or not gone, in time.
    Timeout,
    /// Stopped since it did not answer a check as it should.
    Watchdog,
    /// A process could not be made or executed.
    Resources,
    /// At its restart limit.
    StartLimitHit,
    /// Something it requires is missing.
    Dependency,
    /// Nobody saw the end.
    Unknown,
}

/// The end of a process as the kernel told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It called exit.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// The signal's number.
        signal: i32,
        /// Whether a core was written.
        core_dumped: bool,
    },
    /// Nobody could see the code. Never success.
    Unknown,
}

/// What a run used, from the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Usage {
    /// Time in user mode, milliseconds.
    pub cpu_user_ms: u64,
    /// Time in the kernel, milliseconds.
    pub cpu_system_ms: u64,
    /// Peak resident memory, bytes.
    pub memory_peak_bytes: u64,
}

/// A text that lies beside the log under its own retention: the event holds a salted hash and a length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Detached {
    /// SHA-256(salt || text); the salt lies with the text.
    pub hash: Digest,
    /// The length of the text in bytes.
    pub bytes: u64,
}

/// Body of `instance.waiting`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceWaiting {
    /// The state before.
    pub from: StateName,
    /// The services that it waits for.
    pub on: Vec<ServiceId>,
    /// Those of them that nobody wants up: without an act of somebody the wait does not end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<ServiceId>,
}

/// Body of `instance.starting`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceStarting {
    /// The state before.
    pub from: StateName,
    /// Whether somebody asked for it, so that delay and restart count begin anew.
    pub fresh: bool,
    /// With a run that goes on serving beside it until this one is ready: the spec that it is to be started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Digest>,
}

/// Body of `instance.handed_over`: the run that the event names counts from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceHandedOver {
    /// The run that it relieves.
    pub from: RunId,
    /// Whether it is ready; otherwise the other one could serve no longer.
    pub is_ready: bool,
    /// From the beginning of the handover, in milliseconds.
    pub took_ms: u64,
}

/// Body of `instance.started`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceStarted {
    /// The state before.
    pub from: StateName,
    /// `starting`, or `running` where readiness is the start itself.
    pub to: StateName,
    /// The main process.
    pub pid: u32,
    /// Its pidfs inode: with pid and boot id its identity.
    pub pidfd_inode: u64,
    /// The digest of the spec that it was started from.
    pub spec: Digest,
    /// Restarts by policy since the last operator act or stable run, this one included.
    pub restarts: u32,
    /// When it has failed to be ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_by: Option<UnixMicros>,
    /// When it counts as stable again; present only while its restart alert fires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_at: Option<UnixMicros>,
    /// The starts so far of each service whose restarts it follows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub after: BTreeMap<ServiceId, u64>,
}

/// Body of `instance.start_failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceStartFailed {
    /// The state before.
    pub from: StateName,
    /// `backoff` or `failed`.
    pub to: StateName,
    /// What was being done: `chdir`, `setgroups`, `exec`, `credential`, `environment`.
    pub step: String,
    /// The kernel's error number, 0 when the fault is ours or the spec's.
    pub errno: i32,
    /// In words.
    pub why: String,
    /// Restarts by policy so far.
    pub restarts: u32,
    /// When the next start is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<UnixMicros>,
    /// The delay before jitter, in milliseconds: what the next one is computed from.
    #[serde(default)]
    pub base_ms: u64,
    /// When the window began in which restarts are counted against the limit.
    #[serde(default)]
    pub window_since: UnixMicros,
    /// Restarts by policy in that window.
    #[serde(default)]
    pub window_restarts: u32,
}

/// Body of `instance.ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceReady {
    /// How it said so: `notify`, `fd`, `log`, `health`; `successor`: its successor was begun, so somebody had heard it.
    pub how: String,
    /// From its start, in milliseconds.
    pub ready_ms: u64,
}

/// What follows the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Next {
    /// The next start is on its way.
    AtOnce,
    /// The next start is scheduled.
    At(UnixMicros),
    /// The rest of the tree is being stopped; `stopped` follows.
    Stopping,
    /// It is over, as wanted.
    Completed,
    /// It is over, given up.
    Failed,
    /// It is over, not wanted any more.
    Inactive,
}

/// Body of `instance.exited`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceExited {
    /// The state before.
    pub from: StateName,
    /// The process that ended.
    pub pid: u32,
    /// As the kernel told it.
    pub exit: Exit,
    /// What that means for this service.
    pub result: RunResult,
    /// Whether the memory limit ended it.
    #[serde(default)]
    pub oom_killed: bool,
    /// How long it ran, in milliseconds.
    pub ran_ms: u64,
    /// What it used.
    pub usage: Usage,
    /// What follows.
    pub next: Next,
    /// The drawn delay before the next start, in milliseconds.
    pub delay_ms: u64,
    /// Restarts by policy so far, the coming one included.
    pub restarts: u32,
    /// Its last log lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Detached>,
    /// With `next` = `stopping`: what follows once the rest of the tree is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Next>,
    /// With `next` = `stopping`: when killing the rest is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMicros>,
    /// The delay before jitter, in milliseconds: what the next one is computed from.
    #[serde(default)]
    pub base_ms: u64,
    /// When the window began in which restarts are counted against the limit.
    #[serde(default)]
    pub window_since: UnixMicros,
    /// Restarts by policy in that window.
    #[serde(default)]
    pub window_restarts: u32,
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopPhase {
    /// The command before the stop runs.
    PreStop,
    /// Not ready any more; traffic moves away.
    Drain,
    /// The stop signal was sent.
    Term,
    /// The whole tree is being killed.
    Kill,
}

/// Why a run is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// It is not wanted any more, or it is to be started anew.
    #[default]
    Wish,
    /// It was not ready in time; counts as a failure.
    ReadyTimeout,
    /// It runs from an older spec.
    Update,
    /// A service whose restarts it follows was started anew.
    Dependency,
    /// Its main process ended and left others behind.
    Leftover,
    /// A check failed whose failure restarts it; counts as a failure.
    Unhealthy,
    /// Another run of the instance took its place.
    HandedOver,
}

/// Body of `instance.stopping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceStopping {
    /// The state before.
    pub from: StateName,
    /// How far the stop is.
    pub phase: StopPhase,
    /// When it escalates.
    pub until: UnixMicros,
    /// Whether a start follows.
    pub then_start: bool,
    /// Why it is stopped.
    #[serde(default)]
    pub reason: StopReason,
}

/// Body of `instance.stopped`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceStopped {
    /// What follows.
    pub next: Next,
    /// From the beginning of the stop, in milliseconds.
    pub took_ms: u64,
    /// With `next` = `at_once`: whether somebody asked for it, so that delay and restart count begin anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
}

/// Body of `instance.reloading`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceReloading {
    /// When it has failed.
    pub until: UnixMicros,
}

/// Body of `instance.reloaded`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceReloaded {
    /// Whether the service confirmed it; otherwise why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// From the request, in milliseconds.
    pub took_ms: u64,
}

/// Body of `instance.signalled`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceSignalled {
    /// The wish that asked for it.
    pub intent: IntentId,
    /// The signal's number.
    pub signal: i32,
    /// Why it did not reach the process, when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// Body of `instance.adopted`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceAdopted {
    /// The main process.
    pub pid: u32,
    /// Which part was away: `agent`, `keeper`.
    pub away: String,
    /// For how long, in milliseconds.
    pub away_ms: u64,
}

/// Body of `intent.accepted`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct IntentAccepted {
    /// The wish.
    pub intent: IntentId,
    /// SHA-256 of the signed bytes: which wish exactly.
    pub digest: Digest,
    /// What is wanted.
    pub action: Action,
    /// From when on a repeat is answered `expired`.
    pub expires_at: UnixMicros,
    /// The instances it works on, decided at acceptance; see [`IntentAccepted::awaited`].
    pub instances: Vec<InstanceId>,
    /// When it has failed for want of an outcome.
    #[serde(default)]
    pub until: UnixMicros,
    /// Slots of the action's service that it works on, when they are too many to name each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<u16>,
    /// The release of a deploy, whose manifest `action` leaves out here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
}

/// So many instances a wish names one by one: a name is longer than a number, and an event has its bounds.
const NAMED_MAX: usize = 100;

impl IntentAccepted {
    /// Says on which instances the wish works.
    #[must_use]
    pub fn awaiting(mut self, instances: &[InstanceId]) -> Self {
        if instances.len() > NAMED_MAX {
            self.slots = instances.iter().map(|instance| instance.index).collect();
        } else {
            self.instances = instances.to_vec();
        }
        self
    }

    /// Returns the instances that the wish works on.
    pub fn awaited(&self) -> impl Iterator<Item = InstanceId> {
        let slots = self.action.service().into_iter().flat_map(|service| {
            self.slots.iter().map(|index| InstanceId { service: service.clone(), index: *index })
        });
        self.instances.iter().cloned().chain(slots)
    }
}

/// Body of `intent.refused`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct IntentRefused {
    /// The wish, when it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<IntentId>,
    /// The code of the first check that failed: `E0311`.
    pub code: String,
    /// In words.
    pub why: String,
    /// How many of the same kind this event stands for.
    pub count: u64,
}

/// The one outcome of a wish on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As asked.
    Done {
        /// Whether anything had to change.
        changed: bool,
    },
    /// It ran and did not succeed.
    Failed {
        /// The error code that says why: `E0610`.
        code: String,
        /// In words.
        why: String,
        /// The exit of the action, where one ran.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<Exit>,
    },
    /// It may have run; nobody can tell. Never success.
    Unknown {
        /// What was lost.
        why: String,
    },
}

/// Body of `intent.executed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct IntentExecuted {
    /// The wish.
    pub intent: IntentId,
    /// What came of it.
    pub outcome: Outcome,
}

/// Body of `action.started`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ActionStarted {
    /// The wish that asked for it; of an action after a deploy, the one for the release.
    pub intent: IntentId,
    /// Its name.
    pub action: ActionName,
    /// When it is killed.
    pub until: UnixMicros,
}

/// Body of `action.ended`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ActionEnded {
    /// The wish that asked for it; of an action after a deploy, the one for the release.
    pub intent: IntentId,
    /// Its name.
    pub action: ActionName,
    /// How it ended.
    pub exit: Exit,
    /// Whether it was killed at its deadline.
    pub timed_out: bool,
    /// How long it ran, in milliseconds.
    pub ran_ms: u64,
}

/// Body of `alert.fired`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AlertFired {
    /// `worker/restart-limit`.
    pub alert: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// In words.
    pub summary: String,
    /// What the spec adds to it, as it stands there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What the spec says of it, with names expanded.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The last line that was its cause, redacted, kept beside the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<Detached>,
}

/// Body of `alert.resolved`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AlertResolved {
    /// `worker/restart-limit`.
    pub alert: String,
}

/// Body of `lines.dropped`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LinesDropped {
    /// How many lines.
    pub lines: u64,
    /// How many bytes.
    pub bytes: u64,
    /// `rate_limit`, `disk_full`, `io_error`.
    pub why: String,
}

/// Body of `service.summarized`: transitions that did not fit while the log was unavailable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Summarized {
    /// Starts in that time.
    pub starts: u64,
    /// Exits in that time.
    pub exits: u64,
    /// When the first of them happened.
    pub first_at: UnixMicros,
    /// When the last of them happened.
    pub last_at: UnixMicros,
    /// The run that was live at the end, with its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<(RunId, u32)>,
}
