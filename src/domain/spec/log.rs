//! What becomes of a service's output.

use serde::{Deserialize, Serialize};

use super::{Bytes, Millis};
use crate::domain::template::Template;

/// What becomes of a service's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Log {
    /// The folder of one instance; the live file in it is `current`.
    pub dir: Template,
    /// How a line is written.
    pub format: LogFormat,
    /// At which size the live file is rotated.
    pub max_size: Bytes,
    /// How many files are kept, the live one included; at least 1.
    pub max_files: u32,
    /// How old a file may be.
    pub max_age: Millis,
    /// What happens to files that were rotated.
    pub compress: Compress,
    /// The longest line; longer ones are split and marked.
    pub max_line: Bytes,
    /// How many lines a second are written, at least 1.
    pub rate_limit: u32,
    /// What happens to lines beyond `rate_limit`, or that a full disk refuses.
    pub on_full: OnFull,
    /// How many lines are kept with an exit event, at most 100.
    pub tail_lines: u8,
    /// Regular expressions whose matches are replaced by `[redacted]` before anything is written.
    pub redact: Vec<String>,
    /// Where lines go besides the file.
    pub forward: Forward,
}

impl Log {
    /// Returns the documented defaults for a log in `dir`.
    pub fn new(dir: Template) -> Self {
        Self {
            dir,
            format: LogFormat::Cri,
            max_size: Bytes(10 << 20),
            max_files: 10,
            max_age: Millis::from_secs(14 * 24 * 60 * 60),
            compress: Compress::Gzip,
            max_line: Bytes(16 << 10),
            rate_limit: 20_000,
            on_full: OnFull::Drop,
            tail_lines: 20,
            redact: Vec::new(),
            forward: Forward::None,
        }
    }
}

/// How a line of output is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// `<RFC 3339 with nanoseconds> <stdout|stderr> <F|P> <line>`, as kubelet does.
    Cri,
    /// As the service wrote it.
    Raw,
}

/// What happens to log files that were rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Compress {
    /// `.gz`.
    Gzip,
    /// `.zst`.
    Zstd,
    /// Nothing.
    None,
}

/// What happens to lines that cannot be written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnFull {
    /// They are dropped and counted.
    Drop,
    /// The service waits.
    Block,
}

/// Where lines go besides the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Forward {
    /// Nowhere.
    None,
    /// To the journal of systemd.
    Journald,
    /// To the standard output of `smgr agent`.
    Stdout,
}
