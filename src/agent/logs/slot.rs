//! One slot: its two pipes, its file, its limits, and one batch of lines at a time.

mod inlet;
mod inspect;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use inlet::{GIVE_WAY, Inlet};
use inspect::Watch;

use super::face::Face;
use super::format::{Stamp, Writer};
use super::forward::{Forwarder, Forwarding, Goal};
use super::limit::{Bucket, Paced};
use super::lines::{self, Piece, Rest};
use super::pipe::{self, Scratch};
use super::queue::{Places, Queue};
use super::sink::Sink;
use super::{Counters, DropReason, LogNotice, LogSetup, Stream};
use crate::domain::id::{InstanceId, RunId};
use crate::domain::spec::{Forward, LogFormat, OnFull};

/// The most that one batch writes, so that a flood of empty lines does not grow without bound.
const OUT_BYTES_MAX: usize = 256 << 10;

/// How often dropped lines are told.
const DROPPED_EVERY: Duration = Duration::from_secs(60);

/// How often the matches of one rule are told.
const MATCHED_EVERY: Duration = Duration::from_secs(1);

/// When a file that refused a line that must not be dropped is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How the work on a pipe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// There may be more at once.
    More,
    /// Nothing until it is written to.
    Idle,
    /// What is there has to wait until then.
    Held(Instant),
}

/// How far the work on a pipe goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// To what was written before a command came that waits: it may say whose the rest is.
    Open,
    /// To a place in each pipe, whatever waits.
    To(Places),
}

/// What all slots use in turn.
#[derive(Debug)]
pub(super) struct Tools {
    scratch: Scratch,
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    out: Vec<u8>,
    ends: Vec<usize>,
    kept: Vec<usize>,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    forwarding: Forwarding,
    /// What is to be told.
    pub(super) notices: Vec<LogNotice>,
    /// Whether a file was rotated.
    pub(super) rotated: bool,
}

impl Tools {
    pub(super) fn new(queue: Arc<Queue>, counters: Arc<Counters>) -> io::Result<Self> {
        Ok(Self {
            queue,
            counters,
            forwarding: Forwarding::default(),
            scratch: Scratch::new()?,
            bytes: Vec::new(),
            pieces: Vec::new(),
            out: Vec::new(),
            ends: Vec::new(),
            kept: Vec::new(),
            notices: Vec::new(),
            rotated: false,
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Loss {
    lines: u64,
    bytes: u64,
    why: DropReason,
}

/// One attached slot.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: InstanceId,
    pub(super) setup: Arc<LogSetup>,
    pub(super) face: Arc<Face>,
    pub(super) inlets: [Inlet; 2],
    pub(super) sink: Sink,
    bucket: Bucket,
    run: Option<RunId>,
    before: Option<(RunId, Vec<String>)>,
    watch: Option<Watch>,
    matched: Vec<Paced<(u64, String)>>,
    lost: Paced<Loss>,
    draining: Vec<RunId>,
    failing: bool,
    /// When it is entered in the thread's timers.
    pub(super) due: Option<Instant>,
}

impl Slot {
    pub(super) fn new(id: InstanceId, face: Arc<Face>, now: Instant) -> Self {
        let setup = face.lock().setup.clone();
        let mut slot = Self {
            id,
            sink: Sink::new(setup.dir.clone(), setup.spec.format, setup.spec.max_size.0),
            bucket: Bucket::new(setup.spec.rate_limit, now),
            setup,
            face,
            inlets: Default::default(),
            run: None,
            before: None,
            watch: None,
            matched: Vec::new(),
            lost: Paced::new(DROPPED_EVERY),
            draining: Vec::new(),
            failing: false,
            due: None,
        };
        slot.pace_alerts();
        slot
    }

    /// Goes on with other pipes and another setup; what is known of its runs stays.
    pub(super) fn with_face(mut self, face: Arc<Face>, now: Instant) -> Self {
        let tail = std::mem::take(&mut self.face.lock().tail);
        let setup = {
            let mut shown = face.lock();
            shown.tail = tail;
            shown.setup.clone()
        };
        if let Some(watch) = &mut self.watch {
            watch.from = [0; 2];
        }
        self.face = face;
        self.inlets = Default::default();
        self.configure(setup, now);
        self
    }

    /// Takes over another setup; the file goes on where its folder is the same.
    pub(super) fn configure(&mut self, setup: Arc<LogSetup>, now: Instant) {
        self.face.lock().setup = setup.clone();
        self.sink = Sink::new(setup.dir.clone(), setup.spec.format, setup.spec.max_size.0);
        self.bucket = Bucket::new(setup.spec.rate_limit, now);
        self.setup = setup;
        self.pace_alerts();
    }

    fn pace_alerts(&mut self) {
        self.matched = self.setup.alerts.names().map(|_| Paced::new(MATCHED_EVERY)).collect();
    }

    /// Opens the file, so that what is wrong with it is told before a line is lost to it.
    pub(super) fn open(&mut self, tools: &mut Tools, now: Instant) {
        if let Err(error) = self.sink.open(now) {
            self.failed("open the log file", &error, tools);
        }
    }

    /// Says that lines from here on belong to `run`.
    pub(super) fn mark_run(&mut self, run: RunId, from: Option<Places>) {
        let lines = self.face.lock().turn(from);
        self.before = self.run.replace(run).map(|before| (before, lines));
        self.watch = None;
    }

    pub(super) fn drain(&mut self, run: RunId) {
        self.draining.push(run);
    }

    /// Says whether no process is left that could end an unfinished line.
    pub(super) fn is_draining(&self) -> bool {
        !self.draining.is_empty()
    }

    /// Takes one batch of lines from a pipe: copies, writes, consumes.
    pub(super) fn step(
        &mut self,
        stream: Stream,
        last: bool,
        extent: Extent,
        tools: &mut Tools,
        now: Instant,
    ) -> Step {
        match self.batch(stream, last, extent, tools, now) {
            Ok(step) => step,
            Err(error) => {
                // The pipe itself fails only by a defect; trying again at once would spin.
                self.failed("read the log pipe", &error, tools);
                Step::Held(now + RETRY)
            }
        }
    }

    fn batch(
        &mut self,
        stream: Stream,
        last: bool,
        extent: Extent,
        tools: &mut Tools,
        now: Instant,
    ) -> io::Result<Step> {
        let consumed = self.face.lock().consumed[stream as usize];
        let inlet = &mut self.inlets[stream as usize];
        inlet.held = None;
        tools.pieces.clear();
        let mut seen = tools.scratch.look(&self.face.pipes[stream as usize], &mut tools.bytes)?;
        match extent {
            Extent::Open if tools.queue.is_pending() => return Ok(Step::More),
            Extent::Open => {}
            Extent::To(places) => {
                let ahead = places[stream as usize].saturating_sub(consumed);
                let ahead = usize::try_from(ahead).unwrap_or(usize::MAX);
                match &mut seen {
                    Some(_) if ahead == 0 => seen = None,
                    Some(seen) if tools.bytes.len() >= ahead => {
                        tools.bytes.truncate(ahead);
                        seen.all = true;
                    }
                    _ => {}
                }
            }
        }
        match seen {
            None if last && inlet.within_line && self.setup.spec.format == LogFormat::Cri => {
                // Its line was split and will not go on: end it, or it would run into the next one.
                tools.bytes.clear();
                tools.pieces.push(Piece { text: 0..0, end: 0, part: false });
            }
            None => {
                inlet.unfinished = None;
                return Ok(Step::Idle);
            }
            Some(seen) => {
                let rest = if last && seen.all { Rest::Line } else { Rest::Wait };
                lines::split(&tools.bytes, self.setup.max_line(), rest, &mut tools.pieces);
                let unfinished = tools.pieces.is_empty();
                if unfinished && !seen.full && !inlet.has_waited(tools.bytes.len(), now) {
                    return Ok(inlet.look_again(now));
                }
                inlet.unfinished = None;
                inlet.give_way = if seen.full { GIVE_WAY } else { 0 };
                if unfinished {
                    lines::split(
                        &tools.bytes,
                        self.setup.max_line(),
                        Rest::Part,
                        &mut tools.pieces,
                    );
                }
            }
        }
        if tools.pieces.is_empty() {
            return Ok(Step::Idle);
        }
        let (taken, held) = self.write(stream, tools, now);
        self.inspect(stream, consumed, tools, taken, now);
        self.consume(stream, tools, taken)?;
        self.inlets[stream as usize].held = held;
        Ok(held.map_or(if seen.is_some() { Step::More } else { Step::Idle }, Step::Held))
    }

    /// Writes pieces from the front. Returns how many may be consumed, and until when the others wait.
    fn write(
        &mut self,
        stream: Stream,
        tools: &mut Tools,
        now: Instant,
    ) -> (usize, Option<Instant>) {
        let Tools { bytes, pieces, out, ends, kept, forwarding, .. } = tools;
        out.clear();
        ends.clear();
        kept.clear();
        let blocks = self.setup.spec.on_full == OnFull::Block;
        let writer = Writer::new(self.setup.spec.format, &Stamp::now(), stream);
        let mut held = None;
        let mut taken = 0;
        let mut lost = Loss { lines: 0, bytes: 0, why: DropReason::RateLimit };
        for (at, piece) in pieces.iter().enumerate() {
            if out.len() >= OUT_BYTES_MAX {
                break;
            }
            if self.bucket.take(now) {
                writer.push(&self.setup.redacted(&bytes[piece.text.clone()]), piece.part, out);
                ends.push(out.len());
                kept.push(at);
            } else if blocks {
                held = Some(self.bucket.next(now));
                break;
            } else {
                lost.lines += 1;
                lost.bytes += piece.text.len() as u64;
            }
            taken = at + 1;
        }
        let outcome = self.sink.append(out, ends, now);
        if let Some(goal) = goal(self.setup.spec.forward) {
            // What the file has to take again is forwarded then.
            let held_back = outcome.error.is_some() && blocks;
            let count = if held_back { outcome.lines } else { kept.len() };
            let texts: Vec<_> = kept[..count]
                .iter()
                .map(|at| self.setup.redacted(&bytes[pieces[*at].text.clone()]))
                .collect();
            let texts = texts.iter().map(|text| &**text);
            let (lines, bytes) = match forwarding.get(now, Forwarder::start) {
                Some(forwarder) => forwarder.push(goal, &self.id, stream, texts),
                None => texts.fold((0, 0), |sum, text| (sum.0 + 1, sum.1 + text.len() as u64)),
            };
            self.lose(Loss { lines, bytes, why: DropReason::Forward });
        }
        Counters::add(&tools.counters.lines, outcome.lines as u64);
        tools.rotated |= outcome.rotated;
        match outcome.error {
            None if ends.is_empty() => {}
            None => self.failing = false,
            Some(error) if blocks => {
                taken = kept[outcome.lines];
                held = Some(now + RETRY);
                self.failed("write the log file", &error, tools);
            }
            Some(error) => {
                for at in &kept[outcome.lines..] {
                    lost.lines += 1;
                    lost.bytes += pieces[*at].text.len() as u64;
                }
                lost.why = reason(&error);
                self.failed("write the log file", &error, tools);
            }
        }
        if lost.lines > 0 {
            Counters::add(&tools.counters.dropped_lines, lost.lines);
            Counters::add(&tools.counters.dropped_bytes, lost.bytes);
            self.lose(lost);
        }
        (taken, held)
    }

    fn lose(&mut self, lost: Loss) {
        if lost.lines == 0 {
            return;
        }
        self.lost.add(|sum| match sum {
            None => lost,
            Some(sum) => Loss {
                lines: sum.lines + lost.lines,
                bytes: sum.bytes + lost.bytes,
                why: sum.why.max(lost.why),
            },
        });
    }

    /// Moves the pieces that are taken from the pipe to the tail.
    fn consume(&mut self, stream: Stream, tools: &Tools, taken: usize) -> io::Result<()> {
        let Some(piece) = taken.checked_sub(1).map(|at| &tools.pieces[at]) else { return Ok(()) };
        self.inlets[stream as usize].within_line = piece.part;
        let keep = usize::from(self.setup.spec.tail_lines);
        // Whoever asks for the last lines looks at both, and must see each line once.
        let mut shown = self.face.lock();
        for piece in &tools.pieces[taken.saturating_sub(keep)..taken] {
            shown.tail.push(&self.setup.redacted(&tools.bytes[piece.text.clone()]), keep);
        }
        tools.scratch.consume(&self.face.pipes[stream as usize], piece.end)?;
        shown.consumed[stream as usize] += piece.end as u64;
        shown.announce();
        Counters::add(&tools.counters.bytes, piece.end as u64);
        Ok(())
    }

    /// Tells what may be told now.
    pub(super) fn release(&mut self, tools: &mut Tools, now: Instant) {
        if let Some(Loss { lines, bytes, why }) = self.lost.release(now) {
            let slot = self.id.clone();
            tools.notices.push(LogNotice::Dropped { slot, lines, bytes, why });
        }
        for (rule, paced) in self.setup.alerts.names().zip(&mut self.matched) {
            if let Some((lines, line)) = paced.release(now) {
                let (slot, rule) = (self.id.clone(), rule.clone());
                tools.notices.push(LogNotice::Matched { slot, rule, lines, line });
            }
        }
    }

    /// Answers those who wait for the end of the output, when it is there or cannot come.
    pub(super) fn finish_draining(&mut self, tools: &mut Tools, now: Instant) {
        if self.draining.is_empty() {
            return;
        }
        let done = |inlet: &Inlet| inlet.is_held(now) || !inlet.queued;
        if !self.inlets.iter().all(done) {
            return;
        }
        let left = |pipe| pipe::queued(pipe).unwrap_or(0) as u64;
        let left_bytes = self.face.pipes.iter().map(left).sum();
        for run in std::mem::take(&mut self.draining) {
            let tail = match &self.before {
                Some((before, lines)) if *before == run => lines.clone(),
                _ if self.run.is_none_or(|of| of == run) => self.face.lock().tail.all(),
                _ => Vec::new(),
            };
            tools.notices.push(LogNotice::Drained { slot: self.id.clone(), run, tail, left_bytes });
        }
    }

    /// Returns when something has to be done although nothing is written.
    pub(super) fn next_due(&self) -> Option<Instant> {
        // A pipe that stands in the queue is looked at anyway.
        let idle = || self.inlets.iter().filter(|inlet| !inlet.queued);
        let held = idle().filter_map(|inlet| inlet.held);
        let looked = idle().filter_map(|inlet| inlet.unfinished.as_ref());
        let looked = looked.map(|unfinished| unfinished.look_at);
        let told = self.matched.iter().filter_map(Paced::due);
        held.chain(looked).chain(told).chain(self.lost.due()).min()
    }

    fn failed(&mut self, what: &'static str, error: &io::Error, tools: &mut Tools) {
        if !std::mem::replace(&mut self.failing, true) {
            let errno = error.raw_os_error().unwrap_or(0);
            tools.notices.push(LogNotice::Failed { slot: self.id.clone(), what, errno });
        }
    }
}

fn goal(forward: Forward) -> Option<Goal> {
    match forward {
        Forward::None => None,
        Forward::Journald => Some(Goal::Journal),
        Forward::Stdout => Some(Goal::Stdout),
    }
}

fn reason(error: &io::Error) -> DropReason {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    if full.contains(&error.kind()) { DropReason::DiskFull } else { DropReason::IoError }
}
