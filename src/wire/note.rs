//! The C2SP text formats: signed notes, tree checkpoints, cosignatures and offline proofs.
//!
//! `signed-note`, `tlog-checkpoint`, `tlog-cosignature` (Ed25519) and `tlog-proof`, as published at
//! c2sp.org; nothing is added to them. What a signature means is decided by whoever trusts its key.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use crate::domain::id::Digest;
use crate::domain::tree::{self, PROOF_HASHES_MAX, ProofError};

/// The largest note that is read, in bytes: a checkpoint with some hundred cosignatures.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;

/// The most signatures that a note may carry.
pub const SIGNATURES_MAX: usize = 100;

const PROOF_HEADER: &str = "c2sp.org/tlog-proof@v1";

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
        NoteSignature { name: self.name.name.clone(), id: self.name.id(), bytes }
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

/// A proof that a row is in a log, for a reader who has nothing else: one text file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlogProof {
    /// Data for the reader, proved by nothing.
    pub extra: Option<Vec<u8>>,
    /// The row's place from 0, which is its sequence number less one.
    pub index: u64,
    /// The siblings, the nearest first.
    pub hashes: Vec<Digest>,
    /// The checkpoint with its signatures.
    pub checkpoint: Note,
}

impl TlogProof {
    /// Reads the text form, of at most [`NOTE_BYTES_MAX`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(NoteError::TooLong);
        }
        let wrong = |why| form("tlog-proof", why);
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8"))?;
        let (head, checkpoint) =
            text.split_once("\n\n").ok_or_else(|| wrong("no blank line before the checkpoint"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(PROOF_HEADER) {
            return Err(wrong("it does not begin with its header"));
        }
        let extra = lines.next_if(|line| line.starts_with("extra ")).map(|line| {
            BASE64
                .decode(&line["extra ".len()..])
                .map_err(|_| wrong("the extra data is not base64"))
        });
        let index = lines
            .next()
            .and_then(|line| decimal(line.strip_prefix("index ")?))
            .ok_or_else(|| wrong("no index"))?;
        let hashes = lines
            .map(digest)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| wrong("a hash is not base64 of 32 bytes"))?;
        if hashes.len() > PROOF_HASHES_MAX {
            return Err(wrong("it has too many hashes"));
        }
        let checkpoint = Note::parse(checkpoint.as_bytes())?;
        Ok(Self { extra: extra.transpose()?, index, hashes, checkpoint })
    }

    /// Checks that `row` is in the log that `key` signs for, and gives the checkpoint that says so.
    pub fn verify(&self, row: &[u8], key: &NoteKey) -> Result<Checkpoint, ProofRefused> {
        key.verify(&self.checkpoint)?;
        let head = Checkpoint::parse(&self.checkpoint.text)?;
        tree::check_inclusion(tree::leaf(row), self.index, head.size, &self.hashes, head.root)?;
        Ok(head)
    }
}

impl fmt::Display for TlogProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{PROOF_HEADER}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", BASE64.encode(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        for hash in &self.hashes {
            writeln!(f, "{}", BASE64.encode(hash.0))?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}

/// Says why a proof file does not prove that a row is in a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofRefused {
    /// The checkpoint is malformed or not signed by the key.
    #[error("the checkpoint of the proof is not acceptable")]
    Checkpoint(#[from] NoteError),
    /// The hashes do not lead from the row to the root.
    #[error("the row is not what the proof speaks of")]
    Tree(#[from] ProofError),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::tree::Frontier;

    fn signer() -> Ed25519Signer {
        Ed25519Signer::new("smgr/demo/n1/0abc", SigningKey::from_bytes(&[7; 32])).unwrap()
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: "smgr/demo/n1/0abc".to_owned(), size: 2, root: root() }
    }

    fn root() -> Digest {
        let mut tree = Frontier::default();
        tree.push(tree::leaf(b"one"));
        tree.push(tree::leaf(b"two"));
        tree.root()
    }

    fn signed() -> Note {
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
    fn a_proof_file_proves_its_row_and_no_other() {
        let proof = TlogProof {
            extra: Some(b"n1/0abc/2".to_vec()),
            index: 1,
            hashes: vec![tree::leaf(b"one")],
            checkpoint: signed(),
        };
        let read = TlogProof::parse(proof.to_string().as_bytes()).unwrap();
        assert_eq!(read, proof);
        assert_eq!(read.verify(b"two", &signer().public()), Ok(checkpoint()));
        let refused = Err(ProofRefused::Tree(ProofError::Root));
        assert_eq!(read.verify(b"three", &signer().public()), refused);
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
