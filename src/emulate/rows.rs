//! The log of one emulated node: signed rows in memory, durable as soon as they are here.

use std::sync::Arc;

use crate::domain::event::{Context, Event};
use crate::domain::id::{BootId, EpochId, EventId, NodeId, Seq};
use crate::domain::policy::Kind;
use crate::domain::time::Now;
use crate::domain::tree::{Frontier, leaf};
use crate::store::Head;
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::key::Signer;
use crate::wire::payload::EventRecord;

/// One epoch, from its first row.
#[derive(Debug)]
pub(super) struct Rows {
    origin: NodeId,
    boot: BootId,
    epoch: EpochId,
    rows: Vec<Arc<[u8]>>,
    tree: Frontier,
}

impl Rows {
    pub(super) fn new(origin: NodeId, boot: BootId, epoch: EpochId) -> Self {
        Self { origin, boot, epoch, rows: Vec::new(), tree: Frontier::default() }
    }

    /// Signs an event and adds it.
    pub(super) fn append(
        &mut self,
        now: Now,
        context: &Context,
        event: &Event,
        signer: &Signer,
    ) -> Arc<[u8]> {
        let record = EventRecord::of(self.next(), now, self.boot, context, event);
        let row: Arc<[u8]> = envelope::seal(Kind::Event, &codec::encode(&record), signer).into();
        self.tree.push(leaf(&row));
        self.rows.push(row.clone());
        row
    }

    /// Returns the name of the event that comes next.
    pub(super) fn next(&self) -> EventId {
        self.id(Seq(self.rows.len() as u64 + 1))
    }

    /// Returns the name of an event.
    pub(super) fn id(&self, seq: Seq) -> EventId {
        EventId { origin: self.origin.clone(), epoch: self.epoch, seq }
    }

    pub(super) fn head(&self) -> Head {
        Head { epoch: self.epoch, seq: Seq(self.rows.len() as u64), root: self.tree.root() }
    }

    /// Returns the number of the first row behind `after`, and as many rows as fit. Another epoch's place is no place
    /// here: from there the log begins anew.
    pub(super) fn behind(
        &self,
        after: Option<&EventId>,
        rows_max: usize,
        bytes_max: usize,
    ) -> (Seq, &[Arc<[u8]>]) {
        let known = after.filter(|it| it.origin == self.origin && it.epoch == self.epoch);
        let skipped = known.map_or(0, |it| it.seq.0).min(self.rows.len() as u64);
        let rest = &self.rows[usize::try_from(skipped).expect("bounded by a length")..];
        let mut bytes = 0;
        let fits = |row: &&Arc<[u8]>| {
            bytes += row.len();
            bytes <= bytes_max
        };
        let count = rest.iter().take(rows_max).take_while(fits).count();
        // A single row always fits an answer.
        (Seq(skipped + 1), &rest[..count.max(1).min(rest.len())])
    }
}
