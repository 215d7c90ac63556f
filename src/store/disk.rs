//! Where the bytes of a segment go: a file, or in tests a disk that fails, stalls or loses power.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{BackendError, StorageBackend};

/// Opens the storage of segments.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens the file at `path`, making it when it is missing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>>;

    /// Returns where the last written byte of the file at `path` ends; behind it there are only zeros.
    fn written_end(&self, path: &Path) -> io::Result<u64> {
        Ok(std::fs::metadata(path)?.len())
    }

    /// Makes the reserve file of `bytes` bytes, with its blocks allocated.
    fn make_reserve(&self, path: &Path, bytes: u64) -> io::Result<()>;

    /// Gives the space of the reserve back.
    fn release_reserve(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}

/// The disk of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileDisk;

impl Disk for FileDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        drop_cached_pages(&file)?;
        let backend = redb::backends::FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Box::new(backend))
    }

    fn written_end(&self, path: &Path) -> io::Result<u64> {
        use rustix::fs::SeekFrom::{Data, Hole};
        let file = File::open(path)?;
        let mut end = 0;
        loop {
            match rustix::fs::seek(&file, Data(end)) {
                Ok(begin) => match rustix::fs::seek(&file, Hole(begin)) {
                    Ok(hole) => end = hole,
                    Err(_) => return Ok(file.metadata()?.len()),
                },
                Err(rustix::io::Errno::NXIO) => return Ok(end),
                // Then nothing of it is taken for unwritten.
                Err(_) => return Ok(file.metadata()?.len()),
            }
        }
    }

    fn make_reserve(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let made = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
        let made = match made {
            // Not every file system allocates what is not written.
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(&file, bytes),
            made => made.map_err(io::Error::from),
        };
        if let Err(error) = made.and_then(|()| file.sync_all()) {
            // Half a reserve would take the space that the log is short of.
            file.set_len(0)?;
            return Err(error);
        }
        Ok(())
    }
}

fn write_zeros(mut file: &File, bytes: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(bytes), &mut file).map(drop)
}

/// Makes the next reads come from the disk itself.
///
/// After a failed sync the kernel may call pages clean that never reached the disk, so a file that
/// is opened again must be judged by what the disk holds.
fn drop_cached_pages(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// How far at most blocks are written ahead of the pages that will lie in them.
const AHEAD_MAX: u64 = 128 << 10;

/// Gives redb a backend of any kind, locks included: without them two writers could meet.
///
/// The file grows by zeros that are written a stretch ahead of its pages. A page that falls into a hole makes the next
/// sync write the inode and the map of the blocks too, each in a turn of the disk of its own.
#[derive(Debug)]
pub(crate) struct Boxed {
    inner: Box<dyn StorageBackend>,
    /// Nothing was ever written at this offset or behind it.
    end: AtomicU64,
}

impl Boxed {
    /// Wraps the backend of a file whose bytes from `end` on were never written.
    pub(crate) fn new(inner: Box<dyn StorageBackend>, end: u64) -> Self {
        Self { inner, end: AtomicU64::new(end) }
    }

    /// Writes zeros from the end on, so that a page which ends at `needed`, and those behind it, meet no hole.
    fn go_ahead(&self, needed: u64) {
        let mut end = self.end.load(Ordering::Relaxed);
        if needed <= end {
            return;
        }
        // The engine sets the length: what lies behind it is not ours. A small file stays small.
        let len = self.inner.len().unwrap_or(0);
        let ahead = (needed / 8).min(AHEAD_MAX);
        let to = (needed + ahead).min(len).max(needed);
        let zeros = vec![0; AHEAD_MAX.min(to - end) as usize];
        while end < to {
            let part = (to - end).min(AHEAD_MAX);
            if self.inner.write(end, &zeros[..part as usize]).is_err() {
                // A page goes into a hole as well, or says itself what is wrong with the disk.
                break;
            }
            end += part;
        }
        self.end.store(end.max(needed), Ordering::Relaxed);
    }
}

impl StorageBackend for Boxed {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)?;
        self.end.fetch_min(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.go_ahead(offset + data.len() as u64);
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
