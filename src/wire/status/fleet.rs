//! What a controller says of its fleet: who leads, how far it is with each log, and what the logs say of each node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Condition, NodeStatus};
use crate::domain::event::StateName;
use crate::domain::id::{EventId, FleetId, NodeId};
use crate::domain::time::UnixMicros;
use crate::wire::codec;

/// What one answer holds of nodes, in bytes.
const PART_BYTES_MAX: usize = 48 * 1024;

/// The fleet as one controller knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FleetStatus {
    /// Which fleet.
    pub fleet: FleetId,
    /// Who says so.
    pub controller: NodeId,
    /// When.
    pub at: UnixMicros,
    /// Who holds the lease, as far as it is known here.
    pub leader: Option<NodeId>,
    /// The highest term that is known here.
    pub term: u64,
    /// The controllers that were heard lately, the leader left out.
    pub standby: Vec<NodeId>,
    /// The last event that arrived here: a place in this controller's stream of all events.
    pub cursor: EventId,
    /// What became of what was taken in since this controller started.
    pub intake: Intake,
    /// The nodes.
    pub nodes: Vec<FleetNode>,
}

/// Counts since the controller started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Intake {
    /// Events that came live and in order.
    pub live: u64,
    /// Events that were fetched.
    pub fetched: u64,
    /// Events that came again.
    pub repeats: u64,
    /// How often an event was missing, or a heartbeat was ahead.
    pub gaps: u64,
    /// Messages that are no events or heartbeats, or were signed by nobody who is trusted.
    pub unsigned: u64,
    /// Messages in the name of another than who signed them.
    pub foreign: u64,
    /// Logs that do not extend what was here of them.
    pub forked: u64,
}

/// One node as its controller knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FleetNode {
    /// Its name.
    pub node: NodeId,
    /// When it was heard last, by the controller's clock.
    pub last_seen: Option<UnixMicros>,
    /// Whether it was heard lately.
    pub reachable: bool,
    /// The last event of it that is here.
    pub head: Option<EventId>,
    /// The last event that it told of.
    pub told: Option<EventId>,
    /// What root says of it, by which it is selected.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How far its clock was from the controller's at its last heartbeat, in milliseconds; absent before there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_off_ms: Option<u64>,
    /// Why what is below may not be so: the log did not fold, or the node's own state is another.
    pub doubt: Option<String>,
    /// What its log says; what only the node's kernel knows is left out.
    pub status: Option<Box<NodeStatus>>,
}

impl FleetNode {
    /// Returns what its log says with what nobody can know of a node that is silent: how its instances are.
    pub fn silenced(&self) -> Option<NodeStatus> {
        let mut status = self.status.as_deref()?.clone();
        let since = self.last_seen.unwrap_or(status.at);
        status.at = since;
        // Nobody can say whether it still fires.
        status.alerts.clear();
        for it in &mut status.instances {
            it.state = StateName::Unknown;
            it.since = since;
            it.reason = Some("node unreachable".to_owned());
            (it.substate, it.result, it.exit, it.beside) = (None, None, None, None);
            (it.started_at, it.pid, it.next_attempt_at, it.delay_ms) = (None, None, None, None);
            (it.same_exits, it.health) = (0, Vec::new());
            let unknown = || {
                let reason = "NodeUnreachable".to_owned();
                Condition { status: None, reason, since }
            };
            it.conditions =
                ["Ready", "Healthy"].map(|kind| (kind.to_owned(), unknown())).into_iter().collect();
        }
        Some(status)
    }
}

impl FleetStatus {
    /// Cuts it into parts of which each fits an envelope.
    pub fn into_parts(mut self) -> Vec<Self> {
        let nodes = std::mem::take(&mut self.nodes);
        let empty = self.clone();
        let (mut parts, mut left) = (vec![self], PART_BYTES_MAX);
        let mut push = |node: FleetNode| {
            let bytes = codec::encode(&node).len();
            if bytes > left && left < PART_BYTES_MAX {
                parts.push(empty.clone());
                left = PART_BYTES_MAX;
            }
            left = left.saturating_sub(bytes);
            parts.last_mut().expect("the first part is there from the begin").nodes.push(node);
        };
        for mut node in nodes {
            // A node with very many services takes several: its first part says the rest of it.
            let rest = node.status.take().map(|status| status.into_parts()).unwrap_or_default();
            let mut rest = rest.into_iter().map(Box::new);
            push(FleetNode { status: rest.next(), ..node.clone() });
            rest.for_each(|status| push(FleetNode { status: Some(status), ..node.clone() }));
        }
        parts
    }

    /// Takes in another part of the same answer.
    pub fn add_part(&mut self, part: Self) {
        for node in part.nodes {
            match (self.nodes.last_mut().filter(|last| last.node == node.node), node.status) {
                (Some(FleetNode { status: Some(status), .. }), Some(more)) => {
                    status.add_part(*more);
                }
                (_, status) => self.nodes.push(FleetNode { status, ..node }),
            }
        }
    }
}
