//! The words of `smgr config`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::selector::Selector;
use crate::domain::selector::Selector as NodeSelector;

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
    /// Change keys of what this machine alone wants of a service, in its override file
    Set(ConfigSet),
}

/// What to change.
#[derive(Clone, Debug, Args)]
pub struct ConfigSet {
    /// SERVICE
    pub service: Selector,
    /// `limits.memory=1GiB`: a key of the spec, and a value as TOML or else as a text
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = super::pair)]
    pub settings: Vec<(String, String)>,
    /// On these nodes of the fleet
    #[arg(long, hide = true, value_name = "NODES")]
    pub select: Option<NodeSelector>,
    /// For so long
    #[arg(long = "for", hide = true, value_name = "DURATION", value_parser = super::duration)]
    pub life: Option<Duration>,
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
