//! The hash tiles of a sealed segment: what stays of it when retention drops its rows.
//!
//! `<first>.tiles` holds the leaf hashes in order (so tile n of C2SP tlog-tiles, level 0, is a slice of
//! it), the tree before them, the last checkpoint, and a hash over all of that. Higher levels are
//! computed from the leaves when a proof needs them.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::domain::id::Digest;
use crate::domain::tree::Frontier;
use crate::store::layout;

const MAGIC: &[u8; 8] = b"smgrtil1";

/// The most bytes of a tiles file that are read: the leaves of 16 million rows.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// The leaves of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tiles {
    /// The tree before the first leaf.
    pub(crate) base: Frontier,
    pub(crate) leaves: Vec<Digest>,
    /// The last checkpoint, a signed note; empty when none was signed.
    pub(crate) checkpoint: Vec<u8>,
}

impl Tiles {
    /// Returns the tree after the last leaf.
    pub(crate) fn head(&self) -> Frontier {
        let mut head = self.base.clone();
        self.leaves.iter().for_each(|leaf| head.push(*leaf));
        head
    }

    /// Writes the file, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        let base = self.base.to_bytes();
        for part in [base.len(), self.leaves.len(), self.checkpoint.len()] {
            bytes.extend_from_slice(&(part as u64).to_be_bytes());
        }
        bytes.extend_from_slice(&base);
        self.leaves.iter().for_each(|leaf| bytes.extend_from_slice(&leaf.0));
        bytes.extend_from_slice(&self.checkpoint);
        let sum = Sha256::digest(&bytes);
        let unfinished = path.with_extension("tiles-new");
        let mut file = fs::File::create(&unfinished)?;
        file.write_all(&bytes)?;
        file.write_all(&sum)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        layout::sync_parent(path)
    }

    /// Reads the file; `None` when it is not what was written.
    pub(crate) fn read(path: &Path) -> io::Result<Option<Self>> {
        if fs::metadata(path)?.len() > FILE_BYTES_MAX {
            return Ok(None);
        }
        Ok(Self::parse(&fs::read(path)?))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (content, sum) = bytes.split_last_chunk::<32>()?;
        if Sha256::digest(content).as_slice() != sum {
            return None;
        }
        let (lengths, rest) = content.strip_prefix(MAGIC)?.split_first_chunk::<24>()?;
        let length = |n: usize| {
            let bytes = lengths.as_chunks::<8>().0[n];
            usize::try_from(u64::from_be_bytes(bytes)).ok()
        };
        let (base, rest) = rest.split_at_checked(length(0)?)?;
        let (leaves, checkpoint) = rest.split_at_checked(length(1)?.checked_mul(32)?)?;
        (checkpoint.len() == length(2)?).then_some(())?;
        Some(Self {
            base: Frontier::from_bytes(base).ok()?,
            leaves: leaves.as_chunks::<32>().0.iter().map(|leaf| Digest(*leaf)).collect(),
            checkpoint: checkpoint.to_vec(),
        })
    }
}
