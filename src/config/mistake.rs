//! A mistake in a file, and the screen and the JSON that tell of it.

use std::collections::BTreeSet;

use serde_json::json;

use crate::domain::code::Code;
use crate::domain::text::{char_columns, columns, printable};

/// Where the right half of a hint line begins.
const ASIDE_COLUMN: usize = 53;

/// Where the code on the first line ends.
const CODE_COLUMN: usize = 80;

/// How many mistakes are shown; the rest is counted.
const SHOWN_MAX: usize = 20;

/// A mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Which kind.
    pub code: Code,
    /// The file, as it is shown.
    pub path: String,
    /// Where in the file, if at a place.
    pub mark: Option<Box<Mark>>,
    /// What is wrong, said under the mark.
    pub label: String,
    /// What is wrong, said without the mark.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

/// A place in a file, with the line that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The line, from 1.
    pub line: u32,
    /// Its text, as it stands in the file.
    pub snippet: String,
    /// Where the mark begins, in bytes of `snippet` from 0.
    pub start: usize,
    /// How long it is, in bytes; 0 is shown as one column.
    pub len: usize,
}

impl Mark {
    /// Returns the column, in characters from 1.
    pub fn column(&self) -> usize {
        self.snippet[..self.start].chars().count() + 1
    }
}

impl Mistake {
    /// Returns a mistake whose label says everything.
    pub fn new(
        code: Code,
        path: impl Into<String>,
        mark: Option<Mark>,
        label: impl Into<String>,
    ) -> Self {
        let label = label.into();
        let mark = mark.map(Box::new);
        Self { code, path: path.into(), mark, what: label.clone(), label, hint: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says what is wrong where no mark can be shown.
    #[must_use]
    pub fn what(mut self, what: impl Into<String>) -> Self {
        self.what = what.into();
        self
    }

    /// Returns `file:line:column`, or the file alone.
    pub fn place(&self) -> String {
        let path = printable(&self.path);
        match &self.mark {
            Some(mark) => format!("{path}:{}:{}", mark.line, mark.column()),
            None => path.into_owned(),
        }
    }
}

/// Returns the screen for mistakes: each line ends with `\n`.
///
/// `outcome` says what did not happen because of them, such as `nothing was started`. `width` is
/// the terminal's; without one nothing is cut.
pub fn render(mistakes: &[Mistake], outcome: &str, width: Option<usize>) -> String {
    let files: BTreeSet<&str> = mistakes.iter().map(|mistake| mistake.path.as_str()).collect();
    let count = match mistakes.len() {
        1 => "1 mistake".to_owned(),
        n => format!("{n} mistakes"),
    };
    let place = match files.first() {
        Some(file) if files.len() == 1 => printable(file).into_owned(),
        _ => format!("{} files", files.len()),
    };
    let head = format!("error: {count} in {place}; {outcome}");
    let mut screen = match mistakes {
        [only] => aligned(&head, &format!("[{}]", only.code), |code| {
            width.unwrap_or(CODE_COLUMN).min(CODE_COLUMN).saturating_sub(code)
        }),
        _ => head,
    };
    screen.push('\n');
    for mistake in mistakes.iter().take(SHOWN_MAX) {
        let code = (mistakes.len() > 1).then_some(mistake.code);
        screen.push_str(&body(mistake, code, width));
        if let (Some(hint), true) = (&mistake.hint, mistakes.len() > 1) {
            screen.push_str(&format!("    hint: {}\n", printable(hint)));
        }
    }
    if mistakes.len() > SHOWN_MAX {
        screen.push_str(&format!("  … and {} more\n", mistakes.len() - SHOWN_MAX));
    }
    if let Some(last) = last_line(mistakes) {
        screen.push_str(&last);
        screen.push('\n');
    }
    screen
}

/// Returns the screen for what is allowed but should be looked at; empty without any.
pub fn render_warnings(warnings: &[Mistake], width: Option<usize>) -> String {
    let mut screen = String::new();
    for warning in warnings {
        screen.push_str(&format!("warning: {}\n", warning.code.title()));
        screen.push_str(&body(warning, Some(warning.code), width));
        if let Some(hint) = &warning.hint {
            screen.push_str(&format!("hint: {}\n", printable(hint)));
        }
    }
    screen
}

fn last_line(mistakes: &[Mistake]) -> Option<String> {
    let is_about_keys = |mistake: &Mistake| {
        [Code::UNKNOWN_KEY, Code::RESERVED_KEY, Code::MISSING_KEY].contains(&mistake.code)
    };
    let aside = if mistakes.iter().any(is_about_keys) {
        "all keys: smgr help spec".to_owned()
    } else {
        format!("more: smgr explain {}", mistakes.first()?.code)
    };
    match mistakes {
        [Mistake { hint: Some(hint), .. }] => {
            Some(aligned(&format!("hint: {}", printable(hint)), &aside, |_| ASIDE_COLUMN))
        }
        _ => Some(aside),
    }
}

/// Puts `right` at the column that `column` returns for its width, or on a line of its own if
/// `left` reaches that far.
fn aligned(left: &str, right: &str, column: impl Fn(usize) -> usize) -> String {
    let column = column(columns(right));
    let used = columns(left);
    if used + 2 <= column {
        format!("{left}{}{right}", " ".repeat(column - used))
    } else {
        format!("{left}  {right}")
    }
}

fn body(mistake: &Mistake, code: Option<Code>, width: Option<usize>) -> String {
    let place = mistake.place();
    let code = code.map(|code| format!("  [{code}]")).unwrap_or_default();
    let label = printable(&mistake.label);
    let Some(mark) = &mistake.mark else {
        return format!("  {place}  {label}{code}\n");
    };
    let indent = 2 + columns(&place) + 2;
    let (snippet, start, len) = window(mark, width.map(|width| width.saturating_sub(indent)));
    let carets = "^".repeat(len);
    format!(
        "  {place}  {snippet}\n{}{}{carets} {label}{code}\n",
        " ".repeat(indent),
        " ".repeat(start)
    )
}

/// Cuts the line to `width` columns around the mark; returns it with the mark's column and width.
fn window(mark: &Mark, width: Option<usize>) -> (String, usize, usize) {
    let before = printable(&mark.snippet[..mark.start]);
    let marked = printable(&mark.snippet[mark.start..mark.start + mark.len]);
    let after = printable(&mark.snippet[mark.start + mark.len..]);
    // A line indented in the file need not be indented here.
    let before = before.trim_start();
    let (start, len) = (columns(before), columns(&marked).max(1));
    let whole = format!("{before}{marked}{after}");
    let Some(width) = width.map(|width| width.max(20)).filter(|width| columns(&whole) > *width)
    else {
        return (whole, start, len);
    };
    let skip = if start + len < width { 0 } else { start.saturating_sub(width / 3) };
    let (mut snippet, mut at, mut used) = (String::new(), 0, 0);
    for c in whole.chars() {
        let wide = char_columns(c);
        at += wide;
        if at <= skip {
            continue;
        }
        if snippet.is_empty() && skip > 0 {
            // This character makes room for the sign that something was left out.
            snippet.push('…');
            snippet.push_str(&" ".repeat(wide.saturating_sub(1)));
            used += wide.max(1);
            continue;
        }
        if used + wide >= width {
            snippet.push('…');
            break;
        }
        snippet.push(c);
        used += wide;
    }
    (snippet, start - skip, len.min(width.saturating_sub(start - skip + 1)).max(1))
}

/// Returns the JSON for mistakes: `smgr.error.v1` of the first, with all of them in `mistakes`.
pub fn json(mistakes: &[Mistake]) -> serde_json::Value {
    let one = |mistake: &Mistake| {
        json!({
            "code": mistake.code,
            "what": printable(&mistake.what),
            "where": mistake.place(),
            "hint": mistake.hint.as_deref().map(printable),
        })
    };
    let first = mistakes.first();
    let code = first.map_or(Code::INTERNAL, |mistake| mistake.code);
    json!({
        "schema": "smgr.error.v1",
        "code": code,
        "exit_code": code.exit().number(),
        "what": first.map(|mistake| printable(&mistake.what)),
        "where": first.map(Mistake::place),
        "because": [],
        "hint": first.and_then(|mistake| mistake.hint.as_deref().map(printable)),
        "next": format!("smgr explain {code}"),
        "mistakes": mistakes.iter().map(one).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn misspelt() -> Mistake {
        let mark = Mark {
            line: 3,
            snippet: r#"exce = ["./server", "--port", "8080"]"#.to_owned(),
            start: 0,
            len: 4,
        };
        Mistake::new(Code::UNKNOWN_KEY, "./smgr.toml", Some(mark), "unknown key in [service.web]")
            .what("unknown key `exce` in [service.web]")
            .hint("did you mean `exec`?")
    }

    #[test]
    fn one_mistake_is_shown_as_documented() {
        let screen = render(&[misspelt()], "nothing was started", Some(80));
        let documented = "\
error: 1 mistake in ./smgr.toml; nothing was started                     [E0412]
  ./smgr.toml:3:1  exce = [\"./server\", \"--port\", \"8080\"]
                   ^^^^ unknown key in [service.web]
hint: did you mean `exec`?                           all keys: smgr help spec
";
        assert_eq!(screen, documented);
    }

    #[test]
    fn several_mistakes_are_shown_each_with_its_code() {
        let other = Mistake::new(Code::FILE_UNREADABLE, "./web.env", None, "no such file");
        let screen = render(&[misspelt(), other], "nothing was started", None);
        let expected = "\
error: 2 mistakes in 2 files; nothing was started
  ./smgr.toml:3:1  exce = [\"./server\", \"--port\", \"8080\"]
                   ^^^^ unknown key in [service.web]  [E0412]
    hint: did you mean `exec`?
  ./web.env  no such file  [E0401]
all keys: smgr help spec
";
        assert_eq!(screen, expected);
    }

    #[test]
    fn a_long_line_is_cut_around_the_mark_and_fits() {
        let mark = Mark { line: 1, snippet: "x".repeat(300), start: 200, len: 5 };
        let mistake = Mistake::new(Code::BAD_TOML, "a.toml", Some(mark), "here");
        let screen = render(&[mistake], "nothing was changed", Some(60));
        let lines: Vec<&str> = screen.lines().collect();
        assert!(lines[1].contains('…') && columns(lines[1]) <= 60, "{screen}");
        assert!(lines[2].contains("^^^^^ here"), "{screen}");
    }

    #[test]
    fn what_a_file_holds_cannot_command_the_terminal() {
        let mut mistake = misspelt().hint("\x1b[31mred");
        mistake.path = "a\x1b]0;title\x07".to_owned();
        mistake.mark = Some(Box::new(Mark {
            line: 1,
            snippet: "\x1b[2J\u{202e}x".to_owned(),
            start: 0,
            len: 1,
        }));
        for text in [
            render(&[mistake.clone()], "nothing was started", Some(80)),
            json(&[mistake]).to_string(),
        ] {
            assert!(!text.contains(['\x1b', '\x07', '\u{202e}']), "{text:?}");
        }
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let json = json(&[misspelt()]);
        assert_eq!(json["schema"], "smgr.error.v1");
        assert_eq!((&json["code"], &json["exit_code"]), (&json!("E0412"), &json!(8)));
        assert_eq!(json["what"], "unknown key `exce` in [service.web]");
        assert_eq!(json["where"], "./smgr.toml:3:1");
        assert_eq!(json["next"], "smgr explain E0412");
    }
}
