//! The arrival log: every event of every log, in the order in which it came here, as it was signed.
//!
//! A row is a packed run of one log. How far each log is here, and the frontier of its tree, are folded from the same
//! rows, so they are never out of step with them. The place of an event in this order is a cursor of the fleet's stream.

mod reading;

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::domain::id::{EpochId, EventId, NodeId, Seq};
use crate::domain::tree::{Frontier, leaf};
use crate::store::{AppendError, EventPos, Log, ROW_BYTES_MAX, ReadError};
use crate::wire::codec;

/// What a row holds beside the events, in bytes: names and numbers of one run.
const BESIDE_BYTES_MAX: usize = 512;

/// The events of one run, in bytes: with what stands beside them it fits a row.
const RUN_BYTES_MAX: usize = ROW_BYTES_MAX - BESIDE_BYTES_MAX;

/// What MessagePack adds to each event, in bytes.
const ITEM_BYTES_MAX: usize = 5;

/// Marks in one row of a baseline.
const MARKS_PER_ROW: usize = 16;

/// One row.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Row {
    /// Events that follow each other in one log.
    Run(Run),
    /// The front of an event that fits no row together with its names. The run behind it begins with the rest.
    Front(ByteBuf),
    /// How far logs are here, at the head of a segment.
    Marks(Vec<WrittenMark>),
}

/// A run of one log.
#[derive(Debug, Serialize, Deserialize)]
struct Run {
    origin: NodeId,
    epoch: EpochId,
    first: Seq,
    /// The place of its first event among all arrivals, from 1.
    place: u64,
    rows: Vec<ByteBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WrittenMark {
    origin: NodeId,
    epoch: EpochId,
    /// See [`Frontier::to_bytes`].
    frontier: ByteBuf,
    /// How many events had arrived.
    count: u64,
}

/// How far one log is here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Its running epoch.
    pub(super) epoch: EpochId,
    /// The tree over the events of the epoch.
    pub(super) frontier: Frontier,
}

impl Mark {
    /// Returns the last event that is here.
    pub(super) fn seq(&self) -> Seq {
        Seq(self.frontier.size())
    }
}

/// Where a run lies.
#[derive(Clone, Copy, Debug)]
struct Stored {
    epoch: EpochId,
    first: Seq,
    row: Seq,
}

#[derive(Debug, Default)]
struct Origin {
    mark: Option<Mark>,
    /// All its runs, in the order of its log.
    runs: Vec<Stored>,
}

/// Says why the rows of the arrival log do not follow.
#[derive(Debug, thiserror::Error)]
pub(super) enum FoldError {
    /// The files cannot be read.
    #[error("failed to read the arrival log")]
    Read(#[from] ReadError),
    /// A row is not one of this version, or does not follow from those before.
    #[error("row {row} of the arrival log does not follow: {why}")]
    Row {
        /// Which.
        row: Seq,
        /// In words.
        why: String,
    },
}

/// The arrival log and what is folded from it.
#[derive(Debug)]
pub(super) struct Arrivals {
    log: Log,
    epoch: EpochId,
    next_row: Seq,
    count: u64,
    origins: BTreeMap<NodeId, Origin>,
    /// The place of the first event of each run, and its row.
    places: Vec<(u64, Seq)>,
    /// Runs that were appended and are not known to be durable: the row of each, and where its log is with it.
    undurable: VecDeque<(Seq, u64, EventId)>,
    durable_count: u64,
}

impl Arrivals {
    /// Folds the rows of `log`, giving `each` every event on the way: whose, and its envelope.
    ///
    /// # Errors
    /// When the files cannot be read or do not follow.
    pub(super) fn fold(log: Log, mut each: impl FnMut(&EventId, &[u8])) -> Result<Self, FoldError> {
        let (epoch, last) = log.appended();
        let mut arrivals = Self {
            log: log.clone(),
            epoch,
            next_row: Seq(last.0 + 1),
            count: 0,
            origins: BTreeMap::new(),
            places: Vec::new(),
            undurable: VecDeque::new(),
            durable_count: 0,
        };
        if last == Seq(0) {
            return Ok(arrivals);
        }
        let mut broken = None;
        let mut front = None;
        log.reader().rows(Some(EventPos { epoch, seq: Seq(0) }), |pos, bytes| {
            match arrivals.fold_row(pos.seq, bytes, &mut front, &mut each) {
                Ok(()) => ControlFlow::Continue(()),
                Err(why) => {
                    broken = Some(FoldError::Row { row: pos.seq, why });
                    ControlFlow::Break(())
                }
            }
        })?;
        arrivals.durable_count = arrivals.count;
        broken.map_or(Ok(arrivals), Err)
    }

    fn fold_row(
        &mut self,
        row: Seq,
        bytes: &[u8],
        front: &mut Option<ByteBuf>,
        each: &mut impl FnMut(&EventId, &[u8]),
    ) -> Result<(), String> {
        match codec::decode(bytes).map_err(|why| why.to_string())? {
            Row::Front(part) => *front = Some(part),
            Row::Marks(marks) => {
                for mark in marks {
                    self.restore(mark)?;
                }
            }
            Row::Run(mut run) => {
                join(front.take(), &mut run);
                if run.place != self.count + 1 {
                    return Err(format!("place {} after {}", run.place, self.count));
                }
                for (seq, event) in (run.first.0..).zip(&run.rows) {
                    let id =
                        EventId { origin: run.origin.clone(), epoch: run.epoch, seq: Seq(seq) };
                    each(&id, event);
                }
                self.adopt(row, &run)?;
            }
        }
        Ok(())
    }

    fn restore(&mut self, written: WrittenMark) -> Result<(), String> {
        let frontier =
            Frontier::from_bytes(&written.frontier).map_err(|error| error.to_string())?;
        let mark = Mark { epoch: written.epoch, frontier };
        let origin = self.origins.entry(written.origin).or_default();
        match &origin.mark {
            Some(known) if *known != mark => return Err("a mark is not the folded one".to_owned()),
            _ => origin.mark = Some(mark),
        }
        self.count = self.count.max(written.count);
        Ok(())
    }

    /// Takes a run into what is folded.
    fn adopt(&mut self, row: Seq, run: &Run) -> Result<(), String> {
        let origin = self.origins.entry(run.origin.clone()).or_default();
        let fresh = || Mark { epoch: run.epoch, frontier: Frontier::default() };
        let mark = match &mut origin.mark {
            Some(mark) if mark.epoch == run.epoch => mark,
            mark => mark.insert(fresh()),
        };
        if run.first.0 != mark.seq().0 + 1 {
            return Err(format!("{} of {} after {}", run.first, run.origin, mark.seq()));
        }
        for event in &run.rows {
            mark.frontier.push(leaf(event));
        }
        origin.runs.push(Stored { epoch: run.epoch, first: run.first, row });
        self.places.push((run.place, row));
        self.count += run.rows.len() as u64;
        Ok(())
    }

    /// Returns how far a log is here.
    pub(super) fn mark(&self, origin: &NodeId) -> Option<&Mark> {
        self.origins.get(origin)?.mark.as_ref()
    }

    /// Returns the last event of a log that is here.
    pub(super) fn last(&self, origin: &NodeId) -> Option<EventId> {
        let mark = self.mark(origin)?;
        Some(EventId { origin: origin.clone(), epoch: mark.epoch, seq: mark.seq() })
    }

    /// Returns how many events have arrived and are on disk.
    pub(super) fn durable_count(&self) -> u64 {
        self.durable_count
    }

    /// Returns the epoch of the places.
    pub(super) fn epoch(&self) -> EpochId {
        self.epoch
    }

    /// Appends events that follow the mark of their log; all of them or none.
    ///
    /// # Errors
    /// When the log takes nothing at this moment: they are fetched again later.
    ///
    /// # Panics
    /// If they do not follow the mark.
    pub(super) fn append(
        &mut self,
        origin: &NodeId,
        epoch: EpochId,
        first: Seq,
        events: Vec<ByteBuf>,
    ) -> Result<(), AppendError> {
        let mut rows: Vec<Arc<[u8]>> = Vec::new();
        let mut runs: Vec<(Seq, Run)> = Vec::new();
        let (mut seq, mut place) = (first, self.count + 1);
        for piece in cut(events) {
            let count = piece.len() as u64;
            let mut run = Run { origin: origin.clone(), epoch, first: seq, place, rows: piece };
            let front = split(&mut run);
            if let Some(front) = &front {
                rows.push(codec::encode(&Row::Front(front.clone())).into());
            }
            let row = Row::Run(run);
            rows.push(codec::encode(&row).into());
            let Row::Run(mut run) = row else { unreachable!("invariant: it was made just now") };
            join(front, &mut run);
            runs.push((Seq(self.next_row.0 + rows.len() as u64 - 1), run));
            (seq, place) = (Seq(seq.0 + count), place + count);
        }
        let count = rows.len() as u64;
        self.log.append_all(self.next_row, rows)?;
        self.next_row = Seq(self.next_row.0 + count);
        for (row, run) in runs {
            self.adopt(row, &run).expect("invariant: what is appended follows the mark");
            let last = self.last(origin).expect("invariant: a run was adopted");
            self.undurable.push_back((row, self.count, last));
        }
        Ok(())
    }

    /// Takes the watermark of the log; returns how far each log with news is on disk.
    pub(super) fn durable(&mut self, row: Seq) -> BTreeMap<NodeId, EventId> {
        let mut news = BTreeMap::new();
        while let Some((_, count, last)) = self.undurable.pop_front_if(|(last, ..)| *last <= row) {
            self.durable_count = count;
            news.insert(last.origin.clone(), last);
        }
        news
    }

    /// Begins the next segment of the log with all marks.
    ///
    /// # Errors
    /// When the log takes nothing at this moment; the segment then goes on and is asked about again.
    pub(super) fn roll(&mut self) -> Result<(), AppendError> {
        let marks: Vec<WrittenMark> = self
            .origins
            .iter()
            .filter_map(|(origin, known)| {
                let mark = known.mark.as_ref()?;
                Some(WrittenMark {
                    origin: origin.clone(),
                    epoch: mark.epoch,
                    frontier: ByteBuf::from(mark.frontier.to_bytes()),
                    count: self.count,
                })
            })
            .collect();
        let mut rows: Vec<Arc<[u8]>> = Vec::new();
        let mut marks = marks.into_iter().peekable();
        while marks.peek().is_some() {
            let some = marks.by_ref().take(MARKS_PER_ROW).collect();
            rows.push(codec::encode(&Row::Marks(some)).into());
        }
        let count = rows.len() as u64;
        self.log.roll(self.next_row, rows)?;
        self.next_row = Seq(self.next_row.0 + count);
        Ok(())
    }
}

/// Cuts events into runs of which each fits a row; one that is too long for that stands alone.
fn cut(events: Vec<ByteBuf>) -> Vec<Vec<ByteBuf>> {
    let mut runs: Vec<Vec<ByteBuf>> = Vec::new();
    let mut bytes = RUN_BYTES_MAX;
    for event in events {
        bytes += event.len() + ITEM_BYTES_MAX;
        match runs.last_mut() {
            Some(run) if bytes <= RUN_BYTES_MAX => run.push(event),
            _ => {
                bytes = event.len() + ITEM_BYTES_MAX;
                runs.push(vec![event]);
            }
        }
    }
    runs
}

/// Takes the front of a run's one event, when the two do not fit a row together.
fn split(run: &mut Run) -> Option<ByteBuf> {
    let [event] = run.rows.as_mut_slice() else { return None };
    (event.len() + ITEM_BYTES_MAX > RUN_BYTES_MAX).then(|| {
        let middle = event.len() / 2;
        let rest = event.split_off(middle);
        std::mem::replace(event, ByteBuf::from(rest))
    })
}

/// Puts the front of a run's first event back.
fn join(front: Option<ByteBuf>, run: &mut Run) {
    if let (Some(mut front), Some(rest)) = (front, run.rows.first_mut()) {
        front.extend_from_slice(rest);
        *rest = front;
    }
}

#[cfg(test)]
mod tests;
