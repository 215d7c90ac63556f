//! When somebody is told of what a service writes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Millis;
use crate::domain::template::Template;

/// What is looked for in the lines of an instance, and when that is an alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Alert {
    /// Whether the lines are the trouble, or their absence.
    pub on: AlertOn,
    /// A regular expression: which lines.
    pub r#match: String,
    /// Lines that match this one as well do not count.
    #[serde(default)]
    pub exclude: Option<String>,
    /// Of which stream.
    #[serde(default)]
    pub stream: AlertStream,
    /// How long its cause has to last until it fires. For absence: how long no line may be missing.
    pub r#for: Millis,
    /// How long it stays after its cause.
    pub keep_firing_for: Millis,
    /// How bad it is.
    pub severity: Severity,
    /// Told with it, as they stand.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Told with it; `summary` is what screens show.
    #[serde(default)]
    pub annotations: BTreeMap<String, Template>,
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AlertOn {
    /// Lines that match: at least so many within the window.
    Log {
        /// How many; at least 1.
        threshold: u32,
        /// Within which time; at least a second.
        window: Millis,
    },
    /// That no line matches, while the service is wanted.
    Absence,
}

/// Of which stream lines are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AlertStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Both.
    #[default]
    Any,
}

/// How bad an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Worth a look tomorrow.
    Warning,
    /// Somebody should come.
    Critical,
}

impl Severity {
    /// Returns the word that specs, events and screens use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}
