//! The check of a segment's rows against its tree and its last signed head.

use std::ops::ControlFlow;

use crate::domain::id::{Digest, Seq};
use crate::domain::tree;
use crate::store::segment::{SegmentError, SegmentFile, SegmentMeta};
use crate::store::{LogNotice, chain, log};
use crate::wire::note::{Checkpoint, Note};

/// Folds the rows into the tree and says whether it is the one that `meta` and the checkpoint name.
pub(crate) fn check_roots(segment: &SegmentFile, meta: &SegmentMeta) -> LogNotice {
    let damaged = |at, why| LogNotice::Damaged { at, why };
    let signed = match signed_head(segment) {
        Ok(signed) => signed,
        Err(error) => return damaged(None, chain(&error)),
    };
    let mut tree = meta.base.clone();
    let mut fault = None;
    let mut check = |seq: Seq, tree: &tree::Frontier| match signed {
        Some((size, root)) if size == tree.size() && root != tree.root() => {
            fault = Some((seq, "the rows do not lead to the root of the last checkpoint"));
            ControlFlow::Break(())
        }
        Some(_) | None => ControlFlow::Continue(()),
    };
    let scanned = log::scan(segment, meta.first(), |seq, row| {
        if tree.size() == meta.head.size() {
            return ControlFlow::Break(()); // What came after `meta` was read.
        }
        tree.push(tree::leaf(row));
        if seq.0 != tree.size() {
            return ControlFlow::Break(());
        }
        check(seq, &tree)
    });
    match (scanned, fault) {
        (Err(error), _) => damaged(Some(Seq(tree.size() + 1)), chain(&error)),
        (Ok(_), Some((_, why))) => damaged(None, why.to_owned()),
        (Ok(_), None) if tree.size() < meta.head.size() => {
            damaged(Some(Seq(tree.size() + 1)), "the row is missing".to_owned())
        }
        (Ok(_), None) if tree != meta.head => {
            damaged(None, "the rows do not lead to the root that stands beside them".to_owned())
        }
        (Ok(_), None) => LogNotice::RootChecked { seq: Seq(tree.size()) },
    }
}

fn signed_head(segment: &SegmentFile) -> Result<Option<(u64, Digest)>, SegmentError> {
    let Some((size, note)) = segment.last_checkpoint()? else { return Ok(None) };
    let malformed = |_| SegmentError::Malformed("its last checkpoint is not one");
    let note = Note::parse(&note).map_err(malformed)?;
    let checkpoint = Checkpoint::parse(&note.text).map_err(malformed)?;
    if checkpoint.size != size {
        return Err(SegmentError::Malformed("its last checkpoint is of another size"));
    }
    Ok(Some((size, checkpoint.root)))
}
