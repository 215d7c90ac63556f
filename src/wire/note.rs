//! The C2SP text formats: signed notes, tree checkpoints, cosignatures and offline proofs.
//!
//! `signed-note`, `tlog-checkpoint`, `tlog-cosignature` (Ed25519) and `tlog-proof`, as published at
//! c2sp.org; nothing is added to them. What a signature means is decided by whoever trusts its key.

mod key;
mod proof;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signer as _, SigningKey};

use crate::domain::id::Digest;

pub use key::{KeyKind, NoteKey};
pub use proof::{ProofRefused, TlogProof};

/// The largest note that is read, in bytes: a checkpoint with some hundred cosignatures.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;

/// The most signatures that a note may carry.
pub const SIGNATURES_MAX: usize = 100;

/// Says why a text is not a note, a checkpoint, a key or a proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The text is longer than [`NOTE_BYTES_MAX`].
    #[error("the note is longer than {NOTE_BYTES_MAX} bytes")]
    TooLong,
    /// The form is broken.
    #[error("the text is no {what}: {why}")]
    Form {
        /// What it should have been.
        what: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// No signature is by a key that is trusted here.
    #[error("the note is not signed by `{name}`")]
    NotSigned {
        /// The key that was looked for.
        name: String,
    },
    /// A signature by a trusted key does not verify.
    #[error("the signature of `{name}` on the note does not verify")]
    BadSignature {
        /// The key.
        name: String,
    },
}

fn form(what: &'static str, why: &'static str) -> NoteError {
    NoteError::Form { what, why }
}

/// One signature line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteSignature {
    /// The signer's name.
    pub name: String,
    /// The signer's key id.
    pub id: [u8; 4],
    /// The signature proper, in the form of the key's kind.
    pub bytes: Vec<u8>,
}

/// A text and its signatures. Only what [`NoteKey::verify`] has passed may be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The signed text, which ends in a newline.
    pub text: String,
    /// The signatures, unknown ones included.
    pub signatures: Vec<NoteSignature>,
}

impl Note {
    /// Reads a note of at most [`NOTE_BYTES_MAX`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(NoteError::TooLong);
        }
        let wrong = |why| form("signed note", why);
        let whole = std::str::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8"))?;
        if whole.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
            return Err(wrong("it holds a control character"));
        }
        let split = whole.rfind("\n\n").ok_or_else(|| wrong("no blank line before signatures"))?;
        let (text, lines) = (&whole[..=split], &whole[split + 2..]);
        if !lines.ends_with('\n') {
            return Err(wrong("it does not end in a signature line"));
        }
        let signatures = lines
            .lines()
            .map(parse_signature)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| wrong("a signature line is not `— name base64(id || signature)`"))?;
        if signatures.len() > SIGNATURES_MAX {
            return Err(wrong("it has too many signatures"));
        }
        Ok(Self { text: text.to_owned(), signatures })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for signature in &self.signatures {
            let mut bytes = signature.id.to_vec();
            bytes.extend_from_slice(&signature.bytes);
            writeln!(f, "\u{2014} {} {}", signature.name, BASE64.encode(bytes))?;
        }
        Ok(())
    }
}

fn parse_signature(line: &str) -> Option<NoteSignature> {
    let (name, encoded) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    let bytes = BASE64.decode(encoded).ok()?;
    let (id, bytes) = bytes.split_first_chunk::<4>()?;
    (is_key_name(name) && !bytes.is_empty()).then(|| NoteSignature {
        name: name.to_owned(),
        id: *id,
        bytes: bytes.to_vec(),
    })
}

fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '+' || c.is_control())
}

/// Whoever can sign notes: the owner of a log holds one, its key stays inside.
pub trait NoteSigner: Send {
    /// Signs the text of a note.
    fn sign(&self, text: &str) -> NoteSignature;
}

/// Signs notes with an Ed25519 key.
pub struct Ed25519Signer {
    name: NoteKey,
    key: SigningKey,
}

impl Ed25519Signer {
    /// Signs under `name`; for the checkpoints of a log that is its origin line without the epoch.
    pub fn new(name: &str, key: SigningKey) -> Result<Self, NoteError> {
        Ok(Self { name: NoteKey::new(name, KeyKind::Note, key.verifying_key())?, key })
    }

    /// Signs under `name` with the key that `secret` makes.
    pub fn from_secret(name: &str, secret: &[u8; 32]) -> Result<Self, NoteError> {
        Self::new(name, SigningKey::from_bytes(secret))
    }

    /// Returns the key that verifies what this signs.
    pub fn public(&self) -> NoteKey {
        self.name.clone()
    }
}

impl NoteSigner for Ed25519Signer {
    fn sign(&self, text: &str) -> NoteSignature {
        let bytes = self.key.sign(text.as_bytes()).to_bytes().to_vec();
        NoteSignature { name: self.name.name().to_owned(), id: self.name.id(), bytes }
    }
}

impl fmt::Debug for Ed25519Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ed25519Signer({})", self.name)
    }
}

/// Cosigns a checkpoint: "at this time I had this head, and it extends all that I had before".
///
/// The key must be used for cosignatures by this name only: the message does not hold the name.
pub fn cosign(
    name: &str,
    key: &SigningKey,
    checkpoint: &Checkpoint,
    unix_seconds: u64,
) -> Result<NoteSignature, NoteError> {
    let public = NoteKey::new(name, KeyKind::Cosignature, key.verifying_key())?;
    let signature = key.sign(cosigned(unix_seconds, &checkpoint.to_string()).as_bytes());
    let mut bytes = unix_seconds.to_be_bytes().to_vec();
    bytes.extend_from_slice(&signature.to_bytes());
    Ok(NoteSignature { name: name.to_owned(), id: public.id(), bytes })
}

fn cosigned(unix_seconds: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {unix_seconds}\n{text}")
}

/// The head of a log's tree, as the text that is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log: `smgr/<fleet>/<node>/<epoch token>`.
    pub origin: String,
    /// How many rows it has.
    pub size: u64,
    /// The root over them.
    pub root: Digest,
}

impl Checkpoint {
    /// Reads the text of a note; extension lines are passed over.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let wrong = |why| form("checkpoint", why);
        let mut lines = text.lines();
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(wrong("it has fewer than three lines"));
        };
        if origin.is_empty() || !text.ends_with('\n') || lines.any(str::is_empty) {
            return Err(wrong("it has an empty line or no last newline"));
        }
        Ok(Self {
            origin: origin.to_owned(),
            size: decimal(size).ok_or_else(|| wrong("the size is not a decimal number"))?,
            root: digest(root).ok_or_else(|| wrong("the root is not base64 of 32 bytes"))?,
        })
    }
}

impl Checkpoint {
    /// Returns the size that a note speaks of, before anything is believed of it.
    pub fn parse_size(note: &[u8]) -> Option<u64> {
        Some(Self::parse(&Note::parse(note).ok()?.text).ok()?.size)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.size, BASE64.encode(self.root.0))
    }
}

fn decimal(text: &str) -> Option<u64> {
    let canonical = |n: &u64| n.to_string() == text;
    text.parse().ok().filter(canonical)
}

fn digest(text: &str) -> Option<Digest> {
    BASE64.decode(text).ok()?.try_into().ok().map(Digest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::tree::{self, Frontier};

    pub(super) fn signer() -> Ed25519Signer {
        Ed25519Signer::new("smgr/demo/n1/0abc", SigningKey::from_bytes(&[7; 32])).unwrap()
    }

    pub(super) fn checkpoint() -> Checkpoint {
        Checkpoint { origin: "smgr/demo/n1/0abc".to_owned(), size: 2, root: root() }
    }

    fn root() -> Digest {
        let mut tree = Frontier::default();
        tree.push(tree::leaf(b"one"));
        tree.push(tree::leaf(b"two"));
        tree.root()
    }

    pub(super) fn signed() -> Note {
        let text = checkpoint().to_string();
        Note { signatures: vec![signer().sign(&text)], text }
    }

    #[test]
    fn the_key_ids_of_the_published_examples_come_out() {
        // The verifier key of Go's checksum database, whose id is part of its text.
        let text = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
        let key: NoteKey = text.parse().unwrap();
        assert_eq!(key.to_string(), text);
        assert!(text.replace("033de0ae", "033de0af").parse::<NoteKey>().is_err());
    }

    #[test]
    fn a_signed_checkpoint_reads_as_it_was_written_and_verifies() {
        let note = signed();
        let read = Note::parse(note.to_string().as_bytes()).unwrap();
        assert_eq!(read, note);
        assert_eq!(signer().public().verify(&read), Ok(None));
        assert_eq!(Checkpoint::parse(&read.text), Ok(checkpoint()));
    }

    #[test]
    fn a_changed_size_is_refused() {
        let mut note = signed();
        note.text = note.text.replace("\n2\n", "\n3\n");
        let refused = NoteError::BadSignature { name: "smgr/demo/n1/0abc".to_owned() };
        assert_eq!(signer().public().verify(&note), Err(refused));
    }

    #[test]
    fn a_cosignature_tells_its_time_and_is_no_log_signature() {
        let key = SigningKey::from_bytes(&[9; 32]);
        let mut note = signed();
        note.signatures.push(cosign("c1", &key, &checkpoint(), 1_795_000_000).unwrap());
        let note = Note::parse(note.to_string().as_bytes()).unwrap();
        let witness = NoteKey::new("c1", KeyKind::Cosignature, key.verifying_key()).unwrap();
        assert_eq!(witness.verify(&note), Ok(Some(1_795_000_000)));
        let as_log = NoteKey::new("c1", KeyKind::Note, key.verifying_key()).unwrap();
        assert_eq!(as_log.verify(&note), Err(NoteError::NotSigned { name: "c1".to_owned() }));
    }

    #[test]
    fn what_is_no_note_is_refused_with_its_reason() {
        let good = signed().to_string();
        for bad in [
            String::new(),
            "text\n".to_owned(),
            good.replace('\u{2014}', "-"),
            good.trim_end().to_owned(),
            good.replace("smgr/demo", "smgr\tdemo"),
            format!("{good}\n"),
            "x".repeat(NOTE_BYTES_MAX + 1),
        ] {
            assert!(Note::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for bad in ["o\n01\nAA==\n", "o\n1\n", "\n1\n\n", "o\n-1\nx\n"] {
            assert!(Checkpoint::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_note_never_verifies_with_another_text(at in 0usize..300, byte in any::<u8>()) {
            let mut bytes = signed().to_string().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(note) = Note::parse(&bytes)
                && signer().public().verify(&note).is_ok()
            {
                prop_assert_eq!(note.text, signed().text);
            }
            TlogProof::parse(&bytes).unwrap_err();
        }
    }
}
