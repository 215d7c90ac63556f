//! The loop of the log thread: which pipe is worked on, and when.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use regex::Regex;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::face::Face;
use super::queue::{Command, Queue, Taken};
use super::slot::{Extent, Slot, Step, Tools};
use super::sweep::{Sweep, Sweeper};
use super::{Counters, LogNotice, Stream, read};
use crate::domain::id::{InstanceId, RunId};

/// What the wake of the queue is called in the epoll; slots are numbered from 1.
const QUEUE: u64 = 0;

/// Batches between two looks at what else has happened.
const BATCHES_PER_TURN: usize = 32;

/// Batches that a slot gets at once when its state is about to change.
const BATCHES_AT_ONCE: usize = 64;

/// How often old files are looked for where nothing is rotated.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// All that there is, whatever waits.
const EVERYTHING: Extent = Extent::To([u64::MAX; 2]);

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// What was said of the first run of a slot before the slot was attached.
struct Early {
    run: RunId,
    ready: Option<Regex>,
}

/// The log thread's own state.
pub(super) struct Worker {
    epoll: OwnedFd,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    notify: Box<dyn Fn(LogNotice) + Send>,
    slots: BTreeMap<u64, Slot>,
    names: BTreeMap<InstanceId, u64>,
    /// Runs of slots whose pipes are still being made: they come with the answer to the first spawn.
    early: BTreeMap<InstanceId, Early>,
    number: u64,
    ready: VecDeque<(u64, Stream)>,
    timers: BTreeSet<(Instant, u64)>,
    tools: Tools,
    sweeper: Sweeper,
    sweep_at: Instant,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn new(
        queue: Arc<Queue>,
        counters: Arc<Counters>,
        notify: Box<dyn Fn(LogNotice) + Send>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*queue, epoll::EventData::new_u64(QUEUE), epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            tools: Tools::new(queue.clone(), counters.clone())?,
            queue,
            counters,
            notify,
            slots: BTreeMap::new(),
            names: BTreeMap::new(),
            early: BTreeMap::new(),
            number: QUEUE,
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            sweeper: Sweeper::start()?,
            sweep_at: Instant::now() + SWEEP_EVERY,
        })
    }

    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            let timeout = self.timeout(Instant::now());
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the log thread cannot wait for its pipes and ends");
                    return;
                }
            }
            self.counters.wakeups.fetch_add(1, Ordering::Relaxed);
            for event in &events {
                match event.data.u64() {
                    QUEUE => self.queue.hear(),
                    data => self.enqueue(data >> 1, STREAMS[(data & 1) as usize], Instant::now()),
                }
            }
            self.fire(Instant::now());
            for _ in 0..BATCHES_PER_TURN {
                while self.queue.is_pending() {
                    match self.queue.take() {
                        Taken::Command(command) => self.obey(command),
                        Taken::Nothing => {}
                        Taken::Closed => return,
                    }
                }
                let Some((number, stream)) = self.ready.pop_front() else { break };
                self.work(number, stream);
            }
        }
    }

    fn timeout(&self, now: Instant) -> Option<Timespec> {
        let due = self.timers.first().map_or(self.sweep_at, |(at, _)| self.sweep_at.min(*at));
        let wait = match self.ready.is_empty() {
            true => due.saturating_duration_since(now),
            false => Duration::ZERO,
        };
        Timespec::try_from(wait).ok()
    }

    fn enqueue(&mut self, number: u64, stream: Stream, now: Instant) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        let inlet = &mut slot.inlets[stream as usize];
        if !inlet.queued && !inlet.is_held(now) {
            inlet.queued = true;
            self.ready.push_back((number, stream));
        }
    }

    /// Does one batch of one pipe.
    fn work(&mut self, number: u64, stream: Stream) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        let now = Instant::now();
        let last = slot.is_draining();
        let step = slot.step(stream, last, Extent::Open, &mut self.tools, now);
        let more = step == Step::More;
        slot.inlets[stream as usize].queued = more;
        if more {
            self.ready.push_back((number, stream));
        }
        self.settle(number, now);
    }

    /// Does all that is in the pipes of a slot, within reason.
    fn work_through(&mut self, number: u64, last: bool, extent: Extent) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        let now = Instant::now();
        for stream in STREAMS {
            for _ in 0..BATCHES_AT_ONCE {
                let step = slot.step(stream, last, extent, &mut self.tools, now);
                if step != Step::More || (extent == Extent::Open && self.queue.is_pending()) {
                    break;
                }
            }
        }
        self.settle(number, now);
    }

    /// Lets go of what was found out, and sets the slot's timer.
    fn settle(&mut self, number: u64, now: Instant) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        slot.finish_draining(&mut self.tools, now);
        let due = slot.next_due();
        if slot.due != due {
            if let Some(before) = std::mem::replace(&mut slot.due, due) {
                self.timers.remove(&(before, number));
            }
            self.timers.extend(due.map(|at| (at, number)));
        }
        if std::mem::take(&mut self.tools.rotated) {
            self.sweeper.sweep(Sweep::of(&slot.setup));
        }
        self.tell();
    }

    fn tell(&mut self) {
        self.tools.notices.drain(..).for_each(&self.notify);
    }

    fn fire(&mut self, now: Instant) {
        while let Some((_, number)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.pop_first();
            if let Some(slot) = self.slots.get_mut(&number) {
                slot.due = None;
                slot.release(&mut self.tools, now);
            }
            // A pipe that was held has no event of its own: what is in it has been there before.
            STREAMS.into_iter().for_each(|stream| self.enqueue(number, stream, now));
            self.settle(number, now);
        }
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_EVERY;
            self.slots.values().for_each(|slot| self.sweeper.sweep(Sweep::of(&slot.setup)));
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach { slot, face } => self.attach(slot, face),
            Command::Configure { slot, setup } => {
                if let Some(number) = self.names.get(&slot).copied() {
                    self.with(number, |slot, tools, now| {
                        slot.configure(Arc::new(*setup), now);
                        slot.open(tools, now);
                    });
                }
            }
            Command::MarkRun { slot, run, from } => match self.names.get(&slot).copied() {
                Some(number) => {
                    self.work_through(number, true, Extent::To(from));
                    self.with(number, |slot, _, _| slot.mark_run(run, Some(from)));
                }
                None => drop(self.early.insert(slot, Early { run, ready: None })),
            },
            Command::WatchReady { slot, run, pattern, since, from } => {
                match self.names.get(&slot).copied() {
                    Some(number) => self.with(number, |slot, tools, _| {
                        // For an adopted run, all that is in the pipe may be the sign as well.
                        slot.watch(run, pattern, if since.is_some() { [0; 2] } else { from });
                        let Some(since) = since else { return };
                        for line in read::lines_since(slot.sink.dir(), since) {
                            tools.notices.extend(slot.look_for_ready(line.as_bytes()));
                        }
                    }),
                    None => {
                        let early = self.early.get_mut(&slot).filter(|early| early.run == run);
                        if let Some(early) = early {
                            early.ready = Some(pattern);
                        }
                    }
                }
            }
            Command::Drained { slot, run } => match self.names.get(&slot).copied() {
                Some(number) => {
                    self.with(number, |slot, _, _| slot.drain(run));
                    let now = Instant::now();
                    STREAMS.into_iter().for_each(|stream| self.enqueue(number, stream, now));
                    self.settle(number, now);
                }
                None => {
                    (self.notify)(LogNotice::Drained {
                        slot,
                        run,
                        tail: Vec::new(),
                        left_bytes: 0,
                    });
                }
            },
            Command::Read { slot, n, dir, reply } => {
                let number = self.names.get(&slot).copied();
                let dir = number.map_or(dir, |number| {
                    self.work_through(number, false, Extent::Open);
                    Some(self.slots[&number].sink.dir().to_owned())
                });
                match dir {
                    Some(dir) => self.sweeper.read(dir, n, reply),
                    // Whoever asked may have gone.
                    None => drop(reply.send(Ok(Vec::new()))),
                }
            }
            Command::Detach { slot } => {
                self.early.remove(&slot);
                if let Some(number) = self.names.remove(&slot) {
                    self.work_through(number, true, EVERYTHING);
                    self.forget(number);
                }
            }
        }
    }

    fn attach(&mut self, id: InstanceId, face: Arc<Face>) {
        let now = Instant::now();
        // A number is never used twice: an event may still be under way for the old pipes.
        self.number += 1;
        let number = self.number;
        let slot = match self.names.insert(id.clone(), number) {
            Some(before) => {
                self.work_through(before, false, EVERYTHING);
                let slot = self.forget(before).expect("a named slot exists");
                slot.with_face(face, now)
            }
            None => {
                let early = self.early.remove(&id);
                let mut slot = Slot::new(id, face, now);
                if let Some(Early { run, ready }) = early {
                    slot.mark_run(run, None);
                    // The pipes are as new as the run: all that is in them is its own.
                    ready.into_iter().for_each(|pattern| slot.watch(run, pattern, [0; 2]));
                }
                slot
            }
        };
        self.sweeper.sweep(Sweep::of(&slot.setup));
        for (bit, pipe) in (0..).zip(&slot.face.pipes) {
            let data = epoll::EventData::new_u64(number << 1 | bit);
            // Edges, because an unfinished line stays in its pipe and would wake us for ever.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            if let Err(error) = epoll::add(&self.epoll, pipe, data, flags) {
                self.tools.notices.push(LogNotice::Failed {
                    slot: slot.id.clone(),
                    what: "watch the log pipe",
                    errno: error.raw_os_error(),
                });
            }
        }
        self.slots.insert(number, slot);
        self.with(number, |slot, tools, now| slot.open(tools, now));
        self.count();
    }

    fn forget(&mut self, number: u64) -> Option<Slot> {
        let mut slot = self.slots.remove(&number)?;
        for pipe in &slot.face.pipes {
            // The keeper holds the same pipe, so closing ours would not end the watch.
            if let Err(error) = epoll::delete(&self.epoll, pipe) {
                tracing::debug!(%error, slot = %slot.id, "a log pipe was not watched");
            }
        }
        if let Some(due) = slot.due.take() {
            self.timers.remove(&(due, number));
        }
        self.count();
        Some(slot)
    }

    fn count(&self) {
        self.counters.slots.store(self.slots.len() as u64, Ordering::Relaxed);
    }

    fn with(&mut self, number: u64, act: impl FnOnce(&mut Slot, &mut Tools, Instant)) {
        if let Some(slot) = self.slots.get_mut(&number) {
            act(slot, &mut self.tools, Instant::now());
        }
        self.tell();
    }
}
