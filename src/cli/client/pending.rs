//! The answers to one request, as they come in, and who has not answered.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::{Instant, timeout_at};

use super::local::{Frame, Road};
use super::verified;
use crate::cli::error::CliError;
use crate::cli::wish::Signed;
use crate::domain::code::Code;
use crate::domain::id::{IntentId, NodeId};
use crate::ipc::local::RequestId;
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::key::Keyring;
use crate::wire::payload::{Answer, Audience};

/// Why a node of the audience has not given its last answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nothing came in time.
    Silent,
    /// The connection ended before the answer did: asked again, the same wish is answered from the log.
    Lost,
}

/// Answers that come in until every node of the audience has given its last one or the time is over.
#[derive(Debug)]
pub struct Pending<'c> {
    source: Source<'c>,
    ring: &'c Keyring,
    cause: IntentId,
    deadline: Instant,
    awaited: Awaited,
}

#[derive(Debug)]
pub(super) enum Source<'c> {
    Local { road: &'c mut Road, id: RequestId, own: NodeId },
}

/// Who must still answer: these, or whoever there is.
#[derive(Debug)]
enum Awaited {
    Named(BTreeMap<NodeId, Missing>),
    Whoever(BTreeSet<NodeId>),
}

impl<'c> Pending<'c> {
    pub(super) fn new(
        source: Source<'c>,
        ring: &'c Keyring,
        signed: &Signed,
        deadline: Instant,
    ) -> Self {
        let awaited = match &signed.audience {
            Audience::Nodes(nodes) => {
                Awaited::Named(nodes.iter().map(|node| (node.clone(), Missing::Silent)).collect())
            }
            Audience::All => Awaited::Whoever(BTreeSet::new()),
        };
        Self { source, ring, cause: signed.id, deadline, awaited }
    }

    /// Returns the next answer; `None` when all are in or the time is over.
    ///
    /// # Errors
    /// When the request was refused as a whole, or an answer does not verify.
    pub async fn next(&mut self) -> Result<Option<Answer>, CliError> {
        loop {
            if matches!(&self.awaited, Awaited::Named(nodes) if nodes.is_empty()) {
                return Ok(None);
            }
            let Source::Local { road, id, own } = &mut self.source;
            let Ok(frame) = timeout_at(self.deadline, road.next(*id)).await else {
                return Ok(None);
            };
            let bytes = match frame? {
                Frame::Answer(bytes) => bytes,
                Frame::End => {
                    let own = own.clone();
                    self.settle(&own);
                    return Ok(None);
                }
                Frame::Lost => {
                    if let Awaited::Named(nodes) = &mut self.awaited {
                        nodes.values_mut().for_each(|missing| *missing = Missing::Lost);
                    }
                    return Ok(None);
                }
            };
            let answer = self.read(&bytes)?;
            if answer.cause != self.cause {
                continue; // The answer to somebody's earlier question is no error of this one.
            }
            if answer.last {
                self.settle(&answer.node);
            }
            return Ok(Some(answer));
        }
    }

    /// Returns the nodes of the audience that have not given their last answer.
    pub fn missing(&self) -> BTreeMap<NodeId, Missing> {
        match &self.awaited {
            Awaited::Named(nodes) => nodes.clone(),
            Awaited::Whoever(_) => BTreeMap::new(),
        }
    }

    /// Stops waiting for a node: what it said is all that is wanted of it.
    pub fn settle(&mut self, node: &NodeId) {
        match &mut self.awaited {
            Awaited::Named(nodes) => drop(nodes.remove(node)),
            Awaited::Whoever(seen) => drop(seen.insert(node.clone())),
        }
    }

    /// Reads an answer. The kernel vouches for the other end of the local socket, so a bare reading is taken from there.
    fn read(&self, bytes: &[u8]) -> Result<Answer, CliError> {
        let Source::Local { own, .. } = &self.source;
        if envelope::read(bytes, ENVELOPE_BYTES_MAX).is_ok() {
            return verified(bytes, self.ring);
        }
        let answer: Answer = codec::decode(bytes).map_err(|error| super::distrust(&error))?;
        match answer.node == *own {
            true => Ok(answer),
            false => Err(CliError::new(Code::BAD_SIGNATURE, "an answer names another node")),
        }
    }
}
