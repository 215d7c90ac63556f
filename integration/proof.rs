//! `smgr audit verify` against a history that somebody changed: what a person sees, and the exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use smgr::domain::event::{Context, EpochReason, Event, LogOpened, LogRecovered, Predecessor};
use smgr::domain::id::{BootId, Digest, EpochId, EventId, Seq};
use smgr::domain::policy::{KeyClass, Kind};
use smgr::domain::time::{Now, UnixMicros};
use smgr::store::{Log, LogOptions, Opened, Writer};
use smgr::wire::codec;
use smgr::wire::envelope;
use smgr::wire::key::Signer;
use smgr::wire::payload::{EventRecord, PAYLOAD_VERSION, Trust, TrustedKey};

const PATIENCE: Duration = Duration::from_secs(20);
const BEGAN: u64 = 1_795_356_130_000_000;

/// A state folder with the history of two epochs, of two segments each, and the keys that it is held against.
struct Archive {
    temp: tempfile::TempDir,
    /// Apart from other archives: their keys differ.
    seed: u8,
}

fn epoch(n: u16) -> EpochId {
    EpochId::new(BEGAN / 1000, n)
}

impl Archive {
    fn new(seed: u8) -> Self {
        let this = Self { temp: tempfile::tempdir().unwrap(), seed };
        this.write_trust();
        let writer = Writer::start().unwrap();
        let log = this.open(&writer);
        this.segments(&log, epoch(1), None);
        let before = log.begin_epoch(epoch(2), PATIENCE).unwrap().unwrap();
        let before = Predecessor { epoch: before.epoch, size: before.size, root: before.root };
        this.segments(&log, epoch(2), Some(before));
        drop((log, writer));
        this
    }

    fn state(&self) -> &Path {
        self.temp.path()
    }

    fn segment(&self, of: EpochId, first: u64) -> PathBuf {
        self.state().join("log").join(of.token()).join(format!("{first:020}.redb"))
    }

    fn node(&self) -> Signer {
        Signer::from_seed(&[self.seed; 32])
    }

    fn root(&self) -> Signer {
        Signer::from_seed(&[self.seed + 100; 32])
    }

    fn write_trust(&self) {
        let node = TrustedKey {
            key: Digest(self.node().public().to_bytes()),
            name: "n1".parse().unwrap(),
            class: KeyClass::Node,
            grants: vec![],
            until: None,
        };
        let trust = Trust {
            v: PAYLOAD_VERSION,
            version: 1,
            fleet: "acme".parse().unwrap(),
            issued: UnixMicros(BEGAN),
            keys: vec![node],
            revoked: vec![],
            nodes: vec![],
        };
        let sealed = envelope::seal(Kind::Trust, &codec::encode(&trust), &self.root());
        fs::write(self.state().join("trust.smgr"), sealed).unwrap();
        let root = Digest(self.root().public().to_bytes());
        fs::write(self.state().join("root.pub"), format!("{root}\n")).unwrap();
    }

    fn open(&self, writer: &Writer) -> Log {
        let dir = self.state().join("log");
        let mut options = LogOptions::new(dir, "acme".parse().unwrap(), "n1".parse().unwrap());
        options.reserve_bytes = 0;
        match Log::open(options, writer, None, |_| ()).unwrap() {
            Opened::Continues(log) => log,
            Opened::NeedsEpoch(vacant) => vacant.begin(epoch(1)).unwrap(),
        }
    }

    fn segments(&self, log: &Log, of: EpochId, before: Option<Predecessor>) {
        let opened = LogOpened {
            reason: EpochReason::FirstStart,
            predecessor: before,
            version: "0.1.0".to_owned(),
        };
        self.append(log, of, 1, &Event::LogOpened(opened));
        (2..=20).for_each(|seq| self.append(log, of, seq, &told()));
        let baseline = vec![self.row(of, 21, &told())];
        assert!(log.roll(Seq(21), baseline).unwrap().wait(PATIENCE));
        (22..=40).for_each(|seq| self.append(log, of, seq, &told()));
    }

    fn append(&self, log: &Log, of: EpochId, seq: u64, event: &Event) {
        assert!(log.append(Seq(seq), self.row(of, seq, event)).unwrap().wait(PATIENCE));
    }

    fn row(&self, epoch: EpochId, seq: u64, event: &Event) -> Arc<[u8]> {
        let id = EventId { origin: "n1".parse().unwrap(), epoch, seq: Seq(seq) };
        let now = Now { at: UnixMicros(BEGAN + seq), mono_ns: seq };
        let record = EventRecord::of(id, now, BootId([7; 16]), &Context::default(), event);
        envelope::seal(Kind::Event, &codec::encode(&record), &self.node()).into()
    }

    fn smgr(&self, line: &[&str]) -> (Option<i32>, String) {
        let ran = Command::new(env!("CARGO_BIN_EXE_smgr"))
            .args(line)
            .current_dir(self.state())
            .env("SMGR_STATE", self.state())
            .env("SMGR_NATS_SERVER", "off")
            .output()
            .unwrap();
        let text = [ran.stdout, ran.stderr].concat();
        (ran.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Verifies and demands that it is refused with these words.
    fn is_refused(&self, line: &[&str], words: &str) {
        let (code, text) = self.smgr(&[&["audit", "verify"], line].concat());
        assert_eq!(code, Some(9), "{text}");
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }

    fn holds(&self, line: &[&str]) {
        let (code, text) = self.smgr(&[&["audit", "verify"], line].concat());
        assert_eq!(code, Some(0), "{text}");
    }
}

/// An event that changes nothing.
fn told() -> Event {
    Event::LogRecovered(LogRecovered { unavailable_ms: 1, late: 0, summarized: 0, dropped: 0 })
}

#[test]
fn what_is_missing_from_a_history_is_named() {
    Archive::new(1).holds(&[]);

    let archive = Archive::new(1);
    fs::remove_file(archive.segment(epoch(2), 21)).unwrap();
    archive.is_refused(&[], "events from 21 on");

    let archive = Archive::new(1);
    fs::remove_file(archive.segment(epoch(2), 1)).unwrap();
    archive.is_refused(&[], "missing segment: events 1 to 20");
    fs::remove_file(archive.segment(epoch(2), 1).with_extension("tiles")).unwrap();
    archive.is_refused(&[], "missing segment: events 1 to 20");

    let archive = Archive::new(1);
    fs::remove_dir_all(archive.state().join("log").join(epoch(1).token())).unwrap();
    archive.is_refused(&[], "it is missing");

    let archive = Archive::new(1);
    let first = archive.segment(epoch(1), 1);
    fs::copy(&first, first.with_file_name("1.redb")).unwrap();
    archive.is_refused(&[], "its name is none that the log gives");
}

#[test]
fn an_altered_event_of_a_log_that_was_not_closed_is_an_error() {
    let archive = Archive::new(1);
    let writer = Writer::start().unwrap();
    let log = archive.open(&writer);
    archive.append(&log, epoch(2), 41, &told());
    let path = archive.segment(epoch(2), 21);
    let live = fs::read(&path).unwrap();
    drop((log, writer));
    fs::write(&path, &live).unwrap();
    archive.holds(&[]);
    let row = archive.row(epoch(2), 41, &told());
    let places = live.windows(row.len()).enumerate();
    let places: Vec<_> = places.filter(|(_, bytes)| **bytes == *row).map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    let mut bytes = live;
    places.iter().for_each(|at| bytes[at + 100] ^= 1);
    fs::write(&path, &bytes).unwrap();
    archive.is_refused(&[], "event ");
    let (code, text) = archive.smgr(&["audit", "verify", "-o", "json"]);
    assert_eq!(code, Some(9));
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&told["sound"], told["faults"].as_array().unwrap().len()), (&false.into(), 1));
}

#[test]
fn a_pin_belongs_to_a_root_key_and_exchanged_keys_do_not_pass_it_by() {
    let (archive, forged) = (Archive::new(1), Archive::new(2));
    let (code, text) = archive.smgr(&["audit", "pin"]);
    assert_eq!(code, Some(0), "{text}");
    archive.holds(&[]);
    let pins: Vec<_> = fs::read_dir(archive.state().join("pins")).unwrap().collect();
    let pin = pins[0].as_ref().unwrap().path();
    let pin = pin.to_str().unwrap();
    archive.holds(&["--pin", pin]);
    let root = Digest(archive.root().public().to_bytes()).to_string();
    archive.holds(&["--root", &root]);

    forged.holds(&[]);
    forged.is_refused(&["--pin", pin], "under the root key");
    forged.is_refused(&["--root", &root], "the root key of this log is");
    forged.is_refused(&["--pin", "nothing.json"], "cannot be read");
    fs::create_dir(forged.state().join("pins")).unwrap();
    fs::copy(pin, forged.state().join("pins/some.json")).unwrap();
    forged.is_refused(&[], "under the root key");

    fs::remove_dir_all(archive.state().join("log").join(epoch(2).token())).unwrap();
    archive.is_refused(&[], "it is missing");
}

#[test]
fn a_row_that_was_moved_is_not_replayed() {
    let archive = Archive::new(1);
    let writer = Writer::start().unwrap();
    let log = archive.open(&writer);
    let moved = archive.row(epoch(2), 40, &told());
    assert!(log.append(Seq(41), moved).unwrap().wait(PATIENCE));
    drop((log, writer));
    let (code, text) = archive.smgr(&["replay", archive.state().to_str().unwrap()]);
    assert_ne!(code, Some(0), "{text}");
    assert!(text.contains("moved here"), "{text}");
    archive.is_refused(&[], "moved here");
}
