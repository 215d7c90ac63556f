//! The one place where the keeper waits.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

/// What became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// A signal to this process.
    Signal,
    /// Somebody connects.
    Listener,
    /// The agent says something, or can take more.
    Connection,
    /// A cgroup has changed.
    Cgroups,
    /// The main process of a run has ended.
    Main(u64),
    /// Another process of a run has ended, in a tree without cgroup.
    Member(u64),
    /// A part of this node has ended.
    Part(u64),
}

/// An epoll.
pub(super) struct Poller {
    epoll: OwnedFd,
    ready: Vec<epoll::Event>,
}

/// The events that are taken in at once.
const EVENTS_MAX: usize = 64;

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, ready: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Watches for something to read, or a process to end.
    pub(super) fn watch(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, token.into(), epoll::EventFlags::IN)?)
    }

    /// Watches for the end of a process and once more for its reaping.
    pub(super) fn watch_edges(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, token.into(), flags)?)
    }

    /// Watches also, or no longer, for room to write.
    pub(super) fn watch_room(&self, fd: impl AsFd, token: Token, room: bool, read: bool) {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::OUT, room);
        flags.set(epoll::EventFlags::IN, read);
        // Only a descriptor that is not watched could be refused.
        let _ = epoll::modify(&self.epoll, fd, token.into(), flags);
    }

    /// Watches no longer.
    pub(super) fn forget(&self, fd: impl AsFd) {
        // What is not watched need not be forgotten.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for events, at most `timeout`.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<Token>> {
        // Rounded up: a wait that ends before its time is one more wakeup for nothing.
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        self.ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(self.ready.iter().filter_map(|event| Token::from_data(event.data)).collect())
    }
}

/// The kind in the upper byte, the number below.
const NUMBER_BITS: u32 = 56;

impl From<Token> for epoll::EventData {
    fn from(token: Token) -> Self {
        let (kind, number) = match token {
            Token::Signal => (0, 0),
            Token::Listener => (1, 0),
            Token::Connection => (2, 0),
            Token::Cgroups => (3, 0),
            Token::Main(number) => (4, number),
            Token::Member(number) => (5, number),
            Token::Part(number) => (6, number),
        };
        epoll::EventData::new_u64(kind << NUMBER_BITS | number)
    }
}

impl Token {
    fn from_data(data: epoll::EventData) -> Option<Self> {
        let number = data.u64() & ((1 << NUMBER_BITS) - 1);
        Some(match data.u64() >> NUMBER_BITS {
            0 => Token::Signal,
            1 => Token::Listener,
            2 => Token::Connection,
            3 => Token::Cgroups,
            4 => Token::Main(number),
            5 => Token::Member(number),
            6 => Token::Part(number),
            _ => return None,
        })
    }
}
