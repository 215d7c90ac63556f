//! What a service should be: its effective specification, after all layers were merged and checked.
//!
//! Plain data. Where a value came from, how it is written and what is refused is `config`'s; this
//! file only holds the shape and the documented defaults. Reserved keys have no field here.

mod alert;
mod change;
mod health;
mod log;
mod socket;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::{ActionName, AlertName, CheckName, ServiceId};
use super::signal::Signal;
use super::template::Template;

pub use alert::{Alert, AlertOn, AlertStream, Severity};
pub use change::Change;
pub use health::{Health, OnFailure, Probe, Target};
pub use log::{Compress, Forward, Log, LogFormat, OnFull};
pub use socket::{Address, InvalidAddress, SOCKETS_MAX, Socket};

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        #[serde(transparent)]
        pub struct $name(pub $inner);
    };
}

quantity!(
    /// A length of time in milliseconds.
    Millis(u64)
);
quantity!(
    /// A size in bytes.
    Bytes(u64)
);
quantity!(
    /// A share in whole percent.
    Percent(u8)
);
quantity!(
    /// A factor in thousandths: `2000` doubles. An integer, so that a spec compares and hashes exactly.
    Permille(u32)
);

impl Millis {
    /// Builds a length of time from whole seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1000)
    }

    /// Returns the same length as the standard type.
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

/// Everything that is wanted of one service on one node.
///
/// `PartialEq` means "nothing would change"; two specs that are equal have the same digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Spec {
    /// What it is, in a line. Shown, never interpreted.
    #[serde(default)]
    pub description: String,
    /// Who answers for it.
    #[serde(default)]
    pub owner: String,
    /// Its runbook, a URL.
    #[serde(default)]
    pub docs: String,
    /// Picks the group layer; unit of policy and of grants.
    #[serde(default)]
    pub group: Option<String>,
    /// How its end is to be read.
    #[serde(default)]
    pub kind: Kind,
    /// Whether it is started at boot and on apply.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Its argv, never empty and never a shell.
    pub exec: Vec<Template>,
    /// Where it runs; absolute once expanded.
    pub working_dir: Template,
    /// As whom it runs; absent means as the keeper, which `config` refuses when that is root.
    #[serde(default)]
    pub user: Option<Account>,
    /// Further groups, names or numbers.
    #[serde(default)]
    pub supplementary_groups: Vec<String>,
    /// The file mode mask, at most 0o777.
    #[serde(default = "Spec::default_umask")]
    pub umask: u16,
    /// How many run on each node, 1 to 1000.
    #[serde(default = "one")]
    pub instances: u16,
    /// Files of `KEY=VALUE` lines, absolute, read at each start; later files win over earlier ones.
    #[serde(default)]
    pub env_files: Vec<Template>,
    /// The rest of its environment; wins over `env_files`.
    #[serde(default)]
    pub env: BTreeMap<String, Template>,
    /// Secrets that it finds as files in `$CREDENTIALS_DIRECTORY`, by file name.
    #[serde(default)]
    pub credential: BTreeMap<String, Credential>,
    /// What has to be there before it starts.
    #[serde(default)]
    pub depends_on: BTreeMap<ServiceId, DependsOn>,
    /// Sockets that are open before it starts, by name. Left out where there is none, so that older specs keep their
    /// digests.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub socket: BTreeMap<String, Socket>,
    /// When a started run counts as ready.
    #[serde(default)]
    pub ready: Ready,
    /// How its runs are probed, by name. Left out where there is none, so that older specs keep their digests.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub health: BTreeMap<CheckName, Health>,
    /// What follows an exit.
    #[serde(default)]
    pub restart: Restart,
    /// How it is stopped.
    #[serde(default)]
    pub stop: Stop,
    /// How it reads its configuration anew.
    #[serde(default)]
    pub reload: Reload,
    /// How one run follows another. Left out where it is the default, so that older specs keep their digests.
    #[serde(default, skip_serializing_if = "Update::is_restart")]
    pub update: Update,
    /// What the kernel is told about its share of the machine.
    #[serde(default)]
    pub limits: Limits,
    /// What becomes of its output.
    pub log: Log,
    /// What it can be asked to do, by name.
    #[serde(default)]
    pub action: BTreeMap<ActionName, Action>,
    /// The release that it comes from. Left out where there is none, so that older specs keep their digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Released>,
    /// When a release is good, and what is kept of it. Left out where it is as ever, for the same reason.
    #[serde(default, skip_serializing_if = "Verdict::is_default")]
    pub verdict: Verdict,
    /// When somebody is told, by name. Left out where there is none, so that older specs keep their digests.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alert: BTreeMap<AlertName, Alert>,
}

const fn yes() -> bool {
    true
}

const fn one() -> u16 {
    1
}

impl Spec {
    const fn default_umask() -> u16 {
        0o022
    }

    /// Says whether its process speaks on a notify socket.
    pub fn notifies(&self) -> bool {
        self.ready.by == ReadyBy::Notify || matches!(self.reload.by, ReloadBy::Notify(_))
    }

    /// Returns the documented defaults around an argv, a folder to run in and a folder for its log.
    pub fn new(exec: Vec<Template>, working_dir: Template, log_dir: Template) -> Self {
        Self {
            description: String::new(),
            owner: String::new(),
            docs: String::new(),
            group: None,
            kind: Kind::Daemon,
            enabled: true,
            exec,
            working_dir,
            user: None,
            supplementary_groups: Vec::new(),
            umask: Self::default_umask(),
            instances: 1,
            env_files: Vec::new(),
            env: BTreeMap::new(),
            credential: BTreeMap::new(),
            depends_on: BTreeMap::new(),
            socket: BTreeMap::new(),
            ready: Ready::default(),
            health: BTreeMap::new(),
            restart: Restart::default(),
            stop: Stop::default(),
            reload: Reload::default(),
            update: Update::default(),
            limits: Limits::default(),
            log: Log::new(log_dir),
            action: BTreeMap::new(),
            alert: BTreeMap::new(),
            release: None,
            verdict: Verdict::default(),
        }
    }
}

/// Which release a spec comes from, and where its files lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Released {
    /// The release, in hex.
    pub id: String,
    /// SHA-256 of its artifact in hex, which names the folder that `${release}` stands for; absent: it has no files.
    pub artifact: Option<String>,
}

/// When a release is good on this node, and what is kept of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Verdict {
    /// How long all instances have to be ready, and every check has to pass.
    pub min_healthy_time: Millis,
    /// How long that may take from the switch on; then the release has failed.
    pub healthy_deadline: Millis,
    /// How many good releases stay on the node, the present one included.
    pub keep: u16,
    /// Whether a person may go back to an earlier one.
    pub rollback: bool,
    /// Whether its checks do not count: the processes have to be ready and stay up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_process: bool,
}

impl Verdict {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Verdict {
    fn default() -> Self {
        Self {
            min_healthy_time: Millis::from_secs(10),
            healthy_deadline: Millis::from_secs(300),
            keep: 5,
            rollback: true,
            by_process: false,
        }
    }
}

/// How the end of a service is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It should run for ever.
    #[default]
    Daemon,
    /// It should end; success makes it `completed`.
    Oneshot,
}

/// `name`, `name:group`, or the numbers: parsed only. Looking it up belongs to the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Account {
    /// A name, or a number.
    pub user: String,
    /// A name, or a number; absent means the user's own group.
    #[serde(default)]
    pub group: Option<String>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user)?;
        self.group.iter().try_for_each(|group| write!(f, ":{group}"))
    }
}

/// A secret and where it is read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Credential {
    /// Where its bytes are.
    pub source: CredentialSource,
    /// A variable that gets a copy as well; the value is never logged.
    #[serde(default)]
    pub env: Option<String>,
}

/// Where the bytes of a credential are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CredentialSource {
    /// In a file, absolute, read as it is.
    File(Template),
}

/// What a service waits for before it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DependsOn {
    /// How far the other service must have come.
    pub condition: DependencyCondition,
    /// Whether a start fails without it; false is order only.
    pub required: bool,
    /// Whether this service is restarted when the other one is.
    pub restart: bool,
}

impl Default for DependsOn {
    fn default() -> Self {
        Self { condition: DependencyCondition::Ready, required: true, restart: false }
    }
}

/// How far a service must have come for those that wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DependencyCondition {
    /// Its process runs.
    Started,
    /// It said that it is ready.
    Ready,
}

/// When a started run counts as ready, and how long that may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Ready {
    /// The sign.
    pub by: ReadyBy,
    /// How long a run may take until then; it is stopped afterwards and counts as failed.
    pub timeout: Millis,
}

impl Default for Ready {
    fn default() -> Self {
        Self { by: ReadyBy::Started, timeout: Millis::from_secs(30) }
    }
}

/// The sign by which a run is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReadyBy {
    /// Its program was executed.
    Started,
    /// `READY=1` on `$NOTIFY_SOCKET`.
    Notify,
    /// A line end, written to this descriptor (3 or higher).
    Fd(u16),
    /// A line of output that this regular expression matches.
    Log(String),
    /// Each check passes, but for those that only report.
    Health,
}

/// What follows an exit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Restart {
    /// Whether there is a next run.
    pub policy: RestartPolicy,
    /// The first delay; the first restart after a stable run is immediate.
    pub delay: Millis,
    /// What each further delay is multiplied by, at least 1000.
    pub factor: Permille,
    /// The longest delay.
    pub max_delay: Millis,
    /// By how much a delay is varied, up and down.
    pub jitter: Percent,
    /// A run of this length (and of twice the last delay) resets delay and count.
    pub stable_after: Millis,
    /// How many restarts within `limit_window` are unsuspicious.
    pub limit: u32,
    /// The window of `limit`.
    pub limit_window: Millis,
    /// What happens beyond `limit`.
    pub on_limit: OnLimit,
    /// Exit codes that are success.
    pub success_codes: Vec<u8>,
    /// Exit codes after which trying again is useless.
    pub fatal_codes: Vec<u8>,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::Always,
            delay: Millis(100),
            factor: Permille(2000),
            max_delay: Millis::from_secs(60),
            jitter: Percent(25),
            stable_after: Millis::from_secs(10),
            limit: 10,
            limit_window: Millis::from_secs(600),
            on_limit: OnLimit::Alert,
            success_codes: vec![0],
            fatal_codes: Vec::new(),
        }
    }
}

/// After which exits there is a next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// After every exit but one with a fatal code.
    Always,
    /// After every exit that is neither a success nor fatal.
    OnFailure,
    /// After none.
    Never,
}

/// What happens to a service at its restart limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnLimit {
    /// It is tried on, at `max_delay`, and somebody is told.
    Alert,
    /// It is left failed.
    Fail,
}

/// How a run is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stop {
    /// An argv that runs first; its failure does not prevent the stop.
    #[serde(default)]
    pub pre: Option<Vec<Template>>,
    /// How long `pre` may take.
    pub pre_timeout: Millis,
    /// How long `Ready` is false before the signal, so that balancers move away.
    pub drain: Millis,
    /// What asks it to end.
    pub signal: Signal,
    /// How long it may take from the signal on; then its whole tree is killed.
    pub timeout: Millis,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            pre: None,
            pre_timeout: Millis::from_secs(5),
            drain: Millis(0),
            signal: Signal::TERM,
            timeout: Millis::from_secs(30),
        }
    }
}

/// How one run of an instance follows another: at a restart, and when its spec changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Update {
    /// The way.
    pub method: UpdateMethod,
}

impl Update {
    fn is_restart(&self) -> bool {
        self.method == UpdateMethod::Restart
    }
}

/// How one run of an instance follows another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum UpdateMethod {
    /// The old one ends, then the new one begins.
    #[default]
    Restart,
    /// The new one begins beside the old one, which ends when the new one is ready and its checks pass.
    Handover,
}

/// How a run reads its configuration anew, and how long that may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reload {
    /// The way.
    pub by: ReloadBy,
    /// How long it may take before the reload counts as failed; the run goes on.
    pub timeout: Millis,
}

impl Default for Reload {
    fn default() -> Self {
        Self { by: ReloadBy::None, timeout: Millis::from_secs(30) }
    }
}

/// The way in which a run reads its configuration anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReloadBy {
    /// It cannot; a reload is refused.
    None,
    /// A signal to the main process, done when it is delivered.
    Signal(Signal),
    /// A signal to the main process, done at `READY=1` after `RELOADING=1`.
    Notify(Signal),
    /// An argv, done when it exits with 0.
    Exec(Vec<Template>),
}

/// What the kernel is told about a service's share of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Limits {
    /// From -1000 to 1000; always written, never inherited.
    pub oom_score_adjust: i16,
}

/// What a service can be asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Action {
    /// Its argv; `${param}` stands for a parameter.
    pub exec: Vec<Template>,
    /// What may be passed, by name. Values reach argv only.
    #[serde(default)]
    pub params: BTreeMap<String, Param>,
    /// How long it may take; then its whole tree is killed and it failed.
    pub timeout: Millis,
    /// As whom it runs; absent means as the service.
    #[serde(default)]
    pub user: Option<Account>,
    /// Whether it may be repeated when its outcome is unknown.
    pub idempotent: bool,
    /// Whether a person is asked first.
    pub confirm: bool,
    /// Whether it runs on each node where a release became healthy, which is good when it succeeded. Left out where it
    /// does not, so that older specs keep their digests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub after_deploy: bool,
}

impl Action {
    /// Returns the documented defaults around an argv.
    pub fn new(exec: Vec<Template>) -> Self {
        Self {
            exec,
            params: BTreeMap::new(),
            timeout: Millis::from_secs(30),
            user: None,
            idempotent: false,
            confirm: false,
            after_deploy: false,
        }
    }
}

/// What a parameter of an action may be. Without a default it has to be given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Param {
    /// Any text of at most 4096 bytes.
    String {
        /// A regular expression that the whole text has to match.
        pattern: Option<String>,
        /// What stands in when it is not given.
        default: Option<String>,
    },
    /// A whole number.
    Integer {
        /// The smallest.
        min: Option<i64>,
        /// The largest.
        max: Option<i64>,
        /// What stands in when it is not given.
        default: Option<i64>,
    },
    /// `true` or `false`.
    Bool {
        /// What stands in when it is not given.
        default: Option<bool>,
    },
}
