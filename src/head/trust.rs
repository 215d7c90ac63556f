//! Reads a trust envelope: which keys may do what, if the pinned root key says so.

use std::cmp::Ordering;

use crate::domain::event::TrustChanged;
use crate::domain::id::{Digest, FleetId, Kid};
use crate::domain::node::Node;
use crate::domain::policy::{Holder, KeyClass, Kind};
use crate::wire::codec::{self, CodecError};
use crate::wire::envelope::{self, EnvelopeError, TRUST_BYTES_MAX};
use crate::wire::key::{InvalidKey, Keyring, PublicKey};
use crate::wire::payload::{PAYLOAD_VERSION, Trust};

/// Says why a trust envelope is not one that may be followed.
#[derive(Debug, thiserror::Error)]
pub enum ReadTrustError {
    /// Not signed by the root key that is pinned here, or not an envelope at all.
    #[error("the trust envelope does not verify against the pinned root key")]
    Envelope(#[from] EnvelopeError),
    /// An envelope of another kind.
    #[error("the envelope is not a trust envelope")]
    Kind,
    /// The content was not understood.
    #[error("the trust document was not understood")]
    Shape(#[from] CodecError),
    /// Of a version that this program does not know.
    #[error("the trust document is of version {0}")]
    Version(u8),
    /// One of its keys is no key.
    #[error("a key of the trust document cannot be used")]
    Key(#[from] InvalidKey),
    /// Two entries hold the same key, and only one could count.
    #[error("the trust document holds key {0} twice")]
    Twice(Kid),
}

/// Says why a trust document that verifies may not come into force on this node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SucceedTrustError {
    /// It is for others.
    #[error("the trust document is for the fleet `{named}` and this node is of `{own}`")]
    Fleet {
        /// Whom it is for.
        named: FleetId,
        /// Whose node this is.
        own: FleetId,
    },
    /// It would give back what a later one took.
    #[error(
        "the trust document was set back: it is version {version}, and version {before} was in force here by this \
         node's own history. Nobody is obeyed by an older one. Put version {before} back in its place, or have the \
         root key sign a version {next} with what is to hold"
    )]
    Older {
        /// Its version.
        version: u64,
        /// The one that was in force.
        before: u64,
        /// The lowest that would do.
        next: u64,
    },
    /// The root key signed two of one number.
    #[error(
        "the trust document is another one of version {version} than was in force here by this node's own history. \
         Put that back in its place, or have the root key sign a version {next} with what is to hold"
    )]
    Forked {
        /// Their version.
        version: u64,
        /// The lowest that would do.
        next: u64,
    },
}

/// Says whether a document that was read takes the place of the one that was in force; false when it is the same.
///
/// # Errors
/// When it is for another fleet, or is not the one that was in force and not a later one.
pub fn succeed(
    trust: &Trust,
    read: &TrustChanged,
    own: &FleetId,
    node: &Node,
) -> Result<bool, SucceedTrustError> {
    if trust.fleet != *own {
        return Err(SucceedTrustError::Fleet { named: trust.fleet.clone(), own: own.clone() });
    }
    let Some(before) = &node.head().trust else { return Ok(true) };
    let (version, next) = (read.version, before.version.saturating_add(1));
    match version.cmp(&before.version) {
        Ordering::Greater => Ok(true),
        Ordering::Equal if read.digest == before.digest => Ok(false),
        Ordering::Equal => Err(SucceedTrustError::Forked { version, next }),
        Ordering::Less => Err(SucceedTrustError::Older { version, before: before.version, next }),
    }
}

/// Verifies a trust envelope and returns the document, its keys without the revoked ones, and the SHA-256 of what was
/// signed.
///
/// # Errors
/// The first check that failed; nothing of the document may be used then.
pub fn read_trust(
    bytes: &[u8],
    root: PublicKey,
) -> Result<(Trust, Keyring, Digest), ReadTrustError> {
    let (trust, digest) = open_trust(bytes, root)?;
    let ring = ring_of(&trust)?;
    Ok((trust, ring, digest))
}

/// The same without a look at the keys in it, each of which costs a computation.
///
/// # Errors
/// As for [`read_trust`].
pub fn open_trust(bytes: &[u8], root: PublicKey) -> Result<(Trust, Digest), ReadTrustError> {
    let mut roots = Keyring::default();
    let name = "root".parse().expect("a constant that is a name");
    roots.insert(root, Holder { name, class: KeyClass::Root, grants: vec![], until: None });
    let opened = envelope::read(bytes, TRUST_BYTES_MAX)?.open(&roots)?;
    if opened.kind != Kind::Trust {
        return Err(ReadTrustError::Kind);
    }
    let trust: Trust = codec::decode(opened.payload)?;
    if trust.v != PAYLOAD_VERSION {
        return Err(ReadTrustError::Version(trust.v));
    }
    Ok((trust, opened.digest))
}

/// Returns the keys of a document, without the revoked ones.
///
/// # Errors
/// When one of them is no key, or stands there twice.
pub fn ring_of(trust: &Trust) -> Result<Keyring, ReadTrustError> {
    let mut ring = Keyring::default();
    for entry in &trust.keys {
        let key = PublicKey::from_bytes(&entry.key.0)?;
        if ring.get(key.kid()).is_some() {
            return Err(ReadTrustError::Twice(key.kid()));
        }
        let (name, grants) = (entry.name.clone(), entry.grants.clone());
        ring.insert(key, Holder { name, class: entry.class, grants, until: entry.until });
    }
    trust.revoked.iter().for_each(|kid| ring.remove(*kid));
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::{Context, Event};
    use crate::domain::time::UnixMicros;

    fn trust(version: u64, fleet: &str) -> (Trust, TrustChanged) {
        let (issued, fleet) = (UnixMicros(0), fleet.parse().unwrap());
        let (keys, revoked) = (Vec::new(), Vec::new());
        let nodes = Vec::new();
        let trust = Trust { v: PAYLOAD_VERSION, version, fleet, issued, keys, revoked, nodes };
        (trust, TrustChanged { version, digest: Digest([u8::try_from(version).unwrap(); 32]) })
    }

    fn comes(
        node: &Node,
        (trust, read): &(Trust, TrustChanged),
    ) -> Result<bool, SucceedTrustError> {
        succeed(trust, read, &"acme".parse().unwrap(), node)
    }

    #[test]
    fn a_trust_document_is_followed_by_later_ones_only() {
        let mut node = Node::default();
        let second = trust(2, "acme");
        assert_eq!(comes(&node, &second), Ok(true));
        let changed = Event::TrustChanged(second.1.clone());
        node.evolve(UnixMicros(1), &Context::default(), &changed).unwrap();
        assert_eq!(comes(&node, &second), Ok(false));
        assert_eq!(comes(&node, &trust(3, "acme")), Ok(true));
        let older = SucceedTrustError::Older { version: 1, before: 2, next: 3 };
        assert_eq!(comes(&node, &trust(1, "acme")), Err(older));
        let mut other = second;
        other.1.digest = Digest([9; 32]);
        let forked = SucceedTrustError::Forked { version: 2, next: 3 };
        assert_eq!(comes(&node, &other), Err(forked));
    }

    #[test]
    fn a_trust_document_for_another_fleet_is_not_followed() {
        let refused = comes(&Node::default(), &trust(1, "globex"));
        assert!(matches!(refused, Err(SucceedTrustError::Fleet { .. })), "{refused:?}");
    }

    #[test]
    fn what_was_in_force_is_known_behind_a_baseline() {
        let mut node = Node::default();
        let changed = Event::TrustChanged(trust(2, "acme").1);
        node.evolve(UnixMicros(1), &Context::default(), &changed).unwrap();
        let mut restored = Node::default();
        node.parts().into_iter().for_each(|part| restored.restore(part));
        assert!(comes(&restored, &trust(1, "acme")).is_err());
    }
}
