//! `smgr status` of a fleet: who leads, each service over all nodes, and the nodes that are not as they should be.

use std::collections::BTreeMap;

use serde_json::Value;

use super::rollout::release_word;
use super::table::{Align, Table, wrapped};
use super::units::{age, clock, count, moment};
use super::words::name_of;
use crate::cli::json::fleet::{behind_ms, lasting};
use crate::cli::time::instant;
use crate::cli::view::{Health, Readiness, health, readiness};
use crate::domain::id::{NodeId, ServiceId};
use crate::domain::text::printable;
use crate::domain::time::UnixMicros;
use crate::wire::status::{FleetNode, FleetStatus, InstanceStatus, ReleaseStatus};

/// So many instances are named beside a service.
const NOTES_MAX: usize = 4;

/// How long a rollout that ended is shown, in milliseconds.
const NEWS_MS: u64 = 60 * 60_000;

/// A service over all nodes.
#[derive(Default)]
struct Row {
    ready: u64,
    all: u64,
    desired: String,
    restarts: Option<u64>,
    releases: BTreeMap<String, Vec<NodeId>>,
    notes: Vec<String>,
    unknown: Vec<String>,
}

impl Row {
    /// Returns what it runs from: one release, or how many.
    fn release(&self) -> String {
        match self.releases.len() {
            0 => "-".to_owned(),
            1 => self.releases.keys().next().cloned().unwrap_or_default(),
            several => format!("{several} releases"),
        }
    }

    /// Returns what a person should know of it.
    fn note(&self) -> String {
        let mut notes: Vec<String> = self.notes.iter().take(NOTES_MAX).cloned().collect();
        let rest = self.notes.len().saturating_sub(NOTES_MAX);
        notes.extend((rest > 0).then(|| format!("and {rest} more like this")));
        let named = self.unknown.iter().take(NOTES_MAX).cloned().collect::<Vec<_>>().join(", ");
        let rest = self.unknown.len().saturating_sub(NOTES_MAX);
        notes.extend(match (self.unknown.is_empty(), rest) {
            (true, _) => None,
            (false, 0) => Some(format!("{named} unknown")),
            (false, rest) => Some(format!("{named} and {rest} more unknown")),
        });
        if self.releases.len() > 1 {
            // The fewest first: they are what is looked for.
            let mut all: Vec<_> = self.releases.iter().collect();
            all.sort_by_key(|(_, nodes)| nodes.len());
            notes.extend(all.into_iter().map(|(release, nodes)| match nodes.as_slice() {
                [node] => format!("{release} on {node}"),
                several => format!("{release} on {} nodes", several.len()),
            }));
        }
        notes.join("; ")
    }
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
    let behind = behind_ms(fleet, now);
    let as_of = format!("as of {}, at most {} behind", moment(fleet.at, now), in_tenths(behind));
    let mut text =
        wrapped(&[format!("fleet {}", fleet.fleet), nodes, leads, as_of], "   ", 2, width);
    let services = services(fleet, rollouts, now);
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
    let bad = lasting(rollouts).into_iter().find(|row| is_news(row, now) && went_wrong(row));
    let why = bad.and_then(|row| row["rollout"].as_str()).map(|name| printable(name).into_owned());
    let why = why.map(|name| format!("why: smgr rollout show {name}"));
    if let Some(service) = more {
        let more = [format!("more: smgr status {service}"), "smgr events --fleet".to_owned()];
        let parts: Vec<String> = why.into_iter().chain(more).collect();
        text.push_str(&format!("\n{}", wrapped(&parts, "    ", 2, width)));
    }
    text
}

/// Returns `0.2s`, rounded up: it is said to be at most this.
fn in_tenths(ms: u64) -> String {
    let tenths = ms.div_ceil(100);
    format!("{}.{}s", tenths / 10, tenths % 10)
}

fn ended(row: &Value, now: UnixMicros) -> Option<UnixMicros> {
    row["ended_at"].as_str().and_then(|at| instant(at, now))
}

/// Says whether a rollout is under way or ended a moment ago.
fn is_news(row: &Value, now: UnixMicros) -> bool {
    ended(row, now).is_none_or(|at| now.ms_since(at) < NEWS_MS)
}

fn went_wrong(row: &Value) -> bool {
    row["exit_code"].as_u64().is_some_and(|code| code > 0)
}

fn list(names: &[NodeId]) -> String {
    names.iter().map(NodeId::as_str).collect::<Vec<_>>().join(" ")
}

fn services(fleet: &FleetStatus, rollouts: &[Value], now: UnixMicros) -> BTreeMap<ServiceId, Row> {
    let mut rows: BTreeMap<ServiceId, Row> = BTreeMap::new();
    for node in &fleet.nodes {
        let Some(status) = &node.status else { continue };
        for instance in &status.instances {
            let empty = || Row { restarts: Some(0), ..Row::default() };
            let row = rows.entry(instance.service.clone()).or_insert_with(empty);
            row.all += 1;
            row.desired = name_of(&instance.desired);
            let name = format!("{}/{}@{}", instance.service, instance.index, node.node);
            if !node.reachable {
                row.unknown.push(name);
            } else if readiness(instance) == Readiness::Yes {
                row.ready += 1;
            } else if health(instance) != Health::Well {
                row.notes.push(format!("{name} {}", why(instance)));
            }
        }
        for service in &status.services {
            let Some(row) = rows.get_mut(&service.service) else { continue };
            row.restarts =
                row.restarts.zip(service.restarts_1h).map(|(all, here)| all.saturating_add(here));
            let release = status.releases.iter().find(|it| it.service == service.service);
            if let Some(words) = release.and_then(ReleaseStatus::words) {
                row.releases.entry(words).or_default().push(node.node.clone());
            }
        }
    }
    for rollout in lasting(rollouts).into_iter().filter(|row| is_news(row, now)) {
        let service = rollout["service"].as_str().and_then(|name| name.parse::<ServiceId>().ok());
        let row = service.and_then(|service| rows.get_mut(&service));
        let Some((row, at)) = row.zip(ended(rollout, now)) else { continue };
        let what = match (rollout["kind"].as_str(), rollout["state"].as_str()) {
            (Some("deploy"), Some("rolled_back")) => "was rolled back",
            (Some("deploy"), Some("rollback_failed")) => "could not be rolled back",
            _ => continue,
        };
        let release = release_word(&rollout["to"]);
        row.notes.push(format!("{release} {what} {} ago", age(now.ms_since(at))));
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
        ("RELEASE", Align::Left),
        ("RESTARTS 1H", Align::Right),
        ("NOTE", Align::Left),
    ]);
    let mut rows: Vec<_> = services.iter().collect();
    // The unwell first.
    rows.sort_by_key(|(_, row)| row.ready == row.all);
    for (service, row) in rows {
        table.row([
            service.to_string(),
            format!("{}/{}", row.ready, row.all),
            row.desired.clone(),
            row.release(),
            row.restarts.map_or_else(|| "-".to_owned(), |count| count.to_string()),
            row.note(),
        ]);
    }
    table.render(width)
}

/// Shows the rollouts that are under way or ended a moment ago.
fn rollouts_table(rollouts: &[Value], now: UnixMicros, width: Option<u16>) -> String {
    let rows: Vec<&Value> = lasting(rollouts).into_iter().filter(|row| is_news(row, now)).collect();
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
            ended(row, now).map_or("-".to_owned(), clock),
            asker(&row["by"]),
        ]);
    }
    format!("\n{}", table.render(width))
}

/// Returns `ci:shop-deploy` or the name of a person, and what was noted, such as the run of a job.
fn asker(by: &Value) -> String {
    let text = |value: &Value| printable(value.as_str().unwrap_or_default()).into_owned();
    let name = match by["kind"].as_str() {
        Some("ci") => format!("ci:{}", text(&by["name"])),
        _ => by["name"].as_str().map_or_else(|| "-".to_owned(), |_| text(&by["name"])),
    };
    match text(&by["note"]) {
        note if note.is_empty() => name,
        note => format!("{name} {note}"),
    }
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
            (None, _) => (
                "-".to_owned(),
                "not heard since this controller began; what runs there is not known".to_owned(),
            ),
        };
        let state = if node.reachable { "in doubt" } else { "unreachable" };
        table.row([node.node.to_string(), state.to_owned(), seen, note]);
    }
    format!("\n{}", table.render(width))
}
