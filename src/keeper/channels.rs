//! What the runs of a slot share one after the other: the pipes of their output and the socket of
//! their notifications. They outlive a run, the agent (which has duplicates) and, through the
//! agent's duplicates, the keeper.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

use super::notify;
use crate::ipc::hello::Incarnation;
use crate::ipc::keeper::Channel;

/// What a log pipe holds before a service that nobody reads from waits.
///
/// The kernel's own default: larger pipes of one user together meet a limit at 16 MiB.
const PIPE_BYTES: usize = 64 * 1024;

/// A slot's channels.
#[derive(Debug)]
pub(super) struct Slot {
    channels: BTreeMap<Channel, OwnedFd>,
    /// Which agent has duplicates of all of them.
    pub(super) known_to: Option<Incarnation>,
    pipes: [u64; 2],
}

impl Slot {
    /// Makes the channels that are missing from `given`. A slot has both pipes or does not exist: after an error they are
    /// still there. A notify socket it gets by [`Slot::listen`].
    pub(super) fn complete(given: &mut BTreeMap<Channel, OwnedFd>) -> io::Result<Self> {
        for channel in [Channel::Stdout, Channel::Stderr] {
            let pipe = match given.get(&channel) {
                Some(pipe) => open_anew(pipe.as_fd(), OFlags::empty())?,
                None => log_pipe()?,
            };
            given.insert(channel, pipe);
        }
        let inode = |channel| rustix::fs::fstat(&given[&channel]).map(|stat| stat.st_ino);
        let pipes = [inode(Channel::Stdout)?, inode(Channel::Stderr)?];
        Ok(Self { channels: std::mem::take(given), known_to: None, pipes })
    }

    /// Listens at `address`, where it does not do so yet, for the processes of an account, and says whether the socket
    /// was made.
    pub(super) fn listen(&mut self, address: &Path, uid: Option<u32>) -> io::Result<bool> {
        let is_there = self.channels.get(&Channel::Notify).is_some_and(|s| is_bound(s, address));
        if !is_there {
            self.channels.insert(Channel::Notify, notify_socket(address)?);
            self.known_to = None;
        }
        notify::admit(address, uid)?;
        Ok(!is_there)
    }

    /// Returns the inodes of standard output and standard error.
    pub(super) fn pipes(&self) -> [u64; 2] {
        self.pipes
    }

    /// Returns a channel.
    pub(super) fn channel(&self, channel: Channel) -> BorrowedFd<'_> {
        self.channels[&channel].as_fd()
    }

    /// Duplicates what a next keeper has to have. What cannot be duplicated is left out.
    pub(super) fn to_keep(&self) -> BTreeMap<Channel, OwnedFd> {
        let channels = self.channels.iter();
        channels.filter_map(|(channel, fd)| Some((*channel, fd.try_clone().ok()?))).collect()
    }

    /// Duplicates all channels for the agent, in the order of the names that are returned.
    ///
    /// Its log pipes do not block, which is a property of the description: they are opened anew, or
    /// the services' own would cease to block with them.
    pub(super) fn duplicate(&self) -> io::Result<(Vec<Channel>, Vec<OwnedFd>)> {
        let copies: io::Result<Vec<_>> = self
            .channels
            .iter()
            .map(|(channel, fd)| match channel {
                Channel::Stdout | Channel::Stderr => open_anew(fd.as_fd(), OFlags::NONBLOCK),
                Channel::Notify | Channel::Ready => fd.try_clone(),
            })
            .collect();
        Ok((self.channels.keys().copied().collect(), copies?))
    }

    /// Gives the log pipes to the account of a service, which may open them by `/dev/stdout`.
    pub(super) fn give_to(&self, uid: u32, gid: u32) {
        use rustix::fs::{Gid, Uid, fchown};
        for channel in [Channel::Stdout, Channel::Stderr] {
            // A service that does not open its output by name does without it.
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let _ = fchown(&self.channels[&channel], Some(uid), Some(gid));
        }
    }
}

/// Makes a pipe of one descriptor that both reads and writes, so that it never breaks: a service
/// whose reader is gone waits when it is full.
fn log_pipe() -> io::Result<OwnedFd> {
    let (reader, _writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // Where the size cannot be had the kernel's choice does as well.
    let _ = rustix::pipe::fcntl_setpipe_size(&reader, PIPE_BYTES);
    open_anew(reader.as_fd(), OFlags::empty())
}

/// Opens the log pipes of a process that an earlier keeper started, where they are still the ones it was given.
///
/// When keeper and agent died together nobody else has them, and a service whose pipe has no reader stops when it is
/// full.
pub(super) fn pipes_of(pid: u32, pipes: [u64; 2]) -> BTreeMap<Channel, OwnedFd> {
    let mut found = BTreeMap::new();
    for (number, channel, inode) in [(1, Channel::Stdout, pipes[0]), (2, Channel::Stderr, pipes[1])]
    {
        let path = format!("/proc/{pid}/fd/{number}");
        // Looked at before it is opened: another file may not like to be opened for writing.
        let is_ours = |path: &str| {
            rustix::fs::stat(path).is_ok_and(|stat| {
                stat.st_ino == inode
                    && rustix::fs::FileType::from_raw_mode(stat.st_mode)
                        == rustix::fs::FileType::Fifo
            })
        };
        if is_ours(&path)
            && let Ok(pipe) = rustix::fs::open(
                path,
                OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
                Mode::empty(),
            )
        {
            found.insert(channel, pipe);
        }
    }
    found
}

/// Opens a pipe once more, for reading and writing, with flags of its own.
fn open_anew(pipe: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | flags, Mode::empty())?)
}

fn notify_socket(address: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    rustix::net::sockopt::set_socket_passcred(&socket, true)?;
    notify::clear(address)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(address)?)?;
    Ok(socket)
}

/// Says whether a socket is the one that is reached by `address`.
fn is_bound(socket: &OwnedFd, address: &Path) -> bool {
    let Ok(wanted) = SocketAddrUnix::new(address) else { return false };
    let bound = rustix::net::getsockname(socket).and_then(SocketAddrUnix::try_from);
    bound.is_ok_and(|bound| bound == wanted) && address.exists()
}
