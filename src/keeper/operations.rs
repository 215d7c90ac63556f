//! The deeds that must not be done twice, whoever dies: a ring of fixed entries in a file, in the page cache.
//!
//! Each is written before it is done and again after it, so a keeper that is killed leaves the truth to the next one
//! but for the time between two system calls, which it leaves as "perhaps". Power loss ends the processes that the
//! deeds were done to, so nothing here is synced, and entries of another boot are dropped. It is written with `pwrite`
//! and not mapped: a full disk is then an error and no SIGBUS.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, MemfdFlags, memfd_create};
use tracing::warn;

use crate::ipc;

/// Names a deed.
pub(super) type OperationId = [u8; 16];

/// Deeds that are remembered: more than an agent can have open, each by some margin.
const ENTRIES: u64 = 16_384;

/// Number, id, state and error number, in this order.
const ENTRY_BYTES: usize = 32;

/// The first entry: the boot and the version of this shape.
const HEAD_BYTES: u64 = 32;
const VERSION: [u8; 8] = *b"smgrops1";

/// What became of a deed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// It was begun; if its keeper is dead, nobody can tell whether it was done.
    Begun,
    /// It was done.
    Done,
    /// There was nobody to do it to.
    NoSuchRun,
    /// The kernel refused with this error number.
    Refused(i32),
}

/// The deeds of this boot.
#[derive(Debug)]
pub(super) struct Operations {
    file: File,
    known: HashMap<OperationId, (u64, Deed)>,
    /// Which deed stands where, to be forgotten with its place.
    places: HashMap<u64, OperationId>,
    next: u64,
}

impl Operations {
    /// Opens the file, with what earlier keepers of this boot left there.
    pub(super) fn open(path: &Path, boot: &str) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let head = head_of(boot);
        let mut found = [0; HEAD_BYTES as usize];
        let is_current = file.read_exact_at(&mut found, 0).is_ok() && found == head;
        let file = match is_current.then_some(()).map_or_else(|| begin(&file, &head), Ok) {
            Ok(()) => file,
            Err(error) if ipc::is_full(&error) => {
                warn!(%error, "operations are noted in memory only");
                let memory = memfd_create("smgr-operations", MemfdFlags::CLOEXEC)?;
                let memory = File::from(memory);
                begin(&memory, &head)?;
                memory
            }
            Err(error) => return Err(error),
        };
        let mut operations = Self { file, known: HashMap::new(), places: HashMap::new(), next: 0 };
        if is_current {
            operations.read()?;
        }
        Ok(operations)
    }

    /// Returns what is known of a deed.
    pub(super) fn known(&self, id: &OperationId) -> Option<Deed> {
        self.known.get(id).map(|(_, deed)| *deed)
    }

    /// Notes that a deed is about to be done.
    pub(super) fn begin(&mut self, id: OperationId) {
        let number = self.next;
        self.next += 1;
        if let Some(older) = self.places.insert(number % ENTRIES, id) {
            self.known.remove(&older);
        }
        self.note(id, number, Deed::Begun);
    }

    /// Notes what became of a deed that was begun.
    pub(super) fn end(&mut self, id: OperationId, deed: Deed) {
        if let Some((number, _)) = self.known.get(&id) {
            self.note(id, *number, deed);
        }
    }

    fn note(&mut self, id: OperationId, number: u64, deed: Deed) {
        self.known.insert(id, (number, deed));
        let mut entry = [0; ENTRY_BYTES];
        let (state, errno) = match deed {
            Deed::Begun => (1_u32, 0),
            Deed::Done => (2, 0),
            Deed::NoSuchRun => (3, 0),
            Deed::Refused(errno) => (4, errno),
        };
        // Numbers begin at 1, so that a hole in the file is no entry.
        entry[..8].copy_from_slice(&(number + 1).to_le_bytes());
        entry[8..24].copy_from_slice(&id);
        entry[24..28].copy_from_slice(&state.to_le_bytes());
        entry[28..].copy_from_slice(&errno.to_le_bytes());
        let at = HEAD_BYTES + number % ENTRIES * ENTRY_BYTES as u64;
        if let Err(error) = self.file.write_all_at(&entry, at) {
            // This keeper knows it all the same; only the next one would not.
            warn!(%error, "failed to note an operation");
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let bytes = self.file.metadata()?.len().saturating_sub(HEAD_BYTES);
        let mut entries = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.file.read_exact_at(&mut entries, HEAD_BYTES)?;
        for entry in entries.chunks_exact(ENTRY_BYTES).take(ENTRIES as usize) {
            let number = u64::from_le_bytes(array(&entry[..8]));
            let errno = i32::from_le_bytes(array(&entry[28..]));
            let deed = match u32::from_le_bytes(array(&entry[24..28])) {
                1 => Deed::Begun,
                2 => Deed::Done,
                3 => Deed::NoSuchRun,
                4 => Deed::Refused(errno),
                _ => continue,
            };
            let Some(number) = number.checked_sub(1) else { continue };
            let id: OperationId = array(&entry[8..24]);
            self.known.insert(id, (number, deed));
            self.places.insert(number % ENTRIES, id);
            self.next = self.next.max(number + 1);
        }
        Ok(())
    }
}

/// Makes a file of no entries with room for all: a disk that fills up later takes none of it.
fn begin(file: &File, head: &[u8]) -> io::Result<()> {
    // Overwritten in its place, which a full disk allows; a file that was cut would not get its room back.
    const ALL_BYTES: u64 = HEAD_BYTES + ENTRIES * ENTRY_BYTES as u64;
    let there = file.metadata()?.len().min(ALL_BYTES);
    if there > 0 {
        file.write_all_at(&vec![0; usize::try_from(there).unwrap_or(0)], 0)?;
    }
    rustix::fs::fallocate(file, FallocateFlags::empty(), 0, ALL_BYTES).or_else(|errno| {
        match errno {
            // Not every file system can. There the room is taken entry by entry.
            rustix::io::Errno::OPNOTSUPP => Ok(()),
            other => Err(other),
        }
    })?;
    file.write_all_at(head, 0)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the ranges above have these lengths")
}

fn head_of(boot: &str) -> [u8; HEAD_BYTES as usize] {
    let mut head = [0; HEAD_BYTES as usize];
    head[..8].copy_from_slice(&VERSION);
    let digits = boot.bytes().filter(u8::is_ascii_hexdigit);
    for (place, digit) in head[8..].iter_mut().zip(digits) {
        *place = digit;
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "0b5f2f0e-9c1d-4f6b-8f8f-2b1c7f1a9d10";

    #[test]
    fn the_next_keeper_knows_what_was_done_and_what_was_only_begun() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operations");
        let mut before = Operations::open(&path, BOOT).unwrap();
        before.begin([1; 16]);
        before.end([1; 16], Deed::Done);
        before.begin([2; 16]);
        before.begin([3; 16]);
        before.end([3; 16], Deed::Refused(1));
        drop(before);
        let after = Operations::open(&path, BOOT).unwrap();
        assert_eq!(after.known(&[1; 16]), Some(Deed::Done));
        assert_eq!(after.known(&[2; 16]), Some(Deed::Begun));
        assert_eq!(after.known(&[3; 16]), Some(Deed::Refused(1)));
        assert_eq!(after.known(&[4; 16]), None);
    }

    #[test]
    fn another_boot_knows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operations");
        Operations::open(&path, BOOT).unwrap().begin([1; 16]);
        assert_eq!(Operations::open(&path, "another").unwrap().known(&[1; 16]), None);
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operations");
        let mut operations = Operations::open(&path, BOOT).unwrap();
        let id = |number: u64| -> OperationId { array(&[number.to_le_bytes(); 2].concat()) };
        (0..=ENTRIES).for_each(|number| operations.begin(id(number)));
        assert_eq!(operations.known(&id(0)), None);
        assert_eq!(operations.known(&id(1)), Some(Deed::Begun));
        let read = Operations::open(&path, BOOT).unwrap();
        assert_eq!(read.known(&id(0)), None);
        assert_eq!(read.known(&id(ENTRIES)), Some(Deed::Begun));
        assert_eq!(read.next, operations.next);
    }
}
