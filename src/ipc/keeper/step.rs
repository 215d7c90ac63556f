//! The steps from the wish to the first instruction of a process, each of which can fail.

use std::fmt;

use serde::{Deserialize, Serialize};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_found_by_its_number() {
        for (at, step) in Step::ALL.iter().enumerate() {
            assert_eq!(*step as usize, at);
        }
    }
}
