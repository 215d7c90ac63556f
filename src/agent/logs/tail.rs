//! The last lines of a run, in memory.

use std::collections::VecDeque;

/// The longest line that is kept, in bytes; a tail is for people to read.
const LINE_BYTES_MAX: usize = 2048;

/// The last lines of a run, oldest first.
#[derive(Debug, Default, Clone)]
pub(super) struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    /// Adds a line and forgets those before the last `keep`.
    pub(super) fn push(&mut self, line: &[u8], keep: usize) {
        if keep == 0 {
            return;
        }
        while self.lines.len() >= keep {
            self.lines.pop_front();
        }
        self.lines.push_back(text(line));
    }

    /// Returns all lines.
    pub(super) fn all(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }

    /// Returns all lines and begins anew.
    pub(super) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines).into()
    }
}

/// Returns a line as text for people, cut where it is too long.
pub(super) fn text(line: &[u8]) -> String {
    let kept = &line[..line.len().min(LINE_BYTES_MAX)];
    let mut text = String::from_utf8_lossy(kept).into_owned();
    if kept.len() < line.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept_and_none_is_endless() {
        let mut tail = Tail::default();
        for line in ["a", "b", "c"] {
            tail.push(line.as_bytes(), 2);
        }
        assert_eq!(tail.all(), ["b", "c"]);
        tail.push(&[b'x'; 100_000], 2);
        assert!(tail.all()[1].len() < 3000);
        assert_eq!(tail.take().len(), 2);
        assert!(tail.all().is_empty());
    }
}
