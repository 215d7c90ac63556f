//! The B-trees inside a redb file: leaves, branches, and a walk that follows nothing unchecked.

use std::collections::BTreeSet;
use std::io;
use std::ops::{ControlFlow, Range};

use crate::store::pages::{PageFault, PageFile, fault};
use crate::store::xxh3::xxh3_128;

/// The deepest tree that is followed; one of 64 MiB has three levels.
pub(crate) const DEPTH_MAX: usize = 24;

/// A subtree: its root page, the checksum that page must have, and its entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root {
    pub(crate) page: u64,
    pub(crate) checksum: u128,
}

/// Whether keys and values of a table have one length, and which.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) key: Option<usize>,
    pub(crate) value: Option<usize>,
}

pub(crate) const TABLES: Shape = Shape { key: None, value: None };

impl Root {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let page = u64::from_le_bytes(*bytes.first_chunk()?);
        let checksum = u128::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
        Some(Self { page, checksum })
    }
}

/// One leaf page: its place, and whether its checksum holds.
#[derive(Clone, Copy)]
pub(crate) struct Leaf<'a> {
    pub(crate) offset: u64,
    pub(crate) is_sound: bool,
    pub(crate) page: &'a [u8],
    pub(crate) shape: Shape,
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

/// Says whether bytes have the checksum that is named for them.
///
/// No mutation of a fuzzer has it, and what it looks for lies behind.
pub(crate) fn fits(summed: Option<u128>, named: u128) -> bool {
    cfg!(fuzzing) || summed == Some(named)
}

/// Returns the last child of a branch page; `None` for a leaf, and for what is neither.
pub(crate) fn last_child(page: &[u8], shape: Shape) -> Option<Root> {
    let branch = (page.first() == Some(&2)).then(|| Branch::new(page, shape.key))??;
    branch.child(branch.keys)
}

/// How much is read at once while pages follow each other, as they mostly do in a log.
const WINDOW_BYTES: u64 = 128 << 10;

/// The bytes of the file that were read last.
#[derive(Default)]
struct Window {
    start: u64,
    end: u64,
    /// Never shorter than it was, so that it is cleared once.
    bytes: Vec<u8>,
    last_end: u64,
}

impl Window {
    fn page(&mut self, pages: &PageFile, place: &Range<u64>) -> io::Result<&[u8]> {
        if place.start < self.start || place.end > self.end {
            let ahead = if place.start == self.last_end { WINDOW_BYTES } else { 0 };
            let end = place.end.max(place.start + ahead).min(pages.len());
            let wanted = (end - place.start) as usize;
            if self.bytes.len() < wanted {
                self.bytes.resize(wanted, 0);
            }
            (self.start, self.end) = (0, 0);
            pages.read_at(&mut self.bytes[..wanted], place.start)?;
            (self.start, self.end) = (place.start, end);
        }
        self.last_end = place.end;
        let at = (place.start - self.start) as usize;
        Ok(&self.bytes[at..at + (place.end - place.start) as usize])
    }
}

/// One walk over a tree.
pub(crate) struct Walk<'a> {
    pages: &'a PageFile,
    from: Option<u64>,
    pub(crate) faults: Vec<PageFault>,
    pub(crate) used: Vec<Range<u64>>,
    seen: BTreeSet<u64>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(pages: &'a PageFile, from: Option<u64>) -> Self {
        Self { pages, from, faults: Vec::new(), used: Vec::new(), seen: BTreeSet::new() }
    }

    /// Gives `visit` each leaf below `root`, in order; what is broken goes to `faults`.
    pub(crate) fn tree(
        &mut self,
        root: Root,
        shape: Shape,
        mut visit: impl FnMut(&Leaf<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        // (subtree, depth, where it is named)
        let mut open = vec![(root, 0_usize, 64_u64)];
        let mut window = Window::default();
        while let Some((root, depth, named_at)) = open.pop() {
            let Some(place) = self.pages.place(root.page) else {
                self.faults.push(fault(named_at, "a page number leads out of the file"));
                continue;
            };
            if depth > DEPTH_MAX || !self.seen.insert(place.start) {
                self.faults.push(fault(named_at, "the pages do not form a tree"));
                continue;
            }
            let page = window.page(self.pages, &place)?;
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
            let is_sound = fits(summed, root.checksum);
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
