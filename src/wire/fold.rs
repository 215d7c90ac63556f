//! Folds the rows of a node's log into its state, and writes that state as a baseline.
//!
//! The rows are those of a verified tree: signatures are not looked at here.

use std::ops::ControlFlow;

use super::codec;
use super::envelope;
use super::key::digest_of;
use super::payload::EventRecord;
use super::row::Row;
use crate::domain::event::{Baseline, Context, Event};
use crate::domain::id::{Digest, RunId, Seq, ServiceId};
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
    /// What the last row was about.
    context: Context,
}

impl<'a> Fold<'a> {
    /// Begins on a state, which is the empty one before the first row.
    pub fn new(node: &'a mut Node) -> Self {
        Self {
            node,
            last_at: UnixMicros(0),
            broken: None,
            passed_over: 0,
            context: Context::default(),
        }
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

    /// Returns what the last row was about.
    pub fn context(&self) -> &Context {
        &self.context
    }

    fn try_row(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if let Some(row) = Row::read(bytes)
            && let Some(()) = self.recontext(&row)
        {
            return self.take(UnixMicros(row.at), row.kind, row.critical, row.body);
        }
        // The store takes no row beyond its cap.
        let sealed = envelope::read(bytes, bytes.len()).map_err(illegal)?;
        let record: EventRecord = codec::decode(sealed.unverified_payload()).map_err(illegal)?;
        self.context = record.context();
        self.take(record.at, &record.kind, record.critical, &record.body)
    }

    /// Makes the context that of the row; neighbours mostly are about the same service, whose name then stays.
    fn recontext(&mut self, row: &Row<'_>) -> Option<()> {
        let context = &mut self.context;
        if context.service.as_ref().map(|service| service.as_str().as_bytes()) != row.service {
            let name = |bytes| std::str::from_utf8(bytes).ok()?.parse::<ServiceId>().ok();
            context.service = match row.service {
                Some(bytes) => Some(name(bytes)?),
                None => None,
            };
        }
        context.index = row.index;
        context.run = row.run.map(RunId);
        context.cause = row.cause.map(codec::decode).transpose().ok()?;
        context.by = row.by.map(codec::decode).transpose().ok()?;
        Some(())
    }

    /// Folds an event about what the context says.
    fn take(
        &mut self,
        at: UnixMicros,
        kind: &str,
        critical: bool,
        body: &[u8],
    ) -> Result<(), Broken> {
        self.last_at = self.last_at.max(at);
        match codec::decode_body(kind, body).map_err(illegal)? {
            None if critical => {
                let version = env!("CARGO_PKG_VERSION");
                Err(Broken::Newer(format!("`{kind}` needs a newer smgr than {version}")))
            }
            None => {
                self.passed_over += 1;
                Ok(())
            }
            Some(Event::Baseline(part)) => self.baseline(&part),
            Some(event) => self
                .node
                .evolve(at, &self.context, &event)
                .map_err(|why| Broken::Illegal(format!("{kind}: {why}"))),
        }
    }

    /// Restores the state from a part of a baseline; the last one has to lead to the hash that it names.
    fn baseline(&mut self, part: &Baseline) -> Result<(), Broken> {
        if part.part == 0 {
            *self.node = Node::default();
        }
        let restored: NodePart = codec::decode(&part.state).map_err(illegal)?;
        self.node.restore(restored);
        let complete = part.part + 1 == part.parts && part.fold == FOLD_VERSION;
        if complete && state_hash(self.node) != part.state_hash {
            return Err(Broken::Illegal("the baseline leads to another state".to_owned()));
        }
        Ok(())
    }
}

fn illegal(why: impl std::fmt::Display) -> Broken {
    Broken::Illegal(why.to_string())
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
