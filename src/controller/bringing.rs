//! The trust document in force, brought to nodes that judge by an older one: their own logs say so.

use std::io;
use std::sync::Arc;

use super::links::Saying;
use super::setup::read_capped;
use super::task::Controller;
use crate::domain::id::NodeId;
use crate::domain::time::Now;
use crate::head::folder::StateFolder;
use crate::wire::envelope::{ENVELOPE_BYTES_MAX, TRUST_BYTES_MAX};
use crate::wire::payload::{Ask, Audience, TrustPiece};
use crate::wire::subject::{Callee, Subject};

/// A document in pieces goes to so many nodes one by one; more of them hear it at once, with all others.
const ONE_BY_ONE_MAX: usize = 8;

/// How many rounds at most lie between two in which pieces are sent to everybody: it doubles from 1.
const ROUNDS_MAX: u64 = 32;

/// The envelope as the root key signed it, and its version.
#[derive(Debug)]
pub(super) struct Bringing {
    version: u64,
    document: Document,
    /// Rounds in which somebody had an older one, and those of them in which everybody was told.
    rounds: u64,
    pause: u64,
}

#[derive(Debug)]
enum Document {
    /// It fits a message.
    Whole(Arc<[u8]>),
    /// It does not: these do.
    Pieces(Vec<TrustPiece>),
}

impl Bringing {
    /// Reads the envelope of a folder.
    pub(super) fn of(folder: &StateFolder, version: u64) -> io::Result<Self> {
        let envelope = read_capped(&folder.trust(), TRUST_BYTES_MAX as u64)?;
        let document = match envelope.len() <= ENVELOPE_BYTES_MAX {
            true => Document::Whole(envelope.into()),
            false => Document::Pieces(TrustPiece::cut(version, &envelope)),
        };
        Ok(Self { version, document, rounds: 0, pause: 1 })
    }

    /// Says whether everybody is told in this round: the less often, the longer some do not take it.
    fn is_due(&mut self) -> bool {
        self.rounds += 1;
        let is_due = self.rounds >= self.pause;
        if is_due {
            (self.rounds, self.pause) = (0, (self.pause * 2).min(ROUNDS_MAX));
        }
        is_due
    }
}

impl Controller {
    /// Sends the document to each node that was heard and has an older one, until its log says that it has this one.
    pub(super) fn bring_trust(&mut self, now: Now) {
        if self.leads().is_none() {
            return;
        }
        let heard = self.projection.heard_lately(now);
        let behind: Vec<NodeId> = heard.filter(|node| self.is_behind(node)).cloned().collect();
        let is_long = matches!(self.bringing.document, Document::Pieces(_));
        if is_long && behind.len() > ONE_BY_ONE_MAX {
            if self.bringing.is_due() {
                self.bring(None);
            }
            return;
        }
        for node in &behind {
            self.bring(Some(node));
        }
    }

    /// Sends the document to a node if it has an older one, and says whether it did.
    pub(super) fn bring_trust_to(&self, node: &NodeId) -> bool {
        self.is_behind(node) && self.bring(Some(node))
    }

    fn is_behind(&self, node: &NodeId) -> bool {
        let trust = self.projection.node(node).and_then(|node| node.head().trust.as_ref());
        trust.is_some_and(|trust| trust.version < self.bringing.version)
    }

    /// Sends the document to a node, or to everybody.
    fn bring(&self, node: Option<&NodeId>) -> bool {
        let to = node.map_or(Ok(Callee::EVERY_NODE), |node| Callee::node(node.clone()));
        let Ok(to) = to else { return false };
        let subject = Subject::Call { fleet: self.setup.fleet.clone(), to };
        let tell = |bytes: Arc<[u8]>| self.say(Saying::Tell(subject.clone(), bytes));
        match &self.bringing.document {
            Document::Whole(envelope) => tell(envelope.clone()),
            Document::Pieces(pieces) => {
                for piece in pieces {
                    let audience =
                        node.map_or(Audience::All, |node| Audience::Nodes(vec![node.clone()]));
                    let (_, sealed) = self.sealed_query(audience, Ask::Trust(piece.clone()));
                    tell(sealed.into());
                }
            }
        }
        true
    }
}
