//! The reserve: preallocated bytes that are given up when the disk is full, so that the log goes on.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::store::disk::Disk;
use crate::store::lane::spread;
use crate::store::{LogOptions, layout};

/// How long to wait before the reserve is made again; each failure doubles it up to the most.
const MEND_FIRST: Duration = Duration::from_secs(1);
const MEND_MAX: Duration = Duration::from_secs(60);

/// Whether the reserve is there.
enum State {
    Whole,
    Missing { retry_at: Instant, wait: Duration },
}

/// The reserve of one log.
pub(crate) struct Reserve {
    path: PathBuf,
    bytes: u64,
    state: State,
    /// The last try failed for want of space.
    lacks_space: bool,
}

impl Reserve {
    /// Takes the reserve as missing when its file is not there, to be made at once.
    pub(crate) fn new(options: &LogOptions) -> Self {
        let path = layout::reserve_path(&options.dir);
        let bytes = options.reserve_bytes;
        let whole = bytes == 0 || layout::allocated_bytes(&path).is_ok_and(|have| have >= bytes);
        let state = match whole {
            true => State::Whole,
            false => State::Missing { retry_at: Instant::now(), wait: MEND_FIRST },
        };
        Self { path, bytes, state, lacks_space: false }
    }

    /// Says whether there was no room for it when it was last tried.
    pub(crate) fn lacks_space(&self) -> bool {
        !self.is_whole() && self.lacks_space
    }

    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.state, State::Whole)
    }

    /// Returns when it should be made again.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Whole => None,
            State::Missing { retry_at, .. } => Some(retry_at),
        }
    }

    /// Gives the space back to the file system; says whether there was any to give.
    pub(crate) fn release(&mut self, disk: &dyn Disk) -> bool {
        if self.bytes == 0 || !self.is_whole() {
            return false;
        }
        self.state =
            State::Missing { retry_at: Instant::now() + spread(MEND_FIRST), wait: MEND_FIRST };
        disk.release_reserve(&self.path).is_ok()
    }

    /// Makes the reserve when its time has come; says whether it is whole.
    pub(crate) fn mend(&mut self, disk: &dyn Disk) -> bool {
        let State::Missing { retry_at, wait } = self.state else { return true };
        if retry_at > Instant::now() {
            return false;
        }
        match disk.make_reserve(&self.path, self.bytes) {
            Ok(()) => self.state = State::Whole,
            Err(error) => {
                self.lacks_space =
                    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
                tracing::debug!(%error, "the reserve of the log cannot be made");
                let wait = (wait * 2).min(MEND_MAX);
                self.state = State::Missing { retry_at: Instant::now() + spread(wait), wait };
            }
        }
        self.is_whole()
    }
}
