//! The log under `kill -9`: a child writes, is killed at a random moment, and what it was told is there.
//!
//! `SMGR_KILLS` sets the number of kills.

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use smgr::domain::id::{EpochId, Seq};
use smgr::store::{
    AppendError, EventPos, Log, LogNotice, LogOptions, LogReader, Opened, Writer, verify,
};
use smgr::wire::note::Ed25519Signer;

const FOLDER: &str = "SMGR_TEST_LOG";

fn options(dir: &Path) -> LogOptions {
    let mut options = LogOptions::new(dir, "demo".parse().unwrap(), "n1".parse().unwrap());
    options.segment_bytes = 512 << 10;
    options.reserve_bytes = 1 << 20;
    options
}

fn signer() -> Ed25519Signer {
    Ed25519Signer::from_secret("smgr/demo/n1", &[5; 32]).unwrap()
}

fn row(seq: u64) -> Vec<u8> {
    let mut row = format!("row {seq} ").into_bytes();
    row.resize(100 + (seq * 7919 % 400) as usize, b'.');
    row
}

/// Is no test by itself: [`an_acknowledged_row_survives_kill_9`] runs it in a process of its own.
#[test]
fn kill_child() {
    let Some(dir) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let writer = Writer::start().unwrap();
    let (full, segment_full) = sync_channel(1);
    let tell = move |notice| {
        if let LogNotice::Durable { seq, .. } = notice {
            let mut out = std::io::stdout().lock();
            writeln!(out, "durable {seq}").and_then(|()| out.flush()).unwrap();
        } else if let LogNotice::SegmentFull = notice {
            // One that was told and not yet acted upon is enough.
            full.try_send(()).unwrap_or_default();
        } else if let LogNotice::Damaged { at, why } = notice {
            panic!("damaged at {at:?}: {why}");
        }
    };
    let log = match Log::open(options(&dir), &writer, Some(Box::new(signer())), tell).unwrap() {
        Opened::Continues(log) => log,
        Opened::NeedsEpoch(vacant) => {
            assert!(vacant.predecessor().is_none(), "{vacant:?}");
            vacant.begin(EpochId::new(1_795_000_000_000, 1)).unwrap()
        }
    };
    let mut replayed = 0;
    let last = log
        .replay(|seq, bytes| {
            assert_eq!(bytes, row(seq.0));
            replayed += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(last, log.head().seq);
    for seq in last.0 + 1.. {
        let accepted = if segment_full.try_recv().is_ok() {
            log.roll(Seq(seq), vec![Arc::from(row(seq))])
        } else {
            log.append(Seq(seq), row(seq))
        };
        let ticket = accepted.unwrap_or_else(|error| panic!("{}", refused(&error)));
        // Now many rows in flight, now one.
        if seq % 50 == 0 || seq % 1000 < 20 {
            assert!(ticket.wait(Duration::from_secs(20)));
        }
    }
}

fn refused(error: &AppendError) -> String {
    format!("a row was refused: {error}")
}

/// Lets a child write for `life`, kills it, and returns the last row that it was told is durable.
fn live_and_die(dir: &Path, life: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::kill_child", "--nocapture"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || {
        let durable = lines.map_while(Result::ok);
        durable.filter_map(|line| line.strip_prefix("durable ")?.parse().ok()).max().unwrap_or(0)
    });
    // The moment of the kill is what varies.
    std::thread::sleep(life);
    child.kill().unwrap();
    let ended = child.wait().unwrap();
    assert_eq!(ended.signal(), Some(9), "the child ended by itself");
    reader.join().unwrap()
}

#[test]
fn an_acknowledged_row_survives_kill_9() {
    let kills = std::env::var("SMGR_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("log");
    let mut acknowledged = 0;
    for n in 0..kills {
        // Primes, so that the kills fall on every part of a start and of a commit.
        let life = Duration::from_micros(20_000 + n * 7_919 % 110_000);
        acknowledged = live_and_die(&dir, life).max(acknowledged);
        let names =
            std::fs::read_dir(&dir).into_iter().flatten().map(|entry| entry.unwrap().path());
        let files = names.filter(|path| path.is_dir()).flat_map(|epoch| epoch.read_dir().unwrap());
        for file in files.map(|entry| entry.unwrap().path()) {
            let name = file.to_string_lossy();
            assert!(!name.contains("quarantined"), "kill {n} left a sound file set aside: {name}");
        }
        // Read as the kill left it: nobody has opened or repaired it.
        let mut last = 0;
        LogReader::new(&dir)
            .rows(None, |pos, bytes| {
                assert_eq!((pos.seq.0, bytes), (last + 1, row(last + 1).as_slice()));
                last += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(last >= acknowledged, "kill {n}: {last} rows, {acknowledged} were acknowledged");
    }
    assert!(acknowledged > 0, "no child lived long enough");
    let judge = |pos: EventPos, bytes: &[u8]| {
        if bytes == row(pos.seq.0) { Ok(()) } else { Err("another row".to_owned()) }
    };
    let report = verify(&dir, &[signer().public()], &[], judge).unwrap();
    assert_eq!(report.faults, []);
    assert!(report.epochs[0].last.0 >= acknowledged);
}
