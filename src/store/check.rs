//! The check of a segment's rows against its tree and its last signed head.

use std::ops::ControlFlow;
use std::path::Path;

use crate::domain::id::{Digest, Seq};
use crate::domain::tree;
use crate::store::ahead::Pace;
use crate::store::segment::{SegmentFile, SegmentMeta};
use crate::store::{LogNotice, ReadError, chain, log, read};
use crate::wire::note::{Checkpoint, Note};

/// Folds the rows into the tree and says whether it is the one that `meta` and the checkpoint name.
pub(crate) fn check_roots(segment: &SegmentFile, meta: &SegmentMeta) -> LogNotice {
    let damaged = |at, why: String| LogNotice::Damaged { at, why };
    let signed = match signed_head(segment.path()) {
        Ok(signed) => signed,
        Err(error) => return damaged(None, chain(&error)),
    };
    let mut tree = meta.base.clone();
    let mut forged = false;
    let scanned = log::scan(segment, meta.first(), meta.head.size(), Pace::Stepwise, |seq, row| {
        if seq.0 != tree.size() + 1 {
            return ControlFlow::Break(());
        }
        tree.push(tree::leaf(row));
        forged |= signed.is_some_and(|(size, root)| size == seq.0 && root != tree.root());
        if forged { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match scanned {
        Err(error) => damaged(Some(Seq(tree.size() + 1)), chain(&error)),
        Ok(_) if forged => {
            damaged(None, "the rows do not lead to the root of the last checkpoint".to_owned())
        }
        Ok(_) if tree.size() < meta.head.size() => {
            damaged(Some(Seq(tree.size() + 1)), "the row is missing".to_owned())
        }
        Ok(_) if tree != meta.head => {
            damaged(None, "the rows do not lead to the root that stands beside them".to_owned())
        }
        Ok(_) => LogNotice::RootChecked { seq: Seq(tree.size()) },
    }
}

/// Returns size and root of the newest checkpoint in a segment.
fn signed_head(path: &Path) -> Result<Option<(u64, Digest)>, ReadError> {
    let Some((size, note)) = read::last_checkpoint(path)? else { return Ok(None) };
    let malformed = || ReadError::Damaged {
        path: path.to_owned(),
        offset: 0,
        why: "its last checkpoint is not one".to_owned(),
    };
    let note = Note::parse(&note).map_err(|_| malformed())?;
    let checkpoint = Checkpoint::parse(&note.text).map_err(|_| malformed())?;
    if checkpoint.size == size { Ok(Some((size, checkpoint.root))) } else { Err(malformed()) }
}
