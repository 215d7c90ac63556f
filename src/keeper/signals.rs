//! Signals to this process as something to read.
#![expect(unsafe_code, reason = "signal sets and signalfd have no safe interface in rustix")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Blocks signals for good and returns where they can be read.
pub(super) fn divert(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is plain memory that `sigemptyset` fills before anybody reads it.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    match fd {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made this descriptor for us.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// A signal that came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Came {
    pub(super) signal: i32,
    /// From whom, or about which child.
    pub(super) pid: u32,
}

/// Takes the next signal that came, if any.
pub(super) fn next(fd: &OwnedFd) -> Option<Came> {
    // SAFETY: plain numbers, for which zero is valid.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    // SAFETY: the kernel writes at most `size` bytes into `info`.
    let read = unsafe { libc::read(fd.as_raw_fd(), (&raw mut info).cast(), size) };
    let signal = i32::try_from(info.ssi_signo).ok()?;
    (usize::try_from(read) == Ok(size)).then_some(Came { signal, pid: info.ssi_pid })
}
