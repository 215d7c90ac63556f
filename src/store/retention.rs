//! Retention: drops the oldest sealed segments, whole; their tiles stay, so proofs go on holding.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::domain::id::EpochId;
use crate::domain::id::{Digest, Seq};
use crate::store::layout::{self, SegmentName};
use crate::store::read::{ReadError, read_meta};

/// How much of the log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The most bytes on the disk.
    pub max_bytes: u64,
    /// The oldest segment, by the time at which it was sealed.
    pub max_age: Duration,
    /// The fewest segments that are kept, whatever their size and age; at least 1.
    pub keep_min: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { max_bytes: 1 << 30, max_age: Duration::from_secs(90 * 24 * 3600), keep_min: 2 }
    }
}

/// What retention would drop: to be recorded as an event before [`Expired::drop_rows`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The epoch.
    pub epoch: EpochId,
    /// The first row.
    pub first: Seq,
    /// The last row.
    pub last: Seq,
    /// The root up to the last row.
    pub root: Digest,
    segment: SegmentName,
}

impl Expired {
    /// Deletes the rows. Tiles and last checkpoint stay.
    pub fn drop_rows(&self) -> Result<(), ReadError> {
        let path = &self.segment.path;
        match std::fs::remove_file(path) {
            Ok(()) => layout::sync_parent(path).map_err(ReadError::io(path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(ReadError::io(path)(error)),
        }
    }
}

/// Lists what is beyond `retention` in the log at `dir`, the oldest first.
///
/// Only sealed segments that have their tiles are named, and never the newest of all. Ages are told from the time of
/// the newest row, and for its age alone only one is named at a time: whoever looks when a segment was sealed keeps
/// their number, and a clock that jumps ahead by months does not delete a history.
pub fn expired(
    dir: &Path,
    retention: &Retention,
    now: SystemTime,
) -> Result<Vec<Expired>, ReadError> {
    let epochs = crate::store::read::LogReader::new(dir).epochs()?;
    let segments: Vec<_> = epochs.into_iter().flat_map(|epoch| epoch.segments).collect();
    let modified = |name: &SegmentName| {
        let modified = std::fs::metadata(&name.path).and_then(|meta| meta.modified());
        modified.map_err(ReadError::io(&name.path))
    };
    let newest = segments.last().map(modified).transpose()?;
    let now = newest.map_or(now, |newest| newest.min(now));
    let mut bytes = 0;
    for name in &segments {
        bytes += layout::allocated_bytes(&name.path).map_err(ReadError::io(&name.path))?;
    }
    let mut expired = Vec::new();
    let droppable = segments.len().saturating_sub(retention.keep_min.max(1));
    for name in &segments[..droppable] {
        let io = || ReadError::io(&name.path);
        // A clock that went back makes nothing old.
        let age = now.duration_since(modified(name)?).unwrap_or_default();
        let meta = read_meta(&name.path)?;
        let has_tiles = layout::tiles_path(&name.path).try_exists().map_err(io())?;
        let too_old = age > retention.max_age && expired.is_empty();
        if !meta.sealed || !has_tiles || (bytes <= retention.max_bytes && !too_old) {
            break;
        }
        bytes -= layout::allocated_bytes(&name.path).map_err(io())?;
        expired.push(Expired {
            epoch: name.epoch,
            first: Seq(meta.first()),
            last: Seq(meta.head.size()),
            root: meta.head.root(),
            segment: name.clone(),
        });
    }
    Ok(expired)
}
