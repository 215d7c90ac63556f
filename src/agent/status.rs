//! What the node says of itself: the folded state, and what the kernel says of its processes at this moment.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::clock;
use super::names;
use super::task::Agent;
use crate::domain::event::StateName;
use crate::domain::id::{InstanceId, ServiceId};
use crate::domain::instance::{Instance, State};
use crate::domain::node::Service;
use crate::domain::spec::{Kind, Spec};
use crate::ipc::keeper::{Isolation, Trees};
use crate::wire::status::{
    AlertStatus, Condition, ExitStatus, InstanceStatus, NodeStatus, ServiceStatus,
};

/// What the log may take on disk, in bytes: the default of `history.max_size`.
const LOG_BYTES_MAX: u64 = 1 << 30;

impl Agent {
    /// Reads the node's status.
    pub(super) fn status(&mut self) -> NodeStatus {
        let head = self.recorder.head();
        let is_durable = self.recorder.next().0 == head.seq.0 + 1;
        let state_hash = is_durable.then(|| self.state_hash());
        let this = &*self;
        let services = self.node.services();
        NodeStatus {
            fleet: self.setup.fleet.clone(),
            node: self.setup.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at: clock::now().at,
            head: self.recorder.event_id(head.seq),
            bus: self.voice.state().clone(),
            isolation: match &self.hands.isolation {
                Some(Isolation::Accounts) => "accounts".to_owned(),
                Some(Isolation::None { why }) => format!("none: {why}"),
                None => "unknown: the keeper is away".to_owned(),
            },
            trees: match &self.hands.trees {
                Some(Trees::Cgroup { .. }) => "cgroup".to_owned(),
                Some(Trees::ProcessGroup) => "process_group".to_owned(),
                None => "unknown".to_owned(),
            },
            log_bytes: self.recorder.log().reader().allocated_bytes(),
            log_bytes_max: LOG_BYTES_MAX,
            log_unavailable: self.outage().map(str::to_owned),
            state_hash,
            services: services.iter().map(|(id, known)| self.service_status(id, known)).collect(),
            instances: services
                .iter()
                .flat_map(|(id, known)| {
                    known
                        .slots()
                        .filter(|(index, slot)| *index < known.wanted || !slot.state.at_rest())
                        .map(move |(index, slot)| {
                            let instance = InstanceId { service: id.clone(), index };
                            this.instance_status(&instance, known, slot)
                        })
                })
                .collect(),
            alerts: self.alerts(),
        }
    }

    fn service_status(&self, id: &ServiceId, known: &Service) -> ServiceStatus {
        let spec = self.services.spec_of(id).map(|(spec, _)| spec);
        let text = |pick: fn(&Spec) -> String| spec.as_deref().map(pick).unwrap_or_default();
        ServiceStatus {
            service: id.clone(),
            kind: text(|spec| match spec.kind {
                Kind::Daemon => "daemon".to_owned(),
                Kind::Oneshot => "oneshot".to_owned(),
            }),
            group: text(|spec| spec.group.clone().unwrap_or_default()),
            description: text(|spec| spec.description.clone()),
            owner: text(|spec| spec.owner.clone()),
            docs: text(|spec| spec.docs.clone()),
            desired: known.desired,
            generation: known.generation,
            spec: known.digest,
            origin: known.origin.clone(),
            instances: known.wanted,
            desired_by: None,
            desired_at: None,
            overridden_keys: Vec::new(),
        }
    }

    fn instance_status(
        &self,
        id: &InstanceId,
        service: &Service,
        slot: &Instance,
    ) -> InstanceStatus {
        let main = slot.state.main();
        let (memory_bytes, tasks) = self.usage(id, slot);
        let log_path = self.launchers.log_path(&self.services, id);
        let log_bytes = log_path.as_ref().and_then(|path| Some(fs::metadata(path).ok()?.len()));
        let until = match &slot.state {
            State::Backoff { until } => Some(*until),
            _ => None,
        };
        InstanceStatus {
            service: id.service.clone(),
            index: id.index,
            run: slot.last_run,
            desired: service.desired,
            state: slot.state.name(),
            substate: substate(&slot.state),
            reason: reason(&slot.state).or_else(|| self.awaits(id, &slot.state)),
            result: slot.last.as_ref().map(|last| last.result),
            since: slot.since,
            started_at: main.map(|main| main.started_at),
            pid: main.map(|main| main.pid),
            // In a backoff the fold has counted the start that is still to come.
            restarts: slot.backoff.restarts.saturating_sub(u32::from(until.is_some())),
            exit: slot.last.as_ref().and_then(|last| {
                let process = last.process.as_ref()?;
                Some(ExitStatus {
                    exit: process.exit,
                    oom_killed: process.oom_killed,
                    at: last.at,
                    ran_ms: process.ran_ms,
                    pid: process.pid,
                    memory_peak_bytes: None,
                })
            }),
            same_exits: 0,
            next_attempt_at: until,
            delay_ms: until.map(|until| until.ms_since(slot.since)),
            conditions: conditions(slot),
            memory_bytes,
            memory_bytes_max: None,
            tasks,
            log_path: log_path.map(|path| path.display().to_string()),
            log_bytes,
            log_bytes_max: None,
            tail: self.launchers.tail_of(id),
            last_event: None,
        }
    }

    /// Sums the resident memory of a run's processes, and counts them.
    fn usage(&self, id: &InstanceId, slot: &Instance) -> (Option<u64>, Option<u32>) {
        let Some(main) = slot.state.main() else { return (None, Some(0)) };
        let in_cgroup = match &self.hands.trees {
            Some(Trees::Cgroup { root }) => {
                let run = names::run(id, main.run);
                let path = Path::new(root).join(run.as_str()).join("cgroup.procs");
                fs::read_to_string(path).ok()
            }
            Some(Trees::ProcessGroup) | None => None,
        };
        let pids: Vec<u32> = match &in_cgroup {
            Some(text) => text.lines().filter_map(|line| line.parse().ok()).collect(),
            None => vec![main.pid],
        };
        let bytes = pids.iter().filter_map(|pid| resident_bytes(*pid)).sum();
        let tasks = in_cgroup.is_some().then(|| u32::try_from(pids.len()).unwrap_or(u32::MAX));
        (Some(bytes), tasks)
    }

    fn alerts(&self) -> Vec<AlertStatus> {
        let mut alerts = Vec::new();
        for (service, known) in self.node.services() {
            for (index, slot) in known.slots() {
                if !slot.backoff.alerting {
                    continue;
                }
                let place = match known.wanted {
                    0 | 1 => service.to_string(),
                    _ => format!("{service}/{index}"),
                };
                alerts.push(AlertStatus {
                    alert: format!("{service}/restart-limit"),
                    severity: "warning".to_owned(),
                    place,
                    since: slot.backoff.window_since,
                    summary: format!("{} restarts; still trying", slot.backoff.restarts),
                });
            }
        }
        alerts
    }
}

fn substate(state: &State) -> Option<String> {
    let text = match state {
        State::Spawning { .. } => "exec",
        State::Starting { .. } => "startup",
        State::Stopping { phase, .. } => match phase {
            crate::domain::event::StopPhase::PreStop => "pre_stop",
            crate::domain::event::StopPhase::Drain => "drain",
            crate::domain::event::StopPhase::Term => "term",
            crate::domain::event::StopPhase::Kill => "kill",
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

fn reason(state: &State) -> Option<String> {
    match state {
        State::Waiting { on } => {
            let names: Vec<&str> = on.iter().map(ServiceId::as_str).collect();
            Some(format!("waits for {}", names.join(", ")))
        }
        _ => None,
    }
}

fn conditions(slot: &Instance) -> BTreeMap<String, Condition> {
    let condition = |status: Option<bool>, reason: &str| Condition {
        status,
        reason: reason.to_owned(),
        since: slot.since,
    };
    let ready = match slot.state.name() {
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
    [("Ready", ready), ("DependenciesMet", dependencies)]
        .map(|(name, condition)| (name.to_owned(), condition))
        .into()
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
