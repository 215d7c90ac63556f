//! One value of every kind of payload and every type of event, with keys and times that never change.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;

use crate::domain::event::*;
use crate::domain::health::{InstanceHealthy, InstanceUnhealthy};
use crate::domain::id::{
    ActionName, BootId, Digest, EpochId, EventId, Generation, InstanceId, IntentId, NodeId, RunId,
    Seq, ServiceId,
};
use crate::domain::intent::{Action, ActorKind, Verb};
use crate::domain::policy::{Grant, KeyClass, Kind, Names};
use crate::domain::release::*;
use crate::domain::spec::OnFailure;
use crate::domain::time::{Now, UnixMicros};
use crate::wire::codec;
use crate::wire::envelope::seal;
use crate::wire::key::Signer;
use crate::wire::payload::{
    Answer, Ask, Audience, Beat, Enrolled, EventRecord, Intent, Mode, Order, PAYLOAD_VERSION,
    Query, Receipt, Reply, Trust, TrustedKey,
};

/// 2026-11-22T14:02:10.114Z.
pub(in crate::wire) const AT: UnixMicros = UnixMicros(1_795_356_130_114_000);

const LATER: UnixMicros = UnixMicros(1_795_356_190_114_000);
const EPOCH_MS: u64 = 1_795_356_000_000;

/// The key of a person.
pub(in crate::wire) fn alice() -> Signer {
    Signer::from_seed(&[1; 32])
}

/// The key of node `n1`.
pub(in crate::wire) fn node_key() -> Signer {
    Signer::from_seed(&[2; 32])
}

/// The key of a controller.
pub(in crate::wire) fn controller() -> Signer {
    Signer::from_seed(&[4; 32])
}

/// The root key of the fleet.
pub(in crate::wire) fn root() -> Signer {
    Signer::from_seed(&[3; 32])
}

fn node() -> NodeId {
    "n1".parse().unwrap()
}

fn web() -> ServiceId {
    "web".parse().unwrap()
}

fn clear() -> ActionName {
    "cache-clear".parse().unwrap()
}

fn slot() -> InstanceId {
    InstanceId { service: web(), index: 0 }
}

fn epoch() -> EpochId {
    EpochId::new(EPOCH_MS, 0xbeef)
}

fn event_id(seq: u64) -> EventId {
    EventId { origin: node(), epoch: epoch(), seq: Seq(seq) }
}

fn actor() -> Actor {
    Actor {
        kind: ActorKind::Human,
        name: "alice".parse().unwrap(),
        key: Some(alice().kid()),
        note: "sudo by bob".to_owned(),
    }
}

fn run_clear() -> Action {
    Action::Run {
        service: web(),
        action: clear(),
        params: [("scope".to_owned(), "all".to_owned())].into(),
        confirmed: false,
    }
}

pub(in crate::wire) fn intent() -> Intent {
    Intent {
        v: PAYLOAD_VERSION,
        id: IntentId([0x11; 16]),
        iss: alice().kid(),
        iat: AT,
        exp: LATER,
        fleet: "acme".parse().unwrap(),
        mode: Mode::Once,
        action: run_clear(),
        audience: Audience::Nodes(vec![node(), "n2".parse().unwrap()]),
        note: "sudo by bob".to_owned(),
    }
}

pub(in crate::wire) fn query() -> Query {
    Query {
        v: PAYLOAD_VERSION,
        id: IntentId([0x22; 16]),
        iss: alice().kid(),
        iat: AT,
        exp: LATER,
        fleet: "acme".parse().unwrap(),
        audience: Audience::All,
        ask: Ask::Range { after: Some(event_id(41)), events_max: 100, wait_ms: 30_000 },
    }
}

pub(in crate::wire) fn answer() -> Answer {
    Answer {
        v: PAYLOAD_VERSION,
        node: node(),
        cause: IntentId([0x22; 16]),
        at: AT,
        part: 0,
        last: true,
        reply: Reply::Range {
            epoch: epoch(),
            first: Seq(42),
            rows: vec![ByteBuf::from(vec![0x95, 0x01])],
            head: event_id(42),
        },
    }
}

pub(in crate::wire) fn beat() -> Beat {
    Beat {
        v: PAYLOAD_VERSION,
        origin: node(),
        epoch: epoch(),
        seq: Seq(42),
        root: Digest([0x33; 32]),
        state_hash: Digest([0x44; 32]),
        fold: 1,
        at: AT,
        asks: false,
    }
}

pub(in crate::wire) fn trust() -> Trust {
    let grant = Grant {
        verbs: Names::Only(vec![Verb::Restart, Verb::Run]),
        services: Names::Only(vec![web()]),
        nodes: Names::All,
    };
    let key = TrustedKey {
        key: Digest(alice().public().to_bytes()),
        name: "alice".parse().unwrap(),
        class: KeyClass::Human,
        grants: vec![grant],
        until: None,
    };
    Trust {
        v: PAYLOAD_VERSION,
        version: 3,
        fleet: "acme".parse().unwrap(),
        issued: AT,
        keys: vec![key],
        revoked: vec![Signer::from_seed(&[9; 32]).kid()],
        nodes: Vec::new(),
    }
}

/// A trust document with a roster and the key of a controller.
pub(in crate::wire) fn trust_with_roster() -> Trust {
    let controller = TrustedKey {
        key: Digest(controller().public().to_bytes()),
        name: "c1".parse().unwrap(),
        class: KeyClass::Controller,
        grants: Vec::new(),
        until: None,
    };
    let labels = [("env", "prod"), ("role", "web")];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let n1 = Enrolled { node: node(), kid: node_key().kid(), labels };
    Trust { keys: vec![controller], nodes: vec![n1], ..trust() }
}

pub(in crate::wire) fn manifest() -> Manifest {
    Manifest {
        v: MANIFEST_VERSION,
        service: web(),
        version: "2.5.0".to_owned(),
        file: "web.toml".to_owned(),
        spec: "exec = [\"${release}/bin/web\"]\n".to_owned(),
        artifact: Some(Artifact {
            sha256: Digest([0xbb; 32]),
            bytes: 1_048_576,
            format: ArtifactFormat::TarGz,
            from: vec!["http://ci.internal/web-2.5.0.tar.gz".to_owned()],
        }),
        again: None,
    }
}

/// A wish for a release on the nodes of a selection.
pub(in crate::wire) fn deploy() -> Intent {
    Intent {
        mode: Mode::Desired,
        action: Action::Deploy {
            service: web(),
            generation: Generation(42),
            release: codec::encode(&manifest()),
            back_to: Some(ReleaseId(Digest([0xcc; 32]))),
            emergency: None,
            retry: None,
            on_conflict: None,
            rollback: false,
        },
        audience: Audience::Select {
            selector: "env=prod,role=web".to_owned(),
            roster: trust_with_roster().roster_digest(),
        },
        ..intent()
    }
}

/// What a controller has of the log of node `n1`.
pub(in crate::wire) fn receipt() -> Receipt {
    Receipt {
        v: PAYLOAD_VERSION,
        controller: "c1".parse().unwrap(),
        origin: node(),
        epoch: epoch(),
        size: 41,
        root: Digest([0x77; 32]),
        at: AT,
    }
}

/// The step of that wish on one node of its second wave.
pub(in crate::wire) fn order() -> Order {
    let healthy = Event::ReleaseHealthy(ReleaseHealthy {
        generation: Generation(42),
        release: ReleaseId::of(&codec::encode(&manifest())),
        running: Some(Digest([0xdd; 32])),
        ready_ms: 2_100,
        held_ms: 10_000,
    });
    let proof = record(&Context::service(&web()), &healthy);
    Order {
        v: PAYLOAD_VERSION,
        iss: controller().kid(),
        iat: AT,
        fleet: "acme".parse().unwrap(),
        node: node(),
        intent: ByteBuf::from(seal(Kind::Intent, &codec::encode(&deploy()), &alice())),
        step: Step::Apply,
        plan: Digest([0xee; 32]),
        term: 3,
        controller: "c1".parse().unwrap(),
        verified_at: AT,
        wave: 2,
        canary: vec![ByteBuf::from(seal(Kind::Event, &codec::encode(&proof), &node_key()))],
    }
}

/// Returns the record of an event as the agent writes it.
pub(in crate::wire) fn record(context: &Context, event: &Event) -> EventRecord {
    let id = EventId { origin: node(), epoch: epoch(), seq: Seq(42) };
    let now = Now { at: AT, mono_ns: 811_204_114_000 };
    EventRecord::of(id, now, BootId([0x55; 16]), context, event)
}

/// Returns an event of every type, in the order of [`Event::KINDS`].
pub(in crate::wire) fn events() -> Vec<(Context, Event)> {
    let whole = Context::default;
    let about = || Context::service(&web());
    let run = || Context::run(&slot(), RunId(14));
    let asked = || run().because(Some(Cause::Intent(IntentId([0x11; 16]))), Some(actor()));
    let events = [
        log_events(),
        service_events(),
        run_events(),
        wish_events(),
        told_events(),
        crate::domain::release::samples::events(),
        crate::domain::overrides::samples::events(),
        crate::domain::controller::samples::events(),
    ];
    let context = |event: &Event| match event.kind().split('.').next() {
        Some("log" | "agent" | "keeper" | "trust" | "controller" | "node") => whole(),
        Some("service") => about(),
        Some("intent" | "action") => asked(),
        Some("order" | "release") => {
            about().because(Some(Cause::Intent(IntentId([0x11; 16]))), Some(actor()))
        }
        _ => run().because(Some(Cause::Seq(Seq(41))), None),
    };
    events.into_iter().flatten().map(|event| (context(&event), event)).collect()
}

fn log_events() -> Vec<Event> {
    let part = PartStarted {
        version: "0.1.0".to_owned(),
        pid: 4102,
        uid: 990,
        boot: BootId([0x55; 16]),
        after: Some(Exit::Signal { signal: 9, core_dumped: false }),
        away_ms: 1200,
        incarnation: 77,
    };
    vec![
        Event::LogOpened(LogOpened {
            reason: EpochReason::Integrity,
            predecessor: Some(Predecessor {
                epoch: EpochId::new(EPOCH_MS - 1, 1),
                size: 17,
                root: Digest([0x66; 32]),
            }),
            version: "0.1.0".to_owned(),
        }),
        Event::Baseline(Baseline {
            part: 0,
            parts: 2,
            fold: 1,
            state_hash: Digest([0x44; 32]),
            state: vec![0x80],
        }),
        Event::LogRetired(LogRetired {
            epoch: epoch(),
            first: Seq(1),
            last: Seq(40),
            root: Digest([0x33; 32]),
        }),
        Event::LogUnavailable(LogUnavailable {
            kind: "full".to_owned(),
            why: "No space left on device".to_owned(),
        }),
        Event::LogRecovered(LogRecovered {
            unavailable_ms: 90_000,
            late: 12,
            summarized: 3,
            dropped: 0,
        }),
        Event::AgentStarted(part.clone()),
        Event::AgentStopping(AgentStopping { leave_running: true }),
        Event::AgentStopped(PartStopped { services_left_running: true }),
        Event::KeeperStarted(part),
        Event::TrustChanged(TrustChanged { version: 3, digest: Digest([0x77; 32]) }),
    ]
}

fn service_events() -> Vec<Event> {
    vec![
        Event::ServiceAdded(ServiceAdded {
            digest: Digest([0x88; 32]),
            origin: "services.d/web.toml".to_owned(),
            instances: 2,
            desired: Desired::Running,
            keeps: None,
            keys: Vec::new(),
        }),
        Event::ServiceRemoved(ServiceRemoved { digest: Digest([0x88; 32]) }),
        Event::DesiredChanged(DesiredChanged {
            desired: Desired::Stopped,
            generation: Generation(7),
        }),
    ]
}

fn run_events() -> Vec<Event> {
    vec![
        Event::InstanceWaiting(InstanceWaiting {
            from: StateName::Inactive,
            on: vec!["db".parse().unwrap()],
            missing: vec!["db".parse().unwrap()],
        }),
        Event::InstanceStarting(InstanceStarting {
            from: StateName::Waiting,
            fresh: true,
            beside: None,
        }),
        Event::InstanceStarted(InstanceStarted {
            from: StateName::Inactive,
            to: StateName::Starting,
            pid: 40_102,
            pidfd_inode: 88_121,
            spec: Digest([0x88; 32]),
            restarts: 2,
            ready_by: Some(LATER),
            stable_at: None,
            after: BTreeMap::new(),
        }),
        Event::InstanceStartFailed(InstanceStartFailed {
            from: StateName::Inactive,
            to: StateName::Backoff,
            step: "exec".to_owned(),
            errno: 2,
            why: "no such file".to_owned(),
            restarts: 1,
            next_attempt_at: Some(LATER),
            base_ms: 500,
            window_since: AT,
            window_restarts: 1,
        }),
        Event::InstanceReady(InstanceReady { how: "notify".to_owned(), ready_ms: 310 }),
        Event::InstanceExited(InstanceExited {
            from: StateName::Running,
            pid: 40_102,
            exit: Exit::Code(1),
            result: RunResult::ExitCode,
            oom_killed: false,
            ran_ms: 311,
            usage: Usage { cpu_user_ms: 41, cpu_system_ms: 12, memory_peak_bytes: 14_680_064 },
            next: Next::At(LATER),
            delay_ms: 431,
            restarts: 3,
            tail: Some(Detached { hash: Digest([0x99; 32]), bytes: 812 }),
            then: None,
            until: None,
            base_ms: 400,
            window_since: AT,
            window_restarts: 3,
        }),
        Event::InstanceStopping(InstanceStopping {
            from: StateName::Running,
            phase: StopPhase::Term,
            until: LATER,
            then_start: false,
            reason: StopReason::Wish,
        }),
        Event::InstanceStopped(InstanceStopped { next: Next::Inactive, took_ms: 75, fresh: false }),
        Event::InstanceReloading(InstanceReloading { until: LATER }),
        Event::InstanceReloaded(InstanceReloaded {
            failed: Some("timed out".to_owned()),
            took_ms: 30_000,
        }),
        Event::InstanceSignalled(InstanceSignalled {
            intent: IntentId([0x11; 16]),
            signal: 10,
            failed: None,
        }),
        Event::InstanceAdopted(InstanceAdopted {
            pid: 40_102,
            away: "keeper".to_owned(),
            away_ms: 900,
        }),
    ]
}

fn wish_events() -> Vec<Event> {
    let intent = IntentId([0x11; 16]);
    vec![
        Event::IntentAccepted(IntentAccepted {
            intent,
            digest: Digest([0xaa; 32]),
            action: run_clear(),
            expires_at: LATER,
            instances: vec![slot()],
            until: LATER,
            slots: vec![],
            release: None,
        }),
        Event::IntentRefused(IntentRefused {
            intent: Some(intent),
            code: "E0311".to_owned(),
            why: "not granted".to_owned(),
            count: 1,
        }),
        Event::IntentExecuted(IntentExecuted {
            intent,
            outcome: Outcome::Failed {
                code: "E0610".to_owned(),
                why: "it exited with code 3".to_owned(),
                exit: Some(Exit::Code(3)),
            },
        }),
        Event::ActionStarted(ActionStarted { intent, action: clear(), until: LATER }),
        Event::ActionEnded(ActionEnded {
            intent,
            action: clear(),
            exit: Exit::Unknown,
            timed_out: true,
            ran_ms: 60_000,
        }),
    ]
}

fn told_events() -> Vec<Event> {
    vec![
        Event::AlertFired(AlertFired {
            alert: "web/restart-limit".to_owned(),
            severity: "critical".to_owned(),
            summary: "5 restarts in 60 s".to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            line: None,
        }),
        Event::AlertResolved(AlertResolved { alert: "web/restart-limit".to_owned() }),
        Event::LinesDropped(LinesDropped {
            lines: 120,
            bytes: 9_000,
            why: "rate_limit".to_owned(),
        }),
        Event::Summarized(Summarized {
            starts: 4,
            exits: 3,
            first_at: AT,
            last_at: LATER,
            live: Some((RunId(14), 40_102)),
        }),
        Event::InstanceHealthy(InstanceHealthy { check: "app".parse().unwrap(), in_a_row: 1 }),
        Event::InstanceUnhealthy(InstanceUnhealthy {
            check: "deadlock".parse().unwrap(),
            in_a_row: 6,
            on_failure: OnFailure::Restart,
            message: "no answer within 2000ms".to_owned(),
        }),
        Event::InstanceHandedOver(InstanceHandedOver {
            from: RunId(16),
            is_ready: true,
            took_ms: 412,
        }),
    ]
}

#[test]
fn there_is_a_sample_of_every_type_of_event() {
    let sampled: Vec<_> =
        events().iter().map(|(_, event)| (event.kind(), event.critical())).collect();
    assert_eq!(sampled, Event::KINDS);
}
