//! Reads the pages of a redb file (format 3) by itself: without a lock, a repair or a write.
//!
//! This is what makes an audit of a live, a damaged or a foreign file possible: every offset is
//! checked before it is followed and every page against its checksum, so any bytes give rows and
//! faults, and nothing panics. The engine's own reader may do neither on a file that was edited.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::store::xxh3::xxh3_128;

const PAGE: u64 = 4096;
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
const SLOTS: [usize; 2] = [64, 192];
const SLOT_BYTES: usize = 128;
const SLOT_SUMMED: usize = 112;
const HEADER_BYTES: usize = 320;
const FORMAT: u8 = 3;

/// The deepest tree that is followed; one of 64 MiB has three levels.
const DEPTH_MAX: usize = 24;

/// The largest page that is read: 32 MiB holds any row that the log accepts.
const ORDER_MAX: u8 = 13;

/// A place in the file where the structure is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageFault {
    pub(crate) offset: u64,
    pub(crate) why: &'static str,
}

fn fault(offset: u64, why: &'static str) -> PageFault {
    PageFault { offset, why }
}

/// A subtree: its root page, the checksum that page must have, and its entries.
#[derive(Clone, Copy, Debug)]
struct Root {
    page: u64,
    checksum: u128,
}

/// Whether keys and values of a table have one length, and which.
#[derive(Clone, Copy, Debug)]
struct Shape {
    key: Option<usize>,
    value: Option<usize>,
}

const TABLES: Shape = Shape { key: None, value: None };

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
    /// The newest whose slot fits its checksum.
    Newest,
    /// The one before it, on which redb falls back when the newest did not reach the disk whole.
    Older,
}

/// One leaf page: its place, and whether its checksum holds.
pub(crate) struct Leaf<'a> {
    pub(crate) offset: u64,
    pub(crate) is_sound: bool,
    page: &'a [u8],
    shape: Shape,
}

/// A redb file, opened for reading alone.
pub(crate) struct PageFile {
    file: File,
    len: u64,
    region_bytes: u64,
    region_header_bytes: u64,
    users: Vec<Table>,
    header: [u8; HEADER_BYTES],
    /// Faults of header and table trees.
    faults: Vec<PageFault>,
    /// What header, table trees and the engine's own tables occupy.
    used: Vec<Range<u64>>,
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
            faults: Vec::new(),
            used: Vec::new(),
        };
        Ok(this.read_header(commit).map(|()| this))
    }

    /// Says whether the file was closed in order, so that no commit can be half on disk.
    pub(crate) fn is_clean(&self) -> bool {
        self.header[9] & 2 == 0
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
            return Ok(vec![fault(0, "a table of the log is missing")]);
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
        let primary = usize::from(header[9] & 1);
        let newest = match &slots {
            [Some(a), Some(b)] => usize::from(b.transaction > a.transaction),
            [Some(_), None] => 0,
            [None, Some(_)] => 1,
            [None, None] => return Err(fault(64, "no commit slot fits its checksum")),
        };
        if newest != primary && !unclean && slots[primary].is_some() {
            self.faults.push(fault(9, "the flags name the older of the two commits"));
        }
        // Padding and the flags of the engine carry no history.
        self.used.extend([0..10, 12..24, 64..320]);
        if !unclean {
            self.used.push(24..32);
        }
        let wanted = match commit {
            Commit::Newest => newest,
            Commit::Older => 1 - newest,
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

    /// Returns where a page lies, when it lies in the file.
    fn place(&self, page: u64) -> Option<Range<u64>> {
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
        if bytes[0] != FORMAT || xxh3_128(&bytes[..SLOT_SUMMED]) != Some(sum) {
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

impl Root {
    fn read(bytes: &[u8]) -> Option<Self> {
        let page = u64::from_le_bytes(*bytes.first_chunk()?);
        let checksum = u128::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
        Some(Self { page, checksum })
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

impl Leaf<'_> {
    /// Gives `visit` each key and value; says whether all of them lay inside the page.
    pub(crate) fn entries(&self, visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) -> bool {
        entries(self.page, self.shape, visit).is_some()
    }
}

fn u16_at(page: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(*page.get(at..)?.first_chunk()?)))
}

fn u32_at(page: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(*page.get(at..)?.first_chunk()?) as usize)
}

fn entries(
    page: &[u8],
    shape: Shape,
    mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Option<()> {
    let places = LeafPlaces::new(page, shape)?;
    let mut key = places.keys;
    let mut value = places.key_end(page, places.count.checked_sub(1)?)?;
    for n in 0..places.count {
        let (key_end, value_end) = (places.key_end(page, n)?, places.value_end(page, n)?);
        if visit(page.get(key..key_end)?, page.get(value..value_end)?).is_break() {
            break;
        }
        (key, value) = (key_end, value_end);
    }
    Some(())
}

/// Where keys and values stand in a leaf.
struct LeafPlaces {
    shape: Shape,
    count: usize,
    key_ends: usize,
    value_ends: usize,
    keys: usize,
}

impl LeafPlaces {
    fn new(page: &[u8], shape: Shape) -> Option<Self> {
        let count = u16_at(page, 2)?;
        let key_ends = 4;
        let value_ends = key_ends + if shape.key.is_none() { 4 * count } else { 0 };
        let keys = value_ends + if shape.value.is_none() { 4 * count } else { 0 };
        Some(Self { shape, count, key_ends, value_ends, keys })
    }

    fn key_end(&self, page: &[u8], n: usize) -> Option<usize> {
        match self.shape.key {
            Some(width) => self.keys.checked_add(width.checked_mul(n + 1)?),
            None => u32_at(page, self.key_ends + 4 * n),
        }
    }

    fn value_end(&self, page: &[u8], n: usize) -> Option<usize> {
        match self.shape.value {
            Some(width) => {
                let start = self.key_end(page, self.count.checked_sub(1)?)?;
                start.checked_add(width.checked_mul(n + 1)?)
            }
            None => u32_at(page, self.value_ends + 4 * n),
        }
    }

    /// Returns how many bytes of the page are in use.
    fn used(&self, page: &[u8]) -> Option<usize> {
        self.value_end(page, self.count.checked_sub(1)?)
    }
}

/// A branch page: how many children, and where their checksums, numbers and keys stand.
struct Branch<'a> {
    page: &'a [u8],
    keys: usize,
    width: Option<usize>,
}

impl<'a> Branch<'a> {
    fn new(page: &'a [u8], width: Option<usize>) -> Option<Self> {
        let keys = u16_at(page, 2)?;
        (keys > 0).then_some(Self { page, keys, width })
    }

    fn child(&self, n: usize) -> Option<Root> {
        let page = self.page.get(8 + 16 * (self.keys + 1) + 8 * n..)?;
        Some(Root {
            checksum: u128::from_le_bytes(*self.page.get(8 + 16 * n..)?.first_chunk()?),
            page: u64::from_le_bytes(*page.first_chunk()?),
        })
    }

    fn key_end(&self, n: usize) -> Option<usize> {
        let fixed = 8 + 24 * (self.keys + 1);
        match self.width {
            Some(width) => fixed.checked_add(width.checked_mul(n + 1)?),
            None => u32_at(self.page, fixed + 4 * n),
        }
    }

    /// Returns the key that closes child `n`, in a table with `u64` keys.
    fn number(&self, n: usize) -> Option<u64> {
        if n >= self.keys || self.width != Some(8) {
            return None;
        }
        let end = self.key_end(n)?;
        Some(u64::from_le_bytes(*self.page.get(end - 8..)?.first_chunk()?))
    }

    fn used(&self) -> Option<usize> {
        self.key_end(self.keys - 1)
    }
}

/// One walk over a tree.
struct Walk<'a> {
    pages: &'a PageFile,
    from: Option<u64>,
    faults: Vec<PageFault>,
    used: Vec<Range<u64>>,
    seen: HashSet<u64>,
}

impl<'a> Walk<'a> {
    fn new(pages: &'a PageFile, from: Option<u64>) -> Self {
        Self { pages, from, faults: Vec::new(), used: Vec::new(), seen: HashSet::new() }
    }

    fn tree(
        &mut self,
        root: Root,
        shape: Shape,
        mut visit: impl FnMut(&Leaf<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        // (subtree, depth, where it is named)
        let mut open = vec![(root, 0_usize, 64_u64)];
        let mut buffer = Vec::new();
        while let Some((root, depth, named_at)) = open.pop() {
            let Some(place) = self.pages.place(root.page) else {
                self.faults.push(fault(named_at, "a page number leads out of the file"));
                continue;
            };
            if depth > DEPTH_MAX || !self.seen.insert(place.start) {
                self.faults.push(fault(named_at, "the pages do not form a tree"));
                continue;
            }
            buffer.resize((place.end - place.start) as usize, 0);
            self.pages.file.read_exact_at(&mut buffer, place.start)?;
            let page = buffer.as_slice();
            let branch = match page[0] {
                1 => None,
                2 => Branch::new(page, shape.key),
                _ => {
                    self.faults.push(fault(place.start, "a page is neither leaf nor branch"));
                    continue;
                }
            };
            let used = match (&branch, page[0]) {
                (Some(branch), _) => branch.used(),
                (None, 1) => LeafPlaces::new(page, shape).and_then(|leaf| leaf.used(page)),
                (None, _) => None,
            };
            let summed = used.and_then(|used| page.get(..used)).and_then(xxh3_128);
            let is_sound = summed == Some(root.checksum);
            if let Some(used) = used {
                self.used.push(place.start..place.start + used as u64);
            }
            if !is_sound {
                self.faults.push(fault(place.start, "a page does not fit its checksum"));
            }
            match branch {
                Some(branch) if is_sound => {
                    let from = self.from;
                    let before = |n: usize| from.zip(branch.number(n)).is_some_and(|(f, k)| f > k);
                    let children = (0..=branch.keys).rev().filter(|n| !before(*n));
                    let children = children.filter_map(|n| branch.child(n));
                    open.extend(children.map(|child| (child, depth + 1, place.start)));
                }
                // What hangs below a branch that lies is unknown, not merely suspect.
                Some(_) => {}
                None if page[0] == 2 => {}
                None => {
                    let leaf = Leaf { offset: place.start, is_sound, page, shape };
                    if visit(&leaf).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use redb::{Database, TableDefinition};

    use super::*;

    const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");
    const NAMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("names");

    fn row(n: u64) -> Vec<u8> {
        // Every length class of the checksum, and rows that need a page of their own.
        let len = if n % 97 == 0 { 9000 } else { n as usize % 300 };
        vec![n as u8; len]
    }

    #[test]
    fn what_redb_wrote_is_read_page_by_page_with_every_checksum_right() {
        let dir = tempfile::tempdir().unwrap();
        for rows in [1, 2, 3, 10, 40, 3000] {
            let path = dir.path().join(format!("{rows}.redb"));
            let mut database = Some(Database::create(&path).unwrap());
            for batch in (1..=rows).collect::<Vec<u64>>().chunks(500) {
                let change = database.as_ref().unwrap().begin_write().unwrap();
                let mut table = change.open_table(ROWS).unwrap();
                batch.iter().for_each(|n| drop(table.insert(n, row(*n).as_slice()).unwrap()));
                drop(table);
                let mut names = change.open_table(NAMES).unwrap();
                drop(names.insert("head", row(rows).as_slice()).unwrap());
                drop(names);
                change.commit().unwrap();
            }
            for state in ["live", "closed"] {
                let pages = PageFile::open(&path).unwrap().unwrap();
                assert_eq!(pages.faults(), [], "{rows} rows, {state}");
                let mut next = 1;
                let faults = pages.walk("rows", None, |leaf| {
                    assert!(leaf.entries(|key, value| {
                        assert_eq!(key, u64::to_le_bytes(next));
                        assert_eq!(value, row(next));
                        next += 1;
                        ControlFlow::Continue(())
                    }));
                    ControlFlow::Continue(())
                });
                assert_eq!(faults.unwrap(), []);
                assert_eq!(next, rows + 1);
                drop(database.take());
            }
        }
    }
}
