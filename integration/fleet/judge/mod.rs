//! Judges a fleet by nothing but its logs, as DESIGN §8 has it that must always hold. Pure, so that it can be shown to find
//! what it is there to find: `control` puts each fault into a small log that is sound.
//!
//! | what must hold | judged here | held by |
//! |---|---|---|
//! | 1, nothing starts that nobody asked for | `node::authority`, `fleet::signatures` | `hostile` for what is refused |
//! | 2, a wish runs at most once | `node::wishes` | `kill` for what its actions did |
//! | 3, the highest generation is what runs | `node::releases`, `fleet::orders`, `fleet::convergence`, `rollout` | |
//! | 4, one run serves, but in a handover | `node::runs` | `kill` for the processes themselves |
//! | 5, what was heard is kept; replay is the state | `read`: copies against logs, rows against the fold | `damage`, `store`; `smgr replay` |
//! | 6, a log that was changed is found | | `smgr audit verify`, and its control in `apart`; `proof`, `damage` |
//! | 7, bad input changes nothing | `node::wishes`: only what was taken has an outcome | `hostile`, `fuzz_seeds`, `fleet::hostile` |
//! | 8, every wait has a deadline | `node::wishes`: each wish has one and an outcome; `rollout`: none is open without a reason | the bounds of queues: `hostile::flood` |

mod control;
mod fleet;
mod node;
mod read;
mod rollout;

use std::collections::{BTreeMap, BTreeSet};

use smgr::domain::event::Desired;
use smgr::domain::id::{Digest, EpochId, Generation, IntentId, Kid, Seq};
use smgr::domain::release::{ReleaseId, Step};
use smgr::domain::rollout::Verdict;
use smgr::domain::rollout::view::rollout_name;
use smgr::domain::time::UnixMicros;

/// A run of a slot of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    service: String,
    slot: u16,
    number: u64,
}

/// What a wish is about, as far as that is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    /// A release of a service, and what it is to be left for.
    Release { generation: Generation, back_to: Option<ReleaseId> },
    /// The node is to match its spec files.
    Files,
    /// Anything else.
    Other,
}

/// Whether an end is followed by another run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    No,
    /// It is on its way, and its number used up.
    AtOnce,
    Later,
}

/// What a node's log says that is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fact {
    /// The agent began.
    AgentBegan,
    /// The agent ended, and so did everything that it ran.
    AllDown,
    /// A wish was taken.
    Accepted {
        intent: IntentId,
        wish: Wish,
        key: Option<Kid>,
        is_own: bool,
        digest: Digest,
        until: UnixMicros,
    },
    /// What became of it.
    Executed { intent: IntentId },
    /// The action that it asks for was run, or one that follows a deploy.
    Ran { intent: IntentId, action: String },
    /// An order was taken.
    Ordered {
        generation: Generation,
        step: Step,
        intent: IntentId,
        plan: Digest,
        term: u64,
        controller: String,
        wave: u16,
    },
    /// The service was switched to a release, or away from one.
    Applied {
        generation: Generation,
        step: Step,
        left: ReleaseId,
        now: Option<ReleaseId>,
        spec: Digest,
    },
    /// A release is healthy.
    Healthy { generation: Generation, release: ReleaseId },
    /// What was there before runs again.
    Returned { generation: Generation, to: Option<ReleaseId> },
    /// The service has a spec, from a file of the machine or from a wish.
    Added { spec: Digest, desired: Desired, is_file: bool },
    /// The service is supervised no more.
    Removed,
    /// What is wanted of the service.
    Desired(Desired),
    /// A main process was asked for.
    Starting { run: Run, is_beside: bool },
    /// It began.
    Started { run: Run, spec: Digest },
    /// It could not begin, and may be tried again.
    NotStarted { run: Run, again: Again },
    /// A run relieved another.
    HandedOver { run: Run, from: u64 },
    /// A main process ended, and the rules may say that another follows.
    Exited { run: Run, again: Again },
    /// A stop ended, and another run may follow.
    Stopped { run: Run, again: Again },
}

/// A fact, when it was, of which service, and by which wish.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    at: UnixMicros,
    service: Option<String>,
    intent: Option<IntentId>,
    fact: Fact,
}

/// Nodes that are given their orders together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wave {
    is_canary: bool,
    nodes: Vec<String>,
}

/// What a controller's log says that is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Turn {
    /// The controller began.
    Began,
    /// It decides.
    Led { term: u64 },
    /// It decides no more.
    SteppedDown { term: u64 },
    /// A wish became a plan.
    Planned {
        service: String,
        generation: Generation,
        release: ReleaseId,
        back_to: Option<ReleaseId>,
        /// So many nodes may fail.
        allowed: usize,
        plan: Digest,
        waves: Vec<Wave>,
        term: u64,
    },
    /// A rollout goes on from so many of its facts.
    TakenOver { term: u64, after: u32 },
    /// The nodes of a wave are given their orders.
    WaveStarted { wave: u16, step: Step },
    /// They are behind.
    WavePassed { wave: u16 },
    /// A node is healthy.
    Healthy(String),
    /// A node failed.
    Failed { node: String, is_counted: bool },
    /// The rollout goes on without a node.
    Lost(String),
    /// A node is away.
    Unreachable(String),
    /// More failed than may.
    Exceeded,
    /// A person let it go on.
    Resumed,
    /// It waits for a person.
    Waits,
    /// Everything touched goes back.
    Back { to: ReleaseId },
    /// It is over.
    Ended(Verdict),
    /// What is not judged.
    Other,
}

/// A turn of a controller, when, and in which rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Turned {
    at: UnixMicros,
    rollout: Option<IntentId>,
    turn: Turn,
}

/// The digest of each row of a log.
type Rows = BTreeMap<(EpochId, Seq), Digest>;

/// What all logs say.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    /// Of each node, in order.
    nodes: BTreeMap<String, Vec<Entry>>,
    /// Of each controller, in order.
    controllers: BTreeMap<String, Vec<Turned>>,
    /// The wishes that rollouts follow, by the digest of what a trusted key signed; `None` where the signature does not hold.
    signed: BTreeMap<IntentId, Option<Digest>>,
    /// The keys that root trusts, and each node's own.
    keys: BTreeSet<Kid>,
    /// The rows of each log.
    rows: BTreeMap<String, Rows>,
    /// What does not follow from what stands before it, or is not what somebody else heard.
    broken: Vec<String>,
}

/// A time in which a controller held itself for the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reign {
    controller: String,
    term: u64,
    from: UnixMicros,
    until: UnixMicros,
}

/// Returns everything that must not be.
pub(super) fn judge(evidence: &Evidence) -> Vec<String> {
    let mut faults = evidence.broken.clone();
    for (name, entries) in &evidence.nodes {
        faults.extend(node::judge(entries).map(|fault| format!("{name}: {fault}")));
    }
    faults.extend(fleet::judge(evidence));
    faults
}

impl Evidence {
    /// Says how much there is: the facts of the node that has the fewest, and the turns of both controllers.
    pub(super) fn extent(&self) -> (usize, usize) {
        let facts = self.nodes.values().map(Vec::len).min().unwrap_or(0);
        (facts, self.controllers.values().map(Vec::len).sum())
    }

    /// Says whether a rollout, by the name that people call it, said of a node that it is away after a wave had passed and
    /// before the last one began.
    pub(super) fn missed_halfway(&self, name: &str, node: &str) -> bool {
        let its = |intent: &IntentId| rollout_name(*intent) == name;
        let Some(intent) = fleet::rollouts(self).into_iter().find(its) else { return false };
        let facts = rollout::in_force(self, intent);
        let place = |is_it: &dyn Fn(&Turn) -> bool| facts.iter().position(|it| is_it(&it.turn));
        let passed = place(&|turn| matches!(turn, Turn::WavePassed { .. }));
        let missed = place(&|turn| *turn == Turn::Unreachable(node.to_owned()));
        let last = facts.iter().rposition(|it| matches!(it.turn, Turn::WaveStarted { .. }));
        passed < missed && missed < last && passed.is_some()
    }

    /// Returns the pairs of reigns of two controllers that were at one time.
    pub(super) fn reigns_at_once(&self) -> Vec<(Reign, Reign)> {
        let reigns: Vec<Reign> = fleet::reigns(self);
        let mut pairs = Vec::new();
        for (at, one) in reigns.iter().enumerate() {
            for other in &reigns[at + 1..] {
                let overlap = one.from < other.until && other.from < one.until;
                if one.controller != other.controller && overlap {
                    pairs.push((one.clone(), other.clone()));
                }
            }
        }
        pairs
    }
}
