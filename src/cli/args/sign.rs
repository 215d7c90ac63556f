//! The words of `smgr sign`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Deploy, duration, pair, signal};
use crate::cli::selector::Selector;
use crate::domain::id::ActionName;
use crate::domain::signal::Signal;

/// What to sign, and in which form to print it.
#[derive(Clone, Debug, Args)]
pub struct Sign {
    /// As a line of base64; without it the bytes as they are, for a file or a pipe
    #[arg(long)]
    pub base64: bool,
    /// How long it may be accepted, at most 15m [default: 2m]; a release may be for ever
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub life: Option<Duration>,
    #[command(subcommand)]
    pub wish: SignWish,
}

/// The wish. The words are those of the command that would send it.
#[derive(Clone, Debug, Subcommand)]
pub enum SignWish {
    /// Bring a service up
    Start {
        /// SERVICE or SERVICE@NODE
        service: Selector,
    },
    /// Bring a service down
    Stop {
        /// SERVICE or SERVICE@NODE
        service: Selector,
    },
    /// Stop, then start, every instance
    Restart {
        /// SERVICE or SERVICE@NODE
        service: Selector,
    },
    /// Have a service take in its configuration
    Reload {
        /// SERVICE or SERVICE@NODE
        service: Selector,
    },
    /// Send a signal to the main process of every instance
    Signal {
        /// Which signal: TERM, HUP, USR1
        #[arg(short, long, value_parser = signal)]
        signal: Signal,
        /// SERVICE or SERVICE@NODE
        service: Selector,
    },
    /// Run an action that a service declares
    Action {
        #[command(subcommand)]
        command: SignAction,
    },
    /// Let a service run from a release; its number is asked of the fleet
    Deploy(Deploy),
}

/// What to do with actions.
#[derive(Clone, Debug, Subcommand)]
pub enum SignAction {
    /// Run one
    Run {
        /// SERVICE or SERVICE@NODE
        service: Selector,
        /// Which
        action: ActionName,
        /// Its parameters, NAME=VALUE
        #[arg(value_parser = pair)]
        params: Vec<(String, String)>,
        /// As for `action run`
        #[arg(long)]
        yes: bool,
    },
}
