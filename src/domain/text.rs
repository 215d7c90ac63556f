//! Text from elsewhere, made fit for a terminal.

use std::borrow::Cow;

/// Returns `text` with everything replaced that could move a cursor, change a colour or turn the
/// reading direction. Line ends and tabs are replaced as well: the result is one line.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_unsafe) {
        Cow::Owned(text.chars().map(|c| if is_unsafe(c) { shown_as(c) } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

fn shown_as(c: char) -> char {
    if c == '\t' { ' ' } else { '\u{fffd}' }
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The longest reason that an event or an answer gives, in bytes: it may quote what somebody sent.
pub const WHY_BYTES_MAX: usize = 512;

/// Cuts a text to `bytes_max`, between two characters, and marks the cut.
pub fn brief(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max.saturating_sub('…'.len_utf8())));
        text.push('…');
    }
    text
}

/// Returns how many columns `text` takes, as terminals count: wide characters two, marks none.
pub fn columns(text: &str) -> usize {
    text.chars().map(char_columns).sum()
}

/// Returns how many columns a character takes.
pub fn char_columns(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}' | '\u{20d0}'..='\u{20ff}' | '\u{fe00}'..='\u{fe0f}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_a_cursor_or_turns_the_text_is_left() {
        assert_eq!(
            printable("a\x1b[2Jb\r\nc\u{202e}d\te"),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}d e"
        );
        assert!(matches!(printable("Grüße, 世界"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_long_reason_is_cut_between_two_characters() {
        assert_eq!(brief("short".to_owned(), 8), "short");
        assert_eq!(brief("äöüß".to_owned(), 7), "äö…");
        assert_eq!(brief("ä".repeat(70_000), WHY_BYTES_MAX).len(), WHY_BYTES_MAX - 1);
    }

    #[test]
    fn columns_are_those_of_a_terminal() {
        assert_eq!((columns("web"), columns("世界"), columns("e\u{301}")), (3, 4, 1));
    }
}
