//! `GET /metrics` of a controller in the text format of Prometheus: what it knows of its fleet.

pub(super) mod node;
mod page;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use self::page::{Kind, Page, is};
use super::problem::Problem;
use super::reading::fleet;
use super::serve::Shared;
use crate::wire::status::FleetStatus;

/// `GET /metrics`.
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Result<Response, Problem> {
    let fleet = fleet(&shared.access).await?;
    Ok(page::response(text(&fleet, shared.access.has_bus())))
}

/// Returns the page.
pub(super) fn text(fleet: &FleetStatus, has_bus: bool) -> String {
    let mut page = Page::new(&fleet.fleet);
    let controller = fleet.controller.as_str();
    let leads = fleet.leader.as_ref() == Some(&fleet.controller);
    for (name, help, value) in [
        ("smgr_controller_leads", "Whether this controller decides.", is(leads)),
        ("smgr_controller_term", "The highest term that is known.", fleet.term as f64),
        ("smgr_controller_bus_up", "Whether the bus can be spoken to.", is(has_bus)),
        ("smgr_controllers_standby", "Other controllers heard lately.", fleet.standby.len() as f64),
        ("smgr_arrivals", "Events of all logs that are here, durably.", fleet.cursor.seq.0 as f64),
    ] {
        page.metric(Kind::Gauge, name, help);
        page.sample(name, &[("controller", controller)], value);
    }
    let name = "smgr_build_info";
    page.metric(Kind::Gauge, name, "The version of the controller.");
    page.sample(name, &[("controller", controller), ("version", env!("CARGO_PKG_VERSION"))], 1.0);
    intake(&mut page, fleet);
    nodes(&mut page, fleet);
    // What runs on a node that is not heard is not known, so nothing is said of it.
    let heard = fleet.nodes.iter().filter(|node| node.reachable);
    page.services(&heard.filter_map(|node| node.status.as_deref()).collect::<Vec<_>>());
    page.text
}

fn intake(page: &mut Page<'_>, fleet: &FleetStatus) {
    let (controller, intake) = (fleet.controller.as_str(), fleet.intake);
    let name = "smgr_intake_events_total";
    page.metric(Kind::Counter, name, "Events that came, by how; `repeat` was here already.");
    for (way, count) in
        [("live", intake.live), ("fetched", intake.fetched), ("repeat", intake.repeats)]
    {
        page.sample(name, &[("controller", controller), ("way", way)], count as f64);
    }
    let name = "smgr_intake_dropped_total";
    page.metric(Kind::Counter, name, "Messages that nobody who is trusted said, by why.");
    for (why, count) in [("unsigned", intake.unsigned), ("foreign", intake.foreign)] {
        page.sample(name, &[("controller", controller), ("why", why)], count as f64);
    }
    for (name, help, count) in [
        ("smgr_intake_gaps_total", "How often an event was missing.", intake.gaps),
        ("smgr_log_forks_total", "Logs that did not extend what was here.", intake.forked),
    ] {
        page.metric(Kind::Counter, name, help);
        page.sample(name, &[("controller", controller)], count as f64);
    }
}

fn nodes(page: &mut Page<'_>, fleet: &FleetStatus) {
    let nodes = &fleet.nodes;
    let name = "smgr_node_reachable";
    page.metric(Kind::Gauge, name, "Whether a node was heard lately.");
    for node in nodes {
        page.sample(name, &[("node", node.node.as_str())], is(node.reachable));
    }
    let name = "smgr_node_last_seen_timestamp_seconds";
    page.metric(Kind::Gauge, name, "When a node was heard last, by the controller's clock.");
    for node in nodes {
        if let Some(at) = node.last_seen {
            page.sample(name, &[("node", node.node.as_str())], at.0 as f64 / 1e6);
        }
    }
    let name = "smgr_node_behind_events";
    page.metric(Kind::Gauge, name, "Events that a node told of and that are not here.");
    for node in nodes {
        if let (Some(head), Some(told)) = (&node.head, &node.told)
            && head.epoch == told.epoch
        {
            let behind = told.seq.0.saturating_sub(head.seq.0);
            page.sample(name, &[("node", node.node.as_str())], behind as f64);
        }
    }
    let name = "smgr_node_in_doubt";
    page.metric(Kind::Gauge, name, "Whether what the log of a node says may not be so.");
    for node in nodes {
        page.sample(name, &[("node", node.node.as_str())], is(node.doubt.is_some()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;
    use crate::wire::status::{FleetNode, Intake};

    fn fleet() -> FleetStatus {
        let node = |name: &str, reachable| FleetNode {
            node: name.parse().unwrap(),
            last_seen: Some(sample::at("14:07:40.000")),
            reachable,
            head: None,
            told: None,
            labels: Default::default(),
            clock_off_ms: None,
            doubt: None,
            status: Some(Box::new(sample::node())),
        };
        FleetStatus {
            fleet: "acme".parse().unwrap(),
            controller: "c1".parse().unwrap(),
            at: sample::at("14:07:40.000"),
            leader: Some("c1".parse().unwrap()),
            term: 3,
            standby: Vec::new(),
            cursor: sample::event_id(9),
            intake: Intake { live: 7, ..Intake::default() },
            nodes: vec![node("n1", true), node("n6", false)],
        }
    }

    #[test]
    fn every_line_is_one_that_prometheus_reads() {
        page::tests::is_read(&text(&fleet(), true), "acme");
    }

    #[test]
    fn nothing_is_said_of_what_runs_where_nobody_is_heard() {
        let text = text(&fleet(), true);
        assert!(text.contains("smgr_node_reachable{fleet=\"acme\",node=\"n6\"} 0\n"), "{text}");
        assert!(
            !text.lines().any(|line| line.starts_with("smgr_instances") && line.contains("n6"))
        );
        let worker =
            "smgr_instances{fleet=\"acme\",node=\"n1\",service=\"worker\",state=\"backoff\"} 1\n";
        assert!(text.contains(worker), "{text}");
    }
}
