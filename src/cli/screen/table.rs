//! Tables that are cut at the terminal's width, in their last column only.

use crate::domain::text::{char_columns, columns, printable};

/// What stands between two columns.
const GAP: usize = 2;

/// The last column keeps this much, even where the terminal is narrower than the ones before it.
const LAST_COLUMNS_MIN: usize = 12;

/// On which side a column is ragged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table of text.
#[derive(Clone, Debug)]
pub struct Table {
    heads: Vec<(&'static str, Align)>,
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
enum Line {
    Row(Vec<String>),
    Note(String),
}

impl Table {
    /// Returns a table without rows.
    pub fn new(heads: &[(&'static str, Align)]) -> Self {
        Self { heads: heads.to_vec(), lines: Vec::new() }
    }

    /// Adds a row; each cell becomes one printable line.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<_> = cells.into_iter().map(|cell| printable(&cell).into_owned()).collect();
        debug_assert_eq!(cells.len(), self.heads.len());
        self.lines.push(Line::Row(cells));
    }

    /// Adds a line across all columns.
    pub fn note(&mut self, text: &str) {
        self.lines.push(Line::Note(printable(text).into_owned()));
    }

    /// Returns the lines, heads first.
    pub fn render(&self, width: Option<u16>) -> String {
        let heads: Vec<String> = self.heads.iter().map(|(head, _)| (*head).to_owned()).collect();
        let mut widths: Vec<usize> = heads.iter().map(|head| columns(head)).collect();
        for line in &self.lines {
            if let Line::Row(cells) = line {
                for (width, cell) in widths.iter_mut().zip(cells) {
                    *width = columns(cell).max(*width);
                }
            }
        }
        let mut text = self.line(&heads, &widths, width);
        for line in &self.lines {
            match line {
                Line::Row(cells) => text.push_str(&self.line(cells, &widths, width)),
                Line::Note(note) => {
                    text.push_str(&cut(note, width.map_or(usize::MAX, usize::from)));
                    text.push('\n');
                }
            }
        }
        text
    }

    fn line(&self, cells: &[String], widths: &[usize], width: Option<u16>) -> String {
        let mut line = String::new();
        let mut used = 0;
        let last = cells.len() - 1;
        for (at, (cell, column)) in cells.iter().zip(widths).enumerate() {
            if at == last {
                let left =
                    width.map_or(usize::MAX, |width| usize::from(width).saturating_sub(used));
                line.push_str(&cut(cell, left.max(LAST_COLUMNS_MIN)));
                continue;
            }
            let pad = " ".repeat(column - columns(cell));
            match self.heads[at].1 {
                Align::Left => line.extend([cell, pad.as_str()]),
                Align::Right => line.extend([pad.as_str(), cell]),
            }
            line.push_str(&" ".repeat(GAP));
            used += column + GAP;
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

/// Cuts a line of printable text to at most `width` columns and marks the cut.
pub fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut used = 0;
    let mut kept: String = text
        .chars()
        .take_while(|c| {
            used += char_columns(*c);
            used < width
        })
        .collect();
    kept.push('…');
    kept
}

/// Joins parts with `between`, and goes on in an indented line where the terminal ends.
pub fn wrapped(parts: &[String], between: &str, indent: usize, width: Option<u16>) -> String {
    let width = width.map_or(usize::MAX, usize::from);
    let mut text = String::new();
    let mut used = 0;
    for part in parts.iter().filter(|part| !part.is_empty()) {
        let part = printable(part);
        if used > indent && used + columns(between) + columns(&part) > width {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            used = indent;
        } else if used > 0 {
            text.push_str(between);
            used += columns(between);
        }
        text.push_str(&part);
        used += columns(&part);
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table =
            Table::new(&[("NAME", Align::Left), ("N", Align::Right), ("NOTE", Align::Left)]);
        table.row(["web".into(), "7".into(), "all is well".into()]);
        table.row(["a-long-name".into(), "12".into(), "exit 101 after 1.2s; try 11".into()]);
        table.row(["x".into(), "1".into(), String::new()]);
        table
    }

    #[test]
    fn without_a_terminal_nothing_is_cut_and_no_line_ends_in_blanks() {
        assert_eq!(
            table().render(None),
            "NAME          N  NOTE\n\
             web           7  all is well\n\
             a-long-name  12  exit 101 after 1.2s; try 11\n\
             x             1\n"
        );
    }

    #[test]
    fn the_last_column_alone_is_cut_at_the_width() {
        let text = table().render(Some(30));
        assert!(text.contains("a-long-name  12  exit 101 aft…\n"), "{text}");
        assert!(text.lines().all(|line| columns(line) <= 30), "{text}");
        // Where there is no room for the others either, they are whole all the same.
        let narrow = table().render(Some(14));
        assert!(narrow.contains("\na-long-name  12  exit 101 af…\n"), "{narrow}");
    }

    #[test]
    fn a_cell_cannot_leave_its_line_or_speak_to_the_terminal() {
        let mut table = Table::new(&[("NAME", Align::Left), ("NOTE", Align::Left)]);
        table.row(["a\nb".into(), "\x1b]0;title\x07\u{202e}".into()]);
        let text = table.render(None);
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains(['\x1b', '\x07', '\u{202e}']), "{text:?}");
    }

    #[test]
    fn wide_characters_are_cut_by_columns() {
        assert_eq!(cut("世界世界", 5), "世界…");
        assert_eq!(cut("世界", 4), "世界");
    }

    #[test]
    fn a_long_first_line_goes_on_indented() {
        let parts = ["n1", "5 instances: 4 running", "", "bus ok"].map(str::to_owned);
        assert_eq!(wrapped(&parts, "   ", 5, None), "n1   5 instances: 4 running   bus ok\n");
        assert_eq!(
            wrapped(&parts, "   ", 5, Some(30)),
            "n1   5 instances: 4 running\n     bus ok\n"
        );
    }
}
