//! JSON for programs: versioned documents whose fields are added, never removed, renamed or re-typed.
//!
//! Every field is always present and `null` where it does not apply. Times are RFC 3339 with milliseconds, lengths of
//! time `*_ms`, sizes `*_bytes`.

mod body;
mod controller;
pub mod error;
pub mod event;
pub mod fleet;
pub mod history;
mod release;
mod rollout;
pub mod status;
pub mod stream;

use serde_json::{Value, json};

use crate::cli::screen::units::rfc3339;
use crate::cli::screen::words::{full_key, name_of, signal_name};
use crate::domain::event::{Actor, Exit};
use crate::domain::id::Digest;
use crate::domain::text::printable;
use crate::domain::time::UnixMicros;

/// Returns a document as one line without its end.
///
/// Characters that could speak to a terminal are written as escapes, so the line is harmless to look at and loses
/// nothing: JSON allows them nowhere but inside strings.
pub fn line(document: &Value) -> String {
    escaped(&document.to_string())
}

/// Returns a document for reading, in several lines.
pub fn pretty(document: &Value) -> String {
    format!("{document:#}").lines().map(escaped).collect::<Vec<_>>().join("\n")
}

fn escaped(line: &str) -> String {
    let printable = printable(line);
    if printable == line {
        return line.to_owned();
    }
    let mut text = String::with_capacity(line.len() + 16);
    // What is not printable is replaced one for one, so the two lines run side by side.
    for (raw, shown) in line.chars().zip(printable.chars()) {
        if raw == shown {
            text.push(raw);
        } else {
            let mut units = [0; 2];
            let units = raw.encode_utf16(&mut units);
            text.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    text
}

fn time(at: Option<UnixMicros>) -> Value {
    at.map_or(Value::Null, |at| Value::from(rfc3339(at)))
}

fn digest(digest: &Digest) -> Value {
    Value::from(format!("sha256:{digest}"))
}

fn text_or_null(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { Value::from(text) }
}

fn actor(actor: &Actor) -> Value {
    json!({
        "kind": name_of(&actor.kind),
        "name": actor.name.as_str(),
        "key": actor.key.map(full_key),
        "note": text_or_null(&actor.note),
        "run_url": actor.run_url(),
        "commit": actor.commit(),
    })
}

fn exit(exit: Exit, oom_killed: bool) -> serde_json::Map<String, Value> {
    let (known, code, signal, core_dumped) = match exit {
        Exit::Code(code) => (true, Some(code), None, false),
        Exit::Signal { signal, core_dumped } => (true, None, Some(signal), core_dumped),
        Exit::Unknown => (false, None, None, false),
    };
    let members = [
        ("known", Value::from(known)),
        ("code", Value::from(code)),
        ("signal", Value::from(signal.map(signal_name))),
        ("core_dumped", Value::from(core_dumped)),
        ("oom_killed", Value::from(oom_killed)),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::intent::ActorKind;

    #[test]
    fn a_ci_run_is_named_as_in_the_contract() {
        let by = |note: &str| {
            let by = crate::cli::sample::by(ActorKind::Ci, "shop-deploy", note);
            actor(&by.expect("somebody"))
        };
        let run = "https://git.example.com/shop/actions/runs/8412";
        let told = by(&format!("run {run} commit 77ab0c1"));
        assert_eq!((&told["run_url"], &told["commit"]), (&json!(run), &json!("77ab0c1")));
        assert_eq!(by(&format!("http token ci run {run}"))["run_url"], run);
        for note in ["", "run", "run 8412", "commit", "commit no-hex", "restart"] {
            let told = by(note);
            assert!(told["run_url"].is_null() && told["commit"].is_null(), "{told}");
        }
    }

    #[test]
    fn a_line_shows_no_control_character_and_loses_none() {
        let document = json!({"what": "a\u{9b}2J\u{202e}b\x1b[0m\u{e0041}é\"\\n"});
        for text in [line(&document), pretty(&document)] {
            let control = |c: char| c.is_control() && c != '\n';
            assert!(!text.contains(control) && !text.contains('\u{202e}'), "{text:?}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
        }
    }
}
