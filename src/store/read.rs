//! Reading rows from files, by page: of older segments beside the writer, of any log from outside.

use std::fs::TryLockError;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::domain::code::Code;
use crate::domain::id::{EpochId, Seq};
use crate::domain::tree::SIZE_MAX;
use crate::store::ahead::{self, Pace};
use crate::store::btree::Leaf;
use crate::store::layout::{self, SegmentName};
use crate::store::pages::{Commit, PageFault, PageFile};
use crate::store::segment::{Predecessor, SegmentMeta};

/// How often a file that changes under the reader is read again before a fault is believed.
const RACES_MAX: usize = 5;

/// Says why rows could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system refused to read.
    #[error("failed to read `{path}`")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is damaged.
    #[error("`{path}` is damaged at offset {offset}: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, in bytes; 0 when it is the whole.
        offset: u64,
        /// How.
        why: String,
    },
    /// The rows asked for were dropped by retention.
    #[error("rows below {first} are no longer kept")]
    Dropped {
        /// The first row that is kept.
        first: Seq,
    },
    /// There is no such epoch here.
    #[error("the epoch {} is not here", .0.token())]
    UnknownEpoch(EpochId),
    /// The active segment could not be read.
    #[error("failed to read the active segment")]
    Active(#[from] crate::store::SegmentError),
}

impl ReadError {
    /// Returns the code by which whoever asked is told.
    pub fn code(&self) -> Code {
        match self {
            Self::UnknownEpoch(_) => Code::CURSOR_UNKNOWN,
            Self::Dropped { .. } => Code::CURSOR_GONE,
            Self::Damaged { .. } => Code::LOG_DAMAGED,
            Self::Io { .. } | Self::Active(_) => Code::FILE_UNREADABLE,
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn damaged(path: &Path, fault: &PageFault) -> Self {
        Self::Damaged { path: path.to_owned(), offset: fault.offset, why: fault.why.to_owned() }
    }
}

/// Where an event stands: which epoch, which row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventPos {
    /// The epoch.
    pub epoch: EpochId,
    /// The row.
    pub seq: Seq,
}

/// An epoch on disk.
#[derive(Clone, Debug)]
pub struct EpochOnDisk {
    /// The epoch.
    pub epoch: EpochId,
    /// The epoch before it, when its first segment is kept and names one.
    pub predecessor: Option<Predecessor>,
    /// Its segments, the oldest first.
    pub segments: Vec<SegmentName>,
    /// Files of it that were set aside because of damage.
    pub aside: Vec<PathBuf>,
    /// The hash tiles of its sealed segments, kept ones and dropped ones.
    pub tiles: Vec<SegmentName>,
}

/// The segments of a log that another process may own: read, never written, never locked.
#[derive(Clone, Debug)]
pub struct LogReader {
    dir: PathBuf,
}

impl LogReader {
    /// Reads the log in `dir`. In a live log the last rows may not be durable yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Returns what the files of the log take on the disk, in bytes.
    pub fn allocated_bytes(&self) -> u64 {
        let epochs = layout::epochs(&self.dir).unwrap_or_default();
        let segments = epochs.iter().flat_map(|epoch| layout::segments(&self.dir, *epoch));
        let files = segments.flatten().map(|segment| layout::allocated_bytes(&segment.path));
        files.flatten().sum()
    }

    /// Lists the epochs, the oldest first: in the order of their links, not of their numbers.
    pub fn epochs(&self) -> Result<Vec<EpochOnDisk>, ReadError> {
        let mut epochs = Vec::new();
        for epoch in layout::epochs(&self.dir).map_err(ReadError::io(&self.dir))? {
            let segments = layout::segments(&self.dir, epoch).map_err(ReadError::io(&self.dir))?;
            let aside = layout::quarantined(&self.dir, epoch).map_err(ReadError::io(&self.dir))?;
            let tiles = layout::tiles(&self.dir, epoch).map_err(ReadError::io(&self.dir))?;
            if segments.is_empty() && aside.is_empty() && tiles.is_empty() {
                continue; // A folder that was made, and then the power went.
            }
            // Any segment names the predecessor of its epoch; a damaged one may name none.
            let files = segments.iter().map(|name| &name.path).chain(&aside);
            let predecessor = files.into_iter().find_map(|file| read_meta(file).ok()?.predecessor);
            epochs.push(EpochOnDisk { epoch, predecessor, segments, aside, tiles });
        }
        Ok(by_links(epochs))
    }

    /// Says whether an agent has the log open at this moment.
    pub fn has_owner(&self) -> bool {
        let lock = std::fs::File::open(layout::lock_path(&self.dir));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Gives `visit` the rows from `from` to the end of the newest epoch, in order.
    ///
    /// A row that `visit` sees has passed the checksum of its page, no more: see
    /// [`verify`](crate::store::verify) for proof.
    pub fn rows(
        &self,
        from: Option<EventPos>,
        mut visit: impl FnMut(EventPos, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let epochs = self.epochs()?;
        let start = match from {
            None => 0,
            Some(from) => epochs
                .iter()
                .position(|epoch| epoch.epoch == from.epoch)
                .ok_or(ReadError::UnknownEpoch(from.epoch))?,
        };
        for (n, epoch) in epochs[start..].iter().enumerate() {
            let first = from.filter(|_| n == 0).map_or(Seq(0), |from| from.seq);
            let mut ended = false;
            epoch_rows(epoch.epoch, &epoch.segments, first, Pace::Ahead, &mut |pos, row| {
                let flow = visit(pos, row);
                ended = flow.is_break();
                flow
            })?;
            if ended {
                break;
            }
        }
        Ok(())
    }
}

/// Gives `visit` the rows of one epoch from `first` on; 0 means from the first that is kept.
pub(crate) fn epoch_rows(
    epoch: EpochId,
    segments: &[SegmentName],
    first: Seq,
    pace: Pace,
    visit: &mut impl FnMut(EventPos, &[u8]) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    let Some(oldest) = segments.first() else { return Ok(()) };
    if first.0 > 0 && first.0 < oldest.first {
        return Err(ReadError::Dropped { first: Seq(oldest.first) });
    }
    let begin = segments.iter().rposition(|name| name.first <= first.0).unwrap_or(0);
    let mut next = first.0.max(oldest.first);
    for name in &segments[begin..] {
        if name.first > next && name.first != segments[begin].first {
            let why = format!("rows {next} to {} are missing before it", name.first - 1);
            return Err(ReadError::Damaged { path: name.path.clone(), offset: 0, why });
        }
        let mut ended = false;
        next = segment_rows(&name.path, next, pace, &mut |seq, row| {
            let flow = visit(EventPos { epoch, seq: Seq(seq) }, row);
            ended = flow.is_break();
            flow
        })?;
        if ended {
            break;
        }
    }
    Ok(())
}

/// Gives `visit` the rows of a segment file from `from` on; returns the number after the last one.
pub(crate) fn segment_rows(
    path: &Path,
    from: u64,
    pace: Pace,
    visit: &mut impl FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> Result<u64, ReadError> {
    let mut next = from;
    let mut races = 0;
    let mut commit = Commit::Newest;
    loop {
        let pages = match open_at(path, commit) {
            Err(ReadError::Damaged { .. }) if commit == Commit::Newest => {
                commit = Commit::Older;
                continue;
            }
            opened => opened?,
        };
        let (mut damaged, mut fault) = (None, None);
        let mut ended = false;
        let from = Some(next);
        let mut take = |leaf: &Leaf<'_>| {
            if !leaf.is_sound {
                return ControlFlow::Break(());
            }
            let whole = leaf.entries(|key, row| {
                let seq = key.try_into().map(u64::from_le_bytes);
                let Some(seq) = seq.ok().filter(|seq| *seq < SIZE_MAX) else {
                    damaged = Some("a row has a number that no log has");
                    return ControlFlow::Break(());
                };
                if seq < next {
                    return ControlFlow::Continue(());
                }
                next = seq + 1;
                ended = visit(seq, row).is_break();
                if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let malformed = (!whole).then_some("a leaf is malformed");
            fault = damaged.or(malformed).map(|why| PageFault { offset: leaf.offset, why });
            if ended || fault.is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let walked = match pace {
            Pace::Stepwise => pages.walk("events", from, take),
            Pace::Ahead => ahead::walk(&pages, "events", from, |_| (), |leaf, ()| take(leaf)),
        };
        let faults = walked.map_err(ReadError::io(path))?;
        let Some(fault) = fault.or(faults.into_iter().next()).filter(|_| !ended) else {
            return Ok(next);
        };
        if races < RACES_MAX && pages.changed() {
            // The owner reused a page while it was read: go on from there.
            races += 1;
        } else if commit == Commit::Newest && !pages.is_clean() {
            // The newest commit is being written, or was when its writer died.
            commit = Commit::Older;
        } else {
            return Err(ReadError::damaged(path, &fault));
        }
    }
}

fn open_at(path: &Path, commit: Commit) -> Result<PageFile, ReadError> {
    let opened = PageFile::open_at(path, commit).map_err(ReadError::io(path))?;
    opened.map_err(|fault| ReadError::damaged(path, &fault))
}

/// Returns the newest checkpoint in a segment file: its size and its note.
pub(crate) fn last_checkpoint(path: &Path) -> Result<Option<(u64, Vec<u8>)>, ReadError> {
    let pages = open_at(path, Commit::Newest)?;
    let rows = table_rows(&pages, "checkpoints").map_err(ReadError::io(path))?;
    let number = |key: Vec<u8>| key.try_into().map(u64::from_le_bytes).ok();
    Ok(rows.into_iter().next_back().and_then(|(size, note)| Some((number(size)?, note))))
}

/// Reads what a segment file says about itself.
pub(crate) fn read_meta(path: &Path) -> Result<SegmentMeta, ReadError> {
    match open_at(path, Commit::Newest).and_then(|pages| meta_of(&pages, path)) {
        Err(ReadError::Damaged { .. }) => meta_of(&open_at(path, Commit::Older)?, path),
        read => read,
    }
}

/// Reads the meta rows of an open file, and the rows behind the head that stands there, as far as they are sound.
pub(crate) fn meta_of(pages: &PageFile, path: &Path) -> Result<SegmentMeta, ReadError> {
    let rows = table_rows(pages, "meta").map_err(ReadError::io(path))?;
    let malformed = |why: &str| ReadError::Damaged {
        path: path.to_owned(),
        offset: 0,
        why: format!("the segment is malformed: {why}"),
    };
    let meta = SegmentMeta::read(|name| {
        rows.iter().find(|(key, _)| key == name.as_bytes()).map(|(_, value)| value.clone())
    });
    let mut meta = meta.map_err(malformed)?;
    if meta.sealed {
        return Ok(meta);
    }
    let stands = meta.head.size();
    let (mut is_cut, mut is_foreign) = (false, false);
    let walked = pages.walk("events", Some(stands + 1), |leaf| {
        is_cut |= !leaf.is_sound;
        if is_cut {
            return ControlFlow::Break(());
        }
        let is_whole = leaf.entries(|key, row| {
            let seq = key.try_into().map_or(0, u64::from_le_bytes);
            // A row that does not follow on a page that is sound is no row of this log.
            is_foreign = seq > stands && !meta.follow(seq, row);
            if is_foreign { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        is_cut |= !is_whole && !is_foreign;
        if is_cut || is_foreign { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let faults = walked.map_err(ReadError::io(path))?;
    meta.is_cut = is_cut || !faults.is_empty();
    Ok(meta)
}

/// Copies the rows of a small table out of its sound pages.
pub(crate) fn table_rows(pages: &PageFile, table: &str) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut rows = Vec::new();
    pages.walk(table, None, |leaf| {
        if leaf.is_sound {
            leaf.entries(|key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            });
        }
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

/// Puts epochs into the order of their links; among equals, and in a circle, the number decides.
fn by_links(mut epochs: Vec<EpochOnDisk>) -> Vec<EpochOnDisk> {
    let mut ordered: Vec<EpochOnDisk> = Vec::with_capacity(epochs.len());
    while !epochs.is_empty() {
        let waits = |epoch: &EpochOnDisk| {
            let before = epoch.predecessor.map(|predecessor| predecessor.epoch);
            epochs.iter().any(|other| Some(other.epoch) == before && other.epoch != epoch.epoch)
        };
        let next = epochs.iter().position(|epoch| !waits(epoch)).unwrap_or(0);
        ordered.push(epochs.remove(next));
    }
    ordered
}
