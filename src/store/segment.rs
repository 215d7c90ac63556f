//! One segment: a redb file with the rows of one stretch of an epoch.
//!
//! Tables: `events` (seq to row, strictly ascending), `checkpoints` (size to signed note), `meta` and,
//! once sealed, `index`. Every transaction leaves rows and tree frontier in step.

use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    TableDefinition, WriteTransaction,
};

use crate::domain::id::{Digest, EpochId};
use crate::domain::tree::{self, Frontier};
use crate::store::disk::{Boxed, Disk};

pub(crate) const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
pub(crate) const CHECKPOINTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("checkpoints");
pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(crate) const INDEX: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index");

/// The version of the layout inside a segment. Version 1 wrote the head with each commit.
pub(crate) const FORMAT: u64 = 2;

/// So many rows at most follow the head that stands in `meta`.
pub(crate) const HEAD_STRIDE: u64 = 1024;

/// Within so many rows only the newest checkpoint is kept, so that a slow log is not all checkpoints.
const CHECKPOINT_STRIDE: u64 = 4096;

/// Names of the rows in `meta`.
pub(crate) mod key {
    pub(crate) const FORMAT: &str = "format";
    pub(crate) const EPOCH: &str = "epoch";
    pub(crate) const BASE: &str = "base";
    pub(crate) const HEAD: &str = "head";
    pub(crate) const BASELINE: &str = "baseline";
    pub(crate) const PREDECESSOR: &str = "predecessor";
    pub(crate) const FOOTER: &str = "footer";
}

/// Says why a segment could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The storage engine or the disk failed.
    #[error("the storage of the segment failed")]
    Storage(#[source] Box<redb::Error>),
    /// The file could not be opened.
    #[error("the segment could not be opened")]
    Open(#[source] io::Error),
    /// The file is a sound database that is no segment of this log.
    #[error("the segment is malformed: {0}")]
    Malformed(&'static str),
    /// The storage engine stopped at bytes that it did not expect.
    #[error("the storage engine refused the file: {0}")]
    Refused(String),
}

/// How a log is kept from being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// No space is left; the reserve was released.
    Full,
    /// A write takes longer than two seconds.
    Stalled,
    /// The disk reports errors.
    Failed,
}

impl SegmentError {
    /// Says what kind of outage this is.
    pub(crate) fn outage(&self) -> Outage {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match self.io().map(io::Error::kind) {
            Some(StorageFull | QuotaExceeded) => Outage::Full,
            Some(_) | None => Outage::Failed,
        }
    }

    /// Says whether the file itself is damaged, as opposed to the disk being unwilling just then.
    pub(crate) fn is_damage(&self) -> bool {
        use redb::Error as E;
        match self {
            Self::Malformed(_) | Self::Refused(_) => true,
            Self::Open(_) => false,
            Self::Storage(error) => {
                let cut = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
                self.io().is_some_and(|io| cut.contains(&io.kind()))
                    || matches!(
                        error.as_ref(),
                        E::Corrupted(_)
                            | E::UpgradeRequired(_)
                            | E::RepairAborted
                            | E::TableTypeMismatch { .. }
                            | E::TableIsMultimap(_)
                            | E::TypeDefinitionChanged { .. }
                            | E::TableDoesNotExist(_)
                    )
            }
        }
    }

    fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Open(io) => Some(io),
            Self::Storage(error) => {
                if let redb::Error::Io(io) = error.as_ref() {
                    Some(io)
                } else {
                    None
                }
            }
            Self::Malformed(_) | Self::Refused(_) => None,
        }
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for SegmentError {
            fn from(error: redb::$error) -> Self {
                Self::Storage(Box::new(error.into()))
            }
        })*
    };
}

from_redb!(
    DatabaseError,
    TransactionError,
    TableError,
    StorageError,
    CommitError,
    CursorError,
    SetDurabilityError
);

/// A row that is to be written: its sequence number and its bytes.
pub(crate) type Row = (u64, Arc<[u8]>);

/// What one transaction adds.
pub(crate) struct Addition<'a> {
    /// The rows, which follow the head.
    pub(crate) rows: &'a [Row],
    /// The tree after them.
    pub(crate) head: &'a Frontier,
    /// A signed head to keep beside them, with its size.
    pub(crate) checkpoint: Option<(u64, &'a [u8])>,
}

/// How the first transaction of a segment is made.
pub(crate) struct Birth<'a> {
    pub(crate) epoch: EpochId,
    /// The tree before the first row.
    pub(crate) base: &'a Frontier,
    /// The last row of the baseline, 0 when there is none.
    pub(crate) baseline: u64,
    pub(crate) predecessor: Option<Predecessor>,
}

/// The epoch that went before: which one, how far it is known to be sound, and its root there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// The epoch.
    pub epoch: EpochId,
    /// The last sequence number that is held to be sound.
    pub size: u64,
    /// The root at that size.
    pub root: Digest,
}

impl Predecessor {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.epoch.0.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.size.to_be_bytes());
        bytes.extend_from_slice(&self.root.0);
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (epoch, rest) = bytes.split_first_chunk::<8>()?;
        let (size, root) = rest.split_first_chunk::<8>()?;
        Some(Self {
            epoch: EpochId(u64::from_be_bytes(*epoch)),
            size: u64::from_be_bytes(*size),
            root: Digest(root.try_into().ok()?),
        })
    }
}

/// What `meta` says about a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentMeta {
    pub(crate) epoch: EpochId,
    pub(crate) base: Frontier,
    /// The tree after the last row. In `meta` it stands as it was at most [`HEAD_STRIDE`] rows before.
    pub(crate) head: Frontier,
    /// Damage behind the head hides what follows it.
    pub(crate) is_cut: bool,
    pub(crate) baseline: u64,
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) sealed: bool,
}

impl SegmentMeta {
    /// Reads the meta rows through `get`, and checks that they fit each other.
    pub(crate) fn read(mut get: impl FnMut(&str) -> Option<Vec<u8>>) -> Result<Self, &'static str> {
        let mut number = |name| -> Result<Option<u64>, &'static str> {
            let Some(bytes) = get(name) else { return Ok(None) };
            let bytes = bytes.try_into().map_err(|_| "a number in its meta is not 8 bytes")?;
            Ok(Some(u64::from_be_bytes(bytes)))
        };
        match number(key::FORMAT)? {
            Some(1 | FORMAT) => {}
            Some(_) => return Err("it has a format of another version"),
            None => return Err("it has no format"),
        }
        let epoch = EpochId(number(key::EPOCH)?.ok_or("it names no epoch")?);
        let baseline = number(key::BASELINE)?.ok_or("it names no baseline")?;
        let mut frontier = |name| {
            let bytes = get(name).ok_or("it has no tree frontier")?;
            Frontier::from_bytes(&bytes).map_err(|_| "its tree frontier is malformed")
        };
        let (base, head) = (frontier(key::BASE)?, frontier(key::HEAD)?);
        if head.size() < base.size() {
            return Err("its tree ends before it begins");
        }
        let predecessor = match get(key::PREDECESSOR) {
            Some(bytes) => {
                Some(Predecessor::from_bytes(&bytes).ok_or("its predecessor is malformed")?)
            }
            None => None,
        };
        let sealed = get(key::FOOTER).is_some();
        Ok(Self { epoch, base, head, is_cut: false, baseline, predecessor, sealed })
    }

    /// Takes the next row into the head; says whether it is the one that follows.
    pub(crate) fn follow(&mut self, seq: u64, row: &[u8]) -> bool {
        let follows = seq == self.head.size() + 1;
        if follows {
            self.head.push(tree::leaf(row));
        }
        follows
    }

    /// Returns the first sequence number.
    pub(crate) fn first(&self) -> u64 {
        self.base.size() + 1
    }
}

/// Whether every page of a file was checked before the engine opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// By [`pre_check`](crate::store::quarantine::pre_check); the engine need not do it again.
    Checked,
    /// Not yet: the engine shall.
    Unchecked,
}

/// An open segment. Readers and the writer share it; only the writer closes and opens it again.
pub(crate) struct SegmentFile {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    cache_bytes: usize,
    /// Empty between a failure and a successful reopening.
    database: RwLock<Option<Database>>,
}

impl SegmentFile {
    /// Opens the file at `path`, checking every page of it.
    pub(crate) fn open(
        path: &Path,
        disk: &Arc<dyn Disk>,
        cache_bytes: usize,
    ) -> Result<Self, SegmentError> {
        let file = Self::unopened(path, disk, cache_bytes);
        file.reopen(Pages::Unchecked)?;
        Ok(file)
    }

    /// Stands for the file at `path` until [`SegmentFile::reopen`] opens it.
    pub(crate) fn unopened(path: &Path, disk: &Arc<dyn Disk>, cache_bytes: usize) -> Self {
        let (path, disk) = (path.to_owned(), disk.clone());
        Self { path, disk, cache_bytes, database: RwLock::new(None) }
    }

    /// Closes the file if it is open, and opens it: the only way on after redb met an I/O error.
    pub(crate) fn reopen(&self, pages: Pages) -> Result<(), SegmentError> {
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // The lock on the file must be gone before it can be taken again.
        *slot = None;
        let backend = self.disk.open(&self.path).map_err(SegmentError::Open)?;
        let end = self.disk.written_end(&self.path).map_err(SegmentError::Open)?;
        *slot = Some(open_database(Boxed::new(backend, end), self.cache_bytes, pages)?);
        Ok(())
    }

    /// Closes the file, so that it opens without repair next time.
    pub(crate) fn close(&self) -> Result<(), SegmentError> {
        let database = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        database.map_or(Ok(()), |database| Ok(database.close()?))
    }

    /// Says whether the engine has the file open.
    pub(crate) fn is_open(&self) -> bool {
        self.database.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes note that the open file has another name.
    pub(crate) fn moved_to(self, path: PathBuf) -> Self {
        Self { path, ..self }
    }

    /// Begins a transaction that sees the rows of the last commit.
    pub(crate) fn read(&self) -> Result<ReadTransaction, SegmentError> {
        let slot = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = slot.as_ref().ok_or(redb::StorageError::DatabaseClosed)?;
        Ok(database.begin_read()?)
    }

    fn write(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), SegmentError>,
    ) -> Result<(), SegmentError> {
        let slot = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = slot.as_ref().ok_or(redb::StorageError::PreviousIo)?;
        // While somebody may read the state before this commit, the engine leaves the pages that it frees to the next
        // one. Else it would free them at once in a second commit of its own, which is not durable, costs as much
        // work as the first, and makes the next one write more pages.
        let reader = database.begin_read()?;
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        change(&transaction)?;
        transaction.commit()?;
        drop(reader);
        Ok(())
    }

    /// Writes the first transaction of an empty file.
    pub(crate) fn begin(
        &self,
        birth: &Birth<'_>,
        addition: &Addition<'_>,
    ) -> Result<(), SegmentError> {
        self.write(|transaction| {
            let mut meta = transaction.open_table(META)?;
            let mut number =
                |name, value: u64| meta.insert(name, value.to_be_bytes().as_slice()).map(drop);
            number(key::FORMAT, FORMAT)?;
            number(key::EPOCH, birth.epoch.0)?;
            number(key::BASELINE, birth.baseline)?;
            meta.insert(key::BASE, birth.base.to_bytes().as_slice())?;
            if let Some(predecessor) = birth.predecessor {
                meta.insert(key::PREDECESSOR, predecessor.to_bytes().as_slice())?;
            }
            meta.insert(key::HEAD, addition.head.to_bytes().as_slice())?;
            drop(meta);
            transaction.open_table(CHECKPOINTS)?;
            add(transaction, addition)
        })
    }

    /// Writes rows, frontier and checkpoint in one durable transaction.
    pub(crate) fn add(&self, addition: &Addition<'_>) -> Result<(), SegmentError> {
        self.write(|transaction| add(transaction, addition))
    }

    /// Writes the footer, after which nothing is added, and the index.
    pub(crate) fn seal(
        &self,
        head: &Frontier,
        footer: &[u8],
        index: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), SegmentError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(INDEX)?;
            for (name, packed) in index {
                table.insert(name.as_slice(), packed.as_slice())?;
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert(key::HEAD, head.to_bytes().as_slice())?;
            meta.insert(key::FOOTER, footer)?;
            Ok(())
        })
    }

    /// Reads the meta rows, and the rows behind the head that stands there.
    pub(crate) fn meta(&self) -> Result<SegmentMeta, SegmentError> {
        let transaction = self.read()?;
        let table = transaction.open_table(META)?;
        let mut failed = None;
        let meta = SegmentMeta::read(|name| match table.get(name) {
            Ok(row) => row.map(|row| row.value().to_vec()),
            Err(error) => {
                failed.get_or_insert(error);
                None
            }
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        let mut meta = meta.map_err(SegmentError::Malformed)?;
        for row in transaction.open_table(EVENTS)?.range(meta.head.size() + 1..)? {
            let (seq, row) = row?;
            if !meta.follow(seq.value(), row.value()) {
                return Err(SegmentError::Malformed("a row is missing at its end"));
            }
        }
        Ok(meta)
    }

    /// Returns the newest checkpoint: its size and its note.
    pub(crate) fn last_checkpoint(&self) -> Result<Option<(u64, Vec<u8>)>, SegmentError> {
        let table = self.read()?.open_table(CHECKPOINTS)?;
        Ok(table.last()?.map(|(size, note)| (size.value(), note.value().to_vec())))
    }
}

impl std::fmt::Debug for SegmentFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SegmentFile({})", self.path.display())
    }
}

fn add(transaction: &WriteTransaction, addition: &Addition<'_>) -> Result<(), SegmentError> {
    let mut events = transaction.open_table(EVENTS)?;
    let mut end = events.upper_bound_mut(Bound::<u64>::Unbounded)?;
    for (seq, row) in addition.rows {
        // Refuses a number that is not above the last one, so no row can be overwritten.
        end.insert_before(seq, &**row)?;
    }
    end.close()?;
    if let Some((size, note)) = addition.checkpoint {
        let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
        let last = checkpoints.last()?.map(|(size, _)| size.value());
        let same_stride = |last: &u64| last / CHECKPOINT_STRIDE == size / CHECKPOINT_STRIDE;
        if let Some(last) = last.filter(same_stride) {
            checkpoints.remove(last)?;
        }
        checkpoints.insert(size, note)?;
    }
    // Not each time: it lies on a page of its own, which each commit would have to write.
    let size = addition.head.size();
    let before = size - addition.rows.len() as u64;
    if addition.checkpoint.is_some() || before / HEAD_STRIDE != size / HEAD_STRIDE {
        let mut meta = transaction.open_table(META)?;
        meta.insert(key::HEAD, addition.head.to_bytes().as_slice())?;
    }
    Ok(())
}

/// Opens a database, turning a panic of the engine over damaged bytes into an error.
fn open_database(
    backend: Boxed,
    cache_bytes: usize,
    pages: Pages,
) -> Result<Database, SegmentError> {
    let open = || {
        Builder::new()
            .set_cache_size(cache_bytes)
            .set_check_integrity_on_open(pages == Pages::Unchecked)
            .create_with_backend(backend)
    };
    // The check reports damage as an error; asserts of the engine are the last line behind it. With
    // `panic = "abort"` they end the process, which is why `audit` reads pages by itself.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(open)) {
        Ok(opened) => Ok(opened?),
        Err(panic) => {
            let why = panic.downcast_ref::<String>().cloned();
            Err(SegmentError::Refused(why.unwrap_or_else(|| "it stopped without a reason".into())))
        }
    }
}
