//! Looking into a pipe without taking, and taking what was looked at.
//!
//! A pipe's descriptor is shared with the service, so it is never made non-blocking: the flag would
//! be the service's too. `tee` and `splice` have a flag of their own for each call.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

/// The most that is looked at together. With the default of 64 KiB for a service's pipe it never
/// limits; a service that widened its pipe is served in several turns.
const SCRATCH_BYTES: usize = 256 << 10;

/// What is in a pipe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// Whether nothing lies behind them.
    pub(super) all: bool,
    /// Whether no more would fit, in the pipe or in what was copied out at once.
    pub(super) full: bool,
}

/// Copies what is in pipes. Shared by all pipes of the thread.
#[derive(Debug)]
pub(super) struct Scratch {
    from: File,
    to: OwnedFd,
    null: File,
}

impl Scratch {
    pub(super) fn new() -> io::Result<Self> {
        let (from, to) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // Refused beyond the user's share of pipe memory; then there are more turns.
        let _ = rustix::pipe::fcntl_setpipe_size(&to, SCRATCH_BYTES);
        let null = OpenOptions::new().write(true).open("/dev/null")?;
        Ok(Self { from: from.into(), to, null })
    }

    /// Copies what is at the front of `pipe` into `bytes`, and leaves it there.
    ///
    /// Returns `None` when the pipe is empty.
    pub(super) fn look(&mut self, pipe: &OwnedFd, bytes: &mut Vec<u8>) -> io::Result<Option<Seen>> {
        // Asked first: a writer may fill the pipe behind what is copied.
        let full = !has_room(pipe)?;
        let tee = || rustix::pipe::tee(pipe, &self.to, SCRATCH_BYTES, SpliceFlags::NONBLOCK);
        let copied = match rustix::io::retry_on_intr(tee) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(None),
            Ok(copied) => copied,
            Err(error) => return Err(error.into()),
        };
        let full = full || !has_room(&self.to)?;
        bytes.clear();
        bytes.resize(copied, 0);
        // The scratch pipe is empty before and after, so its bytes are exactly those of this pipe.
        self.from.read_exact(bytes)?;
        let all = queued(pipe)? <= copied;
        Ok(Some(Seen { all, full }))
    }

    /// Takes `count` bytes that were looked at from the front of `pipe`.
    pub(super) fn consume(&self, pipe: &OwnedFd, mut count: usize) -> io::Result<()> {
        while count > 0 {
            let splice = || {
                let flags = SpliceFlags::NONBLOCK;
                rustix::pipe::splice(pipe, None, &self.null, None, count, flags)
            };
            match rustix::io::retry_on_intr(splice)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                taken => count -= taken,
            }
        }
        Ok(())
    }
}

/// Returns how many bytes are in a pipe.
pub(super) fn queued(pipe: &OwnedFd) -> io::Result<usize> {
    Ok(usize::try_from(rustix::io::ioctl_fionread(pipe)?).unwrap_or(usize::MAX))
}

/// Says whether a write would find room. A reading end alone cannot tell, and counts as having some.
fn has_room(pipe: &impl AsFd) -> io::Result<bool> {
    let readable_only = {
        let flags = rustix::fs::fcntl_getfl(pipe)?;
        (flags & rustix::fs::OFlags::ACCMODE) == rustix::fs::OFlags::RDONLY
    };
    if readable_only {
        return Ok(true);
    }
    let mut fds = [PollFd::new(pipe, PollFlags::OUT)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&at_once)))?;
    Ok(fds[0].revents().contains(PollFlags::OUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn what_was_looked_at_is_still_there_until_it_is_consumed() {
        let (reader, writer) = pipe();
        let mut scratch = Scratch::new().unwrap();
        let mut bytes = Vec::new();
        assert!(scratch.look(&reader, &mut bytes).unwrap().is_none());
        rustix::io::write(&writer, b"one\ntwo\n").unwrap();
        for _ in 0..2 {
            let seen = scratch.look(&reader, &mut bytes).unwrap().unwrap();
            assert_eq!((seen.all, bytes.as_slice()), (true, &b"one\ntwo\n"[..]));
        }
        scratch.consume(&reader, 4).unwrap();
        scratch.look(&reader, &mut bytes).unwrap().unwrap();
        assert_eq!(bytes, b"two\n");
    }
}
