//! What the node says of itself: the folded state, and what the kernel says of its processes at this moment.

use std::fs;
use std::path::Path;

use super::clock;
use super::names;
use super::task::Agent;
use crate::domain::id::{InstanceId, Seq, ServiceId};
use crate::domain::instance::Instance;
use crate::domain::node::Service;
use crate::domain::spec::Kind;
use crate::ipc::keeper::{Isolation, Trees};
use crate::ipc::place;
use crate::wire::status::{
    AlertStatus, Condition, InstanceStatus, NodeStatus, ReleaseStatus, ServiceStatus, shown,
};

/// What the log may take on disk, in bytes: the default of `history.max_size`.
const LOG_BYTES_MAX: u64 = 1 << 30;

impl Agent {
    /// Reads the node's status.
    pub(super) fn status(&mut self) -> NodeStatus {
        let head = self.recorder.head();
        let state_hash = self.state_hash_at(head.seq);
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
            instances: shown(services)
                .map(|(id, known, slot)| self.instance_status(&id, known, slot))
                .collect(),
            alerts: AlertStatus::folded(services),
            releases: self.release_status(),
        }
    }

    /// Where its spec forbids to go back, nothing is offered to go back to.
    fn release_status(&self) -> Vec<ReleaseStatus> {
        let mut all = ReleaseStatus::folded(self.node.releases());
        for status in &mut all {
            let spec = self.services.spec_of(&status.service);
            if spec.is_some_and(|(spec, _)| !spec.verdict.rollback) {
                status.earlier = None;
            }
        }
        all
    }

    fn service_status(&self, id: &ServiceId, known: &Service) -> ServiceStatus {
        let mut status = ServiceStatus::folded(id, known);
        status.restarts_1h = self.restarts.of(id, clock::now().at);
        if let Some((spec, _)) = self.services.spec_of(id) {
            status.kind = match spec.kind {
                Kind::Daemon => "daemon".to_owned(),
                Kind::Oneshot => "oneshot".to_owned(),
            };
            status.group = spec.group.clone().unwrap_or_default();
            status.description.clone_from(&spec.description);
            status.owner.clone_from(&spec.owner);
            status.docs.clone_from(&spec.docs);
            status.overridden_keys = self.services.overridden(id).to_vec();
        }
        status
    }

    fn instance_status(
        &self,
        id: &InstanceId,
        service: &Service,
        slot: &Instance,
    ) -> InstanceStatus {
        let (memory_bytes, tasks) = self.usage(id, slot);
        let log_path = self.launchers.log_path(&self.services, id);
        let log_bytes = log_path.as_ref().and_then(|path| folder_bytes(path.parent()?));
        let spec = self.services.spec_of(&id.service);
        let last_events = self.last_events.get(&id.service);
        let last_event = last_events
            .and_then(|slots| slots.get(usize::from(id.index)))
            .filter(|seq| **seq != Seq(0))
            .map(|seq| self.recorder.event_id(*seq));
        let folded = InstanceStatus::folded(id.clone(), service, slot);
        let health = self.check_status(id, slot);
        let mut status = InstanceStatus {
            reason: folded.reason.clone().or_else(|| self.awaits(id, &slot.state)),
            memory_bytes,
            tasks,
            log_path: log_path.map(|path| path.display().to_string()),
            log_bytes,
            log_bytes_max: spec
                .map(|(spec, _)| spec.log.max_size.0 * u64::from(spec.log.max_files)),
            tail: self.launchers.tail_of(id),
            last_event,
            health,
            ..folded
        };
        let degraded = self.degraded(id, slot).map(|degraded| ("Degraded".to_owned(), degraded));
        status.conditions.extend(degraded);
        status.tell_unknown_health(slot);
        status
    }

    /// Says where a process runs with less than its spec asks for.
    fn degraded(&self, id: &InstanceId, slot: &Instance) -> Option<Condition> {
        let (spec, _) = self.services.spec_of(&id.service)?;
        if !spec.credential.is_empty()
            && let Some(main) = slot.state.main()
            && !place::is_in_memory(&self.queries.place.runtime())
        {
            let reason = "CredentialsOnDisk".to_owned();
            return Some(Condition { status: Some(true), reason, since: main.started_at });
        }
        let wanted = spec.limits.oom_score_adjust;
        let main = slot.state.main().filter(|_| wanted != 0)?;
        // Only the privileged may lower it: what a process got in truth is known to the kernel alone.
        let reason =
            (oom_score_adjust(main.pid)? != wanted).then(|| "OomScoreAdjust".to_owned())?;
        Some(Condition { status: Some(true), reason, since: main.started_at })
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
}

/// Sums the files of a log.
fn folder_bytes(folder: &Path) -> Option<u64> {
    let files = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    Some(files.filter_map(|file| Some(file.metadata().ok()?.len())).sum())
}

fn oom_score_adjust(pid: u32) -> Option<i16> {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?;
    text.trim().parse().ok()
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
