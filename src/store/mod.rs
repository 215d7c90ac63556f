//! The event log on disk: segments in redb, one writer thread, a Merkle tree over the rows.
//!
//! Rows are opaque here; the owner numbers them, since their envelope holds the number. A [`Log`] is
//! opened over a folder and written by a [`Writer`], which may serve several. What is durable is told
//! by [`LogNotice`]s; what is read comes from [`Log::replay`] and [`Log::range`]. The shape on disk
//! and the reasons are in `docs/store.md`.

mod ahead;
mod btree;
mod check;
mod disk;
mod inbox;
mod lane;
mod layout;
mod log;
mod mark;
mod open;
mod pages;
mod prove;
mod quarantine;
mod read;
mod report;
mod reserve;
mod retention;
mod seal;
mod segment;
#[cfg(test)]
mod tests;
mod tiles;
mod verify;
mod writer;
mod xxh3;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::domain::id::{Digest, EpochId, FleetId, NodeId, Seq};
use crate::wire::note::Note;

pub use disk::{Disk, FileDisk};
pub use layout::SegmentName;
pub use log::{AppendError, Log, ROW_BYTES_MAX, RangeEnd, RangeLimits, Ticket};
pub use open::{EpochReason, OpenLogError, Opened, Vacant};
pub use prove::ProveError;
pub use read::{EpochOnDisk, EventPos, LogReader, ReadError};
pub use report::{Fault, Pin, Report, Told, VerifiedEpoch};
pub use retention::{Expired, Retention, expired};
pub use seal::Indexer;
pub use segment::{Outage, Predecessor, SegmentError};
pub use verify::verify;
pub use writer::{STALL_AFTER, Writer};

/// The size at which a segment counts as full, in bytes on the disk.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// The cache of the storage engine, in bytes, for each open segment.
pub const CACHE_BYTES: usize = 8 << 20;

/// The reserve for the day on which the disk is full, in bytes.
pub const RESERVE_BYTES: u64 = 32 << 20;

/// Where a log lies, whose it is, and its bounds.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The folder of the log, which holds one folder for each epoch.
    pub dir: PathBuf,
    /// The fleet, for the origin line of checkpoints.
    pub fleet: FleetId,
    /// Whose log this is.
    pub origin: NodeId,
    /// The size on disk at which the owner is asked to [`Log::roll`].
    pub segment_bytes: u64,
    /// The cache of the storage engine in bytes.
    pub cache_bytes: usize,
    /// The size of the reserve in bytes; 0 for none.
    pub reserve_bytes: u64,
    /// The most rows that are accepted and not yet durable.
    pub waiting_rows_max: usize,
    /// The most bytes that are accepted and not yet durable.
    pub waiting_bytes_max: usize,
    /// Makes what indexes a segment when it is sealed; `None` for no index.
    pub indexer: Option<fn() -> Box<dyn Indexer>>,
    /// What the segments are written to.
    pub disk: Arc<dyn Disk>,
}

impl LogOptions {
    /// Returns the options of an agent's log in `dir`.
    pub fn new(dir: impl Into<PathBuf>, fleet: FleetId, origin: NodeId) -> Self {
        Self {
            dir: dir.into(),
            fleet,
            origin,
            segment_bytes: SEGMENT_BYTES,
            cache_bytes: CACHE_BYTES,
            reserve_bytes: RESERVE_BYTES,
            // A second of rows at the speed of a slow disk; beyond it the owner has to hold back.
            waiting_rows_max: 16 * 1024,
            waiting_bytes_max: 16 << 20,
            indexer: None,
            disk: Arc::new(FileDisk),
        }
    }

    /// Returns the origin line of this log's checkpoints: `smgr/<fleet>/<node>/<epoch token>`.
    pub fn origin_line(&self, epoch: EpochId) -> String {
        origin_line(&self.fleet, &self.origin, epoch)
    }
}

/// Returns the origin line of a log's checkpoints: `smgr/<fleet>/<node>/<epoch token>`.
pub fn origin_line(fleet: &FleetId, origin: &NodeId, epoch: EpochId) -> String {
    format!("smgr/{fleet}/{origin}/{}", epoch.token())
}

/// How far a log has come: the number of its rows and the root over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The epoch.
    pub epoch: EpochId,
    /// The last row, which is also the size of the tree; 0 for an empty log.
    pub seq: Seq,
    /// The root over all rows.
    pub root: Digest,
}

/// What the writer tells the owner of a log. It comes on the writer's threads and must not block.
#[derive(Clone, Debug)]
pub enum LogNotice {
    /// All rows up to `seq` are on disk.
    Durable {
        /// The epoch.
        epoch: EpochId,
        /// The last row.
        seq: Seq,
    },
    /// The segment has its size: the owner should [`Log::roll`].
    SegmentFull,
    /// A head was signed and is on disk.
    Checkpoint {
        /// The signed checkpoint.
        note: Note,
    },
    /// Rows cannot be written, or only on the reserve. What was accepted is kept and tried again.
    Unavailable {
        /// In which way.
        kind: Outage,
        /// What the disk said.
        why: String,
    },
    /// Rows are written again and the reserve is whole.
    Recovered,
    /// A segment is complete: footer, index and tiles are on disk.
    Sealed {
        /// Its first row.
        first: Seq,
        /// Its last row.
        last: Seq,
    },
    /// The rows of the active segment lead to the root that was signed.
    RootChecked {
        /// Up to this row.
        seq: Seq,
    },
    /// The log does not hold what was written: see [`Log::quarantine_from`].
    Damaged {
        /// The first row that is wrong, as far as that is known.
        at: Option<Seq>,
        /// What is wrong.
        why: String,
    },
}

/// Writes an error with its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    struct Chain<'a>(&'a dyn std::error::Error);
    impl fmt::Display for Chain<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}", self.0)?;
            match self.0.source() {
                Some(source) => write!(f, ": {}", Chain(source)),
                None => Ok(()),
            }
        }
    }
    Chain(error).to_string()
}
