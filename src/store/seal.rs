//! Sealing: what is written once when a segment is complete, beside the writer and never in its way.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::domain::id::Seq;
use crate::store::lane::LaneShared;
use crate::store::log;
use crate::store::segment::{SegmentError, SegmentFile};
use crate::store::{LogNotice, chain};

/// Makes the index rows of a segment from its rows: given each row in turn, then asked for the index.
pub trait Indexer: Send {
    /// Takes a row.
    fn row(&mut self, seq: Seq, row: &[u8]);
    /// Returns the index as ascending (name, packed places), and is ready for another segment.
    fn finish(&mut self) -> Vec<(Vec<u8>, Vec<u8>)>;
}

/// Seals segments, one at a time, on a thread that lives as long as there are any.
#[derive(Default)]
pub(crate) struct Sealer {
    thread: Option<JoinHandle<()>>,
}

impl Sealer {
    /// Seals `segment` behind those that were given before.
    pub(crate) fn seal(&mut self, segment: Arc<SegmentFile>, lane: Arc<LaneShared>) {
        let before = self.thread.take();
        let work = move || {
            // One after the other: two would only share the disk.
            before.map(JoinHandle::join);
            match seal_segment(&segment) {
                Ok((first, last)) => lane.tell(LogNotice::Sealed { first, last }),
                // It stays readable, and the next start seals it.
                Err(error) => tracing::warn!(error = chain(&error), ?segment, "segment not sealed"),
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
            drop(thread.join());
        }
    }
}

fn seal_segment(segment: &SegmentFile) -> Result<(Seq, Seq), SegmentError> {
    let meta = segment.meta()?;
    let places = (Seq(meta.first()), Seq(meta.head.size()));
    if !meta.sealed {
        log::scan(segment, meta.first(), |_, _| ControlFlow::Continue(()))?;
        segment.seal(&meta.head.root().0, &[])?;
    }
    segment.close()?;
    Ok(places)
}
