//! The one table of error codes and the one table of exit codes.
//!
//! The help, `smgr explain`, `docs/errors.md` and every JSON error are made from here. A code keeps
//! its meaning for ever; one that is no longer raised stays in the table.

mod table;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use table::TABLE;

/// How the program ends, the same for CLI, HTTP and wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// As asked.
    Done = 0,
    /// A defect of smgr.
    Internal = 1,
    /// The command line was not understood.
    Usage = 2,
    /// With a selector: something is not ready, or unknown.
    NotReady = 3,
    /// No such service, node or rollout, or an empty selection.
    NotFound = 4,
    /// Controller, bus or agent cannot be reached; nothing was started.
    Unreachable = 5,
    /// Refused: conflict, held, frozen, limit.
    Refused = 6,
    /// Not authorised.
    NotAuthorised = 7,
    /// Invalid spec, configuration or artifact.
    Invalid = 8,
    /// The history does not verify, or the log is unavailable.
    History = 9,
    /// Rolled back: on the old release.
    RolledBack = 10,
    /// Nodes are on different releases.
    Mixed = 11,
    /// The way back failed: a person is needed.
    RollbackFailed = 12,
    /// Aborted or superseded.
    Aborted = 13,
    /// Waits for a person: to approve, to promote, or to decide after a pause that nobody asked for.
    Waits = 14,
    /// An action ran and failed on at least one node.
    ActionFailed = 15,
    /// Some nodes did not answer; they are named.
    Unknown = 16,
    /// `plan`, `diff --exit-code`: there are changes.
    Changes = 20,
    /// Still running; nothing was cancelled.
    StillRunning = 124,
    /// Ctrl-C: detached, it goes on.
    Interrupted = 130,
    /// SIGTERM: detached, it goes on.
    Terminated = 143,
}

impl ExitCode {
    /// Every exit code, ascending.
    pub const ALL: &[Self] = &[
        Self::Done,
        Self::Internal,
        Self::Usage,
        Self::NotReady,
        Self::NotFound,
        Self::Unreachable,
        Self::Refused,
        Self::NotAuthorised,
        Self::Invalid,
        Self::History,
        Self::RolledBack,
        Self::Mixed,
        Self::RollbackFailed,
        Self::Aborted,
        Self::Waits,
        Self::ActionFailed,
        Self::Unknown,
        Self::Changes,
        Self::StillRunning,
        Self::Interrupted,
        Self::Terminated,
    ];

    /// Returns the number that the process exits with.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Returns what it means, in a line.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "as asked",
            Self::Internal => "internal error",
            Self::Usage => "usage",
            Self::NotReady => "status with a selector: something is not ready or unknown",
            Self::NotFound => "no such service, node, rollout, or empty selection",
            Self::Unreachable => "controller, bus or agent unreachable; nothing was started",
            Self::Refused => "refused: conflict, held, frozen, limit",
            Self::NotAuthorised => "not authorised",
            Self::Invalid => "invalid spec, configuration or artifact",
            Self::History => "history does not verify (`audit`), or the log is unavailable",
            Self::RolledBack => "rolled back: on the old release",
            Self::Mixed => "mixed fleet",
            Self::RollbackFailed => "rollback failed: a person is needed",
            Self::Aborted => "aborted or superseded",
            Self::Waits => {
                "waits for a person: approval, promotion, or a pause that nobody asked for"
            }
            Self::ActionFailed => "action ran and failed on at least one node",
            Self::Unknown => "outcome unknown: some nodes did not answer; named",
            Self::Changes => "`plan`, `diff --exit-code`: there are changes",
            Self::StillRunning => "still running; nothing was cancelled",
            Self::Interrupted => "interrupted (SIGINT): detached, it goes on",
            Self::Terminated => "interrupted (SIGTERM): detached, it goes on",
        }
    }
}

/// The code of an error, written `E0412`.
///
/// Any number can be carried, so that a reader need not know a newer writer's codes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(with = "String"))]
pub struct Code(u16);

/// What is known of a code.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The code.
    pub code: Code,
    /// How a command that ends with it exits.
    pub exit: ExitCode,
    /// What happened, in a line without a full stop.
    pub title: &'static str,
    /// What it means and what to do, for `smgr explain`.
    pub explanation: &'static str,
}

/// Says that a text is not a code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a code is written `E` and four digits, such as E0412")]
pub struct InvalidCode;

impl Code {
    /// The highest number, since four digits are written.
    const MAX: u16 = 9999;

    /// Returns what is known of it, or nothing when it comes from a newer version.
    pub fn entry(self) -> Option<&'static Entry> {
        TABLE.iter().find(|entry| entry.code == self)
    }

    /// Returns how a command that ends with it exits.
    pub fn exit(self) -> ExitCode {
        self.entry().map_or(ExitCode::Internal, |entry| entry.exit)
    }

    /// Returns the text of `smgr explain`, without the last line end.
    pub fn explain(self) -> String {
        let exit = self.exit();
        let explanation = self.entry().map_or(
            "This version does not know the code. A newer smgr, which printed it, explains it.",
            |entry| entry.explanation,
        );
        let (title, number, meaning) = (self.title(), exit.number(), exit.meaning());
        format!("{self}  {title}\n\n{explanation}\n\nexit code {number}: {meaning}")
    }

    /// Returns what happened, in a line.
    pub fn title(self) -> &'static str {
        self.entry().map_or("an error that this version does not know", |entry| entry.title)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E{:04}", self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Code {
    type Err = InvalidCode;

    /// Reads `E0412`, `e0412`, `0412` and `412`, as people type them after `smgr explain`.
    fn from_str(text: &str) -> Result<Self, InvalidCode> {
        let digits = text.strip_prefix(['E', 'e']).unwrap_or(text);
        let plain = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let number = digits.parse().ok().filter(|number| plain && *number <= Self::MAX);
        number.map(Self).ok_or(InvalidCode)
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Code;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a code such as E0412")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Code, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// Returns the page `docs/errors.md`.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Errors and exit codes\n\n\
         Made from `src/domain/code/table.rs`; `smgr explain CODE` prints the same text. A code keeps its meaning\n\
         for ever.\n\n## Exit codes\n\n| code | meaning |\n|---|---|\n",
    );
    for exit in ExitCode::ALL {
        page.push_str(&format!("| {} | {} |\n", exit.number(), exit.meaning()));
    }
    for (prefix, title) in table::RANGES {
        page.push_str(&format!("\n## E{prefix:02}xx {title}\n"));
        for entry in TABLE.iter().filter(|entry| entry.code.0 / 100 == *prefix) {
            page.push_str(&format!(
                "\n**{}** {} (exit {})\n\n{}\n",
                entry.code,
                entry.title,
                entry.exit.number(),
                entry.explanation
            ));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_ascending_and_in_a_range() {
        assert!(TABLE.windows(2).all(|pair| pair[0].code < pair[1].code));
        for entry in TABLE {
            let range = entry.code.0 / 100;
            assert!(table::RANGES.iter().any(|(prefix, _)| *prefix == range), "{}", entry.code);
        }
    }

    #[test]
    fn every_code_is_explained_and_fails() {
        for Entry { code, exit, title, explanation } in TABLE {
            assert!(!title.is_empty() && !title.ends_with('.'), "{code}");
            assert!(explanation.ends_with('.'), "{code}");
            assert_ne!(*exit, ExitCode::Done, "{code}");
        }
    }

    #[test]
    fn exit_codes_are_the_documented_numbers_ascending() {
        let numbers: Vec<u8> = ExitCode::ALL.iter().map(|exit| exit.number()).collect();
        let mut documented: Vec<u8> = (0..=16).collect();
        documented.extend([20, 124, 130, 143]);
        assert_eq!(numbers, documented);
    }

    #[test]
    fn a_code_reads_what_it_writes_and_what_people_type() {
        for entry in TABLE {
            assert_eq!(entry.code.to_string().parse(), Ok(entry.code));
        }
        assert_eq!("412".parse(), Ok(Code::UNKNOWN_KEY));
        for text in ["", "E", "E04125", "E-12", "X0412", "E+412", "Eé"] {
            assert_eq!(text.parse::<Code>(), Err(InvalidCode), "{text}");
        }
    }

    #[test]
    fn a_code_of_a_newer_version_is_carried_and_counts_as_internal() {
        let code: Code = "E9999".parse().unwrap();
        assert_eq!((code.to_string().as_str(), code.exit()), ("E9999", ExitCode::Internal));
    }
}
