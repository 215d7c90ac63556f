//! Where the bytes of a segment go: a file, or in tests a disk that fails, stalls or loses power.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use redb::{BackendError, StorageBackend};

/// Opens the storage of segments.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens the file at `path`, making it when it is missing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>>;

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

/// Gives redb a backend of any kind, locks included: without them two writers could meet.
#[derive(Debug)]
pub(crate) struct Boxed(pub(crate) Box<dyn StorageBackend>);

impl StorageBackend for Boxed {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
