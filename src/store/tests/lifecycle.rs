//! Append, roll, seal, epochs and reading, as an owner sees them.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

use super::{Open, PATIENCE, Place, epoch, row};
use crate::domain::id::Seq;
use crate::domain::tree::check_consistency;
use crate::store::{
    AppendError, EpochReason, EventPos, Expired, Log, LogNotice, LogReader, OpenLogError, Opened,
    ProveError, RangeEnd, RangeLimits, ReadError, Retention, Told, Writer, expired, layout, verify,
};
use crate::wire::note::{Checkpoint, TlogProof};

const ALL: RangeLimits = RangeLimits { rows: usize::MAX, bytes: usize::MAX };

#[test]
fn rows_that_come_together_are_durable_together() {
    let place = Place::new();
    let open = place.open();
    for first in [1, 4, 7] {
        let rows = (first..first + 3).map(|seq| row(seq).into()).collect();
        let ticket = open.log.append_all(Seq(first), rows).unwrap();
        assert_eq!(ticket.seq(), Seq(first + 2));
        assert!(ticket.wait(PATIENCE));
        let durable = open.expect(|notice| match notice {
            LogNotice::Durable { seq, .. } => Some(seq),
            _ => None,
        });
        assert_eq!(durable, ticket.seq());
    }
    let refused = open.log.append_all(Seq(11), vec![row(11).into()]);
    assert!(matches!(refused, Err(AppendError::OutOfOrder { expected: Seq(10), .. })));
}

#[test]
fn rows_that_were_acknowledged_are_there_after_reopening() {
    let place = Place::new();
    let open = place.open();
    open.append(1001);
    let head = open.log.head();
    assert_eq!(head.seq, Seq(1001));
    drop(open);

    let open = place.open();
    assert_eq!(open.log.head(), head);
    let expected: Vec<_> = (1..=1001).map(|seq| (seq, row(seq))).collect();
    assert_eq!(open.replayed(), expected);
    let checked = open.expect(|notice| match notice {
        LogNotice::RootChecked { seq } => Some(seq),
        other => panic!("{other:?}"),
    });
    assert_eq!(checked, Seq(1001));
}

#[test]
fn a_row_that_does_not_follow_is_refused_and_changes_nothing() {
    let place = Place::new();
    let open = place.open();
    open.append(3);
    for wrong in [0, 1, 3, 5, u64::MAX] {
        let refused = open.log.append(Seq(wrong), row(wrong)).unwrap_err();
        assert_eq!(refused, AppendError::OutOfOrder { given: Seq(wrong), expected: Seq(4) });
    }
    let large = vec![0; crate::wire::envelope::ENVELOPE_BYTES_MAX + 1];
    assert!(matches!(open.log.append(Seq(4), large), Err(AppendError::TooLarge { .. })));
    open.append(4);
    assert_eq!(open.replayed().len(), 4);
}

#[test]
fn durable_is_told_once_a_batch_and_in_order() {
    let place = Place::new();
    let open = place.open();
    open.append(2000);
    let mut last = 0;
    while last < 2000 {
        last = open.expect(|notice| match notice {
            LogNotice::Durable { seq, .. } => {
                assert!(seq.0 > last);
                Some(seq.0)
            }
            _ => None,
        });
    }
}

#[test]
fn a_segment_begins_with_its_baseline_and_the_one_before_is_sealed() {
    let place = Place::new();
    let open = place.open();
    open.append(300);
    open.roll(301);
    open.append(310);
    let sealed = open.expect(|notice| match notice {
        LogNotice::Sealed { first, last } => Some((first, last)),
        _ => None,
    });
    assert_eq!(sealed, (Seq(1), Seq(300)));
    assert_eq!(open.replayed()[0], (301, row(301)));
    assert!(layout::tiles_path(&place.segments()[0]).exists());
    drop(open);
    assert_eq!(place.open().replayed().len(), 10);
}

#[test]
fn a_full_segment_is_told_once() {
    let mut place = Place::new();
    // Above what the smallest segment takes, or the one that is rolled to would be full as well.
    place.options.segment_bytes = 256 << 10;
    let open = place.open();
    open.append(500);
    open.append(1500);
    open.roll(1501);
    let sizes: Vec<u64> =
        place.segments().iter().map(|path| layout::allocated_bytes(path).unwrap()).collect();
    assert!(sizes[0] >= 256 << 10 && sizes[1] < 256 << 10, "{sizes:?}");
    let Open { log, notices, _writer: writer } = open;
    // What the writer says comes behind what it makes durable: all of it is there when it has ended.
    drop((log, writer));
    let full = notices.iter().filter(|notice| matches!(notice, LogNotice::SegmentFull)).count();
    assert_eq!(full, 1);
}

fn ranged(open: &Open, from: EventPos, limits: RangeLimits) -> (Vec<u64>, RangeEnd) {
    let mut seqs = Vec::new();
    let end = open.log.range(from, limits, |pos, bytes| {
        assert_eq!(bytes, row(pos.seq.0));
        seqs.push(pos.seq.0);
        ControlFlow::Continue(())
    });
    (seqs, end.unwrap())
}

#[test]
fn a_range_crosses_segments_and_goes_on_where_it_stopped() {
    let place = Place::new();
    let open = place.open();
    open.append(300);
    open.roll(301);
    open.append(600);
    open.roll(601);
    open.append(650);
    let at = |seq| EventPos { epoch: epoch(1), seq: Seq(seq) };

    let mut all = Vec::new();
    let mut from = at(1);
    let limits = RangeLimits { rows: 70, bytes: 10_000 };
    let next = loop {
        let (seqs, end) = ranged(&open, from, limits);
        all.extend(seqs);
        match end {
            RangeEnd::More { next } => from = next,
            RangeEnd::Head { next, head } => break (next, head),
            RangeEnd::EpochOver { .. } => panic!("the epoch is the newest"),
        }
    };
    assert_eq!(next, (at(651), Seq(650)));
    assert_eq!(all, (1..=650).collect::<Vec<_>>());
    assert_eq!(ranged(&open, at(299), ALL).0.first(), Some(&299));
    let tiny = RangeLimits { rows: 10, bytes: 1 };
    assert_eq!(ranged(&open, at(5), tiny), (vec![5], RangeEnd::More { next: at(6) }));
    let unknown = EventPos { epoch: epoch(9), seq: Seq(1) };
    let refused = open.log.range(unknown, ALL, |_, _| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(ReadError::UnknownEpoch(_))));
}

#[test]
fn another_epoch_names_the_one_before_and_counts_from_one() {
    let place = Place::new();
    let open = place.open();
    open.append(50);
    let before = open.log.head();
    let predecessor = open.log.begin_epoch(epoch(0), PATIENCE).unwrap().unwrap();
    assert_eq!((predecessor.epoch, predecessor.size), (epoch(1), 50));
    assert_eq!(predecessor.root, before.root);
    open.append(5);
    let old = EventPos { epoch: epoch(1), seq: Seq(1) };
    assert_eq!(ranged(&open, old, ALL).1, RangeEnd::EpochOver { last: Seq(50) });
    drop(open);

    // Its number is lower, as after a clock that went back: the link decides which is newer.
    let open = place.open();
    assert_eq!(open.log.head().epoch, epoch(0));
    assert_eq!(open.log.predecessor(), Some(predecessor));
    let mut rows = Vec::new();
    let reader = LogReader::new(&place.options.dir);
    reader
        .rows(None, |pos, _| {
            rows.push((pos.epoch, pos.seq.0));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(rows.len(), 55);
    assert_eq!((rows[0], rows[54]), ((epoch(1), 1), (epoch(0), 5)));
}

#[test]
fn a_row_of_the_next_epoch_is_durable_only_with_its_epoch() {
    let (place, mood) = super::disk::moody();
    let open = place.open();
    open.append(3);
    mood.stall(true);
    assert_eq!(open.log.begin_epoch(epoch(2), Duration::from_millis(20)), Ok(None));
    let ticket = open.log.append(Seq(1), row(1)).unwrap();
    assert!(!ticket.wait(Duration::from_millis(20)));
    mood.stall(false);
    assert!(ticket.wait(PATIENCE));
    assert_eq!((open.log.head().epoch, open.log.head().seq), (epoch(2), Seq(1)));
}

#[test]
fn one_writer_serves_several_logs_and_a_stranger_is_kept_out() {
    let places = [Place::new(), Place::new(), Place::new()];
    let writer = Writer::start().unwrap();
    let open = |place: &Place| match Log::open(place.options.clone(), &writer, None, |_| ()) {
        Ok(Opened::NeedsEpoch(vacant)) => vacant.begin(epoch(1)).unwrap(),
        other => panic!("{other:?}"),
    };
    let logs = places.each_ref().map(open);
    let tickets: Vec<_> = (1..=300)
        .flat_map(|seq| logs.iter().map(move |log| log.append(Seq(seq), row(seq)).unwrap()))
        .collect();
    assert!(tickets.iter().all(|ticket| ticket.wait(PATIENCE)));
    let second = Log::open(places[0].options.clone(), &writer, None, |_| ());
    assert!(matches!(second, Err(OpenLogError::InUse { .. })));
    drop(writer);
    for place in &places {
        assert_eq!(place.open().replayed().len(), 300);
    }
}

#[test]
fn a_head_is_signed_a_second_after_a_change_and_not_without_one() {
    let place = Place::new();
    let open = place.open();
    let began = Instant::now();
    open.append(20);
    let note = open.expect(|notice| match notice {
        LogNotice::Checkpoint { note } => Some(note),
        _ => None,
    });
    assert!(began.elapsed() > Duration::from_millis(500));
    assert_eq!(super::key().verify(&note), Ok(None));
    let checkpoint = Checkpoint::parse(&note.text).unwrap();
    assert_eq!(checkpoint.origin, format!("smgr/demo/n1/{}", epoch(1).token()));
    assert_eq!((checkpoint.size, checkpoint.root), (20, open.log.head().root));
    assert!(open.notices.recv_timeout(Duration::from_millis(1300)).is_err());
}

#[test]
fn what_retention_dropped_is_still_proved_by_its_tiles() {
    let place = Place::new();
    let files = place.three_segments();
    let keep = Retention { max_bytes: 0, max_age: Duration::from_secs(3600), keep_min: 2 };
    let old = expired(&place.options.dir, &keep, SystemTime::now()).unwrap();
    assert_eq!(old.len(), 1);
    assert_eq!((old[0].first, old[0].last), (Seq(1), Seq(300)));
    old[0].drop_rows().unwrap();
    assert!(!files[0].exists());

    let open = place.open();
    let from = EventPos { epoch: epoch(1), seq: Seq(5) };
    let dropped = open.log.range(from, ALL, |_, _| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(dropped, ReadError::Dropped { first: Seq(301) }));
    let judge = |pos: EventPos, _: &[u8]| {
        let Expired { epoch, last, root, .. } = old[0];
        let gone = Told::Retired { epoch, last, root };
        Ok(if pos.seq == Seq(900) { gone } else { Told::Nothing })
    };
    let report = verify(&place.options.dir, &[super::key()], &[], judge).unwrap();
    assert_eq!(report.faults, []);
    assert_eq!((report.epochs[0].dropped, report.epochs[0].rows), (300, 600));
}

#[test]
fn a_clock_that_jumps_ahead_does_not_delete_a_history() {
    let place = Place::new();
    let files = place.three_segments();
    let keep = Retention { keep_min: 1, ..Retention::default() };
    let late = SystemTime::now() + Duration::from_secs(3650 * 24 * 3600);
    let expired = || expired(&place.options.dir, &keep, late).unwrap().len();
    assert_eq!(expired(), 0);
    let newest = std::fs::File::options().write(true).open(&files[2]).unwrap();
    newest.set_modified(late).unwrap();
    assert_eq!(expired(), 1);
}

#[test]
fn a_row_is_proved_by_one_text_file_even_after_its_neighbours_were_dropped() {
    let place = Place::new();
    place.three_segments();
    let reader = LogReader::new(&place.options.dir);
    let keep = Retention { max_bytes: 0, max_age: Duration::ZERO, keep_min: 1 };
    for old in expired(&place.options.dir, &keep, SystemTime::now()).unwrap() {
        old.drop_rows().unwrap();
    }
    for seq in [1, 300, 301, 777, 900] {
        let proof = reader.prove(EventPos { epoch: epoch(1), seq: Seq(seq) }).unwrap().to_string();
        let proof = TlogProof::parse(proof.as_bytes()).unwrap();
        assert_eq!(proof.verify(&row(seq), &super::key()).unwrap().size, 900);
        assert!(proof.verify(&row(seq + 1), &super::key()).is_err());
    }
    let beyond = reader.prove(EventPos { epoch: epoch(1), seq: Seq(901) });
    assert!(matches!(beyond, Err(ProveError::NotSigned(Seq(901)))));

    let open = place.open();
    let old = open.log.head();
    open.append(1000);
    let new = open.log.head();
    let proof = reader.prove_extension(epoch(1), old.seq.0, new.seq.0).unwrap();
    check_consistency(old.seq.0, old.root, new.seq.0, new.root, &proof).unwrap();
    let short = reader.prove_extension(epoch(1), 5, 2000);
    assert!(matches!(short, Err(ProveError::Short { have: 1000, need: 2000 })));
}

#[test]
fn a_crash_between_a_segment_and_the_sealing_of_the_last_is_made_good() {
    let place = Place::new();
    let open = place.open();
    open.append(300);
    drop(open);
    let unsealed = place.dir.path().join("unsealed");
    std::fs::copy(&place.segments()[0], &unsealed).unwrap();
    let open = place.open();
    open.roll(301);
    drop(open);
    // As if the power went before the footer, and while the segment after was being made.
    std::fs::copy(&unsealed, &place.segments()[0]).unwrap();
    std::fs::remove_file(layout::tiles_path(&place.segments()[0])).unwrap();
    std::fs::write(layout::unfinished_path(&place.segments()[1]), b"half").unwrap();

    let open = place.open();
    open.expect(|notice| matches!(notice, LogNotice::Sealed { .. }).then_some(()));
    assert_eq!(open.log.head().seq, Seq(301));
    drop(open);
    let report = verify(&place.options.dir, &[super::key()], &[], |_, _| Ok(())).unwrap();
    assert_eq!(report.faults, []);
}

#[test]
fn an_owner_that_cannot_fold_a_row_sets_the_file_aside_and_begins_another_epoch() {
    let place = Place::new();
    let open = place.open();
    open.append(100);
    let reason = "event 61 does not follow".to_owned();
    let vacant = open.log.clone().quarantine_from(Seq(61), reason.clone(), PATIENCE).unwrap();
    assert_eq!(vacant.reason(), &EpochReason::Damaged { why: reason });
    let predecessor = vacant.predecessor().unwrap();
    assert_eq!((predecessor.epoch, predecessor.size), (epoch(1), 60));
    let mut rows = 0;
    vacant
        .replay(|_, _| {
            rows += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(rows, 60);
    assert_eq!(open.log.append(Seq(101), row(101)).unwrap_err(), AppendError::Closed);

    // The power goes before the epoch begins: the old one must not go on after the gap.
    drop((vacant, open));
    let (vacant, writer) = place.open_vacant();
    let size = vacant.predecessor().unwrap().size;
    let log = vacant.begin(epoch(2)).unwrap();
    drop((log, writer));
    // The power goes again before its first row: what it builds on lies in the file that was set aside.
    let open = place.open();
    assert_eq!(open.log.head().epoch, epoch(2));
    let mut rows = Vec::new();
    open.log
        .replay_predecessor(|pos, bytes| {
            assert_eq!((pos.epoch, bytes), (epoch(1), row(pos.seq.0).as_slice()));
            rows.push(pos.seq.0);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(size >= 60);
    assert_eq!(rows, (1..=size).collect::<Vec<_>>());
    open.append(1);
}
