//! What one who reads a whole log from afar can prove of it: the tree over its rows, held against remembered heads.

use crate::domain::id::{EpochId, EventId};
use crate::domain::tree::{Frontier, leaf};
use crate::store::{Fault, Pin};

/// Builds the tree of each epoch, row by row.
#[derive(Debug, Default)]
pub struct Witness {
    pins: Vec<Pin>,
    epochs: Vec<Epoch>,
    faults: Vec<Fault>,
}

/// An epoch of which rows were seen.
#[derive(Debug)]
pub struct Epoch {
    /// Which.
    pub epoch: EpochId,
    /// How many rows were seen.
    pub events: u64,
    /// The tree over them; `None` where the first ones are not kept any more.
    pub tree: Option<Frontier>,
}

impl Witness {
    /// Begins with the heads that were remembered.
    pub fn new(pins: Vec<Pin>) -> Self {
        Self { pins, ..Self::default() }
    }

    /// Takes in the next row.
    pub fn row(&mut self, at: &EventId, row: &[u8]) {
        if self.epochs.last().is_none_or(|epoch| epoch.epoch != at.epoch) {
            let tree = (at.seq.0 == 1).then(Frontier::default);
            self.epochs.push(Epoch { epoch: at.epoch, events: 0, tree });
        }
        let Some(epoch) = self.epochs.last_mut() else { return };
        epoch.events += 1;
        let Some(tree) = &mut epoch.tree else { return };
        tree.push(leaf(row));
        let is_here = |pin: &&Pin| pin.epoch == at.epoch && pin.size == at.seq.0;
        for pin in self.pins.iter().filter(is_here) {
            if pin.root != tree.root() {
                let at = crate::store::EventPos { epoch: at.epoch, seq: at.seq };
                self.faults.push(Fault::Root { at, whose: "the pin" });
            }
        }
    }

    /// Returns the epochs, what is wrong with them, and whether every one could be held against a pin.
    pub fn end(mut self) -> (Vec<Epoch>, Vec<Fault>, bool) {
        for pin in &self.pins {
            let seen = self.epochs.iter().find(|epoch| epoch.epoch == pin.epoch);
            let have = seen.and_then(|epoch| epoch.tree.as_ref()).map(Frontier::size);
            if let Some(have) = have.filter(|have| *have < pin.size) {
                self.faults.push(Fault::TailCut { epoch: pin.epoch, have, pinned: pin.size });
            }
        }
        let is_pinned = |epoch: &Epoch| {
            epoch.tree.is_some() && self.pins.iter().any(|pin| pin.epoch == epoch.epoch)
        };
        let is_pinned = !self.epochs.is_empty() && self.epochs.iter().all(is_pinned);
        (self.epochs, self.faults, is_pinned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{Digest, Seq};

    fn id(seq: u64) -> EventId {
        EventId { origin: "n1".parse().unwrap(), epoch: EpochId::new(5, 0), seq: Seq(seq) }
    }

    fn seen(rows: &[&[u8]], first: u64, pins: Vec<Pin>) -> (Vec<Epoch>, Vec<Fault>, bool) {
        let mut witness = Witness::new(pins);
        (first..).zip(rows).for_each(|(seq, row)| witness.row(&id(seq), row));
        witness.end()
    }

    fn pin(rows: &[&[u8]]) -> Pin {
        let mut tree = Frontier::default();
        rows.iter().for_each(|row| tree.push(leaf(row)));
        Pin { epoch: EpochId::new(5, 0), size: tree.size(), root: tree.root() }
    }

    #[test]
    fn a_log_that_goes_on_from_its_pin_is_sound_and_another_or_a_shorter_one_is_not() {
        let rows: [&[u8]; 3] = [b"a", b"b", b"c"];
        let (epochs, faults, is_pinned) = seen(&rows, 1, vec![pin(&rows[..2])]);
        assert!(faults.is_empty() && is_pinned);
        assert_eq!(epochs[0].tree.as_ref().map(Frontier::root), Some(pin(&rows).root));
        let (_, faults, _) = seen(&[b"a", b"x", b"c"], 1, vec![pin(&rows[..2])]);
        assert!(matches!(faults[..], [Fault::Root { .. }]));
        let (_, faults, _) = seen(&rows[..1], 1, vec![pin(&rows)]);
        assert!(matches!(faults[..], [Fault::TailCut { have: 1, pinned: 3, .. }]));
    }

    #[test]
    fn without_its_beginning_or_a_pin_a_log_is_not_pinned() {
        let root = Digest([0; 32]);
        let other = Pin { epoch: EpochId::new(6, 0), size: 1, root };
        assert!(!seen(&[b"a"], 1, vec![other]).2);
        assert!(!seen(&[b"b"], 2, vec![pin(&[b"a"])]).2);
        assert!(!seen(&[], 1, Vec::new()).2);
    }
}
