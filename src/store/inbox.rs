//! Where an owner's requests wait for the writer, and where the writer says how far it has come.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::domain::id::EpochId;
use crate::domain::tree::Frontier;
use crate::store::segment::{Row, SegmentFile};
use crate::store::{LogNotice, Outage};
use crate::wire::note::NoteSigner;

/// What an owner asks of the writer, in the order in which it was asked.
pub(crate) enum Request {
    Row(Row),
    /// Begins the next segment with these rows.
    Roll(Vec<Row>),
    /// Begins another epoch, with an empty log.
    Epoch(EpochId),
    /// Signs the head at once.
    Checkpoint,
}

/// What the owner gave to the writer, given back.
pub(crate) struct Detached {
    pub(crate) signer: Option<Box<dyn NoteSigner>>,
    /// The lock of the folder.
    pub(crate) lock: Arc<File>,
}

/// Whoever is told of what happens to a log.
pub(crate) type Notices = Arc<dyn Fn(LogNotice) + Send + Sync>;

/// What the handle and the writer share.
pub(crate) struct LaneShared {
    pub(crate) number: u64,
    inbox: Mutex<Inbox>,
    progress: Condvar,
    pub(crate) notices: Notices,
}

/// The requests that wait, and how far the log has come.
pub(crate) struct Inbox {
    pub(crate) requests: VecDeque<Request>,
    /// The lane stands in the hub's list.
    pub(crate) flagged: bool,
    /// The epoch of the next row that is appended.
    pub(crate) epoch: EpochId,
    /// How many epochs were asked for since the log was opened, and how many of them have begun.
    pub(crate) epochs_asked: u64,
    pub(crate) epochs_begun: u64,
    /// The last row that was accepted.
    pub(crate) appended: u64,
    /// Rows and bytes that are accepted and not yet durable.
    pub(crate) waiting_rows: usize,
    pub(crate) waiting_bytes: usize,
    /// The last row of the epoch that is on disk, with the tree up to it.
    pub(crate) durable: (EpochId, Frontier),
    pub(crate) active: Arc<SegmentFile>,
    pub(crate) active_first: u64,
    pub(crate) outage: Option<Outage>,
    /// What is in hand cannot be written at the moment, so what comes would only wait behind it.
    pub(crate) stuck: bool,
    /// Asks the writer to let go of the log, before anything else.
    pub(crate) detach: Option<SyncSender<Detached>>,
    pub(crate) closed: bool,
}

impl LaneShared {
    pub(crate) fn new(number: u64, inbox: Inbox, notices: Notices) -> Self {
        Self { number, inbox: Mutex::new(inbox), progress: Condvar::new(), notices }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Each change to the inbox is complete before anything that could panic.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` or the deadline, and says whether it came to be.
    pub(crate) fn wait(&self, deadline: Instant, mut done: impl FnMut(&Inbox) -> bool) -> bool {
        let mut inbox = self.lock();
        loop {
            if done(&inbox) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || inbox.closed {
                return false;
            }
            let waited = self.progress.wait_timeout(inbox, left);
            inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wakes whoever waits, to look again.
    pub(crate) fn notify(&self) {
        self.progress.notify_all();
    }

    /// Tells the owner, and whoever waits.
    pub(crate) fn tell(&self, notice: LogNotice) {
        match &notice {
            LogNotice::Unavailable { kind, .. } => self.lock().outage = Some(*kind),
            LogNotice::Recovered => self.lock().outage = None,
            LogNotice::Durable { .. }
            | LogNotice::SegmentFull
            | LogNotice::Checkpoint { .. }
            | LogNotice::Sealed { .. }
            | LogNotice::RootChecked { .. }
            | LogNotice::Damaged { .. } => {}
        }
        // The owner first: others seldom wait.
        (self.notices)(notice);
        self.progress.notify_all();
    }
}

impl fmt::Debug for LaneShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneShared({})", self.number)
    }
}
