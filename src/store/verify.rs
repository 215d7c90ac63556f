//! Verification of a whole log from its files: every page, row, root, checkpoint and link.
//!
//! It believes nothing but the keys and pins it is given. A log is proved up to the last checkpoint
//! whose signature holds; that nothing was cut off behind it only a pin can show.

mod gone;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use crate::domain::id::{Digest, EpochId, Seq};
use crate::domain::tree::{self, Frontier};
use crate::store::ahead;
use crate::store::btree::Leaf;
use crate::store::layout;
use crate::store::pages::{Commit, PageFile};
use crate::store::read::{EpochOnDisk, EventPos, LogReader, ReadError, meta_of, table_rows};
use crate::store::report::{Fault, Pin, Report, Told, VerifiedEpoch};
use crate::store::seal::Footer;
use crate::store::segment::{SegmentMeta, key};
use crate::store::tiles::Tiles;
use crate::wire::note::{Checkpoint, Note, NoteKey};

/// How often a segment that its owner writes is read again before its faults are believed.
const RACES_MAX: usize = 5;

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

/// Returns the hashes of the rows of a leaf.
fn hashes(leaf: &Leaf<'_>) -> Vec<Digest> {
    let mut hashes = Vec::new();
    leaf.entries(|_, row| {
        hashes.push(tree::leaf(row));
        ControlFlow::Continue(())
    });
    hashes
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

/// In what state a file was found, and left.
enum State {
    /// Closed in order: what is wrong with it is wrong.
    Clean,
    /// Its owner runs, or died without closing it.
    Unclean,
    /// Its owner wrote to it while it was read.
    Changed,
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

    fn segment(
        &mut self,
        epoch: &mut Epoch,
        path: &Path,
        first: u64,
        limit: u64,
    ) -> Result<(), ReadError> {
        // The owner may write while this reads; then the faults are of the reading, not of the log.
        for race in 0.. {
            let faults = self.report.faults.len();
            let begin = (epoch.tree.clone(), epoch.expected.clone(), epoch.outcome.clone());
            let changed = self.segment_at(Commit::Newest, epoch, path, first, limit)?;
            if self.report.faults.len() == faults {
                return Ok(());
            }
            match changed {
                State::Clean => return Ok(()),
                State::Changed if race < RACES_MAX => {}
                State::Unclean | State::Changed => {
                    // The newest commit may have been under way when its writer died.
                    let found = self.report.faults.split_off(faults);
                    let newest = std::mem::replace(&mut epoch.tree, begin.0);
                    let newest = (newest, epoch.expected.clone(), epoch.outcome.clone());
                    (epoch.expected, epoch.outcome) = (begin.1, begin.2);
                    self.segment_at(Commit::Older, epoch, path, first, limit)?;
                    if self.report.faults.len() == faults {
                        self.unfinished(epoch, path);
                    } else {
                        self.report.faults.truncate(faults);
                        self.report.faults.extend(found);
                        (epoch.tree, epoch.expected, epoch.outcome) = newest;
                    }
                    return Ok(());
                }
            }
            self.report.faults.truncate(faults);
            (epoch.tree, epoch.expected, epoch.outcome) = begin;
        }
        Ok(())
    }

    /// Reports that the commit behind the rows that were read is not whole, unless it is being written.
    fn unfinished(&mut self, epoch: &Epoch, path: &Path) {
        let next = layout::segment_path(self.dir, epoch.id, epoch.tree.size() + 1);
        let is_active = self.newest == Some(epoch.id) && !next.exists();
        if is_active && LogReader::new(self.dir).has_owner() {
            self.report.unfinished.push(path.to_owned());
        } else {
            let last = epoch.pos(epoch.tree.size());
            self.report.add(Fault::Unfinished { path: path.to_owned(), last });
        }
    }

    /// Verifies a segment at one of its commits, and says what may be made of faults.
    fn segment_at(
        &mut self,
        commit: Commit,
        epoch: &mut Epoch,
        path: &Path,
        first: u64,
        limit: u64,
    ) -> Result<State, ReadError> {
        let pages = match PageFile::open_at(path, commit).map_err(ReadError::io(path))? {
            Ok(pages) => pages,
            Err(fault) => {
                self.structure(path, fault.offset, fault.why);
                return Ok(State::Clean);
            }
        };
        self.open_segment(epoch, &pages, path, first, limit)?;
        Ok(match (pages.is_clean(), pages.changed()) {
            (_, true) => State::Changed,
            (true, false) => State::Clean,
            (false, false) => State::Unclean,
        })
    }

    fn structure(&mut self, path: &Path, offset: u64, why: impl Into<String>) {
        self.report.add(Fault::Structure { path: path.to_owned(), offset, why: why.into() });
    }

    fn open_segment(
        &mut self,
        epoch: &mut Epoch,
        pages: &PageFile,
        path: &Path,
        first: u64,
        limit: u64,
    ) -> Result<(), ReadError> {
        let is_whole = limit == u64::MAX;
        if is_whole {
            for fault in pages.faults() {
                self.structure(path, fault.offset, fault.why);
            }
        }
        let meta = match meta_of(pages, path) {
            Ok(meta) => meta,
            Err(ReadError::Damaged { offset, why, .. }) => {
                self.structure(path, offset, why);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if meta.epoch != epoch.id || meta.first() != first {
            let why = format!("it is the segment {}/{}", meta.epoch.token(), meta.first());
            self.structure(path, 0, why);
            return Ok(());
        }
        self.joins(epoch, &meta.base);
        if meta.baseline != 0 && !(first..=meta.head.size()).contains(&meta.baseline) {
            let why = format!("its baseline ends at row {}, which it does not have", meta.baseline);
            self.structure(path, 0, why);
        }
        let notes = table_rows(pages, "checkpoints").map_err(ReadError::io(path))?;
        for (size, note) in &notes {
            let size = size.as_slice().try_into().map_or(0, u64::from_le_bytes);
            if size <= limit {
                self.checkpoint(epoch, size, note);
            }
        }
        let (next, complete) = self.rows(epoch, pages, path, (meta.head.size(), limit))?;
        epoch.is_sealed = meta.sealed;
        if is_whole {
            epoch.gap(next, meta.head.size() + 1, &mut self.report);
            self.ends(epoch, pages, path, &meta, complete)?;
        }
        Ok(())
    }

    /// Folds the rows; says which comes next, and whether all of them were there.
    fn rows(
        &mut self,
        epoch: &mut Epoch,
        pages: &PageFile,
        path: &Path,
        (head, limit): (u64, u64),
    ) -> Result<(u64, bool), ReadError> {
        let tiles = match Tiles::read(&layout::tiles_path(path)) {
            Ok(Some(tiles)) => Some(tiles),
            Ok(None) => {
                self.structure(&layout::tiles_path(path), 0, "the tiles do not fit their own hash");
                None
            }
            Err(_) => None,
        };
        let first = epoch.tree.size() + 1;
        let (mut next, mut complete) = (first, true);
        let faults = ahead::walk(pages, "events", None, hashes, |leaf, hashes| {
            let mut ended = false;
            let mut hashes = hashes.into_iter();
            let whole = leaf.entries(|key, row| {
                let hash = hashes.next().expect("invariant: each entry was hashed");
                let seq = key.try_into().map_or(0, u64::from_le_bytes);
                if seq > limit {
                    ended = true;
                    return ControlFlow::Break(());
                }
                if seq < next || (!leaf.is_sound && seq > next) {
                    // A number on a damaged page is itself in doubt.
                    let at = epoch.pos(seq.min(next));
                    self.report.add(Fault::Event { at, why: "it is out of order".to_owned() });
                    complete = false;
                    return ControlFlow::Continue(());
                }
                if seq > head {
                    let why = "it lies behind the end of the log".to_owned();
                    self.report.add(Fault::Event { at: epoch.pos(seq), why });
                    complete = false;
                    return ControlFlow::Continue(());
                }
                if seq > next {
                    epoch.gap(next, seq, &mut self.report);
                    complete = false;
                }
                let at = epoch.pos(seq);
                let sealed = |n: u64| tiles.as_ref()?.leaves.get((n - first) as usize).copied();
                if sealed(seq).is_some_and(|sealed| sealed != hash) {
                    let why = "it is not the one that was sealed".to_owned();
                    self.report.add(Fault::Event { at, why });
                } else {
                    match (self.row)(at, row).map(Into::into) {
                        Ok(Told::Nothing | Told::Opened(_)) => {}
                        Ok(Told::Retired { epoch, last, root }) => {
                            self.retired.push((epoch, last.0, root));
                        }
                        Err(why) => self.report.add(Fault::Event { at, why }),
                    }
                }
                epoch.outcome.rows += 1;
                next = seq + 1;
                // Behind a gap the tree is another one; the next segment says where it begins.
                if complete {
                    epoch.tree.push(hash);
                    epoch.meet(&mut self.report);
                }
                ControlFlow::Continue(())
            });
            if !whole {
                self.structure(path, leaf.offset, "a row leads out of its page");
                complete = false;
            }
            if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        for fault in faults.map_err(ReadError::io(path))? {
            if limit == u64::MAX {
                self.structure(path, fault.offset, fault.why);
            }
        }
        Ok((next, complete))
    }

    /// Compares the end of a segment with what it says of itself.
    fn ends(
        &mut self,
        epoch: &mut Epoch,
        pages: &PageFile,
        path: &Path,
        meta: &SegmentMeta,
        complete: bool,
    ) -> Result<(), ReadError> {
        if complete && epoch.tree.size() == meta.head.size() && epoch.tree != meta.head {
            let at = epoch.pos(meta.head.size());
            self.report.add(Fault::Root { at, whose: "that stands beside them" });
        }
        epoch.tree = meta.head.clone();
        if meta.sealed {
            let rows = table_rows(pages, "meta").map_err(ReadError::io(path))?;
            let footer = Footer::of(meta).to_bytes();
            if !rows.iter().any(|(name, value)| name == key::FOOTER.as_bytes() && *value == footer)
            {
                self.structure(path, 0, "its footer does not fit its rows");
            }
        }
        for table in ["checkpoints", "meta", "index"] {
            let missing_is_fine = table == "index" && !meta.sealed;
            let faults = pages.walk(table, None, |_| ControlFlow::Continue(()));
            for fault in faults.map_err(ReadError::io(path))? {
                if !missing_is_fine {
                    self.structure(path, fault.offset, fault.why);
                }
            }
        }
        Ok(())
    }

    /// Checks signature and place of a checkpoint; its root is met when the rows reach its size.
    fn checkpoint(&mut self, epoch: &mut Epoch, size: u64, note: &[u8]) {
        let at = epoch.pos(size);
        let mut refuse = |why: String| self.report.add(Fault::Checkpoint { at, why });
        let parsed = Note::parse(note).and_then(|note| Ok((Checkpoint::parse(&note.text)?, note)));
        let (head, note) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return refuse(error.to_string()),
        };
        let token = epoch.id.token();
        if head.size != size || head.origin.rsplit('/').next() != Some(token.as_str()) {
            return refuse("it is a checkpoint of another log or size".to_owned());
        }
        epoch.outcome.checkpoints += 1;
        let fits = |key: &&NoteKey| head.origin == format!("{}/{token}", key.name());
        let verified = self.keys.iter().filter(fits).map(|key| key.verify(&note));
        match verified.reduce(|best, next| best.or(next)) {
            None if self.keys.is_empty() => {}
            None => return refuse(format!("no key is known for `{}`", head.origin)),
            Some(Err(error)) => return refuse(error.to_string()),
            Some(Ok(_)) => epoch.outcome.signed_to = epoch.outcome.signed_to.max(Seq(size)),
        }
        let expected = Expected { size, root: head.root, whose: "of a checkpoint" };
        if size >= epoch.tree.size() {
            epoch.expected.push(expected);
        }
        epoch.meet(&mut self.report);
    }
}
