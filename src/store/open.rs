//! Opening a log: which epoch goes on, or why another must begin.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use crate::domain::id::EpochId;
use crate::domain::tree::Frontier;
use crate::store::lane::{Inbox, Lane, LaneShared, create_segment};
use crate::store::seal::Sealer;
use crate::store::segment::{Birth, Predecessor, SegmentError, SegmentFile, SegmentMeta};
use crate::store::writer::{Hub, Writer};
use crate::store::{Log, LogNotice, LogOptions, chain, check, layout};
use crate::wire::note::NoteSigner;

/// Says why a log could not be opened. Damage is no error: it leads to [`Opened::NeedsEpoch`].
#[derive(Debug, thiserror::Error)]
pub enum OpenLogError {
    /// The folder cannot be read or written.
    #[error("failed to read the log folder `{path}`")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A segment cannot be opened for a reason that is no damage: in use, no access, a bad disk.
    #[error("failed to open the segment `{path}`")]
    Segment {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: SegmentError,
    },
    /// The epoch that should begin exists already.
    #[error("the epoch {0:?} is already there")]
    EpochExists(EpochId),
}

/// Why another epoch must begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EpochReason {
    /// There is no log yet.
    FirstStart,
    /// The file of the active segment was damaged and has been set aside.
    Damaged {
        /// Where it lies.
        aside: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What opening a log led to.
#[derive(Debug)]
pub enum Opened {
    /// The newest epoch goes on.
    Continues(Log),
    /// An epoch must begin: [`Vacant::begin`].
    NeedsEpoch(Vacant),
}

/// A log without an epoch to go on with.
#[derive(Debug)]
pub struct Vacant {
    parts: Parts,
    /// Why there is none.
    pub reason: EpochReason,
    /// The epoch before, as far as it is sound.
    pub predecessor: Option<Predecessor>,
}

struct Parts {
    options: Arc<LogOptions>,
    hub: Arc<Hub>,
    signer: Option<Box<dyn NoteSigner>>,
    notices: Box<dyn Fn(LogNotice) + Send + Sync>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parts({:?})", self.options)
    }
}

impl Log {
    /// Opens the log in the folder of `options`, to be written by `writer`.
    ///
    /// Returns when the rows can be read. That they lead to the signed root is checked behind it and
    /// told as [`LogNotice::RootChecked`] or [`LogNotice::Damaged`].
    pub fn open(
        options: LogOptions,
        writer: &Writer,
        signer: Option<Box<dyn NoteSigner>>,
        notices: impl Fn(LogNotice) + Send + Sync + 'static,
    ) -> Result<Opened, OpenLogError> {
        let options = Arc::new(options);
        let notices = Box::new(notices);
        let parts = Parts { options: options.clone(), hub: writer.hub(), signer, notices };
        let folder = |source| OpenLogError::Folder { path: options.dir.clone(), source };
        std::fs::create_dir_all(&options.dir).map_err(folder)?;

        let mut newest = None;
        for epoch in layout::epochs(&options.dir).map_err(folder)? {
            let segments = layout::segments(&options.dir, epoch).map_err(folder)?;
            newest = segments.last().cloned().or(newest);
        }
        let Some(newest) = newest else {
            let reason = EpochReason::FirstStart;
            return Ok(Opened::NeedsEpoch(Vacant { parts, reason, predecessor: None }));
        };
        match open_active(&options, &newest) {
            Ok((segment, meta)) => {
                let older = layout::segments(&options.dir, newest.epoch).map_err(folder)?;
                let older = older.into_iter().rev().skip(1).map(|name| name.path).collect();
                Ok(Opened::Continues(go_on(parts, segment, &meta, older)))
            }
            Err(source) if source.is_damage() => {
                let aside = layout::quarantine(&newest.path).map_err(folder)?;
                let reason = EpochReason::Damaged { aside, why: chain(&source) };
                Ok(Opened::NeedsEpoch(Vacant { parts, reason, predecessor: None }))
            }
            Err(source) => Err(OpenLogError::Segment { path: newest.path, source }),
        }
    }
}

impl Vacant {
    /// Begins `epoch` with an empty log; its first row is number 1.
    pub fn begin(self, epoch: EpochId) -> Result<Log, OpenLogError> {
        let options = &self.parts.options;
        let path = layout::segment_path(&options.dir, epoch, 1);
        if layout::epoch_dir(&options.dir, epoch).exists() {
            return Err(OpenLogError::EpochExists(epoch));
        }
        let empty = Frontier::default();
        let birth = Birth { epoch, base: &empty, baseline: 0, predecessor: self.predecessor };
        let failed = |source| OpenLogError::Segment { path, source };
        let made = create_segment(options, &birth, &[], &empty)
            .and_then(|segment| segment.meta().map(|meta| (segment, meta)));
        let (segment, meta) = made.map_err(failed)?;
        Ok(go_on(self.parts, segment, &meta, Vec::new()))
    }
}

fn open_active(
    options: &LogOptions,
    name: &layout::SegmentName,
) -> Result<(SegmentFile, SegmentMeta), SegmentError> {
    let segment = SegmentFile::open(&name.path, &options.disk, options.cache_bytes)?;
    let meta = segment.meta()?;
    if meta.epoch != name.epoch || meta.first() != name.first {
        return Err(SegmentError::Malformed("its name is not the one that it was made with"));
    }
    Ok((segment, meta))
}

/// Gives an open segment to the writer and makes the handle.
fn go_on(parts: Parts, segment: SegmentFile, meta: &SegmentMeta, unsealed: Vec<PathBuf>) -> Log {
    let Parts { options, hub, signer, notices } = parts;
    let segment = Arc::new(segment);
    let inbox = Inbox {
        requests: Default::default(),
        flagged: false,
        epoch: meta.epoch,
        appended: meta.head.size(),
        waiting_rows: 0,
        waiting_bytes: 0,
        durable: (meta.epoch, meta.head.clone()),
        active: segment.clone(),
        active_first: meta.first(),
        outage: None,
        closed: false,
    };
    let lane = Arc::new(LaneShared::new(hub.number_lane(), inbox, notices));
    check_behind(&lane, &segment, meta);
    drop(unsealed);
    hub.attach(Lane::new(
        lane.clone(),
        options.clone(),
        signer,
        segment,
        meta.head.clone(),
        meta.epoch,
        Sealer::default(),
    ));
    Log { lane, hub, options, predecessor: meta.predecessor }
}

/// Checks the rows against the tree on a thread of its own, so that folding need not wait for it.
fn check_behind(lane: &Arc<LaneShared>, segment: &Arc<SegmentFile>, meta: &SegmentMeta) {
    let (lane, segment, meta) = (lane.clone(), segment.clone(), meta.clone());
    let check = move || lane.tell(check::check_roots(&segment, &meta));
    if let Err(error) = thread::Builder::new().name("log-check".to_owned()).spawn(check) {
        tracing::warn!(%error, "the rows of the log are not checked against their root");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Seq;
    use std::ops::ControlFlow;
    use std::time::Duration;

    #[test]
    fn rows_that_were_acknowledged_are_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let options = || {
            let mut o = LogOptions::new(dir.path(), "f".parse().unwrap(), "n1".parse().unwrap());
            o.reserve_bytes = 1 << 20;
            o
        };
        let writer = Writer::start().unwrap();
        let opened = Log::open(options(), &writer, None, |_| ()).unwrap();
        let Opened::NeedsEpoch(vacant) = opened else { panic!("there was no log") };
        assert_eq!(vacant.reason, EpochReason::FirstStart);
        let log = vacant.begin(EpochId::new(1_795_000_000_000, 1)).unwrap();
        for seq in 1..=1000 {
            log.append(Seq(seq), format!("row {seq}").into_bytes()).unwrap();
        }
        let ticket = log.append(Seq(1001), b"last".to_vec()).unwrap();
        assert!(ticket.wait(Duration::from_secs(10)));
        let head = log.head();
        assert_eq!(head.seq, Seq(1001));
        drop(writer);

        let writer = Writer::start().unwrap();
        let opened = Log::open(options(), &writer, None, |_| ()).unwrap();
        let Opened::Continues(log) = opened else { panic!("the epoch goes on") };
        assert_eq!(log.head(), head);
        let mut rows = 0;
        log.replay(|_, _| {
            rows += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(rows, 1001);
    }
}
