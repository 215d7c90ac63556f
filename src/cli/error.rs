//! The one form in which a command says what went wrong, for people and for programs.

use std::fmt::Write as _;

use serde_json::json;

use crate::domain::code::{Code, ExitCode};

/// What went wrong, where, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    /// Its code, which decides the exit code.
    pub code: Code,
    /// What happened, without a full stop.
    pub what: String,
    /// Where: a file with line and column, a node, a folder.
    pub place: Option<String>,
    /// Why, from the outside in.
    pub because: Vec<String>,
    /// What may help.
    pub hints: Vec<String>,
    /// What to type next.
    pub next: Option<String>,
    /// A screen that says all this better, printed instead.
    pub screen: Option<String>,
    /// A document that says all this better, printed instead.
    pub document: Option<serde_json::Value>,
}

impl CliError {
    /// Says what happened.
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            place: None,
            because: Vec::new(),
            hints: Vec::new(),
            next: None,
            screen: None,
            document: None,
        }
    }

    /// Says that something is known and comes in a later version.
    pub fn not_yet(what: impl Into<String>) -> Self {
        let what = what.into();
        Self::new(Code::NOT_YET, format!("{what} is known, but not in this version"))
            .next("smgr help")
    }

    /// Says what happened and, as reasons, what an error and its sources say.
    pub fn caused(code: Code, what: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let chain = std::iter::successors(Some(error), |error| error.source());
        Self { because: chain.map(ToString::to_string).collect(), ..Self::new(code, what) }
    }

    /// Takes an error as what happened, and its sources as the reasons.
    pub fn from_error(code: Code, error: &dyn std::error::Error) -> Self {
        let mut made = Self::caused(code, error.to_string(), error);
        made.because.remove(0);
        made
    }

    /// Says where.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Says what to type next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Returns how the command exits.
    pub fn exit(&self) -> ExitCode {
        self.code.exit()
    }

    /// Returns what is printed for people.
    pub fn text(&self) -> String {
        if let Some(screen) = &self.screen {
            return screen.clone();
        }
        let mut lines = self.what.lines();
        let mut text = format!("error: {}  [{}]\n", lines.next().unwrap_or_default(), self.code);
        let parts = lines
            .map(|line| format!("  {}\n", line.trim_start()))
            .chain(self.place.iter().map(|place| format!("  at {place}\n")))
            .chain(self.because.iter().map(|why| format!("  because {why}\n")))
            .chain(self.hints.iter().map(|hint| format!("hint: {hint}\n")))
            .chain(self.next.iter().map(|next| format!("next: {next}\n")));
        parts.for_each(|part| text.push_str(&printable(&part)));
        text
    }

    /// Returns the line that is printed for programs.
    pub fn json(&self) -> serde_json::Value {
        if let Some(document) = &self.document {
            return document.clone();
        }
        let mut what = self.what.clone();
        for why in &self.because {
            write!(what, ": {why}").expect("a text takes every write");
        }
        json!({
            "schema": "smgr.error.v1",
            "code": self.code.to_string(),
            "exit_code": self.exit().number(),
            "what": what,
            "where": self.place,
            "hint": (!self.hints.is_empty()).then(|| self.hints.join("; ")),
            "next": self.next.clone().unwrap_or_else(|| format!("smgr explain {}", self.code)),
        })
    }
}

/// Replaces what would move a terminal's cursor or change its colours.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}]", self.what, self.code)
    }
}

impl std::error::Error for CliError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_why_and_what_next() {
        let source = std::io::Error::other("disk on fire");
        let error = CliError::caused(Code::IO, "failed to write the keys", &source)
            .at("/var/lib/smgr")
            .hint("is it mounted?")
            .next("smgr up");
        let text = error.text();
        for part in ["error: failed to write the keys  [E0902]", "/var/lib/smgr", "disk on fire"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(error.json()["exit_code"], 1);
    }

    #[test]
    fn a_hostile_reason_cannot_move_the_cursor() {
        let error = CliError::new(Code::IO, "no such service").hint("\u{1b}[2Jgone");
        assert!(!error.text().contains('\u{1b}'));
    }
}
