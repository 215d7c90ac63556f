//! What goes wrong before the keeper is asked, and what only goes less well.

use std::io;
use std::path::Path;

use crate::config::params::ParamError;
use crate::domain::code::Code;
use crate::domain::id::ActionName;
use crate::domain::rejection::known_words;

/// Why a start could not be prepared; becomes `instance.start_failed`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {why}")]
pub struct LaunchFault {
    /// What was being done: `exec`, `working_dir`, `user`, `environment`, `credential`, `runtime`,
    /// `log`, `action`, `reload`, `stop`.
    pub step: &'static str,
    /// The kernel's error number, 0 when the fault is the specification's.
    pub errno: i32,
    /// In words, without the values of variables and secrets.
    pub why: String,
}

impl LaunchFault {
    pub(super) fn ours(step: &'static str, why: impl Into<String>) -> Self {
        Self { step, errno: 0, why: why.into() }
    }

    pub(super) fn io(step: &'static str, what: &str, path: &Path, error: &io::Error) -> Self {
        let why = format!("failed to {what} `{}`: {error}", path.display());
        Self { step, errno: error.raw_os_error().unwrap_or(0), why }
    }

    /// Returns the code under which it is explained.
    pub fn code(&self) -> Code {
        match self.step {
            "user" => Code::NO_SUCH_USER,
            _ => Code::SPAWN_FAILED,
        }
    }
}

/// Something that the specification promises and this machine does not give; the run goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degradation {
    /// The key that is not kept in full.
    pub key: &'static str,
    /// In words.
    pub why: String,
}

/// Why an action is refused before anything is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionRefusal {
    /// The service does not declare it.
    #[error("no action is called `{action}`{}", known_words(.known))]
    NoSuchAction {
        /// What was asked for.
        action: ActionName,
        /// What there is.
        known: Vec<ActionName>,
    },
    /// A parameter does not fit.
    #[error(transparent)]
    Parameter(#[from] ParamError),
}

impl ActionRefusal {
    /// Returns its code.
    pub fn code(&self) -> Code {
        match self {
            Self::NoSuchAction { .. } => Code::NO_SUCH_ACTION,
            Self::Parameter(error) => error.code(),
        }
    }
}
