//! Sealing: what is written once when a segment is complete, beside the writer and never in its way.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::domain::id::{Digest, Seq};
use crate::domain::tree;
use crate::store::inbox::LaneShared;
use crate::store::segment::{SegmentError, SegmentFile, SegmentMeta};
use crate::store::tiles::Tiles;
use crate::store::{LogNotice, LogOptions, chain, layout, log};

/// Makes the index of one segment: it is given each row in turn, then asked for the index.
pub trait Indexer: Send {
    /// Takes a row.
    fn row(&mut self, seq: Seq, row: &[u8]);
    /// Returns the index as (name, packed places).
    fn finish(self: Box<Self>) -> Vec<(Vec<u8>, Vec<u8>)>;
}

/// The end of a sealed segment, as it stands in its `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) root: Digest,
    pub(crate) prev_root: Digest,
}

impl Footer {
    pub(crate) fn of(meta: &SegmentMeta) -> Self {
        Self {
            first: meta.first(),
            last: meta.head.size(),
            root: meta.head.root(),
            prev_root: meta.base.root(),
        }
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.first.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.last.to_be_bytes());
        bytes.extend_from_slice(&self.root.0);
        bytes.extend_from_slice(&self.prev_root.0);
        bytes
    }
}

/// Seals segments, one at a time, on a thread that lives as long as there are any.
pub(crate) struct Sealer {
    options: Arc<LogOptions>,
    thread: Option<JoinHandle<()>>,
}

/// A segment to seal: open, or to be opened.
pub(crate) enum Unsealed {
    Open(Arc<SegmentFile>),
    Closed(PathBuf),
}

impl Sealer {
    pub(crate) fn new(options: Arc<LogOptions>) -> Self {
        Self { options, thread: None }
    }

    /// Seals `segment` behind those that were given before.
    pub(crate) fn seal(&mut self, segment: Unsealed, lane: Arc<LaneShared>) {
        let before = self.thread.take();
        let options = self.options.clone();
        let work = move || {
            // One after the other: two would only share the disk.
            before.map(JoinHandle::join);
            let segment = match segment {
                Unsealed::Open(segment) => Ok(segment),
                Unsealed::Closed(path) => {
                    SegmentFile::open(&path, &options.disk, options.cache_bytes).map(Arc::new)
                }
            };
            let indexer = options.indexer.map(|make| make());
            match segment.and_then(|segment| seal_segment(&segment, indexer)) {
                Ok((first, last)) => lane.tell(LogNotice::Sealed { first, last }),
                // It stays readable, and the next start seals it.
                Err(error) => tracing::warn!(error = chain(&error), "segment not sealed"),
            }
        };
        match thread::Builder::new().name("log-sealer".to_owned()).spawn(work) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::warn!(%error, "segment not sealed"),
        }
    }

    /// Waits until all is sealed.
    pub(crate) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic was reported by its hook; the segment is sealed at the next start.
            drop(thread.join());
        }
    }
}

fn seal_segment(
    segment: &SegmentFile,
    mut indexer: Option<Box<dyn Indexer>>,
) -> Result<(Seq, Seq), SegmentError> {
    let meta = segment.meta()?;
    if !meta.sealed {
        let checkpoint = segment.last_checkpoint()?.map(|(_, note)| note).unwrap_or_default();
        let mut tiles = Tiles { base: meta.base.clone(), leaves: Vec::new(), checkpoint };
        log::scan_snapshot(segment, meta.first(), |seq, row| {
            tiles.leaves.push(tree::leaf(row));
            if let Some(indexer) = &mut indexer {
                indexer.row(seq, row);
            }
            ControlFlow::Continue(())
        })?;
        if tiles.head() != meta.head {
            return Err(SegmentError::Malformed("its rows do not lead to its root"));
        }
        tiles.write(&layout::tiles_path(segment.path())).map_err(SegmentError::Open)?;
        let index = indexer.map(|indexer| indexer.finish()).unwrap_or_default();
        segment.seal(&meta.head, &Footer::of(&meta).to_bytes(), &index)?;
    }
    segment.close()?;
    Ok((Seq(meta.first()), Seq(meta.head.size())))
}
