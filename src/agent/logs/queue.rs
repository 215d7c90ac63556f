//! The way to the log thread: a bounded queue and a descriptor that wakes its epoll.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// A place in each of the two pipes of a slot: the bytes that were ever written in front of it.
pub(super) type Places = [u64; 2];

/// All that the log thread can be asked for.
#[derive(Debug)]
pub(super) enum Command {
    Attach {
        slot: InstanceId,
        face: Arc<Face>,
    },
    Configure {
        slot: InstanceId,
        setup: Box<LogSetup>,
    },
    MarkRun {
        slot: InstanceId,
        run: RunId,
        from: Places,
    },
    WatchReady {
        slot: InstanceId,
        run: RunId,
        pattern: Regex,
        since: Option<UnixMicros>,
        from: Places,
    },
    Drained {
        slot: InstanceId,
        run: RunId,
    },
    Read {
        slot: InstanceId,
        n: usize,
        /// Where its files are if it is not attached.
        dir: Option<PathBuf>,
        reply: oneshot::Sender<io::Result<Vec<String>>>,
    },
    Detach {
        slot: InstanceId,
    },
}

/// What was found in the queue.
#[derive(Debug)]
pub(super) enum Taken {
    Command(Command),
    Nothing,
    Closed,
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
    /// Whether a command waits, or the end; read without the lock for each batch.
    pending: AtomicBool,
    wake: OwnedFd,
}

impl Queue {
    pub(super) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { waiting: Mutex::default(), pending: AtomicBool::new(false), wake })
    }

    pub(super) fn push(&self, command: Command) -> Result<(), LogBusy> {
        let mut waiting = self.lock();
        if waiting.closed || waiting.commands.len() >= COMMANDS_MAX {
            return Err(LogBusy);
        }
        waiting.commands.push_back(command);
        self.pending.store(true, Ordering::SeqCst);
        // One wake stands for everything that is queued behind it.
        if waiting.commands.len() == 1 {
            self.ring();
        }
        Ok(())
    }

    /// Refuses what comes, and lets the thread end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.pending.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Says whether there is something to take. What was pushed before a byte was written to a pipe
    /// is seen here by whoever has seen that byte.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }

    /// Forgets the wake, so that the next command wakes again.
    pub(super) fn hear(&self) {
        let mut count = [0; 8];
        // Nothing to read means that what rang was taken already.
        let _ = rustix::io::read(&self.wake, &mut count);
    }

    /// Takes the command that waits longest.
    pub(super) fn take(&self) -> Taken {
        let mut waiting = self.lock();
        if waiting.closed {
            return Taken::Closed;
        }
        let command = waiting.commands.pop_front();
        self.pending.store(!waiting.commands.is_empty(), Ordering::SeqCst);
        command.map_or(Taken::Nothing, Taken::Command)
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
