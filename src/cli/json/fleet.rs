//! `smgr.status.v1` of a fleet, as its controller tells it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::status::{ControllersView, IntakeView, OriginRow, StatusDocument, status_json};
use super::time;
use crate::cli::view::View;
use crate::domain::document::{AsOf, At};
use crate::domain::time::UnixMicros;
use crate::wire::status::{FleetNode, FleetStatus};

/// Returns the rollouts that say something of how it is now: those under way, and the last of each service.
pub fn lasting(rollouts: &[Value]) -> Vec<&Value> {
    let mut services = BTreeSet::new();
    let rows = rollouts.iter();
    rows.filter(|row| services.insert(row["service"].as_str()) | row["ended_at"].is_null())
        .collect()
}

/// Returns for how long something may have happened on a reachable node that the controller had not heard of, in
/// milliseconds.
pub fn behind_ms(fleet: &FleetStatus, now: UnixMicros) -> u64 {
    let heard = fleet.nodes.iter().filter(|node| node.reachable).filter_map(|node| node.last_seen);
    now.ms_since(heard.min().unwrap_or(fleet.at).min(fleet.at))
}

/// Returns the document: that of the nodes, with who says so and how it stands with the logs.
///
/// `rollouts` are the lines of the controller's list, the last one first.
pub fn fleet_json(
    fleet: &FleetStatus,
    rollouts: &[Value],
    view: &View<'_>,
    now: UnixMicros,
) -> StatusDocument {
    let mut document = status_json(view, now);
    let rollouts = lasting(rollouts);
    for service in &mut document.services {
        let last = rollouts.iter().find(|row| row["service"] == service.service.as_str());
        service.last_rollout = last.and_then(|row| row["rollout"].as_str()).map(str::to_owned);
    }
    document.summary.rollouts_active =
        rollouts.iter().filter(|row| row["ended_at"].is_null()).count();
    StatusDocument {
        rollouts: rollouts.into_iter().cloned().collect(),
        fleet: Some(fleet.fleet.clone()),
        as_of: AsOf {
            at: Some(At(fleet.at)),
            source: Some(fleet.controller.clone()),
            cursor: Some(fleet.cursor.to_string()),
            behind_ms: Some(behind_ms(fleet, now)),
            complete: view.missing.is_empty(),
            missing_nodes: view.missing.to_vec(),
        },
        controllers: Some(ControllersView {
            leader: fleet.leader.clone(),
            term: fleet.term,
            standby: fleet.standby.clone(),
        }),
        intake: Some(IntakeView {
            counts: fleet.intake,
            logs: fleet.nodes.iter().map(origin).collect(),
        }),
        ..document
    }
}

fn origin(node: &FleetNode) -> OriginRow {
    OriginRow {
        origin: node.node.clone(),
        last_seen_at: time(node.last_seen),
        reachable: node.reachable,
        head: node.head.as_ref().map(ToString::to_string),
        told: node.told.as_ref().map(ToString::to_string),
        doubt: node.doubt.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::sample;
    use crate::cli::selector::Selector;
    use crate::cli::view::Picture;
    use crate::domain::code::ExitCode;
    use crate::domain::id::NodeId;
    use crate::wire::status::Intake;

    /// Two nodes that run the same: the second is not heard any more.
    fn fleet() -> FleetStatus {
        let node = |name: &str, reachable| {
            let node: NodeId = name.parse().unwrap();
            let mut status = sample::node();
            status.node = node.clone();
            FleetNode {
                node,
                last_seen: Some(sample::at(if reachable { "14:07:40" } else { "14:04:31" })),
                reachable,
                labels: [("env".to_owned(), "prod".to_owned())].into(),
                clock_off_ms: reachable.then_some(3),
                head: Some(sample::event_id(9)),
                told: None,
                doubt: None,
                status: Some(Box::new(status)),
            }
        };
        FleetStatus {
            fleet: "acme".parse().unwrap(),
            controller: "c1".parse().unwrap(),
            at: sample::at("14:07:40"),
            leader: None,
            term: 3,
            standby: Vec::new(),
            cursor: sample::event_id(9),
            intake: Intake::default(),
            nodes: vec![node("n1", true), node("n6", false)],
        }
    }

    #[test]
    fn what_runs_on_a_silent_node_is_there_and_unknown() {
        let (fleet, now) = (fleet(), sample::at("14:07:40.180"));
        let picture = Picture::of(&fleet);
        let view = View { in_fleet: true, ..picture.view() };
        let document = json!(fleet_json(&fleet, &[], &view, now));
        let count = |of: &Value, name: &str| of[name].as_u64().unwrap();
        let known = sample::node().instances.len() as u64;
        let summary = &document["summary"];
        assert_eq!((count(summary, "instances"), count(summary, "unknown")), (2 * known, known));
        let services = document["services"].as_array().unwrap();
        assert_eq!(services.iter().map(|it| count(it, "unknown")).sum::<u64>(), known);
        let silent =
            document["instances"].as_array().unwrap().iter().filter(|it| it["node"] == "n6");
        for it in silent {
            assert_eq!(
                (&it["state"], &it["since"]),
                (&json!("unknown"), &json!("2026-11-22T14:04:31.000Z"))
            );
            assert_eq!(it["conditions"]["Ready"]["status"], "unknown");
            assert_eq!(
                (&it["pid"], &it["restarts"], &it["exit"]),
                (&Value::Null, &Value::Null, &Value::Null)
            );
        }
        let node = &document["nodes"][1];
        assert_eq!((&node["node"], &node["state"]), (&json!("n6"), &json!("unreachable")));
        assert_eq!(node["last_seen"], "2026-11-22T14:04:31.000Z");
        assert_eq!(node["labels"], json!({"env": "prod"}));
        assert_eq!(node["conditions"]["ClockSynced"]["reason"], "NoHeartbeat");
        assert_eq!(document["nodes"][0]["conditions"]["ClockSynced"]["status"], "true");
        assert_eq!(document["as_of"]["behind_ms"], 180);
    }

    #[test]
    fn a_service_on_a_silent_node_is_not_ready_to_whoever_asks_for_it() {
        let picture = Picture::of(&fleet());
        let web: Selector = "web@n6".parse().unwrap();
        let view = View { selector: Some(&web), in_fleet: true, ..picture.view() };
        assert_eq!(view.exit(), ExitCode::NotReady);
        assert!(!view.instances().is_empty());
    }
}
