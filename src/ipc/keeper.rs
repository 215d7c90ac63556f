//! What agent and keeper say to each other. The agent connects to the keeper's socket.
//!
//! An operation is executed once: a repeat of its number by the same life of the agent is answered
//! with the first result. A fact is sent, in order and again to every agent that connects, until it
//! is acknowledged; only then is the exit that it tells reaped.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::hello::Hello;
use super::listen::Listening;

/// The longest name of a run or a slot, in bytes: it names a cgroup folder and a variable.
pub const NAME_BYTES_MAX: usize = 128;

/// The largest memo of a run, in bytes; it comes back with each of its facts.
pub const MEMO_BYTES_MAX: usize = 8 * 1024;

/// The runs in one answer to `List`, so that it fits a message with every memo.
pub const LIST_PAGE: usize = 64;

/// Says why a text names neither run nor slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a run or slot is named by 1 to {NAME_BYTES_MAX} of a-z, 0-9, `-` and `.`, `.` not first")]
pub struct InvalidName;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let fits = |b: u8| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.'
                };
                let long = (1..=NAME_BYTES_MAX).contains(&text.len());
                match long && !text.starts_with('.') && text.bytes().all(fits) {
                    true => Ok(Self(text.to_owned())),
                    false => Err(InvalidName),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// Names a run, for ever: `web.0.17`. Chosen by the agent, never used twice.
    RunName
);
name!(
    /// Names what runs share one after the other, their pipes and sockets: `web.0`.
    SlotName
);

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);
    };
}

counter!(
    /// Numbers the operations of one life of an agent, ascending.
    OperationNumber
);
counter!(
    /// Numbers the facts of one life of a keeper, contiguous from 1.
    FactNumber
);

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

/// A step between the wish and the first instruction that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("failed to {step}: error {errno}")]
pub struct SpawnFailure {
    /// Which step.
    pub step: Step,
    /// The error's number.
    pub errno: i32,
}

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $text:literal,)*) => {
        /// The steps from the wish to the first instruction, in their order.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u32)]
        pub enum Step {
            $($(#[$doc])* $step,)*
        }

        impl Step {
            /// All steps, in their order.
            pub const ALL: &[Step] = &[$(Step::$step,)*];
        }

        impl fmt::Display for Step {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Step::$step => $text,)*
                })
            }
        }
    };
}

steps! {
    /// Pipes, sockets and files.
    Prepare = "prepare the descriptors of the process",
    /// The sockets of the service.
    Sockets = "open the sockets of the service",
    /// The run's own cgroup.
    Cgroup = "make the cgroup of the run",
    /// The process itself.
    Clone = "make a process",
    /// Signal dispositions and mask.
    Signals = "reset signals",
    /// A session of its own.
    Session = "begin a session",
    /// Standard input, output and error, the readiness pipe.
    Descriptors = "set up descriptors",
    /// `oom_score_adj`.
    OomScore = "set oom_score_adj",
    /// Resource limits.
    Limits = "set resource limits",
    /// Supplementary groups.
    Groups = "set the supplementary groups",
    /// The group.
    Gid = "set the group",
    /// The user.
    Uid = "set the user",
    /// Capabilities.
    Capabilities = "drop capabilities",
    /// The working directory, entered as the user.
    WorkingDir = "enter the working directory",
    /// `no_new_privs`.
    NoNewPrivileges = "set no_new_privs",
    /// The program.
    Exec = "execute the program",
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
    fn a_name_that_would_leave_its_folder_is_refused() {
        for text in ["", ".", "..", "../a", "a/b", "A", "a b", "a\0"] {
            assert_eq!(text.parse::<RunName>(), Err(InvalidName), "{text:?}");
        }
        assert!(decode::<RunName>(&encode(&"a/b").unwrap()).is_err());
        assert!("web.0.17".parse::<RunName>().is_ok());
    }

    #[test]
    fn every_step_is_found_by_its_number() {
        for (at, step) in Step::ALL.iter().enumerate() {
            assert_eq!(*step as usize, at);
        }
    }

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
