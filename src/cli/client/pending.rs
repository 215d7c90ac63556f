//! The answers to one request, as they come in, and who has not answered.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::bus::Heard;
use super::local::{Frame, Road};
use super::verified;
use crate::cli::error::CliError;
use crate::cli::wish::Signed;
use crate::domain::id::{IntentId, NodeId};
use crate::domain::policy::KeyClass;
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
    /// The server of the bus knows of nobody who listens for it: nothing was delivered.
    NotThere,
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
    awaited: BTreeMap<NodeId, Missing>,
}

#[derive(Debug)]
pub(super) enum Source<'c> {
    Local { road: &'c mut Road, id: RequestId, own: NodeId },
    Bus(mpsc::Receiver<Heard>),
}

/// Something that came from a source, before anything in it is believed.
enum Came {
    Bytes(Vec<u8>),
    Settled(NodeId),
    Absent(NodeId),
    Lost,
    Over,
}

impl<'c> Pending<'c> {
    pub(super) fn new(
        source: Source<'c>,
        ring: &'c Keyring,
        signed: &Signed,
        deadline: Instant,
    ) -> Self {
        let nodes = match &signed.audience {
            Audience::Nodes(nodes) => nodes.clone(),
            Audience::All => nodes_of(ring),
        };
        let awaited = nodes.into_iter().map(|node| (node, Missing::Silent)).collect();
        Self { source, ring, cause: signed.id, deadline, awaited }
    }

    /// Returns the next answer; `None` when all are in or the time is over.
    ///
    /// # Errors
    /// When the request was refused as a whole, or an answer of this machine does not verify.
    pub async fn next(&mut self) -> Result<Option<Answer>, CliError> {
        while self.awaited.values().any(|missing| *missing == Missing::Silent) {
            let Ok(came) = timeout_at(self.deadline, self.source.next()).await else {
                return Ok(None);
            };
            match came? {
                Came::Bytes(bytes) => {
                    if let Some(answer) = self.read(&bytes)? {
                        return Ok(Some(answer));
                    }
                }
                Came::Settled(node) => self.settle(&node),
                Came::Absent(node) => {
                    self.awaited.entry(node).and_modify(|missing| *missing = Missing::NotThere);
                }
                Came::Lost => {
                    self.awaited.values_mut().for_each(|missing| *missing = Missing::Lost);
                }
                Came::Over => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Returns the nodes of the audience that have not given their last answer.
    pub fn missing(&self) -> &BTreeMap<NodeId, Missing> {
        &self.awaited
    }

    /// Stops waiting for a node: what it said is all that is wanted of it.
    pub fn settle(&mut self, node: &NodeId) {
        self.awaited.remove(node);
    }

    /// Reads what claims to be an answer to this request.
    ///
    /// Anybody on a bus can write into an inbox, so what does not verify there is passed over and not an error.
    fn read(&mut self, bytes: &[u8]) -> Result<Option<Answer>, CliError> {
        let answer = match (&self.source, verified(bytes, self.ring)) {
            (_, Ok(answer)) => answer,
            (Source::Bus(_), Err(error)) => {
                warn!(%error, "passed over");
                return Ok(None);
            }
            (Source::Local { own, .. }, Err(error)) => bare(bytes, own).ok_or(error)?,
        };
        if answer.cause != self.cause || !self.awaited.contains_key(&answer.node) {
            return Ok(None); // The answer to an earlier question is no error of this one.
        }
        if answer.last {
            self.settle(&answer.node);
        }
        Ok(Some(answer))
    }
}

impl Source<'_> {
    async fn next(&mut self) -> Result<Came, CliError> {
        Ok(match self {
            Self::Local { road, id, own } => match road.next(*id).await? {
                Frame::Answer(bytes) => Came::Bytes(bytes),
                Frame::End => Came::Settled(own.clone()),
                Frame::Lost => Came::Lost,
            },
            Self::Bus(heard) => match heard.recv().await {
                Some(Heard::Answer(bytes)) => Came::Bytes(bytes),
                Some(Heard::Nobody(node)) => Came::Absent(node),
                None => Came::Over,
            },
        })
    }
}

/// Takes a bare reading: the kernel vouches for the other end of the local socket.
fn bare(bytes: &[u8], own: &NodeId) -> Option<Answer> {
    let is_envelope = envelope::read(bytes, ENVELOPE_BYTES_MAX).is_ok();
    let answer: Option<Answer> = codec::decode(bytes).ok().filter(|_| !is_envelope);
    answer.filter(|answer| answer.node == *own)
}

/// Returns the nodes that the trust document knows: who must answer when everybody is asked.
fn nodes_of(ring: &Keyring) -> Vec<NodeId> {
    ring.iter()
        .filter(|(_, holder)| holder.class == KeyClass::Node)
        .filter_map(|(_, holder)| holder.name.as_str().parse().ok())
        .collect()
}
