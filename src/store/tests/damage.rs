//! What verification and opening make of files that somebody changed.

use std::ops::Range;
use std::path::Path;

use redb::ReadableTable as _;

use super::{Place, epoch, key, row};
use crate::domain::id::Seq;
use crate::domain::tree::{self, Frontier};
use crate::store::pages::PageFile;
use crate::store::segment::{CHECKPOINTS, EVENTS, META, key as key_of};
use crate::store::{
    EpochReason, EventPos, Fault, Log, Opened, Pin, Predecessor, Report, Told, verify,
};

fn verified(place: &Place, pins: &[Pin]) -> Report {
    let judge = |pos: EventPos, bytes: &[u8]| {
        if bytes == row(pos.seq.0) { Ok(()) } else { Err("its signature does not verify".into()) }
    };
    verify(&place.options.dir, &[key()], pins, judge).unwrap()
}

fn allocated(path: &Path) -> Vec<Range<u64>> {
    PageFile::open(path).unwrap().unwrap().allocated().unwrap()
}

/// A small generator of numbers that a seed repeats.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

#[test]
fn a_sound_log_verifies_and_says_how_far_it_is_signed() {
    let place = Place::new();
    place.three_segments();
    let report = verified(&place, &[]);
    assert_eq!(report.faults, []);
    let found = &report.epochs[0];
    assert_eq!((found.rows, found.last, found.signed_to), (900, Seq(900), Seq(900)));
    assert!(!report.is_pinned);
}

#[test]
fn each_of_a_thousand_flipped_bytes_is_reported_or_lies_in_unallocated_space() {
    let place = Place::new();
    let files = place.three_segments();
    let mut dice = Dice(2);
    let mut reported = 0;
    for n in 0..1000 {
        let path = &files[n % 3];
        let used = allocated(path);
        let clean = std::fs::read(path).unwrap();
        let end = used.last().unwrap().end;
        let at = dice.roll(end) as usize;
        let mut bytes = clean.clone();
        bytes[at] ^= 1 << dice.roll(8);
        std::fs::write(path, &bytes).unwrap();
        let report = verified(&place, &[]);
        std::fs::write(path, &clean).unwrap();
        let carries = used.iter().any(|range| range.contains(&(at as u64)));
        assert!(!report.is_sound() || !carries, "byte {at} of {}", path.display());
        reported += usize::from(!report.is_sound());
    }
    assert!(reported > 500, "{reported} of 1000 were reported");
}

#[test]
fn a_flipped_byte_in_a_file_that_was_not_closed_is_reported_too() {
    let place = Place::new();
    let open = place.open();
    (1..=30).for_each(|n| open.append(20 * n));
    let path = place.segments()[0].clone();
    let live = std::fs::read(&path).unwrap();
    drop(open);
    std::fs::write(&path, &live).unwrap();
    assert_eq!(verified(&place, &[]).faults, []);
    let used = allocated(&path);
    let mut dice = Dice(5);
    for _ in 0..200 {
        let range = &used[dice.roll(used.len() as u64) as usize];
        let at = range.start + dice.roll(range.end - range.start);
        let mut bytes = live.clone();
        bytes[at as usize] ^= 1 << dice.roll(8);
        std::fs::write(&path, &bytes).unwrap();
        let report = verified(&place, &[]);
        assert!(!report.is_sound(), "byte {at}");
    }
}

#[test]
fn damage_behind_the_head_that_stands_in_the_file_blames_no_other_row() {
    let place = Place::new();
    let open = place.open();
    (1..=600).for_each(|n| open.append(n));
    let path = place.segments()[0].clone();
    let live = std::fs::read(&path).unwrap();
    drop(open);
    for seq in [1, 17, 300] {
        let mut bytes = live.clone();
        let found = bytes.windows(row(seq).len()).rposition(|window| window == row(seq)).unwrap();
        bytes[found + 5] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let report = verified(&place, &[]);
        let blamed: Vec<_> = report
            .faults
            .iter()
            .filter_map(
                |fault| if let Fault::Event { at, .. } = fault { Some(at.seq.0) } else { None },
            )
            .collect();
        assert_eq!(blamed, [seq], "{:?}", report.faults);
        assert_eq!(report.epochs[0].rows, 600);
    }
}

#[test]
fn an_edited_row_is_named() {
    let place = Place::new();
    let files = place.three_segments();
    for (file, seq) in [(0, 17), (2, 801)] {
        let clean = std::fs::read(&files[file]).unwrap();
        let mut bytes = clean.clone();
        let found = bytes.windows(row(seq).len()).position(|window| window == row(seq)).unwrap();
        bytes[found + 5] ^= 1;
        std::fs::write(&files[file], &bytes).unwrap();
        let report = verified(&place, &[]);
        std::fs::write(&files[file], &clean).unwrap();
        let at = EventPos { epoch: epoch(1), seq: Seq(seq) };
        let names = |fault: &Fault| matches!(fault, Fault::Event { at: found, .. } if *found == at);
        assert!(report.faults.iter().any(names), "{:?}", report.faults);
    }
}

#[test]
fn a_missing_segment_is_named_by_its_rows() {
    let place = Place::new();
    let files = place.three_segments();
    std::fs::remove_file(&files[1]).unwrap();
    std::fs::remove_file(crate::store::layout::tiles_path(&files[1])).unwrap();
    let report = verified(&place, &[]);
    let gone = Fault::Missing { epoch: epoch(1), first: Seq(301), last: Seq(600) };
    assert_eq!(report.faults, [gone]);
}

#[test]
fn the_first_and_the_last_segment_are_missed_like_any_other() {
    let place = Place::new();
    let files = place.three_segments();
    let missing = |first, last| Fault::Missing { epoch: epoch(1), first: Seq(first), last };
    let aside = place.dir.path().join("aside");
    for (file, fault) in [(0, missing(1, Seq(300))), (2, missing(601, Seq::MAX))] {
        let tiles = crate::store::layout::tiles_path(&files[file]);
        let kept = std::fs::read(&tiles);
        drop(std::fs::remove_file(&tiles));
        std::fs::rename(&files[file], &aside).unwrap();
        assert_eq!(verified(&place, &[]).faults, [fault]);
        std::fs::rename(&aside, &files[file]).unwrap();
        if let Ok(kept) = kept {
            std::fs::write(tiles, kept).unwrap();
        }
    }
    assert_eq!(verified(&place, &[]).faults, []);
}

#[test]
fn rows_that_are_gone_were_dropped_only_if_that_was_signed() {
    let place = Place::new();
    let files = place.three_segments();
    for file in &files[..2] {
        std::fs::remove_file(file).unwrap();
    }
    let missing = |first, last| Fault::Missing { epoch: epoch(1), first, last };
    let (one, two) = (missing(Seq(1), Seq(300)), missing(Seq(301), Seq(600)));
    assert_eq!(verified(&place, &[]).faults, [one, two.clone()]);

    let root_at = |size| {
        let mut tree = Frontier::default();
        (1..=size).for_each(|seq| tree.push(tree::leaf(&row(seq))));
        tree.root()
    };
    let with_retired = |last: u64, root| {
        let judge = |pos: EventPos, _: &[u8]| {
            let gone = Told::Retired { epoch: epoch(1), last: Seq(last), root };
            Ok(if pos.seq == Seq(700) { gone } else { Told::Nothing })
        };
        verify(&place.options.dir, &[key()], &[], judge).unwrap().faults
    };
    assert_eq!(with_retired(300, root_at(300)), [two]);
    // What said that the first was dropped may have been dropped itself.
    assert_eq!(with_retired(600, root_at(600)), []);
    let forged = with_retired(600, root_at(599));
    assert!(matches!(forged[..], [Fault::Root { .. }]), "{forged:?}");
}

#[test]
fn an_epoch_names_the_one_before_it_in_its_first_event_and_not_in_its_file_alone() {
    let place = Place::new();
    let open = place.open();
    open.append(100);
    let before = open.log.begin_epoch(epoch(2), super::PATIENCE).unwrap().unwrap();
    open.append(50);
    drop(open);
    let told = |before: Option<Predecessor>| {
        let judge = move |pos: EventPos, _: &[u8]| {
            let is_first = pos.epoch == epoch(2) && pos.seq == Seq(1);
            Ok(if is_first { Told::Opened(before) } else { Told::Nothing })
        };
        verify(&place.options.dir, &[key()], &[], judge).unwrap().faults
    };
    assert_eq!(told(Some(before)), []);
    let gone = Predecessor { epoch: epoch(7), ..before };
    let faults = told(Some(gone));
    let chain =
        |fault: &Fault, of| matches!(fault, Fault::EpochChain { epoch, .. } if *epoch == of);
    assert!(chain(&faults[0], epoch(2)) && chain(&faults[1], epoch(7)), "{faults:?}");

    std::fs::remove_dir_all(place.options.dir.join(epoch(1).token())).unwrap();
    let faults = told(Some(before));
    assert!(matches!(&faults[..], [fault] if chain(fault, epoch(1))), "{faults:?}");
}

#[test]
fn another_spelling_of_a_name_is_a_fault_and_no_segment() {
    let place = Place::new();
    let files = place.three_segments();
    for name in ["1.redb", "+0000000000000000001.redb", "0000000000000000000x.redb", "1.tiles"] {
        let other = files[0].with_file_name(name);
        std::fs::copy(&files[0], &other).unwrap();
        let report = verified(&place, &[]);
        std::fs::remove_file(&other).unwrap();
        let named = matches!(&report.faults[..], [Fault::Structure { path, .. }] if *path == other);
        assert!(named, "{:?}", report.faults);
        assert_eq!(report.epochs[0].rows, 900);
    }
}

/// Changes a segment with the engine, so that every checksum is right again.
fn forge(path: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = redb::Database::open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
}

#[test]
fn a_row_far_behind_the_end_is_one_fault_and_takes_no_time() {
    for seq in [902, 1 << 40, 1 << 62, u64::MAX] {
        let place = Place::new();
        let files = place.three_segments();
        forge(&files[2], |transaction| {
            let mut events = transaction.open_table(EVENTS).unwrap();
            events.insert(seq, row(1).as_slice()).unwrap();
        });
        let at = EventPos { epoch: epoch(1), seq: Seq(seq) };
        let faults = verified(&place, &[]).faults;
        assert!(
            matches!(&faults[..], [Fault::Event { at: found, .. }] if *found == at),
            "{faults:?}"
        );
        drop(place.try_open());
    }
}

#[test]
fn a_file_that_claims_more_rows_than_a_log_can_have_is_refused() {
    for name in [key_of::BASE, key_of::HEAD] {
        let place = Place::new();
        let files = place.three_segments();
        forge(&files[2], |transaction| {
            let mut meta = transaction.open_table(META).unwrap();
            meta.insert(name, [0xff; 8 + 64 * 32].as_slice()).unwrap();
        });
        let faults = verified(&place, &[]).faults;
        assert!(matches!(&faults[..], [Fault::Structure { .. }, ..]), "{faults:?}");
        drop(place.try_open());
    }
}

#[test]
fn a_baseline_that_lies_outside_its_segment_is_found() {
    for last in [600_u64, 901, u64::MAX] {
        let place = Place::new();
        let files = place.three_segments();
        forge(&files[2], |transaction| {
            let mut meta = transaction.open_table(META).unwrap();
            meta.insert(key_of::BASELINE, last.to_le_bytes().as_slice()).unwrap();
        });
        let faults = verified(&place, &[]).faults;
        assert!(
            faults.iter().any(|fault| fault.to_string().contains("baseline")),
            "{last}: {faults:?}"
        );
    }
}

#[test]
fn every_change_that_keeps_the_checksums_right_is_found() {
    let place = Place::new();
    let files = place.three_segments();
    let clean = std::fs::read(&files[2]).unwrap();
    let mut dice = Dice(17);
    for n in 0..60 {
        std::fs::write(&files[2], &clean).unwrap();
        let (from, to) = (601 + dice.roll(300), 601 + dice.roll(300));
        let name = [key_of::EPOCH, key_of::BASE, key_of::HEAD, key_of::FORMAT][n / 4 % 4];
        let (at, bit) = (dice.roll(8) as usize, 1 << dice.roll(8));
        forge(&files[2], |transaction| match n % 4 {
            0 => drop(transaction.open_table(EVENTS).unwrap().remove(to).unwrap()),
            1 => {
                let mut events = transaction.open_table(EVENTS).unwrap();
                drop(events.insert(to, row(if from == to { 5 } else { from }).as_slice()).unwrap());
            }
            2 => {
                let mut meta = transaction.open_table(META).unwrap();
                let mut bytes = meta.get(name).unwrap().unwrap().value().to_vec();
                bytes[at] ^= bit;
                drop(meta.insert(name, bytes.as_slice()).unwrap());
            }
            _ => {
                let mut notes = transaction.open_table(CHECKPOINTS).unwrap();
                let mut bytes = notes.get(900).unwrap().unwrap().value().to_vec();
                bytes[at * 7] ^= bit;
                drop(notes.insert(900, bytes.as_slice()).unwrap());
            }
        });
        assert!(!verified(&place, &[]).is_sound(), "change {n}");
    }
}

/// Keeps what a kill leaves: the files as they are while their owner writes them.
fn killed(place: &Place, rows: u64) -> (Vec<u8>, Vec<u8>) {
    let writer = crate::store::Writer::start().unwrap();
    // Without a signer no commit follows the rows.
    let opened = Log::open(place.options.clone(), &writer, None, |_| ()).unwrap();
    let log = match opened {
        Opened::Continues(log) => log,
        Opened::NeedsEpoch(vacant) => vacant.begin(epoch(1)).unwrap(),
    };
    for seq in log.appended().1.0 + 1..=rows {
        assert!(log.append(Seq(seq), row(seq)).unwrap().wait(super::PATIENCE));
    }
    let left = left_of(place);
    drop((log, writer));
    left
}

fn left_of(place: &Place) -> (Vec<u8>, Vec<u8>) {
    let lock = crate::store::layout::lock_path(&place.options.dir);
    (std::fs::read(&place.segments()[0]).unwrap(), std::fs::read(lock).unwrap())
}

fn put_back(place: &Place, (segment, lock): (&[u8], &[u8])) {
    std::fs::write(&place.segments()[0], segment).unwrap();
    std::fs::write(crate::store::layout::lock_path(&place.options.dir), lock).unwrap();
}

/// Breaks a row that only the newest commit holds.
fn without(mut segment: Vec<u8>, seq: u64) -> Vec<u8> {
    let places = segment.windows(row(seq).len()).enumerate();
    let places: Vec<_> = places.filter(|(_, bytes)| *bytes == row(seq)).map(|(at, _)| at).collect();
    places.iter().for_each(|at| segment[at + 5] ^= 1);
    segment
}

#[test]
fn an_epoch_ends_when_an_acknowledged_commit_is_lost_and_goes_on_when_it_was_not_acknowledged() {
    let place = Place::new();
    let (_, told_nine) = killed(&place, 9);
    let (segment, told_ten) = killed(&place, 10);

    put_back(&place, (&segment, &told_ten));
    assert_eq!(place.open().log.head().seq, Seq(10));

    // As after a power cut in the middle of the commit: nobody was told of row 10.
    let torn = without(segment, 10);
    put_back(&place, (&torn, &told_nine));
    assert!(!verified(&place, &[]).is_sound(), "who is not told cannot know which it was");
    let open = place.open();
    assert_eq!(open.log.head().seq, Seq(9));
    open.append(10);
    drop(open);
    assert_eq!(verified(&place, &[]).faults, []);

    put_back(&place, (&torn, &told_ten));
    let (vacant, _writer) = place.open_vacant();
    let why = "10 events were acknowledged and 9 are here".to_owned();
    assert_eq!(*vacant.reason(), EpochReason::Damaged { why });
    assert_eq!(vacant.predecessor().unwrap().size, 9);
    vacant.begin(epoch(2)).unwrap();
}

#[test]
fn an_older_copy_of_the_file_does_not_go_on() {
    let place = Place::new();
    let (segment, _) = killed(&place, 9);
    let (_, lock) = killed(&place, 12);
    put_back(&place, (&segment, &lock));
    let (vacant, _writer) = place.open_vacant();
    assert!(matches!(vacant.reason(), EpochReason::Damaged { .. }));
}

#[test]
fn a_flag_in_its_header_makes_no_damaged_file_an_unfinished_one() {
    let place = Place::new();
    let files = place.three_segments();
    for file in [0, 2] {
        let clean = std::fs::read(&files[file]).unwrap();
        let seq = [300, 0, 900][file];
        let mut bytes = without(clean.clone(), seq);
        bytes[9] |= 2;
        std::fs::write(&files[file], bytes).unwrap();
        assert!(!verified(&place, &[]).is_sound());
        // Neither does an agent that runs excuse a file that it does not write.
        let lock = crate::store::layout::lock_path(&place.options.dir);
        let owner = std::fs::File::options().write(true).create(true).truncate(false).open(lock);
        let owner = owner.unwrap();
        owner.lock().unwrap();
        assert!(!verified(&place, &[]).is_sound() || file == 2);
        drop(owner);
        std::fs::write(&files[file], clean).unwrap();
    }
}

#[test]
fn swapped_segments_are_both_named() {
    let place = Place::new();
    let files = place.three_segments();
    let aside = place.dir.path().join("aside");
    std::fs::rename(&files[0], &aside).unwrap();
    std::fs::rename(&files[1], &files[0]).unwrap();
    std::fs::rename(&aside, &files[1]).unwrap();
    let report = verified(&place, &[]);
    for file in &files[..2] {
        let named = |fault: &Fault| matches!(fault, Fault::Structure { path, .. } if path == file);
        assert!(report.faults.iter().any(named), "{:?}", report.faults);
    }
}

#[test]
fn a_cut_file_is_reported_whatever_is_cut() {
    let place = Place::new();
    let files = place.three_segments();
    let clean = std::fs::read(&files[2]).unwrap();
    let mut dice = Dice(7);
    for cut in
        [0, 1, 319, 320, 4096].into_iter().chain((0..30).map(|_| dice.roll(clean.len() as u64)))
    {
        std::fs::write(&files[2], &clean[..cut as usize]).unwrap();
        assert!(!verified(&place, &[]).is_sound(), "cut at {cut}");
    }
}

#[test]
fn a_tail_that_was_cut_in_good_order_shows_only_against_a_pin() {
    let place = Place::new();
    let open = place.open();
    open.append(100);
    let old = open.log.head();
    drop(open);
    let before = std::fs::read(&place.segments()[0]).unwrap();
    let open = place.open();
    open.append(150);
    let new = open.log.head();
    drop(open);
    std::fs::write(&place.segments()[0], before).unwrap();

    assert!(verified(&place, &[]).is_sound());
    let pin =
        |head: crate::store::Head| Pin { epoch: head.epoch, size: head.seq.0, root: head.root };
    assert!(verified(&place, &[pin(old)]).is_sound());
    let cut = Fault::TailCut { epoch: epoch(1), have: 100, pinned: 150 };
    assert_eq!(verified(&place, &[pin(new)]).faults, [cut]);
    let forked = Pin { root: new.root, ..pin(old) };
    let faults = verified(&place, &[forked]).faults;
    assert!(matches!(faults[..], [Fault::Root { whose: "that was pinned", .. }]), "{faults:?}");
}

#[test]
fn a_damaged_active_segment_is_set_aside_and_its_sound_rows_are_saved() {
    let place = Place::new();
    let files = place.three_segments();
    let mut bytes = std::fs::read(&files[2]).unwrap();
    let found = bytes.windows(row(801).len()).position(|window| window == row(801)).unwrap();
    bytes[found + 5] ^= 1;
    std::fs::write(&files[2], &bytes).unwrap();

    let (vacant, _writer) = place.open_vacant();
    assert!(matches!(vacant.reason(), EpochReason::Damaged { .. }));
    let predecessor = vacant.predecessor().unwrap();
    assert!((700..801).contains(&predecessor.size), "{predecessor:?}");
    let mut rows = Vec::new();
    vacant
        .replay(|pos, _| {
            rows.push(pos.seq.0);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(rows, (601..=predecessor.size).collect::<Vec<_>>());
    vacant.begin(epoch(2)).unwrap();
    // The old epoch counts as far as the next one builds on it, and that much is sound; but more was signed.
    let report = verified(&place, &[]);
    let base = predecessor.size;
    assert_eq!(report.faults, [Fault::SetAside { epoch: epoch(1), base, signed: 900 }]);
    assert!((1..900 - base).contains(&report.epochs[0].aside), "{:?}", report.epochs[0]);
}

#[test]
fn opening_a_file_of_any_bytes_never_ends_the_process() {
    let place = Place::new();
    let files = place.three_segments();
    let used = allocated(&files[2]);
    let clean = std::fs::read(&files[2]).unwrap();
    let mut dice = Dice(11);
    for n in 0..60 {
        let mut bytes = clean.clone();
        for _ in 0..=n % 4 {
            let range = &used[dice.roll(used.len() as u64) as usize];
            let at = range.start + dice.roll(range.end - range.start);
            bytes[at as usize] = dice.roll(256) as u8;
        }
        // Half of them as after a crash, when the engine repairs what it finds.
        bytes[9] |= (n as u8 & 1) << 1;
        std::fs::write(&files[2], &bytes).unwrap();
        drop(place.try_open());
        for aside in crate::store::layout::quarantined(&place.options.dir, epoch(1)).unwrap() {
            std::fs::remove_file(aside).unwrap();
        }
    }
}
