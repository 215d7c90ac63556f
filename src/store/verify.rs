//! Verification of a whole log from its files: every page, row, root, checkpoint and link.
//!
//! It believes nothing but the keys and pins it is given. A log is proved up to the last checkpoint
//! whose signature holds; that nothing was cut off behind it only a pin can show.

mod gone;
mod segment;

use std::collections::BTreeMap;
use std::path::Path;

use crate::domain::id::{Digest, EpochId, Seq};
use crate::domain::tree::{self, Frontier};
use crate::store::layout;
use crate::store::read::{EpochOnDisk, EventPos, LogReader, ReadError};
use crate::store::report::{Fault, Pin, Report, Told, VerifiedEpoch};
use crate::store::tiles::Tiles;
use crate::wire::note::{Checkpoint, NoteKey};

/// Verifies the log in `dir`, which may be live, and changes nothing there.
///
/// `keys` may sign for this log: a key's name is the origin line without its epoch. Without keys
/// signatures are not checked. `row` judges each row by itself, for example its own signature.
/// It also says what a row tells of the log itself: rows that are gone are excused by that alone.
/// Only a folder or file that the system refuses to read is an error; all else is in the report.
pub fn verify<T: Into<Told>>(
    dir: &Path,
    keys: &[NoteKey],
    pins: &[Pin],
    row: impl FnMut(EventPos, &[u8]) -> Result<T, String>,
) -> Result<Report, ReadError> {
    let epochs = LogReader::new(dir).epochs()?;
    let report = Report { is_pinned: !pins.is_empty(), ..Report::default() };
    let newest = epochs.last().map(|epoch| epoch.epoch);
    let (dropped, retired) = (Vec::new(), Vec::new());
    let mut verifier = Verifier { dir, keys, row, report, newest, dropped, retired };
    let mut expected: BTreeMap<EpochId, Vec<Expected>> = BTreeMap::new();
    for pin in pins {
        let head = Expected { size: pin.size, root: pin.root, whose: "that was pinned" };
        expected.entry(pin.epoch).or_default().push(head);
    }
    for (n, epoch) in epochs.iter().enumerate() {
        let Some(before) = verifier.predecessor(epoch) else {
            // Where its first rows were dropped, so was every epoch before it.
            if n > 0 && epoch.segments.first().is_some_and(|name| name.first == 1) {
                let why = "it names no epoch before it, and there is one";
                verifier.report.add(Fault::EpochChain { epoch: epoch.epoch, why });
            }
            continue;
        };
        let (size, root, whose) = (before.size, before.root, "that the next epoch names");
        expected.entry(before.epoch).or_default().push(Expected { size, root, whose });
    }
    for gone in expected.keys().filter(|epoch| epochs.iter().all(|here| here.epoch != **epoch)) {
        verifier.report.add(Fault::EpochChain { epoch: *gone, why: "it is missing" });
    }
    for epoch in &epochs {
        let expected = expected.remove(&epoch.epoch).unwrap_or_default();
        let outcome = verifier.epoch(epoch, expected)?;
        verifier.report.epochs.push(outcome);
    }
    verifier.excuse_dropped(&epochs);
    Ok(verifier.report)
}

/// Returns the first row of a file that was set aside, from its name; all others come first.
fn first_of(path: &Path) -> u64 {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.get(..20)?.parse().ok()).unwrap_or(u64::MAX)
}

/// A root that the epoch must have had at some size.
#[derive(Clone, Copy)]
struct Expected {
    size: u64,
    root: Digest,
    whose: &'static str,
}

struct Verifier<'a, F> {
    dir: &'a Path,
    keys: &'a [NoteKey],
    row: F,
    report: Report,
    newest: Option<EpochId>,
    /// The segments of which only the hashes are left.
    dropped: Vec<Dropped>,
    /// What rows say that retention dropped: the epoch, the last row, the root up to it.
    retired: Vec<(EpochId, u64, Digest)>,
}

/// A segment whose rows are gone.
struct Dropped {
    epoch: EpochId,
    first: u64,
    last: u64,
    root: Digest,
}

/// A part of an epoch on disk.
enum Part<'a> {
    Rows(&'a Path),
    /// Rows that were set aside; they count as far as the next epoch builds on them.
    Aside(&'a Path, u64),
    Dropped(&'a Path),
}

/// The state of one epoch while it is read.
struct Epoch {
    id: EpochId,
    tree: Frontier,
    expected: Vec<Expected>,
    outcome: VerifiedEpoch,
    /// Whether the segment that was read last says that it is not the last one.
    is_sealed: bool,
}

impl Epoch {
    fn pos(&self, seq: u64) -> EventPos {
        EventPos { epoch: self.id, seq: Seq(seq) }
    }

    /// Compares the tree with what must have been at this size.
    fn meet(&mut self, report: &mut Report) {
        let (size, at) = (self.tree.size(), self.pos(self.tree.size()));
        let tree = &self.tree;
        self.expected.retain(|expected| {
            if expected.size == size && expected.root != tree.root() {
                report.add(Fault::Root { at, whose: expected.whose });
            }
            expected.size != size
        });
    }

    /// Reports rows that should stand between `next` and `first`.
    fn gap(&self, next: u64, first: u64, report: &mut Report) {
        if first > next {
            let (first, last) = (Seq(next), Seq(first - 1));
            report.add(Fault::Missing { epoch: self.id, first, last });
        }
    }
}

impl<F: FnMut(EventPos, &[u8]) -> Result<T, String>, T: Into<Told>> Verifier<'_, F> {
    fn epoch(
        &mut self,
        on_disk: &EpochOnDisk,
        expected: Vec<Expected>,
    ) -> Result<VerifiedEpoch, ReadError> {
        let id = on_disk.epoch;
        let outcome = VerifiedEpoch {
            epoch: id,
            last: Seq(0),
            root: tree::empty_root(),
            rows: 0,
            dropped: 0,
            aside: 0,
            checkpoints: 0,
            signed_to: Seq(0),
        };
        let tree = Frontier::default();
        let mut epoch = Epoch { id, tree, expected, outcome, is_sealed: false };
        for path in layout::strangers(self.dir, id).map_err(ReadError::io(self.dir))? {
            self.structure(&path, 0, "its name is none that the log gives");
        }
        // Rows that were set aside matter as far as the next epoch says that it builds on them.
        let built_on = epoch.expected.iter().map(|expected| expected.size).max().unwrap_or(0);
        let mut parts: BTreeMap<(u64, u8, usize), Part<'_>> = BTreeMap::new();
        for name in &on_disk.segments {
            parts.insert((name.first, 1, 0), Part::Rows(&name.path));
        }
        for (n, path) in on_disk.aside.iter().enumerate() {
            parts.insert((first_of(path), 2, n), Part::Aside(path, built_on));
        }
        for name in &on_disk.tiles {
            let has_rows = parts.range((name.first, 1, 0)..(name.first + 1, 0, 0)).next().is_some();
            if !has_rows {
                parts.insert((name.first, 0, 0), Part::Dropped(&name.path));
            }
        }
        epoch.meet(&mut self.report);
        for ((first, ..), part) in parts {
            match part {
                Part::Rows(path) => self.segment(&mut epoch, path, first, u64::MAX)?,
                Part::Aside(path, limit) => {
                    if epoch.tree.size() < limit {
                        self.segment(&mut epoch, path, first, limit)?;
                    }
                    self.set_aside(&mut epoch, path, limit)?;
                }
                Part::Dropped(path) => self.dropped(&mut epoch, path, first)?,
            }
        }
        let have = epoch.tree.size();
        if self.newest == Some(id) {
            self.goes_on(&epoch, on_disk)?;
        }
        for cut in epoch.expected.iter().filter(|expected| expected.size > have) {
            self.report.add(Fault::TailCut { epoch: id, have, pinned: cut.size });
        }
        epoch.outcome.last = Seq(have);
        epoch.outcome.root = epoch.tree.root();
        Ok(epoch.outcome)
    }

    /// Takes the rows of a dropped segment from its tiles.
    fn dropped(&mut self, epoch: &mut Epoch, path: &Path, first: u64) -> Result<(), ReadError> {
        let broken =
            |why: &str| Fault::Structure { path: path.to_owned(), offset: 0, why: why.to_owned() };
        let Some(tiles) = Tiles::read(path).map_err(ReadError::io(path))? else {
            self.report.add(broken("the tiles do not fit their own hash"));
            return Ok(());
        };
        if tiles.base.size() + 1 != first {
            self.report.add(broken("the tiles belong to another segment"));
            return Ok(());
        }
        self.joins(epoch, &tiles.base);
        for leaf in &tiles.leaves {
            epoch.tree.push(*leaf);
            epoch.meet(&mut self.report);
        }
        let (id, last, root) = (epoch.id, epoch.tree.size(), epoch.tree.root());
        self.dropped.push(Dropped { epoch: id, first, last, root });
        epoch.is_sealed = false;
        epoch.outcome.dropped += tiles.leaves.len() as u64;
        if !tiles.checkpoint.is_empty() {
            let size = Checkpoint::parse_size(&tiles.checkpoint).unwrap_or(epoch.tree.size());
            self.checkpoint(epoch, size, &tiles.checkpoint);
        }
        Ok(())
    }

    /// Reports when a segment does not go on where the one before ended, and follows it.
    fn joins(&mut self, epoch: &mut Epoch, base: &Frontier) {
        epoch.gap(epoch.tree.size() + 1, base.size() + 1, &mut self.report);
        if base.size() == epoch.tree.size() && *base != epoch.tree {
            let at = epoch.pos(base.size());
            self.report.add(Fault::Root { at, whose: "that the next segment begins with" });
        }
        epoch.tree = base.clone();
        epoch.meet(&mut self.report);
    }

    fn structure(&mut self, path: &Path, offset: u64, why: impl Into<String>) {
        self.report.add(Fault::Structure { path: path.to_owned(), offset, why: why.into() });
    }
}
