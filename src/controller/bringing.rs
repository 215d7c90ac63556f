//! The trust document in force, brought to nodes that judge by an older one: their own logs say so.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::links::Saying;
use super::setup::read_capped;
use super::task::Controller;
use crate::domain::id::NodeId;
use crate::domain::time::Now;
use crate::head::folder::StateFolder;
use crate::retry;
use crate::wire::envelope::{ENVELOPE_BYTES_MAX, TRUST_BYTES_MAX};
use crate::wire::payload::{Ask, Audience, TrustPiece};
use crate::wire::subject::{Callee, Subject};

/// A document in pieces goes to so many nodes one by one; more of them hear it at once, with all others.
const ONE_BY_ONE_MAX: usize = 8;

/// The shortest and the longest pause before it is brought again to whoever does not take it: it doubles.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// The envelope as the root key signed it, and its version.
#[derive(Debug)]
pub(super) struct Bringing {
    version: u64,
    document: Document,
    /// To whom it was brought, how often, and when it is again. `None` is everybody.
    told: BTreeMap<Option<NodeId>, (u32, Instant)>,
}

#[derive(Debug)]
enum Document {
    /// It fits a message.
    Whole(Arc<[u8]>),
    /// It does not: these do.
    Pieces(Vec<TrustPiece>),
}

impl Bringing {
    /// Reads the envelope of a folder.
    pub(super) fn of(folder: &StateFolder, version: u64) -> io::Result<Self> {
        let envelope = read_capped(&folder.trust(), TRUST_BYTES_MAX as u64)?;
        let document = match envelope.len() <= ENVELOPE_BYTES_MAX {
            true => Document::Whole(envelope.into()),
            false => Document::Pieces(TrustPiece::cut(version, &envelope)),
        };
        Ok(Self { version, document, told: BTreeMap::new() })
    }

    /// Says to whom it goes for a node that does not have it: to that node; to everybody, where a long one is to go to many;
    /// or to nobody for a while, since it is on its way.
    fn next(&mut self, node: &NodeId, now: Instant) -> Option<Option<NodeId>> {
        let own = Some(node.clone());
        let is_long = matches!(self.document, Document::Pieces(_));
        let is_one_of_many =
            is_long && self.told.len() >= ONE_BY_ONE_MAX && !self.told.contains_key(&own);
        let to = if is_one_of_many { None } else { own };
        let (tries, due) = self.told.entry(to.clone()).or_insert((0, now));
        if *due > now {
            return None;
        }
        let pause = retry::doubled(AGAIN.0, AGAIN.1, *tries);
        (*tries, *due) = (tries.saturating_add(1), now + retry::drawn(pause / 2..=pause));
        Some(to)
    }

    /// Forgets who has it, or is not there: a node that comes back hears of it at once.
    fn forget_but(&mut self, behind: &BTreeSet<NodeId>) {
        let is_many = behind.len() > ONE_BY_ONE_MAX;
        self.told.retain(|to, _| to.as_ref().map_or(is_many, |node| behind.contains(node)));
    }
}

impl Controller {
    /// Sends the document to each node that was heard and has an older one, until its log says that it has this one.
    pub(super) fn bring_trust(&mut self, now: Now) {
        if self.leads().is_none() {
            return;
        }
        let heard = self.projection.heard_lately(now);
        let behind: BTreeSet<_> = heard.filter(|node| self.is_behind(node)).cloned().collect();
        self.bringing.forget_but(&behind);
        for node in &behind {
            self.bring_trust_to(node);
        }
    }

    /// Sees to it that a node gets the document if it has an older one, and says whether it has.
    pub(super) fn bring_trust_to(&mut self, node: &NodeId) -> bool {
        let is_behind = self.is_behind(node);
        if is_behind && let Some(to) = self.bringing.next(node, Instant::now()) {
            self.bring(to.as_ref());
        }
        is_behind
    }

    fn is_behind(&self, node: &NodeId) -> bool {
        let trust = self.projection.node(node).and_then(|node| node.head().trust.as_ref());
        trust.is_some_and(|trust| trust.version < self.bringing.version)
    }

    /// Sends the document to a node, or to everybody.
    fn bring(&self, node: Option<&NodeId>) {
        let to = node.map_or(Ok(Callee::EVERY_NODE), |node| Callee::node(node.clone()));
        let Ok(to) = to else { return };
        let subject = Subject::Call { fleet: self.setup.fleet.clone(), to };
        let tell = |bytes: Arc<[u8]>| self.say(Saying::Tell(subject.clone(), bytes));
        match &self.bringing.document {
            Document::Whole(envelope) => tell(envelope.clone()),
            Document::Pieces(pieces) => {
                for piece in pieces {
                    let audience =
                        node.map_or(Audience::All, |node| Audience::Nodes(vec![node.clone()]));
                    let (_, sealed) = self.sealed_query(audience, Ask::Trust(piece.clone()));
                    tell(sealed.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: usize) -> NodeId {
        format!("n{number}").parse().unwrap()
    }

    fn bringing(document: Document) -> Bringing {
        Bringing { version: 2, document, told: BTreeMap::new() }
    }

    #[test]
    fn a_node_is_brought_a_document_once_and_then_the_less_often_the_longer_it_does_not_take_it() {
        let begin = Instant::now();
        let mut bringing = bringing(Document::Whole([].into()));
        let told = |bringing: &mut Bringing| {
            let each = (0..600).map(|ms| begin + Duration::from_millis(200 * ms));
            each.filter(|now| bringing.next(&node(1), *now).is_some()).count()
        };
        let count = told(&mut bringing);
        // 5 s, 10 s, 20 s and 40 s lie between them, or half of each.
        assert!((5..=7).contains(&count), "{count} times in two minutes of orders");
        bringing.forget_but(&BTreeSet::new());
        assert!(bringing.next(&node(1), begin).is_some(), "it was away");
    }

    #[test]
    fn a_long_document_goes_to_a_thousand_nodes_at_once_and_to_few_one_by_one() {
        let now = Instant::now();
        let mut bringing = bringing(Document::Pieces(Vec::new()));
        let behind: BTreeSet<_> = (0..1000).map(node).collect();
        let mut round = || {
            let to: Vec<_> = behind.iter().filter_map(|node| bringing.next(node, now)).collect();
            bringing.forget_but(&behind);
            to
        };
        let first = round();
        assert_eq!(first.len(), ONE_BY_ONE_MAX + 1);
        assert_eq!(first.iter().filter(|to| to.is_none()).count(), 1);
        assert!(round().is_empty(), "it is on its way");
        bringing.forget_but(&[node(1)].into());
        assert_eq!(bringing.next(&node(999), now), Some(Some(node(999))));
    }
}
