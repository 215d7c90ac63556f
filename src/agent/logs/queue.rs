//! The way to the log thread: a bounded queue and a descriptor that wakes its epoll.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use regex::Regex;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use super::LogSetup;
use super::face::Face;
use crate::domain::id::{InstanceId, RunId};
use crate::domain::time::UnixMicros;

/// The commands that may wait: some five for each start of each of a thousand instances, twice over.
const COMMANDS_MAX: usize = 10_000;

/// Says that the log thread is too far behind, or has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log thread does not keep up: {COMMANDS_MAX} requests wait for it")]
pub struct LogBusy;

/// All that the log thread can be asked for.
#[derive(Debug)]
pub(super) enum Command {
    Attach { slot: InstanceId, face: Arc<Face> },
    Configure { slot: InstanceId, setup: Box<LogSetup> },
    MarkRun { slot: InstanceId, run: RunId },
    WatchReady { slot: InstanceId, run: RunId, pattern: Regex, since: Option<UnixMicros> },
    Drained { slot: InstanceId, run: RunId },
    Read { slot: InstanceId, n: usize, reply: oneshot::Sender<io::Result<Vec<String>>> },
    Detach { slot: InstanceId },
}

#[derive(Debug, Default)]
struct Waiting {
    commands: VecDeque<Command>,
    closed: bool,
}

/// A queue that grows when it is used; an array of its bound would cost memory for ever.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: OwnedFd,
}

impl Queue {
    pub(super) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { waiting: Mutex::default(), wake })
    }

    pub(super) fn push(&self, command: Command) -> Result<(), LogBusy> {
        let mut waiting = self.lock();
        if waiting.closed || waiting.commands.len() >= COMMANDS_MAX {
            return Err(LogBusy);
        }
        waiting.commands.push_back(command);
        // One wake stands for everything that is queued behind it.
        if waiting.commands.len() == 1 {
            self.ring();
        }
        Ok(())
    }

    /// Refuses what comes, and lets the thread end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.ring();
    }

    /// Takes all that waits; `None` once the queue was closed.
    pub(super) fn take(&self) -> Option<VecDeque<Command>> {
        let mut count = [0; 8];
        // Nothing to read means that nobody rang, which is no reason not to look.
        let _ = rustix::io::read(&self.wake, &mut count);
        let mut waiting = self.lock();
        (!waiting.closed).then(|| std::mem::take(&mut waiting.commands))
    }

    fn ring(&self) {
        // It can only fail when the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        // Nothing in here leaves the queue half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
