//! What the log alone says of services and instances: the part of a status that is the same live and at replay.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    AlertStatus, BesideStatus, BusState, CheckStatus, Condition, ExitStatus, InstanceStatus,
    NodeStatus, ReleaseStatus, ServiceStatus,
};
use crate::domain::event::{Exit, StateName, StopPhase};
use crate::domain::health::Check;
use crate::domain::id::{CheckName, EventId, FleetId, InstanceId, NodeId, ServiceId};
use crate::domain::instance::{Instance, LastRun, State};
use crate::domain::node::{Node, Service};
use crate::domain::overrides::Overrides;
use crate::domain::time::UnixMicros;

/// Returns the slots that a status shows: those that are wanted, and those that are not at rest yet.
pub fn shown(
    services: &BTreeMap<ServiceId, Service>,
) -> impl Iterator<Item = (InstanceId, &Service, &Instance)> {
    services.iter().flat_map(|(id, known)| {
        let slots = known.slots();
        let slots = slots.filter(|(index, slot)| *index < known.wanted || !slot.at_rest());
        slots.map(move |(index, slot)| (InstanceId { service: id.clone(), index }, known, slot))
    })
}

impl NodeStatus {
    /// Returns what the log alone says; what only the kernel knows is left out.
    pub fn folded(
        fleet: FleetId,
        node: NodeId,
        state: &Node,
        head: EventId,
        at: UnixMicros,
    ) -> Self {
        let services = state.services();
        Self {
            fleet,
            node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at,
            head,
            bus: BusState::Off,
            isolation: String::new(),
            trees: String::new(),
            log_bytes: 0,
            log_bytes_max: 0,
            log_unavailable: None,
            state_hash: None,
            services: services
                .iter()
                .map(|(id, known)| ServiceStatus {
                    overridden_keys: overridden(state.overrides().get(id)),
                    ..ServiceStatus::folded(id, known)
                })
                .collect(),
            instances: shown(services)
                .map(|(id, known, slot)| InstanceStatus::folded(id, known, slot))
                .collect(),
            alerts: AlertStatus::folded(services),
            releases: ReleaseStatus::folded(state.releases()),
        }
    }
}

/// Returns the keys that wishes set over what a release or a file says. Those of files are known to the node alone.
fn overridden(set: Option<&Overrides>) -> Vec<String> {
    let keys: BTreeSet<&String> =
        set.into_iter().flat_map(|set| set.in_force().map(|(_, key, _)| key)).collect();
    keys.into_iter().cloned().collect()
}

impl ServiceStatus {
    /// Returns what was folded; what stands in the spec is left out.
    pub fn folded(id: &ServiceId, known: &Service) -> Self {
        Self {
            service: id.clone(),
            kind: String::new(),
            group: String::new(),
            description: String::new(),
            owner: String::new(),
            docs: String::new(),
            desired: known.desired,
            generation: known.generation,
            spec: known.digest,
            origin: known.origin.clone(),
            instances: known.wanted,
            desired_by: known.desired_by.clone(),
            desired_at: known.desired_at,
            overridden_keys: Vec::new(),
            restarts_1h: None,
        }
    }
}

impl InstanceStatus {
    /// Returns what was folded; what only the kernel and the files know is left out.
    pub fn folded(id: InstanceId, service: &Service, slot: &Instance) -> Self {
        let main = slot.state.main();
        let until = match &slot.state {
            State::Backoff { until } => Some(*until),
            _ => None,
        };
        Self {
            service: id.service,
            index: id.index,
            run: slot.state.run().unwrap_or(slot.last_run),
            desired: service.desired,
            state: slot.state.name(),
            substate: substate(&slot.state),
            reason: reason(slot),
            result: slot.last.as_ref().map(|last| last.result),
            since: slot.since,
            started_at: main.map(|main| main.started_at),
            pid: main.map(|main| main.pid),
            // In a backoff the fold has counted the start that is still to come.
            restarts: slot.backoff.restarts.saturating_sub(u32::from(until.is_some())),
            exit: slot.last.as_ref().and_then(exit_status),
            same_exits: slot.same_exits,
            next_attempt_at: until,
            delay_ms: until.map(|until| until.ms_since(slot.since)),
            conditions: conditions(service, slot),
            memory_bytes: None,
            memory_bytes_max: None,
            tasks: None,
            log_path: None,
            log_bytes: None,
            log_bytes_max: None,
            tail: Vec::new(),
            last_event: None,
            health: slot
                .checks
                .iter()
                .map(|(name, check)| CheckStatus::folded(name, Some(check)))
                .collect(),
            beside: BesideStatus::folded(slot),
        }
    }

    /// Says that the health of a slot is not known, where it has no checks, or not all of them have told.
    pub fn tell_unknown_health(&mut self, slot: &Instance) {
        let is_failing = self.health.iter().any(|check| check.passing == Some(false));
        let is_told = self.health.iter().all(|check| check.passing.is_some());
        if is_failing || is_told && !self.health.is_empty() {
            return;
        }
        let reason = match (slot.state.main(), self.health.is_empty()) {
            (None, _) => "NotRunning",
            (Some(_), true) => "NoChecks",
            (Some(_), false) => "NotChecked",
        };
        let unknown = Condition { status: None, reason: reason.to_owned(), since: slot.since };
        self.conditions.insert("Healthy".to_owned(), unknown);
    }
}

impl BesideStatus {
    /// Returns what was folded of the run beside the one that counts.
    fn folded(slot: &Instance) -> Option<Self> {
        let beside = slot.beside.as_ref()?;
        Some(Self {
            run: beside.state.run()?,
            state: beside.state.name(),
            substate: substate(&beside.state),
            pid: beside.state.main().map(|main| main.pid),
            since: beside.since,
            takes_over: slot.coming().is_some(),
        })
    }
}

impl CheckStatus {
    /// Returns what was folded; what only the agent counts is left out.
    pub fn folded(name: &CheckName, check: Option<&Check>) -> Self {
        let failing = check.and_then(|check| check.failing.as_ref());
        Self {
            check: name.clone(),
            passing: check.map(|check| check.failing.is_none()),
            last_at: None,
            interval_ms: None,
            failures: 0,
            message: failing.map(|failing| failing.message.clone()).unwrap_or_default(),
        }
    }
}

impl AlertStatus {
    /// Returns the alerts that fire, by service, slot and name.
    pub fn folded(services: &BTreeMap<ServiceId, Service>) -> Vec<Self> {
        let mut alerts = Vec::new();
        for (service, known) in services {
            for (index, slot) in known.slots() {
                let place = match known.wanted {
                    0 | 1 => service.to_string(),
                    _ => format!("{service}/{index}"),
                };
                let alert = |name: &str, since, severity: &str, summary: String| Self {
                    alert: format!("{service}/{name}"),
                    severity: severity.to_owned(),
                    place: place.clone(),
                    since,
                    summary,
                };
                if slot.backoff.alerting {
                    let summary = format!("{} restarts; still trying", slot.backoff.restarts);
                    let since = slot.backoff.window_since;
                    alerts.push(alert("restart-limit", since, "warning", summary));
                }
                alerts.extend(slot.firing.iter().map(|(name, firing)| {
                    alert(name, firing.since, &firing.severity, firing.summary.clone())
                }));
            }
        }
        alerts
    }
}

fn exit_status(last: &LastRun) -> Option<ExitStatus> {
    let process = last.process.as_ref()?;
    Some(ExitStatus {
        exit: process.exit,
        oom_killed: process.oom_killed,
        at: last.at,
        ran_ms: process.ran_ms,
        pid: process.pid,
        memory_peak_bytes: process.memory_peak_bytes,
    })
}

fn substate(state: &State) -> Option<String> {
    let text = match state {
        State::Spawning { .. } => "exec",
        State::Starting { .. } => "startup",
        State::Stopping { phase, .. } => match phase {
            StopPhase::PreStop => "pre_stop",
            StopPhase::Drain => "drain",
            StopPhase::Term => "term",
            StopPhase::Kill => "kill",
        },
        State::Inactive
        | State::Waiting { .. }
        | State::Running { .. }
        | State::Reloading { .. }
        | State::Backoff { .. }
        | State::Completed
        | State::Failed => return None,
    };
    Some(text.to_owned())
}

fn reason(slot: &Instance) -> Option<String> {
    match &slot.state {
        State::Backoff { .. } | State::Failed => {
            let last = slot.last.as_ref()?;
            Some(match last.process.as_ref().map(|process| process.exit) {
                Some(Exit::Code(code)) => format!("exited with code {code}"),
                Some(Exit::Signal { signal, .. }) => format!("ended by signal {signal}"),
                Some(Exit::Unknown) => "nobody saw its end".to_owned(),
                None => match &last.not_started {
                    Some(why) => format!("could not be started: {why}"),
                    None => "could not be started".to_owned(),
                },
            })
        }
        State::Waiting { on } => {
            let names: Vec<&str> = on.iter().map(ServiceId::as_str).collect();
            Some(format!("waits for {}", names.join(", ")))
        }
        State::Running { .. } | State::Reloading { .. } => {
            let failing =
                slot.checks.iter().find_map(|(name, check)| Some((name, check.failing.as_ref()?)));
            match failing {
                Some((name, failing)) => Some(format!("check {name} fails: {}", failing.message)),
                None if slot.gave_up.is_some() && slot.beside.is_none() => {
                    Some("serves on: the run after it did not take over".to_owned())
                }
                None => None,
            }
        }
        _ => None,
    }
}

fn conditions(service: &Service, slot: &Instance) -> BTreeMap<String, Condition> {
    let condition = |status: Option<bool>, reason: &str| Condition {
        status,
        reason: reason.to_owned(),
        since: slot.since,
    };
    // Since the first of them that failed, or the last that came to pass.
    let failing = |is_told: fn(&Check) -> bool| {
        let told = slot.checks.values().filter(|check| is_told(check));
        told.map(|check| check.since).min()
    };
    let checks = |status, reason: &str, since| Condition {
        status: Some(status),
        reason: reason.to_owned(),
        since,
    };
    let unready = failing(Check::is_unready).filter(|_| slot.state.is_ready());
    let ready = match slot.state.name() {
        _ if let Some(since) = unready => checks(false, "ChecksFailed", since),
        StateName::Running | StateName::Reloading => condition(Some(true), "Started"),
        StateName::Starting => condition(Some(false), "Starting"),
        StateName::Stopping => condition(Some(false), "Stopping"),
        StateName::Unknown => condition(None, "Unknown"),
        StateName::Inactive
        | StateName::Waiting
        | StateName::Backoff
        | StateName::Completed
        | StateName::Failed => condition(Some(false), "NotRunning"),
    };
    let dependencies = match &slot.state {
        State::Waiting { .. } => condition(Some(false), "Waiting"),
        _ => condition(Some(true), ""),
    };
    // A run that was started from another spec goes on until it is started anew.
    let is_current = slot.state.main().is_none_or(|main| main.spec == service.digest);
    let reason = if is_current { "" } else { "StartedBefore" };
    let current = condition(Some(is_current), reason);
    let mut conditions = BTreeMap::from(
        [("Ready", ready), ("DependenciesMet", dependencies), ("ConfigCurrent", current)]
            .map(|(name, condition)| (name.to_owned(), condition)),
    );
    let passing_since = slot.checks.values().map(|check| check.since).max();
    let healthy = match (failing(|check| check.failing.is_some()), passing_since) {
        (Some(since), _) => Some(checks(false, "ChecksFailed", since)),
        (None, Some(since)) => Some(checks(true, "ChecksPassed", since)),
        (None, None) => None,
    };
    conditions.extend(healthy.map(|healthy| ("Healthy".to_owned(), healthy)));
    if let Some(since) = slot.adopted_at {
        let adopted = Condition { status: Some(true), reason: "WentOn".to_owned(), since };
        conditions.insert("Adopted".to_owned(), adopted);
    }
    conditions
}
