//! The signed envelope: DSSE's pre-authentication encoding over opaque MessagePack, in a MessagePack array.
//!
//! `[version, typ, payload, [[kid, signature]...], chain]`. The bytes that were verified are the bytes that are
//! decoded, stored, hashed and forwarded; an envelope is never written again. The PAE is DSSE 1.0.2
//! (<https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md>).

use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::Bytes;

use super::codec::{self, CodecError};
use super::key::{Keyring, PublicKey, Signer, digest_of};
use crate::domain::id::{Digest, Kid};
use crate::domain::policy::{Holder, Kind};

/// The largest envelope that is read, in bytes. One frame between our processes holds it.
pub const ENVELOPE_BYTES_MAX: usize = 64 * 1024 - 512;

/// The largest trust document that is read, in bytes: a roster of 10,000 nodes with their keys has some 3 MB.
pub const TRUST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// More signatures than any policy asks for.
const SIGNATURES_MAX: usize = 4;

/// The version of the envelope's shape. A new algorithm is a new version: there is no `alg` field to talk down.
const VERSION: u8 = 1;

/// Every kind with its `typ`, which is domain separator and version in one.
const TYPES: &[(Kind, &str)] = &[
    (Kind::Intent, "application/vnd.smgr.intent.v1+msgpack"),
    (Kind::Order, "application/vnd.smgr.order.v1+msgpack"),
    (Kind::Query, "application/vnd.smgr.query.v1+msgpack"),
    (Kind::Answer, "application/vnd.smgr.answer.v1+msgpack"),
    (Kind::Event, "application/vnd.smgr.event.v1+msgpack"),
    (Kind::Beat, "application/vnd.smgr.beat.v1+msgpack"),
    (Kind::Receipt, "application/vnd.smgr.receipt.v1+msgpack"),
    (Kind::Trust, "application/vnd.smgr.trust.v1+msgpack"),
];

fn typ_of(kind: Kind) -> &'static str {
    TYPES.iter().find(|(known, _)| *known == kind).expect("every kind has a type").1
}

fn kind_of(typ: &str) -> Option<Kind> {
    TYPES.iter().find(|(_, known)| *known == typ).map(|(kind, _)| *kind)
}

/// Returns the bytes that are signed: `DSSEv1 LEN(type) type LEN(payload) payload`.
pub fn pre_authentication(typ: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {typ} {} ", typ.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Returns the envelope of a payload, signed by one key.
pub fn seal(kind: Kind, payload: &[u8], signer: &Signer) -> Vec<u8> {
    let typ = typ_of(kind);
    let signature = signer.sign(&pre_authentication(typ, payload));
    codec::encode(&Outer {
        typ,
        payload: Bytes::new(payload),
        signatures: Signatures::one(signer.kid(), signature),
    })
}

/// An envelope whose shape was read and whose signatures were not.
#[derive(Debug)]
pub struct Sealed<'a> {
    kind: Kind,
    typ: &'a str,
    payload: &'a [u8],
    signatures: Signatures,
}

/// An envelope of which at least one signature by a trusted key holds.
#[derive(Debug)]
pub struct Opened<'a, 'k> {
    /// Its kind.
    pub kind: Kind,
    /// The bytes that were signed, to be decoded once.
    pub payload: &'a [u8],
    /// The key that verified first.
    pub kid: Kid,
    /// Who holds that key.
    pub holder: &'k Holder,
    /// SHA-256 of the signed bytes: the name of the content.
    pub digest: Digest,
}

/// The first check that an envelope failed. Nothing of it may be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Over the size cap; nothing was decoded.
    #[error("the message has {bytes} bytes, more than {max}")]
    Size {
        /// Its size.
        bytes: usize,
        /// The cap.
        max: usize,
    },
    /// Not an envelope.
    #[error("the message is not an envelope")]
    Shape(#[source] CodecError),
    /// An envelope of a kind that this version does not know.
    #[error("the message is of an unknown type")]
    UnknownType,
    /// None of its keys is trusted here.
    #[error("the message is signed by no key that is trusted here (key {kid})")]
    UnknownKey {
        /// The first key it names.
        kid: Kid,
    },
    /// A trusted key of a class that may not sign this kind.
    #[error("key {kid} may not sign a message of this kind")]
    Class {
        /// The key.
        kid: Kid,
    },
    /// The signature does not hold.
    #[error("the signature by key {kid} does not hold")]
    Signature {
        /// The key.
        kid: Kid,
    },
}

/// Reads the shape of an envelope. Decides nothing.
pub fn read(bytes: &[u8], bytes_max: usize) -> Result<Sealed<'_>, EnvelopeError> {
    if bytes.len() > bytes_max {
        return Err(EnvelopeError::Size { bytes: bytes.len(), max: bytes_max });
    }
    let outer: Outer<'_> = codec::decode(bytes).map_err(EnvelopeError::Shape)?;
    let kind = kind_of(outer.typ).ok_or(EnvelopeError::UnknownType)?;
    Ok(Sealed { kind, typ: outer.typ, payload: outer.payload, signatures: outer.signatures })
}

/// Says why an envelope that was kept cannot be read again.
#[derive(Debug, thiserror::Error)]
pub enum ReadKeptError {
    /// It is none.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// It is of another kind.
    #[error("the message is of another kind")]
    Kind,
    /// Its payload is not of this kind.
    #[error(transparent)]
    Payload(#[from] CodecError),
}

/// Reads what an envelope holds that was verified before it was kept. Proves nothing.
///
/// # Errors
/// It is no envelope, or holds something else.
pub fn read_kept<T: DeserializeOwned>(bytes: &[u8], kind: Kind) -> Result<T, ReadKeptError> {
    let sealed = read(bytes, ENVELOPE_BYTES_MAX)?;
    if sealed.kind() != kind {
        return Err(ReadKeptError::Kind);
    }
    Ok(codec::decode(sealed.unverified_payload())?)
}

impl<'a> Sealed<'a> {
    /// Returns the kind it claims.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the first key it names, which proves nothing yet.
    pub fn claimed(&self) -> Kid {
        self.signatures.list[0].0
    }

    /// Returns all keys it names, which proves nothing yet.
    pub fn kids(&self) -> impl Iterator<Item = Kid> {
        self.signatures.list.iter().map(|(kid, _)| *kid)
    }

    /// Returns the payload before anything was verified: only for bytes that come from a verified tree.
    pub fn unverified_payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Says whether this key, and no other, signed it.
    pub fn is_signed_by(&self, key: PublicKey) -> bool {
        let signed = pre_authentication(self.typ, self.payload);
        self.signatures
            .list
            .iter()
            .any(|(kid, signature)| *kid == key.kid() && key.verifies(&signed, signature))
    }

    /// Verifies it against the keys that are trusted here.
    pub fn open<'k>(self, ring: &'k Keyring) -> Result<Opened<'a, 'k>, EnvelopeError> {
        let claimed = self.claimed();
        let known = self.signatures.list.iter().find_map(|(kid, signature)| {
            ring.get(*kid).map(|(key, holder)| (*kid, key, holder, signature))
        });
        let (kid, key, holder, signature) =
            known.ok_or(EnvelopeError::UnknownKey { kid: claimed })?;
        if !holder.class.may_sign(self.kind) {
            return Err(EnvelopeError::Class { kid });
        }
        let signed = pre_authentication(self.typ, self.payload);
        if !key.verifies(&signed, signature) {
            return Err(EnvelopeError::Signature { kid });
        }
        let digest = digest_of(&signed);
        Ok(Opened { kind: self.kind, payload: self.payload, kid, holder, digest })
    }
}

struct Outer<'a> {
    typ: &'a str,
    payload: &'a Bytes,
    signatures: Signatures,
}

/// One to four signatures, each by another key.
#[derive(Debug)]
struct Signatures {
    list: Vec<(Kid, [u8; 64])>,
}

impl Signatures {
    fn one(kid: Kid, signature: [u8; 64]) -> Self {
        Self { list: vec![(kid, signature)] }
    }
}

impl Serialize for Outer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(5)?;
        tuple.serialize_element(&VERSION)?;
        tuple.serialize_element(self.typ)?;
        tuple.serialize_element(self.payload)?;
        let pairs: Vec<_> =
            self.signatures.list.iter().map(|(kid, sig)| (kid, Bytes::new(sig))).collect();
        tuple.serialize_element(&pairs)?;
        tuple.serialize_element(&[(); 0])?;
        tuple.end()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Outer<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OuterVisitor;
        impl<'de> Visitor<'de> for OuterVisitor {
            type Value = Outer<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an envelope of 5 parts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
                let missing = || A::Error::custom("an envelope has 5 parts");
                let version: u8 = parts.next_element()?.ok_or_else(missing)?;
                if version != VERSION {
                    return Err(A::Error::custom(format_args!("envelope version {version}")));
                }
                let typ: &str = parts.next_element()?.ok_or_else(missing)?;
                let payload: &Bytes = parts.next_element()?.ok_or_else(missing)?;
                let signatures: Signatures = parts.next_element()?.ok_or_else(missing)?;
                let chain: Vec<&Bytes> = parts.next_element()?.ok_or_else(missing)?;
                if !chain.is_empty() {
                    return Err(A::Error::custom("key certificates are not in this version"));
                }
                Ok(Outer { typ, payload, signatures })
            }
        }
        deserializer.deserialize_tuple(5, OuterVisitor)
    }
}

impl<'de> Deserialize<'de> for Signatures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor;
        impl<'de> Visitor<'de> for ListVisitor {
            type Value = Signatures;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("1 to 4 signatures by different keys")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pairs: A) -> Result<Self::Value, A::Error> {
                let mut list: Vec<(Kid, [u8; 64])> = Vec::with_capacity(1);
                while let Some((kid, bytes)) = pairs.next_element::<(Kid, &Bytes)>()? {
                    // A threshold counts keys, so one key may not stand twice (RUSTSEC-2020-0024).
                    if list.len() == SIGNATURES_MAX || list.iter().any(|(known, _)| *known == kid) {
                        return Err(A::Error::invalid_value(serde::de::Unexpected::Seq, &self));
                    }
                    let signature: &[u8] = bytes;
                    let signature = signature
                        .try_into()
                        .map_err(|_| A::Error::invalid_length(bytes.len(), &"64 bytes"))?;
                    list.push((kid, signature));
                }
                if list.is_empty() {
                    return Err(A::Error::invalid_length(0, &self));
                }
                Ok(Signatures { list })
            }
        }
        deserializer.deserialize_seq(ListVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::policy::KeyClass;

    fn ring(signer: &Signer, class: KeyClass) -> Keyring {
        let mut ring = Keyring::default();
        let holder = Holder { name: "alice".parse().unwrap(), class, grants: vec![], until: None };
        ring.insert(signer.public(), holder);
        ring
    }

    fn open(bytes: &[u8], ring: &Keyring) -> Result<Vec<u8>, EnvelopeError> {
        Ok(read(bytes, ENVELOPE_BYTES_MAX)?.open(ring)?.payload.to_vec())
    }

    #[test]
    fn the_signed_bytes_are_those_of_the_dsse_specification() {
        let signed = pre_authentication("http://example.com/HelloWorld", b"hello world");
        assert_eq!(signed, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn what_was_sealed_opens_with_the_same_bytes() {
        let signer = Signer::from_seed(&[1; 32]);
        let sealed = seal(Kind::Intent, b"payload", &signer);
        assert_eq!(open(&sealed, &ring(&signer, KeyClass::Human)).unwrap(), b"payload");
    }

    #[test]
    fn no_changed_byte_is_accepted() {
        let signer = Signer::from_seed(&[1; 32]);
        let ring = ring(&signer, KeyClass::Human);
        let sealed = seal(Kind::Intent, b"a payload of some length", &signer);
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[at] ^= 1 << bit;
                assert!(open(&changed, &ring).is_err(), "byte {at}, bit {bit}");
            }
        }
        for cut in 0..sealed.len() {
            assert!(open(&sealed[..cut], &ring).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn an_envelope_of_one_kind_does_not_open_as_another() {
        let signer = Signer::from_seed(&[1; 32]);
        let sealed = seal(Kind::Event, b"payload", &signer);
        let error = open(&sealed, &ring(&signer, KeyClass::Human)).unwrap_err();
        assert!(matches!(error, EnvelopeError::Class { .. }), "{error}");
    }

    #[test]
    fn a_stranger_and_an_oversize_message_are_refused_by_name() {
        let signer = Signer::from_seed(&[1; 32]);
        let sealed = seal(Kind::Intent, b"payload", &signer);
        let stranger = open(&sealed, &Keyring::default()).unwrap_err();
        assert!(matches!(stranger, EnvelopeError::UnknownKey { .. }), "{stranger}");
        let large = vec![0x95; ENVELOPE_BYTES_MAX + 1];
        assert!(matches!(read(&large, ENVELOPE_BYTES_MAX), Err(EnvelopeError::Size { .. })));
    }

    #[test]
    fn one_key_does_not_count_twice() {
        let signer = Signer::from_seed(&[1; 32]);
        let signature = signer.sign(&pre_authentication(typ_of(Kind::Intent), b"p"));
        let pair = (signer.kid(), signature);
        let twice = codec::encode(&Outer {
            typ: typ_of(Kind::Intent),
            payload: Bytes::new(b"p"),
            signatures: Signatures { list: vec![pair, pair] },
        });
        assert!(matches!(read(&twice, ENVELOPE_BYTES_MAX), Err(EnvelopeError::Shape(_))));
    }
}
