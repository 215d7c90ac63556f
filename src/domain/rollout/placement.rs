//! On which nodes a service should be, and what has to happen for that.
//!
//! A wish that succeeded stands: it means every node that its selection fits now, one that joined later or has other
//! labels since as well. What has to be done follows from the wishes that stand and from what the nodes say, so nothing
//! of it is written down: whoever leads gets the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::parameters::{Amount, OnLeave, Parameters};
use super::plan::chunks;
use super::state::NodeState;
use super::{ReleaseId, Step};
use crate::domain::id::{Generation, IntentId, NodeId};
use crate::domain::release::trial::Releases;
use crate::domain::selector::{Labels, Selector};

/// `[placement]`: which nodes get a service, and what happens on one that stops to match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Which nodes; absent: those that a deploy selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Selector>,
    /// What happens on a node that stops to match.
    pub on_leave: OnLeave,
}

/// All that a spec says about the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollouts {
    /// `[rollout]`, `[rollback]` and `release.rollback`.
    pub parameters: Parameters,
    /// `[placement]`.
    pub placement: Placement,
}

/// A wish for a service that succeeded, as far as it says where the service is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wished {
    /// The wish.
    pub intent: IntentId,
    /// Its number.
    pub generation: Generation,
    /// The release; absent where it takes the service away.
    pub release: Option<ReleaseId>,
    /// Which nodes it means: what was signed.
    pub select: Selector,
    /// What its spec says of that.
    pub placement: Placement,
}

/// What is known of one node, as far as one service is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its labels, as root signed them.
    pub labels: &'a Labels,
    /// What its log tells of the releases of the service.
    pub releases: Option<&'a Releases>,
    /// Whether the service is there, if only on its way out.
    pub is_there: bool,
    /// Whether nothing is heard of the node.
    pub is_away: bool,
    /// Whether its log was read, so that what it does not tell is not so.
    pub is_read: bool,
    /// What became of it in the rollout itself, when that was about it.
    pub target: Option<NodeState>,
}

/// How a node stands to the wish by which a service is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The rollout brought it there.
    Has,
    /// It was brought there since.
    Came,
    /// It is on its way there.
    Coming,
    /// It has to be brought there.
    Lacks,
    /// The same, and nothing is heard of the node.
    Away,
    /// It did not become healthy there.
    Failed,
    /// It was taken from there since.
    Left,
    /// It is on its way out.
    Leaving,
    /// It has to be taken from there.
    Leaves,
}

/// What has to be ordered, and why no more of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Nodes that get the service, at the same time.
    pub gain: Vec<NodeId>,
    /// Nodes from which it is taken, at the same time.
    pub lose: Vec<NodeId>,
    /// Nodes whose turn has not come.
    pub waiting: Vec<NodeId>,
    /// Why nothing more moves, though something should.
    pub held: Option<Held>,
}

/// Why nothing more moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// The selection fits no node: labels that were mistaken must not take a service from everywhere.
    NothingMatches,
    /// On these nodes it did not become healthy.
    Failed(Vec<NodeId>),
    /// These nodes are to have it and are away: it is taken from nowhere before they have.
    Away(Vec<NodeId>),
}

impl Placement {
    /// Says whether a wish for these nodes is one for all nodes that the service is placed on, and no others.
    pub fn is_whole(&self, select: &Selector) -> bool {
        self.select.as_ref() == Some(select)
    }

    /// Says whether a wish for these nodes may take the service from a node that it does not mean: the one that obeyed it
    /// last, or any where it is for all nodes that the service is placed on.
    pub fn lets_go(&self, select: &Selector, is_obeyed: bool) -> bool {
        let is_its_own = self.select.is_none() && is_obeyed || self.is_whole(select);
        self.on_leave == OnLeave::Stop && is_its_own
    }
}

impl Wished {
    /// Says whether it is for all nodes that the service is placed on, so that no older wish counts.
    pub fn is_whole(&self) -> bool {
        self.placement.is_whole(&self.select)
    }

    /// Returns those that stand, the newest first: behind one that says where the service is at all, none does.
    pub fn chain(mut wishes: Vec<Self>) -> Vec<Self> {
        wishes.sort_by_key(|wish| std::cmp::Reverse(wish.generation));
        let whole = wishes.iter().position(Self::is_whole);
        wishes.truncate(whole.map_or(wishes.len(), |at| at + 1));
        wishes
    }

    /// Returns how the nodes stand to the wish with this place in the chain.
    pub fn places<'n>(
        chain: &[Self],
        of: usize,
        nodes: impl IntoIterator<Item = (&'n NodeId, Known<'n>)>,
    ) -> BTreeMap<NodeId, Place> {
        let Some(wish) = chain.get(of) else { return BTreeMap::new() };
        let placed = nodes.into_iter().filter_map(|(node, known)| {
            let means = |wish: &Self| wish.select.matches(node, known.labels);
            if chain[..of].iter().any(means) {
                return None; // A newer one knows better.
            }
            let place = match means(wish) {
                true => wish.place_of(&known),
                false if chain[of + 1..].iter().any(means) => None,
                false => wish.way_out_of(&known),
            };
            Some((node.clone(), place?))
        });
        placed.collect()
    }

    /// Says how a node stands that is meant.
    fn place_of(&self, known: &Known<'_>) -> Option<Place> {
        let lacks = if known.is_away { Place::Away } else { Place::Lacks };
        let is_lost = matches!(known.target, Some(NodeState::Lost { .. }));
        let generation = known.releases.map(|it| it.generation).unwrap_or_default();
        let has_left = known.releases.is_some_and(|it| it.left == Some(self.intent));
        let Some(release) = self.release else {
            // What is to be gone is taken from those alone that were meant when somebody said so.
            return (is_lost && generation < self.generation).then_some(lacks);
        };
        if has_left && generation == self.generation {
            return Some(lacks);
        }
        // Its disk may have been set back to before it, or lost.
        let is_set_back = known.target == Some(NodeState::Healthy)
            && known.is_read
            && generation < self.generation;
        if is_set_back {
            return Some(lacks);
        }
        if known.target.is_some() && !is_lost {
            return Some(Place::Has);
        }
        let Some(releases) = known.releases.filter(|_| generation >= self.generation) else {
            return Some(lacks);
        };
        let trial = releases.trial.as_ref().filter(|trial| trial.intent == self.intent);
        let fails =
            releases.current.as_ref().is_some_and(|it| it.release == release && !it.healthy);
        let is_good = !fails && releases.good.iter().any(|good| good.release == Some(release));
        Some(match trial {
            Some(_) if known.is_away => Place::Away,
            Some(_) => Place::Coming,
            None if is_good => Place::Came,
            None => Place::Failed,
        })
    }

    /// Says how a node stands that is not meant, as far as the service is to be taken from it.
    fn way_out_of(&self, known: &Known<'_>) -> Option<Place> {
        let releases = known.releases?;
        let next = Generation(self.generation.0.saturating_add(1));
        let is_obeyed = (self.generation..=next).contains(&releases.generation);
        self.release?;
        if releases.left == Some(self.intent) {
            return Some(if known.is_there { Place::Leaving } else { Place::Left });
        }
        let may_go = self.placement.lets_go(&self.select, is_obeyed) && releases.generation <= next;
        let has_it = known.is_there && (releases.current.is_some() || releases.trial.is_some());
        (may_go && has_it && !known.is_away).then_some(Place::Leaves)
    }
}

impl Moves {
    /// Says which nodes are next, as many at a time as a rollout would take; first all that get the service.
    pub fn of(places: &BTreeMap<NodeId, Place>, parameters: &Parameters) -> Self {
        let those = |place: Place| -> Vec<NodeId> {
            places.iter().filter(|(_, it)| **it == place).map(|(node, _)| node.clone()).collect()
        };
        let is_meant =
            |place: &Place| !matches!(place, Place::Left | Place::Leaving | Place::Leaves);
        let meant = places.values().filter(|place| is_meant(place)).count();
        let (failed, away) = (those(Place::Failed), those(Place::Away));
        let (coming, leaving) = (those(Place::Coming), those(Place::Leaving));
        let sizes = &parameters.max_parallel;
        let next = |done: Vec<NodeId>, begun: Vec<NodeId>, rest: Vec<NodeId>| {
            let done_nodes: BTreeSet<NodeId> = done.iter().cloned().collect();
            let all = [done, begun, rest].concat();
            let mut batches = chunks(all, sizes, meant).into_iter();
            let open = |batch: &Vec<NodeId>| batch.iter().any(|node| !done_nodes.contains(node));
            let batch = batches.find(open).unwrap_or_default();
            let batch: Vec<_> =
                batch.into_iter().filter(|node| !done_nodes.contains(node)).collect();
            (batch, batches.flatten().collect::<Vec<_>>())
        };
        let (gain, gain_later) = next(those(Place::Came), coming.clone(), those(Place::Lacks));
        let (lose, lose_later) = next(those(Place::Left), leaving.clone(), those(Place::Leaves));
        let is_all = |now: &[NodeId], begun: &[NodeId]| now.iter().all(|node| begun.contains(node));
        let more_than = |nodes: &[NodeId], may: Amount| nodes.len() > may.of(meant);
        let held = |held: Option<Held>| {
            let all = [&gain[..], &gain_later, &lose, &lose_later].concat();
            let waiting: Vec<NodeId> = all
                .into_iter()
                .filter(|node| !coming.contains(node) && !leaving.contains(node))
                .collect();
            let held = held.filter(|_| !waiting.is_empty());
            Self { gain: coming.clone(), lose: leaving.clone(), waiting, held }
        };
        match () {
            () if meant == 0 => held(Some(Held::NothingMatches)),
            () if more_than(&failed, parameters.max_failures) => held(Some(Held::Failed(failed))),
            () if !gain.is_empty() => {
                let waiting = [gain_later, lose, lose_later].concat();
                let waiting = waiting.into_iter().filter(|node| !leaving.contains(node)).collect();
                Self { gain, lose: leaving, waiting, held: None }
            }
            () if more_than(&away, parameters.max_unreachable) && !is_all(&lose, &leaving) => {
                held(Some(Held::Away(away)))
            }
            () => Self { gain, lose, waiting: lose_later, held: None },
        }
    }

    /// Returns the orders that this comes to.
    pub fn orders(&self) -> impl Iterator<Item = (&NodeId, Step)> {
        let gain = self.gain.iter().map(|node| (node, Step::Apply));
        gain.chain(self.lose.iter().map(|node| (node, Step::Leave)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Digest;
    use crate::domain::release::trial::{Good, Mark};
    use crate::domain::rollout::tests::node;

    const RELEASE: ReleaseId = ReleaseId(Digest([1; 32]));

    fn wish(generation: u64, select: &str, placement: Option<&str>) -> Wished {
        let parse = |text: &str| text.parse().unwrap();
        Wished {
            intent: IntentId([u8::try_from(generation).unwrap(); 16]),
            generation: Generation(generation),
            release: Some(RELEASE),
            select: parse(select),
            placement: Placement { select: placement.map(parse), on_leave: OnLeave::Stop },
        }
    }

    /// A node with a label, and what it knows of the service.
    #[derive(Clone)]
    struct Node {
        name: &'static str,
        labels: Labels,
        releases: Option<Releases>,
        is_away: bool,
        is_read: bool,
        target: Option<NodeState>,
    }

    fn of(name: &'static str, role: &str) -> Node {
        let labels = [("role".to_owned(), role.to_owned())].into();
        Node { name, labels, releases: None, is_away: false, is_read: false, target: None }
    }

    impl Node {
        /// It runs the release by the wish with this number.
        fn runs(mut self, generation: u64) -> Self {
            let generation = Generation(generation);
            let version = String::new();
            let good =
                Good { release: Some(RELEASE), version: version.clone(), spec: Digest([2; 32]) };
            let mark = Mark { release: RELEASE, version, generation, healthy: true };
            let releases = Releases { generation, current: Some(mark), ..Releases::default() };
            self.releases = Some(Releases { good: vec![good], ..releases });
            self
        }

        fn target(self) -> Self {
            Self { target: Some(NodeState::Healthy), ..self }
        }

        fn away(self) -> Self {
            Self { is_away: true, ..self }
        }

        /// It was not healthy on the release of the wish with this number.
        fn failed(mut self, generation: u64) -> Self {
            let generation = Generation(generation + 1);
            self.releases = Some(Releases { generation, ..Releases::default() });
            self
        }

        fn left(mut self, of: &Wished) -> Self {
            let (generation, left) = (of.generation, Some(of.intent));
            self.releases = Some(Releases { generation, left, ..Releases::default() });
            self
        }
    }

    fn places(chain: Vec<Wished>, of: usize, nodes: &[Node]) -> BTreeMap<NodeId, Place> {
        let chain = Wished::chain(chain);
        let names: Vec<NodeId> = nodes.iter().map(|it| node(it.name)).collect();
        let known = nodes.iter().map(|it| Known {
            labels: &it.labels,
            releases: it.releases.as_ref(),
            is_there: it.releases.as_ref().is_some_and(|it| it.current.is_some()),
            is_away: it.is_away,
            is_read: it.is_read || it.releases.is_some(),
            target: it.target,
        });
        Wished::places(&chain, of, names.iter().zip(known))
    }

    fn parameters() -> Parameters {
        let max_parallel = vec![Amount::Count(1), Amount::Count(2)];
        Parameters { max_parallel, ..Parameters::default() }
    }

    fn moves(wishes: Vec<Wished>, nodes: &[Node]) -> Moves {
        Moves::of(&places(wishes, 0, nodes), &parameters())
    }

    fn nodes(names: &[&str]) -> Vec<NodeId> {
        names.iter().map(|name| node(name)).collect()
    }

    fn web() -> Vec<Wished> {
        vec![wish(3, "role=web", Some("role=web"))]
    }

    #[test]
    fn a_node_that_starts_to_match_gets_the_service_and_then_one_that_stops_loses_it() {
        let all =
            [of("n1", "web").runs(3).target(), of("n2", "db").runs(3).target(), of("n3", "web")];
        let first = moves(web(), &all);
        assert_eq!((first.gain, first.lose), (nodes(&["n3"]), vec![]));
        assert_eq!(first.waiting, nodes(&["n2"]));
        let [n1, n2, n3] = all;
        let then = moves(web(), &[n1, n2, n3.runs(3)]);
        assert_eq!((then.gain, then.lose), (vec![], nodes(&["n2"])));
    }

    #[test]
    fn moves_go_in_batches_as_a_rollout_does_and_each_waits_for_the_one_before() {
        let fleet = |came: &[&str]| -> Vec<Node> {
            let all = ["n1", "n2", "n3", "n4", "n5"].into_iter();
            let is_there = |name: &&str| came.contains(name);
            all.map(|name| if is_there(&name) { of(name, "web").runs(3) } else { of(name, "web") })
                .collect()
        };
        assert_eq!(moves(web(), &fleet(&[])).gain, nodes(&["n1"]));
        assert_eq!(moves(web(), &fleet(&["n1"])).gain, nodes(&["n2", "n3"]));
        assert_eq!(moves(web(), &fleet(&["n1", "n2"])).gain, nodes(&["n3"]), "n4 waits for n3");
        assert_eq!(moves(web(), &fleet(&["n1", "n2", "n3"])).gain, nodes(&["n4", "n5"]));
        let out = |left: &[&str]| -> Vec<Node> {
            let wish = &web()[0];
            let all = ["n1", "n2", "n3", "n4"].into_iter().map(|name| match left.contains(&name) {
                true => of(name, "db").left(wish),
                false => of(name, "db").runs(3).target(),
            });
            all.chain([of("n9", "web").runs(3).target()]).collect()
        };
        assert_eq!(moves(web(), &out(&[])).lose, nodes(&["n1"]));
        assert_eq!(moves(web(), &out(&["n1"])).lose, nodes(&["n2", "n3"]));
    }

    #[test]
    fn one_that_does_not_become_healthy_stops_the_moves() {
        let all = [of("n1", "web").failed(3), of("n2", "web"), of("n3", "db").runs(3).target()];
        let moves = moves(web(), &all);
        assert_eq!((moves.gain, moves.lose), (vec![], vec![]));
        assert_eq!(moves.held, Some(Held::Failed(nodes(&["n1"]))));
    }

    #[test]
    fn a_node_that_lost_its_log_gets_again_what_the_rollout_brought_there() {
        let unread = of("n2", "web").target();
        let lost = Node { is_read: true, ..unread.clone() };
        let gain = |other: Node| moves(web(), &[of("n1", "web").runs(3).target(), other]).gain;
        assert_eq!(gain(lost), nodes(&["n2"]));
        assert_eq!(gain(unread), [], "its log may be on its way");
    }

    #[test]
    fn a_service_is_taken_from_nowhere_while_one_that_is_to_have_it_is_away() {
        let all = [of("n1", "web").away(), of("n2", "web"), of("n3", "db").runs(3).target()];
        assert_eq!(moves(web(), &all).gain, nodes(&["n2"]), "the others need not wait");
        let [n1, n2, n3] = all;
        let held = moves(web(), &[n1, n2.runs(3), n3]);
        assert_eq!((held.lose, held.held), (vec![], Some(Held::Away(nodes(&["n1"])))));
    }

    #[test]
    fn a_node_keeps_what_is_told_to_stay() {
        let mut wishes = web();
        wishes[0].placement.on_leave = OnLeave::Keep;
        let all = [of("n1", "web").runs(3).target(), of("n2", "db").runs(3).target()];
        assert_eq!(moves(wishes, &all), Moves::default());
    }

    #[test]
    fn a_selection_that_matches_nothing_takes_the_service_from_nowhere() {
        let all = [of("n1", "wbe").runs(3).target(), of("n2", "db").runs(3).target()];
        let moves = moves(web(), &all);
        assert_eq!((moves.lose, moves.held), (vec![], Some(Held::NothingMatches)));
    }

    #[test]
    fn a_wish_for_some_nodes_takes_nothing_from_the_others() {
        let all = [of("n1", "web").runs(5).target(), of("n2", "web").runs(3)];
        let some = wish(5, "name=n1", Some("role=web"));
        assert_eq!(moves(vec![some, web().remove(0)], &all), Moves::default());
        let some = wish(5, "name=n1", None);
        assert_eq!(moves(vec![some, web().remove(0)], &all), Moves::default());
    }

    #[test]
    fn a_node_that_obeyed_a_selection_leaves_it_unless_an_older_one_means_it() {
        let all = [of("n1", "web").runs(5).target(), of("n2", "db").runs(5).target()];
        let newer = wish(5, "role=web", None);
        assert_eq!(moves(vec![newer.clone()], &all).lose, nodes(&["n2"]));
        assert_eq!(moves(vec![newer, wish(3, "*", None)], &all), Moves::default());
    }

    #[test]
    fn a_placement_that_becomes_narrower_takes_the_service_from_the_others() {
        let all = [of("n1", "web").runs(5).target(), of("n2", "db").runs(3)];
        let narrower = wish(5, "role=web", Some("role=web"));
        assert_eq!(moves(vec![wish(3, "*", None), narrower], &all).lose, nodes(&["n2"]));
    }

    #[test]
    fn a_node_that_matches_again_gets_it_again() {
        let gone = of("n1", "web").left(&web()[0]).target();
        assert_eq!(moves(web(), &[gone]).gain, nodes(&["n1"]));
    }

    #[test]
    fn what_was_removed_from_a_node_is_not_brought_back_by_an_older_wish() {
        let removed = Wished { release: None, ..wish(5, "name=n1|n2", None) };
        let lost = NodeState::Lost { counted: false };
        let n2 = Node { target: Some(lost), ..of("n2", "web").runs(3) };
        let all = [of("n1", "web").target(), n2, of("n3", "web").runs(3)];
        assert_eq!(moves(vec![removed.clone(), web().remove(0)], &all).gain, nodes(&["n2"]));
        let older = places(vec![removed, web().remove(0)], 1, &all);
        assert_eq!(older, [(node("n3"), Place::Came)].into());
    }
}
