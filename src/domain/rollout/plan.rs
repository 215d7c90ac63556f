//! From a signed wish and the roster that it names to an immutable plan: the same everywhere, so that a node can
//! make it too and compare the digests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::ReleaseId;
use super::first::{bound, newcomers_go_first};
use super::parameters::{Amount, InvalidParameters, OnUnreachable, Order, Parameters};
use crate::domain::id::{Digest, Generation, IntentId, NodeId, ServiceId};
use crate::domain::selector::Roster;

/// How many signed results of canaries an order carries at most: it has to fit a message.
pub const PROOFS_MAX: usize = 16;

/// All that a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRequest<'a> {
    /// The signed wish. Names the rollout as well.
    pub intent: IntentId,
    /// Which service.
    pub service: ServiceId,
    /// The generation of the step forward; the one after it is the way back.
    pub generation: Generation,
    /// The release that is wanted.
    pub release: ReleaseId,
    /// The last release that succeeded; none at the first rollout of a service.
    pub back_to: Option<ReleaseId>,
    /// Why canary and waves are skipped; signed with the wish.
    pub emergency: Option<String>,
    /// The earlier rollout that this one goes on with.
    pub retry: Option<Retry>,
    /// Which nodes, already selected.
    pub targets: &'a BTreeSet<NodeId>,
    /// The labels of all nodes.
    pub roster: &'a Roster,
    /// The digest of the signed roster.
    pub roster_digest: Digest,
    /// Nodes that nobody hears of: where absence is no obstacle others are the canaries, which have to tell something, as
    /// far as [`may_go_first`](super::may_go_first) lets them.
    pub away: &'a BTreeSet<NodeId>,
    /// Whether no target has, or ever had, anything of the service.
    pub is_new: bool,
    /// What the service says about its rollouts.
    pub parameters: &'a Parameters,
}

impl<'a> PlanRequest<'a> {
    /// Returns what nodes are spread by.
    fn zone(&self, node: &NodeId) -> Option<&'a str> {
        let label = self.parameters.spread_by.as_ref()?;
        self.roster.get(node)?.get(label).map(String::as_str)
    }
}

/// The earlier rollout of the same release that a rollout goes on with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Retry {
    /// The wish that opened it.
    pub of: IntentId,
    /// Its canaries when they passed: their signed results stand for a new canary. Empty when they did not.
    pub canary: Vec<NodeId>,
}

/// Some nodes that change at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Wave {
    /// What it is for.
    pub kind: WaveKind,
    /// Which nodes, in their order.
    pub nodes: Vec<NodeId>,
}

/// What a wave is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WaveKind {
    /// The nodes that go first and are judged without any budget.
    Canary,
    /// Nodes that were not healthy before: they have nothing to lose.
    Unhealthy,
    /// Some of the rest.
    Batch,
    /// All of them at once, since somebody answers for it.
    Emergency,
    /// All of them at once: none has anything to lose.
    First,
}

/// What is to be done on which nodes in which order. Never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Plan {
    /// The signed wish.
    pub intent: IntentId,
    /// Which service.
    pub service: ServiceId,
    /// The generation of the step forward; the one after it is the way back.
    pub generation: Generation,
    /// The release that is wanted.
    pub release: ReleaseId,
    /// The release that the way back leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_to: Option<ReleaseId>,
    /// Why canary and waves are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergency: Option<String>,
    /// The earlier rollout that this one goes on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// The digest of the signed roster.
    pub roster: Digest,
    /// What the order was made from: `stable_hash`, `name`, or `shuffle` with the wish's id.
    pub seed: String,
    /// Every target in exactly one of them; the first is wave 1.
    pub waves: Vec<Wave>,
    /// What the service says about its rollouts.
    pub parameters: Parameters,
    /// Whether it sets keys of the configuration, and no release: `release` only names the wish.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub configures: bool,
}

/// Why a wish cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No node is meant.
    #[error("no node is selected")]
    Empty,
    /// A target is not in the roster.
    #[error("node {0} is not in the roster")]
    NotEnrolled(NodeId),
    /// So many waves no order can number.
    #[error("{0} waves are too many: there may be 65535")]
    TooManyWaves(usize),
    /// The parameters contradict each other.
    #[error("the rollout's parameters cannot be used")]
    Parameters(#[from] InvalidParameters),
}

impl Plan {
    /// Makes the plan. The same request gives the same plan, byte for byte.
    ///
    /// # Errors
    ///
    /// Nothing is selected, a target is not enrolled, or the parameters contradict each other.
    pub fn new(request: &PlanRequest<'_>) -> Result<Self, PlanError> {
        let parameters = request.parameters;
        parameters.check()?;
        if request.targets.is_empty() {
            return Err(PlanError::Empty);
        }
        if let Some(node) = request.targets.iter().find(|node| !request.roster.contains_key(*node))
        {
            return Err(PlanError::NotEnrolled(node.clone()));
        }
        let waves = match &request.emergency {
            Some(_) => vec![Wave { kind: WaveKind::Emergency, nodes: ordered(request) }],
            None if request.is_new && newcomers_go_first(request.back_to, parameters) => {
                vec![Wave { kind: WaveKind::First, nodes: in_order(request) }]
            }
            None => waves(request, in_order(request), |node| request.zone(node)),
        };
        if waves.len() >= usize::from(u16::MAX) {
            return Err(PlanError::TooManyWaves(waves.len()));
        }
        let seed = match parameters.order {
            Order::Shuffle => format!("shuffle {}", request.intent),
            Order::StableHash | Order::Name => parameters.order.to_string(),
        };
        Ok(Self {
            intent: request.intent,
            service: request.service.clone(),
            generation: request.generation,
            release: request.release,
            back_to: request.back_to,
            emergency: request.emergency.clone(),
            retry: request.retry.clone(),
            roster: request.roster_digest,
            seed,
            waves,
            parameters: Parameters { origins: BTreeMap::new(), ..parameters.clone() },
            configures: false,
        })
    }

    /// Returns every target, in the order of the waves.
    pub fn targets(&self) -> impl Iterator<Item = &NodeId> {
        self.waves.iter().flat_map(|wave| &wave.nodes)
    }

    /// Says whether it takes the service away.
    pub fn removes(&self) -> bool {
        self.release == ReleaseId::NOTHING
    }

    /// Returns how many targets there are.
    pub fn size(&self) -> usize {
        self.waves.iter().map(|wave| wave.nodes.len()).sum()
    }

    /// Returns the nodes whose signed results every order from wave 2 on carries.
    ///
    /// Those of an earlier rollout when this one goes on with it; then wave 1 needs them as well. None when the plan
    /// has no canary.
    pub fn canary(&self) -> &[NodeId] {
        match (&self.retry, self.waves.first()) {
            (_, Some(Wave { kind: WaveKind::Canary, nodes })) => nodes,
            (Some(retry), _) => &retry.canary,
            (None, _) => &[],
        }
    }

    /// Returns the canaries whose signed results an order has room for: the first 16.
    pub fn proofs(&self) -> &[NodeId] {
        let canary = self.canary();
        &canary[..canary.len().min(PROOFS_MAX)]
    }

    /// Returns the release that the way back leads to, if there is a way.
    ///
    /// # Errors
    ///
    /// Says why there is none, for people.
    pub fn way_back(&self) -> Result<ReleaseId, &'static str> {
        if self.removes() {
            return Err("what is taken away is deployed anew");
        }
        if self.configures {
            return Err("what is set stays until it is set otherwise");
        }
        match (self.back_to, self.parameters.may_roll_back) {
            (_, false) => Err("release.rollback = \"forbid\""),
            (None, true) => Err("no earlier release succeeded"),
            (Some(release), true) => Ok(release),
        }
    }

    /// Returns the digest that every order names: SHA-256 over a canonical form of the whole plan.
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update(b"smgr-plan-v1\0");
        let mut put = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        put(&self.intent.0);
        put(self.service.as_bytes());
        put(&self.generation.0.to_be_bytes());
        put(&self.release.0.0);
        // The place of the running program, which its node alone can judge.
        put(&[]);
        put(self.back_to.as_ref().map_or(&[], |release| &release.0.0));
        put(if self.emergency.is_some() { b"emergency" } else { b"" });
        put(self.emergency.as_deref().unwrap_or_default().as_bytes());
        put(self.retry.as_ref().map_or(&[], |retry| &retry.of.0));
        let proven = self.retry.iter().flat_map(|retry| &retry.canary);
        put(&proven.clone().count().to_be_bytes());
        proven.for_each(|node| put(node.as_bytes()));
        put(&self.roster.0);
        put(self.seed.as_bytes());
        for wave in &self.waves {
            put(&[wave.kind as u8]);
            put(&wave.nodes.len().to_be_bytes());
            wave.nodes.iter().for_each(|node| put(node.as_bytes()));
        }
        self.parameters.hash_into(&mut put);
        if self.configures {
            put(b"configures");
        }
        Digest(hash.finalize().into())
    }
}

/// Returns the targets in the order in which they go, as far as that follows from what was signed.
pub(super) fn in_order(request: &PlanRequest<'_>) -> Vec<NodeId> {
    spread(ordered(request), |node| request.zone(node))
}

/// Sorts the targets as `order` says.
fn ordered(request: &PlanRequest<'_>) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = request.targets.iter().cloned().collect();
    let hash = |seed: &[u8], node: &NodeId| -> [u8; 32] {
        let parts = Sha256::new().chain_update(b"smgr-order-v1\0").chain_update(seed);
        parts.chain_update(b"\0").chain_update(node.as_bytes()).finalize().into()
    };
    match request.parameters.order {
        Order::Name => {}
        Order::StableHash => {
            nodes.sort_by_cached_key(|node| hash(request.service.as_bytes(), node));
        }
        Order::Shuffle => nodes.sort_by_cached_key(|node| hash(&request.intent.0, node)),
    }
    nodes
}

/// Puts the nodes in turns, one of each zone, so that neighbours in the list are of different zones.
fn spread<'a>(nodes: Vec<NodeId>, zone: impl Fn(&NodeId) -> Option<&'a str>) -> Vec<NodeId> {
    let mut zones: Vec<(Option<&str>, VecDeque<NodeId>)> = Vec::new();
    for node in nodes {
        let of = zone(&node);
        match zones.iter_mut().find(|(known, _)| *known == of) {
            Some((_, list)) => list.push_back(node),
            None => zones.push((of, VecDeque::from([node]))),
        }
    }
    let mut turns = Vec::new();
    while zones.iter().any(|(_, list)| !list.is_empty()) {
        turns.extend(zones.iter_mut().filter_map(|(_, list)| list.pop_front()));
    }
    turns
}

fn waves<'a>(
    request: &PlanRequest<'_>,
    mut nodes: Vec<NodeId>,
    zone: impl Fn(&NodeId) -> Option<&'a str>,
) -> Vec<Wave> {
    let parameters = request.parameters;
    let targets = nodes.len();
    let mut waves = Vec::new();
    // The first rollout has nothing to go back to and nothing to compare with; a retry has its canaries behind it.
    let proven = request.retry.as_ref().is_some_and(|retry| !retry.canary.is_empty());
    let canaries = match (request.back_to, proven) {
        (Some(_), false) if !parameters.canary.is_zero() => parameters.canary.batch_of(targets),
        _ => 0,
    };
    if canaries > 0 {
        if parameters.on_unreachable == OnUnreachable::Skip {
            // A stable sort: apart from that the order stays. A node that lies further behind would not go first.
            let first = bound(parameters, true, targets);
            nodes[..first].sort_by_key(|node| request.away.contains(node));
        }
        let rest = nodes.split_off(canaries.min(targets));
        waves.push(Wave { kind: WaveKind::Canary, nodes });
        nodes = rest;
    }
    let whole = zone_sizes(request.targets.iter(), &zone);
    for nodes in chunks(nodes, &parameters.max_parallel, targets) {
        let mut nodes = nodes;
        // A wave of a whole zone is cut in two where the zone has more than one node.
        while let Some(at) = takes_a_zone(&nodes, &zone, &whole) {
            let rest = nodes.split_off(at);
            waves.push(Wave { kind: WaveKind::Batch, nodes });
            nodes = rest;
        }
        waves.push(Wave { kind: WaveKind::Batch, nodes });
    }
    waves
}

fn zone_sizes<'a, 'b>(
    nodes: impl Iterator<Item = &'b NodeId>,
    zone: impl Fn(&NodeId) -> Option<&'a str>,
) -> BTreeMap<&'a str, usize> {
    let mut sizes = BTreeMap::new();
    for zone in nodes.filter_map(zone) {
        *sizes.entry(zone).or_insert(0) += 1;
    }
    sizes
}

/// Returns where a wave has to be cut so that it does not take all nodes of a zone that has several.
fn takes_a_zone<'a>(
    nodes: &[NodeId],
    zone: impl Fn(&NodeId) -> Option<&'a str>,
    whole: &BTreeMap<&str, usize>,
) -> Option<usize> {
    let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, node) in nodes.iter().enumerate() {
        let Some(zone) = zone(node) else { continue };
        let count = taken.entry(zone).or_default();
        *count += 1;
        if *count > 1 && whole.get(zone) == Some(count) {
            return Some(at);
        }
    }
    None
}

/// Cuts a list into batches; shares are of `targets`, and the last entry repeats.
pub(crate) fn chunks(mut nodes: Vec<NodeId>, sizes: &[Amount], targets: usize) -> Vec<Vec<NodeId>> {
    let mut batches = Vec::new();
    while !nodes.is_empty() {
        let size =
            sizes.get(batches.len()).or(sizes.last()).map_or(1, |size| size.batch_of(targets));
        let rest = nodes.split_off(size.min(nodes.len()));
        batches.push(std::mem::replace(&mut nodes, rest));
    }
    batches
}
