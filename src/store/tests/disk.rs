//! A disk that is full, that fails and that stalls.

use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use redb::{BackendError, StorageBackend};

use super::{Open, PATIENCE, Place, epoch, row};
use crate::domain::id::Seq;
use crate::store::{AppendError, Disk, FileDisk, LogNotice, Opened, Outage};

/// What the disk does at the moment.
#[derive(Debug, Default)]
pub(super) struct Mood {
    /// The bytes that may still be written; negative numbers mean that there is no limit.
    space: AtomicI64,
    syncs_to_fail: AtomicU32,
    stalled: Mutex<bool>,
    resumed: Condvar,
}

#[derive(Debug, Clone)]
struct MoodyDisk(Arc<Mood>);

impl Mood {
    fn take(&self, bytes: usize) -> io::Result<()> {
        let left = self.space.load(Ordering::SeqCst);
        if left < 0 {
            return Ok(());
        }
        if left < bytes as i64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.space.fetch_sub(bytes as i64, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn stall(&self, stalled: bool) {
        *self.stalled.lock().unwrap() = stalled;
        self.resumed.notify_all();
    }
}

impl Disk for MoodyDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(MoodyFile { inner: FileDisk.open(path)?, mood: self.0.clone() }))
    }

    fn written_end(&self, path: &Path) -> io::Result<u64> {
        FileDisk.written_end(path)
    }

    fn make_reserve(&self, path: &Path, bytes: u64) -> io::Result<()> {
        self.0.take(bytes as usize)?;
        FileDisk.make_reserve(path, bytes)
    }

    fn release_reserve(&self, path: &Path) -> io::Result<()> {
        self.0.space.fetch_add(std::fs::metadata(path)?.len() as i64, Ordering::SeqCst);
        FileDisk.release_reserve(path)
    }
}

#[derive(Debug)]
struct MoodyFile {
    inner: Box<dyn StorageBackend>,
    mood: Arc<Mood>,
}

impl StorageBackend for MoodyFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut stalled = self.mood.stalled.lock().unwrap();
        while *stalled {
            stalled = self.mood.resumed.wait(stalled).unwrap();
        }
        let left = |n: u32| n.checked_sub(1);
        if self.mood.syncs_to_fail.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.mood.take(data.len())?;
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }
}

pub(super) fn moody() -> (Place, Arc<Mood>) {
    let mut place = Place::new();
    let mood = Arc::new(Mood { space: AtomicI64::new(-1), ..Mood::default() });
    place.options.disk = Arc::new(MoodyDisk(mood.clone()));
    (place, mood)
}

fn outage(open: &Open) -> Outage {
    open.expect(|notice| match notice {
        LogNotice::Unavailable { kind, .. } => Some(kind),
        _ => None,
    })
}

fn recovered(open: &Open) {
    open.expect(|notice| matches!(notice, LogNotice::Recovered).then_some(()));
    assert_eq!(open.log.outage(), None);
}

fn holds_rows(place: &Place, last: u64) {
    let rows = place.open().replayed();
    assert_eq!(rows.len() as u64, last);
    assert!(rows.iter().all(|(seq, bytes)| *bytes == row(*seq)));
}

#[test]
fn a_full_disk_is_told_and_rows_go_on_from_the_reserve() {
    let (mut place, mood) = moody();
    place.options.reserve_bytes = 2 << 20;
    let open = place.open();
    open.append(10);
    mood.space.store(100_000, Ordering::SeqCst);
    let mut last = 10;
    while open.log.outage().is_none() {
        last += 20;
        open.append(last);
    }
    assert_eq!(outage(&open), Outage::Full);
    open.append(last + 20);
    mood.space.store(100 << 20, Ordering::SeqCst);
    recovered(&open);
    drop(open);
    holds_rows(&place, last + 20);
}

#[test]
fn a_log_whose_reserve_finds_no_room_says_so_before_its_rows_do() {
    let (mut place, mood) = moody();
    place.options.reserve_bytes = 2 << 20;
    mood.space.store(1 << 20, Ordering::SeqCst);
    let open = place.open();
    open.append(10);
    assert_eq!(outage(&open), Outage::Full);
    open.append(20);
    assert!(!open.log.is_stuck(), "there is room for rows");
    mood.space.store(100 << 20, Ordering::SeqCst);
    recovered(&open);
    drop(open);
    holds_rows(&place, 20);
}

#[test]
fn a_disk_without_any_space_holds_rows_back_and_loses_none_that_was_accepted() {
    let (mut place, mood) = moody();
    place.options.waiting_rows_max = 100;
    let open = place.open();
    open.append(10);
    mood.space.store(0, Ordering::SeqCst);
    let mut last = 10;
    let mut ticket = None;
    let busy = loop {
        match open.log.append(Seq(last + 1), row(last + 1)) {
            Ok(taken) => (last, ticket) = (last + 1, Some(taken)),
            Err(error) => break error,
        }
    };
    assert!(matches!(busy, AppendError::Busy { rows: 100, .. }), "{busy:?}");
    assert_eq!(outage(&open), Outage::Full);
    assert!(open.log.is_stuck());
    assert_eq!(open.log.head().seq, Seq(10));
    assert_eq!(open.log.outage(), Some(Outage::Full));
    mood.space.store(-1, Ordering::SeqCst);
    recovered(&open);
    // What waited is written behind the first rows that could be.
    assert!(ticket.unwrap().wait(PATIENCE));
    assert!(!open.log.is_stuck());
    open.append(last + 5);
    drop(open);
    holds_rows(&place, last + 5);
}

#[test]
fn rows_whose_sync_failed_are_written_again_and_stand_once() {
    let (place, mood) = moody();
    let open = place.open();
    for round in 1..=5 {
        mood.syncs_to_fail.store(round, Ordering::SeqCst);
        open.append(u64::from(round) * 30);
        assert_eq!(outage(&open), Outage::Failed);
        recovered(&open);
    }
    drop(open);
    holds_rows(&place, 150);
}

#[test]
fn a_stalled_disk_is_told_after_two_seconds_and_blocks_no_caller() {
    let (place, mood) = moody();
    let open = place.open();
    open.append(10);
    mood.stall(true);
    let began = Instant::now();
    let ticket = open.log.append(Seq(11), row(11)).unwrap();
    for seq in 12..500 {
        open.log.append(Seq(seq), row(seq)).unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(outage(&open), Outage::Stalled);
    assert!(began.elapsed() >= crate::store::STALL_AFTER);
    assert!(!ticket.wait(Duration::from_millis(50)));
    mood.stall(false);
    recovered(&open);
    assert!(ticket.wait(PATIENCE));
    open.append(500);
    drop(open);
    holds_rows(&place, 500);
}

#[test]
fn the_end_of_a_stall_is_told_behind_the_stall_however_slowly_that_is_heard() {
    let (place, mood) = moody();
    let (tell, notices) = channel();
    let disk = mood.clone();
    let (opened, _writer) = place.open_telling(move |notice| {
        if matches!(notice, LogNotice::Unavailable { .. }) {
            disk.stall(false);
            // The commit ends meanwhile: it waits for nothing but the disk.
            thread::sleep(Duration::from_millis(300));
        }
        drop(tell.send(notice));
    });
    let Opened::NeedsEpoch(vacant) = opened else { panic!("the log is new") };
    let log = vacant.begin(epoch(1)).unwrap();
    mood.stall(true);
    let ticket = log.append(Seq(1), row(1)).unwrap();
    assert!(ticket.wait(PATIENCE));
    let news = notices.iter().filter_map(|notice| match notice {
        LogNotice::Unavailable { .. } => Some("unavailable"),
        LogNotice::Recovered => Some("recovered"),
        _ => None,
    });
    assert_eq!(news.take(2).collect::<Vec<_>>(), ["unavailable", "recovered"]);
    assert_eq!(log.outage(), None);
}
