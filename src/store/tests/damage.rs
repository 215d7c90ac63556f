//! What verification and opening make of files that somebody changed.

use std::ops::Range;
use std::path::Path;

use super::{Place, epoch, key, row};
use crate::domain::id::Seq;
use crate::store::pages::PageFile;
use crate::store::{EpochReason, EventPos, Fault, Pin, Report, verify};

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
        assert!(!report.is_sound() || !report.unfinished.is_empty(), "byte {at}");
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
    // The old epoch counts as far as the next one builds on it, and that much is sound.
    assert_eq!(verified(&place, &[]).faults, []);
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
