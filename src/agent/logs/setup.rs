//! What a slot's log is made of: the specification with its patterns compiled and its folder expanded.

use std::borrow::Cow;
use std::path::PathBuf;

use regex::bytes::Regex;

use crate::domain::spec::{Forward, Log};

/// What a match of a redaction becomes.
const REDACTED: &[u8] = b"[redacted]";

/// Says why a log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogSetupError {
    /// A pattern that is none.
    #[error("`{pattern}` is not a regular expression")]
    Pattern {
        /// As written.
        pattern: String,
        /// Why.
        source: regex::Error,
    },
    /// Lines cannot be sent there in this version.
    #[error("log.forward = {to:?} is not in this version")]
    Forward {
        /// Where to.
        to: Forward,
    },
}

/// A pattern that is looked for in every line.
#[derive(Debug, Clone)]
pub struct AlertRule {
    /// Comes back with each notice.
    pub name: String,
    /// What to look for.
    pub pattern: Regex,
    /// Lines that match this one as well do not count.
    pub exclude: Option<Regex>,
}

/// How the lines of one slot are kept.
#[derive(Debug, Clone)]
pub struct LogSetup {
    pub(super) dir: PathBuf,
    pub(super) spec: Log,
    pub(super) redact: Vec<Regex>,
    pub(super) alerts: Vec<AlertRule>,
}

impl LogSetup {
    /// Compiles a specification for the folder `dir`, its expanded [`Log::dir`].
    pub fn new(spec: &Log, dir: PathBuf) -> Result<Self, LogSetupError> {
        if spec.forward != Forward::None {
            return Err(LogSetupError::Forward { to: spec.forward });
        }
        let compile = |pattern: &String| {
            Regex::new(pattern)
                .map_err(|source| LogSetupError::Pattern { pattern: pattern.clone(), source })
        };
        let redact = spec.redact.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { dir, spec: spec.clone(), redact, alerts: Vec::new() })
    }

    /// Adds rules that are looked for in every line.
    #[must_use]
    pub fn with_alerts(mut self, alerts: Vec<AlertRule>) -> Self {
        self.alerts = alerts;
        self
    }

    /// Returns the line as it may leave the service's pipe.
    pub(super) fn redacted<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        let mut clean = Cow::Borrowed(line);
        for pattern in &self.redact {
            if let Cow::Owned(changed) = pattern.replace_all(&clean, REDACTED) {
                clean = Cow::Owned(changed);
            }
        }
        clean
    }

    /// Returns the longest line in bytes.
    pub(super) fn max_line(&self) -> usize {
        usize::try_from(self.spec.max_line.0).unwrap_or(usize::MAX).max(1)
    }
}
