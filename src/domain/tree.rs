//! The RFC 6962 Merkle tree over the rows of a log: hashes, frontier, proofs and their checks.
//!
//! Leaves are `SHA-256(0x00 || row)`, nodes `SHA-256(0x01 || left || right)`; indexes count from 0.
//! Where the rows and hashes are kept is the store's affair: proofs ask for complete subtrees.

use sha2::{Digest as _, Sha256};

use crate::domain::id::Digest;

/// The longest proof that a tree of `u64` size can need.
pub const PROOF_HASHES_MAX: usize = 64;

/// More leaves than a tree ever has: a row every microsecond for nine years. A size beyond it was not written by us.
pub const SIZE_MAX: u64 = 1 << 48;

/// Returns the hash of a row as a leaf.
pub fn leaf(row: &[u8]) -> Digest {
    Digest(Sha256::new().chain_update([0]).chain_update(row).finalize().into())
}

/// Returns the hash of two subtrees side by side.
pub fn node(left: Digest, right: Digest) -> Digest {
    Digest(
        Sha256::new()
            .chain_update([1])
            .chain_update(left.0)
            .chain_update(right.0)
            .finalize()
            .into(),
    )
}

/// Returns the root of the tree without leaves.
pub fn empty_root() -> Digest {
    Digest(Sha256::digest([]).into())
}

/// The right edge of a tree: enough to append leaves and to know the root, at most 64 hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// One complete subtree for each set bit of `size`, the largest first.
    peaks: Vec<Digest>,
}

/// Says that bytes are not a frontier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the frontier holds {found} bytes, which does not fit its size")]
pub struct InvalidFrontier {
    found: usize,
}

impl Frontier {
    /// Returns the number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf, given as its hash.
    pub fn push(&mut self, leaf: Digest) {
        self.push_with(leaf, |_, _, _| ());
    }

    /// Appends a leaf and tells `completed` each subtree that it completes, the leaf included, as
    /// (level, index at that level, hash).
    pub fn push_with(&mut self, leaf: Digest, mut completed: impl FnMut(u8, u64, Digest)) {
        let mut hash = leaf;
        completed(0, self.size, hash);
        for level in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("invariant: one peak for each set bit of the size");
            hash = node(left, hash);
            completed((level + 1) as u8, self.size >> (level + 1), hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// Returns the root of the tree.
    pub fn root(&self) -> Digest {
        let mut peaks = self.peaks.iter().rev().copied();
        let Some(smallest) = peaks.next() else { return empty_root() };
        peaks.fold(smallest, |right, left| node(left, right))
    }

    /// Writes the size and the peaks, 8 bytes and 32 for each.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + 32 * self.peaks.len());
        bytes.extend_from_slice(&self.size.to_be_bytes());
        for peak in &self.peaks {
            bytes.extend_from_slice(&peak.0);
        }
        bytes
    }

    /// Reads what [`Frontier::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidFrontier> {
        let invalid = InvalidFrontier { found: bytes.len() };
        let (size, rest) = bytes.split_first_chunk::<8>().ok_or(invalid)?;
        let size = u64::from_be_bytes(*size);
        let (peaks, rest) = rest.as_chunks::<32>();
        if !rest.is_empty() || peaks.len() != size.count_ones() as usize || size >= SIZE_MAX {
            return Err(invalid);
        }
        Ok(Self { size, peaks: peaks.iter().map(|peak| Digest(*peak)).collect() })
    }
}

/// Proves that the leaf at `index` is in the tree of `size` leaves: its siblings, the nearest first.
///
/// `subtree(level, index)` gives the hash of the complete subtree over the leaves
/// `index << level .. (index + 1) << level`; its error is passed on.
///
/// # Panics
/// If `index` is not below `size`.
pub fn prove_inclusion<E>(
    index: u64,
    size: u64,
    mut subtree: impl FnMut(u8, u64) -> Result<Digest, E>,
) -> Result<Vec<Digest>, E> {
    assert!(index < size, "invariant: the leaf is in the tree");
    let mut proof = Vec::new();
    let (mut low, mut high) = (0, size);
    while high - low > 1 {
        let middle = low + split(high - low);
        if index < middle {
            proof.push(range(middle, high, &mut subtree)?);
            high = middle;
        } else {
            proof.push(range(low, middle, &mut subtree)?);
            low = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Proves that the tree of `new` leaves begins with the tree of `old` leaves.
///
/// `subtree` is as in [`prove_inclusion`]. The proof is empty when `old` is 0 or equals `new`.
///
/// # Panics
/// If `old` is above `new`.
pub fn prove_consistency<E>(
    old: u64,
    new: u64,
    mut subtree: impl FnMut(u8, u64) -> Result<Digest, E>,
) -> Result<Vec<Digest>, E> {
    assert!(old <= new, "invariant: a tree only grows");
    let mut proof = Vec::new();
    if old == 0 {
        return Ok(proof);
    }
    let (mut low, mut high) = (0, new);
    while old < high {
        let middle = low + split(high - low);
        if old <= middle {
            proof.push(range(middle, high, &mut subtree)?);
            high = middle;
        } else {
            proof.push(range(low, middle, &mut subtree)?);
            low = middle;
        }
    }
    // The verifier already knows the old root itself, and nothing smaller.
    if low > 0 {
        proof.push(range(low, high, &mut subtree)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Says why a proof does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The proof speaks of a leaf or a size outside the tree.
    #[error("the proof speaks of {place}, outside a tree of {size}")]
    OutOfRange {
        /// The leaf's index or the older size.
        place: u64,
        /// The size of the (newer) tree.
        size: u64,
    },
    /// The proof has more or fewer hashes than the sizes call for.
    #[error("the proof has {found} hashes, which does not fit the sizes")]
    Length {
        /// How many it has.
        found: usize,
    },
    /// The hashes lead to another root than the (newer) one.
    #[error("the proof leads to another root")]
    Root,
    /// The hashes lead to another root than the older one: history was rewritten.
    #[error("the proof leads to another root at the older size")]
    OldRoot,
}

/// Checks that `leaf` is at `index` in the tree of `size` leaves with this `root`.
pub fn check_inclusion(
    leaf: Digest,
    index: u64,
    size: u64,
    proof: &[Digest],
    root: Digest,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::OutOfRange { place: index, size });
    }
    let wrong_length = ProofError::Length { found: proof.len() };
    let (mut at, mut last) = (index, size - 1);
    let mut hash = leaf;
    for sibling in proof {
        if last == 0 {
            return Err(wrong_length);
        }
        if at & 1 == 1 || at == last {
            hash = node(*sibling, hash);
            // A right edge without sibling is promoted until it has one.
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            hash = node(hash, *sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(wrong_length);
    }
    if hash == root { Ok(()) } else { Err(ProofError::Root) }
}

/// Checks that the tree (`new`, `new_root`) begins with the tree (`old`, `old_root`).
pub fn check_consistency(
    old: u64,
    old_root: Digest,
    new: u64,
    new_root: Digest,
    proof: &[Digest],
) -> Result<(), ProofError> {
    let wrong_length = ProofError::Length { found: proof.len() };
    if old > new {
        return Err(ProofError::OutOfRange { place: old, size: new });
    }
    if old == 0 || old == new {
        if !proof.is_empty() {
            return Err(wrong_length);
        }
        let expected = if old == 0 { empty_root() } else { new_root };
        return if old_root == expected { Ok(()) } else { Err(ProofError::OldRoot) };
    }
    let mut hashes = proof.iter().copied();
    let (mut at, mut last) = (old - 1, new - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    // When the older tree is one complete subtree, its root is where the climb begins.
    let seed = if old.is_power_of_two() { old_root } else { hashes.next().ok_or(wrong_length)? };
    let (mut from_old, mut from_new) = (seed, seed);
    for sibling in hashes {
        if last == 0 {
            return Err(wrong_length);
        }
        if at & 1 == 1 || at == last {
            from_old = node(sibling, from_old);
            from_new = node(sibling, from_new);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            from_new = node(from_new, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(wrong_length);
    }
    if from_old != old_root {
        return Err(ProofError::OldRoot);
    }
    if from_new == new_root { Ok(()) } else { Err(ProofError::Root) }
}

/// Returns the largest power of two below `size`: where RFC 6962 splits a tree.
fn split(size: u64) -> u64 {
    debug_assert!(size > 1);
    1 << (63 - (size - 1).leading_zeros())
}

/// Returns the root over the leaves `low..high`, which is the right part of a split.
fn range<E>(
    low: u64,
    high: u64,
    subtree: &mut impl FnMut(u8, u64) -> Result<Digest, E>,
) -> Result<Digest, E> {
    let mut parts = Vec::new();
    let mut at = low;
    while at < high {
        // A split's right part begins at a multiple of every subtree that fits into it.
        let level = (high - at).ilog2();
        debug_assert_eq!(at & ((1 << level) - 1), 0);
        parts.push(subtree(level as u8, at >> level)?);
        at += 1 << level;
    }
    let mut parts = parts.into_iter().rev();
    let smallest = parts.next().expect("invariant: the range is not empty");
    Ok(parts.fold(smallest, |right, left| node(left, right)))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// The definition of RFC 6962 §2.1, word for word: slow and plainly right.
    fn root_of(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => empty_root(),
            [leaf] => *leaf,
            more => {
                let (left, right) = more.split_at(split(more.len() as u64) as usize);
                node(root_of(left), root_of(right))
            }
        }
    }

    fn rows(n: u64) -> Vec<Digest> {
        (0..n).map(|i| leaf(&i.to_be_bytes())).collect()
    }

    fn subtree_of(leaves: &[Digest]) -> impl FnMut(u8, u64) -> Result<Digest, Infallible> {
        |level, index| {
            let low = (index << level) as usize;
            Ok(root_of(&leaves[low..low + (1 << level)]))
        }
    }

    #[test]
    fn the_known_roots_of_certificate_transparency_come_out() {
        let rows: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let mut frontier = Frontier::default();
        assert_eq!(
            frontier.root().to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        for row in rows {
            frontier.push(leaf(row));
        }
        assert_eq!(
            frontier.root().to_string(),
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
        );
    }

    #[test]
    fn the_frontier_has_the_root_of_the_definition_at_every_size() {
        let leaves = rows(130);
        let mut frontier = Frontier::default();
        for (n, hash) in leaves.iter().enumerate() {
            assert_eq!(frontier.root(), root_of(&leaves[..n]));
            assert_eq!(Frontier::from_bytes(&frontier.to_bytes()), Ok(frontier.clone()));
            frontier.push_with(*hash, |level, index, hash| {
                assert_eq!(Ok(hash), subtree_of(&leaves)(level, index));
            });
        }
    }

    #[test]
    fn every_proof_of_a_small_tree_holds_and_no_altered_one_does() {
        let leaves = rows(35);
        for new in 1..=35 {
            let root = root_of(&leaves[..new as usize]);
            for at in 0..new {
                let Ok(proof) = prove_inclusion(at, new, subtree_of(&leaves));
                let hash = leaves[at as usize];
                assert_eq!(check_inclusion(hash, at, new, &proof, root), Ok(()));
                assert!(check_inclusion(leaf(b"else"), at, new, &proof, root).is_err());
                assert!(check_inclusion(hash, at ^ 1, new, &proof, root).is_err() || new == 1);
            }
            for old in 0..=new {
                let old_root = root_of(&leaves[..old as usize]);
                let Ok(proof) = prove_consistency(old, new, subtree_of(&leaves));
                assert_eq!(
                    check_consistency(old, old_root, new, root, &proof),
                    Ok(()),
                    "{old} {new}"
                );
                assert!(check_consistency(old, leaf(b"else"), new, root, &proof).is_err());
                let mut longer = proof.clone();
                longer.push(root);
                assert!(check_consistency(old, old_root, new, root, &longer).is_err());
                if !proof.is_empty() {
                    assert!(check_consistency(old, old_root, new, leaf(b"else"), &proof).is_err());
                    assert!(check_consistency(old, old_root, new, root, &proof[1..]).is_err());
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_check_answers_whatever_it_is_given(
            a in any::<u64>(), b in any::<u64>(), n in 0usize..70
        ) {
            let proof = rows(n as u64);
            let root = leaf(b"root");
            prop_assert!(check_inclusion(root, a, b, &proof, leaf(b"")).is_err());
            prop_assert!(check_consistency(a, root, b, leaf(b""), &proof).is_err());
        }
    }
}
