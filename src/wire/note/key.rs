//! The keys that notes are verified with.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::VerifyingKey;
use sha2::{Digest as _, Sha256};

use super::{Note, NoteError, cosigned, form, is_key_name};

/// What a key's signature states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind {
    /// Signs the text of a note (type 0x01).
    Note,
    /// Cosigns a checkpoint with the time at which it was seen to be consistent (type 0x04).
    Cosignature,
}

impl KeyKind {
    fn byte(self) -> u8 {
        match self {
            Self::Note => 0x01,
            Self::Cosignature => 0x04,
        }
    }
}

/// A public key with its name and kind: what a reader trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteKey {
    name: String,
    kind: KeyKind,
    key: VerifyingKey,
}

impl NoteKey {
    /// Names a key. The name is not empty and holds no blank and no `+`.
    pub fn new(name: &str, kind: KeyKind, key: VerifyingKey) -> Result<Self, NoteError> {
        if !is_key_name(name) {
            return Err(form("key name", "it is empty or holds a blank or a `+`"));
        }
        Ok(Self { name: name.to_owned(), kind, key })
    }

    /// Names a key given as its 32 bytes; what is no point of the curve is refused.
    pub fn from_bytes(name: &str, kind: KeyKind, key: &[u8; 32]) -> Result<Self, NoteError> {
        let wrong = |_| form("public key", "it is not on the curve");
        Self::new(name, kind, VerifyingKey::from_bytes(key).map_err(wrong)?)
    }

    /// Returns the name that stands in the signature line.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the public key.
    pub fn public(&self) -> &VerifyingKey {
        &self.key
    }

    /// Returns the four bytes that, with the name, tell signatures apart.
    pub fn id(&self) -> [u8; 4] {
        let hash = Sha256::new()
            .chain_update(&self.name)
            .chain_update([b'\n', self.kind.byte()])
            .chain_update(self.key.as_bytes())
            .finalize();
        [hash[0], hash[1], hash[2], hash[3]]
    }

    /// Checks this key's signature on `note`; gives the time of a cosignature in Unix seconds.
    pub fn verify(&self, note: &Note) -> Result<Option<u64>, NoteError> {
        let id = self.id();
        let found = note.signatures.iter().find(|sig| sig.name == self.name && sig.id == id);
        let Some(signature) = found else {
            return Err(NoteError::NotSigned { name: self.name.clone() });
        };
        let bad = || NoteError::BadSignature { name: self.name.clone() };
        let (time, message, bytes) = match self.kind {
            KeyKind::Note => (None, note.text.clone(), signature.bytes.as_slice()),
            KeyKind::Cosignature => {
                let (time, bytes) = signature.bytes.split_first_chunk::<8>().ok_or_else(bad)?;
                let time = u64::from_be_bytes(*time);
                (Some(time), cosigned(time, &note.text), bytes)
            }
        };
        let bytes: [u8; 64] = bytes.try_into().map_err(|_| bad())?;
        self.key
            .verify_strict(message.as_bytes(), &ed25519_dalek::Signature::from_bytes(&bytes))
            .map_err(|_| bad())?;
        Ok(time)
    }
}

impl fmt::Display for NoteKey {
    /// Writes the verifier key form `name+id+base64(kind || key)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![self.kind.byte()];
        bytes.extend_from_slice(self.key.as_bytes());
        write!(f, "{}+{:08x}+{}", self.name, u32::from_be_bytes(self.id()), BASE64.encode(bytes))
    }
}

impl std::str::FromStr for NoteKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let wrong = |why| form("verifier key", why);
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("it is not name+id+key"));
        };
        let bytes = BASE64.decode(key).map_err(|_| wrong("the key is not base64"))?;
        let kind = match bytes.first() {
            Some(0x01) => KeyKind::Note,
            Some(0x04) => KeyKind::Cosignature,
            Some(_) | None => return Err(wrong("the kind of key is not known")),
        };
        let bytes: [u8; 32] =
            bytes[1..].try_into().map_err(|_| wrong("the key is not 32 bytes"))?;
        let key =
            VerifyingKey::from_bytes(&bytes).map_err(|_| wrong("the key is not on the curve"))?;
        let key = Self::new(name, kind, key)?;
        if format!("{:08x}", u32::from_be_bytes(key.id())) == id {
            Ok(key)
        } else {
            Err(wrong("its id does not fit name and key"))
        }
    }
}
