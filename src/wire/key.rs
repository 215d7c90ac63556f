//! Signing keys and the ring of keys that a node trusts. One algorithm: Ed25519, verified strictly.

use std::collections::BTreeMap;
use std::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use super::note::{Ed25519Signer, KeyKind, NoteError, NoteKey};
use crate::domain::id::{Digest, Kid};
use crate::domain::policy::Holder;

/// A private key. It has no `Debug`, no `Serialize`, and is wiped when dropped.
pub struct Signer {
    kid: Kid,
    key: SigningKey,
}

impl Signer {
    /// Makes the key of a 32-byte seed; the public half is always derived again.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        Self { kid: kid_of(&key.verifying_key().to_bytes()), key }
    }

    /// Returns the id of the key.
    pub fn kid(&self) -> Kid {
        self.kid
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        PublicKey { kid: self.kid, key: self.key.verifying_key() }
    }

    /// Returns a signer of notes under `name` with the same key: a note and an envelope never have the same bytes.
    ///
    /// # Errors
    /// When `name` is not one that a note can bear.
    pub fn for_notes(&self, name: &str) -> Result<Ed25519Signer, NoteError> {
        Ed25519Signer::new(name, self.key.clone())
    }

    /// Signs exactly these bytes.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.key.sign(bytes).to_bytes()
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.kid)
    }
}

/// A public key that is neither weak nor written in a second form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey {
    kid: Kid,
    key: VerifyingKey,
}

/// Says that 32 bytes are not a usable public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not a usable Ed25519 public key")]
pub struct InvalidKey;

impl PublicKey {
    /// Takes a public key; weak and non-canonical ones are refused, as they verify what nobody signed.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, InvalidKey> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| InvalidKey)?;
        let canonical = key.to_edwards().compress().to_bytes() == *bytes;
        match canonical && !key.is_weak() {
            true => Ok(Self { kid: kid_of(bytes), key }),
            false => Err(InvalidKey),
        }
    }

    /// Returns the 32 bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// Returns the id of the key.
    pub fn kid(self) -> Kid {
        self.kid
    }

    /// Returns what verifies notes that this key signed under `name`.
    ///
    /// # Errors
    /// When `name` is not one that a note can bear.
    pub fn for_notes(self, name: &str) -> Result<NoteKey, NoteError> {
        NoteKey::new(name, KeyKind::Note, self.key)
    }

    /// Says whether this key signed exactly these bytes.
    pub fn verifies(self, bytes: &[u8], signature: &[u8; 64]) -> bool {
        self.key.verify_strict(bytes, &Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.kid)
    }
}

fn kid_of(public: &[u8; 32]) -> Kid {
    let digest = Sha256::new().chain_update(b"smgr-kid-v1\0").chain_update(public).finalize();
    Kid(digest[..16].try_into().expect("a SHA-256 digest has 32 bytes"))
}

/// Returns the SHA-256 digest of these bytes.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// The keys that are trusted, with who holds each and what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring {
    keys: BTreeMap<Kid, (PublicKey, Holder)>,
}

impl Keyring {
    /// Adds a key.
    pub fn insert(&mut self, key: PublicKey, holder: Holder) {
        self.keys.insert(key.kid(), (key, holder));
    }

    /// Takes a key out.
    pub fn remove(&mut self, kid: Kid) {
        self.keys.remove(&kid);
    }

    /// Returns a key with its holder.
    pub fn get(&self, kid: Kid) -> Option<(&PublicKey, &Holder)> {
        self.keys.get(&kid).map(|(key, holder)| (key, holder))
    }

    /// Returns every key with its holder, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&PublicKey, &Holder)> {
        self.keys.values().map(|(key, holder)| (key, holder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weak_key_that_verifies_anything_is_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(PublicKey::from_bytes(&identity), Err(InvalidKey));
    }

    #[test]
    fn a_key_written_in_a_second_form_is_refused() {
        let mut above_p = [0xff; 32]; // y = p + 1, which a lenient reader takes for 1.
        above_p[0] = 0xee;
        above_p[31] = 0x7f;
        assert_eq!(PublicKey::from_bytes(&above_p), Err(InvalidKey));
        assert_eq!(PublicKey::from_bytes(&[0xff; 32]), Err(InvalidKey));
    }

    #[test]
    fn a_signature_holds_for_its_bytes_and_key_alone() {
        let (one, other) = (Signer::from_seed(&[1; 32]), Signer::from_seed(&[2; 32]));
        let signature = one.sign(b"restart");
        assert!(one.public().verifies(b"restart", &signature));
        assert!(!one.public().verifies(b"restarT", &signature));
        assert!(!other.public().verifies(b"restart", &signature));
    }

    #[test]
    fn a_private_key_does_not_show_itself() {
        assert_eq!(format!("{:?}", Signer::from_seed(&[7; 32])).len(), "Signer()".len() + 32);
    }
}
