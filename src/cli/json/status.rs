//! `smgr.status.v1`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{exit, line, text_or_null, time};
use crate::cli::screen::words::name_of;
use crate::cli::view::{Health, Readiness, View, health, readiness};
use crate::domain::event::Desired;
use crate::domain::id::{NodeId, ServiceId};
use crate::domain::time::UnixMicros;
use crate::head::authority::SKEW_MS;
use crate::wire::status::{
    AlertStatus, BesideStatus, BusState, CheckStatus, Condition, InstanceStatus, NodeStatus,
    ReleaseStatus, ServiceStatus,
};

/// Returns the document of `smgr status -o json`.
pub fn status_json(view: &View<'_>, now: UnixMicros) -> Value {
    let instances = view.instances();
    json!({
        "schema": "smgr.status.v1",
        "fleet": view.heard().next().map(|node| node.fleet.as_str()),
        "as_of": as_of(view, now),
        "exit_code": view.exit().number(),
        "summary": summary(view),
        "nodes": nodes(view),
        "services": services(view),
        "instances": instances.iter().map(|(node, it)| instance(node, it)).collect::<Vec<_>>(),
        "rollouts": [],
        "alerts": view
            .nodes
            .iter()
            .flat_map(|node| node.alerts.iter().map(|it| alert(node, it)))
            .collect::<Vec<_>>(),
    })
}

/// Returns `smgr status -o jsonl`: the instances, one object a line.
pub fn status_jsonl(view: &View<'_>) -> String {
    view.instances().iter().map(|(node, it)| line(&instance(node, it)) + "\n").collect()
}

fn as_of(view: &View<'_>, now: UnixMicros) -> Value {
    let oldest = view.nodes.iter().min_by_key(|node| node.at);
    // Several nodes were asked directly: there is no one source, and no one place in a stream.
    let only = oldest.filter(|_| view.nodes.len() == 1);
    json!({
        "at": time(oldest.map(|node| node.at)),
        "source": only.map(|node| node.node.as_str()),
        "cursor": only.map(|node| node.head.to_string()),
        "behind_ms": oldest.map(|node| now.ms_since(node.at)),
        "complete": view.missing.is_empty(),
        "missing_nodes": view.missing.iter().map(NodeId::as_str).collect::<Vec<_>>(),
    })
}

/// How many instances are how. What is stopped as wanted is in none of the three.
#[derive(Default)]
struct Counts {
    instances: u64,
    ready: u64,
    not_ready: u64,
    unknown: u64,
}

impl Counts {
    fn of<'a>(instances: impl Iterator<Item = &'a InstanceStatus>) -> Self {
        let mut counts = Self::default();
        for instance in instances {
            counts.instances += 1;
            match (health(instance), readiness(instance)) {
                (Health::Unknown, _) | (_, Readiness::Unknown) => counts.unknown += 1,
                (_, Readiness::Yes) => counts.ready += 1,
                (_, Readiness::No) if instance.desired == Desired::Running => counts.not_ready += 1,
                (_, Readiness::No) => {}
            }
        }
        counts
    }
}

fn summary(view: &View<'_>) -> Value {
    let instances = view.instances();
    let counts = Counts::of(instances.iter().map(|(_, it)| *it));
    json!({
        "nodes": view.nodes.len() + view.missing.len(),
        "nodes_ok": view.nodes.iter().filter(|node| node_state(node) == "ok").count(),
        "instances": counts.instances,
        "ready": counts.ready,
        "not_ready": counts.not_ready,
        "unknown": counts.unknown,
        "alerts_firing": view.nodes.iter().map(|node| node.alerts.len()).sum::<usize>(),
        "rollouts_active": 0,
    })
}

fn nodes(view: &View<'_>) -> Vec<Value> {
    let told = view.nodes.iter().map(|it| node(view, it));
    let silent = view.missing.iter().map(|name| {
        let lost = view.lost.iter().find(|lost| lost.node == *name);
        missing(name, lost, labels(view, name))
    });
    told.chain(silent).collect()
}

fn labels(view: &View<'_>, node: &NodeId) -> Value {
    json!(view.known.and_then(|known| known.labels.get(node)).cloned().unwrap_or_default())
}

/// Says whether this is what a controller read in a log: what only the node itself knows is left out then.
fn is_folded(node: &NodeStatus) -> bool {
    node.isolation.is_empty()
}

fn node_state(node: &NodeStatus) -> &'static str {
    let is_away = matches!(node.bus, BusState::Away { .. });
    if is_away || node.log_unavailable.is_some() { "degraded" } else { "ok" }
}

fn node(view: &View<'_>, node: &NodeStatus) -> Value {
    let is_folded = is_folded(node);
    let (connected, reason) = match &node.bus {
        // Whom a controller hears it hears over the bus.
        BusState::Off if is_folded && view.in_fleet => (Some(true), "Heard"),
        BusState::Off => (None, "Off"),
        BusState::Connected { .. } => (Some(true), "Connected"),
        BusState::Away { .. } => (Some(false), "Away"),
    };
    let writable = node.log_unavailable.is_none();
    let mut conditions = Map::new();
    let reached = if is_folded { "Heard" } else { "Answered" };
    conditions.insert("Reachable".to_owned(), condition(Some(true), reached, Some(node.at)));
    let reason_log = if writable { "Writable" } else { "Unavailable" };
    conditions.insert("LogWritable".to_owned(), condition(Some(writable), reason_log, None));
    if connected.is_some() {
        conditions.insert("BusConnected".to_owned(), condition(connected, reason, None));
    }
    conditions.insert("ClockSynced".to_owned(), clock(view, &node.node));
    let (bus, server, why) = match &node.bus {
        BusState::Off => ("off", None, None),
        BusState::Connected { server } => ("connected", Some(server.as_str()), None),
        BusState::Away { why } => ("away", None, Some(why.as_str())),
    };
    let (bus, history) = match is_folded {
        true => (Value::Null, Value::Null),
        false => (
            json!({"state": bus, "server": server, "reason": why}),
            json!({
                "bytes": node.log_bytes,
                "max_bytes": node.log_bytes_max,
                "unavailable": node.log_unavailable,
            }),
        ),
    };
    json!({
        "node": node.node.as_str(),
        "state": node_state(node),
        "last_seen": time(Some(node.at)),
        "version": node.version,
        "labels": labels(view, &node.node),
        "conditions": conditions,
        "head": node.head.to_string(),
        "bus": bus,
        "isolation": text_or_null(&node.isolation),
        "trees": text_or_null(&node.trees),
        "history": history,
    })
}

/// Says whether a clock is near enough to a controller's for wishes to be taken in time.
fn clock(view: &View<'_>, node: &NodeId) -> Value {
    match view.known.and_then(|known| known.clocks.get(node)) {
        Some(off) if *off < SKEW_MS => condition(Some(true), "AgreesWithController", None),
        Some(_) => condition(Some(false), "FarFromController", None),
        None => condition(None, "NotCompared", None),
    }
}

/// A node that is silent: since when, where it was heard before.
fn missing(node: &NodeId, lost: Option<&NodeStatus>, labels: Value) -> Value {
    let reason = if lost.is_some() { "NoHeartbeat" } else { "NoAnswer" };
    let unknown = || condition(None, reason, lost.map(|lost| lost.at));
    json!({
        "node": node.as_str(),
        "state": "unreachable",
        "last_seen": time(lost.map(|lost| lost.at)),
        "version": null,
        "labels": labels,
        "conditions": {
            "Reachable": unknown(), "LogWritable": unknown(), "BusConnected": unknown(),
            "ClockSynced": unknown(),
        },
        "head": lost.map(|lost| lost.head.to_string()),
        "bus": null,
        "isolation": null,
        "trees": null,
        "history": null,
    })
}

fn condition(status: Option<bool>, reason: &str, since: Option<UnixMicros>) -> Value {
    let status = match status {
        Some(true) => "true",
        Some(false) => "false",
        None => "unknown",
    };
    json!({"status": status, "reason": reason, "since": time(since)})
}

fn services(view: &View<'_>) -> Vec<Value> {
    let mut by_name: BTreeMap<&ServiceId, Vec<&ServiceStatus>> = BTreeMap::new();
    let wanted = |service: &ServiceId| view.selector.is_none_or(|it| it.service == *service);
    for service in view.heard().flat_map(|node| &node.services) {
        if wanted(&service.service) {
            by_name.entry(&service.service).or_default().push(service);
        }
    }
    let instances = view.instances();
    let of = |name: &ServiceId| {
        Counts::of(instances.iter().map(|(_, it)| *it).filter(|it| it.service == *name))
    };
    let newest = |name: &ServiceId| {
        let known = view.heard().flat_map(|node| &node.releases);
        known.filter(|it| it.service == *name).max_by_key(|it| it.generation)
    };
    let services = by_name.into_iter();
    services.map(|(name, on_nodes)| service(&on_nodes, &of(name), newest(name))).collect()
}

fn service(
    on_nodes: &[&ServiceStatus],
    counts: &Counts,
    newest_release: Option<&ReleaseStatus>,
) -> Value {
    // Each node numbers its own wishes; the newest speaks for the service, and only where all agree.
    let newest = on_nodes.iter().max_by_key(|it| it.generation).expect("a name has a service");
    let agreed = on_nodes.iter().all(|it| it.desired == newest.desired);
    let specs: BTreeSet<_> = on_nodes.iter().map(|it| it.spec).collect();
    json!({
        "service": newest.service.as_str(),
        "kind": text_or_null(&newest.kind),
        "group": text_or_null(&newest.group),
        "description": text_or_null(&newest.description),
        "owner": text_or_null(&newest.owner),
        "docs": text_or_null(&newest.docs),
        "desired": agreed.then(|| name_of(&newest.desired)),
        "generation": newest.generation.0,
        "release": release(newest_release),
        "spec": (specs.len() == 1).then(|| super::digest(&newest.spec)),
        "origin": newest.origin,
        "instances": counts.instances,
        "ready": counts.ready,
        "not_ready": counts.not_ready,
        "unknown": counts.unknown,
        // Known where every node knows its own.
        "restarts_1h": on_nodes.iter().map(|it| it.restarts_1h).sum::<Option<u64>>(),
        "last_rollout": null,
    })
}

/// Says which release runs; null where none does.
fn release(known: Option<&ReleaseStatus>) -> Value {
    let found = known.and_then(|known| Some((known, known.release.as_ref()?)));
    found.map_or(Value::Null, |(known, release)| {
        json!({
            "digest": super::digest(release), "version": known.version,
            "generation": known.generation.0, "state": known.state,
        })
    })
}

fn instance(node: &NodeStatus, it: &InstanceStatus) -> Value {
    let service = node.services.iter().find(|service| service.service == it.service);
    let is_unknown = it.state == crate::domain::event::StateName::Unknown;
    let ended = it.exit.as_ref().map(|ended| {
        let mut members = exit(ended.exit, ended.oom_killed);
        members.insert("at".to_owned(), time(Some(ended.at)));
        members.insert("ran_ms".to_owned(), ended.ran_ms.into());
        members.insert("pid".to_owned(), ended.pid.into());
        members.insert("memory_peak_bytes".to_owned(), ended.memory_peak_bytes.into());
        Value::Object(members)
    });
    let conditions: Map<String, Value> = it
        .conditions
        .iter()
        .map(|(kind, Condition { status, reason, since })| {
            (kind.clone(), condition(*status, reason, Some(*since)))
        })
        .collect();
    json!({
        "node": node.node.as_str(),
        "service": it.service.as_str(),
        "instance": it.index,
        "name": format!("{}/{}@{}", it.service, it.index, node.node),
        "run": it.run.0,
        "desired": name_of(&it.desired),
        "state": name_of(&it.state),
        "substate": it.substate,
        "reason": it.reason,
        "result": it.result.as_ref().map(name_of),
        "since": time(Some(it.since)),
        "started_at": time(it.started_at),
        "pid": it.pid,
        "restarts": (!is_unknown).then_some(it.restarts),
        "exit": ended,
        "next_attempt_at": time(it.next_attempt_at),
        "delay_ms": it.delay_ms,
        "generation": service.map(|service| service.generation.0),
        "release": release(node.releases.iter().find(|known| known.service == it.service)),
        "spec": service.map(|service| super::digest(&service.spec)),
        "overridden_keys": service.map_or(&[][..], |service| &service.overridden_keys),
        "conditions": conditions,
        "health": it.health.iter().map(check).collect::<Vec<_>>(),
        "memory_bytes": it.memory_bytes,
        "memory_max_bytes": it.memory_bytes_max,
        "tasks": it.tasks,
        "log_path": it.log_path,
        "last_event": it.last_event.as_ref().map(ToString::to_string),
        "beside": it.beside.as_ref().map(beside),
    })
}

fn beside(it: &BesideStatus) -> Value {
    json!({
        "run": it.run.0, "state": name_of(&it.state), "substate": it.substate, "pid": it.pid,
        "since": time(Some(it.since)), "takes_over": it.takes_over,
    })
}

fn check(it: &CheckStatus) -> Value {
    let status = match it.passing {
        Some(true) => "passing",
        Some(false) => "failing",
        None => "unknown",
    };
    json!({
        "check": it.check.as_str(), "status": status, "last_at": time(it.last_at),
        "interval_ms": it.interval_ms, "failures": it.failures, "message": it.message,
    })
}

fn alert(node: &NodeStatus, it: &AlertStatus) -> Value {
    let place = match it.place.as_str() {
        place if place == node.node.as_str() => place.to_owned(),
        place => format!("{place}@{}", node.node),
    };
    let hash = Sha256::digest(format!("{}\0{place}", it.alert));
    let fingerprint: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "alert": it.alert,
        "severity": it.severity,
        "state": "firing",
        "where": place,
        "since": time(Some(it.since)),
        "fingerprint": fingerprint,
        "summary": it.summary,
        "silenced_until": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    fn document(missing: &[NodeId]) -> Value {
        let nodes = [sample::node()];
        let now = sample::at("14:07:40.180");
        status_json(&View { nodes: &nodes, missing, ..View::default() }, now)
    }

    #[test]
    fn what_is_not_ready_is_found_as_the_contract_says() {
        // jq -r '.instances[] | select(.conditions.Ready.status != "true") | .name'
        let document = document(&[]);
        let names: Vec<&str> = document["instances"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|it| it["conditions"]["Ready"]["status"] != "true")
            .filter_map(|it| it["name"].as_str())
            .collect();
        assert_eq!(names, ["worker/0@n1"]);
    }

    #[test]
    fn an_instance_tells_its_last_exit_and_every_field_of_the_contract() {
        let document = document(&[]);
        let worker = &document["instances"][0];
        assert_eq!(
            worker["exit"],
            json!({
                "known": true, "code": 101, "signal": null, "core_dumped": false, "oom_killed": false,
                "at": "2026-11-22T14:06:56.300Z", "ran_ms": 1204, "pid": 41377,
                "memory_peak_bytes": 32_505_856,
            })
        );
        assert_eq!(worker["since"], "2026-11-22T14:06:56.300Z");
        assert_eq!(worker["next_attempt_at"], "2026-11-22T14:07:55.200Z");
        for field in "node service instance name run desired state substate reason result since \
             started_at pid restarts exit next_attempt_at generation release overridden_keys conditions \
             health memory_bytes memory_max_bytes tasks log_path last_event"
            .split_whitespace()
        {
            for instance in document["instances"].as_array().unwrap() {
                assert!(instance.get(field).is_some(), "{field}");
            }
        }
    }

    #[test]
    fn the_head_says_as_of_when_from_whom_and_who_is_missing() {
        let alone = document(&[]);
        assert_eq!(alone["schema"], "smgr.status.v1");
        assert_eq!(alone["exit_code"], 0);
        assert_eq!(
            alone["as_of"],
            json!({
                "at": "2026-11-22T14:07:40.000Z", "source": "n1",
                "cursor": format!("n1/{}/18420", sample::epoch().token()), "behind_ms": 180,
                "complete": true, "missing_nodes": [],
            })
        );
        let some = document(&["n6".parse().unwrap()]);
        assert_eq!(some["as_of"]["complete"], false);
        assert_eq!(some["as_of"]["missing_nodes"], json!(["n6"]));
        assert_eq!(some["nodes"][1]["state"], "unreachable");
        assert_eq!(some["summary"]["nodes"], 2);
        assert_eq!(some["summary"]["nodes_ok"], 1);
    }

    #[test]
    fn a_summary_counts_apart_what_is_ready_not_ready_and_unknown() {
        let mut node = sample::node();
        node.instances[1].state = crate::domain::event::StateName::Unknown;
        let document = status_json(&View::of(&node), node.at);
        let counts = ["instances", "ready", "not_ready", "unknown"];
        assert_eq!(counts.map(|name| document["summary"][name].as_u64()), [5, 3, 1, 1].map(Some));
        let unknown = document["instances"][0].clone();
        assert_eq!(
            (unknown["state"].as_str(), &unknown["restarts"]),
            (Some("unknown"), &Value::Null)
        );
    }

    #[test]
    fn lines_of_json_hold_one_instance_each() {
        let node = sample::node();
        let lines = status_jsonl(&View::of(&node));
        assert_eq!(lines.lines().count(), 5);
        let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!(first["name"], "worker/0@n1");
    }
}
