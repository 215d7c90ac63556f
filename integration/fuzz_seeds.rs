//! The fuzzers' targets over their seeds and over mutations of them, so that every run of the tests covers them.
//!
//! `SMGR_MUTATIONS` sets how many mutations of each target are tried; the generator's start is fixed, so a failure
//! comes again, and `SMGR_TARGET` which of them. `UPDATE_GOLDEN=1` writes the seeds of frames, notes, proofs and of all that
//! comes from outside anew; those of envelopes, payloads and bodies are written by the golden vectors of `wire`, those of
//! segments by `golden`.

mod outside;

#[expect(unreachable_pub, reason = "the targets are a library of their own for the fuzzer")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_bytes::ByteBuf;
use smgr::domain::id::Digest;
use smgr::domain::tree;
use smgr::ipc::frame;
use smgr::ipc::hello::{Hello, Incarnation, Part};
use smgr::ipc::keeper::{
    Account, Answer, Channel, Claim, Exit, Fact, FactNumber, FromKeeper, Isolation, Limit, Moment,
    OperationNumber, Refusal, Resource, RunState, ShutdownMode, Spawn, SpawnFailure, Step, Target,
    ToKeeper, Trees, Usage, Verb, What,
};
use smgr::ipc::local::{LocalAnswer, LocalRequest, RequestId};
use smgr::ipc::uplink::{
    BusConfig, BusCredentials, Confirm, DropCounts, FromUplink, Ticket, ToUplink,
};
use smgr::wire::note::{Checkpoint, Ed25519Signer, Note, NoteSigner as _, TlogProof};

/// How many mutations of a target are tried when nobody says otherwise.
const MUTATIONS: u64 = 2_000;

/// Files have to be written each time, or a connection made.
const SLOW: &[&str] = &["segment", "spec", "archive", "http"];

fn seeds_of(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target)
}

#[test]
fn every_target_survives_its_seeds_and_their_mutations() {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        write_seeds();
    }
    let mutations = std::env::var("SMGR_MUTATIONS").ok().and_then(|text| text.parse().ok());
    let only = std::env::var("SMGR_TARGET").ok();
    let all = targets::TARGETS.iter();
    for (name, target) in all.filter(|(name, _)| only.as_ref().is_none_or(|only| only == name)) {
        let mut paths: Vec<_> = fs::read_dir(seeds_of(name))
            .unwrap_or_else(|why| panic!("{name} has no seeds: {why}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        for (path, seed) in paths.iter().zip(&seeds) {
            try_one(name, *target, seed, &path.display().to_string());
        }
        let count = mutations.unwrap_or(MUTATIONS) / if SLOW.contains(name) { 10 } else { 1 };
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for n in 0..count {
            let mutated = mutate(&seeds, &mut random);
            try_one(name, *target, &mutated, &format!("mutation {n}"));
        }
    }
}

/// A seed that nothing is read of begins no search.
#[test]
fn every_seed_of_payloads_and_bodies_is_read_as_what_its_first_byte_says() {
    let targets: [(&str, fn(&[u8]) -> bool); 2] =
        [("payload", targets::reads_payload), ("event_body", targets::reads_event_body)];
    for (name, reads) in targets {
        for entry in fs::read_dir(seeds_of(name)).unwrap() {
            let path = entry.unwrap().path();
            assert!(reads(&fs::read(&path).unwrap()), "{}", path.display());
        }
    }
}

fn try_one(name: &str, target: fn(&[u8]), bytes: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
        let kept = std::env::temp_dir().join(format!("smgr-fuzz-{name}"));
        fs::write(&kept, bytes).unwrap();
        panic!("{name} does not survive {what}, kept in {}", kept.display());
    }
}

/// Is SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Bytes that MessagePack, lengths and texts turn on.
const TELLING: &[u8] = &[
    0x00, 0x01, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xc4, 0xc6, 0xc9, 0xcb,
    0xcf, 0xd3, 0xd9, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xe0, 0xff, b'\n', b'"', b'[', b'=', b'-',
];

fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            _ if bytes.is_empty() => bytes.push(random.next() as u8),
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = TELLING[random.below(TELLING.len())],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, TELLING[random.below(TELLING.len())]),
            4 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let end = (from + random.below(64)).min(other.len());
                bytes.splice(at..at, other[from..end].iter().copied());
            }
        }
    }
    bytes
}

fn write_seeds() {
    outside::write_seeds();
    for (kind, name, bytes) in frames() {
        put("frame", name, &[&[kind], bytes.as_slice()].concat());
    }
    let signer = Ed25519Signer::from_secret("smgr/acme/n1", &[5; 32]).unwrap();
    let other = tree::leaf(b"the other row");
    let root = tree::node(tree::leaf(b"the only row"), other);
    let origin = "smgr/acme/n1/0ddi3l6o7ojnk".to_owned();
    let text = Checkpoint { origin, size: 2, root }.to_string();
    let checkpoint = Note { signatures: vec![signer.sign(&text)], text };
    put("note", "checkpoint", checkpoint.to_string().as_bytes());
    let two = vec![signer.sign("another text"), signer.sign("a third text")];
    put(
        "note",
        "two",
        Note { text: "one line\n".to_owned(), signatures: two }.to_string().as_bytes(),
    );
    let proof =
        TlogProof { extra: Some(b"n1".to_vec()), index: 0, hashes: vec![other], checkpoint };
    put("proof", "of-two", proof.to_string().as_bytes());
    let long = TlogProof { extra: None, hashes: vec![Digest([1; 32]); 63], ..proof };
    put("proof", "long", long.to_string().as_bytes());
}

fn put(target: &str, name: &str, bytes: &[u8]) {
    fs::create_dir_all(seeds_of(target)).unwrap();
    fs::write(seeds_of(target).join(name), bytes).unwrap();
}

fn written<T: Serialize>(kind: u8, name: &'static str, message: &T) -> (u8, &'static str, Vec<u8>) {
    (kind, name, frame::encode(message).unwrap())
}

/// Returns frames of every protocol, each with the number that the target gives it.
fn frames() -> Vec<(u8, &'static str, Vec<u8>)> {
    [to_keeper(), from_keeper(), uplink(), local()].concat()
}

fn hello(part: Part) -> Hello {
    Hello {
        part,
        protocol: 1,
        build: "0.1.0".to_owned(),
        incarnation: Incarnation(7),
        before: None,
    }
}

fn to_keeper() -> Vec<(u8, &'static str, Vec<u8>)> {
    let operate =
        |name, verb| written(0, name, &ToKeeper::Operate { number: OperationNumber(3), verb });
    let run = || "web.0.14".parse().unwrap();
    let slot = || "web.0".parse().unwrap();
    let spawn = Spawn {
        run: run(),
        slot: slot(),
        argv: vec!["/usr/bin/web".to_owned(), "--port".to_owned(), "80".to_owned()],
        env: vec![("PATH".to_owned(), "/usr/bin".to_owned())],
        working_dir: "/srv".to_owned(),
        account: Some(Account { uid: 33, gid: 33, groups: vec![4] }),
        umask: 0o022,
        limits: vec![Limit { resource: Resource::Files, soft: 1024, hard: u64::MAX }],
        oom_score_adjust: -500,
        no_new_privileges: true,
        notify: true,
        ready_fd: Some(3),
        sockets: Vec::new(),
        is_errand: false,
        memo: ByteBuf::from(b"memo".to_vec()),
    };
    let claim = Claim { run: run(), pid: 40_102, memo: ByteBuf::from(vec![0xff]) };
    vec![
        written(0, "to-keeper-hello", &ToKeeper::Hello(hello(Part::Agent))),
        operate("spawn", Verb::Spawn(Box::new(spawn))),
        operate(
            "signal",
            Verb::Signal { run: run(), signal: 15, to: Target::Tree, operation: Some([7; 16]) },
        ),
        operate("kill-tree", Verb::KillTree { run: run() }),
        operate("list", Verb::List { after: Some(run()) }),
        operate("take-descriptors", Verb::TakeDescriptors { slot: slot() }),
        operate(
            "give-descriptors",
            Verb::GiveDescriptors {
                slot: slot(),
                channels: vec![Channel::Stdout, Channel::Notify],
                runs: vec![claim],
            },
        ),
        operate("close-slot", Verb::CloseSlot { slot: slot() }),
        operate("acknowledge", Verb::Acknowledge { through: FactNumber(9) }),
        operate("shutdown", Verb::Shutdown(ShutdownMode::Drain)),
    ]
}

fn from_keeper() -> Vec<(u8, &'static str, Vec<u8>)> {
    let answer =
        |name, answer| written(1, name, &FromKeeper::Answer { number: OperationNumber(3), answer });
    let run = || "web.0.14".parse().unwrap();
    let state = RunState {
        run: run(),
        slot: "web.0".parse().unwrap(),
        memo: ByteBuf::new(),
        pid: 40_102,
        inode: 88_121,
        adopted: false,
        main_lives: true,
        tree_lives: true,
    };
    let fact = |name, what| {
        let at = Moment { unix_us: 1_795_356_130_114_000, mono_ns: 811_204_114_000 };
        let memo = ByteBuf::from(b"memo".to_vec());
        let fact = Fact { number: FactNumber(4), run: run(), memo, at, what };
        written(1, name, &FromKeeper::Fact(fact))
    };
    let usage = Usage { user_us: 41_000, system_us: 12_000, rss_kib_max: 14_336 };
    let hello = FromKeeper::Hello {
        hello: hello(Part::Keeper),
        trees: Trees::Cgroup { root: "/sys/fs/cgroup/smgr".to_owned() },
        isolation: Isolation::None { why: "not root".to_owned() },
    };
    vec![
        written(1, "from-keeper-hello", &hello),
        answer("done", Answer::Done),
        answer(
            "spawned",
            Answer::Spawned { pid: 40_102, inode: 88_121, channels: vec![Channel::Stderr] },
        ),
        answer("not-spawned", Answer::NotSpawned(SpawnFailure { step: Step::Exec, errno: 2 })),
        answer("runs", Answer::Runs { runs: vec![state], more: true }),
        answer("descriptors", Answer::Descriptors { channels: vec![], runs: vec![run()] }),
        answer(
            "refused",
            Answer::Refused(Refusal::Kernel { what: "open a pidfd".to_owned(), errno: 24 }),
        ),
        fact("fact-spawned", What::Spawned { pid: 40_102, inode: 88_121 }),
        fact(
            "fact-exited",
            What::Exited {
                pid: 40_102,
                exit: Exit::Signal { signal: 9, core: false },
                usage: Some(usage),
                tree_empty: true,
                ran_ms: Some(311),
            },
        ),
        fact("fact-tree-gone", What::TreeGone),
    ]
}

fn uplink() -> Vec<(u8, &'static str, Vec<u8>)> {
    let configure = ToUplink::Configure(BusConfig {
        urls: vec!["nats://127.0.0.1:4222".to_owned()],
        credentials: BusCredentials::Anonymous,
        ca: Some("/etc/smgr/ca.pem".into()),
        client: None,
        principal: "n1".parse().unwrap(),
        retain_events: Some("acme".parse().unwrap()),
    });
    let publish = ToUplink::Publish {
        ticket: Ticket(1),
        to: "smgr.v1.acme.event.n1".to_owned(),
        bytes: ByteBuf::from(vec![0x95, 1]),
        keep_ms: 500,
        confirm: Confirm::Flushed,
    };
    let filters = vec!["smgr.v1.acme.wish.n1.*".to_owned()];
    let delivered = FromUplink::Delivered {
        ticket: Ticket(2),
        subject: "smgr.v1.acme.wish.n1.restart".to_owned(),
        reply: Some("_INBOX.alice.1".to_owned()),
        bytes: ByteBuf::from(vec![0x95, 1]),
    };
    let up = FromUplink::BusUp { version: "2.11.0".to_owned(), session: 1, encrypted: true };
    let drops = DropCounts { malformed: 1, oversize: 2, overflow: 3 };
    vec![
        written(2, "configure", &configure),
        written(2, "publish", &publish),
        written(2, "subscribe", &ToUplink::Subscribe { ticket: Ticket(2), filters }),
        written(2, "unsubscribe", &ToUplink::Unsubscribe { ticket: Ticket(2) }),
        written(2, "to-uplink-credit", &ToUplink::Credit(64)),
        written(3, "delivered", &delivered),
        written(3, "bus-up", &up),
        written(3, "bus-down", &FromUplink::BusDown { why: "refused".to_owned() }),
        written(3, "dropped", &FromUplink::Dropped(drops)),
    ]
}

fn local() -> Vec<(u8, &'static str, Vec<u8>)> {
    let bytes = || ByteBuf::from(vec![0x95, 1]);
    let refused = LocalAnswer::Refused {
        id: RequestId(1),
        code: "E0302".to_owned(),
        why: "not an envelope".to_owned(),
    };
    vec![
        written(4, "envelope", &LocalRequest::Envelope { id: RequestId(1), bytes: bytes() }),
        written(4, "read", &LocalRequest::Read { id: RequestId(2), bytes: bytes() }),
        written(4, "cancel", &LocalRequest::Cancel { id: RequestId(2) }),
        written(5, "local-hello", &LocalAnswer::Hello(hello(Part::Agent))),
        written(5, "answer", &LocalAnswer::Answer { id: RequestId(1), bytes: bytes() }),
        written(5, "end", &LocalAnswer::End { id: RequestId(1) }),
        written(5, "local-refused", &refused),
    ]
}
