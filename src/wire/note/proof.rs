//! The text of a proof that a row is in a log (`tlog-proof`).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{Checkpoint, NOTE_BYTES_MAX, Note, NoteError, NoteKey, decimal, digest, form};
use crate::domain::id::Digest;
use crate::domain::tree::{self, PROOF_HASHES_MAX, ProofError};

const PROOF_HEADER: &str = "c2sp.org/tlog-proof@v1";

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
    use super::*;
    use crate::wire::note::tests::{checkpoint, signed, signer};

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
}
