//! Reads the pages of a redb file (format 3) by itself: without a lock, a repair or a write.
//!
//! This is what makes an audit of a live, a damaged or a foreign file possible: every offset is
//! checked before it is followed and every page against its checksum, so any bytes give rows and
//! faults, and nothing panics. The engine's own reader may do neither on a file that was edited.

use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::store::btree::{self, DEPTH_MAX, Leaf, Root, Shape, TABLES, Walk};
use crate::store::xxh3::xxh3_128;

const PAGE: u64 = 4096;
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
const SLOTS: [usize; 2] = [64, 192];
const SLOT_BYTES: usize = 128;
const SLOT_SUMMED: usize = 112;
const HEADER_BYTES: usize = 320;
const FORMAT: u8 = 3;

/// The largest page that is read: 32 MiB holds any row that the log accepts.
const ORDER_MAX: u8 = 13;

/// A place in the file where the structure is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageFault {
    pub(crate) offset: u64,
    pub(crate) why: &'static str,
}

pub(crate) fn fault(offset: u64, why: &'static str) -> PageFault {
    PageFault { offset, why }
}

/// A table: where it begins and how it is laid out.
#[derive(Clone, Debug)]
struct Table {
    name: Vec<u8>,
    root: Option<Root>,
    shape: Shape,
}

/// Which of the two commits in a file to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    /// The one that the engine takes: mostly the newest whose slot fits its checksum.
    Newest,
    /// The other one, on which redb falls back when the newest did not reach the disk whole.
    Older,
}

/// A redb file, opened for reading alone.
pub(crate) struct PageFile {
    file: File,
    len: u64,
    region_bytes: u64,
    region_header_bytes: u64,
    users: Vec<Table>,
    header: [u8; HEADER_BYTES],
    is_clean: bool,
    /// Faults of header and table trees.
    faults: Vec<PageFault>,
    /// What header, table trees and the engine's own tables occupy.
    used: Vec<Range<u64>>,
    /// The last page of each level of each table of the log, as they were when the file was opened.
    spines: Vec<(u64, Vec<u8>)>,
}

impl PageFile {
    /// Opens the file and reads its header and the names of its tables.
    ///
    /// The outer error is the system's, the inner one says that there is nothing to read.
    pub(crate) fn open(path: &Path) -> io::Result<Result<Self, PageFault>> {
        Self::open_at(path, Commit::Newest)
    }

    /// Opens the file at one of its two commits.
    pub(crate) fn open_at(path: &Path, commit: Commit) -> io::Result<Result<Self, PageFault>> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut header = [0; HEADER_BYTES];
        if len < HEADER_BYTES as u64 {
            return Ok(Err(fault(0, "the file is shorter than its header")));
        }
        file.read_exact_at(&mut header, 0)?;
        let mut this = Self {
            file,
            len,
            region_bytes: 0,
            region_header_bytes: 0,
            users: Vec::new(),
            header,
            is_clean: false,
            faults: Vec::new(),
            used: Vec::new(),
            spines: Vec::new(),
        };
        if let Err(fault) = this.read_header(commit) {
            return Ok(Err(fault));
        }
        this.keep_spines();
        Ok(Ok(this))
    }

    /// Says whether the file was closed in order, so that no commit can be half on disk.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// Says whether all pages of this commit are whole, whatever the header says of the other one.
    pub(crate) fn whole_tables(&self) -> io::Result<bool> {
        let in_pages = self.faults.iter().any(|fault| fault.offset >= PAGE);
        Ok(!in_pages && self.first_row_fault()?.is_none())
    }

    /// Returns the first fault anywhere in the file, or `None` when every page is whole.
    pub(crate) fn first_fault(&self) -> io::Result<Option<PageFault>> {
        match self.faults.first() {
            Some(fault) => Ok(Some(fault.clone())),
            None => self.first_row_fault(),
        }
    }

    fn first_row_fault(&self) -> io::Result<Option<PageFault>> {
        for root in self.users.iter().filter_map(|table| Some((table.root?, table.shape))) {
            let mut walk = Walk::new(self, None);
            walk.tree(root.0, root.1, |_| ControlFlow::Continue(()))?;
            if let Some(fault) = walk.faults.pop() {
                return Ok(Some(fault));
            }
        }
        Ok(None)
    }

    /// Returns what is wrong outside the tables of the log.
    pub(crate) fn faults(&self) -> &[PageFault] {
        &self.faults
    }

    /// Says whether the file was written to since it was opened, so that a fault may be a race.
    pub(crate) fn changed(&self) -> bool {
        let mut header = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut header, 0).is_err() || header != self.header
    }

    /// Gives `visit` the leaves of a table in the order of their keys, and returns what is broken.
    ///
    /// With `from`, the leaves of a table with `u64` keys that lie wholly before it are passed over.
    pub(crate) fn walk(
        &self,
        table: &str,
        from: Option<u64>,
        visit: impl FnMut(&Leaf<'_>) -> ControlFlow<()>,
    ) -> io::Result<Vec<PageFault>> {
        let Some(table) = self.users.iter().find(|found| found.name == table.as_bytes()) else {
            let missing = fault(0, "a table of the log is missing");
            return Ok(vec![self.faults.first().cloned().unwrap_or(missing)]);
        };
        let mut walk = Walk::new(self, from);
        if let Some(root) = table.root {
            walk.tree(root, table.shape, visit)?;
        }
        Ok(walk.faults)
    }

    /// Returns the ranges of the file that carry something, ascending.
    #[cfg(test)]
    pub(crate) fn allocated(&self) -> io::Result<Vec<Range<u64>>> {
        let mut used = self.used.clone();
        for table in &self.users {
            let mut walk = Walk::new(self, None);
            if let Some(root) = table.root {
                walk.tree(root, table.shape, |_| ControlFlow::Continue(()))?;
            }
            used.extend(walk.used);
        }
        used.sort_by_key(|range| range.start);
        Ok(used)
    }

    fn read_header(&mut self, commit: Commit) -> Result<(), PageFault> {
        let header = self.header;
        let number = |at: usize| {
            u64::from(u32::from_le_bytes([
                header[at],
                header[at + 1],
                header[at + 2],
                header[at + 3],
            ]))
        };
        if header[..9] != MAGIC {
            return Err(fault(0, "the file does not begin as a database"));
        }
        let (page, region_header, region_pages) = (number(12), number(16), number(20));
        if page != PAGE || region_header > 1 << 20 || !(1..=1 << 20).contains(&region_pages) {
            return Err(fault(12, "the geometry of the file is not one"));
        }
        self.region_header_bytes = region_header * PAGE;
        self.region_bytes = (region_header + region_pages) * PAGE;
        let unclean = header[9] & 2 != 0;
        let counted = PAGE
            + number(24) * self.region_bytes
            + if number(28) > 0 { self.region_header_bytes + number(28) * PAGE } else { 0 };
        if !unclean && counted != self.len {
            self.faults.push(fault(24, "the file is not as long as it says"));
        }
        if header[9] & !0b1111 != 0 {
            self.faults.push(fault(9, "the flags of the file are not known"));
        }

        let slots = SLOTS.map(|at| Slot::read(&header[at..at + SLOT_BYTES]));
        for (slot, at) in slots.iter().zip(SLOTS) {
            if slot.is_none() {
                self.faults.push(fault(at as u64, "a commit slot does not fit its checksum"));
            }
        }
        let newest = match &slots {
            [Some(a), Some(b)] => usize::from(b.transaction > a.transaction),
            [Some(_), None] => 0,
            [None, Some(_)] => 1,
            [None, None] => return Err(fault(64, "no commit slot fits its checksum")),
        };
        // The choice is the engine's: after a two-phase commit it trusts the flag alone, so that a
        // newer slot is a commit that was never finished.
        let primary = usize::from(header[9] & 1);
        let current = if header[9] & 4 != 0 && slots[primary].is_some() { primary } else { newest };
        self.is_clean = !unclean && current == newest;
        // Padding and the flags of the engine carry no history.
        self.used.extend([0..9, 12..24, 64..320]);
        if !unclean {
            self.used.push(24..32);
        }
        let wanted = match commit {
            Commit::Newest => current,
            Commit::Older => 1 - current,
        };
        let Some(slot) = slots.into_iter().nth(wanted).flatten() else {
            return Err(fault(SLOTS[wanted] as u64, "the commit slot does not fit its checksum"));
        };
        self.users = self.tables(slot.user);
        for table in self.tables(slot.system) {
            let mut walk = Walk::new(self, None);
            if let Some(root) = table.root
                && walk.tree(root, table.shape, |_| ControlFlow::Continue(())).is_err()
            {
                walk.faults.push(fault(0, "a table of the engine cannot be read"));
            }
            let Walk { faults, used, .. } = walk;
            self.faults.extend(faults);
            self.used.extend(used);
        }
        Ok(())
    }

    fn tables(&mut self, root: Option<Root>) -> Vec<Table> {
        let Some(root) = root else { return Vec::new() };
        let mut tables = Vec::new();
        let mut broken = None;
        let mut walk = Walk::new(self, None);
        let walked = walk.tree(root, TABLES, |leaf| {
            leaf.entries(|name, definition| {
                match parse_table(name, definition) {
                    Some(table) if leaf.is_sound => tables.push(table),
                    Some(_) => {}
                    None => broken = Some(fault(leaf.offset, "a table's definition is malformed")),
                }
                ControlFlow::Continue(())
            });
            ControlFlow::Continue(())
        });
        let Walk { mut faults, used, .. } = walk;
        faults.extend(broken);
        if walked.is_err() {
            faults.push(fault(0, "the list of tables cannot be read"));
        }
        self.faults.extend(faults);
        self.used.extend(used);
        tables
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)?;
        let end = offset + bytes.len() as u64;
        for (start, page) in &self.spines {
            let (from, to) = (offset.max(*start), end.min(start + page.len() as u64));
            if from < to {
                let page = &page[(from - start) as usize..(to - start) as usize];
                bytes[(from - offset) as usize..(to - offset) as usize].copy_from_slice(page);
            }
        }
        Ok(())
    }

    /// Keeps what a writer may overwrite while this reads.
    ///
    /// Keys only ascend, so a commit replaces the last page of each level and no other, and what it replaced may be
    /// written over by the next one but one. Read at once, they stay what they were, however long the rest takes. A
    /// page that cannot be read is not kept: it is met again, and reported, in the walk.
    fn keep_spines(&mut self) {
        if self.is_clean {
            return;
        }
        let roots: Vec<_> = self.users.iter().filter_map(|it| Some((it.root?, it.shape))).collect();
        for (mut root, shape) in roots {
            for _ in 0..DEPTH_MAX {
                let Some(place) = self.place(root.page) else { break };
                let mut page = vec![0; (place.end - place.start) as usize];
                if self.file.read_exact_at(&mut page, place.start).is_err() {
                    break;
                }
                let last = btree::last_child(&page, shape);
                self.spines.push((place.start, page));
                let Some(child) = last else { break };
                root = child;
            }
        }
    }

    /// Returns where a page lies, when it lies in the file.
    pub(crate) fn place(&self, page: u64) -> Option<Range<u64>> {
        let order = (page >> 59) as u8;
        if order > ORDER_MAX {
            return None;
        }
        let size = PAGE << order;
        let index = page & (0xF_FFFF >> order);
        let region = page >> 20 & 0xF_FFFF;
        let start = PAGE
            .checked_add(region.checked_mul(self.region_bytes)?)?
            .checked_add(self.region_header_bytes + index * size)?;
        (start + size <= self.len).then_some(start..start + size)
    }
}

struct Slot {
    user: Option<Root>,
    system: Option<Root>,
    transaction: u64,
}

impl Slot {
    fn read(bytes: &[u8]) -> Option<Self> {
        let sum = u128::from_le_bytes(*bytes[SLOT_SUMMED..].first_chunk()?);
        if bytes[0] != FORMAT || !btree::fits(xxh3_128(&bytes[..SLOT_SUMMED]), sum) {
            return None;
        }
        let root = |present: u8, at: usize| {
            if present == 0 { Some(None) } else { Root::read(&bytes[at..]).map(Some) }
        };
        Some(Self {
            user: root(bytes[1], 8)?,
            system: root(bytes[2], 40)?,
            transaction: u64::from_le_bytes(*bytes[104..].first_chunk()?),
        })
    }
}

/// Reads a table's definition: type, length, root (present, page, checksum, length), key and value
/// widths (present, bytes), and the names of the types.
fn parse_table(name: &[u8], bytes: &[u8]) -> Option<Table> {
    let width = |at: usize| -> Option<Option<usize>> {
        let bytes = bytes.get(at..at + 5)?;
        let width = u32::from_le_bytes(*bytes[1..].first_chunk()?) as usize;
        Some((bytes[0] != 0).then_some(width))
    };
    let root = if *bytes.get(9)? == 0 { None } else { Some(Root::read(bytes.get(10..)?)?) };
    let shape = Shape { key: width(42)?, value: width(47)? };
    Some(Table { name: name.to_vec(), root, shape })
}
