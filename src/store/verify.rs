//! Verification of a whole log from its files: every page, row, root, checkpoint and link.
//!
//! It believes nothing but the keys and pins it is given. A log is proved up to the last checkpoint
//! whose signature holds; that nothing was cut off behind it only a pin can show.

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
use crate::store::report::{Fault, Pin, Report, VerifiedEpoch};
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
/// Only a folder or file that the system refuses to read is an error; all else is in the report.
pub fn verify(
    dir: &Path,
    keys: &[NoteKey],
    pins: &[Pin],
    row: impl FnMut(EventPos, &[u8]) -> Result<(), String>,
) -> Result<Report, ReadError> {
    let epochs = LogReader::new(dir).epochs()?;
    let mut expected: BTreeMap<EpochId, Vec<Expected>> = BTreeMap::new();
    for pin in pins {
        let head = Expected { size: pin.size, root: pin.root, whose: "that was pinned" };
        expected.entry(pin.epoch).or_default().push(head);
    }
    let mut report = Report { is_pinned: !pins.is_empty(), ..Report::default() };
    for (n, epoch) in epochs.iter().enumerate() {
        let Some(before) = epoch.predecessor else {
            if n > 0 && !epoch.segments.is_empty() {
                let why = "it names no epoch before it, and there is one";
                report.add(Fault::EpochChain { epoch: epoch.epoch, why });
            }
            continue;
        };
        let whose = "that the next epoch names";
        expected.entry(before.epoch).or_default().push(Expected {
            size: before.size,
            root: before.root,
            whose,
        });
    }
    for gone in expected.keys().filter(|epoch| epochs.iter().all(|here| here.epoch != **epoch)) {
        report.add(Fault::EpochChain { epoch: *gone, why: "it is missing" });
    }

    let mut verifier = Verifier { keys, row, report };
    for epoch in &epochs {
        let expected = expected.remove(&epoch.epoch).unwrap_or_default();
        let outcome = verifier.epoch(epoch, expected)?;
        verifier.report.epochs.push(outcome);
    }
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

/// A root that the epoch must have had at some size.
#[derive(Clone, Copy)]
struct Expected {
    size: u64,
    root: Digest,
    whose: &'static str,
}

struct Verifier<'a, F> {
    keys: &'a [NoteKey],
    row: F,
    report: Report,
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

    /// Reports rows that should stand between the tree and `first`.
    fn gap(&self, first: u64, report: &mut Report) {
        let next = self.tree.size() + 1;
        if first > next {
            let (first, last) = (Seq(next), Seq(first - 1));
            report.add(Fault::Missing { epoch: self.id, first, last });
        }
    }
}

impl<F: FnMut(EventPos, &[u8]) -> Result<(), String>> Verifier<'_, F> {
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
            checkpoints: 0,
            signed_to: Seq(0),
        };
        let mut epoch = Epoch { id, tree: Frontier::default(), expected, outcome };
        // Rows that were set aside matter as far as the next epoch says that it builds on them.
        let built_on = epoch.expected.iter().map(|expected| expected.size).max().unwrap_or(0);
        let mut parts: BTreeMap<(u64, u8, usize), Part<'_>> = BTreeMap::new();
        for name in &on_disk.segments {
            parts.insert((name.first, 1, 0), Part::Rows(&name.path));
        }
        for (n, path) in on_disk.aside.iter().enumerate() {
            let first = path.file_name().and_then(|name| name.to_str());
            let first = first.and_then(|name| name.get(..20)?.parse().ok()).unwrap_or(u64::MAX);
            parts.insert((first, 2, n), Part::Aside(path, built_on));
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
                Part::Aside(path, limit) if epoch.tree.size() < limit => {
                    self.segment(&mut epoch, path, first, limit)?;
                }
                Part::Aside(..) => {}
                Part::Dropped(path) => self.dropped(&mut epoch, path, first)?,
            }
        }
        let have = epoch.tree.size();
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
        epoch.outcome.dropped += tiles.leaves.len() as u64;
        if !tiles.checkpoint.is_empty() {
            let size = Checkpoint::parse_size(&tiles.checkpoint).unwrap_or(epoch.tree.size());
            self.checkpoint(epoch, size, &tiles.checkpoint);
        }
        Ok(())
    }

    /// Reports when a segment does not go on where the one before ended, and follows it.
    fn joins(&mut self, epoch: &mut Epoch, base: &Frontier) {
        epoch.gap(base.size() + 1, &mut self.report);
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
                        self.report.unfinished.push(path.to_owned());
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
        let notes = table_rows(pages, "checkpoints").map_err(ReadError::io(path))?;
        for (size, note) in &notes {
            let size = size.as_slice().try_into().map_or(0, u64::from_le_bytes);
            if size <= limit {
                self.checkpoint(epoch, size, note);
            }
        }
        let complete = self.rows(epoch, pages, path, limit)?;
        if is_whole {
            self.ends(epoch, pages, path, &meta, complete)?;
        }
        Ok(())
    }

    /// Folds the rows; says whether all of them were there.
    fn rows(
        &mut self,
        epoch: &mut Epoch,
        pages: &PageFile,
        path: &Path,
        limit: u64,
    ) -> Result<bool, ReadError> {
        let tiles = match Tiles::read(&layout::tiles_path(path)) {
            Ok(Some(tiles)) => Some(tiles),
            Ok(None) => {
                self.structure(&layout::tiles_path(path), 0, "the tiles do not fit their own hash");
                None
            }
            Err(_) => None,
        };
        let first = epoch.tree.size() + 1;
        let mut complete = true;
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
                let next = epoch.tree.size() + 1;
                if seq < next || (!leaf.is_sound && seq > next) {
                    // A number on a damaged page is itself in doubt.
                    let at = epoch.pos(if seq < next { seq } else { next });
                    self.report.add(Fault::Event { at, why: "it is out of order".to_owned() });
                    complete = false;
                    return ControlFlow::Continue(());
                }
                if seq > next {
                    epoch.gap(seq, &mut self.report);
                    complete = false;
                }
                let at = epoch.pos(seq);
                let sealed = |n: u64| tiles.as_ref()?.leaves.get((n - first) as usize).copied();
                // Where rows are gone, the tiles still know their hashes.
                for gone in next..seq {
                    epoch.tree.push(sealed(gone).unwrap_or(hash));
                }
                if sealed(seq).is_some_and(|sealed| sealed != hash) {
                    let why = "it is not the one that was sealed".to_owned();
                    self.report.add(Fault::Event { at, why });
                } else if let Err(why) = (self.row)(at, row) {
                    self.report.add(Fault::Event { at, why });
                }
                epoch.outcome.rows += 1;
                epoch.tree.push(hash);
                if complete {
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
        Ok(complete)
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
        epoch.gap(meta.head.size() + 1, &mut self.report);
        if complete && epoch.tree.size() >= meta.head.size() && epoch.tree != meta.head {
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
