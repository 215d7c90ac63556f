//! What is looked for in the lines of a slot: that the service is ready, and the patterns of its alerts.

use std::time::Instant;

use regex::Regex;

use super::{Slot, Tools};
use crate::agent::logs::lines::Piece;
use crate::agent::logs::queue::Places;
use crate::agent::logs::{LogNotice, Stream, tail};
use crate::domain::id::RunId;

/// The longest line that patterns see as one when it is written in parts.
const JOINED_BYTES_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Watch {
    run: RunId,
    pattern: Regex,
    /// What lies before belongs to another run.
    pub(super) from: Places,
}

impl Slot {
    /// Looks for readiness in what lies behind `from`.
    pub(in crate::agent::logs) fn watch(&mut self, run: RunId, pattern: Regex, from: Places) {
        self.watch = Some(Watch { run, pattern, from });
    }

    /// Looks for patterns in the pieces that are taken.
    pub(super) fn inspect(
        &mut self,
        stream: Stream,
        consumed: u64,
        tools: &mut Tools,
        taken: usize,
        now: Instant,
    ) {
        if self.watch.is_some() || !self.setup.alerts.is_empty() {
            for at in 0..taken {
                let Piece { text, part, .. } = tools.pieces[at].clone();
                let place = consumed + text.start as u64;
                let parts = &mut self.inlets[stream as usize].parts;
                if parts.len() + text.len() <= JOINED_BYTES_MAX {
                    parts.extend_from_slice(&tools.bytes[text]);
                }
                let line = std::mem::take(parts);
                if self.watch.as_ref().is_some_and(|watch| place >= watch.from[stream as usize]) {
                    let ready = self.look_for_ready(&line);
                    tools.notices.extend(ready);
                }
                if part {
                    self.inlets[stream as usize].parts = line;
                } else {
                    self.look_for_alerts(stream, &line);
                }
            }
        }
        self.release(tools, now);
    }

    /// Returns the notice when a line is the one that is waited for.
    pub(in crate::agent::logs) fn look_for_ready(&mut self, line: &[u8]) -> Option<LogNotice> {
        // The pattern sees what the service wrote; what leaves is redacted.
        let watch =
            self.watch.take_if(|watch| watch.pattern.is_match(&String::from_utf8_lossy(line)))?;
        let line = tail::text(&self.setup.redacted(line));
        Some(LogNotice::Ready { slot: self.id.clone(), run: watch.run, line })
    }

    fn look_for_alerts(&mut self, stream: Stream, line: &[u8]) {
        for at in self.setup.alerts.matching(stream, line) {
            let shown = tail::text(&self.setup.redacted(line));
            self.matched[at].add(|before| (before.map_or(0, |(count, _)| count) + 1, shown));
        }
    }
}
