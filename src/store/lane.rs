//! What the writer thread keeps for one log: its active segment, its tree, and what is not yet durable.

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::domain::id::{EpochId, Seq};
use crate::domain::tree::{self, Frontier};
use crate::retry;
use crate::store::inbox::{Detached, LaneShared, Request};
use crate::store::mark::Mark;
use crate::store::reserve::Reserve;
use crate::store::seal::{Sealer, Unsealed};
use crate::store::segment::{
    Addition, Birth, Pages, Predecessor, Row, SegmentError, SegmentFile, SegmentMeta,
};
use crate::store::writer::Hub;
use crate::store::{LogNotice, LogOptions, Outage, chain, layout};
use crate::wire::note::{Checkpoint, Note, NoteSigner};

/// The most rows in one commit.
const BATCH_ROWS_MAX: usize = 4096;

/// The most bytes in one commit; one longer row goes alone.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// How long after a change the head is signed, and so the most often that it is.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);

/// The first wait after a failed write; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

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
    /// Keeps a second owner out of the folder; it goes with the lane.
    lock: Arc<File>,
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
    /// The pages were checked and their rows are being folded; the engine has yet to open the file.
    unopened: bool,
    /// The file is damaged: requests but the last one, to let go, are not served.
    given_up: bool,
}

impl Lane {
    pub(crate) fn new(
        shared: Arc<LaneShared>,
        options: Arc<LogOptions>,
        owner: Detached,
        active: Arc<SegmentFile>,
        meta: &SegmentMeta,
        sealer: Sealer,
    ) -> Self {
        let mut reserve = Reserve::new(&options);
        // Before the first row: rows must not take the space that is meant for a full disk.
        reserve.mend(&*options.disk);
        Self {
            unopened: !active.is_open(),
            given_up: false,
            shared,
            options,
            signer: owner.signer,
            lock: owner.lock,
            active,
            epoch: meta.epoch,
            head: meta.head.clone(),
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
            None if self.given_up => None,
            None if self.unopened => Some(Instant::now()),
            None => [self.checkpoint_due, self.reserve.due()].into_iter().flatten().min(),
        }
    }

    /// Does what there is to do; says whether the lane is finished for ever.
    pub(crate) fn turn(&mut self, hub: &Hub) -> bool {
        let detach = self.shared.lock().detach.take();
        if let Some(reply) = detach {
            self.let_go();
            // Whoever asked may have given up waiting; the log is closed all the same.
            let detached = Detached { signer: self.signer.take(), lock: self.lock.clone() };
            drop(reply.send(detached));
            return true;
        }
        let waits = self.trouble.as_ref().is_some_and(|trouble| trouble.retry_at > Instant::now());
        if waits || self.given_up {
            // The inbox keeps what came; the flag goes down so that it can be raised again.
            self.shared.lock().flagged = false;
            return false;
        }
        if self.unopened && !self.open_engine() {
            return false;
        }
        while self.take_work() {
            if !self.write(hub) {
                return false;
            }
        }
        self.mend_reserve();
        false
    }

    /// Writes what was accepted, signs the head and closes the file.
    pub(crate) fn close(&mut self, hub: &Hub) {
        self.trouble = None;
        let mut sound = !self.given_up && (!self.unopened || self.open_engine());
        while sound && self.take_work() {
            sound = self.write(hub);
        }
        if sound && self.checkpoint_due.is_some() {
            self.work = self.sign();
            self.write(hub);
        }
        self.let_go();
    }

    fn let_go(&mut self) {
        self.sealer.join();
        // What could not be closed is repaired when it is opened.
        drop(self.active.close());
        self.shared.lock().closed = true;
        self.shared.notify();
    }

    /// Opens the file whose pages were checked; says whether rows can be written to it.
    fn open_engine(&mut self) -> bool {
        let opened = self.active.reopen(Pages::Checked).and_then(|()| self.active.meta());
        match opened {
            Ok(meta) if meta.head == self.head => {
                self.unopened = false;
                self.trouble = None;
                if std::mem::take(&mut self.shared.lock().stuck) {
                    let seq = Seq(self.head.size());
                    self.shared.tell(LogNotice::Durable { epoch: self.epoch, seq });
                }
                self.recover();
                return true;
            }
            Ok(_) => self.damaged("the engine sees other rows than its pages hold".to_owned()),
            Err(error) if error.is_damage() => self.damaged(chain(&error)),
            Err(error) => self.fail(&error),
        }
        false
    }

    /// Gives the log up; the owner sets it aside.
    fn damaged(&mut self, why: String) {
        self.unopened = false;
        // Nothing is written until the owner lets go of the file.
        self.given_up = true;
        self.shared.tell(LogNotice::Damaged { at: None, why });
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
                let was_stuck = std::mem::take(&mut self.shared.lock().stuck);
                self.adopt(work);
                if was_stuck {
                    let seq = Seq(self.head.size());
                    self.shared.tell(LogNotice::Durable { epoch: self.epoch, seq });
                }
                self.recover();
                true
            }
            Err(error) => {
                self.work = Some(work);
                if error.is_damage() {
                    self.damaged(chain(&error));
                } else {
                    self.fail(&error);
                }
                false
            }
        }
    }

    fn fail(&mut self, error: &SegmentError) {
        let attempt = self.trouble.as_ref().map_or(0, |trouble| trouble.attempt + 1);
        let kind = error.outage();
        let wait = retry::doubled(RETRY_FIRST, RETRY_MAX, attempt);
        let retry_at = Instant::now() + spread(wait);
        let news = self.trouble.as_ref().is_none_or(|trouble| trouble.kind != kind);
        self.trouble = Some(Trouble { kind, retry_at, attempt, reopen: true });
        self.shared.lock().stuck = true;
        if news || self.told.is_none() {
            self.outage(kind, chain(error));
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
            self.active.reopen(Pages::Unchecked)?;
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
        let is_epoch = matches!(work, Work::Epoch(_));
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
        inbox.epochs_begun += u64::from(is_epoch);
        inbox.waiting_rows -= count;
        inbox.waiting_bytes -= bytes;
        if fresh {
            inbox.active = self.active.clone();
            inbox.active_first = seq.0 + 1 - count as u64;
        }
        drop(inbox);
        self.shared.tell(LogNotice::Durable { epoch: self.epoch, seq });
        // Behind the telling, which somebody waits for.
        Mark { epoch: self.epoch, size: seq.0 }.write(&self.lock);
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
        } else if self.told.is_none() && self.reserve.lacks_space() {
            // The same as after the reserve was given up: what is left may not be spent on wishes.
            self.outage(Outage::Full, "no space is left for the reserve of the log".to_owned());
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
pub(crate) fn spread(wait: Duration) -> Duration {
    retry::drawn(wait / 2..=wait + wait / 2)
}
