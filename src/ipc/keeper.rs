//! What agent and keeper say to each other. The agent connects to the keeper's socket.
//!
//! An operation is executed once: a repeat of its number by the same life of the agent is answered
//! with the first result. A fact is sent, in order and again to every agent that connects, until it
//! is acknowledged; only then is the exit that it tells reaped.

mod name;
mod step;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::hello::Hello;
use super::listen::Listening;

pub use name::{FactNumber, InvalidName, NAME_BYTES_MAX, OperationNumber, RunName, SlotName};
pub use step::{SpawnFailure, Step};

/// The largest memo of a run, in bytes; it comes back with each of its facts.
pub const MEMO_BYTES_MAX: usize = 8 * 1024;

/// The runs in one answer to `List`, so that it fits a message with every memo.
pub const LIST_PAGE: usize = 64;

/// Agent to keeper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToKeeper {
    /// The first frame.
    Hello(Hello),
    /// A wish.
    Operate {
        /// Its number; the same number is the same operation.
        number: OperationNumber,
        /// What is wished.
        verb: Verb,
    },
}

/// All that a keeper can be asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Start a process. Answered by `Spawned` or `NotSpawned`; a fact follows either way.
    Spawn(Box<Spawn>),
    /// Send a signal.
    Signal {
        /// To which run.
        run: RunName,
        /// The signal's number.
        signal: i32,
        /// To which of its processes.
        to: Target,
        /// Names the deed across the lives of both parts: a repeat is answered with what was done, by this keeper or
        /// by an earlier one. `None` where another signal does no harm.
        #[serde(default)]
        operation: Option<[u8; 16]>,
    },
    /// Kill every process of a run. The fact `TreeGone` tells when it is done.
    KillTree {
        /// Which run.
        run: RunName,
    },
    /// Tell the runs that are known, in the order of their names.
    List {
        /// Begin behind this one.
        after: Option<RunName>,
    },
    /// Make the channels of a slot where they do not exist, and pass duplicates of them and of the
    /// pidfds of its runs.
    TakeDescriptors {
        /// Which slot.
        slot: SlotName,
    },
    /// Take back what an earlier keeper made; the descriptors come with the request, channels first.
    GiveDescriptors {
        /// Which slot.
        slot: SlotName,
        /// What the first descriptors are. Channels that the keeper holds already are closed.
        channels: Vec<Channel>,
        /// What the pidfds behind them are. Runs that the keeper does not know are adopted.
        runs: Vec<Claim>,
    },
    /// Close the channels of a slot; refused while a run uses them.
    CloseSlot {
        /// Which slot.
        slot: SlotName,
    },
    /// Close the sockets of a slot that no other slot shares: nobody is to be kept waiting there. The next spawn makes
    /// them anew.
    CloseSockets {
        /// Which slot.
        slot: SlotName,
    },
    /// The facts up to this one are durable.
    Acknowledge {
        /// The last of them.
        through: FactNumber,
    },
    /// End all parts of this node.
    Shutdown(ShutdownMode),
}

/// The processes of a run that a signal goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The process that was spawned.
    Main,
    /// Every process of the run.
    Tree,
}

/// How the parts end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMode {
    /// The services are stopped first, in order, by the agent.
    Drain,
    /// The services go on, to be adopted by the next keeper.
    Leave,
}

/// A process to start, complete: nothing is looked up and nothing is inherited.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spawn {
    /// The run's name.
    pub run: RunName,
    /// Whose channels it uses.
    pub slot: SlotName,
    /// The program and its arguments. A program without `/` is sought in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment; the keeper adds `SMGR_RUN` and, if asked, `NOTIFY_SOCKET`.
    pub env: Vec<(String, String)>,
    /// Where it starts, an absolute path.
    pub working_dir: String,
    /// As whom; `None` is the keeper's own user.
    pub account: Option<Account>,
    /// Its umask.
    pub umask: u32,
    /// Its resource limits; others are the keeper's own.
    pub limits: Vec<Limit>,
    /// Written always, since the parts' own is low and would be inherited. -1000 to 1000.
    pub oom_score_adjust: i32,
    /// Whether it may gain privileges by an exec.
    pub no_new_privileges: bool,
    /// Whether it gets the slot's notify socket.
    pub notify: bool,
    /// The number at which it gets the write end of a pipe to report readiness, 3 to 1023.
    pub ready_fd: Option<u32>,
    /// The sockets that it gets from [`SOCKETS_FROM`](super::listen::SOCKETS_FROM) on, in this order. Those that are not
    /// there are made; those that the slot had and that are not named are closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<Listening>,
    /// Whether it is no run of the slot but a hook, a check or an action beside its runs: it gets none of the sockets of the
    /// slot and leaves them as they are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_errand: bool,
    /// Comes back with every fact of the run, unread; at most [`MEMO_BYTES_MAX`].
    pub memo: ByteBuf,
}

/// Numbers of a user, looked up by the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The supplementary groups, and no others.
    pub groups: Vec<u32>,
}

/// One resource limit; `u64::MAX` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Of what.
    pub resource: Resource,
    /// What the process may raise up to `hard`.
    pub soft: u64,
    /// The end.
    pub hard: u64,
}

/// What a limit is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Open descriptors.
    Files,
    /// The size of a core file, in bytes.
    Core,
    /// Processes of the user.
    Processes,
    /// Locked memory, in bytes.
    LockedMemory,
    /// Address space, in bytes.
    AddressSpace,
}

/// What a slot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// The pipe that is standard output, opened for reading and writing.
    Stdout,
    /// The pipe that is standard error, opened for reading and writing.
    Stderr,
    /// The datagram socket behind `NOTIFY_SOCKET`; each datagram carries its sender's credentials.
    Notify,
    /// The reading end of the pipe of `ready_fd`; belongs to one run.
    Ready,
}

/// A run that the agent knows from an earlier keeper; its pidfd comes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Which run.
    pub run: RunName,
    /// Its main process.
    pub pid: u32,
    /// As in its `Spawn`.
    pub memo: ByteBuf,
}

/// Keeper to agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromKeeper {
    /// The first frame.
    Hello {
        /// Who speaks.
        hello: Hello,
        /// How it holds the processes of a run together.
        trees: Trees,
        /// The accounts of the parts.
        isolation: Isolation,
    },
    /// The result of an operation.
    Answer {
        /// Which.
        number: OperationNumber,
        /// The result.
        answer: Answer,
    },
    /// Something happened.
    Fact(Fact),
    /// End: stop the services first or leave them, then exit with 0.
    Shutdown(ShutdownMode),
}

/// How the processes of a run are held together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trees {
    /// Each run has a cgroup of its own, a folder of its name in this one.
    Cgroup {
        /// The folder of the runs.
        root: String,
    },
    /// By process group, by `SMGR_RUN` in the environment, and by adoption of orphans.
    ProcessGroup,
}

/// Whether the parts run under accounts of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Agent and uplink have accounts of their own.
    Accounts,
    /// All parts run as one user.
    None {
        /// Why, for people.
        why: String,
    },
}

/// The result of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done.
    Done,
    /// The process runs. With it come its pidfd and then `channels`.
    Spawned {
        /// Its number.
        pid: u32,
        /// The inode of its pidfd: with the boot id its identity for ever. 0 before Linux 6.9.
        inode: u64,
        /// Those of the slot that this agent does not have, and `Ready` if asked for.
        channels: Vec<Channel>,
    },
    /// The process could not be started.
    NotSpawned(SpawnFailure),
    /// A page of runs.
    Runs {
        /// In the order of their names.
        runs: Vec<RunState>,
        /// Whether there are runs behind the last of these.
        more: bool,
    },
    /// With it come `channels`, then the pidfds of `runs`.
    Descriptors {
        /// What the first descriptors are.
        channels: Vec<Channel>,
        /// Whose pidfds follow. Those that do not fit are left out.
        runs: Vec<RunName>,
    },
    /// It was not done.
    Refused(Refusal),
}

/// Why an operation was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// No such run, or it has ended and was acknowledged.
    #[error("no such run")]
    NoSuchRun,
    /// A run of this name exists; no second copy is started.
    #[error("a run of this name exists")]
    RunExists,
    /// A run uses the slot.
    #[error("a run uses the slot")]
    SlotInUse,
    /// The request contradicts itself.
    #[error("the request is invalid: {0}")]
    Invalid(String),
    /// There are as many runs or slots as there may be.
    #[error("the keeper holds as many runs as it may")]
    Full,
    /// The kernel refused.
    #[error("failed to {what}: error {errno}")]
    Kernel {
        /// What was tried.
        what: String,
        /// The error's number.
        errno: i32,
    },
    /// The number is older than the results that are kept.
    #[error("the operation is older than the results that are kept")]
    Forgotten,
    /// All parts are about to end.
    #[error("the keeper is shutting down")]
    ShuttingDown,
    /// A keeper died with the operation: it may have been done.
    #[error("a keeper died with the operation, which may have been done")]
    Lost,
}

/// A run as the keeper sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// Its name.
    pub run: RunName,
    /// Its slot.
    pub slot: SlotName,
    /// As in its `Spawn`.
    pub memo: ByteBuf,
    /// The main process.
    pub pid: u32,
    /// The inode of the main process's pidfd, or 0.
    pub inode: u64,
    /// Whether an earlier keeper started it.
    pub adopted: bool,
    /// Whether the main process lives.
    pub main_lives: bool,
    /// Whether any process of it lives.
    pub tree_lives: bool,
}

/// Something that happened to a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Its number.
    pub number: FactNumber,
    /// To which run.
    pub run: RunName,
    /// As in its `Spawn`.
    pub memo: ByteBuf,
    /// When the keeper saw it.
    pub at: Moment,
    /// What.
    pub what: What,
}

/// A point in time on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Microseconds since 1970, UTC.
    pub unix_us: u64,
    /// Nanoseconds since boot, without sleep (`CLOCK_MONOTONIC`).
    pub mono_ns: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The program runs.
    Spawned {
        /// The main process.
        pid: u32,
        /// As in [`Answer::Spawned`].
        inode: u64,
    },
    /// The program does not run, and nothing of the run is left.
    NotSpawned(SpawnFailure),
    /// The main process has ended.
    Exited {
        /// Its number.
        pid: u32,
        /// How it ended.
        exit: Exit,
        /// What it used, children that it waited for included. `None` for an adopted run.
        usage: Option<Usage>,
        /// Whether no other process of the run is left: `TreeGone` follows at once.
        #[serde(default)]
        tree_empty: bool,
        /// How long it ran, in milliseconds, whatever the wall clock did. `None` when nobody knows when it began.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ran_ms: Option<u64>,
    },
    /// No process of the run is left; follows `Exited`.
    TreeGone,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal {
        /// Its number.
        signal: i32,
        /// Whether a core was dumped.
        core: bool,
    },
    /// Nobody who could have seen it lived. Never success.
    Unknown,
}

/// What a process used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// In user mode, in microseconds.
    pub user_us: u64,
    /// In the kernel, in microseconds.
    pub system_us: u64,
    /// The largest resident set, in KiB.
    pub rss_kib_max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::frame::{decode, encode};

    #[test]
    fn a_verb_that_does_not_exist_is_refused() {
        let bytes = encode(&serde_json::json!({"operate": {"number": 1, "verb": {"exec": 1}}}));
        assert!(decode::<ToKeeper>(&bytes.unwrap()).is_err());
        let acknowledge = ToKeeper::Operate {
            number: OperationNumber(1),
            verb: Verb::Acknowledge { through: FactNumber(7) },
        };
        assert_eq!(decode::<ToKeeper>(&encode(&acknowledge).unwrap()).unwrap(), acknowledge);
    }
}
