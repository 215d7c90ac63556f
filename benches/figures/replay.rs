//! How fast a history becomes state again, and how soon after a kill.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use smgr::domain::id::Seq;
use smgr::domain::node::Node;
use smgr::store::{Log, LogOptions, LogReader, Opened, Writer, verify};
use smgr::wire::fold::Fold;
use smgr::wire::key::Signer;

use crate::Figure;

/// The best of so many runs: what is measured is the code, and the machine has other things to do.
const RUNS: usize = 3;

fn best(mut run: impl FnMut() -> anyhow::Result<Duration>) -> anyhow::Result<Duration> {
    let runs = (0..RUNS).map(|_| run()).collect::<Result<Vec<_>, _>>()?;
    runs.into_iter().min().context("there were runs")
}

/// Measures reading, decoding and evolving a whole log, with and without the proof that it is whole.
pub(crate) fn replay(folder: &Path) -> anyhow::Result<Vec<Figure>> {
    let mut count = 0_u64;
    let scan = best(|| {
        count = 0;
        let mut bytes = 0;
        let began = Instant::now();
        LogReader::new(folder).rows(None, |_, row| {
            count += 1;
            bytes += row.len();
            ControlFlow::Continue(())
        })?;
        std::hint::black_box(bytes);
        Ok(began.elapsed())
    })?;
    let plain = best(|| {
        let mut node = Node::default();
        let mut fold = Fold::new(&mut node);
        let began = Instant::now();
        LogReader::new(folder).rows(None, |pos, row| fold.row(pos.seq, row))?;
        let took = began.elapsed();
        if let Some((seq, why)) = fold.broken {
            bail!("event {seq}: {why}");
        }
        Ok(took)
    })?;
    let key = Signer::from_seed(&[5; 32]).public().for_notes("smgr/bench/n1")?;
    let verified = best(|| {
        let mut node = Node::default();
        let mut fold = Fold::new(&mut node);
        let began = Instant::now();
        let report = verify(folder, std::slice::from_ref(&key), &[], |pos, row| {
            match fold.row(pos.seq, row) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err("it does not follow".to_owned()),
            }
        })?;
        let took = began.elapsed();
        ensure!(report.faults.is_empty(), "the log does not verify: {:?}", report.faults);
        Ok(took)
    })?;
    let hashed = best(|| {
        let mut last = [0; 32];
        let began = Instant::now();
        LogReader::new(folder).rows(None, |_, row| {
            last = smgr::domain::tree::leaf(row).0;
            ControlFlow::Continue(())
        })?;
        std::hint::black_box(last);
        Ok(began.elapsed())
    })?;
    let rate = |time: Duration| count as f64 / time.as_secs_f64();
    let figure = |name, ours, floor| Figure {
        name,
        unit: "/s",
        smgr: rate(ours),
        other: "floor",
        measured: rate(floor),
    };
    Ok(vec![figure("replay", plain, scan), figure("replay-verified", verified, hashed)])
}

/// Measures how long a log that a kill left takes until its state is there and rows can be appended.
pub(crate) fn crash_open(folder: &Path) -> anyhow::Result<Vec<Figure>> {
    let segment = segment_of(folder)?;
    let began = Instant::now();
    let bytes = std::fs::read(&segment)?;
    let read = began.elapsed();
    let mib = bytes.len() >> 20;
    ensure!(mib >= 60, "the segment has only {mib} MiB");
    drop(bytes);

    let began = Instant::now();
    let writer = Writer::start()?;
    let options = LogOptions::new(folder, "bench".parse()?, "n1".parse()?);
    let signer = Signer::from_seed(&[5; 32]).for_notes("smgr/bench/n1")?;
    let opened = Log::open(options, &writer, Some(Box::new(signer)), |_| {})?;
    let Opened::Continues(log) = opened else { bail!("the log was not whole") };
    let mut node = Node::default();
    let mut fold = Fold::new(&mut node);
    let last = log.replay(|seq, row| fold.row(seq, row))?;
    let took = began.elapsed();
    if let Some((seq, why)) = fold.broken {
        bail!("event {seq}: {why}");
    }
    ensure!(last > Seq(0), "there were no rows");
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(vec![Figure {
        name: "crash-open",
        unit: "ms",
        smgr: ms(took),
        other: "floor",
        measured: ms(read),
    }])
}

fn segment_of(folder: &Path) -> anyhow::Result<std::path::PathBuf> {
    let epochs = LogReader::new(folder).epochs()?;
    let segments = epochs.into_iter().flat_map(|epoch| epoch.segments);
    segments.map(|segment| segment.path).next_back().context("there is no segment")
}
