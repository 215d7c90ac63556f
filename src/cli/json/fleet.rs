//! `smgr.status.v1` of a fleet, as its controller tells it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::status::status_json;
use super::time;
use crate::cli::view::View;
use crate::domain::id::NodeId;
use crate::domain::time::UnixMicros;
use crate::wire::status::FleetStatus;

/// Returns the rollouts that say something of how it is now: those under way, and the last of each service.
pub fn lasting(rollouts: &[Value]) -> Vec<&Value> {
    let mut services = BTreeSet::new();
    let rows = rollouts.iter();
    rows.filter(|row| services.insert(row["service"].as_str()) | row["ended_at"].is_null())
        .collect()
}

/// Returns the document: that of the nodes, with who says so and how it stands with the logs.
///
/// `rollouts` are the lines of the controller's list, the last one first.
pub fn fleet_json(
    fleet: &FleetStatus,
    rollouts: &[Value],
    view: &View<'_>,
    now: UnixMicros,
) -> Value {
    let mut document = status_json(view, now);
    let rollouts = lasting(rollouts);
    let last_of = |service: &Value| rollouts.iter().find(|row| row["service"] == *service);
    for service in document["services"].as_array_mut().into_iter().flatten() {
        service["last_rollout"] =
            last_of(&service["service"]).map_or(Value::Null, |row| row["rollout"].clone());
    }
    document["summary"]["rollouts_active"] =
        rollouts.iter().filter(|row| row["ended_at"].is_null()).count().into();
    document["rollouts"] = json!(rollouts);
    document["fleet"] = fleet.fleet.as_str().into();
    document["as_of"] = json!({
        "at": time(Some(fleet.at)),
        "source": fleet.controller.as_str(),
        "cursor": fleet.cursor.to_string(),
        "behind_ms": now.ms_since(fleet.at),
        "complete": view.missing.is_empty(),
        "missing_nodes": view.missing.iter().map(NodeId::as_str).collect::<Vec<_>>(),
    });
    document["controllers"] = json!({
        "leader": fleet.leader.as_ref().map(NodeId::as_str),
        "term": fleet.term,
        "standby": fleet.standby.iter().map(NodeId::as_str).collect::<Vec<_>>(),
    });
    let intake = &fleet.intake;
    document["intake"] = json!({
        "live": intake.live, "fetched": intake.fetched, "repeats": intake.repeats,
        "gaps": intake.gaps, "unsigned": intake.unsigned, "foreign": intake.foreign,
        "forked": intake.forked,
        "logs": fleet.nodes.iter().map(|node| json!({
            "origin": node.node.as_str(),
            "last_seen_at": time(node.last_seen),
            "reachable": node.reachable,
            "head": node.head.as_ref().map(ToString::to_string),
            "told": node.told.as_ref().map(ToString::to_string),
            "doubt": node.doubt,
        })).collect::<Vec<_>>(),
    });
    document
}
