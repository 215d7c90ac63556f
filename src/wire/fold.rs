//! Folds the rows of a node's log into its state, and writes that state as a baseline.
//!
//! The rows are those of a verified tree: signatures are not looked at here.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::codec;
use super::envelope;
use super::key::digest_of;
use super::payload::{Body, EventRecord};
use super::row::Row;
use crate::domain::event::{Baseline, Context, EpochReason, Event};
use crate::domain::id::{Digest, IntentId, RunId, Seq, ServiceId};
use crate::domain::node::{FOLD_VERSION, Node, NodePart};
use crate::domain::recent::Restarts;
use crate::domain::time::UnixMicros;

/// The size to which parts of a baseline are cut, in bytes: a row holds twice as much, for what cannot be cut.
const PART_BYTES_MAX: usize = 32 * 1024;

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
    /// The last row that says how far each wish is: its own, or the part of a baseline that holds it.
    pub told: BTreeMap<IntentId, Seq>,
    /// How often services were started again lately.
    pub restarts: Restarts,
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
            told: BTreeMap::new(),
            restarts: Restarts::default(),
            context: Context::default(),
        }
    }

    /// Folds one row; ends at the first that does not follow.
    pub fn row(&mut self, seq: Seq, row: &[u8]) -> ControlFlow<()> {
        match self.try_row(seq, row) {
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

    fn try_row(&mut self, seq: Seq, bytes: &[u8]) -> Result<(), Broken> {
        if let Some(row) = Row::read(bytes)
            && let Ok(Some(event)) = codec::decode_body(row.kind, row.body)
            && let Some(()) = self.rename(row.service)
        {
            let context = &mut self.context;
            context.index = row.index;
            context.run = row.run.map(RunId);
            (context.cause, context.by) = (row.cause, row.by);
            return self.take(seq, UnixMicros(row.at), &event);
        }
        // The store takes no row beyond its cap.
        let sealed = envelope::read(bytes, bytes.len()).map_err(illegal)?;
        let record: EventRecord = codec::decode(sealed.unverified_payload()).map_err(illegal)?;
        self.context = record.context();
        match record.event().map_err(illegal)? {
            Body::Known(event) => self.take(seq, record.at, &event),
            Body::Unknown if record.critical => {
                let (kind, version) = (record.kind, env!("CARGO_PKG_VERSION"));
                Err(Broken::Newer(format!("`{kind}` needs a newer smgr than {version}")))
            }
            Body::Unknown => {
                self.last_at = self.last_at.max(record.at);
                self.passed_over += 1;
                Ok(())
            }
        }
    }

    /// Makes the context one of this service; neighbours mostly are about the same, whose name then stays.
    fn rename(&mut self, name: Option<&[u8]>) -> Option<()> {
        let service = &mut self.context.service;
        if service.as_ref().map(ServiceId::as_bytes) != name {
            *service = match name {
                Some(name) => Some(ServiceId::from_bytes(name)?),
                None => None,
            };
        }
        Some(())
    }

    /// Folds an event about what the context says.
    fn take(&mut self, seq: Seq, at: UnixMicros, event: &Event) -> Result<(), Broken> {
        self.last_at = self.last_at.max(at);
        // Both say all that is known. Whoever has a copy of a log that was lost held what that one said.
        let begins = match event {
            Event::Baseline(part) => part.part == 0,
            Event::LogOpened(opened) => opened.reason == EpochReason::FirstStart,
            _ => false,
        };
        if begins {
            self.told.clear();
            *self.node = Node::default();
        }
        self.restarts.note(at, &self.context, event);
        wishes_told_by(event, |intent| {
            self.told.insert(intent, seq);
        });
        match event {
            Event::Baseline(part) => self.baseline(part),
            event => self
                .node
                .evolve(at, &self.context, event)
                .map_err(|why| Broken::Illegal(format!("{}: {why}", event.kind()))),
        }
    }

    /// Restores the state from a part of a baseline; the last one has to lead to the hash that it names.
    fn baseline(&mut self, part: &Baseline) -> Result<(), Broken> {
        let restored: NodePart = codec::decode(&part.state).map_err(illegal)?;
        self.node.restore(restored);
        let complete = part.part + 1 == part.parts && part.fold == FOLD_VERSION;
        if complete && state_hash(self.node) != part.state_hash {
            return Err(Broken::Illegal("the baseline leads to another state".to_owned()));
        }
        Ok(())
    }
}

/// Returns the type of an event in the form in which nodes write it, without looking at the rest.
pub fn kind_of(row: &[u8]) -> Option<&[u8]> {
    Row::read(row).map(|row| row.kind)
}

/// Calls `each` for every wish of which an event says how far it is.
pub fn wishes_told_by(event: &Event, mut each: impl FnMut(IntentId)) {
    match event {
        Event::IntentAccepted(body) => each(body.intent),
        Event::IntentExecuted(body) => each(body.intent),
        Event::Baseline(part) => {
            if let Ok(NodePart::Intents(intents)) = codec::decode(&part.state) {
                intents.into_iter().for_each(|(intent, _)| each(intent));
            }
        }
        _ => {}
    }
}

fn illegal(why: impl std::fmt::Display) -> Broken {
    Broken::Illegal(why.to_string())
}

/// Returns the whole folded state as events, so that replay can begin with them.
pub fn baseline(node: &Node) -> Vec<Event> {
    let mut parts = Vec::new();
    node.parts().into_iter().for_each(|part| cut(part, &mut parts));
    let count = u32::try_from(parts.len()).expect("a node has fewer than 2^32 services");
    let state_hash = state_hash(node);
    (0..)
        .zip(parts)
        .map(|(part, state)| {
            Event::Baseline(Baseline { part, parts: count, fold: FOLD_VERSION, state_hash, state })
        })
        .collect()
}

/// Encodes a part, in as many pieces as fit events.
fn cut(part: NodePart, pieces: &mut Vec<Vec<u8>>) {
    let state = codec::encode(&part);
    if state.len() <= PART_BYTES_MAX {
        return pieces.push(state);
    }
    match part.halve() {
        Ok((front, back)) => {
            cut(front, pieces);
            cut(back, pieces);
        }
        Err(_) => pieces.push(state),
    }
}

/// Returns SHA-256 over the parts of the folded state.
pub fn state_hash(node: &Node) -> Digest {
    digest_of(&codec::encode(&node.parts()))
}
