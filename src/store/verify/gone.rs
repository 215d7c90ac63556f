//! What verification makes of rows that are not there: dropped, set aside, or gone with their segment or their epoch.

use std::ops::ControlFlow;
use std::path::Path;

use super::{Dropped, Epoch, Verifier, first_of};
use crate::domain::id::Seq;
use crate::domain::tree::SIZE_MAX;
use crate::store::ahead::Pace;
use crate::store::layout;
use crate::store::pages::{Commit, PageFile};
use crate::store::read::{EpochOnDisk, EventPos, ReadError, segment_rows, table_rows};
use crate::store::report::{Fault, Told};
use crate::store::segment::Predecessor;
use crate::wire::note::{Checkpoint, Note, NoteKey};

impl<F: FnMut(EventPos, &[u8]) -> Result<T, String>, T: Into<Told>> Verifier<'_, F> {
    /// Returns what the first row of an epoch says of the one before; what stands beside the rows is not signed.
    pub(super) fn predecessor(&mut self, epoch: &EpochOnDisk) -> Option<Predecessor> {
        let segments = epoch.segments.iter().map(|name| &name.path);
        let firsts = segments.chain(&epoch.aside).filter(|path| first_of(path) == 1);
        let at = EventPos { epoch: epoch.epoch, seq: Seq(1) };
        for path in firsts {
            let mut told = Told::Nothing;
            let read = segment_rows(path, 1, Pace::Stepwise, &mut |seq, row| {
                if seq == 1 {
                    told = (self.row)(at, row).map_or(Told::Nothing, Into::into);
                }
                ControlFlow::Break(())
            });
            // Whatever is wrong with it is found when all of it is read.
            let (Ok(_), Told::Opened(before)) = (read, told) else { continue };
            if before != epoch.predecessor {
                let why = "its first event names another epoch before it than its file does";
                self.report.add(Fault::EpochChain { epoch: epoch.epoch, why });
            }
            return before;
        }
        epoch.predecessor
    }

    /// Reports segments as missing whose rows are gone and whose retirement nobody signed.
    ///
    /// Retention drops the oldest first, so what it signed last speaks for everything before as well: the events
    /// that said so may have been dropped themselves.
    pub(super) fn excuse_dropped(&mut self, epochs: &[EpochOnDisk]) {
        let place = |wanted| epochs.iter().position(|epoch| epoch.epoch == wanted);
        let signed =
            self.retired.iter().filter_map(|(epoch, last, _)| Some((place(*epoch)?, *last)));
        let up_to = signed.max();
        for gone in std::mem::take(&mut self.dropped) {
            let Dropped { epoch, first, last, root } = gone;
            if place(epoch).map(|place| (place, last)) > up_to {
                let (first, last) = (Seq(first), Seq(last));
                self.report.add(Fault::Missing { epoch, first, last });
            }
            let other = self.retired.iter().find(|(of, to, _)| (*of, *to) == (epoch, last));
            if other.is_some_and(|(.., signed)| *signed != root) {
                let at = EventPos { epoch, seq: Seq(last) };
                self.report.add(Fault::Root { at, whose: "with which they were dropped" });
            }
        }
    }

    /// Reports what should come behind the end of the newest epoch.
    pub(super) fn goes_on(
        &mut self,
        epoch: &Epoch,
        on_disk: &EpochOnDisk,
    ) -> Result<(), ReadError> {
        let next = epoch.tree.size() + 1;
        if !on_disk.aside.is_empty() {
            let why = "a file of it was set aside, and no epoch follows";
            self.report.add(Fault::EpochChain { epoch: epoch.id, why });
        } else if epoch.is_sealed {
            // A segment is sealed behind the next one; its owner may have begun that in the meantime.
            let successor = layout::segment_path(self.dir, epoch.id, next);
            if !successor.try_exists().map_err(ReadError::io(&successor))? {
                let (first, last) = (Seq(next), Seq::MAX);
                self.report.add(Fault::Missing { epoch: epoch.id, first, last });
            }
        }
        Ok(())
    }

    /// Looks at what was set aside: how many rows the next epoch does not build on, and whether they were signed.
    pub(super) fn set_aside(
        &mut self,
        epoch: &mut Epoch,
        path: &Path,
        base: u64,
    ) -> Result<(), ReadError> {
        let token = epoch.id.token();
        let is_good = |size: u64, note: &[u8]| {
            let Ok(note) = Note::parse(note) else { return false };
            let Ok(head) = Checkpoint::parse(&note.text) else { return false };
            let fits = |key: &&NoteKey| head.origin == format!("{}/{token}", key.name());
            head.size == size && self.keys.iter().filter(fits).any(|key| key.verify(&note).is_ok())
        };
        let (mut signed, mut readable) = (0, 0);
        for commit in [Commit::Newest, Commit::Older] {
            let Ok(pages) = PageFile::open_at(path, commit).map_err(ReadError::io(path))? else {
                continue;
            };
            for (size, note) in table_rows(&pages, "checkpoints").map_err(ReadError::io(path))? {
                let size = size.as_slice().try_into().map_or(0, u64::from_le_bytes);
                if size > base.max(signed) && is_good(size, &note) {
                    signed = size;
                }
            }
            let mut rows = 0;
            let is_behind = |key: &[u8]| {
                let seq = key.try_into().map(u64::from_le_bytes);
                seq.is_ok_and(|seq| (base..SIZE_MAX).contains(&seq) && seq != base)
            };
            let counted = pages.walk("events", None, |leaf| {
                if leaf.is_sound {
                    leaf.entries(|key, _| {
                        rows += u64::from(is_behind(key));
                        ControlFlow::Continue(())
                    });
                }
                ControlFlow::Continue(())
            });
            // Its faults are why it was set aside.
            drop(counted.map_err(ReadError::io(path))?);
            readable = rows.max(readable);
        }
        epoch.outcome.aside += readable;
        // Without an epoch behind it, that one is missing is all there is to say.
        if signed > 0 && self.newest != Some(epoch.id) {
            self.report.add(Fault::SetAside { epoch: epoch.id, base, signed });
        }
        Ok(())
    }
}
