//! What a slot's log is made of: the specification with its patterns compiled and its folder expanded.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use regex::bytes::Regex;

use super::rules::Rules;
use crate::domain::id::AlertName;
use crate::domain::spec::{Alert, Log};

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
}

/// How the lines of one slot are kept.
#[derive(Debug, Clone)]
pub struct LogSetup {
    pub(super) dir: PathBuf,
    pub(super) spec: Log,
    pub(super) redact: Vec<Regex>,
    pub(super) alerts: Rules,
}

impl LogSetup {
    /// Compiles a specification for the folder `dir`, its expanded [`Log::dir`], and the alerts that are looked for in
    /// every line.
    ///
    /// # Errors
    /// A pattern is none.
    pub fn new(
        spec: &Log,
        alerts: &BTreeMap<AlertName, Alert>,
        dir: PathBuf,
    ) -> Result<Self, LogSetupError> {
        let redact =
            spec.redact.iter().map(|pattern| compile(pattern)).collect::<Result<_, _>>()?;
        Ok(Self { dir, spec: spec.clone(), redact, alerts: Rules::new(alerts.iter())? })
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

pub(super) fn compile(pattern: &str) -> Result<Regex, LogSetupError> {
    Regex::new(pattern)
        .map_err(|source| LogSetupError::Pattern { pattern: pattern.to_owned(), source })
}
