//! Verification of one segment: its pages, rows, checkpoints, and what it says of itself.

use std::ops::ControlFlow;
use std::path::Path;

use super::{Epoch, Expected, Verifier};
use crate::domain::id::{Digest, Seq};
use crate::domain::tree;
use crate::store::ahead;
use crate::store::btree::Leaf;
use crate::store::layout;
use crate::store::pages::{Commit, PageFile};
use crate::store::read::{EventPos, LogReader, ReadError, meta_of, table_rows};
use crate::store::report::{Fault, Told};
use crate::store::seal::Footer;
use crate::store::segment::{SegmentMeta, key};
use crate::store::tiles::Tiles;
use crate::wire::note::{Checkpoint, Note, NoteKey};

/// How often a segment that its owner writes is read again before its faults are believed.
const RACES_MAX: usize = 5;

/// In what state a file was found, and left.
enum State {
    /// Closed in order: what is wrong with it is wrong.
    Clean,
    /// Its owner runs, or died without closing it.
    Unclean,
    /// Its owner wrote to it while it was read.
    Changed,
}

impl<F: FnMut(EventPos, &[u8]) -> Result<T, String>, T: Into<Told>> Verifier<'_, F> {
    pub(super) fn segment(
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
        // Behind damage nobody can say how many rows there were.
        let end = if meta.is_cut { u64::MAX } else { meta.head.size() };
        let (next, complete) = self.rows(epoch, pages, path, (end, limit))?;
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
        if !meta.is_cut {
            epoch.tree = meta.head.clone();
        }
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
    pub(super) fn checkpoint(&mut self, epoch: &mut Epoch, size: u64, note: &[u8]) {
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

/// Returns the hashes of the rows of a leaf.
fn hashes(leaf: &Leaf<'_>) -> Vec<Digest> {
    let mut hashes = Vec::new();
    leaf.entries(|_, row| {
        hashes.push(tree::leaf(row));
        ControlFlow::Continue(())
    });
    hashes
}
