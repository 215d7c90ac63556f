//! Reads a trust envelope: which keys may do what, if the pinned root key says so.

use crate::domain::id::Kid;
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

/// Verifies a trust envelope and returns the document and its keys, without the revoked ones.
///
/// # Errors
/// The first check that failed; nothing of the document may be used then.
pub fn read_trust(bytes: &[u8], root: PublicKey) -> Result<(Trust, Keyring), ReadTrustError> {
    let mut roots = Keyring::default();
    let name = "root".parse().expect("a constant that is a name");
    roots.insert(root, Holder { name, class: KeyClass::Root, grants: vec![] });
    let opened = envelope::read(bytes, TRUST_BYTES_MAX)?.open(&roots)?;
    if opened.kind != Kind::Trust {
        return Err(ReadTrustError::Kind);
    }
    let trust: Trust = codec::decode(opened.payload)?;
    if trust.v != PAYLOAD_VERSION {
        return Err(ReadTrustError::Version(trust.v));
    }
    let ring = ring_of(&trust)?;
    Ok((trust, ring))
}

fn ring_of(trust: &Trust) -> Result<Keyring, ReadTrustError> {
    let mut ring = Keyring::default();
    for entry in &trust.keys {
        let key = PublicKey::from_bytes(&entry.key.0)?;
        if ring.get(key.kid()).is_some() {
            return Err(ReadTrustError::Twice(key.kid()));
        }
        let (name, grants) = (entry.name.clone(), entry.grants.clone());
        ring.insert(key, Holder { name, class: entry.class, grants });
    }
    trust.revoked.iter().for_each(|kid| ring.remove(*kid));
    Ok(ring)
}
