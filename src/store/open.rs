//! Opening a log: which epoch goes on, or why another must begin.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use crate::domain::id::{EpochId, Seq};
use crate::domain::tree::Frontier;
use crate::store::inbox::{Detached, Inbox, LaneShared, Notices};
use crate::store::lane::{Lane, create_segment};
use crate::store::mark::Mark;
use crate::store::quarantine::{self, Salvage};
use crate::store::read;
use crate::store::seal::{Sealer, Unsealed};
use crate::store::segment::{Birth, Predecessor, SegmentError, SegmentFile, SegmentMeta};
use crate::store::writer::{Hub, Writer};
use crate::store::{
    EventPos, Log, LogNotice, LogOptions, LogReader, ReadError, SegmentName, chain, check, layout,
};
use crate::wire::note::NoteSigner;

/// Says why a log could not be opened. Damage is no error: it leads to [`Opened::NeedsEpoch`].
#[derive(Debug, thiserror::Error)]
pub enum OpenLogError {
    /// The folder cannot be read or written.
    #[error("failed to read the log folder `{path}`")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A segment cannot be opened for a reason that is no damage: in use, no access, a bad disk.
    #[error("failed to open the segment `{path}`")]
    Segment {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: SegmentError,
    },
    /// The files of the log cannot be read.
    #[error("failed to read the log")]
    Read(#[from] ReadError),
    /// Another process, or another handle, has the log open.
    #[error("the log in `{path}` is in use")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The writer did not let go of the log in time.
    #[error("the writer is busy with the disk")]
    WriterBusy,
    /// The epoch that should begin exists already.
    #[error("the epoch {0:?} is already there")]
    EpochExists(EpochId),
}

/// Why another epoch must begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EpochReason {
    /// There is no log yet.
    FirstStart,
    /// The log does not hold what was written. Damaged files were set aside, none was deleted.
    Damaged {
        /// What is wrong.
        why: String,
    },
}

/// What opening a log led to.
#[derive(Debug)]
pub enum Opened {
    /// The newest epoch goes on.
    Continues(Log),
    /// An epoch must begin: [`Vacant::begin`].
    NeedsEpoch(Vacant),
}

/// A log without an epoch to go on with.
#[derive(Debug)]
pub struct Vacant {
    parts: Parts,
    reason: EpochReason,
    salvage: Option<Salvage>,
}

struct Parts {
    options: Arc<LogOptions>,
    hub: Arc<Hub>,
    owner: Detached,
    notices: Notices,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parts({:?})", self.options)
    }
}

impl Log {
    /// Opens the log in the folder of `options`, to be written by `writer`.
    ///
    /// Returns when the rows can be read. That they lead to the signed root is checked behind it and
    /// told as [`LogNotice::RootChecked`] or [`LogNotice::Damaged`].
    pub fn open(
        options: LogOptions,
        writer: &Writer,
        signer: Option<Box<dyn NoteSigner>>,
        notices: impl Fn(LogNotice) + Send + Sync + 'static,
    ) -> Result<Opened, OpenLogError> {
        let options = Arc::new(options);
        let notices = Arc::new(notices);
        let folder = |source| OpenLogError::Folder { path: options.dir.clone(), source };
        std::fs::create_dir_all(&options.dir).map_err(folder)?;
        let lock = lock_folder(&options.dir)?;
        let hub = writer.hub();
        let owner = Detached { signer, lock };
        let parts = Parts { options: options.clone(), hub, owner, notices };

        let epochs = LogReader::new(&options.dir).epochs()?;
        let Some(newest) = epochs.last() else {
            let reason = EpochReason::FirstStart;
            return Ok(Opened::NeedsEpoch(Vacant { parts, reason, salvage: None }));
        };
        let damaged = |parts, why: String| -> Result<Opened, OpenLogError> {
            let salvage = quarantine::set_aside(&options.dir, newest, None)?;
            let reason = EpochReason::Damaged { why };
            Ok(Opened::NeedsEpoch(Vacant { parts, reason, salvage: Some(salvage) }))
        };
        // A file that was set aside and no epoch after it: the start that did so went no further.
        if !newest.aside.is_empty() {
            return damaged(parts, "a segment of the newest epoch was set aside".to_owned());
        }
        let Some((active, older)) = newest.segments.split_last() else {
            return damaged(parts, "the newest epoch has no segment".to_owned());
        };
        let mark = Mark::read(&parts.owner.lock);
        if let Some(mark) = mark
            && epochs.iter().all(|here| here.epoch != mark.epoch)
        {
            return damaged(parts, format!("the epoch {} is gone", mark.epoch.token()));
        }
        match open_active(&options, active) {
            Ok((_, meta)) if meta.sealed => {
                damaged(parts, "the segment after the last one is missing".to_owned())
            }
            // The newest commit is not whole, or an older file took the place of this one. What a power cut tears
            // was not acknowledged.
            Ok((segment, meta)) if mark.is_some_and(|mark| is_short(&meta, mark)) => {
                drop(segment);
                let (have, told) = (meta.head.size(), mark.map_or(0, |mark| mark.size));
                damaged(parts, format!("{told} events were acknowledged and {have} are here"))
            }
            Ok((segment, meta)) => Ok(Opened::Continues(go_on(parts, segment, &meta, older))),
            Err(source) if source.is_damage() => damaged(parts, chain(&source)),
            Err(source) => Err(OpenLogError::Segment { path: active.path.clone(), source }),
        }
    }

    /// Closes the log because row `from` cannot be believed, and sets its file aside.
    ///
    /// The owner has folded its state up to the row before, and begins another epoch from there.
    /// Waits for the writer at most so long.
    pub fn quarantine_from(
        self,
        from: Seq,
        why: String,
        at_most: Duration,
    ) -> Result<Vacant, OpenLogError> {
        let (reply, detached) = sync_channel(1);
        self.detach(reply);
        let detached = detached.recv_timeout(at_most).map_err(|_| OpenLogError::WriterBusy)?;
        let epoch = self.head().epoch;
        let epochs = self.reader().epochs()?;
        let found = epochs.iter().find(|found| found.epoch == epoch);
        let found = found.ok_or(ReadError::UnknownEpoch(epoch))?;
        let salvage = quarantine::set_aside(&self.options.dir, found, Some(from))?;
        let parts = Parts {
            options: self.options.clone(),
            hub: self.hub.clone(),
            owner: detached,
            notices: self.lane.notices.clone(),
        };
        let reason = EpochReason::Damaged { why };
        Ok(Vacant { parts, reason, salvage: Some(salvage) })
    }
}

impl Vacant {
    /// Returns why another epoch must begin.
    pub fn reason(&self) -> &EpochReason {
        &self.reason
    }

    /// Returns the epoch before, as far as it is sound.
    pub fn predecessor(&self) -> Option<Predecessor> {
        self.salvage.as_ref().map(|salvage| salvage.predecessor)
    }

    /// Gives `fold` the sound rows of the newest segment that has any, its baseline first.
    pub fn replay(
        &self,
        fold: impl FnMut(EventPos, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        self.salvage.as_ref().map_or(Ok(()), |salvage| salvage.replay(fold))
    }

    /// Begins `epoch` with an empty log; its first row is number 1.
    pub fn begin(self, epoch: EpochId) -> Result<Log, OpenLogError> {
        let options = &self.parts.options;
        let path = layout::segment_path(&options.dir, epoch, 1);
        // A folder alone is what a power cut leaves of an epoch that never began.
        if LogReader::new(&options.dir).epochs()?.iter().any(|there| there.epoch == epoch) {
            return Err(OpenLogError::EpochExists(epoch));
        }
        let empty = Frontier::default();
        let birth = Birth { epoch, base: &empty, baseline: 0, predecessor: self.predecessor() };
        let failed = |source| OpenLogError::Segment { path, source };
        let made = create_segment(options, &birth, &[], &empty)
            .and_then(|segment| segment.meta().map(|meta| (segment, meta)));
        let (segment, meta) = made.map_err(failed)?;
        Ok(go_on(self.parts, segment, &meta, &[]))
    }
}

/// Says whether rows that were acknowledged are not here.
fn is_short(meta: &SegmentMeta, mark: Mark) -> bool {
    meta.epoch == mark.epoch && meta.head.size() < mark.size
}

/// Takes the lock that keeps a second owner out; it goes with the last handle of the log.
fn lock_folder(dir: &Path) -> Result<Arc<File>, OpenLogError> {
    let folder = |source| OpenLogError::Folder { path: dir.to_owned(), source };
    // Never cut: it holds the mark, also when another process has the log.
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(layout::lock_path(dir)).map_err(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(Arc::new(file)),
        Err(TryLockError::WouldBlock) => Err(OpenLogError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(folder(source)),
    }
}

/// Finds out what the active segment holds; the engine may be opened behind it.
fn open_active(
    options: &LogOptions,
    name: &SegmentName,
) -> Result<(SegmentFile, SegmentMeta), SegmentError> {
    let wrong_name = || SegmentError::Malformed("its name is not the one that it was made with");
    let of_name = |meta: &SegmentMeta| meta.epoch == name.epoch && meta.first() == name.first;
    // After a kill -9 the last commit may be in the page cache alone; what is replayed counts as
    // durable, so it has to be.
    File::open(&name.path).and_then(|file| file.sync_data()).map_err(SegmentError::Open)?;
    let Some(pages) = quarantine::pre_check(&name.path)? else {
        // The engine falls back on the commit before, so it has to say which rows there are.
        let segment = SegmentFile::open(&name.path, &options.disk, options.cache_bytes)?;
        let meta = segment.meta()?;
        return if of_name(&meta) { Ok((segment, meta)) } else { Err(wrong_name()) };
    };
    let meta = match read::meta_of(&pages, &name.path) {
        Ok(meta) => meta,
        Err(ReadError::Io { source, .. }) => return Err(SegmentError::Open(source)),
        Err(error) => return Err(SegmentError::Refused(error.to_string())),
    };
    let segment = SegmentFile::unopened(&name.path, &options.disk, options.cache_bytes);
    if of_name(&meta) { Ok((segment, meta)) } else { Err(wrong_name()) }
}

/// Gives an open segment to the writer and makes the handle.
fn go_on(parts: Parts, segment: SegmentFile, meta: &SegmentMeta, older: &[SegmentName]) -> Log {
    let Parts { options, hub, owner, notices } = parts;
    let segment = Arc::new(segment);
    let inbox = Inbox {
        requests: Default::default(),
        flagged: false,
        epoch: meta.epoch,
        epochs_asked: 0,
        epochs_begun: 0,
        appended: meta.head.size(),
        waiting_rows: 0,
        waiting_bytes: 0,
        durable: (meta.epoch, meta.head.clone()),
        active: segment.clone(),
        active_first: meta.first(),
        outage: None,
        stuck: false,
        detach: None,
        closed: false,
    };
    // What is replayed counts as acknowledged.
    Mark { epoch: meta.epoch, size: meta.head.size() }.write(&owner.lock);
    let lane = Arc::new(LaneShared::new(hub.number_lane(), inbox, notices));
    check_behind(&lane, &segment, meta);
    let mut sealer = Sealer::new(options.clone());
    for name in older {
        // A start or a crash may have come between a segment and its sealing.
        if read::read_meta(&name.path).is_ok_and(|meta| !meta.sealed) {
            sealer.seal(Unsealed::Closed(name.path.clone()), lane.clone());
        }
    }
    hub.attach(Lane::new(lane.clone(), options.clone(), owner, segment, meta, sealer));
    Log { lane, hub, options, predecessor: meta.predecessor }
}

/// Checks the rows against the tree on a thread of its own, so that folding need not wait for it.
fn check_behind(lane: &Arc<LaneShared>, segment: &Arc<SegmentFile>, meta: &SegmentMeta) {
    let (lane, segment, meta) = (lane.clone(), segment.clone(), meta.clone());
    let check = move || lane.tell(check::check_roots(&segment, &meta));
    if let Err(error) = thread::Builder::new().name("log-check".to_owned()).spawn(check) {
        tracing::warn!(%error, "the rows of the log are not checked against their root");
    }
}
