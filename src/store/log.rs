//! The handle of an open log: append, roll, read. All of it may be called from any thread.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use crate::domain::id::{EpochId, Seq};
use crate::store::ahead::Pace;
use crate::store::inbox::{Detached, Inbox, LaneShared, Request};
use crate::store::quarantine::Salvage;
use crate::store::segment::{EVENTS, Row, SegmentFile};
use crate::store::writer::Hub;
use crate::store::{
    EventPos, Head, LogOptions, LogReader, Outage, Predecessor, ReadError, SegmentError, layout,
    read,
};
use crate::wire::envelope::ENVELOPE_BYTES_MAX;

/// The largest row, in bytes: what a reader takes. Larger things are detached from the log.
pub const ROW_BYTES_MAX: usize = ENVELOPE_BYTES_MAX;

/// Says why a row was not accepted. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The row does not follow the last one.
    #[error("row {given} does not follow: row {expected} is next")]
    OutOfOrder {
        /// Its number.
        given: Seq,
        /// The number that comes next.
        expected: Seq,
    },
    /// As much waits for the disk as may wait. Hold the row back, and look at `outage`.
    #[error("{rows} rows wait for the disk, no more are accepted")]
    Busy {
        /// How many rows wait.
        rows: usize,
        /// Why they wait, when that is known.
        outage: Option<Outage>,
    },
    /// The row is longer than [`ROW_BYTES_MAX`].
    #[error("the row has {bytes} bytes, more than {ROW_BYTES_MAX}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The log is closed or set aside.
    #[error("the log is closed")]
    Closed,
}

/// A row that was accepted. It is durable when the watermark reaches it.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// Which of the epochs since the log was opened.
    nth_epoch: u64,
    seq: Seq,
    lane: Arc<LaneShared>,
}

impl Ticket {
    /// Returns the number of the row.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Waits until the row is on disk, at most so long, and says whether it is. Blocks the thread.
    pub fn wait(&self, at_most: Duration) -> bool {
        self.lane.wait(Instant::now() + at_most, |inbox| {
            let begun = inbox.epochs_begun;
            begun > self.nth_epoch
                || (begun == self.nth_epoch && inbox.durable.1.size() >= self.seq.0)
        })
    }
}

/// How much one [`Log::range`] gives at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Rows.
    pub rows: usize,
    /// Bytes of rows; one longer row is given alone.
    pub bytes: usize,
}

/// Where a [`Log::range`] came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeEnd {
    /// At the limits, or because the reader said so: go on at `next`.
    More {
        /// The first row that was not given.
        next: EventPos,
    },
    /// At the durable head: `next` comes with the next notice.
    Head {
        /// The row that comes next.
        next: EventPos,
        /// The durable head when the reading began.
        head: Seq,
    },
    /// At the end of an epoch that was followed by another.
    EpochOver {
        /// Its last row that is kept.
        last: Seq,
    },
}

/// An open log. Clones are handles of the same log.
#[derive(Clone, Debug)]
pub struct Log {
    pub(crate) lane: Arc<LaneShared>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) options: Arc<LogOptions>,
    pub(crate) predecessor: Option<Predecessor>,
}

impl Log {
    /// Accepts `row` as number `seq`, which must be the next. Never blocks on the disk.
    pub fn append(&self, seq: Seq, row: impl Into<Arc<[u8]>>) -> Result<Ticket, AppendError> {
        self.append_all(seq, vec![row.into()])
    }

    /// Accepts rows, numbered from `first`, which must be the next; all of them or none.
    ///
    /// Rows that come together go to the disk together: the writer does not begin with the first of them.
    pub fn append_all(&self, first: Seq, rows: Vec<Arc<[u8]>>) -> Result<Ticket, AppendError> {
        let mut inbox = self.lane.lock();
        self.admit(&inbox, first, &rows)?;
        inbox.waiting_rows += rows.len();
        inbox.waiting_bytes += rows.iter().map(|row| row.len()).sum::<usize>();
        inbox.appended += rows.len() as u64;
        inbox.requests.extend((first.0..).zip(rows).map(Request::Row));
        let (nth_epoch, seq) = (inbox.epochs_asked, Seq(inbox.appended));
        self.wake(inbox);
        Ok(Ticket { nth_epoch, seq, lane: self.lane.clone() })
    }

    /// Says that rows are being made that will be appended at once, so that the writer is awake by then.
    pub fn announce(&self) {
        self.hub.announce();
    }

    /// Begins the next segment with `baseline`, whose rows are numbered from `first`.
    ///
    /// All of them are on disk in one transaction or none is. The segment before is sealed behind it.
    pub fn roll(&self, first: Seq, baseline: Vec<Arc<[u8]>>) -> Result<Ticket, AppendError> {
        let mut inbox = self.lane.lock();
        self.admit(&inbox, first, &baseline)?;
        let rows: Vec<Row> = (first.0..).zip(baseline).collect();
        inbox.appended += rows.len() as u64;
        inbox.waiting_rows += rows.len();
        inbox.waiting_bytes += rows.iter().map(|(_, row)| row.len()).sum::<usize>();
        let (nth_epoch, seq) = (inbox.epochs_asked, Seq(inbox.appended));
        self.submit(inbox, Request::Roll(rows));
        Ok(Ticket { nth_epoch, seq, lane: self.lane.clone() })
    }

    /// Begins another epoch after all that was appended; rows count from 1 again.
    ///
    /// Waits for the disk, at most so long; `None` says that it did not come to be in that time and
    /// still may. The predecessor belongs into the first event of the epoch.
    pub fn begin_epoch(
        &self,
        epoch: EpochId,
        at_most: Duration,
    ) -> Result<Option<Predecessor>, AppendError> {
        let mut inbox = self.lane.lock();
        if inbox.closed {
            return Err(AppendError::Closed);
        }
        inbox.epoch = epoch;
        inbox.appended = 0;
        inbox.epochs_asked += 1;
        let asked = inbox.epochs_asked;
        self.submit(inbox, Request::Epoch(epoch));
        if !self.lane.wait(Instant::now() + at_most, |inbox| inbox.epochs_begun >= asked) {
            return Ok(None);
        }
        let active = self.lane.lock().active.clone();
        Ok(active.meta().ok().and_then(|meta| meta.predecessor))
    }

    /// Has the head signed at once; the note comes as a notice.
    pub fn request_checkpoint(&self) {
        let inbox = self.lane.lock();
        if !inbox.closed {
            self.submit(inbox, Request::Checkpoint);
        }
    }

    /// Returns the durable head with its root.
    pub fn head(&self) -> Head {
        let (epoch, tree) = self.lane.lock().durable.clone();
        Head { epoch, seq: Seq(tree.size()), root: tree.root() }
    }

    /// Returns the number of the last durable row.
    pub fn durable_seq(&self) -> Seq {
        Seq(self.lane.lock().durable.1.size())
    }

    /// Returns the epoch and the number of the last row that was accepted.
    pub fn appended(&self) -> (EpochId, Seq) {
        let inbox = self.lane.lock();
        (inbox.epoch, Seq(inbox.appended))
    }

    /// Returns the epoch before the one that was opened or begun, for the first event.
    pub fn predecessor(&self) -> Option<Predecessor> {
        self.predecessor
    }

    /// Returns what keeps the log from being written at this moment.
    pub fn outage(&self) -> Option<Outage> {
        self.lane.lock().outage
    }

    /// Says whether a row that is appended at this moment would have to wait for the end of an outage.
    ///
    /// On a full disk rows may go on with the space of the reserve: that is an outage, and no row waits. When it is over
    /// a [`crate::store::LogNotice::Durable`] comes, also when it tells of no row.
    pub fn is_stuck(&self) -> bool {
        self.lane.lock().stuck
    }

    /// Gives `fold` the durable rows from the head of the newest segment on, its baseline first.
    ///
    /// The rows are read in place; `fold` ends the reading with `Break`. Returns the last row given.
    pub fn replay(
        &self,
        mut fold: impl FnMut(Seq, &[u8]) -> ControlFlow<()>,
    ) -> Result<Seq, ReadError> {
        let (active, first, last) = {
            let inbox = self.lane.lock();
            (inbox.active.clone(), inbox.active_first, inbox.durable.1.size())
        };
        scan(&active, first, last, Pace::Ahead, &mut fold)
    }

    /// Gives `fold` the rows on which this epoch builds, from the newest baseline before its beginning on.
    ///
    /// Rows that were set aside count as far as the epoch builds on them.
    pub fn replay_predecessor(
        &self,
        fold: impl FnMut(EventPos, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let Some(before) = self.predecessor else { return Ok(()) };
        let epochs = self.reader().epochs()?;
        let found = epochs.iter().find(|found| found.epoch == before.epoch);
        let found = found.ok_or(ReadError::UnknownEpoch(before.epoch))?;
        Salvage::of(found, before).replay(fold)
    }

    /// Gives `visit` the durable rows of one epoch from `from` on, as far as `limits` allow.
    ///
    /// May be called while the log is written; older epochs and segments are read from their files.
    pub fn range(
        &self,
        from: EventPos,
        limits: RangeLimits,
        mut visit: impl FnMut(EventPos, &[u8]) -> ControlFlow<()>,
    ) -> Result<RangeEnd, ReadError> {
        let (active, active_first, (epoch, tree)) = {
            let inbox = self.lane.lock();
            (inbox.active.clone(), inbox.active_first, inbox.durable.clone())
        };
        let mut next = from.seq.0.max(1);
        let mut left = limits;
        let stopped = Cell::new(false);
        let mut take = |pos: EventPos, row: &[u8]| {
            // The first row goes out whatever its size, or a reader could be stuck before it.
            if left.rows == 0 || (left.bytes < row.len() && left.rows != limits.rows) {
                stopped.set(true);
                return ControlFlow::Break(());
            }
            left.rows -= 1;
            left.bytes = left.bytes.saturating_sub(row.len());
            next = pos.seq.0 + 1;
            let flow = visit(pos, row);
            stopped.set(flow.is_break());
            flow
        };
        let is_newest = from.epoch == epoch;
        if !is_newest || from.seq.0.max(1) < active_first {
            let segments = layout::segments(&self.options.dir, from.epoch);
            let mut segments = segments.map_err(ReadError::io(&self.options.dir))?;
            segments.retain(|name| !is_newest || name.first < active_first);
            if segments.is_empty() {
                return Err(ReadError::UnknownEpoch(from.epoch));
            }
            let first = Seq(from.seq.0.max(1));
            read::epoch_rows(from.epoch, &segments, first, Pace::Stepwise, &mut take)?;
        }
        if is_newest && !stopped.get() {
            let first = from.seq.0.max(active_first);
            let take = |seq, row: &[u8]| take(EventPos { epoch, seq }, row);
            scan(&active, first, tree.size(), Pace::Stepwise, take)?;
        }
        let next = EventPos { epoch: from.epoch, seq: Seq(next) };
        Ok(match (stopped.get(), is_newest) {
            (true, _) => RangeEnd::More { next },
            (false, true) => RangeEnd::Head { next, head: Seq(tree.size()) },
            (false, false) => RangeEnd::EpochOver { last: Seq(next.seq.0 - 1) },
        })
    }

    /// Returns a reader of the files of this log, for what spans epochs.
    pub fn reader(&self) -> LogReader {
        LogReader::new(&self.options.dir)
    }

    fn admit(&self, inbox: &Inbox, first: Seq, rows: &[Arc<[u8]>]) -> Result<(), AppendError> {
        if inbox.closed {
            return Err(AppendError::Closed);
        }
        let expected = Seq(inbox.appended + 1);
        if first != expected {
            return Err(AppendError::OutOfOrder { given: first, expected });
        }
        if let Some(row) = rows.iter().find(|row| row.len() > ROW_BYTES_MAX) {
            return Err(AppendError::TooLarge { bytes: row.len() });
        }
        // One request of any size is let in while nothing waits: a baseline may be large.
        let (rows, bytes) = (inbox.waiting_rows, inbox.waiting_bytes);
        if rows >= self.options.waiting_rows_max || bytes >= self.options.waiting_bytes_max {
            return Err(AppendError::Busy { rows, outage: inbox.outage });
        }
        Ok(())
    }

    pub(crate) fn detach(&self, reply: SyncSender<Detached>) {
        self.lane.lock().detach = Some(reply);
        self.hub.wake(self.lane.number);
    }

    fn submit(&self, mut inbox: std::sync::MutexGuard<'_, Inbox>, request: Request) {
        inbox.requests.push_back(request);
        self.wake(inbox);
    }

    /// Tells the writer that there is something to do, if it does not know.
    fn wake(&self, mut inbox: std::sync::MutexGuard<'_, Inbox>) {
        let wake = !std::mem::replace(&mut inbox.flagged, true);
        drop(inbox);
        if wake {
            self.hub.wake(self.lane.number);
        }
    }
}

/// Gives `fold` the rows `first` to `last` of a segment; returns the last row given.
///
/// By page, which is faster and needs no engine. When the engine reuses pages faster than they are
/// read, its own snapshot takes over where the reading was. The file may hold rows behind `last`
/// whose sync is under way, so a reader of durable rows has to say where they end.
pub(crate) fn scan(
    segment: &SegmentFile,
    first: u64,
    last: u64,
    pace: Pace,
    mut fold: impl FnMut(Seq, &[u8]) -> ControlFlow<()>,
) -> Result<Seq, ReadError> {
    let mut given = Seq(first.saturating_sub(1));
    let mut ended = given.0 >= last;
    if ended {
        return Ok(given);
    }
    let mut give = |seq: Seq, row: &[u8]| {
        given = seq;
        ended = fold(seq, row).is_break() || seq.0 >= last;
        if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut give = |seq, row: &[u8]| give(Seq(seq), row);
    let by_page = read::segment_rows(segment.path(), first, pace, &mut give);
    match by_page {
        Err(ReadError::Damaged { .. }) if !ended && segment.is_open() => {
            let next = given.0 + 1;
            scan_snapshot(segment, next, |seq, row| {
                given = seq;
                if fold(seq, row).is_break() || seq.0 >= last {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
            Ok(given)
        }
        Err(error) => Err(error),
        Ok(_) => Ok(given),
    }
}

/// Gives `fold` the rows of an open segment from `first` on, as of the last commit.
pub(crate) fn scan_snapshot(
    segment: &SegmentFile,
    first: u64,
    mut fold: impl FnMut(Seq, &[u8]) -> ControlFlow<()>,
) -> Result<Seq, SegmentError> {
    let events = segment.read()?.open_table(EVENTS)?;
    let mut last = Seq(first.saturating_sub(1));
    for row in events.range(first..)? {
        let (seq, bytes) = row?;
        last = Seq(seq.value());
        if fold(last, bytes.value()).is_break() {
            break;
        }
    }
    Ok(last)
}
