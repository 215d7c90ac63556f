//! `smgr.status.v1`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256 as Hash};

use super::{digest, line, text_or_null, time};
use crate::cli::view::{Health, Readiness, View, health, readiness};
use crate::domain::document::{AsOf, At, ExitView, Sha256};
use crate::domain::event::{Desired, RunResult, StateName};
use crate::domain::id::{CheckName, FleetId, NodeId, ServiceId};
use crate::domain::time::UnixMicros;
use crate::head::authority::SKEW_MS;
use crate::wire::status::{
    AlertStatus, BesideStatus, BusState, CheckStatus, Condition, InstanceStatus, Intake,
    NodeStatus, ReleaseStatus, ServiceStatus,
};

/// What runs, what not, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StatusDocument {
    /// Which document this is.
    #[cfg_attr(test, schemars(extend("const" = Self::SCHEMA)))]
    pub schema: &'static str,
    /// Which fleet; null where nobody answered.
    pub fleet: Option<FleetId>,
    /// How fresh it is.
    pub as_of: AsOf,
    /// How the command line ends.
    pub exit_code: u8,
    /// In numbers.
    pub summary: SummaryView,
    /// The nodes.
    pub nodes: Vec<NodeRow>,
    /// The services, over all nodes.
    pub services: Vec<ServiceRow>,
    /// The instances, the unwell first.
    pub instances: Vec<InstanceRow>,
    /// The rollouts under way, and the last of each service.
    #[cfg_attr(test, schemars(with = "Vec<crate::domain::rollout::view::RolloutRow>"))]
    pub rollouts: Vec<Value>,
    /// The alerts that fire.
    pub alerts: Vec<AlertRow>,
    /// Who leads, where a controller tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controllers: Option<ControllersView>,
    /// What became of what the controller took in since it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intake: Option<IntakeView>,
}

impl StatusDocument {
    /// The word by which the document is known.
    pub const SCHEMA: &'static str = "smgr.status.v1";
}

/// A status in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SummaryView {
    /// Nodes that were asked.
    pub nodes: usize,
    /// Those of them that are as they should be.
    pub nodes_ok: usize,
    /// Instances.
    #[serde(flatten)]
    pub counts: Counts,
    /// Alerts that fire.
    pub alerts_firing: usize,
    /// Rollouts that are under way.
    pub rollouts_active: usize,
}

/// How many instances are how. What is stopped as wanted is in none of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Counts {
    /// All of them.
    pub instances: u64,
    /// Those that serve.
    pub ready: u64,
    /// Those that should and do not.
    pub not_ready: u64,
    /// Those of which nobody can tell.
    pub unknown: u64,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeRow {
    /// Its name.
    pub node: NodeId,
    /// `ok`, `degraded`, `unreachable`.
    pub state: &'static str,
    /// When it was heard last.
    pub last_seen: Option<At>,
    /// The version of its program.
    pub version: Option<String>,
    /// What root says of it.
    pub labels: BTreeMap<String, String>,
    /// How it is.
    pub conditions: NodeConditions,
    /// The last event of its log.
    pub head: Option<String>,
    /// How it stands to the bus, where it says so itself.
    pub bus: Option<BusView>,
    /// `none` when everything runs under one account, where it says so itself.
    pub isolation: Option<String>,
    /// How a whole tree is killed, where it says so itself: `cgroup`, `process_group`.
    pub trees: Option<String>,
    /// How it stands with its log, where it says so itself.
    pub history: Option<LogView>,
}

/// The conditions of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct NodeConditions {
    /// Whether it is heard.
    pub reachable: ConditionView,
    /// Whether its log takes events.
    pub log_writable: ConditionView,
    /// Whether it is on the bus; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus_connected: Option<ConditionView>,
    /// Whether its clock is near enough to a controller's.
    pub clock_synced: ConditionView,
}

/// How a node stands to the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BusView {
    /// `off`, `connected`, `away`.
    pub state: &'static str,
    /// The server's version.
    pub server: Option<String>,
    /// Why it is not connected.
    pub reason: Option<String>,
}

/// How a node stands with its log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogView {
    /// What it takes on disk.
    pub bytes: u64,
    /// What it may take.
    pub max_bytes: u64,
    /// Why it takes no events.
    pub unavailable: Option<String>,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConditionView {
    /// `true`, `false`, `unknown`.
    pub status: &'static str,
    /// In one word.
    pub reason: String,
    /// Since when.
    pub since: Option<At>,
}

/// A service, over all nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServiceRow {
    /// Its name.
    pub service: ServiceId,
    /// `daemon`, `oneshot`.
    pub kind: Option<String>,
    /// Its group.
    pub group: Option<String>,
    /// In words.
    pub description: Option<String>,
    /// Who is asked about it.
    pub owner: Option<String>,
    /// Where its runbook is.
    pub docs: Option<String>,
    /// What is wanted; null where nodes differ.
    pub desired: Option<Desired>,
    /// The number of the newest wish.
    pub generation: u64,
    /// The newest release that runs.
    pub release: Option<RunningView>,
    /// The digest of its spec; null where nodes differ.
    pub spec: Option<Sha256>,
    /// Where its spec was read.
    pub origin: String,
    /// Instances.
    #[serde(flatten)]
    pub counts: Counts,
    /// How often it was started again by policy within the last hour; null where not all of it was seen.
    pub restarts_1h: Option<u64>,
    /// Its last rollout.
    pub last_rollout: Option<String>,
}

/// The release that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RunningView {
    /// Its id.
    pub digest: Sha256,
    /// What people call it.
    pub version: String,
    /// The number of the last wish.
    pub generation: u64,
    /// `good staging trying returning failed`.
    pub state: String,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceRow {
    /// Where.
    pub node: NodeId,
    /// Which service.
    pub service: ServiceId,
    /// Which slot of it.
    pub instance: u16,
    /// `web/0@n1`.
    pub name: String,
    /// The number of the last start.
    pub run: u64,
    /// What is wanted.
    pub desired: Desired,
    /// What is.
    pub state: StateName,
    /// `prepare startup pre_stop drain term kill`, where the state has parts.
    pub substate: Option<String>,
    /// One clause for people.
    pub reason: Option<String>,
    /// How the last run ended.
    pub result: Option<RunResult>,
    /// Since when it is in this state.
    pub since: At,
    /// When the live run began.
    pub started_at: Option<At>,
    /// The main process, while it lives.
    pub pid: Option<u32>,
    /// Restarts by policy since the last act of a person or stable run; null when unknown.
    pub restarts: Option<u32>,
    /// The last run that ended.
    pub exit: Option<EndedView>,
    /// When the next start is tried.
    pub next_attempt_at: Option<At>,
    /// The delay of that start.
    pub delay_ms: Option<u64>,
    /// The number of the wish for its service.
    pub generation: Option<u64>,
    /// The release that it runs.
    pub release: Option<RunningView>,
    /// The digest of its spec.
    pub spec: Option<Sha256>,
    /// The keys that layers above the service's own file changed here.
    pub overridden_keys: Vec<String>,
    /// By type: `Ready`, `Healthy`, `DependenciesMet`, and others; absent is not evaluated.
    pub conditions: BTreeMap<String, ConditionView>,
    /// Its checks.
    pub health: Vec<CheckRow>,
    /// Memory of the whole tree.
    pub memory_bytes: Option<u64>,
    /// What its limit allows.
    pub memory_max_bytes: Option<u64>,
    /// Processes of the tree.
    pub tasks: Option<u32>,
    /// The live log file.
    pub log_path: Option<String>,
    /// The last event about it.
    pub last_event: Option<String>,
    /// The second run of it, in a handover.
    pub beside: Option<BesideView>,
}

/// The last run of an instance that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EndedView {
    /// How.
    #[serde(flatten)]
    pub exit: ExitView,
    /// When.
    pub at: At,
    /// How long it ran.
    pub ran_ms: u64,
    /// Its main process.
    pub pid: u32,
    /// The most memory that it had.
    pub memory_peak_bytes: Option<u64>,
}

/// The run beside the one that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BesideView {
    /// Which start of the slot.
    pub run: u64,
    /// Its state.
    pub state: StateName,
    /// As of the instance.
    pub substate: Option<String>,
    /// Its main process, while it lives.
    pub pid: Option<u32>,
    /// Since when there are two.
    pub since: At,
    /// Whether it is to take over; otherwise it was relieved and ends.
    pub takes_over: bool,
}

/// One health check of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheckRow {
    /// Its name.
    pub check: CheckName,
    /// `passing`, `failing`, `unknown`.
    pub status: &'static str,
    /// When the last answer came.
    pub last_at: Option<At>,
    /// To the next probe; null while nothing is probed.
    pub interval_ms: Option<u64>,
    /// Bad answers in a row.
    pub failures: u32,
    /// The last bad answer, in words.
    pub message: String,
}

/// One alert that fires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AlertRow {
    /// `worker/restart-limit`.
    pub alert: String,
    /// `info`, `warning`, `critical`.
    pub severity: String,
    /// `firing`.
    pub state: &'static str,
    /// `worker/0@n3`, or a node.
    pub r#where: String,
    /// Since when.
    pub since: At,
    /// The same for the same alert at the same place.
    pub fingerprint: String,
    /// In words.
    pub summary: String,
    /// Until when nobody wants to hear of it.
    pub silenced_until: Option<At>,
}

/// The controllers of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ControllersView {
    /// Who leads.
    pub leader: Option<NodeId>,
    /// In which term.
    pub term: u64,
    /// The others that were heard lately.
    pub standby: Vec<NodeId>,
}

/// What became of what a controller took in since it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct IntakeView {
    /// In numbers.
    #[serde(flatten)]
    pub counts: Intake,
    /// How it stands with the log of each node.
    pub logs: Vec<OriginRow>,
}

/// How a controller stands with the log of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OriginRow {
    /// Whose log.
    pub origin: NodeId,
    /// When it was heard last.
    pub last_seen_at: Option<At>,
    /// Whether it was heard lately.
    pub reachable: bool,
    /// The last event that is here.
    pub head: Option<String>,
    /// The last event that it told of.
    pub told: Option<String>,
    /// Why what is told of it may not be so.
    pub doubt: Option<String>,
}

/// Returns the document of `smgr status -o json`.
pub fn status_json(view: &View<'_>, now: UnixMicros) -> StatusDocument {
    let alerts = |node: &NodeStatus| -> Vec<AlertRow> {
        node.alerts.iter().map(|it| alert(node, it)).collect()
    };
    StatusDocument {
        schema: StatusDocument::SCHEMA,
        fleet: view.heard().next().map(|node| node.fleet.clone()),
        as_of: as_of(view, now),
        exit_code: view.exit().number(),
        summary: summary(view),
        nodes: nodes(view),
        services: services(view),
        instances: view.instances().iter().map(|(node, it)| instance(node, it)).collect(),
        rollouts: Vec::new(),
        alerts: view.nodes.iter().flat_map(alerts).collect(),
        controllers: None,
        intake: None,
    }
}

/// Returns `smgr status -o jsonl`: the instances, one object a line.
pub fn status_jsonl(view: &View<'_>) -> String {
    view.instances().iter().map(|(node, it)| line(&instance(node, it)) + "\n").collect()
}

fn as_of(view: &View<'_>, now: UnixMicros) -> AsOf {
    let oldest = view.nodes.iter().min_by_key(|node| node.at);
    // Several nodes were asked directly: there is no one source, and no one place in a stream.
    let only = oldest.filter(|_| view.nodes.len() == 1);
    AsOf {
        at: time(oldest.map(|node| node.at)),
        source: only.map(|node| node.node.clone()),
        cursor: only.map(|node| node.head.to_string()),
        behind_ms: oldest.map(|node| now.ms_since(node.at)),
        complete: view.missing.is_empty(),
        missing_nodes: view.missing.to_vec(),
    }
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

fn summary(view: &View<'_>) -> SummaryView {
    let instances = view.instances();
    SummaryView {
        nodes: view.nodes.len() + view.missing.len(),
        nodes_ok: view.nodes.iter().filter(|node| node_state(node) == "ok").count(),
        counts: Counts::of(instances.iter().map(|(_, it)| *it)),
        alerts_firing: view.nodes.iter().map(|node| node.alerts.len()).sum(),
        rollouts_active: 0,
    }
}

fn nodes(view: &View<'_>) -> Vec<NodeRow> {
    let told = view.nodes.iter().map(|it| node(view, it));
    let silent = view.missing.iter().map(|name| {
        let lost = view.lost.iter().find(|lost| lost.node == *name);
        missing(name, lost, labels(view, name))
    });
    told.chain(silent).collect()
}

fn labels(view: &View<'_>, node: &NodeId) -> BTreeMap<String, String> {
    view.known.and_then(|known| known.labels.get(node)).cloned().unwrap_or_default()
}

/// Says whether this is what a controller read in a log: what only the node itself knows is left out then.
fn is_folded(node: &NodeStatus) -> bool {
    node.isolation.is_empty()
}

fn node_state(node: &NodeStatus) -> &'static str {
    let is_away = matches!(node.bus, BusState::Away { .. });
    if is_away || node.log_unavailable.is_some() { "degraded" } else { "ok" }
}

fn node(view: &View<'_>, node: &NodeStatus) -> NodeRow {
    let is_folded = is_folded(node);
    let (connected, reason) = match &node.bus {
        // Whom a controller hears it hears over the bus.
        BusState::Off if is_folded && view.in_fleet => (Some(true), "Heard"),
        BusState::Off => (None, "Off"),
        BusState::Connected { .. } => (Some(true), "Connected"),
        BusState::Away { .. } => (Some(false), "Away"),
    };
    let writable = node.log_unavailable.is_none();
    let reached = if is_folded { "Heard" } else { "Answered" };
    let reason_log = if writable { "Writable" } else { "Unavailable" };
    let conditions = NodeConditions {
        reachable: condition(Some(true), reached, Some(node.at)),
        log_writable: condition(Some(writable), reason_log, None),
        bus_connected: connected.map(|connected| condition(Some(connected), reason, None)),
        clock_synced: clock(view, &node.node),
    };
    let (bus, server, why) = match &node.bus {
        BusState::Off => ("off", None, None),
        BusState::Connected { server } => ("connected", Some(server.clone()), None),
        BusState::Away { why } => ("away", None, Some(why.clone())),
    };
    NodeRow {
        node: node.node.clone(),
        state: node_state(node),
        last_seen: Some(At(node.at)),
        version: Some(node.version.clone()),
        labels: labels(view, &node.node),
        conditions,
        head: Some(node.head.to_string()),
        bus: (!is_folded).then_some(BusView { state: bus, server, reason: why }),
        isolation: text_or_null(&node.isolation),
        trees: text_or_null(&node.trees),
        history: (!is_folded).then(|| LogView {
            bytes: node.log_bytes,
            max_bytes: node.log_bytes_max,
            unavailable: node.log_unavailable.clone(),
        }),
    }
}

/// Says whether a clock is near enough to a controller's for wishes to be taken in time.
fn clock(view: &View<'_>, node: &NodeId) -> ConditionView {
    match view.known.and_then(|known| known.clocks.get(node)) {
        Some(off) if *off < SKEW_MS => condition(Some(true), "AgreesWithController", None),
        Some(_) => condition(Some(false), "FarFromController", None),
        None => condition(None, "NotCompared", None),
    }
}

/// A node that is silent: since when, where it was heard before.
fn missing(node: &NodeId, lost: Option<&NodeStatus>, labels: BTreeMap<String, String>) -> NodeRow {
    let reason = if lost.is_some() { "NoHeartbeat" } else { "NoAnswer" };
    let unknown = || condition(None, reason, lost.map(|lost| lost.at));
    NodeRow {
        node: node.clone(),
        state: "unreachable",
        last_seen: time(lost.map(|lost| lost.at)),
        version: None,
        labels,
        conditions: NodeConditions {
            reachable: unknown(),
            log_writable: unknown(),
            bus_connected: Some(unknown()),
            clock_synced: unknown(),
        },
        head: lost.map(|lost| lost.head.to_string()),
        bus: None,
        isolation: None,
        trees: None,
        history: None,
    }
}

fn condition(status: Option<bool>, reason: &str, since: Option<UnixMicros>) -> ConditionView {
    let status = match status {
        Some(true) => "true",
        Some(false) => "false",
        None => "unknown",
    };
    ConditionView { status, reason: reason.to_owned(), since: time(since) }
}

fn services(view: &View<'_>) -> Vec<ServiceRow> {
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
    services.map(|(name, on_nodes)| service(&on_nodes, of(name), newest(name))).collect()
}

fn service(
    on_nodes: &[&ServiceStatus],
    counts: Counts,
    newest_release: Option<&ReleaseStatus>,
) -> ServiceRow {
    // Each node numbers its own wishes; the newest speaks for the service, and only where all agree.
    let newest = on_nodes.iter().max_by_key(|it| it.generation).expect("a name has a service");
    let agreed = on_nodes.iter().all(|it| it.desired == newest.desired);
    let specs: BTreeSet<_> = on_nodes.iter().map(|it| it.spec).collect();
    ServiceRow {
        service: newest.service.clone(),
        kind: text_or_null(&newest.kind),
        group: text_or_null(&newest.group),
        description: text_or_null(&newest.description),
        owner: text_or_null(&newest.owner),
        docs: text_or_null(&newest.docs),
        desired: agreed.then_some(newest.desired),
        generation: newest.generation.0,
        release: release(newest_release),
        spec: (specs.len() == 1).then(|| digest(&newest.spec)),
        origin: newest.origin.clone(),
        counts,
        // Known where every node knows its own.
        restarts_1h: on_nodes.iter().map(|it| it.restarts_1h).sum(),
        last_rollout: None,
    }
}

/// Says which release runs; `None` where none does.
fn release(known: Option<&ReleaseStatus>) -> Option<RunningView> {
    let known = known?;
    Some(RunningView {
        digest: digest(known.release.as_ref()?),
        version: known.version.clone(),
        generation: known.generation.0,
        state: known.state.clone(),
    })
}

fn instance(node: &NodeStatus, it: &InstanceStatus) -> InstanceRow {
    let service = node.services.iter().find(|service| service.service == it.service);
    let is_unknown = it.state == StateName::Unknown;
    let ended = it.exit.as_ref().map(|ended| EndedView {
        exit: ExitView::of(ended.exit, ended.oom_killed),
        at: At(ended.at),
        ran_ms: ended.ran_ms,
        pid: ended.pid,
        memory_peak_bytes: ended.memory_peak_bytes,
    });
    let told = |it: &Condition| condition(it.status, &it.reason, Some(it.since));
    InstanceRow {
        node: node.node.clone(),
        service: it.service.clone(),
        instance: it.index,
        name: format!("{}/{}@{}", it.service, it.index, node.node),
        run: it.run.0,
        desired: it.desired,
        state: it.state,
        substate: it.substate.clone(),
        reason: it.reason.clone(),
        result: it.result,
        since: At(it.since),
        started_at: time(it.started_at),
        pid: it.pid,
        restarts: (!is_unknown).then_some(it.restarts),
        exit: ended,
        next_attempt_at: time(it.next_attempt_at),
        delay_ms: it.delay_ms,
        generation: service.map(|service| service.generation.0),
        release: release(node.releases.iter().find(|known| known.service == it.service)),
        spec: service.map(|service| digest(&service.spec)),
        overridden_keys: service.map(|it| it.overridden_keys.clone()).unwrap_or_default(),
        conditions: it.conditions.iter().map(|(kind, it)| (kind.clone(), told(it))).collect(),
        health: it.health.iter().map(check).collect(),
        memory_bytes: it.memory_bytes,
        memory_max_bytes: it.memory_bytes_max,
        tasks: it.tasks,
        log_path: it.log_path.clone(),
        last_event: it.last_event.as_ref().map(ToString::to_string),
        beside: it.beside.as_ref().map(beside),
    }
}

fn beside(it: &BesideStatus) -> BesideView {
    BesideView {
        run: it.run.0,
        state: it.state,
        substate: it.substate.clone(),
        pid: it.pid,
        since: At(it.since),
        takes_over: it.takes_over,
    }
}

fn check(it: &CheckStatus) -> CheckRow {
    let status = match it.passing {
        Some(true) => "passing",
        Some(false) => "failing",
        None => "unknown",
    };
    CheckRow {
        check: it.check.clone(),
        status,
        last_at: time(it.last_at),
        interval_ms: it.interval_ms,
        failures: it.failures,
        message: it.message.clone(),
    }
}

fn alert(node: &NodeStatus, it: &AlertStatus) -> AlertRow {
    let place = match it.place.as_str() {
        place if place == node.node.as_str() => place.to_owned(),
        place => format!("{place}@{}", node.node),
    };
    let hash = Hash::digest(format!("{}\0{place}", it.alert));
    AlertRow {
        alert: it.alert.clone(),
        severity: it.severity.clone(),
        state: "firing",
        r#where: place,
        since: At(it.since),
        fingerprint: hash[..4].iter().map(|byte| format!("{byte:02x}")).collect(),
        summary: it.summary.clone(),
        silenced_until: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::sample;

    fn status_json(view: &View<'_>, now: UnixMicros) -> Value {
        json!(super::status_json(view, now))
    }

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
