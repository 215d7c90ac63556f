//! The mark: how far rows were acknowledged, beside the log, so that a start can tell whether it still holds them.
//!
//! It is written behind the sync that made the rows durable, when that was told, and is not synced itself. So after a
//! kill it is behind by one commit at most, may be further behind after a power cut, and is never ahead of what the disk
//! was said to hold: a log that ends before its mark has lost rows that somebody was told of, and a commit that a power
//! cut tore ends behind it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::domain::id::EpochId;
use crate::store::xxh3::xxh3_128;

const SUMMED: usize = 16;
const BYTES: usize = 32;

/// How far an epoch was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) epoch: EpochId,
    pub(crate) size: u64,
}

impl Mark {
    /// Writes the mark into the lock file of a log.
    pub(crate) fn write(self, lock: &File) {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&self.epoch.0.to_be_bytes());
        bytes[8..SUMMED].copy_from_slice(&self.size.to_be_bytes());
        let sum = xxh3_128(&bytes[..SUMMED]).unwrap_or_default();
        bytes[SUMMED..].copy_from_slice(&sum.to_le_bytes());
        // Without it, less damage is found; the rows themselves are safe.
        if let Err(error) = lock.write_all_at(&bytes, 0) {
            tracing::debug!(%error, "the mark of the log was not written");
        }
    }

    /// Reads the mark; `None` when none was written, or not as a whole.
    pub(crate) fn read(lock: &File) -> Option<Self> {
        let mut bytes = [0; BYTES];
        lock.read_exact_at(&mut bytes, 0).ok()?;
        let sum = xxh3_128(&bytes[..SUMMED])?.to_le_bytes();
        let (epoch, rest) = bytes.split_first_chunk::<8>()?;
        let size = u64::from_be_bytes(*rest.first_chunk()?);
        (bytes[SUMMED..] == sum)
            .then_some(Self { epoch: EpochId(u64::from_be_bytes(*epoch)), size })
    }
}
