//! An error as the command line tells it: what happened, where, why, what to do.

use std::error::Error;
use std::fmt;

use crate::domain::code::{Code, ExitCode};

/// What ended a command. Its text is `what`; `smgr explain` knows its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    /// Which kind; it also says how the command exits.
    pub code: Code,
    /// What happened, in lower case and without a full stop.
    pub what: String,
    /// `file:line:column`, a node, an event.
    pub place: Option<String>,
    /// What led to it, nearest first.
    pub because: Vec<String>,
    /// What a person can do.
    pub hint: Option<String>,
    /// The command to type next; without one it is `smgr explain CODE`.
    pub next: Option<String>,
    /// A screen and a document that say all this better, such as those of mistakes in files.
    pub instead: Option<Box<Instead>>,
}

/// What is printed instead of an error's own lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instead {
    /// For people.
    pub screen: String,
    /// For programs.
    pub document: serde_json::Value,
}

impl CliError {
    /// Returns an error that says only what happened.
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            place: None,
            because: Vec::new(),
            hint: None,
            next: None,
            instead: None,
        }
    }

    /// Says that something is known and comes in a later version.
    pub fn not_yet(what: &str) -> Self {
        Self::new(Code::NOT_YET, format!("{what} is known, but not in this version"))
            .next("smgr help")
    }

    /// Says what happened and, as reasons, what an error and its sources say.
    pub fn caused(code: Code, what: impl Into<String>, error: &dyn Error) -> Self {
        Self::new(code, what).because(error)
    }

    /// Returns an error with the text of `error` and of all that led to it.
    pub fn from_error(code: Code, error: &dyn Error) -> Self {
        let mut told = Self::new(code, error.to_string());
        if let Some(source) = error.source() {
            told = told.because(source);
        }
        told
    }

    /// Says where.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// Says why: the text of an error and of all that led to it.
    #[must_use]
    pub fn because(mut self, error: &dyn Error) -> Self {
        let mut source = Some(error);
        while let Some(error) = source {
            self.because.push(error.to_string());
            source = error.source();
        }
        self
    }

    /// Says what to do; a second hint stands behind the first.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.hint = Some(match self.hint.take() {
            Some(first) => format!("{first}; {hint}"),
            None => hint,
        });
        self
    }

    /// Says what to type.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Returns how the command exits.
    pub fn exit(&self) -> ExitCode {
        self.code.exit()
    }

    /// Returns the command to type next.
    pub fn next_command(&self) -> String {
        self.next.clone().unwrap_or_else(|| format!("smgr explain {}", self.code))
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for CliError {}
