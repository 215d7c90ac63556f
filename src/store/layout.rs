//! Names of files: `<dir>/<epoch token>/<first seq>.redb`, and what else lies beside them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::domain::id::EpochId;
use crate::domain::tree::SIZE_MAX;

/// A segment on disk, known by its name alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentName {
    /// The epoch, from the folder.
    pub epoch: EpochId,
    /// The first sequence number, from the file name.
    pub first: u64,
    /// Where it is.
    pub path: PathBuf,
}

/// Returns the folder of an epoch.
pub(crate) fn epoch_dir(dir: &Path, epoch: EpochId) -> PathBuf {
    dir.join(epoch.token())
}

/// Returns the file of a segment.
pub(crate) fn segment_path(dir: &Path, epoch: EpochId, first: u64) -> PathBuf {
    epoch_dir(dir, epoch).join(format!("{first:020}.redb"))
}

/// Returns the file that a sealed segment leaves behind when its rows are dropped.
pub(crate) fn tiles_path(segment: &Path) -> PathBuf {
    segment.with_extension("tiles")
}

/// Returns where a segment is built until its first transaction is on disk.
pub(crate) fn unfinished_path(segment: &Path) -> PathBuf {
    segment.with_extension("new")
}

/// Returns the reserve that is given up when the disk is full.
pub(crate) fn reserve_path(dir: &Path) -> PathBuf {
    dir.join("reserve")
}

/// Returns the file whose lock says that the log has an owner.
pub(crate) fn lock_path(dir: &Path) -> PathBuf {
    dir.join("lock")
}

/// Lists the epochs under `dir` in the order of their names; a missing folder has none.
pub(crate) fn epochs(dir: &Path) -> io::Result<Vec<EpochId>> {
    let named = |name: &OsString| {
        let name = name.to_str()?;
        EpochId::from_token(name).filter(|epoch| epoch.token() == name)
    };
    let mut epochs: Vec<_> = names(dir)?.iter().filter_map(named).collect();
    epochs.sort();
    Ok(epochs)
}

/// Lists the segments of an epoch, the oldest first.
pub(crate) fn segments(dir: &Path, epoch: EpochId) -> io::Result<Vec<SegmentName>> {
    with_extension(dir, epoch, "redb")
}

/// Lists the tiles of an epoch by the segment that they belong to, the oldest first.
pub(crate) fn tiles(dir: &Path, epoch: EpochId) -> io::Result<Vec<SegmentName>> {
    with_extension(dir, epoch, "tiles")
}

fn with_extension(dir: &Path, epoch: EpochId, extension: &str) -> io::Result<Vec<SegmentName>> {
    let folder = epoch_dir(dir, epoch);
    let named = |name: OsString| {
        let path = folder.join(&name);
        let first = first_of(&path).filter(|_| path.extension() == Some(OsStr::new(extension)))?;
        Some(SegmentName { epoch, first, path })
    };
    let mut found: Vec<_> = names(&folder)?.into_iter().filter_map(named).collect();
    found.sort();
    Ok(found)
}

/// Reads the first sequence number out of the name that [`segment_path`] gave; every other spelling is another file.
fn first_of(path: &Path) -> Option<u64> {
    let stem = path.file_stem()?.to_str()?;
    let first = stem.parse().ok().filter(|first| (1..SIZE_MAX).contains(first))?;
    (stem == format!("{first:020}")).then_some(first)
}

/// Lists files of an epoch that look like segments or tiles and have no name that the log gives.
pub(crate) fn strangers(dir: &Path, epoch: EpochId) -> io::Result<Vec<PathBuf>> {
    let folder = epoch_dir(dir, epoch);
    let paths = names(&folder)?.into_iter().map(|name| folder.join(name));
    let is_stranger = |path: &PathBuf| {
        let extension = path.extension().and_then(OsStr::to_str);
        matches!(extension, Some("redb" | "tiles")) && first_of(path).is_none()
    };
    let mut strangers: Vec<_> = paths.filter(is_stranger).collect();
    strangers.sort();
    Ok(strangers)
}

/// Lists what was set aside in an epoch because it was damaged.
pub(crate) fn quarantined(dir: &Path, epoch: EpochId) -> io::Result<Vec<PathBuf>> {
    let folder = epoch_dir(dir, epoch);
    let is_aside = |name: &OsString| name.to_string_lossy().contains(".quarantined");
    let names = names(&folder)?.into_iter().filter(is_aside);
    let mut aside: Vec<_> = names.map(|name| folder.join(name)).collect();
    aside.sort();
    Ok(aside)
}

fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Sets a damaged segment aside under a name of its own; nothing is ever deleted for being damaged.
pub(crate) fn quarantine(segment: &Path) -> io::Result<PathBuf> {
    let mut n = 0_u32;
    loop {
        let aside = match n {
            0 => segment.with_extension("redb.quarantined"),
            n => segment.with_extension(format!("redb.quarantined.{n}")),
        };
        if !aside.try_exists()? {
            fs::rename(segment, &aside)?;
            sync_parent(segment)?;
            return Ok(aside);
        }
        n += 1;
    }
}

/// Makes the names in the folder of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().expect("invariant: a segment lies in a folder");
    File::open(parent)?.sync_all()
}

/// Returns the bytes that a file takes on the disk: redb's files are sparse.
pub(crate) fn allocated_bytes(path: &Path) -> io::Result<u64> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    // Asking for its times too would make the kernel note a finer one at the next write, and so write the inode, in a
    // turn of the disk of its own, at each sync.
    Ok(statx(CWD, path, AtFlags::empty(), StatxFlags::BLOCKS)?.stx_blocks * 512)
}
