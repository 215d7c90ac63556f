//! Ctrl-C and SIGTERM: a command that only waits detaches, and what it asked for goes on.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::CliError;
use crate::domain::code::{Code, ExitCode};

/// The two signals that ask a command to end.
#[derive(Debug)]
pub struct Interrupts {
    int: Signal,
    term: Signal,
}

/// What ended a command before its work did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// Ctrl-C.
    Int,
    /// SIGTERM.
    Term,
}

impl Interrupted {
    /// Returns how the command exits.
    pub fn exit(self) -> ExitCode {
        match self {
            Self::Int => ExitCode::Interrupted,
            Self::Term => ExitCode::Terminated,
        }
    }
}

impl Interrupts {
    /// Takes the signals over.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch() -> Result<Self, CliError> {
        let open = |kind| {
            signal(kind)
                .map_err(|error| CliError::caused(Code::IO, "failed to watch for signals", &error))
        };
        Ok(Self { int: open(SignalKind::interrupt())?, term: open(SignalKind::terminate())? })
    }

    /// Waits for either.
    pub async fn next(&mut self) -> Interrupted {
        tokio::select! {
            _ = self.int.recv() => Interrupted::Int,
            _ = self.term.recv() => Interrupted::Term,
        }
    }

    /// Runs something until it is done or a signal comes.
    ///
    /// # Errors
    /// The signal that came first.
    pub async fn guard<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::select! {
            done = work => Ok(done),
            interrupted = self.next() => Err(interrupted),
        }
    }
}
