//! What a node says of itself when asked for its status.

mod fleet;
mod folded;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::codec;
use crate::domain::event::{Actor, Desired, Exit, RunResult, StateName};
use crate::domain::id::{
    CheckName, Digest, EventId, FleetId, Generation, NodeId, RunId, ServiceId,
};
use crate::domain::release::Step;
use crate::domain::release::trial::Releases;
use crate::domain::time::UnixMicros;

pub use fleet::{FleetNode, FleetStatus, Intake};
pub use folded::shown;

/// One node, as it sees itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeStatus {
    /// Its fleet.
    pub fleet: FleetId,
    /// Its name.
    pub node: NodeId,
    /// The version of the program.
    pub version: String,
    /// When this was read.
    pub at: UnixMicros,
    /// The last durable event.
    pub head: EventId,
    /// `on`, `off`, or why the bus is not connected.
    pub bus: BusState,
    /// `none` when everything runs under one account.
    pub isolation: String,
    /// `cgroup` or `process_group`: how a whole tree is killed.
    pub trees: String,
    /// Bytes that the log takes on disk.
    pub log_bytes: u64,
    /// Bytes that it may take.
    pub log_bytes_max: u64,
    /// Whether the log takes events; otherwise why not.
    pub log_unavailable: Option<String>,
    /// SHA-256 of the folded state as of `head`; absent while events are on their way to the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_hash: Option<Digest>,
    /// Every service.
    pub services: Vec<ServiceStatus>,
    /// Every instance.
    pub instances: Vec<InstanceStatus>,
    /// Every alert that fires.
    pub alerts: Vec<AlertStatus>,
    /// Releases, for each service that ever had one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub releases: Vec<ReleaseStatus>,
}

/// What a node knows of the releases of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseStatus {
    /// Which service.
    pub service: ServiceId,
    /// The highest number that was taken, that of a return included. The next wish has a higher one.
    pub generation: Generation,
    /// What it runs from; absent: its spec files alone.
    pub release: Option<Digest>,
    /// How people call that.
    pub version: String,
    /// What was good before that.
    pub earlier: Option<Digest>,
    /// `good`, `staging`, `trying`, `returning`, or `failed` where there was nothing to return to.
    pub state: String,
}

impl ReleaseStatus {
    /// Returns what was folded.
    pub fn folded(releases: &BTreeMap<ServiceId, Releases>) -> Vec<Self> {
        let status = |(service, known): (&ServiceId, &Releases)| {
            let mark = known.current.as_ref();
            let good = known.good.iter().rev().filter_map(|good| good.release);
            let state = match &known.trial {
                Some(trial) if trial.step == Step::Return => "returning",
                Some(trial) if trial.trying.is_none() => "staging",
                Some(_) => "trying",
                None if mark.is_some_and(|mark| !mark.healthy) => "failed",
                None => "good",
            };
            Self {
                service: service.clone(),
                generation: known.generation,
                release: mark.map(|mark| mark.release.0),
                version: mark.map(|mark| mark.version.clone()).unwrap_or_default(),
                earlier: good
                    .map(|release| release.0)
                    .find(|release| mark.is_none_or(|mark| mark.release.0 != *release)),
                state: state.to_owned(),
            }
        };
        releases.iter().map(status).collect()
    }

    /// Returns `2.4.1 4f1c9a7b`, or the beginning of its digest alone, for a table.
    pub fn words(&self) -> Option<String> {
        let digest = self.release?.to_string()[..8].to_owned();
        Some(match self.version.is_empty() || self.version == digest {
            true => digest,
            false => format!("{} {digest}", self.version),
        })
    }
}

/// What one answer holds of services, instances and alerts, in bytes: an envelope has room for it and for the rest.
const PART_BYTES_MAX: usize = 48 * 1024;

impl NodeStatus {
    /// Cuts it into parts of which each fits an envelope: a node may have more services than one answer holds.
    pub fn into_parts(mut self) -> Vec<Self> {
        let services = std::mem::take(&mut self.services);
        let instances = std::mem::take(&mut self.instances);
        let alerts = std::mem::take(&mut self.alerts);
        let releases = std::mem::take(&mut self.releases);
        let mut parts = Parts { empty: self.clone(), parts: vec![self], left: PART_BYTES_MAX };
        for service in services {
            parts.room_for(&service).services.push(service);
        }
        for instance in instances {
            parts.room_for(&instance).instances.push(instance);
        }
        for alert in alerts {
            parts.room_for(&alert).alerts.push(alert);
        }
        for release in releases {
            parts.room_for(&release).releases.push(release);
        }
        parts.parts
    }

    /// Takes in another part of the same answer.
    pub fn add_part(&mut self, part: Self) {
        self.services.extend(part.services);
        self.instances.extend(part.instances);
        self.releases.extend(part.releases);
        self.alerts.extend(part.alerts);
    }
}

/// The parts of a status while it is cut.
struct Parts {
    empty: NodeStatus,
    parts: Vec<NodeStatus>,
    left: usize,
}

impl Parts {
    fn room_for(&mut self, item: &impl Serialize) -> &mut NodeStatus {
        let bytes = codec::encode(item).len();
        if bytes > self.left && self.left < PART_BYTES_MAX {
            self.parts.push(self.empty.clone());
            self.left = PART_BYTES_MAX;
        }
        self.left = self.left.saturating_sub(bytes);
        self.parts.last_mut().expect("the first part is there from the begin")
    }
}

/// How the node stands to the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum BusState {
    /// None is configured.
    Off,
    /// Connected.
    Connected {
        /// The server's version.
        server: String,
    },
    /// Not connected.
    Away {
        /// In words.
        why: String,
    },
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServiceStatus {
    /// Its name.
    pub service: ServiceId,
    /// `daemon` or `oneshot`.
    pub kind: String,
    /// Its group, empty for none.
    pub group: String,
    /// In words.
    pub description: String,
    /// Who is asked about it.
    pub owner: String,
    /// Where its runbook is.
    pub docs: String,
    /// What is wanted.
    pub desired: Desired,
    /// The number of that wish.
    pub generation: Generation,
    /// The digest of its spec.
    pub spec: Digest,
    /// Where the spec was read.
    pub origin: String,
    /// How many slots it has.
    pub instances: u16,
    /// On whose authority the wish stands.
    #[serde(default)]
    pub desired_by: Option<Actor>,
    /// Since when it stands.
    #[serde(default)]
    pub desired_at: Option<UnixMicros>,
    /// The keys that layers above the service's own file changed here.
    #[serde(default)]
    pub overridden_keys: Vec<String>,
    /// How often it was started again by policy within the last hour; absent where not all of it was seen.
    #[serde(default)]
    pub restarts_1h: Option<u64>,
}

/// A condition, with Kubernetes' three values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Condition {
    /// `Some(true)`, `Some(false)`, or `None` for unknown.
    pub status: Option<bool>,
    /// One word.
    pub reason: String,
    /// Since when.
    pub since: UnixMicros,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceStatus {
    /// The service.
    pub service: ServiceId,
    /// The slot.
    pub index: u16,
    /// The number of the last start; 0 before the first.
    pub run: RunId,
    /// What is wanted.
    pub desired: Desired,
    /// One of the ten states.
    pub state: StateName,
    /// `prepare`, `startup`, `pre_stop`, `drain`, `term`, `kill`, where the state has parts.
    pub substate: Option<String>,
    /// One clause for people.
    pub reason: Option<String>,
    /// How the last run ended.
    pub result: Option<RunResult>,
    /// Since when it is in this state.
    pub since: UnixMicros,
    /// When the live run began.
    pub started_at: Option<UnixMicros>,
    /// The main process, while it lives.
    pub pid: Option<u32>,
    /// Restarts by policy since the last operator act or stable run; the one that a backoff still waits for is not
    /// counted.
    pub restarts: u32,
    /// The last run that ended.
    pub exit: Option<ExitStatus>,
    /// How many runs in a row ended as the last one did, that one included; 0 when not counted.
    #[serde(default)]
    pub same_exits: u32,
    /// When the next start is tried.
    pub next_attempt_at: Option<UnixMicros>,
    /// The delay of that start, in milliseconds.
    pub delay_ms: Option<u64>,
    /// By type; absent is not evaluated.
    pub conditions: BTreeMap<String, Condition>,
    /// Memory of the whole tree at the time of the call, bytes.
    pub memory_bytes: Option<u64>,
    /// What its limit allows, bytes; `None` for no limit.
    #[serde(default)]
    pub memory_bytes_max: Option<u64>,
    /// Processes of the tree at the time of the call.
    pub tasks: Option<u32>,
    /// The live log file.
    pub log_path: Option<String>,
    /// The size of all its log files together, bytes.
    pub log_bytes: Option<u64>,
    /// What all its log files together may take, bytes.
    #[serde(default)]
    pub log_bytes_max: Option<u64>,
    /// The last lines of the log.
    pub tail: Vec<String>,
    /// The last event about it.
    pub last_event: Option<EventId>,
    /// Its checks, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<CheckStatus>,
    /// The second run of it, in a handover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<BesideStatus>,
}

/// The run beside the one that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BesideStatus {
    /// Which start of the slot.
    pub run: RunId,
    /// Its state.
    pub state: StateName,
    /// As in [`InstanceStatus::substate`].
    pub substate: Option<String>,
    /// Its main process, while it lives.
    pub pid: Option<u32>,
    /// Since when there are two.
    pub since: UnixMicros,
    /// Whether it is to take over; otherwise it was relieved and ends.
    pub takes_over: bool,
}

/// One health check of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheckStatus {
    /// Its name.
    pub check: CheckName,
    /// Whether it passes; `None` while that is not known.
    pub passing: Option<bool>,
    /// When the last answer came.
    pub last_at: Option<UnixMicros>,
    /// The interval to the next probe, in milliseconds; absent while nothing is probed.
    pub interval_ms: Option<u64>,
    /// Bad answers in a row, the last one included.
    pub failures: u32,
    /// The last bad answer, in words.
    pub message: String,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExitStatus {
    /// As the kernel told it.
    pub exit: Exit,
    /// Whether the memory limit ended it.
    pub oom_killed: bool,
    /// When.
    pub at: UnixMicros,
    /// How long it ran, in milliseconds.
    pub ran_ms: u64,
    /// The process.
    pub pid: u32,
    /// The most memory that it had, bytes.
    #[serde(default)]
    pub memory_peak_bytes: Option<u64>,
}

/// One alert that fires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AlertStatus {
    /// `worker/restart-limit`.
    pub alert: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// `worker/0`.
    pub place: String,
    /// Since when.
    pub since: UnixMicros,
    /// In words.
    pub summary: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::envelope::ENVELOPE_BYTES_MAX;

    fn node(services: usize) -> NodeStatus {
        let service = |number| ServiceStatus {
            service: format!("service-{number}").parse().unwrap(),
            kind: "daemon".to_owned(),
            group: String::new(),
            description: "x".repeat(300),
            owner: String::new(),
            docs: String::new(),
            desired: Desired::Running,
            generation: Generation(1),
            spec: Digest([7; 32]),
            origin: "smgr.toml:1".to_owned(),
            instances: 1,
            desired_by: None,
            desired_at: None,
            overridden_keys: Vec::new(),
            restarts_1h: None,
        };
        NodeStatus {
            fleet: "local".parse().unwrap(),
            node: "n1".parse().unwrap(),
            version: "0".to_owned(),
            at: UnixMicros(1),
            head: "n1/00w6j9jtv2g07/1".parse().unwrap(),
            bus: BusState::Off,
            isolation: "none".to_owned(),
            trees: "cgroup".to_owned(),
            log_bytes: 0,
            log_bytes_max: 0,
            log_unavailable: None,
            state_hash: None,
            services: (0..services).map(service).collect(),
            instances: Vec::new(),
            alerts: Vec::new(),
            releases: Vec::new(),
        }
    }

    #[test]
    fn a_status_of_many_services_is_cut_into_parts_that_fit_and_is_whole_again() {
        for services in [0, 1, 1000] {
            let whole = node(services);
            let mut parts = whole.clone().into_parts().into_iter();
            let mut merged = parts.next().unwrap();
            assert!(codec::encode(&merged).len() < ENVELOPE_BYTES_MAX - 1024);
            for part in parts {
                assert!(codec::encode(&part).len() < ENVELOPE_BYTES_MAX - 1024);
                merged.add_part(part);
            }
            assert_eq!(merged, whole);
        }
    }
}
