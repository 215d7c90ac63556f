//! Measurements, run by hand: `cargo test --lib store::tests::speed -- --ignored --nocapture`.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::time::Instant;

use super::{PATIENCE, Place};
use crate::domain::id::Seq;
use crate::store::{AppendError, Log, LogNotice, LogReader, verify};

fn row() -> Vec<u8> {
    vec![7; 256]
}

fn fill(log: &Log, rows: u64) {
    let mut seq = log.appended().1.0;
    let end = seq + rows;
    while seq < end {
        match log.append(Seq(seq + 1), row()) {
            Ok(_) => seq += 1,
            Err(AppendError::Busy { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn say(what: &str, n: u64, began: Instant) {
    let took = began.elapsed();
    let rate = n as f64 / took.as_secs_f64();
    writeln!(std::io::stderr(), "{what}: {n} in {took:?}, {rate:.0}/s").unwrap();
}

#[test]
#[ignore = "a measurement, not a test"]
fn a_full_segment_is_written_scanned_verified_and_opened_after_a_crash() {
    let mut place = Place::new();
    place.options.cache_bytes = crate::store::CACHE_BYTES;
    let open = place.open();
    let rows = 250_000;
    for in_flight in [1, 512, 16_384] {
        let began = Instant::now();
        let n = rows * in_flight / 16_900 + 1;
        let mut tickets = std::collections::VecDeque::new();
        for _ in 0..n {
            let seq = Seq(open.log.appended().1.0 + 1);
            while tickets.len() as u64 >= in_flight {
                let oldest: crate::store::Ticket = tickets.pop_front().unwrap();
                assert!(oldest.wait(PATIENCE));
            }
            tickets.push_back(open.log.append(seq, row()).unwrap());
        }
        assert!(tickets.pop_back().unwrap().wait(PATIENCE));
        say(&format!("append, {in_flight} in flight"), n, began);
    }
    fill(&open.log, rows - open.log.appended().1.0);
    let total = open.log.appended().1.0;
    let ticket = open.log.append(Seq(total + 1), row()).unwrap();
    assert!(ticket.wait(PATIENCE));
    for _ in 0..2 {
        let began = Instant::now();
        let mut bytes = 0;
        open.log
            .replay(|_, row| {
                bytes += row.len();
                ControlFlow::Continue(())
            })
            .unwrap();
        say("scan through the engine", total, began);
    }
    // The live file, copied, is what a kill -9 leaves.
    let crashed = Place::new();
    let path = &place.segments()[0];
    let copy = crate::store::layout::segment_path(&crashed.options.dir, super::epoch(1), 1);
    std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
    std::fs::copy(path, &copy).unwrap();
    drop(open);

    let began = Instant::now();
    crate::store::quarantine::pre_check(&copy).unwrap();
    say("check before opening", total, began);
    let began = Instant::now();
    let open = crashed.open();
    say("open after a crash", total, began);
    let mut n = 0;
    open.log
        .replay(|_, _| {
            n += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    say("open after a crash, and all rows", n, began);
    open.expect(|notice| matches!(notice, LogNotice::RootChecked { .. }).then_some(()));
    say("open after a crash, and the root", n, began);
    drop(open);

    let began = Instant::now();
    let mut n = 0;
    LogReader::new(&place.options.dir)
        .rows(None, |_, _| {
            n += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    say("scan of the pages", n, began);
    let began = Instant::now();
    let report = verify(&place.options.dir, &[super::key()], &[], |_, _| Ok(())).unwrap();
    assert_eq!(report.faults, []);
    say("verify", report.epochs[0].rows, began);
}
