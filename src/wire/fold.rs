//! Folds the rows of a node's log into its state, and writes that state as a baseline.
//!
//! The rows are those of a verified tree: signatures are not looked at here.

use std::ops::ControlFlow;

use super::codec;
use super::envelope;
use super::key::digest_of;
use super::payload::{Body, EventRecord};
use crate::domain::event::{Baseline, Event};
use crate::domain::id::{Digest, Seq};
use crate::domain::node::{FOLD_VERSION, Node, NodePart};
use crate::domain::time::UnixMicros;

/// Why a row cannot be folded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It does not read, or does not follow from what was before.
    #[error("{0}")]
    Illegal(String),
    /// A later version wrote it and says that it matters.
    #[error("{0}")]
    Newer(String),
}

/// Folds rows of a log, one after the other.
#[derive(Debug)]
pub struct Fold<'a> {
    node: &'a mut Node,
    /// When the last event was written.
    pub last_at: UnixMicros,
    /// The first row that could not be folded.
    pub broken: Option<(Seq, Broken)>,
    /// Events of types that this version does not know and may pass over.
    pub passed_over: u64,
}

impl<'a> Fold<'a> {
    /// Begins on a state, which is the empty one before the first row.
    pub fn new(node: &'a mut Node) -> Self {
        Self { node, last_at: UnixMicros(0), broken: None, passed_over: 0 }
    }

    /// Folds one row; ends at the first that does not follow.
    pub fn row(&mut self, seq: Seq, row: &[u8]) -> ControlFlow<()> {
        match self.try_row(row) {
            Ok(()) => ControlFlow::Continue(()),
            Err(broken) => {
                self.broken = Some((seq, broken));
                ControlFlow::Break(())
            }
        }
    }

    fn try_row(&mut self, row: &[u8]) -> Result<(), Broken> {
        let illegal = |why: String| Broken::Illegal(why);
        // The store takes no row beyond its cap.
        let sealed = envelope::read(row, row.len()).map_err(|why| illegal(why.to_string()))?;
        let record: EventRecord =
            codec::decode(sealed.unverified_payload()).map_err(|why| illegal(why.to_string()))?;
        self.last_at = self.last_at.max(record.at);
        let event = match record.event().map_err(|why| illegal(why.to_string()))? {
            Body::Known(event) => event,
            Body::Unknown if record.critical => {
                let version = env!("CARGO_PKG_VERSION");
                let why = format!("`{}` needs a newer smgr than {version}", record.kind);
                return Err(Broken::Newer(why));
            }
            Body::Unknown => {
                self.passed_over += 1;
                return Ok(());
            }
        };
        if let Event::Baseline(part) = &event {
            return self.baseline(part);
        }
        let context = record.context();
        self.node
            .evolve(record.at, &context, &event)
            .map_err(|why| illegal(format!("{}: {why}", record.kind)))
    }

    /// Restores the state from a part of a baseline; the last one has to lead to the hash that it names.
    fn baseline(&mut self, part: &Baseline) -> Result<(), Broken> {
        if part.part == 0 {
            *self.node = Node::default();
        }
        let restored: NodePart =
            codec::decode(&part.state).map_err(|why| Broken::Illegal(why.to_string()))?;
        self.node.restore(restored);
        let complete = part.part + 1 == part.parts && part.fold == FOLD_VERSION;
        if complete && state_hash(self.node) != part.state_hash {
            return Err(Broken::Illegal("the baseline leads to another state".to_owned()));
        }
        Ok(())
    }
}

/// Returns the whole folded state as events, so that replay can begin with them.
pub fn baseline(node: &Node) -> Vec<Event> {
    let parts = node.parts();
    let count = u32::try_from(parts.len()).expect("a node has fewer than 2^32 services");
    let state_hash = state_hash(node);
    (0..)
        .zip(&parts)
        .map(|(part, state)| {
            Event::Baseline(Baseline {
                part,
                parts: count,
                fold: FOLD_VERSION,
                state_hash,
                state: codec::encode(state),
            })
        })
        .collect()
}

/// Returns SHA-256 over the parts of the folded state.
pub fn state_hash(node: &Node) -> Digest {
    digest_of(&codec::encode(&node.parts()))
}
