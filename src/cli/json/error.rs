//! `smgr.error.v1` and `smgr.result.v1`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cli::error::CliError;
use crate::domain::code::ExitCode;
use crate::domain::id::NodeId;

/// An error, on stderr and over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorDocument {
    /// Which document this is.
    #[cfg_attr(test, schemars(extend("const" = Self::SCHEMA)))]
    pub schema: &'static str,
    /// Which kind of error.
    #[cfg_attr(test, schemars(regex(pattern = "^E[0-9]{4}$")))]
    pub code: String,
    /// How the command line ends.
    pub exit_code: u8,
    /// What happened.
    pub what: String,
    /// Which file and line, which node, which event.
    pub r#where: Option<String>,
    /// What led to it, nearest first.
    pub because: Vec<String>,
    /// What can be done.
    pub hint: Option<String>,
    /// The command to type next.
    pub next: String,
}

impl ErrorDocument {
    /// The word by which the document is known.
    pub const SCHEMA: &'static str = "smgr.error.v1";
}

/// Returns the document of an error.
pub fn error_json(error: &CliError) -> ErrorDocument {
    ErrorDocument {
        schema: ErrorDocument::SCHEMA,
        code: error.code.to_string(),
        exit_code: error.exit().number(),
        what: error.what.clone(),
        r#where: error.place.clone(),
        because: error.because.clone(),
        hint: error.hint.clone(),
        next: error.next_command(),
    }
}

/// What came of a wish: the last line of `--wait -o jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ResultDocument {
    /// Which document this is.
    #[cfg_attr(test, schemars(extend("const" = Self::SCHEMA)))]
    pub schema: &'static str,
    /// `result`.
    pub r#type: &'static str,
    /// The rollout that it was.
    pub rollout: Option<String>,
    /// The wish.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<String>,
    /// That of a rollout, or of nodes the worst: `done accepted not_started refused unknown failed rolled_back rollback_failed`.
    pub state: String,
    /// How the command line ends.
    pub exit_code: u8,
    /// Whether anything had to change; null where that is not known.
    pub changed: Option<bool>,
    /// The last event that was seen.
    pub cursor: Option<String>,
    /// What went wrong, in a line.
    pub why: Option<String>,
    /// How many nodes answered.
    pub answered: usize,
    /// Who did not.
    pub missing: Vec<NodeId>,
    /// What each node made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<BTreeMap<NodeId, NodeResult>>,
    /// All wishes, where nodes had their turns by more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intents: Option<Vec<String>>,
    /// Nodes that were not asked, because it failed on others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_started: Option<Vec<NodeId>>,
    /// Nodes whose turn has not come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub later: Option<Vec<NodeId>>,
    /// The version that a rollout went back to; null where it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back_to: Option<Option<String>>,
}

impl ResultDocument {
    /// The word by which the document is known.
    pub const SCHEMA: &'static str = "smgr.result.v1";

    /// Returns a result of which no more is known.
    pub fn new(state: impl Into<String>, exit: ExitCode) -> Self {
        Self {
            schema: Self::SCHEMA,
            r#type: "result",
            rollout: None,
            intent: None,
            state: state.into(),
            exit_code: exit.number(),
            changed: None,
            cursor: None,
            why: None,
            answered: 0,
            missing: Vec::new(),
            nodes: None,
            intents: None,
            not_started: None,
            later: None,
            rolled_back_to: None,
        }
    }
}

/// What one node made of a wish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeResult {
    /// `done accepted not_started refused unknown failed rolled_back rollback_failed`.
    pub state: &'static str,
    /// How a command about this node alone ends.
    pub exit_code: u8,
    /// Whether anything changed, or may have.
    pub changed: bool,
    /// Which kind of error.
    pub code: Option<String>,
    /// What went wrong, in a line.
    pub why: Option<String>,
    /// The event that tells of it.
    pub event: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::code::Code;

    #[test]
    fn an_error_is_the_document_of_the_contract() {
        let error = CliError::new(Code::UNKNOWN_KEY, "unknown key `memroy` in [limits]")
            .at("web.toml:88:1")
            .hint("did you mean `memory`?");
        assert_eq!(
            super::super::line(&error_json(&error)),
            r#"{"schema":"smgr.error.v1","code":"E0412","exit_code":8,"what":"unknown key `memroy` in [limits]","where":"web.toml:88:1","because":[],"hint":"did you mean `memory`?","next":"smgr explain E0412"}"#
        );
    }

    #[test]
    fn a_wait_ends_with_one_result() {
        let result = ResultDocument {
            why: Some("n6 did not answer".to_owned()),
            answered: 7,
            missing: vec!["n6".parse().unwrap()],
            ..ResultDocument::new("unknown", ExitCode::Unknown)
        };
        assert_eq!(
            super::super::line(&result),
            r#"{"schema":"smgr.result.v1","type":"result","rollout":null,"state":"unknown","exit_code":16,"changed":null,"cursor":null,"why":"n6 did not answer","answered":7,"missing":["n6"]}"#
        );
    }
}
