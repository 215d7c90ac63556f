//! `GET /metrics` in the text format of Prometheus. Labels are bounded: names of the fleet, nodes, services, and words of
//! closed lists; never a release, a process or a wish.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use super::reading::fleet;
use super::serve::Shared;
use crate::cli::screen::words::name_of;
use crate::cli::view::{Readiness, readiness};
use crate::domain::id::NodeId;
use crate::wire::status::FleetStatus;

/// `GET /metrics`.
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Result<Response, Problem> {
    let fleet = fleet(&shared.access).await?;
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    Ok(([kind], text(&fleet, shared.access.has_bus())).into_response())
}

/// What a metric is.
#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
}

/// The page while it is written.
struct Page<'f> {
    text: String,
    fleet: &'f FleetStatus,
}

impl Page<'_> {
    /// Begins a metric; its samples follow.
    fn metric(&mut self, kind: Kind, name: &str, help: &str) {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        // Writing into a String does not fail.
        let _ok = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Writes a sample. No value of a label here has a character that would have to be escaped: they are names.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ok = write!(self.text, "{name}{{fleet=\"{}\"", self.fleet.fleet);
        for (label, value) in labels {
            let _ok = write!(self.text, ",{label}=\"{value}\"");
        }
        let _ok = writeln!(self.text, "}} {value}");
    }
}

/// Returns the page.
pub(super) fn text(fleet: &FleetStatus, has_bus: bool) -> String {
    let mut page = Page { text: String::new(), fleet };
    let controller = fleet.controller.as_str();
    let is = |yes: bool| f64::from(u8::from(yes));
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
    intake(&mut page, controller);
    nodes(&mut page);
    services(&mut page);
    page.text
}

fn intake(page: &mut Page<'_>, controller: &str) {
    let intake = page.fleet.intake;
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

fn nodes(page: &mut Page<'_>) {
    let nodes = &page.fleet.nodes;
    let name = "smgr_node_reachable";
    page.metric(Kind::Gauge, name, "Whether a node was heard lately.");
    for node in nodes {
        let value = f64::from(u8::from(node.reachable));
        page.sample(name, &[("node", node.node.as_str())], value);
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
        let value = f64::from(u8::from(node.doubt.is_some()));
        page.sample(name, &[("node", node.node.as_str())], value);
    }
}

/// What is counted of the instances of one service on one node.
#[derive(Default)]
struct Counts {
    by_state: BTreeMap<String, u64>,
    ready: u64,
    restarts: u64,
}

fn services(page: &mut Page<'_>) {
    // What runs on a node that is not heard is not known, so nothing is said of it.
    let statuses = page.fleet.nodes.iter().filter(|node| node.reachable);
    let statuses: Vec<_> = statuses.filter_map(|node| node.status.as_deref()).collect();
    let mut counts: BTreeMap<(&NodeId, &str), Counts> = BTreeMap::new();
    for (status, it) in statuses.iter().flat_map(|it| it.instances.iter().map(move |i| (it, i))) {
        let counts = counts.entry((&status.node, it.service.as_str())).or_default();
        *counts.by_state.entry(name_of(&it.state)).or_default() += 1;
        counts.ready += u64::from(readiness(it) == Readiness::Yes);
        counts.restarts += u64::from(it.restarts);
    }
    let name = "smgr_instances";
    page.metric(Kind::Gauge, name, "Instances by state.");
    for ((node, service), counts) in &counts {
        for (state, count) in &counts.by_state {
            let labels = [("node", node.as_str()), ("service", service), ("state", state)];
            page.sample(name, &labels, *count as f64);
        }
    }
    let name = "smgr_instances_ready";
    page.metric(Kind::Gauge, name, "Instances that serve.");
    for ((node, service), counts) in &counts {
        page.sample(name, &[("node", node.as_str()), ("service", service)], counts.ready as f64);
    }
    let name = "smgr_instance_restarts";
    page.metric(Kind::Gauge, name, "Restarts by policy since a person's last act or a stable run.");
    for ((node, service), counts) in &counts {
        page.sample(name, &[("node", node.as_str()), ("service", service)], counts.restarts as f64);
    }
    let name = "smgr_alerts_firing";
    page.metric(Kind::Gauge, name, "Alerts that fire, by severity.");
    let mut alerts: BTreeMap<(&NodeId, &str), u64> = BTreeMap::new();
    for (status, alert) in statuses.iter().flat_map(|it| it.alerts.iter().map(move |a| (it, a))) {
        *alerts.entry((&status.node, alert.severity.as_str())).or_default() += 1;
    }
    for ((node, severity), count) in alerts {
        page.sample(name, &[("node", node.as_str()), ("severity", severity)], count as f64);
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
        let text = text(&fleet(), true);
        let mut announced = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                announced.push(rest.split(' ').nth(1).unwrap());
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap();
            assert_eq!(announced.last(), Some(&name), "{line}");
            assert!(labels.starts_with("fleet=\"acme\"") && labels.ends_with("\"}"), "{line}");
            value.parse::<f64>().unwrap();
        }
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
