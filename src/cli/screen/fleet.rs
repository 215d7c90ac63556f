//! `smgr status` of a fleet: who leads, each service over all nodes, and the nodes that are not as they should be.

use std::collections::BTreeMap;

use serde_json::Value;

use super::rollout::release_word;
use super::table::{Align, Table, wrapped};
use super::units::{age, clock, count, moment};
use super::words::name_of;
use crate::cli::json::fleet::lasting;
use crate::cli::time::instant;
use crate::cli::view::{Health, Readiness, health, readiness};
use crate::domain::id::{NodeId, ServiceId};
use crate::domain::text::printable;
use crate::domain::time::UnixMicros;
use crate::wire::status::{FleetNode, FleetStatus, InstanceStatus};

/// An answer older than this says how old it is.
const AGE_MS_UNSAID: u64 = 10_000;

/// How long a rollout that ended is shown, in milliseconds.
const NEWS_MS: u64 = 60 * 60_000;

/// A service over all nodes.
#[derive(Default)]
struct Row {
    ready: u64,
    all: u64,
    desired: String,
    restarts: u64,
    notes: Vec<String>,
}

/// Returns the screen.
pub fn fleet_text(
    fleet: &FleetStatus,
    rollouts: &[Value],
    now: UnixMicros,
    width: Option<u16>,
) -> String {
    let ok = fleet.nodes.iter().filter(|node| node.reachable).count();
    let lost = fleet.nodes.len() - ok;
    let mut nodes = format!("{}: {ok} ok", count(fleet.nodes.len() as u64, "node"));
    if lost > 0 {
        nodes.push_str(&format!(", {lost} unreachable"));
    }
    let mut leads = match &fleet.leader {
        Some(leader) => format!("leader {leader}"),
        None => "no leader".to_owned(),
    };
    if !fleet.standby.is_empty() {
        leads.push_str(&format!(", standby {}", list(&fleet.standby)));
    }
    let behind = now.ms_since(fleet.at);
    let old = if behind < AGE_MS_UNSAID { String::new() } else { format!(", {} ago", age(behind)) };
    let as_of = format!("as of {}{old}", moment(fleet.at, now));
    let mut text =
        wrapped(&[format!("fleet {}", fleet.fleet), nodes, leads, as_of], "   ", 2, width);
    let services = services(fleet);
    if services.is_empty() {
        text.push_str("\nno services yet\n");
    } else {
        text.push('\n');
        text.push_str(&services_table(&services, width));
    }
    text.push_str(&nodes_table(fleet, now, width));
    text.push_str(&rollouts_table(rollouts, now, width));
    let unwell = services.iter().find(|(_, row)| row.ready < row.all).map(|(service, _)| service);
    let more = unwell.or_else(|| services.keys().next());
    if let Some(service) = more {
        text.push_str(&format!("\nmore: smgr status {service}    smgr events --fleet\n"));
    }
    text
}

fn list(names: &[NodeId]) -> String {
    names.iter().map(NodeId::as_str).collect::<Vec<_>>().join(" ")
}

fn services(fleet: &FleetStatus) -> BTreeMap<ServiceId, Row> {
    let mut rows: BTreeMap<ServiceId, Row> = BTreeMap::new();
    for node in &fleet.nodes {
        let Some(status) = &node.status else { continue };
        for instance in &status.instances {
            let row = rows.entry(instance.service.clone()).or_default();
            row.all += 1;
            row.desired = name_of(&instance.desired);
            row.restarts += u64::from(instance.restarts);
            let name = format!("{}/{}@{}", instance.service, instance.index, node.node);
            if !node.reachable {
                row.notes.push(format!("{name} unknown"));
            } else if readiness(instance) == Readiness::Yes {
                row.ready += 1;
            } else if health(instance) != Health::Well {
                row.notes.push(format!("{name} {}", why(instance)));
            }
        }
    }
    rows
}

fn why(instance: &InstanceStatus) -> String {
    let state = name_of(&instance.state);
    instance.reason.as_ref().map_or(state.clone(), |reason| format!("{state}: {reason}"))
}

fn services_table(services: &BTreeMap<ServiceId, Row>, width: Option<u16>) -> String {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("READY", Align::Right),
        ("DESIRED", Align::Left),
        ("RESTARTS", Align::Right),
        ("NOTE", Align::Left),
    ]);
    let mut rows: Vec<_> = services.iter().collect();
    // The unwell first.
    rows.sort_by_key(|(_, row)| row.notes.is_empty());
    for (service, row) in rows {
        table.row([
            service.to_string(),
            format!("{}/{}", row.ready, row.all),
            row.desired.clone(),
            row.restarts.to_string(),
            row.notes.join("; "),
        ]);
    }
    table.render(width)
}

/// Shows the rollouts that are under way or ended a moment ago.
fn rollouts_table(rollouts: &[Value], now: UnixMicros, width: Option<u16>) -> String {
    let ended = |row: &Value| row["ended_at"].as_str().and_then(|at| instant(at, now));
    let is_news = |row: &&&Value| ended(row).is_none_or(|at| now.ms_since(at) < NEWS_MS);
    let rows = lasting(rollouts);
    let rows: Vec<&&Value> = rows.iter().filter(is_news).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("ROLLOUT", Align::Left),
        ("SERVICE", Align::Left),
        ("CHANGE", Align::Left),
        ("STATE", Align::Left),
        ("ENDED", Align::Left),
        ("BY", Align::Left),
    ]);
    for row in rows {
        let text = |value: &Value| printable(value.as_str().unwrap_or("-")).into_owned();
        let state = match row["exit_code"].as_u64() {
            Some(code) if code > 0 => format!("{} (exit code {code})", text(&row["state"])),
            _ => text(&row["state"]),
        };
        let from = match row["from"].is_null() {
            true => "new".to_owned(),
            false => release_word(&row["from"]),
        };
        let change = match row["kind"].as_str() {
            Some("remove") => "taken away".to_owned(),
            Some("configure") => "configured".to_owned(),
            _ => format!("{from} → {}", release_word(&row["to"])),
        };
        table.row([
            text(&row["rollout"]),
            text(&row["service"]),
            change,
            state,
            ended(row).map_or("-".to_owned(), clock),
            text(&row["by"]["name"]),
        ]);
    }
    format!("\n{}", table.render(width))
}

fn nodes_table(fleet: &FleetStatus, now: UnixMicros, width: Option<u16>) -> String {
    let noted = |node: &&FleetNode| !node.reachable || node.doubt.is_some();
    let unwell: Vec<_> = fleet.nodes.iter().filter(noted).collect();
    if unwell.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("NODE", Align::Left),
        ("STATE", Align::Left),
        ("LAST SEEN", Align::Left),
        ("NOTE", Align::Left),
    ]);
    for node in unwell {
        let (seen, note) = match (node.last_seen, &node.doubt) {
            (Some(at), Some(doubt)) => (format!("{} ago", age(now.ms_since(at))), doubt.clone()),
            (Some(at), None) => (
                format!("{} ago", age(now.ms_since(at))),
                format!(
                    "last heard {}; what runs there is not known, nothing was stopped",
                    clock(at)
                ),
            ),
            (None, _) => ("-".to_owned(), "not heard by this controller yet".to_owned()),
        };
        let state = if node.reachable { "in doubt" } else { "unreachable" };
        table.row([node.node.to_string(), state.to_owned(), seen, note]);
    }
    format!("\n{}", table.render(width))
}
