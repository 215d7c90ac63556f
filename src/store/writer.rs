//! The writer: one thread that commits the rows of several logs, and a watch over its commits.
//!
//! It sleeps until a row comes, takes what is there, commits it with one sync, and tells the owner.
//! There is no artificial delay: while one batch syncs, the next one gathers.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::store::inbox::LaneShared;
use crate::store::lane::Lane;
use crate::store::{LogNotice, Outage};

/// How long a commit may take before the log counts as unavailable.
pub const STALL_AFTER: Duration = Duration::from_secs(2);

/// How long the writer stays awake for rows that were announced: a few signatures take as long.
const ANNOUNCED_FOR: Duration = Duration::from_micros(200);

/// A thread that writes logs. Dropping it commits what was appended and stops the thread.
#[derive(Debug)]
pub struct Writer {
    hub: Arc<Hub>,
    threads: Vec<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread and the watch over it.
    pub fn start() -> io::Result<Self> {
        let hub = Arc::new(Hub::default());
        let mut writer = Self { hub: hub.clone(), threads: Vec::new() };
        let watched = hub.clone();
        let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
        writer.threads.push(spawn("log-writer").spawn(move || run(&hub))?);
        writer.threads.push(spawn("log-watch").spawn(move || watch(&watched))?);
        Ok(writer)
    }

    pub(crate) fn hub(&self) -> Arc<Hub> {
        self.hub.clone()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.hub.lock().closing = true;
        self.hub.work.notify_all();
        self.hub.watch.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of the thread was reported by its hook; there is nothing left to close.
            drop(thread.join());
        }
    }
}

/// Where handles and the writer thread meet.
#[derive(Default, Debug)]
pub(crate) struct Hub {
    state: Mutex<HubState>,
    /// Wakes the writer: a lane has work, or all is to end.
    work: Condvar,
    /// Wakes the watch: a commit has begun after a quiet time, or all is to end.
    watch: Condvar,
    /// Held while a stall is told of, so that its end is told of after it. Whoever holds it takes no other lock of the
    /// hub: the owner, who is told, may be waiting for one.
    telling: Mutex<()>,
    /// Rows are being made that a lane will have in a moment.
    announced: AtomicBool,
}

#[derive(Default, Debug)]
struct HubState {
    attached: Vec<Lane>,
    /// Lanes that have something in their inbox; each stands here at most once.
    ready: Vec<u64>,
    next_lane: u64,
    commit: Option<Commit>,
    watching: bool,
    closing: bool,
}

#[derive(Debug)]
struct Commit {
    since: Instant,
    lane: Weak<LaneShared>,
    told: bool,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, HubState> {
        // The state is a few plain values that no panic leaves half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves the number of a lane.
    pub(crate) fn number_lane(&self) -> u64 {
        let mut state = self.lock();
        state.next_lane += 1;
        state.next_lane
    }

    /// Hands a lane to the writer thread.
    pub(crate) fn attach(&self, lane: Lane) {
        self.lock().attached.push(lane);
        self.work.notify_one();
    }

    /// Wakes the writer for rows that are still being made: to wake takes as long as to sign one.
    pub(crate) fn announce(&self) {
        self.announced.store(true, Ordering::Release);
        self.work.notify_one();
    }

    /// Waits for rows that were announced, for a moment and without going to sleep.
    fn await_announced(&self) {
        let since = Instant::now();
        while self.announced.load(Ordering::Acquire) {
            if since.elapsed() > ANNOUNCED_FOR {
                self.announced.store(false, Ordering::Release);
                return;
            }
            thread::yield_now();
        }
    }

    /// Tells the writer that a lane's inbox is no longer empty.
    pub(crate) fn wake(&self, lane: u64) {
        self.lock().ready.push(lane);
        self.announced.store(false, Ordering::Release);
        self.work.notify_one();
    }

    /// Marks the time in which `lane` waits for the disk.
    pub(crate) fn commit_begins(&self, lane: &Arc<LaneShared>) {
        let mut state = self.lock();
        let commit = Commit { since: Instant::now(), lane: Arc::downgrade(lane), told: false };
        state.commit = Some(commit);
        if !state.watching {
            state.watching = true;
            self.watch.notify_one();
        }
    }

    /// Ends what [`Hub::commit_begins`] began; says whether it was reported as stalled.
    pub(crate) fn commit_ends(&self) -> bool {
        let was_told = self.lock().commit.take().is_some_and(|commit| commit.told);
        if was_told {
            drop(self.telling.lock().unwrap_or_else(PoisonError::into_inner));
        }
        was_told
    }
}

fn run(hub: &Arc<Hub>) {
    let mut lanes: BTreeMap<u64, Lane> = BTreeMap::new();
    loop {
        let mut state = hub.lock();
        while state.attached.is_empty() && state.ready.is_empty() && !state.closing {
            if hub.announced.load(Ordering::Acquire) {
                drop(state);
                hub.await_announced();
                state = hub.lock();
                continue;
            }
            let due = lanes.values().filter_map(Lane::due).min();
            let wait = due.map(|due| due.saturating_duration_since(Instant::now()));
            state = match wait {
                None => hub.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(wait) => {
                    hub.work.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        lanes.extend(state.attached.drain(..).map(|lane| (lane.number(), lane)));
        let mut ready = std::mem::take(&mut state.ready);
        let closing = state.closing;
        drop(state);

        let now = Instant::now();
        if closing {
            lanes.values_mut().for_each(|lane| lane.close(hub));
            return;
        }
        ready.extend(
            lanes
                .values()
                .filter(|lane| lane.due().is_some_and(|due| due <= now))
                .map(Lane::number),
        );
        ready.sort_unstable();
        ready.dedup();
        for number in ready {
            if let Some(lane) = lanes.get_mut(&number)
                && lane.turn(hub)
            {
                lanes.remove(&number);
            }
        }
    }
}

/// Reports a commit that takes too long. Sleeps without a timer while nothing is written.
fn watch(hub: &Hub) {
    let mut state = hub.lock();
    loop {
        if state.closing {
            return;
        }
        if !state.watching {
            state = hub.watch.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let Some(commit) = &mut state.commit else {
            state.watching = false;
            continue;
        };
        let age = commit.since.elapsed();
        if age >= STALL_AFTER && !commit.told {
            commit.told = true;
            let lane = commit.lane.upgrade();
            if let Some(lane) = &lane {
                // Before the commit can end, which takes it back.
                lane.lock().stuck = true;
            }
            // Taken before the commit can end, and held beyond the hub's own lock.
            let telling = hub.telling.lock().unwrap_or_else(PoisonError::into_inner);
            drop(state);
            if let Some(lane) = lane {
                let why = format!("a write has been waiting for the disk for {age:?}");
                lane.tell(LogNotice::Unavailable { kind: Outage::Stalled, why });
            }
            drop(telling);
            state = hub.lock();
            continue;
        }
        let wait = STALL_AFTER.saturating_sub(age);
        // A commit that was told of ends by itself: look again at the same pace.
        let wait = if wait.is_zero() { STALL_AFTER } else { wait };
        state = hub.watch.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
    }
}
