//! What the writer thread keeps for one log: its active segment, its tree, and what is not yet durable.

use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::id::{EpochId, Seq};
use crate::domain::tree::{self, Frontier};
use crate::store::reserve::Reserve;
use crate::store::seal::{Sealer, Unsealed};
use crate::store::segment::{Addition, Birth, Predecessor, Row, SegmentError, SegmentFile};
use crate::store::writer::Hub;
use crate::store::{LogNotice, LogOptions, Outage, layout};
use crate::wire::note::{Checkpoint, Note, NoteSigner};

/// The most rows in one commit.
const BATCH_ROWS_MAX: usize = 4096;

/// The most bytes in one commit; one longer row goes alone.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// How long after a change the head is signed, and so the most often that it is.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);

/// The first wait after a failed write; it doubles up to [`RETRY_MAX`], with jitter.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What an owner asks of the writer, in the order in which it was asked.
pub(crate) enum Request {
    Row(Row),
    /// Begins the next segment with these rows.
    Roll(Vec<Row>),
    /// Begins another epoch, with an empty log.
    Epoch(EpochId),
    /// Signs the head at once.
    Checkpoint,
    /// Lets go of the log: closes the file and gives the signer back.
    Detach(SyncSender<Option<Box<dyn NoteSigner>>>),
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

    /// Tells the owner, and whoever waits.
    pub(crate) fn tell(&self, notice: LogNotice) {
        match &notice {
            LogNotice::Unavailable { kind, .. } => self.lock().outage = Some(*kind),
            LogNotice::Recovered => self.lock().outage = None,
            _ => {}
        }
        self.progress.notify_all();
        (self.notices)(notice);
    }
}

impl fmt::Debug for LaneShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneShared({})", self.number)
    }
}

/// What is being written; it stays until it is on disk.
enum Work {
    Rows { rows: Vec<Row>, bytes: usize, head: Frontier },
    Roll { rows: Vec<Row>, bytes: usize, head: Frontier },
    Epoch(EpochId),
    Checkpoint(Note),
}

/// Why a lane is not written at the moment.
struct Trouble {
    kind: Outage,
    retry_at: Instant,
    attempt: u32,
    /// The file has to be opened again first.
    reopen: bool,
}

/// One log in the hands of the writer thread.
pub(crate) struct Lane {
    shared: Arc<LaneShared>,
    options: Arc<LogOptions>,
    signer: Option<Box<dyn NoteSigner>>,
    active: Arc<SegmentFile>,
    epoch: EpochId,
    /// The tree up to the last durable row.
    head: Frontier,
    work: Option<Work>,
    trouble: Option<Trouble>,
    /// The owner was told of an outage that has not ended.
    told: Option<Outage>,
    checkpoint_due: Option<Instant>,
    reserve: Reserve,
    full_told: bool,
    sealer: Sealer,
}

impl Lane {
    pub(crate) fn new(
        shared: Arc<LaneShared>,
        options: Arc<LogOptions>,
        signer: Option<Box<dyn NoteSigner>>,
        active: Arc<SegmentFile>,
        head: Frontier,
        epoch: EpochId,
        sealer: Sealer,
    ) -> Self {
        let reserve = Reserve::new(&options);
        Self {
            shared,
            options,
            signer,
            active,
            epoch,
            head,
            work: None,
            trouble: None,
            told: None,
            checkpoint_due: None,
            reserve,
            full_told: false,
            sealer,
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.shared.number
    }

    /// Returns when this lane wants a turn without being asked; `None` when nothing changed.
    pub(crate) fn due(&self) -> Option<Instant> {
        match &self.trouble {
            Some(trouble) => Some(trouble.retry_at),
            None => [self.checkpoint_due, self.reserve.due()].into_iter().flatten().min(),
        }
    }

    /// Does what there is to do; says whether the lane is finished for ever.
    pub(crate) fn turn(&mut self, hub: &Hub) -> bool {
        if self.trouble.as_ref().is_some_and(|trouble| trouble.retry_at > Instant::now()) {
            // The inbox keeps what came; the flag goes down so that it can be raised again.
            self.shared.lock().flagged = false;
            return false;
        }
        while self.take_work() {
            if !self.write(hub) {
                return false;
            }
        }
        self.mend_reserve();
        self.shared.lock().closed
    }

    /// Writes what was accepted, signs the head and closes the file.
    pub(crate) fn close(&mut self, hub: &Hub) {
        self.trouble = None;
        let mut sound = true;
        while sound && self.take_work() {
            sound = self.write(hub);
        }
        if sound && self.checkpoint_due.is_some() {
            self.work = self.sign();
            self.write(hub);
        }
        self.sealer.join();
        // What could not be closed is repaired when it is opened.
        drop(self.active.close());
        self.shared.lock().closed = true;
        self.shared.progress.notify_all();
    }

    /// Makes sure that there is work in hand; says whether there is.
    fn take_work(&mut self) -> bool {
        if self.work.is_some() {
            return true;
        }
        let mut inbox = self.shared.lock();
        let work = match inbox.requests.pop_front() {
            None => {
                inbox.flagged = false;
                let due = self.checkpoint_due.is_some_and(|due| due <= Instant::now());
                if due { self.sign() } else { None }
            }
            Some(Request::Checkpoint) => self.sign(),
            Some(Request::Epoch(epoch)) => Some(Work::Epoch(epoch)),
            Some(Request::Detach(reply)) => {
                inbox.closed = true;
                drop(inbox);
                self.sealer.join();
                drop(self.active.close());
                // Whoever asked may have given up waiting; the log is closed all the same.
                drop(reply.send(self.signer.take()));
                return false;
            }
            Some(Request::Roll(rows)) => {
                drop(inbox);
                let (bytes, head) = self.hashed(&rows);
                self.work = Some(Work::Roll { rows, bytes, head });
                return true;
            }
            Some(Request::Row(first)) => {
                let mut bytes = first.1.len();
                let mut rows = vec![first];
                while let Some(Request::Row(row)) = inbox.requests.front() {
                    bytes += row.1.len();
                    if rows.len() == BATCH_ROWS_MAX || bytes > BATCH_BYTES_MAX {
                        break;
                    }
                    let Some(Request::Row(row)) = inbox.requests.pop_front() else { break };
                    rows.push(row);
                }
                drop(inbox);
                let (bytes, head) = self.hashed(&rows);
                self.work = Some(Work::Rows { rows, bytes, head });
                return true;
            }
        };
        drop(inbox);
        self.work = work;
        self.work.is_some()
    }

    fn hashed(&self, rows: &[Row]) -> (usize, Frontier) {
        let mut head = self.head.clone();
        let mut bytes = 0;
        for (_, row) in rows {
            head.push(tree::leaf(row));
            bytes += row.len();
        }
        (bytes, head)
    }

    /// Writes the work in hand; on failure keeps it and says when to try again.
    fn write(&mut self, hub: &Hub) -> bool {
        let Some(work) = self.work.take() else { return true };
        hub.commit_begins(&self.shared);
        let mut result = self.attempt(&work);
        let was_full = matches!(&result, Err(error) if error.outage() == Outage::Full);
        if was_full && self.reserve.release(&*self.options.disk) {
            self.outage(Outage::Full, "no space is left; writing on the reserve".to_owned());
            self.trouble = Some(Trouble {
                kind: Outage::Full,
                retry_at: Instant::now(),
                attempt: 0,
                reopen: true,
            });
            result = self.attempt(&work);
        }
        let stalled = hub.commit_ends();
        if stalled {
            self.told.get_or_insert(Outage::Stalled);
        }
        match result {
            Ok(()) => {
                self.trouble = None;
                self.adopt(work);
                self.recover();
                true
            }
            Err(error) => {
                self.work = Some(work);
                self.fail(&error);
                false
            }
        }
    }

    fn fail(&mut self, error: &SegmentError) {
        let attempt = self.trouble.as_ref().map_or(0, |trouble| trouble.attempt + 1);
        let kind = error.outage();
        let wait = jittered(RETRY_FIRST.saturating_mul(1 << attempt.min(10)).min(RETRY_MAX));
        let retry_at = Instant::now() + wait;
        let news = self.trouble.as_ref().is_none_or(|trouble| trouble.kind != kind);
        self.trouble = Some(Trouble { kind, retry_at, attempt, reopen: true });
        if news || self.told.is_none() {
            self.outage(kind, crate::store::chain(error));
        }
    }

    fn outage(&mut self, kind: Outage, why: String) {
        self.told = Some(kind);
        self.shared.tell(LogNotice::Unavailable { kind, why });
    }

    /// Tells the owner that an outage is over: for a full disk, when the reserve is whole again.
    fn recover(&mut self) {
        let is_over = match self.told {
            None => false,
            Some(Outage::Full) => self.trouble.is_none() && self.reserve.is_whole(),
            Some(Outage::Stalled | Outage::Failed) => self.trouble.is_none(),
        };
        if is_over {
            self.told = None;
            self.shared.tell(LogNotice::Recovered);
        }
    }

    fn attempt(&mut self, work: &Work) -> Result<(), SegmentError> {
        if self.trouble.as_ref().is_some_and(|trouble| trouble.reopen) {
            self.active.reopen()?;
            let found = self.active.meta()?.head;
            if let Some(trouble) = &mut self.trouble {
                trouble.reopen = false;
            }
            if let Work::Rows { head, .. } = work
                && found == *head
            {
                // The commit whose sync failed is on the disk after all: opening read it from there.
                return Ok(());
            }
            if found != self.head {
                return Err(SegmentError::Malformed("its tree is not the one that was written"));
            }
        }
        match work {
            Work::Rows { rows, head, .. } => {
                self.active.add(&Addition { rows, head, checkpoint: None })
            }
            Work::Roll { rows, head, .. } => self.begin_segment(self.epoch, rows, head, None),
            Work::Epoch(epoch) => {
                let predecessor = Predecessor {
                    epoch: self.epoch,
                    size: self.head.size(),
                    root: self.head.root(),
                };
                self.begin_segment(*epoch, &[], &Frontier::default(), Some(predecessor))
            }
            Work::Checkpoint(note) => {
                let note = note.to_string();
                let checkpoint = Some((self.head.size(), note.as_bytes()));
                self.active.add(&Addition { rows: &[], head: &self.head, checkpoint })
            }
        }
    }

    fn begin_segment(
        &mut self,
        epoch: EpochId,
        rows: &[Row],
        head: &Frontier,
        predecessor: Option<Predecessor>,
    ) -> Result<(), SegmentError> {
        let base = if predecessor.is_some() { Frontier::default() } else { self.head.clone() };
        let birth = Birth { epoch, base: &base, baseline: head.size(), predecessor };
        let fresh = create_segment(&self.options, &birth, rows, head)?;
        let sealed = std::mem::replace(&mut self.active, Arc::new(fresh));
        self.sealer.seal(Unsealed::Open(sealed), self.shared.clone());
        Ok(())
    }

    /// Signs the durable head, as work that puts the note beside it.
    fn sign(&self) -> Option<Work> {
        let signer = self.signer.as_ref()?;
        let checkpoint = Checkpoint {
            origin: self.options.origin_line(self.epoch),
            size: self.head.size(),
            root: self.head.root(),
        };
        let text = checkpoint.to_string();
        Some(Work::Checkpoint(Note { signatures: vec![signer.sign(&text)], text }))
    }

    /// Takes over what is on disk, and tells the owner.
    fn adopt(&mut self, work: Work) {
        let (count, bytes, fresh) = match work {
            Work::Rows { rows, bytes, head } => {
                self.head = head;
                (rows.len(), bytes, false)
            }
            Work::Roll { rows, bytes, head } => {
                self.head = head;
                self.full_told = false;
                (rows.len(), bytes, true)
            }
            Work::Epoch(epoch) => {
                self.epoch = epoch;
                self.head = Frontier::default();
                self.full_told = false;
                (0, 0, true)
            }
            Work::Checkpoint(note) => {
                self.checkpoint_due = None;
                self.shared.tell(LogNotice::Checkpoint { note });
                return;
            }
        };
        if self.signer.is_some() && count > 0 {
            self.checkpoint_due.get_or_insert_with(|| Instant::now() + CHECKPOINT_AFTER);
        }
        let seq = Seq(self.head.size());
        let mut inbox = self.shared.lock();
        inbox.durable = (self.epoch, self.head.clone());
        inbox.waiting_rows -= count;
        inbox.waiting_bytes -= bytes;
        if fresh {
            inbox.active = self.active.clone();
            inbox.active_first = seq.0 + 1 - count as u64;
        }
        drop(inbox);
        self.shared.tell(LogNotice::Durable { epoch: self.epoch, seq });
        self.notice_full_segment();
    }

    fn notice_full_segment(&mut self) {
        let size = layout::allocated_bytes(self.active.path()).unwrap_or(0);
        if !self.full_told && size >= self.options.segment_bytes {
            self.full_told = true;
            self.shared.tell(LogNotice::SegmentFull);
        }
    }

    fn mend_reserve(&mut self) {
        if self.reserve.mend(&*self.options.disk) {
            self.recover();
        }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane({}, {:?})", self.shared.number, self.active)
    }
}

/// Makes a segment that is on disk, whole, before its name appears.
pub(crate) fn create_segment(
    options: &LogOptions,
    birth: &Birth<'_>,
    rows: &[Row],
    head: &Frontier,
) -> Result<SegmentFile, SegmentError> {
    let path = layout::segment_path(&options.dir, birth.epoch, birth.base.size() + 1);
    let unfinished = layout::unfinished_path(&path);
    let make = || {
        let folder = layout::epoch_dir(&options.dir, birth.epoch);
        std::fs::create_dir_all(&folder)?;
        layout::sync_parent(&folder)?;
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    };
    make().map_err(SegmentError::Open)?;
    let file = SegmentFile::open(&unfinished, &options.disk, options.cache_bytes)?;
    file.begin(birth, &Addition { rows, head, checkpoint: None })?;
    let publish = || {
        std::fs::rename(&unfinished, &path)?;
        layout::sync_parent(&path)
    };
    publish().map_err(SegmentError::Open)?;
    Ok(file.moved_to(path))
}

/// Spreads a wait over half to one and a half of its length.
pub(crate) fn jittered(wait: Duration) -> Duration {
    // Without randomness the wait is merely not spread.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    wait.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX))
}
