//! Reading the arrival log: the stream of all events, and the copy of one log. Beside the task, from a snapshot of where
//! things lie, so that a slow disk holds up nobody but the asker.

use std::ops::ControlFlow;

use serde_bytes::ByteBuf;

use super::{Arrivals, Row, Run, Stored, join};
use crate::domain::code::Code;
use crate::domain::id::{EpochId, EventId, NodeId, Seq};
use crate::store::{EventPos, Log, RangeLimits, ReadError};
use crate::wire::codec;

/// Rows that are read at once: an answer holds fewer.
const ROWS_MAX: usize = 256;

/// A page of the stream of all events, still to be read.
#[derive(Debug)]
pub(in crate::controller) struct Stream {
    log: Log,
    epoch: EpochId,
    /// The row in which the first place lies, and the place.
    from: Option<(Seq, u64)>,
    until: u64,
}

/// A page of the copy of one log, still to be read.
#[derive(Debug)]
pub(in crate::controller) struct Copied {
    log: Log,
    epoch: EpochId,
    runs: Vec<Stored>,
    /// The first event that is wanted.
    first: (EpochId, Seq),
}

/// Says why nothing lies behind a cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::controller) enum CursorError {
    /// It is of an epoch that is not here.
    #[error("{0} is of an epoch that is not here")]
    Epoch(EventId),
    /// Nothing is known of this log.
    #[error("nothing of the log of {0} has arrived here")]
    Origin(NodeId),
}

impl CursorError {
    /// Returns the code of the error.
    pub(in crate::controller) fn code(&self) -> Code {
        Code::BAD_CURSOR
    }
}

impl Arrivals {
    /// Finds the place behind `after`; `0` is before the first one.
    pub(in crate::controller) fn stream(&self, after: u64) -> Stream {
        let place = after + 1;
        let from = self.places.partition_point(|(first, _)| *first <= place).checked_sub(1);
        let until = self.durable_count;
        Stream {
            log: self.log.clone(),
            epoch: self.epoch,
            from: from.map(|at| (self.places[at].1, place)).filter(|_| place <= until),
            until,
        }
    }

    /// Finds the event behind `after` in the copy of a log, or the first one that is here.
    ///
    /// # Errors
    /// When nothing of the log or of that epoch is here.
    pub(in crate::controller) fn copy(
        &self,
        origin: &NodeId,
        after: Option<&EventId>,
    ) -> Result<Copied, CursorError> {
        let unknown = || CursorError::Origin(origin.clone());
        let known = self.origins.get(origin).ok_or_else(unknown)?;
        let runs = &known.runs;
        let (epoch, seq) = match after {
            Some(cursor) => (cursor.epoch, Seq(cursor.seq.0.saturating_add(1))),
            None => runs.first().map(|run| (run.epoch, run.first)).ok_or_else(unknown)?,
        };
        let of_epoch = |run: &Stored| run.epoch == epoch;
        let begin = runs.iter().position(of_epoch).ok_or_else(|| {
            after.map_or_else(unknown, |cursor| CursorError::Epoch(cursor.clone()))
        })?;
        let within = runs[begin..].iter().take_while(|run| of_epoch(run)).count();
        let behind = runs[begin..begin + within].partition_point(|run| run.first <= seq);
        let from = begin + behind.saturating_sub(1);
        let durable = |run: &&Stored| self.undurable.front().is_none_or(|(row, ..)| run.row < *row);
        let runs = runs[from..].iter().take(ROWS_MAX).take_while(durable).copied().collect();
        Ok(Copied { log: self.log.clone(), epoch: self.epoch, runs, first: (epoch, seq) })
    }
}

impl Stream {
    /// Reads the events, at most so many and so many bytes of them, but at least one; with the place of the first.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(in crate::controller) fn read(
        self,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<(u64, Vec<ByteBuf>), ReadError> {
        let Some((row, place)) = self.from else { return Ok((self.until + 1, Vec::new())) };
        let mut page = Page::new(events_max, bytes_max);
        let mut front = None;
        let limits = RangeLimits { rows: usize::MAX, bytes: usize::MAX };
        let mut from = EventPos { epoch: self.epoch, seq: row };
        // The front of an event lies in the row before.
        from.seq.0 = from.seq.0.saturating_sub(1).max(1);
        self.log.range(from, limits, |_, bytes| {
            match codec::decode(bytes) {
                Ok(Row::Front(part)) => front = Some(part),
                Ok(Row::Run(mut run)) => {
                    join(front.take(), &mut run);
                    let skipped = place.saturating_sub(run.place);
                    let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
                    let left = usize::try_from((self.until + 1).saturating_sub(run.place));
                    run.rows.truncate(left.unwrap_or(usize::MAX));
                    if page.is_full_with(run.rows.into_iter().skip(skipped)) {
                        return ControlFlow::Break(());
                    }
                }
                Ok(Row::Marks(_)) | Err(_) => {}
            }
            ControlFlow::Continue(())
        })?;
        Ok((place, page.events))
    }
}

impl Copied {
    /// Reads the events of one epoch, at most so many and so many bytes of them, but at least one; with the place of
    /// the first.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(in crate::controller) fn read(
        self,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<(EpochId, Seq, Vec<ByteBuf>), ReadError> {
        let (mut epoch, mut first) = self.first;
        let mut page = Page::new(events_max, bytes_max);
        for stored in &self.runs {
            let Some(run) = self.run(stored)? else { continue };
            let last = Seq(run.first.0 + run.rows.len() as u64 - 1);
            if run.epoch == epoch && last < first {
                continue; // The cursor is the last event of this run.
            }
            if run.epoch != epoch {
                if !page.events.is_empty() {
                    break; // A page never spans two epochs.
                }
                (epoch, first) = (run.epoch, run.first);
            }
            let skipped = if page.events.is_empty() { first.0 - run.first.0 } else { 0 };
            let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
            if page.is_full_with(run.rows.into_iter().skip(skipped)) {
                break;
            }
        }
        Ok((epoch, first, page.events))
    }

    fn run(&self, stored: &Stored) -> Result<Option<Run>, ReadError> {
        let (mut front, mut found) = (None, None);
        let from = EventPos { epoch: self.epoch, seq: Seq(stored.row.0.saturating_sub(1).max(1)) };
        self.log.range(from, RangeLimits { rows: 2, bytes: usize::MAX }, |pos, bytes| {
            match codec::decode(bytes) {
                Ok(Row::Front(part)) => front = Some(part),
                Ok(Row::Run(mut run)) if pos.seq == stored.row => {
                    join(front.take(), &mut run);
                    found = Some(run);
                }
                Ok(Row::Run(_) | Row::Marks(_)) | Err(_) => front = None,
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }
}

/// Events up to a bound.
struct Page {
    events: Vec<ByteBuf>,
    events_max: usize,
    bytes_left: usize,
}

impl Page {
    fn new(events_max: usize, bytes_max: usize) -> Self {
        Self { events: Vec::new(), events_max: events_max.max(1), bytes_left: bytes_max }
    }

    /// Takes what fits; says whether no more does.
    fn is_full_with(&mut self, events: impl Iterator<Item = ByteBuf>) -> bool {
        for event in events {
            let fits = event.len() <= self.bytes_left || self.events.is_empty();
            if self.events.len() == self.events_max || !fits {
                return true;
            }
            self.bytes_left = self.bytes_left.saturating_sub(event.len());
            self.events.push(event);
        }
        false
    }
}
