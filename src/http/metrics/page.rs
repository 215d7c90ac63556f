//! A page of metrics in the text format of Prometheus. Labels are bounded: names of the fleet, nodes, services, and words
//! of closed lists; never a release, a process or a wish.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::http::header;
use axum::response::{IntoResponse as _, Response};

use crate::cli::screen::words::name_of;
use crate::cli::view::{Readiness, readiness};
use crate::domain::id::{FleetId, NodeId};
use crate::wire::status::NodeStatus;

/// Returns the answer that brings a page.
pub(super) fn response(text: String) -> Response {
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([kind], text).into_response()
}

/// Returns a truth as a value.
pub(super) fn is(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

/// What a metric is.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Gauge,
    Counter,
}

/// The page while it is written.
pub(super) struct Page<'f> {
    pub(super) text: String,
    fleet: &'f FleetId,
}

impl<'f> Page<'f> {
    pub(super) fn new(fleet: &'f FleetId) -> Self {
        Self { text: String::new(), fleet }
    }

    /// Begins a metric; its samples follow.
    pub(super) fn metric(&mut self, kind: Kind, name: &str, help: &str) {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        // Writing into a String does not fail.
        let _ok = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Writes a sample. No value of a label here has a character that would have to be escaped: they are names.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ok = write!(self.text, "{name}{{fleet=\"{}\"", self.fleet);
        for (label, value) in labels {
            let _ok = write!(self.text, ",{label}=\"{value}\"");
        }
        let _ok = writeln!(self.text, "}} {value}");
    }

    /// Writes what runs on nodes.
    pub(super) fn services(&mut self, statuses: &[&NodeStatus]) {
        let mut counts: BTreeMap<(&NodeId, &str), Counts> = BTreeMap::new();
        for (status, it) in statuses.iter().flat_map(|it| it.instances.iter().map(move |i| (it, i)))
        {
            let counts = counts.entry((&status.node, it.service.as_str())).or_default();
            *counts.by_state.entry(name_of(&it.state)).or_default() += 1;
            counts.ready += u64::from(readiness(it) == Readiness::Yes);
            counts.restarts += u64::from(it.restarts);
        }
        let name = "smgr_instances";
        self.metric(Kind::Gauge, name, "Instances by state.");
        for ((node, service), counts) in &counts {
            for (state, count) in &counts.by_state {
                let labels = [("node", node.as_str()), ("service", service), ("state", state)];
                self.sample(name, &labels, *count as f64);
            }
        }
        let name = "smgr_instances_ready";
        self.metric(Kind::Gauge, name, "Instances that serve.");
        for ((node, service), counts) in &counts {
            self.sample(
                name,
                &[("node", node.as_str()), ("service", service)],
                counts.ready as f64,
            );
        }
        let name = "smgr_instance_restarts";
        self.metric(
            Kind::Gauge,
            name,
            "Restarts by policy since a person's last act or a stable run.",
        );
        for ((node, service), counts) in &counts {
            self.sample(
                name,
                &[("node", node.as_str()), ("service", service)],
                counts.restarts as f64,
            );
        }
        let name = "smgr_alerts_firing";
        self.metric(Kind::Gauge, name, "Alerts that fire, by severity.");
        let mut alerts: BTreeMap<(&NodeId, &str), u64> = BTreeMap::new();
        for (status, alert) in statuses.iter().flat_map(|it| it.alerts.iter().map(move |a| (it, a)))
        {
            *alerts.entry((&status.node, alert.severity.as_str())).or_default() += 1;
        }
        for ((node, severity), count) in alerts {
            self.sample(name, &[("node", node.as_str()), ("severity", severity)], count as f64);
        }
    }
}

/// What is counted of the instances of one service on one node.
#[derive(Default)]
struct Counts {
    by_state: BTreeMap<String, u64>,
    ready: u64,
    restarts: u64,
}

#[cfg(test)]
pub(super) mod tests {
    /// Looks at each line of a page as Prometheus does.
    pub(in crate::http) fn is_read(text: &str, fleet: &str) {
        let (mut announced, mut samples) = ("", 0);
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                announced = rest.split(' ').nth(1).unwrap();
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap();
            assert_eq!(announced, name, "{line}");
            let is_of_fleet = labels.starts_with(&format!("fleet=\"{fleet}\""));
            assert!(is_of_fleet && labels.ends_with("\"}"), "{line}");
            value.parse::<f64>().unwrap();
            samples += 1;
        }
        assert!(samples > 0, "{text}");
    }
}
