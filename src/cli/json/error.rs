//! `smgr.error.v1` and `smgr.result.v1`.

use serde_json::{Value, json};

use crate::cli::error::CliError;
use crate::domain::code::ExitCode;
use crate::domain::id::{EventId, NodeId};

/// Returns the document of an error.
pub fn error_json(error: &CliError) -> Value {
    json!({
        "schema": "smgr.error.v1",
        "code": error.code.to_string(),
        "exit_code": error.exit().number(),
        "what": error.what,
        "where": error.place,
        "because": error.because,
        "hint": error.hint,
        "next": error.next_command(),
    })
}

/// How a command that waited ended.
#[derive(Clone, Copy, Debug)]
pub struct WaitResult<'a> {
    /// `done`, `failed`, `refused`, `unknown`, `still_running`.
    pub state: &'a str,
    /// How the command exits.
    pub exit: ExitCode,
    /// Whether anything had to change; `None` when that is not known.
    pub changed: Option<bool>,
    /// The last event that was seen.
    pub cursor: Option<&'a EventId>,
    /// What went wrong, in a line.
    pub why: Option<&'a str>,
    /// How many nodes answered.
    pub answered: usize,
    /// Who did not.
    pub missing: &'a [NodeId],
}

/// Returns the last line of `--wait -o jsonl`.
pub fn result_json(result: &WaitResult<'_>) -> Value {
    json!({
        "schema": "smgr.result.v1",
        "type": "result",
        "rollout": null,
        "state": result.state,
        "exit_code": result.exit.number(),
        "changed": result.changed,
        "cursor": result.cursor.map(ToString::to_string),
        "why": result.why,
        "answered": result.answered,
        "missing": result.missing.iter().map(NodeId::as_str).collect::<Vec<_>>(),
    })
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
        let result = WaitResult {
            state: "unknown",
            exit: ExitCode::Unknown,
            changed: None,
            cursor: None,
            why: Some("n6 did not answer"),
            answered: 7,
            missing: &["n6".parse().unwrap()],
        };
        let document = result_json(&result);
        assert_eq!((&document["exit_code"], &document["missing"]), (&json!(16), &json!(["n6"])));
        assert_eq!((&document["type"], &document["changed"]), (&json!("result"), &Value::Null));
    }
}
