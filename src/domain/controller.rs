//! What happened to a controller: facts of its own log.

#[cfg(test)]
pub(crate) mod samples;

use serde::{Deserialize, Serialize};

use super::id::{EpochId, IntentId, NodeId, Seq};
use super::release::Step;
use super::time::UnixMicros;

/// Body of `controller.led`: from here on it decides, until `controller.stepped_down` or the end of its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ControllerLed {
    /// Higher than every term that it knew of, and of no other controller. Every order bears it, and nodes take none of a lower one.
    pub term: u64,
}

/// Body of `controller.stepped_down`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ControllerSteppedDown {
    /// The term that ended.
    pub term: u64,
    /// In words: `the lease was not renewed in time`.
    pub why: String,
}

/// Body of `node.unreachable`: nothing was heard of it for too long. What runs there is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeUnreachable {
    /// Which node.
    pub node: NodeId,
    /// When it was heard last, by the controller's clock.
    pub last_seen: UnixMicros,
}

/// Body of `node.seen`: a node that was unreachable was heard again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeSeen {
    /// Which node.
    pub node: NodeId,
    /// For how long nothing was heard of it, in milliseconds.
    pub away_ms: u64,
}

/// Body of `placement.ordered`: a node gets a service, or loses it, by a wish that stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlacementOrdered {
    /// The wish that it follows from: its rollout.
    pub rollout: IntentId,
    /// Which node.
    pub node: NodeId,
    /// Whether it gets it or loses it.
    pub step: Step,
    /// In words: `role=web` means it.
    pub why: String,
}

/// Body of `placement.held`: nothing more moves, though something should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlacementHeld {
    /// The wish that it would follow from: its rollout.
    pub rollout: IntentId,
    /// In words.
    pub why: String,
}

/// Body of `log.forked`: a log does not extend what this controller has of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogForked {
    /// Whose log.
    pub origin: NodeId,
    /// The epoch.
    pub epoch: EpochId,
    /// Up to which event this controller has it.
    pub seq: Seq,
    /// In words.
    pub why: String,
}
