//! Power cuts: unsynced writes are dropped, reordered and torn at 512 bytes, up to three times in a row.
//!
//! `SMGR_POWER_CUTS` sets the number of seeds, `SMGR_POWER_CUT_SEED` the first of them.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::{epoch, row};
use crate::domain::tree::{self, Frontier};
use crate::store::segment::{Addition, Birth, Row, SegmentError, SegmentFile};
use crate::store::{Disk, log};

const SECTOR: usize = 512;

/// A disk in memory, with the writes that no sync has made durable.
#[derive(Debug)]
struct Platter {
    durable: Vec<u8>,
    /// What a reader sees while the power is on.
    cache: Vec<u8>,
    pending: Vec<Pending>,
    /// Operations until the power goes.
    operations: u64,
    /// How many of eight syncs do nothing and say that they did.
    lies: u64,
    dice: Dice,
}

#[derive(Debug, Clone)]
enum Pending {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

impl Platter {
    fn step(&mut self) -> io::Result<()> {
        self.operations = self.operations.saturating_sub(1);
        if self.operations == 0 { Err(io::Error::other("the power is gone")) } else { Ok(()) }
    }

    fn sync(&mut self) {
        if self.dice.below(8) < self.lies {
            return;
        }
        self.durable.clone_from(&self.cache);
        self.pending.clear();
    }

    /// Loses what was not synced, but for a random part of it in a random order.
    fn cut(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        for n in (1..pending.len()).rev() {
            pending.swap(n, self.dice.below(n as u64 + 1) as usize);
        }
        let keep = self.dice.below(5);
        for change in pending {
            match change {
                Pending::Length(len) if self.dice.below(4) < keep => {
                    self.durable.resize(len as usize, 0);
                }
                Pending::Length(_) => {}
                Pending::Write(offset, data) => self.tear(offset as usize, &data, keep),
            }
        }
        self.cache.clone_from(&self.durable);
    }

    fn tear(&mut self, offset: usize, data: &[u8], keep: u64) {
        let mut at = 0;
        while at < data.len() {
            let end = (at + SECTOR - (offset + at) % SECTOR).min(data.len());
            let place = offset + at..offset + end;
            if place.end <= self.durable.len() && self.dice.below(4) < keep {
                self.durable[place].copy_from_slice(&data[at..end]);
            }
            at = end;
        }
    }
}

#[derive(Debug, Clone)]
struct CutDisk(Arc<Mutex<Platter>>);

impl Disk for CutDisk {
    fn open(&self, _: &Path) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.clone()))
    }

    fn written_end(&self, _: &Path) -> io::Result<u64> {
        self.len()
    }

    fn make_reserve(&self, _: &Path, _: u64) -> io::Result<()> {
        Ok(())
    }
}

impl StorageBackend for CutDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().cache.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock().unwrap();
        let at = offset as usize;
        let from = platter.cache.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step()?;
        platter.cache.resize(len as usize, 0);
        platter.pending.push(Pending::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step()?;
        platter.sync();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step()?;
        let at = offset as usize;
        platter.cache[at..at + data.len()].copy_from_slice(data);
        platter.pending.push(Pending::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// What the writer was told, and what it may have written.
#[derive(Default)]
struct Told {
    /// The first transaction was acknowledged, after which the file gets its name.
    born: bool,
    acknowledged: u64,
    attempted: u64,
}

/// Writes batches until the power goes.
fn write_until_dark(
    segment: &SegmentFile,
    told: &mut Told,
    dice: &mut Dice,
) -> Result<(), SegmentError> {
    let mut head = Frontier::default();
    if told.born {
        head = segment.meta()?.head;
    } else {
        let birth = Birth { epoch: epoch(1), base: &head, baseline: 0, predecessor: None };
        segment.begin(&birth, &Addition { rows: &[], head: &head, checkpoint: None })?;
        told.born = true;
    }
    loop {
        let first = head.size() + 1;
        let rows: Vec<Row> =
            (first..=first + dice.below(30)).map(|seq| (seq, row(seq).into())).collect();
        rows.iter().for_each(|(_, row)| head.push(tree::leaf(row)));
        told.attempted = told.attempted.max(head.size());
        segment.add(&Addition { rows: &rows, head: &head, checkpoint: None })?;
        told.acknowledged = head.size();
    }
}

/// Runs one life of a disk; says what was broken, if anything.
fn live_and_die(seed: u64, lies: u64) -> Result<u64, String> {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let platter = Platter {
        durable: Vec::new(),
        cache: Vec::new(),
        pending: Vec::new(),
        operations: 0,
        lies,
        dice: dice.clone(),
    };
    let disk = CutDisk(Arc::new(Mutex::new(platter)));
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let path = Path::new("/in/memory");
    let mut told = Told::default();
    for _ in 0..=dice.below(3) {
        disk.0.lock().unwrap().operations = 2 + dice.below(400);
        // The power may go while the file is opened and repaired, too.
        if let Ok(segment) = SegmentFile::open(path, &shared, 1 << 20) {
            let dark = write_until_dark(&segment, &mut told, &mut dice);
            let dark = dark.expect_err("it writes until it cannot");
            if dark.is_damage() {
                return Err(format!("damage: {dark:?}"));
            }
        }
        let mut platter = disk.0.lock().unwrap();
        platter.cut();
        if !told.born {
            // A file that never got its name is thrown away at the next start.
            platter.durable.clear();
            platter.cache.clear();
        }
    }
    if !told.born {
        return Ok(0);
    }

    disk.0.lock().unwrap().operations = u64::MAX;
    let segment = SegmentFile::open(path, &shared, 1 << 20).map_err(|e| format!("open: {e:?}"))?;
    let meta = segment.meta().map_err(|error| format!("meta: {error:?}"))?;
    let size = meta.head.size();
    if !(told.acknowledged..=told.attempted).contains(&size) {
        return Err(format!("{size} rows of {} acknowledged", told.acknowledged));
    }
    let mut next = 1;
    let mut tree = Frontier::default();
    log::scan_snapshot(&segment, 1, |seq, bytes| {
        let right = seq.0 == next && bytes == row(next);
        tree.push(tree::leaf(bytes));
        next += u64::from(right);
        if right { std::ops::ControlFlow::Continue(()) } else { std::ops::ControlFlow::Break(()) }
    })
    .map_err(|error| format!("scan: {error:?}"))?;
    if next != size + 1 {
        return Err(format!("row {next} is wrong"));
    }
    if tree == meta.head { Ok(told.acknowledged) } else { Err("another tree".to_owned()) }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn no_acknowledged_row_is_lost_to_a_power_cut() {
    let first = number("SMGR_POWER_CUT_SEED", 1);
    let mut with_rows = 0;
    for seed in first..first + number("SMGR_POWER_CUTS", 250) {
        match live_and_die(seed, 0) {
            Ok(acknowledged) => with_rows += u64::from(acknowledged > 0),
            Err(broken) => panic!("seed {seed}: {broken}"),
        }
    }
    assert!(with_rows > 0, "no life had an acknowledged row");
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let found = (1..=100).filter(|seed| live_and_die(*seed, 7).is_err()).count();
    assert!(found > 10, "only {found} of 100 lying disks were found out: the cuts test nothing");
}
