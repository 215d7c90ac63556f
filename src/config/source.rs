//! One file that was read, and places in it.

use std::ops::Range;
use std::sync::Arc;

use super::mistake::{Mark, Mistake};
use crate::domain::code::Code;
use crate::domain::origin::{Layer, Origin};
use crate::domain::release::ReleaseId;

/// One file that was read: its name as it is shown, its layer, its text.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) shown: String,
    pub(super) layer: Layer,
    /// The release that it is the spec of, in short.
    pub(super) release: Option<String>,
    /// Whether a signed wish said it, and `shown` names that.
    is_event: bool,
    pub(super) text: Arc<str>,
    /// Where each line ends. Every effective value knows its line, so a project of hundreds of services asks often.
    line_ends: Vec<usize>,
}

/// A place in a file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) source: Arc<Source>,
    pub(super) span: Range<usize>,
}

impl Source {
    pub(super) fn new(shown: impl Into<String>, layer: Layer, text: &str) -> Arc<Self> {
        let line_ends = text.match_indices('\n').map(|(at, _)| at).collect();
        Arc::new(Self {
            shown: shown.into(),
            layer,
            release: None,
            is_event: false,
            text: text.into(),
            line_ends,
        })
    }

    /// Makes the source of a spec that was deployed.
    pub(super) fn of_release(
        shown: impl Into<String>,
        release: ReleaseId,
        text: &str,
    ) -> Arc<Self> {
        let source = Self::new(shown, Layer::Release, text);
        Arc::new(Self { release: Some(release.short()), ..Arc::unwrap_or_clone(source) })
    }

    /// Makes the source of what a signed wish set.
    pub(super) fn of_event(shown: impl Into<String>, layer: Layer, text: &str) -> Arc<Self> {
        let source = Self::new(shown, layer, text);
        Arc::new(Self { is_event: true, ..Arc::unwrap_or_clone(source) })
    }

    /// Returns the place that stands for the whole file.
    pub(super) fn whole(self: &Arc<Self>) -> Place {
        Place { source: Arc::clone(self), span: 0..0 }
    }
}

impl Place {
    pub(super) fn new(source: &Arc<Source>, span: Option<Range<usize>>) -> Self {
        Self { source: Arc::clone(source), span: span.unwrap_or(0..0) }
    }

    /// Returns the line, from 1.
    pub(super) fn line(&self) -> u32 {
        let start = self.start();
        let lines = self.source.line_ends.partition_point(|end| *end < start);
        u32::try_from(lines + 1).unwrap_or(u32::MAX)
    }

    pub(super) fn origin(&self) -> Origin {
        if self.source.is_event {
            let event = Some(self.source.shown.clone());
            return Origin { layer: self.source.layer, event, ..Origin::built_in() };
        }
        let release = self.source.release.clone();
        Origin {
            release,
            ..Origin::line(self.source.layer, self.source.shown.clone(), self.line())
        }
    }

    /// Returns a mistake at this place; an empty span at the start is the whole file, unmarked.
    pub(super) fn mistake(&self, code: Code, label: impl Into<String>) -> Mistake {
        if self.span == (0..0) {
            return Mistake::new(code, self.source.shown.clone(), None, label);
        }
        let text = &*self.source.text;
        let start = self.start();
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let line = text[line_start..line_end].trim_end_matches('\r');
        // A carriage return, where reading stopped, is not part of what is shown.
        let line_end = line_start + line.len();
        let start = start.min(line_end);
        let end = floor(text, self.span.end.clamp(start, line_end));
        let mark = Mark {
            line: self.line(),
            snippet: line.to_owned(),
            start: start - line_start,
            len: end - start,
        };
        Mistake::new(code, self.source.shown.clone(), Some(mark), label)
    }

    fn start(&self) -> usize {
        floor(&self.source.text, self.span.start.min(self.source.text.len()))
    }
}

/// Returns the last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}
