//! What the tests of the store share: a log in a folder of its own, and rows that can be told apart.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one notice among all")]

mod damage;
mod disk;
mod lifecycle;
mod pages;
mod power_cut;
mod speed;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tempfile::TempDir;

use crate::domain::id::{EpochId, Seq};
use crate::store::{Log, LogNotice, LogOptions, Opened, Vacant, Writer, layout};
use crate::wire::note::{Ed25519Signer, NoteKey};

/// Longer than anything takes here, short enough to end a test that hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A folder for a log, and how it is opened.
pub(super) struct Place {
    pub(super) dir: TempDir,
    pub(super) options: LogOptions,
}

/// An open log with its writer.
pub(super) struct Open {
    pub(super) log: Log,
    pub(super) notices: Receiver<LogNotice>,
    /// Closes the log when it is dropped, so it must not be dropped before.
    _writer: Writer,
}

pub(super) fn epoch(n: u64) -> EpochId {
    EpochId::new(1_795_000_000_000 + n, 7)
}

pub(super) fn row(seq: u64) -> Vec<u8> {
    let mut row = format!("row {seq} ").into_bytes();
    row.resize(200 + seq as usize % 100, b'.');
    row
}

pub(super) fn signer() -> Ed25519Signer {
    Ed25519Signer::from_secret("smgr/demo/n1", &[5; 32]).unwrap()
}

pub(super) fn key() -> NoteKey {
    signer().public()
}

impl Place {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options =
            LogOptions::new(dir.path().join("log"), "demo".parse().unwrap(), "n1".parse().unwrap());
        options.reserve_bytes = 0;
        options.cache_bytes = 1 << 20;
        Self { dir, options }
    }

    pub(super) fn try_open(&self) -> (Opened, Receiver<LogNotice>, Writer) {
        let (tell, notices) = channel();
        let (opened, writer) = self.open_telling(move |notice| drop(tell.send(notice)));
        (opened, notices, writer)
    }

    pub(super) fn open_telling(
        &self,
        tell: impl Fn(LogNotice) + Send + Sync + 'static,
    ) -> (Opened, Writer) {
        let writer = Writer::start().unwrap();
        let signer = Some(Box::new(signer()) as Box<_>);
        (Log::open(self.options.clone(), &writer, signer, tell).unwrap(), writer)
    }

    /// Opens the log, beginning epoch 1 when there is none.
    pub(super) fn open(&self) -> Open {
        let (opened, notices, writer) = self.try_open();
        let log = match opened {
            Opened::Continues(log) => log,
            Opened::NeedsEpoch(vacant) => vacant.begin(epoch(1)).unwrap(),
        };
        Open { log, notices, _writer: writer }
    }

    pub(super) fn open_vacant(&self) -> (Vacant, Writer) {
        match self.try_open() {
            (Opened::NeedsEpoch(vacant), _, writer) => (vacant, writer),
            (Opened::Continues(_), ..) => panic!("another epoch had to begin"),
        }
    }

    pub(super) fn segments(&self) -> Vec<PathBuf> {
        let epochs = layout::epochs(&self.options.dir).unwrap().into_iter();
        let segments = epochs.flat_map(|epoch| layout::segments(&self.options.dir, epoch).unwrap());
        segments.map(|name| name.path).collect()
    }

    /// Writes a log of three segments with 300 rows each, closes it, and returns its files.
    pub(super) fn three_segments(&self) -> Vec<PathBuf> {
        let open = self.open();
        for segment in 0..3 {
            if segment > 0 {
                open.roll(300 * segment + 1);
            }
            open.append(300 * (segment + 1));
        }
        drop(open);
        self.segments()
    }
}

impl Open {
    /// Appends rows up to `last` and waits until they are durable.
    pub(super) fn append(&self, last: u64) {
        let mut ticket = None;
        for seq in self.log.appended().1.0 + 1..=last {
            ticket = Some(self.log.append(Seq(seq), row(seq)).unwrap());
        }
        assert!(ticket.is_none_or(|ticket| ticket.wait(PATIENCE)));
    }

    /// Begins a segment whose baseline is the one row `first`.
    pub(super) fn roll(&self, first: u64) {
        let ticket = self.log.roll(Seq(first), vec![Arc::from(row(first))]).unwrap();
        assert!(ticket.wait(PATIENCE));
    }

    pub(super) fn replayed(&self) -> Vec<(u64, Vec<u8>)> {
        let mut rows = Vec::new();
        self.log
            .replay(|seq, row| {
                rows.push((seq.0, row.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();
        rows
    }

    /// Waits for a notice for which `wanted` has an answer.
    pub(super) fn expect<T>(&self, mut wanted: impl FnMut(LogNotice) -> Option<T>) -> T {
        loop {
            let notice = self.notices.recv_timeout(PATIENCE).expect("the notice comes");
            if let Some(found) = wanted(notice) {
                return found;
            }
        }
    }
}
