//! Errors on stderr.

use super::table::cut;
use crate::cli::error::CliError;
use crate::domain::text::{columns, printable};

/// Where the code on the first line ends.
const CODE_COLUMN: usize = 80;

/// Returns the lines of an error.
pub fn error_text(error: &CliError, width: Option<u16>) -> String {
    let width = width.map_or(usize::MAX, usize::from);
    let head = format!("error: {}", printable(&error.what));
    let code = format!("[{}]", error.code);
    let gap = width.min(CODE_COLUMN).saturating_sub(columns(&head) + columns(&code)).max(2);
    let mut text = format!("{head}{}{code}\n", " ".repeat(gap));
    let place = error.place.iter().map(|place| format!("  at {place}"));
    let because = error.because.iter().map(|why| format!("  because {why}"));
    for line in place.chain(because) {
        text.push_str(&cut(&printable(&line), width.max(40)));
        text.push('\n');
    }
    if let Some(hint) = &error.hint {
        text.push_str(&format!("hint: {}\n", printable(hint)));
    }
    text.push_str(&format!("next: {}\n", printable(&error.next_command())));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::code::Code;

    #[test]
    fn an_error_says_what_where_why_and_what_to_do() {
        let refused = std::io::Error::other("connection refused");
        let error = CliError::new(Code::AGENT_UNREACHABLE, "no agent answers on this machine")
            .at("/run/smgr/smgr.sock")
            .because(&refused)
            .hint("start it with `smgr up`")
            .next("smgr up");
        assert_eq!(
            error_text(&error, Some(80)),
            "error: no agent answers on this machine                                  [E0201]\n  \
             at /run/smgr/smgr.sock\n  because connection refused\nhint: start it with `smgr up`\n\
             next: smgr up\n"
        );
    }

    #[test]
    fn a_text_from_elsewhere_cannot_speak_to_the_terminal() {
        let error = CliError::new(Code::INTERNAL, "bad \x1b[31m name\n\nerror: forged");
        let text = error_text(&error, None);
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains('\x1b'));
        assert!(text.ends_with("next: smgr explain E0901\n"));
    }
}
