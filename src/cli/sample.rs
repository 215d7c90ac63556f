//! The machine and the events of the contract's screens, for tests.

use std::collections::BTreeMap;

use crate::domain::event::{
    ActionEnded, ActionStarted, Actor, AgentStopping, AlertFired, AlertResolved, Baseline, Cause,
    Context, Desired, DesiredChanged, Detached, EpochReason, Event, Exit, InstanceAdopted,
    InstanceExited, InstanceHandedOver, InstanceReady, InstanceReloaded, InstanceReloading,
    InstanceSignalled, InstanceStartFailed, InstanceStarted, InstanceStarting, InstanceStopped,
    InstanceStopping, InstanceWaiting, IntentAccepted, IntentExecuted, IntentRefused, LinesDropped,
    LogOpened, LogRecovered, LogRetired, LogUnavailable, Next, Outcome, PartStarted, PartStopped,
    RunResult, ServiceAdded, ServiceRemoved, StateName, StopPhase, StopReason, Summarized,
    TrustChanged, Usage,
};
use crate::domain::health::{InstanceHealthy, InstanceUnhealthy};
use crate::domain::id::{
    BootId, Digest, EpochId, EventId, Generation, IntentId, Kid, RunId, Seq, ServiceId,
};
use crate::domain::intent::{Action, ActorKind};
use crate::domain::spec::OnFailure;
use crate::domain::time::{Now, UnixMicros};
use crate::wire::payload::EventRecord;
use crate::wire::status::{
    AlertStatus, BusState, CheckStatus, Condition, ExitStatus, InstanceStatus, NodeStatus,
    ServiceStatus,
};

const DAY: u64 = 1_795_305_600_000_000;
pub(super) const INTENT: IntentId = IntentId([0x90; 16]);

/// A time of 2026-11-22, written `14:07:40.180`.
pub(crate) fn at(clock: &str) -> UnixMicros {
    let (clock, ms) = clock.split_once('.').unwrap_or((clock, "0"));
    let seconds = clock.split(':').fold(0, |sum, part| sum * 60 + part.parse::<u64>().unwrap());
    UnixMicros(DAY + seconds * 1_000_000 + ms.parse::<u64>().unwrap() * 1000)
}

pub(super) fn epoch() -> EpochId {
    EpochId::new(1_795_305_600_000, 7)
}

pub(crate) fn event_id(seq: u64) -> EventId {
    EventId { origin: "n1".parse().unwrap(), epoch: epoch(), seq: Seq(seq) }
}

fn service(name: &str, instances: u16) -> ServiceStatus {
    ServiceStatus {
        service: name.parse().unwrap(),
        kind: "daemon".to_owned(),
        group: String::new(),
        description: String::new(),
        owner: String::new(),
        docs: String::new(),
        desired: Desired::Running,
        generation: Generation(17),
        spec: Digest([0xb0; 32]),
        origin: format!("services.d/{name}.toml"),
        instances,
        desired_by: None,
        desired_at: None,
        overridden_keys: Vec::new(),
        restarts_1h: Some(0),
    }
}

pub(super) fn running(name: &str, index: u16, up_s: u64, memory_mib: u64) -> InstanceStatus {
    let started = UnixMicros(at("14:07:40").0 - up_s * 1_000_000);
    let ready = Condition { status: Some(true), reason: "Notified".to_owned(), since: started };
    InstanceStatus {
        service: name.parse().unwrap(),
        index,
        run: RunId(12),
        desired: Desired::Running,
        state: StateName::Running,
        substate: None,
        reason: None,
        result: None,
        since: started,
        started_at: Some(started),
        pid: Some(3182),
        restarts: 0,
        exit: None,
        same_exits: 0,
        next_attempt_at: None,
        delay_ms: None,
        conditions: BTreeMap::from([("Ready".to_owned(), ready)]),
        memory_bytes: Some(memory_mib << 20),
        memory_bytes_max: Some(512 << 20),
        tasks: Some(9),
        log_path: Some(format!("/var/log/smgr/{name}/{index}/current")),
        log_bytes: Some(3_250_586),
        log_bytes_max: Some(100 << 20),
        tail: Vec::new(),
        last_event: Some(event_id(17760)),
        health: vec![CheckStatus {
            check: "app".parse().unwrap(),
            passing: Some(true),
            last_at: Some(at("14:07:36.020")),
            interval_ms: Some(5000),
            failures: 0,
            message: String::new(),
        }],
        beside: None,
    }
}

fn crashing_worker() -> InstanceStatus {
    let condition = |status: Option<bool>, reason: &str, since: &str| Condition {
        status,
        reason: reason.to_owned(),
        since: at(since),
    };
    InstanceStatus {
        run: RunId(31),
        health: Vec::new(),
        state: StateName::Backoff,
        reason: Some("exited with code 101".to_owned()),
        result: Some(RunResult::ExitCode),
        since: at("14:06:56.300"),
        started_at: None,
        pid: None,
        restarts: 10,
        exit: Some(ExitStatus {
            exit: Exit::Code(101),
            oom_killed: false,
            at: at("14:06:56.300"),
            ran_ms: 1204,
            pid: 41377,
            memory_peak_bytes: Some(31 << 20),
        }),
        same_exits: 11,
        next_attempt_at: Some(at("14:07:55.200")),
        delay_ms: Some(58_900),
        conditions: BTreeMap::from([
            ("ConfigCurrent".to_owned(), condition(Some(true), "", "14:04:58")),
            ("DependenciesMet".to_owned(), condition(Some(true), "", "14:04:58")),
            ("Healthy".to_owned(), condition(None, "NotRunning", "14:05:02")),
            ("Ready".to_owned(), condition(Some(false), "NotRunning", "14:05:02")),
        ]),
        memory_bytes: None,
        tasks: Some(0),
        tail: vec![
            "14:06:56.2Z stderr  thread 'main' panicked at src/db.rs:44: missing DATABASE_URL"
                .to_owned(),
        ],
        last_event: Some(event_id(18420)),
        ..running("worker", 0, 0, 0)
    }
}

/// The machine of the contract's first screen. The worker comes first in the list.
pub(crate) fn node() -> NodeStatus {
    let alice = Actor {
        kind: ActorKind::Human,
        name: "alice".parse().unwrap(),
        key: Some(Kid([0x51; 16])),
        note: String::new(),
    };
    let worker = ServiceStatus {
        description: "Background jobs".to_owned(),
        owner: "team-shop".to_owned(),
        docs: "https://runbooks.example.com/worker".to_owned(),
        desired_by: Some(alice),
        desired_at: Some(UnixMicros(at("09:12:04").0 - 3 * 86_400_000_000)),
        overridden_keys: vec!["env_files".to_owned()],
        ..service("worker", 1)
    };
    NodeStatus {
        fleet: "acme".parse().unwrap(),
        node: "n1".parse().unwrap(),
        version: "0.1.0".to_owned(),
        at: at("14:07:40"),
        head: event_id(18420),
        bus: BusState::Connected { server: "2.14.6".to_owned() },
        isolation: "accounts".to_owned(),
        trees: "cgroup".to_owned(),
        log_bytes: 12 << 20,
        log_bytes_max: 1 << 30,
        log_unavailable: None,
        state_hash: None,
        services: vec![service("nginx", 1), service("redis", 1), service("web", 2), worker],
        instances: vec![
            crashing_worker(),
            running("web", 1, 7_879, 177),
            running("web", 0, 7_879, 182),
            running("redis", 0, 792_000, 61),
            running("nginx", 0, 792_000, 41),
        ],
        alerts: vec![AlertStatus {
            alert: "worker/restart-limit".to_owned(),
            severity: "warning".to_owned(),
            place: "worker/0".to_owned(),
            since: at("14:06:55"),
            summary: "10 restarts in 2m (limit 10 in 10m); still trying, every 60s".to_owned(),
        }],
        releases: vec![],
    }
}

/// A machine on which nothing runs.
pub(super) fn empty_node() -> NodeStatus {
    NodeStatus { services: vec![], instances: vec![], alerts: vec![], ..node() }
}

/// The machine of the contract's first minute, after the first kill.
pub(super) fn first_minute_node() -> NodeStatus {
    let mut hello = running("hello", 0, 0, 19);
    hello.started_at = Some(at("09:00:22.007"));
    hello.since = at("09:00:22.007");
    hello.restarts = 1;
    hello.result = Some(RunResult::Signal);
    hello.exit = Some(ExitStatus {
        exit: Exit::Signal { signal: 9, core_dumped: false },
        oom_killed: false,
        at: at("09:00:22.004"),
        ran_ms: 12_592,
        pid: 4711,
        memory_peak_bytes: None,
    });
    NodeStatus {
        at: at("09:00:23.100"),
        bus: BusState::Off,
        log_bytes: 65_536,
        services: vec![service("hello", 1)],
        instances: vec![hello],
        alerts: vec![],
        ..node()
    }
}

pub(super) fn node_record(seq: u64, clock: &str, event: &Event) -> EventRecord {
    let id = EventId { origin: "n1".parse().unwrap(), epoch: epoch(), seq: Seq(seq) };
    let now = Now { at: at(clock), mono_ns: 5_120_036_921_000_999 };
    let boot = BootId([0x77, 0xd1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    EventRecord::of(id, now, boot, &Context::default(), event)
}

pub(super) fn record(seq: u64, clock: &str, about: (&str, u16, u64), event: &Event) -> EventRecord {
    let (service, index, run) = about;
    EventRecord {
        service: Some(service.parse::<ServiceId>().unwrap()),
        index: Some(index),
        run: Some(RunId(run)),
        ..node_record(seq, clock, event)
    }
}

pub(super) fn by(kind: ActorKind, name: &str, note: &str) -> Option<Actor> {
    Some(Actor { kind, name: name.parse().unwrap(), key: None, note: note.to_owned() })
}

pub(super) fn policy(record: EventRecord) -> EventRecord {
    EventRecord { by: by(ActorKind::Policy, "policy", ""), ..record }
}

pub(super) fn exited(exit: Exit, result: RunResult, ran_ms: u64, next: Next) -> InstanceExited {
    InstanceExited {
        from: StateName::Running,
        pid: 4711,
        exit,
        result,
        oom_killed: false,
        ran_ms,
        usage: Usage { cpu_user_ms: 41, cpu_system_ms: 12, memory_peak_bytes: 14_680_064 },
        next,
        delay_ms: 0,
        restarts: 1,
        tail: None,
        then: None,
        until: None,
        base_ms: 100,
        window_since: at("09:00:00"),
        window_restarts: 1,
    }
}

pub(super) fn started(pid: u32, restarts: u32) -> Event {
    Event::InstanceStarted(InstanceStarted {
        from: StateName::Inactive,
        to: StateName::Running,
        pid,
        pidfd_inode: 88_121,
        spec: Digest([1; 32]),
        restarts,
        ready_by: None,
        stable_at: None,
        after: BTreeMap::new(),
    })
}

pub(super) fn adopted(pid: u32) -> Event {
    Event::InstanceAdopted(InstanceAdopted { pid, away: "agent".to_owned(), away_ms: 90 })
}

pub(super) fn agent_started() -> Event {
    Event::AgentStarted(PartStarted {
        version: "0.1.0".to_owned(),
        pid: 900,
        uid: 1000,
        boot: BootId([0x77; 16]),
        after: Some(Exit::Signal { signal: 9, core_dumped: false }),
        away_ms: 90,
        incarnation: 7,
    })
}

pub(super) fn hello_started(seq: u64, pid: u32, restarts: u32) -> EventRecord {
    let clock = if restarts == 0 { "09:00:09.412" } else { "09:00:22.007" };
    let run = u64::from(restarts) + 1;
    let record = record(seq, clock, ("hello", 0, run), &started(pid, restarts));
    match restarts {
        0 => EventRecord { by: by(ActorKind::Local, "ana", "run"), ..record },
        _ => policy(record),
    }
}

pub(super) fn hello_exited() -> EventRecord {
    let killed = Exit::Signal { signal: 9, core_dumped: false };
    let event = Event::InstanceExited(exited(killed, RunResult::Signal, 12_592, Next::AtOnce));
    let record = policy(record(29, "09:00:22.004", ("hello", 0, 1), &event));
    EventRecord { cause: Some(Cause::Seq(Seq(28))), ..record }
}

pub(super) fn exited_with_tail() -> EventRecord {
    let tail = Some(Detached { hash: Digest([2; 32]), bytes: 26 });
    let exited = exited(Exit::Code(1), RunResult::ExitCode, 311, Next::Failed);
    let event = Event::InstanceExited(InstanceExited { tail, ..exited });
    record(7, "14:02:36.921", ("web", 0, 14), &event)
}

/// The contract's first minute: started, killed, started again, adopted after the agent was killed.
pub(super) fn first_minute() -> Vec<EventRecord> {
    let added = Event::ServiceAdded(ServiceAdded {
        digest: Digest([1; 32]),
        origin: "services.d/hello.toml".to_owned(),
        instances: 1,
        desired: Desired::Running,
        keeps: None,
        keys: Vec::new(),
    });
    let added = EventRecord {
        service: Some("hello".parse().unwrap()),
        ..node_record(27, "09:00:09.400", &added)
    };
    vec![
        added,
        hello_started(28, 4711, 0),
        hello_exited(),
        hello_started(30, 4730, 1),
        node_record(31, "09:00:35.310", &agent_started()),
        record(32, "09:00:35.312", ("hello", 0, 2), &adopted(4730)),
    ]
}

/// One event of each type, about `web/0`.
pub(super) fn one_of_each() -> Vec<EventRecord> {
    let digest = Digest([1; 32]);
    let until = at("14:08:00");
    let action = Action::Restart { service: "web".parse().unwrap() };
    let name: crate::domain::id::ActionName = "cache-clear".parse().unwrap();
    let Event::AgentStarted(part) = agent_started() else { panic!("it is what it is called") };
    let failed = Outcome::Failed {
        code: "E0612".to_owned(),
        why: "the action failed".to_owned(),
        exit: Some(Exit::Code(3)),
    };
    let events = vec![
        Event::LogOpened(LogOpened {
            reason: EpochReason::FirstStart,
            predecessor: None,
            version: "0.1.0".to_owned(),
        }),
        Event::Baseline(Baseline { part: 0, parts: 1, fold: 1, state_hash: digest, state: vec![] }),
        Event::LogRetired(LogRetired { epoch: epoch(), first: Seq(1), last: Seq(9), root: digest }),
        Event::LogUnavailable(LogUnavailable {
            kind: "full".to_owned(),
            why: "no space".to_owned(),
        }),
        Event::LogRecovered(LogRecovered {
            unavailable_ms: 3000,
            late: 4,
            summarized: 2,
            dropped: 0,
        }),
        Event::AgentStarted(part.clone()),
        Event::AgentStopping(AgentStopping { leave_running: false }),
        Event::InstanceStarting(InstanceStarting {
            from: StateName::Inactive,
            fresh: true,
            beside: None,
        }),
        Event::InstanceSignalled(InstanceSignalled { intent: INTENT, signal: 1, failed: None }),
        Event::AgentStopped(PartStopped { services_left_running: true }),
        Event::KeeperStarted(part),
        Event::TrustChanged(TrustChanged { version: 2, digest }),
        Event::ServiceAdded(ServiceAdded {
            digest,
            origin: "services.d/web.toml".to_owned(),
            instances: 2,
            desired: Desired::Running,
            keeps: None,
            keys: Vec::new(),
        }),
        Event::ServiceRemoved(ServiceRemoved { digest }),
        Event::DesiredChanged(DesiredChanged {
            desired: Desired::Stopped,
            generation: Generation(18),
        }),
        Event::InstanceWaiting(InstanceWaiting {
            from: StateName::Inactive,
            on: vec!["db".parse().unwrap()],
            missing: vec![],
        }),
        started(4711, 0),
        Event::InstanceStartFailed(InstanceStartFailed {
            from: StateName::Backoff,
            to: StateName::Backoff,
            step: "exec".to_owned(),
            errno: 2,
            why: "no such file".to_owned(),
            restarts: 2,
            next_attempt_at: Some(until),
            base_ms: 100,
            window_since: until,
            window_restarts: 2,
        }),
        Event::InstanceReady(InstanceReady { how: "notify".to_owned(), ready_ms: 310 }),
        Event::InstanceHealthy(InstanceHealthy { check: "app".parse().unwrap(), in_a_row: 1 }),
        Event::InstanceUnhealthy(InstanceUnhealthy {
            check: "app".parse().unwrap(),
            in_a_row: 3,
            on_failure: OnFailure::Unready,
            message: "status 503".to_owned(),
        }),
        Event::InstanceHandedOver(InstanceHandedOver {
            from: RunId(1),
            is_ready: true,
            took_ms: 412,
        }),
        Event::InstanceExited(exited(Exit::Code(1), RunResult::ExitCode, 311, Next::At(until))),
        Event::InstanceStopping(InstanceStopping {
            from: StateName::Running,
            phase: StopPhase::Term,
            until,
            then_start: true,
            reason: StopReason::Wish,
        }),
        Event::InstanceStopped(InstanceStopped { next: Next::Inactive, took_ms: 20, fresh: false }),
        Event::InstanceReloading(InstanceReloading { until }),
        Event::InstanceReloaded(InstanceReloaded { failed: None, took_ms: 20 }),
        adopted(4730),
        Event::IntentAccepted(IntentAccepted {
            intent: INTENT,
            digest,
            action,
            expires_at: until,
            until,
            instances: vec![],
            slots: vec![],
            release: None,
        }),
        Event::IntentRefused(IntentRefused {
            intent: Some(INTENT),
            code: "E0323".to_owned(),
            why: "not granted".to_owned(),
            count: 3,
        }),
        Event::IntentExecuted(IntentExecuted { intent: INTENT, outcome: failed }),
        Event::ActionStarted(ActionStarted { intent: INTENT, action: name.clone(), until }),
        Event::ActionEnded(ActionEnded {
            intent: INTENT,
            action: name,
            exit: Exit::Code(3),
            timed_out: false,
            ran_ms: 40,
        }),
        Event::AlertFired(AlertFired {
            alert: "web/restart-limit".to_owned(),
            severity: "warning".to_owned(),
            summary: "10 restarts in 2m".to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            line: None,
        }),
        Event::AlertResolved(AlertResolved { alert: "web/restart-limit".to_owned() }),
        Event::LinesDropped(LinesDropped { lines: 12, bytes: 4096, why: "rate_limit".to_owned() }),
        Event::Summarized(Summarized {
            starts: 3,
            exits: 3,
            first_at: at("14:00:00"),
            last_at: at("14:01:00"),
            live: Some((RunId(3), 77)),
        }),
    ];
    let events = [
        events,
        crate::domain::release::samples::events(),
        crate::domain::overrides::samples::events(),
        crate::domain::controller::samples::events(),
    ]
    .concat();
    (1..)
        .zip(&events)
        .map(|(seq, event)| record(seq, "14:00:00.000", ("web", 0, 1), event))
        .collect()
}
