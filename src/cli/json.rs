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

use serde::Serialize;

use crate::domain::document::{At, Sha256};
use crate::domain::id::Digest;
use crate::domain::release::ReleaseId;
use crate::domain::text::printable;
use crate::domain::time::UnixMicros;

/// Returns a document as one line without its end.
///
/// Characters that could speak to a terminal are written as escapes, so the line is harmless to look at and loses
/// nothing: JSON allows them nowhere but inside strings.
pub fn line(document: &impl Serialize) -> String {
    escaped(&serde_json::to_string(document).expect(SERIALIZES))
}

/// Returns a document for reading, in several lines.
pub fn pretty(document: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(document).expect(SERIALIZES);
    text.lines().map(escaped).collect::<Vec<_>>().join("\n")
}

const SERIALIZES: &str = "invariant: documents have names for keys";

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

fn digest(digest: &Digest) -> Sha256 {
    Sha256(ReleaseId(*digest))
}

fn time(at: Option<UnixMicros>) -> Option<At> {
    at.map(At)
}

fn text_or_null(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

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
