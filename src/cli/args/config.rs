//! The words of `smgr config`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::Waiting;
use crate::cli::selector::Selector;
use crate::domain::selector::Selector as NodeSelector;

/// What to do with the configuration.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show every effective value of a service, as the files of its node say
    Show(ConfigShow),
    /// Check spec files and change nothing, as `smgr check`
    Check {
        /// Files or folders [default: what `up` would load]
        paths: Vec<PathBuf>,
    },
    /// Change keys: of this machine in its override file, of a node that is named, for a part of the fleet, or for a time
    Set(ConfigSet),
    /// Set keys no more that were set by wishes: for a part of the fleet, for one node, or for a time
    Unset(ConfigUnset),
}

/// What is set no more.
#[derive(Clone, Debug, Args)]
pub struct ConfigUnset {
    /// SERVICE, or SERVICE@NODE
    pub service: Selector,
    /// `limits.memory`: keys that were set
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<String>,
    /// What was set for these nodes of the fleet [default: what was set for one node, else what was set there for a time]
    #[arg(long, value_name = "NODES")]
    pub select: Option<NodeSelector>,
    /// What was set there for a time, and not what has no end
    #[arg(long)]
    pub temporary: bool,
    #[command(flatten)]
    pub waiting: Waiting,
}

/// What to change.
#[derive(Clone, Debug, Args)]
pub struct ConfigSet {
    /// SERVICE, or SERVICE@NODE
    pub service: Selector,
    /// `limits.memory=1GiB`: a key of the spec, and a value as TOML or else as a text
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = super::pair)]
    pub settings: Vec<(String, String)>,
    /// On these nodes of the fleet, now and when they join or come back: `env=prod,role=web`, `name=n1|n2`, `*`
    #[arg(long, value_name = "NODES")]
    pub select: Option<NodeSelector>,
    /// For so long, above everything else: `2h`, at most 7 days
    #[arg(long = "for", value_name = "DURATION", value_parser = super::duration)]
    pub life: Option<Duration>,
    #[command(flatten)]
    pub waiting: Waiting,
}

/// Which configuration.
#[derive(Clone, Debug, Args)]
pub struct ConfigShow {
    /// SERVICE, or SERVICE@NODE
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
