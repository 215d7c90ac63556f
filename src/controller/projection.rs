//! The fleet as the logs tell it: for each node what was heard of it, and the fold of its log.

use std::collections::BTreeMap;

use crate::domain::id::{Digest, EventId, FleetId, Generation, NodeId, ServiceId};
use crate::domain::node::{FOLD_VERSION, Node};
use crate::domain::recent::Restarts;
use crate::domain::release::ReleaseId;
use crate::domain::time::{Now, UnixMicros};
use crate::wire::fold::{self, Fold, state_hash};
use crate::wire::payload::Beat;
use crate::wire::status::{FleetNode, NodeStatus};

/// How long nothing may be heard of a node: it tells of itself every 5 s.
pub(super) const SILENT_MS: u64 = 17_000;

/// What is known of one node.
#[derive(Debug, Default)]
struct Known {
    /// When it was heard last in this life of the controller, by the wall clock and by the one that only goes forward.
    heard: Option<Now>,
    told: Option<EventId>,
    /// Whether it was told to be unreachable.
    lost: bool,
    node: Node,
    last_at: UnixMicros,
    restarts: Restarts,
    /// Why the fold is not to be relied on.
    broken: Option<String>,
    /// The heartbeat whose state was compared last.
    compared: Option<(EventId, Digest)>,
    diverged: bool,
    /// How far its clock was from the one here at its last heartbeat, in milliseconds.
    clock_off_ms: Option<u64>,
    /// Whether it told that its log takes nothing, and not yet that it does again.
    outage: bool,
}

/// Every node of the roster.
#[derive(Debug)]
pub(super) struct Projection {
    nodes: BTreeMap<NodeId, Known>,
    /// When this life began, or listened anew: nobody is silent before that is long ago enough.
    since: Now,
}

impl Projection {
    /// Knows who should be there and nothing of them.
    pub(super) fn new(nodes: impl IntoIterator<Item = NodeId>, since: Now) -> Self {
        let nodes = nodes.into_iter().map(|node| (node, Known::default())).collect();
        Self { nodes, since }
    }

    /// Folds an event. Those of controllers say nothing of a node.
    pub(super) fn event(&mut self, id: &EventId, envelope: &[u8]) {
        let Some(known) = self.nodes.get_mut(&id.origin) else { return };
        match fold::kind_of(envelope) {
            Some(b"log.unavailable") => known.outage = true,
            Some(b"log.recovered" | b"log.opened") => known.outage = false,
            _ => {}
        }
        let mut fold = Fold::new(&mut known.node);
        fold.restarts = std::mem::take(&mut known.restarts);
        // Whatever follows the first event that did not fold may make it whole again: a baseline does.
        let _flow = fold.row(id.seq, envelope);
        let (broken, last_at) = (fold.broken.take(), fold.last_at);
        known.restarts = fold.restarts;
        known.last_at = known.last_at.max(last_at);
        known.broken = match broken {
            Some((seq, why)) => Some(format!("event {seq} does not follow: {why}")),
            None => known.broken.take(),
        };
    }

    /// Takes in that a node was heard. Says for how long it was not, when that was told.
    pub(super) fn heard(&mut self, node: &NodeId, now: Now) -> Option<u64> {
        let known = self.nodes.get_mut(node)?;
        let before = known.heard.replace(now).unwrap_or(self.since);
        std::mem::take(&mut known.lost).then(|| ms_between(before, now))
    }

    /// Takes in a heartbeat, and compares its state with the one folded here when both are of the same event.
    pub(super) fn beat(&mut self, now: Now, beat: &Beat, mark: Option<&EventId>) {
        let Some(known) = self.nodes.get_mut(&beat.origin) else { return };
        known.clock_off_ms = Some(now.at.0.abs_diff(beat.at.0) / 1000);
        let told = EventId { origin: beat.origin.clone(), epoch: beat.epoch, seq: beat.seq };
        let compared = Some((told.clone(), beat.state_hash));
        if mark == Some(&told) && beat.fold == FOLD_VERSION && known.compared != compared {
            known.diverged = state_hash(&known.node) != beat.state_hash;
            known.compared = compared;
        }
        known.told = Some(told);
    }

    /// Gives every node the whole time anew: what was said until now may not have been taken in yet.
    pub(super) fn listen_anew(&mut self, now: Now) {
        self.since = now;
    }

    /// Returns the nodes of which nothing was heard for too long and that were not told before, and when they were
    /// heard last; and the ones that are unreachable are told from here on.
    pub(super) fn falls_silent(&mut self, now: Now) -> Vec<(NodeId, UnixMicros)> {
        let since = self.since;
        let silent = self.nodes.iter_mut().filter(|(_, known)| {
            let heard = known.heard.map_or(0, |heard| heard.mono_ns).max(since.mono_ns);
            !known.lost && ms_between(Now { mono_ns: heard, ..since }, now) > SILENT_MS
        });
        silent
            .map(|(node, known)| {
                known.lost = true;
                (node.clone(), known.heard.unwrap_or(since).at)
            })
            .collect()
    }

    /// Returns the highest term that any node has taken an order of.
    pub(super) fn term_max(&self) -> u64 {
        let terms = self.nodes.values().filter_map(|known| known.node.head().term.as_ref());
        terms.map(|(term, _)| *term).max().unwrap_or(0)
    }

    /// Returns the nodes that were heard lately.
    pub(super) fn heard_lately(&self, now: Now) -> impl Iterator<Item = &NodeId> {
        self.nodes.keys().filter(move |node| self.is_heard(node, now))
    }

    /// Returns the fold of a node's log.
    pub(super) fn node(&self, node: &NodeId) -> Option<&Node> {
        self.nodes.get(node).map(|known| &known.node)
    }

    /// Returns the number of the last wish for a release that a node has taken.
    pub(super) fn generation(&self, node: &NodeId, service: &ServiceId) -> Generation {
        let releases = self.node(node).and_then(|node| node.releases().get(service));
        releases.map(|it| it.generation).unwrap_or_default()
    }

    /// Returns what people call a release, as a node that runs it was told.
    pub(super) fn version_of(&self, release: ReleaseId) -> Option<String> {
        let all = self.nodes.values().flat_map(|known| known.node.releases().values());
        let mut good = all.flat_map(|known| &known.good);
        good.find(|good| good.release == Some(release)).map(|good| good.version.clone())
    }

    /// Says whether a node was told to be unreachable.
    pub(super) fn is_lost(&self, node: &NodeId) -> bool {
        self.nodes.get(node).is_some_and(|known| known.lost)
    }

    /// Says whether a node was heard lately in this life of the controller.
    pub(super) fn is_heard(&self, node: &NodeId, now: Now) -> bool {
        let heard = self.nodes.get(node).and_then(|known| known.heard);
        heard.is_some_and(|heard| ms_between(heard, now) <= SILENT_MS)
    }

    /// Returns the nodes that were not heard lately.
    pub(super) fn away(&self, now: Now) -> Vec<NodeId> {
        self.nodes.keys().filter(|node| !self.is_heard(node, now)).cloned().collect()
    }

    /// Returns what is known of each node.
    pub(super) fn status(
        &self,
        fleet: &FleetId,
        now: Now,
        head: impl Fn(&NodeId) -> Option<EventId>,
    ) -> Vec<FleetNode> {
        let of = |(node, known): (&NodeId, &Known)| {
            let head = head(node);
            let recent = |heard: Now| ms_between(heard, now) <= SILENT_MS;
            FleetNode {
                node: node.clone(),
                last_seen: known.heard.map(|heard| heard.at),
                reachable: known.heard.is_some_and(recent),
                labels: BTreeMap::new(),
                clock_off_ms: known.clock_off_ms,
                told: known.told.clone(),
                doubt: known.broken.clone().or_else(|| {
                    known.diverged.then(|| "the node's own state is another".to_owned())
                }),
                status: head.clone().map(|head| {
                    let at = known.heard.map_or(known.last_at, |heard| heard.at);
                    let (fleet, node) = (fleet.clone(), node.clone());
                    let mut status = NodeStatus::folded(fleet, node, &known.node, head, at);
                    for it in &mut status.services {
                        it.restarts_1h = known.restarts.of(&it.service, at);
                    }
                    status.log_unavailable =
                        known.outage.then(|| "it told that its log takes nothing".to_owned());
                    Box::new(status)
                }),
                head,
            }
        };
        self.nodes.iter().map(of).collect()
    }
}

fn ms_between(before: Now, now: Now) -> u64 {
    now.mono_ns.saturating_sub(before.mono_ns) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::{Context, EpochReason, Event, LogOpened, TrustChanged};
    use crate::domain::id::{BootId, EpochId, Seq};
    use crate::domain::policy::Kind;
    use crate::wire::codec::encode;
    use crate::wire::envelope::seal;
    use crate::wire::key::Signer;
    use crate::wire::payload::EventRecord;

    /// Folds a log of these events.
    fn take(projection: &mut Projection, epoch: u64, events: &[Event]) {
        for (seq, event) in (1..).zip(events) {
            let id = EventId {
                origin: "n1".parse().unwrap(),
                epoch: EpochId::new(epoch, 1),
                seq: Seq(seq),
            };
            let now = Now { at: UnixMicros(seq), mono_ns: 1 };
            let record =
                EventRecord::of(id.clone(), now, BootId([1; 16]), &Context::default(), event);
            let signer = Signer::from_seed(&[1; 32]);
            projection.event(&id, &seal(Kind::Event, &encode(&record), &signer));
        }
    }

    #[test]
    fn of_a_node_whose_log_was_lost_what_its_new_log_says_is_all_that_is_known() {
        let n1: NodeId = "n1".parse().unwrap();
        let projection = || Projection::new([n1.clone()], Now { at: UnixMicros(1), mono_ns: 1 });
        let opened = |reason| {
            let version = "1".to_owned();
            Event::LogOpened(LogOpened { reason, predecessor: None, version })
        };
        let trust =
            |version| Event::TrustChanged(TrustChanged { version, digest: Digest([1; 32]) });
        let (mut copy, mut fresh) = (projection(), projection());
        take(&mut copy, 1, &[opened(EpochReason::FirstStart), trust(9)]);
        let lost = [opened(EpochReason::FirstStart)];
        take(&mut copy, 2, &lost);
        take(&mut fresh, 2, &lost);
        let state = |projection: &Projection| state_hash(projection.node(&n1).unwrap());
        assert_eq!(state(&copy), state(&fresh));
        assert!(copy.node(&n1).unwrap().head().trust.is_none());
    }
}
