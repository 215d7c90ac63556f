//! Takes bytes apart into lines. Pure.

use std::io::BufRead;
use std::ops::Range;

/// A line or a part of one, by its place in the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its text, without the newline.
    pub(super) text: Range<usize>,
    /// Where the next piece starts.
    pub(super) end: usize,
    /// Whether the line goes on in the next piece.
    pub(super) part: bool,
}

/// What becomes of bytes behind the last newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// They stay where they are until their line ends.
    Wait,
    /// They are a part of a line: there is no room for the rest of it.
    Part,
    /// They are a line: nothing follows.
    Line,
}

/// Appends the pieces of `bytes` to `pieces`. Lines longer than `max` bytes are split.
pub(super) fn split(bytes: &[u8], max: usize, rest: Rest, pieces: &mut Vec<Piece>) {
    let mut at = 0;
    while at < bytes.len() {
        let mut ahead = &bytes[at..];
        let length = ahead.skip_until(b'\n').expect("a slice can be read");
        let ends = bytes[at + length - 1] == b'\n';
        let mut left = length - usize::from(ends);
        while left > max {
            pieces.push(Piece { text: at..at + max, end: at + max, part: true });
            at += max;
            left -= max;
        }
        let text = at..at + left;
        let end = at + left + usize::from(ends);
        match (ends, rest) {
            (true, _) | (false, Rest::Line) => pieces.push(Piece { text, end, part: false }),
            (false, Rest::Part) => pieces.push(Piece { text, end, part: true }),
            (false, Rest::Wait) => return,
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, max: usize, rest: Rest) -> Vec<String> {
        let mut pieces = Vec::new();
        split(text.as_bytes(), max, rest, &mut pieces);
        let mut end = 0;
        for piece in &pieces {
            assert_eq!(piece.text.start, end, "nothing lies between two pieces");
            end = piece.end;
        }
        let show = |piece: &Piece| {
            format!("{}{}", if piece.part { "P " } else { "F " }, &text[piece.text.clone()])
        };
        pieces.iter().map(show).collect()
    }

    #[test]
    fn only_whole_lines_are_taken() {
        assert_eq!(shown("one\n\ntwo\nthr", 9, Rest::Wait), ["F one", "F ", "F two"]);
        assert_eq!(shown("thr", 9, Rest::Wait), [""; 0]);
    }

    #[test]
    fn a_line_that_is_too_long_is_split_even_before_it_ends() {
        assert_eq!(shown("abcdefgh\n", 3, Rest::Wait), ["P abc", "P def", "F gh"]);
        assert_eq!(shown("abcdefgh", 3, Rest::Wait), ["P abc", "P def"]);
        assert_eq!(shown("abc\n", 3, Rest::Wait), ["F abc"]);
        assert_eq!(shown("abc", 3, Rest::Wait), [""; 0]);
    }

    #[test]
    fn what_cannot_wait_is_a_part_and_what_ends_is_a_line() {
        assert_eq!(shown("a\nbc", 9, Rest::Part), ["F a", "P bc"]);
        assert_eq!(shown("a\nbc", 9, Rest::Line), ["F a", "F bc"]);
    }
}
