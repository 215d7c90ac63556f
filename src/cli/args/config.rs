//! The words of `smgr config`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::selector::Selector;

/// What to do with the configuration.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show every effective value of a service, as the files say
    Show(ConfigShow),
    /// Check spec files and change nothing, as `smgr check`
    Check {
        /// Files or folders [default: what `up` would load]
        paths: Vec<PathBuf>,
    },
    /// Override a key for a part of the fleet, or for a time
    #[command(hide = true, disable_help_flag = true)]
    Set {
        /// What a later version takes.
        #[arg(num_args(0..), allow_hyphen_values = true, trailing_var_arg = true)]
        rest: Vec<OsString>,
    },
}

/// Which configuration.
#[derive(Clone, Debug, Args)]
pub struct ConfigShow {
    /// SERVICE
    pub service: Selector,
    /// Only these keys, and those in these blocks
    pub keys: Vec<String>,
    /// Where each value was set: file:line, or built-in, with the number of its layer
    #[arg(long)]
    pub origin: bool,
    /// What each value hides in lower layers
    #[arg(long)]
    pub hidden: bool,
    /// As it was then
    #[arg(long, hide = true, value_name = "TIME|RELEASE")]
    pub at: Option<String>,
}
