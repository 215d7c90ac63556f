//! What comes from the bus, looked at before anything of it is believed: the signature, who signed, and whose it says
//! it is.

use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;

use crate::domain::id::{EpochId, EventId, IntentId, Kid, NodeId, Seq};
use crate::domain::policy::{KeyClass, Kind};
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::key::Keyring;
use crate::wire::payload::{Answer, Beat, EventRecord, Reply};

/// The keys that are trusted, and those that are not any more.
#[derive(Debug)]
pub(super) struct Trusted {
    pub(super) ring: Keyring,
    pub(super) revoked: Vec<Kid>,
}

/// An event whose signature held, by the key of the log that it names.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    pub(super) id: EventId,
    pub(super) bytes: ByteBuf,
}

/// Why something was dropped. It costs a counter and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// It is not what it should be, or no trusted key signed it.
    Unsigned,
    /// Whoever signed it speaks in another's name.
    Foreign,
}

/// A page of a log that was asked for.
#[derive(Debug)]
pub(super) enum Fetched {
    /// Events that follow each other.
    Page { epoch: EpochId, first: Seq, events: Vec<ByteBuf>, head: EventId },
    /// The node has nothing for this cursor.
    Refused { code: String, why: String },
}

impl Trusted {
    /// Returns those who keep a log.
    pub(super) fn origins(&self) -> impl Iterator<Item = (NodeId, KeyClass)> + '_ {
        let keeps_log = |class| matches!(class, KeyClass::Node | KeyClass::Controller);
        let holders = self.ring.iter().map(|(_, holder)| holder);
        holders
            .filter(move |holder| keeps_log(holder.class))
            .filter_map(|holder| Some((holder.name.as_str().parse().ok()?, holder.class)))
    }

    /// Verifies one event.
    pub(super) fn event(&self, bytes: Vec<u8>) -> Result<Arrived, Dropped> {
        let record: EventRecord =
            self.open(&bytes, Kind::Event, |record: &EventRecord| &record.origin)?;
        Ok(Arrived { id: record.id(), bytes: ByteBuf::from(bytes) })
    }

    /// Verifies a heartbeat.
    pub(super) fn beat(&self, bytes: &[u8]) -> Result<Beat, Dropped> {
        self.open(bytes, Kind::Beat, |beat: &Beat| &beat.origin)
    }

    /// Verifies the answer to a question for a range of `origin`: the owner of the log signed all of it together, so the
    /// signatures of the single events, which say the same, are left to whoever reads them one by one. Each has to name
    /// a key of that log and its place in it.
    pub(super) fn range(
        &self,
        bytes: &[u8],
        origin: &NodeId,
        cause: IntentId,
    ) -> Result<Fetched, Dropped> {
        match self.answer(bytes, origin, cause)?.reply {
            Reply::Range { epoch, first, rows, head } => {
                for (row, seq) in rows.iter().zip(first.0..) {
                    let record = self.vouched_for(row, origin)?;
                    let wanted = EventId { origin: origin.clone(), epoch, seq: Seq(seq) };
                    if record.id() != wanted {
                        return Err(Dropped::Foreign);
                    }
                }
                Ok(Fetched::Page { epoch, first, events: rows, head })
            }
            Reply::Refused { code, why } => Ok(Fetched::Refused { code, why }),
            _ => Err(Dropped::Unsigned),
        }
    }

    /// Reads an event that came in an answer which the owner of its log signed.
    fn vouched_for(&self, bytes: &[u8], origin: &NodeId) -> Result<EventRecord, Dropped> {
        let sealed = envelope::read(bytes, ENVELOPE_BYTES_MAX).map_err(|_| Dropped::Unsigned)?;
        let is_its_own = |kid: Kid| {
            let holder = self.ring.get(kid).map(|(_, holder)| holder);
            !self.revoked.contains(&kid)
                && holder.is_some_and(|it| {
                    it.class.may_sign(Kind::Event) && it.name.as_str() == origin.as_str()
                })
        };
        if sealed.kind() != Kind::Event || !sealed.kids().all(is_its_own) {
            return Err(Dropped::Unsigned);
        }
        codec::decode(sealed.unverified_payload()).map_err(|_| Dropped::Unsigned)
    }

    /// Verifies an answer of `node` to something that was sent to it.
    pub(super) fn answer(
        &self,
        bytes: &[u8],
        node: &NodeId,
        cause: IntentId,
    ) -> Result<Answer, Dropped> {
        let answer: Answer = self.open(bytes, Kind::Answer, |answer: &Answer| &answer.node)?;
        match answer.node == *node && answer.cause == cause {
            true => Ok(answer),
            false => Err(Dropped::Foreign),
        }
    }

    fn open<T: DeserializeOwned>(
        &self,
        bytes: &[u8],
        kind: Kind,
        origin: impl FnOnce(&T) -> &NodeId,
    ) -> Result<T, Dropped> {
        let sealed = envelope::read(bytes, ENVELOPE_BYTES_MAX).map_err(|_| Dropped::Unsigned)?;
        if sealed.kind() != kind || sealed.kids().any(|kid| self.revoked.contains(&kid)) {
            return Err(Dropped::Unsigned);
        }
        let opened = sealed.open(&self.ring).map_err(|_| Dropped::Unsigned)?;
        let payload: T = codec::decode(opened.payload).map_err(|_| Dropped::Unsigned)?;
        match origin(&payload).as_str() == opened.holder.name.as_str() {
            true => Ok(payload),
            false => Err(Dropped::Foreign),
        }
    }
}
