//! How many rows a second become durable, beside a plain file with the same batches, and beside JetStream.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use futures_util::StreamExt as _;
use smgr::domain::id::{EpochId, Seq};
use smgr::store::{Log, LogNotice, LogOptions, Opened, Ticket, Writer};
use smgr::wire::key::Signer;

use crate::{Figure, history};

const ROW_BYTES: usize = 256;
const IN_FLIGHT: usize = 512;
/// Disks swing from second to second, so both sides take turns.
const ROUNDS: usize = 5;
const ROWS_PER_ROUND: u64 = 100_000;
const JETSTREAM_ROWS_PER_ROUND: usize = 4_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A log of its own in a folder, and how many rows each of its commits took.
pub(crate) struct Open {
    pub(crate) log: Log,
    batches: Arc<Mutex<Vec<u64>>>,
    full: Arc<AtomicBool>,
    _writer: Writer,
}

impl Open {
    pub(crate) fn begin(folder: &Path) -> anyhow::Result<Self> {
        let writer = Writer::start()?;
        let options = LogOptions::new(folder, "bench".parse()?, "n1".parse()?);
        let signer = Signer::from_seed(&[5; 32]).for_notes("smgr/bench/n1")?;
        let batches = Arc::new(Mutex::new(Vec::new()));
        let full = Arc::new(AtomicBool::new(false));
        let (told, said_full) = (batches.clone(), full.clone());
        let notices = move |notice| match notice {
            LogNotice::Durable { seq, .. } => {
                told.lock().expect("nobody panics with it").push(seq.0);
            }
            LogNotice::SegmentFull => said_full.store(true, Ordering::Relaxed),
            LogNotice::Checkpoint { .. }
            | LogNotice::Unavailable { .. }
            | LogNotice::Recovered
            | LogNotice::Sealed { .. }
            | LogNotice::RootChecked { .. }
            | LogNotice::Damaged { .. } => {}
        };
        let log = match Log::open(options, &writer, Some(Box::new(signer)), notices)? {
            Opened::Continues(log) => log,
            Opened::NeedsEpoch(vacant) => vacant.begin(EpochId::new(1_795_000_000_000, 7))?,
        };
        Ok(Self { log, batches, full, _writer: writer })
    }

    /// Says whether the segment has its size.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Begins the next segment.
    pub(crate) fn roll(&self, first: Seq, baseline: Vec<Arc<[u8]>>) -> anyhow::Result<()> {
        ensure!(self.log.roll(first, baseline)?.wait(PATIENCE), "no segment was begun");
        self.full.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Appends rows with so many in flight; returns how long that took and how many rows each commit had.
    fn append(
        &self,
        count: u64,
        mut row: impl FnMut(Seq) -> Arc<[u8]>,
    ) -> anyhow::Result<(Duration, Vec<u64>)> {
        let first = self.log.appended().1.0;
        self.batches.lock().expect("nobody panics with it").clear();
        let mut tickets: VecDeque<Ticket> = VecDeque::with_capacity(IN_FLIGHT);
        let began = Instant::now();
        for seq in first + 1..=first + count {
            if tickets.len() == IN_FLIGHT {
                let oldest = tickets.pop_front().expect("it is full");
                ensure!(oldest.wait(PATIENCE), "row {} did not become durable", oldest.seq());
            }
            tickets.push_back(self.log.append(Seq(seq), row(Seq(seq)))?);
        }
        let last = tickets.pop_back().context("rows were appended")?;
        ensure!(last.wait(PATIENCE), "the last row did not become durable");
        let took = began.elapsed();
        let heads = std::mem::take(&mut *self.batches.lock().expect("nobody panics with it"));
        let mut before = first;
        let sizes = heads.into_iter().map(|head| head - std::mem::replace(&mut before, head));
        Ok((took, sizes.collect()))
    }
}

/// Writes batches of rows to a plain file, each with one fdatasync; returns how long that took.
fn plain_file(path: &Path, batches: &[u64]) -> anyhow::Result<Duration> {
    let mut file = File::create(path)?;
    let largest = batches.iter().max().copied().unwrap_or(0);
    let rows = vec![7; usize::try_from(largest)? * ROW_BYTES];
    let began = Instant::now();
    for batch in batches {
        file.write_all(&rows[..usize::try_from(*batch)? * ROW_BYTES])?;
        file.sync_data()?;
    }
    Ok(began.elapsed())
}

/// Publishes rows to a stream with so many in flight, each acknowledged by the server; returns how long that took.
async fn stream_rows(context: &jetstream::Context, count: usize) -> anyhow::Result<Duration> {
    let row = bytes_of_a_row();
    let began = Instant::now();
    let acknowledged = futures_util::stream::iter(0..count)
        .map(|_| async {
            let sent = context.publish("bench.row", row.clone().into()).await?;
            sent.await?;
            anyhow::Ok(())
        })
        .buffer_unordered(IN_FLIGHT);
    let failed = acknowledged.filter_map(|done| std::future::ready(done.err()));
    if let Some(error) = std::pin::pin!(failed).next().await {
        return Err(error);
    }
    Ok(began.elapsed())
}

fn bytes_of_a_row() -> Vec<u8> {
    vec![7; ROW_BYTES]
}

/// Measures rows without their signatures against a plain file and against JetStream.
pub(crate) fn append(folder: &Path, nats: &str) -> anyhow::Result<Vec<Figure>> {
    let open = Open::begin(&folder.join("log"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let context = runtime.block_on(async {
        let context = jetstream::new(async_nats::connect(nats).await?);
        let stream = jetstream::stream::Config {
            name: "bench".to_owned(),
            subjects: vec!["bench.row".to_owned()],
            ..jetstream::stream::Config::default()
        };
        context.create_stream(stream).await?;
        anyhow::Ok(context)
    })?;
    let row: Arc<[u8]> = bytes_of_a_row().into();
    let (mut ours, mut plain, mut streamed) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    open.append(ROWS_PER_ROUND / 10, |_| row.clone())?;
    for round in 0..ROUNDS {
        let (took, batches) = open.append(ROWS_PER_ROUND, |_| row.clone())?;
        ours += took;
        plain += plain_file(&folder.join(format!("plain{round}")), &batches)?;
        streamed += runtime.block_on(stream_rows(&context, JETSTREAM_ROWS_PER_ROUND))?;
        let rows = |batches: &[u64]| ROWS_PER_ROUND as f64 / batches.len() as f64;
        eprintln_batches(round, batches.len(), rows(&batches));
    }
    let rounds = ROUNDS as f64;
    let rate = ROWS_PER_ROUND as f64 * rounds / ours.as_secs_f64();
    let jetstream = JETSTREAM_ROWS_PER_ROUND as f64 * rounds / streamed.as_secs_f64();
    let per_round = |time: Duration| time.as_secs_f64() * 1e3 / rounds;
    Ok(vec![
        Figure { name: "append", unit: "/s", smgr: rate, other: "jetstream", measured: jetstream },
        Figure {
            name: "append-time",
            unit: "ms",
            smgr: per_round(ours),
            other: "floor",
            measured: per_round(plain),
        },
    ])
}

#[expect(clippy::print_stderr, reason = "how a figure came about is for whoever watches")]
fn eprintln_batches(round: usize, commits: usize, rows: f64) {
    eprintln!("  round {round}: {commits} commits of {rows:.0} rows in the mean");
}

/// Measures events as the agent makes them, signature included, against signing alone.
pub(crate) fn append_signed(folder: &Path) -> anyhow::Result<Vec<Figure>> {
    let open = Open::begin(&folder.join("log"))?;
    let mut story = history::Story::begin();
    let signer = Signer::from_seed(&[9; 32]);
    let facts = story.take(usize::try_from(ROWS_PER_ROUND / 2)?);
    let (mut ours, mut signing) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let mut next = facts.iter();
        let seal = |seq| next.next().expect("as many facts as rows").seal(seq, &signer);
        ours += open.append(facts.len() as u64, seal)?.0;
        let began = Instant::now();
        for fact in &facts {
            std::hint::black_box(fact.seal(Seq(1), &signer));
        }
        signing += began.elapsed();
    }
    let rate = |time: Duration| (facts.len() * ROUNDS) as f64 / time.as_secs_f64();
    Ok(vec![Figure {
        name: "append-signed",
        unit: "/s",
        smgr: rate(ours),
        other: "floor",
        measured: rate(signing),
    }])
}
