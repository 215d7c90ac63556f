//! Proofs out of a log's files: that a row is in it, and that a later head extends an earlier one.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::Path;

use crate::domain::id::{Digest, EpochId, Seq};
use crate::domain::tree;
use crate::store::ahead::Pace;
use crate::store::layout;
use crate::store::read::{
    EpochOnDisk, EventPos, LogReader, ReadError, last_checkpoint, segment_rows,
};
use crate::store::tiles::Tiles;
use crate::wire::note::{Checkpoint, Note, TlogProof};

/// Says why a proof could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// The files cannot be read.
    #[error("failed to read the log")]
    Read(#[from] ReadError),
    /// No checkpoint in the log covers the row yet.
    #[error("no signed head covers event {0} yet")]
    NotSigned(Seq),
    /// The log has fewer rows than the proof needs, or some of them left not even their hashes.
    #[error("the log has {have} of the {need} events that the proof needs")]
    Short {
        /// Rows that are there, from the first on.
        have: u64,
        /// Rows that are needed.
        need: u64,
    },
}

impl LogReader {
    /// Proves that the row at `at` is in the log, under its newest signed head that is kept.
    pub fn prove(&self, at: EventPos) -> Result<TlogProof, ProveError> {
        let epoch = self.epoch(at.epoch)?;
        let mut newest = None;
        for name in epoch.segments.iter().rev() {
            newest = last_checkpoint(&name.path)?.map(|(_, note)| note);
            if newest.is_some() {
                break;
            }
        }
        let note = newest.and_then(|note| Note::parse(&note).ok());
        let head = note.as_ref().and_then(|note| Checkpoint::parse(&note.text).ok());
        let (Some(checkpoint), Some(head)) = (note, head) else {
            return Err(ProveError::NotSigned(at.seq));
        };
        if at.seq.0 == 0 || at.seq.0 > head.size {
            return Err(ProveError::NotSigned(at.seq));
        }
        let leaves = leaves(&epoch, head.size)?;
        let index = at.seq.0 - 1;
        let Ok(hashes) = tree::prove_inclusion(index, head.size, subtrees(&leaves));
        Ok(TlogProof { extra: None, index, hashes, checkpoint })
    }

    /// Proves that the log at `new` rows begins with the log at `old` rows.
    ///
    /// # Panics
    /// If `old` is above `new`.
    pub fn prove_extension(
        &self,
        epoch: EpochId,
        old: u64,
        new: u64,
    ) -> Result<Vec<Digest>, ProveError> {
        let leaves = leaves(&self.epoch(epoch)?, new)?;
        let Ok(proof) = tree::prove_consistency(old, new, subtrees(&leaves));
        Ok(proof)
    }

    fn epoch(&self, wanted: EpochId) -> Result<EpochOnDisk, ReadError> {
        let mut epochs = self.epochs()?.into_iter();
        epochs.find(|epoch| epoch.epoch == wanted).ok_or(ReadError::UnknownEpoch(wanted))
    }
}

/// Returns the leaf hashes of the first `need` rows: from the tiles where there are any.
fn leaves(epoch: &EpochOnDisk, need: u64) -> Result<Vec<Digest>, ProveError> {
    let mut leaves = Vec::new();
    let segments = epoch.segments.iter().map(|name| (name.first, name.path.as_path()));
    let tiles = epoch.tiles.iter().map(|name| (name.first, name.path.as_path()));
    let parts: BTreeSet<(u64, &Path)> = segments.chain(tiles).collect();
    for (first, path) in parts {
        if first != leaves.len() as u64 + 1 || leaves.len() as u64 >= need {
            continue; // The other file of a segment that is read already, or a gap before it.
        }
        let tiles = layout::tiles_path(path);
        if let Some(found) = Tiles::read(&tiles).ok().flatten() {
            leaves.extend(found.leaves);
        } else {
            segment_rows(path, first, Pace::Ahead, &mut |_, row| {
                leaves.push(tree::leaf(row));
                ControlFlow::Continue(())
            })?;
        }
    }
    let have = leaves.len() as u64;
    if have < need { Err(ProveError::Short { have, need }) } else { Ok(leaves) }
}

fn subtrees(leaves: &[Digest]) -> impl FnMut(u8, u64) -> Result<Digest, Infallible> + '_ {
    |level, index| {
        let low = (index << level) as usize;
        let mut hashes = leaves[low..low + (1 << level)].to_vec();
        while hashes.len() > 1 {
            hashes = hashes.as_chunks::<2>().0.iter().map(|[l, r]| tree::node(*l, *r)).collect();
        }
        Ok(hashes[0])
    }
}
