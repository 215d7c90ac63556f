//! A log that this version wrote once: every later version must open, verify and fold it.
//!
//! `UPDATE_GOLDEN=1` writes `integration/golden/log-v1` anew, and the seeds of the fuzzer of segments. The state
//! hash belongs to a version of the folding rules and is compared only with that.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use smgr::domain::event::{
    Actor, AgentStopping, Cause, Context, Desired, DesiredChanged, EpochReason, Event, Exit,
    InstanceExited, InstanceStarted, InstanceStarting, InstanceStopped, InstanceStopping,
    IntentAccepted, IntentExecuted, LogOpened, Next, Outcome, PartStarted, RunResult, ServiceAdded,
    StateName, StopPhase, StopReason, TrustChanged, Usage,
};
use smgr::domain::id::{
    BootId, Digest, EpochId, EventId, Generation, InstanceId, IntentId, RunId, Seq, ServiceId,
};
use smgr::domain::intent::{Action, ActorKind};
use smgr::domain::node::{FOLD_VERSION, Node};
use smgr::domain::policy::{Holder, KeyClass, Kind};
use smgr::domain::time::{Now, UnixMicros};
use smgr::store::{Log, LogOptions, LogReader, Opened, Pin, Writer, verify};
use smgr::wire::codec;
use smgr::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use smgr::wire::fold::{self, Fold};
use smgr::wire::key::{Keyring, Signer};
use smgr::wire::payload::EventRecord;

const PATIENCE: Duration = Duration::from_secs(20);
const BEGAN: u64 = 1_795_356_130_000_000;
const INTENT: IntentId = IntentId([0x11; 16]);

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/golden")
}

fn signer() -> Signer {
    Signer::from_seed(&[2; 32])
}

fn epoch() -> EpochId {
    EpochId::new(BEGAN / 1000, 0xbeef)
}

fn options(dir: &Path) -> LogOptions {
    let mut options = LogOptions::new(dir, "acme".parse().unwrap(), "n1".parse().unwrap());
    options.reserve_bytes = 0;
    options
}

fn row(seq: u64, context: &Context, event: &Event) -> Vec<u8> {
    let id = EventId { origin: "n1".parse().unwrap(), epoch: epoch(), seq: Seq(seq) };
    let now =
        Now { at: UnixMicros(BEGAN + seq * 1000), mono_ns: 811_204_114_000 + seq * 1_000_000 };
    let record = EventRecord::of(id, now, BootId([0x55; 16]), context, event);
    envelope::seal(Kind::Event, &codec::encode(&record), &signer())
}

/// The short life of a node: a service crashes once, is stopped by a person, and the node goes down.
fn history() -> Vec<(Context, Event)> {
    let web: ServiceId = "web".parse().unwrap();
    let slot = InstanceId { service: web.clone(), index: 0 };
    let (whole, about) = (Context::default, || Context::service(&web));
    let run = |number| Context::run(&slot, RunId(number));
    let alice = Actor {
        kind: ActorKind::Human,
        name: "alice".parse().unwrap(),
        key: Some(Signer::from_seed(&[1; 32]).kid()),
        note: "sudo by bob".to_owned(),
    };
    let asked =
        |context: Context| context.because(Some(Cause::Intent(INTENT)), Some(alice.clone()));
    let part = PartStarted {
        version: "0.1.0".to_owned(),
        pid: 4102,
        uid: 990,
        boot: BootId([0x55; 16]),
        after: None,
        away_ms: 0,
        incarnation: 77,
    };
    let opened = LogOpened {
        reason: EpochReason::FirstStart,
        predecessor: None,
        version: "0.1.0".to_owned(),
    };
    let added = ServiceAdded {
        digest: Digest([0x88; 32]),
        origin: "services.d/web.toml".to_owned(),
        instances: 2,
        desired: Desired::Running,
        keeps: None,
        keys: Vec::new(),
    };
    let accepted = IntentAccepted {
        intent: INTENT,
        digest: Digest([0xaa; 32]),
        action: Action::Stop { service: web.clone() },
        expires_at: UnixMicros(BEGAN + 60_000_000),
        instances: vec![slot.clone()],
        until: UnixMicros(BEGAN + 60_000_000),
        slots: Vec::new(),
        release: None,
    };
    let outcome = Outcome::Done { changed: true };
    vec![
        (whole(), Event::LogOpened(opened)),
        (whole(), Event::AgentStarted(part.clone())),
        (whole(), Event::KeeperStarted(part)),
        (whole(), Event::TrustChanged(TrustChanged { version: 3, digest: Digest([0x77; 32]) })),
        (about(), Event::ServiceAdded(added)),
        (run(1), starting(StateName::Inactive)),
        (run(1), started()),
        (run(1), exited(Exit::Code(1), RunResult::ExitCode, next_at())),
        (run(2), starting(StateName::Backoff)),
        (run(2), started()),
        (asked(about()), Event::IntentAccepted(accepted)),
        (
            asked(about()),
            Event::DesiredChanged(DesiredChanged {
                desired: Desired::Stopped,
                generation: Generation(1),
            }),
        ),
        (
            asked(run(2)),
            Event::InstanceStopping(InstanceStopping {
                from: StateName::Running,
                phase: StopPhase::Term,
                until: UnixMicros(BEGAN + 30_000_000),
                then_start: false,
                reason: StopReason::Wish,
            }),
        ),
        (
            run(2),
            exited(
                Exit::Signal { signal: 15, core_dumped: false },
                RunResult::Success,
                Next::Stopping,
            ),
        ),
        (
            run(2),
            Event::InstanceStopped(InstanceStopped {
                next: Next::Inactive,
                took_ms: 75,
                fresh: false,
            }),
        ),
        (asked(about()), Event::IntentExecuted(IntentExecuted { intent: INTENT, outcome })),
        (whole(), Event::AgentStopping(AgentStopping { leave_running: false })),
    ]
}

fn next_at() -> Next {
    Next::At(UnixMicros(BEGAN + 500_000))
}

fn starting(from: StateName) -> Event {
    Event::InstanceStarting(InstanceStarting {
        from,
        fresh: from == StateName::Inactive,
        beside: None,
    })
}

fn started() -> Event {
    Event::InstanceStarted(InstanceStarted {
        from: StateName::Starting,
        to: StateName::Running,
        pid: 40_102,
        pidfd_inode: 88_121,
        spec: Digest([0x88; 32]),
        restarts: 0,
        ready_by: None,
        stable_at: None,
        after: BTreeMap::new(),
    })
}

fn exited(exit: Exit, result: RunResult, next: Next) -> Event {
    Event::InstanceExited(InstanceExited {
        from: StateName::Running,
        pid: 40_102,
        exit,
        result,
        oom_killed: false,
        ran_ms: 311,
        usage: Usage { cpu_user_ms: 41, cpu_system_ms: 12, memory_peak_bytes: 14_680_064 },
        next,
        delay_ms: 431,
        restarts: 1,
        tail: None,
        then: (next == Next::Stopping).then_some(Next::Inactive),
        until: (next == Next::Stopping).then_some(UnixMicros(BEGAN + 30_000_000)),
        base_ms: 400,
        window_since: UnixMicros(BEGAN),
        window_restarts: 1,
    })
}

/// Writes the history in a first segment and its baseline in a second one.
fn write(dir: &Path) {
    if dir.exists() {
        fs::remove_dir_all(dir).unwrap();
    }
    let writer = Writer::start().unwrap();
    let note_key = Box::new(signer().for_notes("smgr/acme/n1").unwrap());
    let opened = Log::open(options(dir), &writer, Some(note_key), |_| ()).unwrap();
    let Opened::NeedsEpoch(vacant) = opened else { panic!("the folder is new") };
    let log = vacant.begin(epoch()).unwrap();
    let mut node = Node::default();
    let mut seq = 0;
    let mut sealed = |context: &Context, event: &Event| {
        seq += 1;
        (Seq(seq), row(seq, context, event))
    };
    for (context, event) in history() {
        let (seq, row) = sealed(&context, &event);
        let mut fold = Fold::new(&mut node);
        assert!(fold.row(seq, &row).is_continue(), "{:?}", fold.broken);
        log.append(seq, row).unwrap();
    }
    let rows: Vec<_> =
        fold::baseline(&node).iter().map(|part| sealed(&Context::default(), part)).collect();
    let first = rows[0].0;
    let rows = rows.into_iter().map(|(_, row)| Arc::from(row)).collect();
    assert!(log.roll(first, rows).unwrap().wait(PATIENCE));
    let head = log.head();
    drop((log, writer));
    let told = json!({
        "fold": FOLD_VERSION,
        "state_hash": fold::state_hash(&node).to_string(),
        "epoch": head.epoch.token(),
        "size": head.seq.0,
        "root": head.root.to_string(),
    });
    fs::write(dir.with_extension("json"), serde_json::to_string_pretty(&told).unwrap() + "\n")
        .unwrap();
}

fn told() -> Value {
    serde_json::from_str(&fs::read_to_string(golden().join("log-v1.json")).unwrap()).unwrap()
}

fn folded(rows: impl FnOnce(&mut Fold<'_>)) -> Digest {
    let mut node = Node::default();
    let mut fold = Fold::new(&mut node);
    rows(&mut fold);
    assert_eq!((fold.broken.take(), fold.passed_over), (None, 0));
    fold::state_hash(&node)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.path() {
            path if path.is_dir() => copy(&path, &to.join(entry.file_name())),
            path => drop(fs::copy(path, to.join(entry.file_name())).unwrap()),
        }
    }
}

#[test]
fn a_log_of_the_first_version_opens_verifies_and_folds_to_its_state() {
    let dir = golden().join("log-v1");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        write(&dir);
        let seeds = golden().join("../../fuzz/seeds/segment");
        fs::create_dir_all(&seeds).unwrap();
        for epoch in LogReader::new(&dir).epochs().unwrap() {
            for (n, segment) in (1..).zip(&epoch.segments) {
                fs::copy(&segment.path, seeds.join(format!("segment-{n}"))).unwrap();
            }
        }
    }
    let told = told();
    let size = told["size"].as_u64().unwrap();

    let mut ring = Keyring::default();
    let name = "n1".parse().unwrap();
    ring.insert(
        signer().public(),
        Holder { name, class: KeyClass::Node, grants: Vec::new(), until: None },
    );
    let judge = |_, row: &[u8]| {
        let sealed = envelope::read(row, ENVELOPE_BYTES_MAX).map_err(|why| why.to_string())?;
        sealed.open(&ring).map(drop).map_err(|why| why.to_string())
    };
    let pin = Pin {
        epoch: EpochId::from_token(told["epoch"].as_str().unwrap()).unwrap(),
        size,
        root: told["root"].as_str().unwrap().parse().unwrap(),
    };
    let keys = [signer().public().for_notes("smgr/acme/n1").unwrap()];
    let report = verify(&dir, &keys, &[pin], judge).unwrap();
    assert_eq!(report.faults, []);
    assert_eq!(report.epochs[0].rows, size);

    // From the first event on, as an auditor reads.
    let mut rows = Vec::new();
    LogReader::new(&dir)
        .rows(None, |_, row| {
            rows.push(row.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
    for ((seq, row_there), (context, event)) in (1..).zip(&rows).zip(&history()) {
        assert_eq!(*row_there, row(seq, context, event), "row {seq}");
    }
    let whole = folded(|fold| {
        for (seq, row) in (1..).zip(&rows) {
            let _flow = fold.row(Seq(seq), row);
        }
    });
    // From the last baseline on, as the agent starts.
    let place = tempfile::tempdir().unwrap();
    copy(&dir, place.path());
    let writer = Writer::start().unwrap();
    let Opened::Continues(log) = Log::open(options(place.path()), &writer, None, |_| ()).unwrap()
    else {
        panic!("the log is sound")
    };
    assert_eq!(log.head().seq, Seq(size));
    let short = folded(|fold| {
        log.replay(|seq, row| fold.row(seq, row)).unwrap();
    });
    assert_eq!(whole, short);
    if told["fold"] == FOLD_VERSION {
        assert_eq!(told["state_hash"], whole.to_string());
    }
}
