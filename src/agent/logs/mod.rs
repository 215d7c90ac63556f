//! The log thread: takes what services write and keeps it in files.
//!
//! One thread with its own epoll owns the log pipes of all slots, so a stalled disk stops neither the
//! agent nor a restart. Lines are duplicated with `tee`, written, and only then consumed: after a
//! `kill -9` none is lost, and the last batch may stand twice. Nothing wakes while nothing is written.
//! What is decided about a line of output (an event, an alert) belongs to whoever gets the notices.

mod face;
mod format;
mod forward;
mod limit;
mod lines;
mod pipe;
mod queue;
mod read;
mod rules;
mod setup;
mod sink;
mod slot;
mod sweep;
mod tail;
#[cfg(test)]
mod tests;
mod thread;
mod zstd;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use regex::Regex;
use tokio::sync::{Notify, oneshot};

use crate::domain::id::{AlertName, InstanceId, RunId};
use crate::domain::time::UnixMicros;

use face::{Face, Faces};
use queue::{Command, Queue};

pub use queue::LogBusy;
pub use read::{READ_LINES_MAX, open_log};
pub use setup::{LogSetup, LogSetupError};

/// What the log thread tells. At most one `Dropped` a minute and slot, one `Matched` a second and rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogNotice {
    /// A line matched the pattern of [`LogHandle::watch_ready`]; the watch has ended.
    Ready {
        /// Of which slot.
        slot: InstanceId,
        /// The run that was watched.
        run: RunId,
        /// The line, redacted.
        line: String,
    },
    /// Lines matched an alert rule.
    Matched {
        /// Of which slot.
        slot: InstanceId,
        /// The rule's name.
        rule: AlertName,
        /// How many lines since the last notice of this rule.
        lines: u64,
        /// The last of them, redacted.
        line: String,
    },
    /// Lines were taken from the pipe and not written, or not forwarded.
    Dropped {
        /// Of which slot.
        slot: InstanceId,
        /// How many since the last notice.
        lines: u64,
        /// Their length as the service wrote them.
        bytes: u64,
        /// Why; the gravest reason when there were several.
        why: DropReason,
    },
    /// The answer to [`LogHandle::drained`].
    Drained {
        /// Of which slot.
        slot: InstanceId,
        /// The run that was asked about.
        run: RunId,
        /// Its last lines, oldest first, redacted.
        tail: Vec<String>,
        /// What stays in the pipes because `on_full = "block"` holds it back; 0 otherwise.
        left_bytes: u64,
    },
    /// Something does not work; said once until it has worked again.
    Failed {
        /// Of which slot.
        slot: InstanceId,
        /// What was tried.
        what: &'static str,
        /// The kernel's error number.
        errno: i32,
    },
}

/// Why lines were dropped, the gravest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// They stand in the file, but where `forward` sends them could not take them.
    Forward,
    /// More lines a second than `rate_limit`.
    RateLimit,
    /// No space, or a quota.
    DiskFull,
    /// Any other error of the log file.
    IoError,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::RateLimit => "rate_limit",
            Self::DiskFull => "disk_full",
            Self::IoError => "io_error",
        })
    }
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What the log thread has done since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Lines written.
    pub lines: u64,
    /// Bytes taken from pipes, dropped ones included.
    pub bytes: u64,
    /// Lines dropped.
    pub dropped_lines: u64,
    /// Bytes dropped.
    pub dropped_bytes: u64,
    /// How often the thread was woken.
    pub wakeups: u64,
    /// Slots attached.
    pub slots: u64,
}

/// The counters behind [`LogStats`].
#[derive(Debug, Default)]
struct Counters {
    lines: AtomicU64,
    bytes: AtomicU64,
    dropped_lines: AtomicU64,
    dropped_bytes: AtomicU64,
    wakeups: AtomicU64,
    slots: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

/// The running log thread. Dropped without [`LogThread::stop`], it ends with the process.
#[derive(Debug)]
pub struct LogThread {
    handle: LogHandle,
    thread: JoinHandle<()>,
}

impl LogThread {
    /// Starts the thread.
    ///
    /// `events` is called on the log thread. While it waits, nothing is read from any pipe, so it
    /// should put the notice into a channel and return.
    ///
    /// # Errors
    ///
    /// The kernel refuses an epoll, an eventfd, a pipe or a thread.
    pub fn start(events: impl Fn(LogNotice) + Send + 'static) -> io::Result<Self> {
        let queue = Arc::new(Queue::new()?);
        let counters = Arc::new(Counters::default());
        let worker = thread::Worker::new(queue.clone(), counters.clone(), Box::new(events))?;
        let thread =
            std::thread::Builder::new().name("smgr-log".to_owned()).spawn(|| worker.run())?;
        Ok(Self { handle: LogHandle { queue, counters, faces: Arc::default() }, thread })
    }

    /// Returns what others speak to the thread with.
    pub fn handle(&self) -> &LogHandle {
        &self.handle
    }

    /// Ends the thread after the batch it is at. What is left in the pipes stays there for the next one.
    pub fn stop(self) {
        self.handle.queue.close();
        if self.thread.join().is_err() {
            tracing::error!("the log thread had panicked");
        }
    }
}

/// Speaks to the log thread. Nothing here waits: a request is queued, or refused when too many wait.
#[derive(Debug, Clone)]
pub struct LogHandle {
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    faces: Arc<Faces>,
}

impl LogHandle {
    /// Takes over the pipes of a slot, reading ends (or both ends) as the keeper passed them.
    ///
    /// A slot that is attached already gets the new pipes and keeps its lines.
    pub fn attach(
        &self,
        slot: InstanceId,
        setup: LogSetup,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<(), LogBusy> {
        let face = Arc::new(Face::new(setup, stdout, stderr));
        self.queue.push(Command::Attach { slot: slot.clone(), face: face.clone() })?;
        self.faces.insert(slot, face);
        Ok(())
    }

    /// Changes how the lines of an attached slot are kept, from the next batch on.
    pub fn configure(&self, slot: InstanceId, setup: LogSetup) -> Result<(), LogBusy> {
        self.queue.push(Command::Configure { slot, setup: Box::new(setup) })
    }

    /// Says that what is written from here on belongs to `run`. Called before the spawn.
    ///
    /// What is in the pipes belongs to the run before; its unfinished last line ends here.
    pub fn mark_run(&self, slot: InstanceId, run: RunId) -> Result<(), LogBusy> {
        let from = self.faces.begin(&slot);
        self.queue.push(Command::MarkRun { slot, run, from })
    }

    /// Asks for one [`LogNotice::Ready`] at the first line that matches. Called before the spawn.
    ///
    /// For a run that was adopted, `since` is the time of its start: lines that are in the file since
    /// then count as well (only in the CRI format, which has times).
    pub fn watch_ready(
        &self,
        slot: InstanceId,
        run: RunId,
        pattern: Regex,
        since: Option<UnixMicros>,
    ) -> Result<(), LogBusy> {
        let from = self.faces.ends(&slot);
        self.queue.push(Command::WatchReady { slot, run, pattern, since, from })
    }

    /// Asks for one [`LogNotice::Drained`] when the pipes of the slot are empty. Called when no
    /// process of the run is left; an unfinished last line is written then.
    pub fn drained(&self, slot: InstanceId, run: RunId) -> Result<(), LogBusy> {
        self.queue.push(Command::Drained { slot, run })
    }

    /// Returns the last lines of the slot's present run, redacted, oldest first, at most `tail_lines`.
    ///
    /// Those that are still in the pipes are among them, so it may be called at an exit without
    /// waiting for anything; it never touches the disk. An unknown slot has none.
    pub fn tail_now(&self, slot: &InstanceId) -> Vec<String> {
        self.faces.last_lines(slot)
    }

    /// Returns the last lines of the slot's files as they are written there, at most `n` and at most
    /// [`READ_LINES_MAX`], oldest first.
    ///
    /// Of a slot that is not attached they are those in `dir`, if there are any. The receiver fails when too many read.
    pub fn read_lines(
        &self,
        slot: InstanceId,
        n: usize,
        dir: Option<PathBuf>,
    ) -> Result<oneshot::Receiver<io::Result<Vec<String>>>, LogBusy> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Command::Read { slot, n, dir, reply })?;
        Ok(answer)
    }

    /// Notifies when the next lines of a slot are written, once, and as long as `notify` lives. An unknown slot never
    /// has any.
    pub fn tell_when_written(&self, slot: &InstanceId, notify: &Arc<Notify>) {
        self.faces.tell(slot, notify);
    }

    /// Writes what is in the pipes of a slot and lets go of them.
    pub fn detach(&self, slot: InstanceId) -> Result<(), LogBusy> {
        self.queue.push(Command::Detach { slot: slot.clone() })?;
        self.faces.remove(&slot);
        Ok(())
    }

    /// Returns what was done so far, without asking the thread.
    pub fn stats(&self) -> LogStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogStats {
            lines: read(&self.counters.lines),
            bytes: read(&self.counters.bytes),
            dropped_lines: read(&self.counters.dropped_lines),
            dropped_bytes: read(&self.counters.dropped_bytes),
            wakeups: read(&self.counters.wakeups),
            slots: read(&self.counters.slots),
        }
    }
}
