//! What to do with a damaged log: set the file aside, and find how far its rows are sound.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::domain::id::Seq;
use crate::domain::tree::{self, Frontier};
use crate::store::ahead::Pace;
use crate::store::layout;
use crate::store::pages::{Commit, PageFile};
use crate::store::read::{EpochOnDisk, EventPos, ReadError, read_meta, segment_rows};
use crate::store::segment::{Predecessor, SegmentError};

/// The sound part of a damaged epoch.
#[derive(Clone, Debug)]
pub(crate) struct Salvage {
    /// The epoch, up to the last sound row.
    pub(crate) predecessor: Predecessor,
    /// The newest file with sound rows, and the first of them.
    newest: Option<(PathBuf, u64)>,
}

impl Salvage {
    /// Finds the newest file that holds rows of an epoch up to where the next one builds on it.
    pub(crate) fn of(epoch: &EpochOnDisk, predecessor: Predecessor) -> Self {
        let files = epoch.segments.iter().map(|name| &name.path).chain(&epoch.aside);
        let firsts = files.filter_map(|path| Some((path.clone(), read_meta(path).ok()?.first())));
        let newest = firsts.filter(|(_, first)| *first <= predecessor.size);
        Self { predecessor, newest: newest.max_by_key(|(_, first)| *first) }
    }

    pub(crate) fn replay(
        &self,
        mut fold: impl FnMut(EventPos, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let Some((path, first)) = &self.newest else { return Ok(()) };
        let (epoch, last) = (self.predecessor.epoch, self.predecessor.size);
        let mut visit = |seq, row: &[u8]| {
            if seq > last {
                return ControlFlow::Break(());
            }
            fold(EventPos { epoch, seq: Seq(seq) }, row)
        };
        match segment_rows(path, *first, Pace::Ahead, &mut visit) {
            // The damage lies behind the sound rows.
            Ok(_) | Err(ReadError::Damaged { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Sets the files of `epoch` aside that hold row `from` or later ones; `None` means the newest.
///
/// Says how far the epoch is sound: up to the row before, or to the first row that cannot be read.
pub(crate) fn set_aside(
    dir: &Path,
    epoch: &EpochOnDisk,
    from: Option<Seq>,
) -> Result<Salvage, ReadError> {
    let mut aside = epoch.aside.clone();
    let mut kept = epoch.segments.clone();
    let reaches = |first_of_next: Option<u64>| match (from, first_of_next) {
        // Without a row, only the newest, and only if nothing was set aside by an earlier start.
        (None, next) => next.is_none() && epoch.aside.is_empty(),
        (Some(_), None) => true,
        (Some(from), Some(next)) => next > from.0,
    };
    let mut next = None;
    while let Some(last) = kept.pop_if(|_| reaches(next)) {
        next = Some(last.first);
        aside.insert(0, layout::quarantine(&last.path).map_err(ReadError::io(&last.path))?);
    }
    let limit = from.map_or(u64::MAX, |from| from.0.saturating_sub(1));

    // The kept segments are whole: the newest of them says where the tree stood at its end.
    let mut tree = match kept.last() {
        Some(name) => read_meta(&name.path).map(|meta| meta.head).unwrap_or_default(),
        None => Frontier::default(),
    };
    let mut newest = kept.last().map(|name| (name.path.clone(), name.first));
    for path in &aside {
        let base = read_meta(path).map(|meta| meta.base);
        let base = base.unwrap_or_else(|_| tree.clone());
        if base.size() < tree.size() || base.size() > limit {
            continue;
        }
        if let Some((sound, first)) = sound_rows(path, base, limit)? {
            tree = sound;
            newest = Some((path.clone(), first));
        }
    }
    tracing::warn!(dir = %dir.display(), rows = tree.size(), "a damaged segment was set aside");
    let predecessor = Predecessor { epoch: epoch.epoch, size: tree.size(), root: tree.root() };
    Ok(Salvage { predecessor, newest })
}

/// Folds the rows of a file as far as they are whole and follow each other.
fn sound_rows(
    path: &Path,
    base: Frontier,
    limit: u64,
) -> Result<Option<(Frontier, u64)>, ReadError> {
    let first = base.size() + 1;
    let mut tree = base;
    let mut visit = |seq, row: &[u8]| {
        if seq != tree.size() + 1 || seq > limit {
            return ControlFlow::Break(());
        }
        tree.push(tree::leaf(row));
        ControlFlow::Continue(())
    };
    match segment_rows(path, first, Pace::Ahead, &mut visit) {
        Ok(_) | Err(ReadError::Damaged { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok((tree.size() >= first).then_some((tree, first)))
}

/// Refuses a file of which no commit is whole, before the storage engine sees it.
///
/// The engine checks too, but an assert of it over bytes that it did not expect would end the agent,
/// at every start. After a crash the newest commit may be torn and the one before it must be whole.
///
/// Returns the file at its newest commit when that one is whole.
pub(crate) fn pre_check(path: &Path) -> Result<Option<PageFile>, SegmentError> {
    let io = SegmentError::Open;
    let refused = |fault: crate::store::pages::PageFault| {
        SegmentError::Refused(format!("{} at offset {}", fault.why, fault.offset))
    };
    let newest = PageFile::open(path).map_err(io)?;
    let fault = match newest {
        Ok(pages) if !pages.is_clean() && pages.whole_tables().map_err(io)? => {
            return Ok(Some(pages));
        }
        Ok(pages) => match pages.first_fault().map_err(io)? {
            None => return Ok(Some(pages)),
            Some(fault) if pages.is_clean() => return Err(refused(fault)),
            Some(fault) => fault,
        },
        Err(fault) => fault,
    };
    match PageFile::open_at(path, Commit::Older).map_err(io)? {
        Ok(older) if older.whole_tables().map_err(io)? => Ok(None),
        Ok(_) | Err(_) => Err(refused(fault)),
    }
}
