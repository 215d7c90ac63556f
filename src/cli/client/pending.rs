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
use crate::wire::payload::{Answer, Audience, Reply};

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
    /// Which part of its reading each node has to give next.
    parts: BTreeMap<NodeId, u32>,
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
            Audience::All | Audience::Select { .. } => nodes_of(ring),
        };
        let awaited = nodes.into_iter().map(|node| (node, Missing::Silent)).collect();
        Self { source, ring, cause: signed.id, deadline, awaited, parts: BTreeMap::new() }
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
        if !self.is_next(&answer) {
            warn!(node = %answer.node, part = answer.part, "passed over: not the next part of the answer");
            return Ok(None);
        }
        if answer.last {
            self.settle(&answer.node);
        }
        Ok(Some(answer))
    }

    /// Says whether it is the part that comes next. A bus may drop, repeat and reorder what it carries, and a picture
    /// that lacks a part must not pass for a whole one: its node has then not given its last answer.
    fn is_next(&mut self, answer: &Answer) -> bool {
        match &answer.reply {
            // One word each, and the same one however often it is said.
            Reply::Accepted { .. } | Reply::Outcome { .. } | Reply::Refused { .. } => true,
            Reply::Pong { .. }
            | Reply::Fleet(_)
            | Reply::Piece { .. }
            | Reply::Arrivals { .. }
            | Reply::Status(_)
            | Reply::Lines { .. }
            | Reply::Range { .. } => {
                let next = self.parts.entry(answer.node.clone()).or_default();
                let is_next = answer.part == *next;
                *next += u32::from(is_next);
                is_next
            }
        }
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
                Some(Heard::Lost) => Came::Lost,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::policy::{Holder, Kind};
    use crate::domain::time::UnixMicros;
    use crate::wire::envelope::seal;
    use crate::wire::key::Signer;
    use crate::wire::payload::PAYLOAD_VERSION;

    const ID: IntentId = IntentId([1; 16]);

    fn node() -> NodeId {
        "n1".parse().unwrap()
    }

    fn lines(part: u32, last: bool) -> Vec<u8> {
        let service = "web".parse().unwrap();
        let reply = Reply::Lines { service, index: 0, lines: vec![part.to_string()] };
        let at = UnixMicros::default();
        let answer = Answer { v: PAYLOAD_VERSION, node: node(), cause: ID, at, part, last, reply };
        seal(Kind::Answer, &codec::encode(&answer), &Signer::from_seed(&[1; 32]))
    }

    /// Returns the parts that were given out, and whether the answer was whole.
    async fn heard(parts: &[Vec<u8>]) -> (Vec<u32>, bool) {
        let mut ring = Keyring::default();
        let (name, class) = ("n1".parse().unwrap(), KeyClass::Node);
        ring.insert(
            Signer::from_seed(&[1; 32]).public(),
            Holder { name, class, grants: Vec::new(), until: None },
        );
        let (sender, receiver) = mpsc::channel(16);
        for bytes in parts {
            sender.send(Heard::Answer(bytes.clone())).await.unwrap();
        }
        drop(sender);
        let signed = Signed { id: ID, audience: Audience::Nodes(vec![node()]), bytes: Vec::new() };
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        let mut pending = Pending::new(Source::Bus(receiver), &ring, &signed, deadline);
        let mut given = Vec::new();
        while let Some(answer) = pending.next().await.unwrap() {
            given.push(answer.part);
        }
        (given, pending.missing().is_empty())
    }

    #[tokio::test]
    async fn a_reading_of_which_the_bus_drops_or_repeats_a_part_is_never_taken_for_whole() {
        let (a, b, c) = (lines(0, false), lines(1, false), lines(2, true));
        for (parts, given, whole) in [
            (vec![a.clone(), b.clone(), c.clone()], vec![0, 1, 2], true),
            (vec![a.clone(), c.clone()], vec![0], false),
            (vec![b.clone(), c.clone()], vec![], false),
            (vec![c.clone()], vec![], false),
            (vec![a.clone(), a.clone(), b.clone(), b.clone(), c.clone()], vec![0, 1, 2], true),
            (vec![a, c, b], vec![0, 1], false),
        ] {
            assert_eq!(heard(&parts).await, (given, whole));
        }
    }
}
