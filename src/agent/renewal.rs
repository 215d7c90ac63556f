//! A trust document that comes while the agent runs: nodes were admitted or keys taken back.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;
use tracing::{error, info};

use super::authority::{Authority, Refusal};
use super::clock;
use super::folder::write_whole;
use super::keyfile::read_root;
use super::task::Agent;
use super::trust::{ring_of, succeed};
use crate::domain::code::Code;
use crate::domain::event::{Context, Event, TrustChanged};
use crate::domain::id::{Digest, Kid};
use crate::domain::input::Decision;
use crate::domain::text;
use crate::domain::time::Now;
use crate::wire::envelope::TRUST_BYTES_MAX;
use crate::wire::key::digest_of;
use crate::wire::payload::{TRUST_PIECE_BYTES, TrustPiece};

/// The documents that are on their way in pieces: one for each controller's key, so that whoever stole one keeps no other
/// controller from bringing its own. There are as many at most as the document in force has controllers.
#[derive(Debug, Default)]
pub(super) struct OnTheWay {
    by: BTreeMap<Kid, Pieces>,
}

impl OnTheWay {
    /// Takes in a piece that `by` signed; returns the whole when this was the last one that was missing.
    fn take(&mut self, by: Kid, piece: &TrustPiece) -> Option<Vec<u8>> {
        self.by.entry(by).or_default().take(piece)
    }

    /// Forgets all pieces: another document is in force, which names the controllers.
    fn clear(&mut self) {
        self.by.clear();
    }
}

/// The pieces of one document, until it is whole.
#[derive(Debug, Default)]
struct Pieces {
    /// Its version, the SHA-256 of the whole, and how many there are.
    of: Option<(u64, Digest, u16)>,
    here: BTreeMap<u16, ByteBuf>,
}

impl Pieces {
    /// Takes a piece in; returns the whole when this was the last one that was missing.
    ///
    /// Pieces come in any order and again and again, until the history of the node says that the document is in force.
    fn take(&mut self, piece: &TrustPiece) -> Option<Vec<u8>> {
        let TrustPiece { version, digest, part, parts, bytes } = piece;
        let bytes_max = usize::from(*parts) * TRUST_PIECE_BYTES;
        let fits =
            bytes.len() <= TRUST_PIECE_BYTES && bytes_max < TRUST_BYTES_MAX + TRUST_PIECE_BYTES;
        if !fits || part >= parts {
            return None;
        }
        let of = (*version, *digest, *parts);
        if self.of != Some(of) {
            // The newest one counts: an older one may still be on its way.
            if self.of.is_some_and(|(known, ..)| known > *version) {
                return None;
            }
            (self.of, self.here) = (Some(of), BTreeMap::new());
        }
        self.here.insert(*part, bytes.clone());
        if self.here.len() < usize::from(*parts) {
            return None;
        }
        let whole: Vec<u8> = std::mem::take(self).here.into_values().flatten().collect();
        (digest_of(&whole) == *digest).then_some(whole)
    }
}

impl Agent {
    /// Takes in a piece of a document that a controller signed, and the document with the last one.
    ///
    /// # Errors
    /// As for [`trust_came`](Self::trust_came).
    pub(super) fn trust_piece_came(&mut self, by: Kid, piece: &TrustPiece) -> Result<(), Refusal> {
        let known = self.node.head().trust.as_ref().map_or(0, |trust| trust.version);
        if piece.version <= known {
            return Ok(());
        }
        match self.queries.trust.take(by, piece) {
            Some(whole) => self.trust_came(clock::now(), &whole),
            None => Ok(()),
        }
    }

    /// Judges by a document from here on, if the root key that is pinned here signed it after the one in force.
    ///
    /// The one in force and those before it change nothing: anybody may send them again.
    ///
    /// # Errors
    /// The first check that failed, or that it could not be kept: then the one before holds.
    pub(super) fn trust_came(&mut self, now: Now, bytes: &[u8]) -> Result<(), Refusal> {
        let refused = |code, why: String| Refusal {
            code,
            why: text::brief(why, text::WHY_BYTES_MAX),
            signed: None,
        };
        let root = read_root(&self.queries.state)
            .map_err(|error| refused(Code::FILE_UNREADABLE, error.to_string()))?
            .ok_or_else(|| refused(Code::FILE_UNREADABLE, "no root key is pinned".to_owned()))?;
        let (trust, digest) = Authority::trust(bytes, root)?;
        let read = TrustChanged { version: trust.version, digest };
        let is_new = succeed(&trust, &read, &self.setup.fleet, &self.node)
            .map_err(|error| refused(Code::TRUST_UNUSABLE, error.to_string()))?;
        if !is_new {
            return Ok(());
        }
        let ring =
            ring_of(&trust).map_err(|error| refused(Code::TRUST_UNUSABLE, error.to_string()))?;
        // On disk before the history says so: an agent that finds less there than it has said obeys nobody.
        if let Err(why) = write_whole(&self.queries.state.received_trust(), bytes, 0o600) {
            error!(%why, version = trust.version, "the trust document could not be kept");
            return Err(refused(Code::IO, format!("it could not be kept: {why}")));
        }
        info!(version = trust.version, "another trust document is in force");
        self.authority.renew(ring, trust);
        self.queries.trust.clear();
        let events = vec![(Context::default(), Event::TrustChanged(read))];
        self.commit(now, Decision { events, effects: Vec::new() });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_whole_in_whatever_order_its_pieces_come_and_however_often() {
        let whole: Vec<u8> = (0..150_000_u32).map(|n| n as u8).collect();
        let cut = TrustPiece::cut(7, &whole);
        assert_eq!(cut.len(), 4);
        let mut pieces = Pieces::default();
        for piece in [3, 1, 1, 0, 3] {
            assert_eq!(pieces.take(&cut[piece]), None);
        }
        let older = TrustPiece::cut(6, &whole);
        assert_eq!(pieces.take(&older[2]), None, "it takes nobody's place");
        assert_eq!(pieces.take(&cut[2]).as_deref(), Some(&*whole));
        assert!(pieces.here.is_empty(), "nothing of it is kept");
    }

    #[test]
    fn whoever_sends_pieces_of_a_document_that_never_comes_holds_up_nobody_else() {
        let (honest, stolen) = (Kid([1; 16]), Kid([2; 16]));
        let whole = vec![1; 100_000];
        let cut = TrustPiece::cut(7, &whole);
        let never = TrustPiece { digest: Digest([9; 32]), version: u64::MAX, ..cut[0].clone() };
        let mut all = OnTheWay::default();
        assert_eq!(all.take(honest, &cut[0]), None);
        assert_eq!(all.take(stolen, &never), None);
        assert_eq!(all.take(honest, &cut[1]), None);
        assert_eq!(all.take(honest, &cut[2]), Some(whole));
    }

    #[test]
    fn what_is_no_piece_or_makes_another_whole_is_dropped() {
        let cut = TrustPiece::cut(7, &[1; 100_000]);
        let mut pieces = Pieces::default();
        for wrong in [
            TrustPiece { part: 3, ..cut[0].clone() },
            TrustPiece { parts: u16::MAX, ..cut[0].clone() },
            TrustPiece { bytes: ByteBuf::from(vec![0; TRUST_PIECE_BYTES + 1]), ..cut[0].clone() },
        ] {
            assert_eq!(pieces.take(&wrong), None);
            assert!(pieces.here.is_empty());
        }
        assert_eq!(pieces.take(&cut[0]), None);
        assert_eq!(pieces.take(&cut[1]), None);
        let forged = TrustPiece { bytes: cut[0].bytes.clone(), ..cut[2].clone() };
        assert_eq!(pieces.take(&forged), None);
    }
}
