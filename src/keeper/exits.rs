//! How a process ended: peeked at while its zombie is kept, read by those who are not its parent,
//! and reaped.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};

use crate::ipc::keeper::{Exit, Usage};

/// Returns how a child ended, and what it used, without reaping it; `None` while it runs.
///
/// # Errors
/// `ECHILD` when it is not a child of this process.
#[expect(unsafe_code, reason = "only the raw call gives the usage of one child without reaping it")]
pub(super) fn peek(pidfd: &OwnedFd) -> io::Result<Option<(Exit, Usage)>> {
    // SAFETY: both are plain numbers, for which zero is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
    // SAFETY: the kernel writes into the two values, which live until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            &raw mut info,
            options,
            &raw mut usage,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `waitid` has filled in the fields of a child's change of state, or left zeros.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        code => Exit::Signal { signal: status, core: code == libc::CLD_DUMPED },
    };
    let us = |time: libc::timeval| {
        u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).unwrap_or_default()
    };
    let usage = Usage {
        user_us: us(usage.ru_utime),
        system_us: us(usage.ru_stime),
        rss_kib_max: u64::try_from(usage.ru_maxrss).unwrap_or_default(),
    };
    Ok(Some((exit, usage)))
}

/// Reaps a child that has ended. Nobody else waits for it, so it cannot be gone already.
pub(super) fn reap(pidfd: &OwnedFd) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    // Whoever is no child has no zombie to leave.
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// Reaps a child by its number, if it has ended. Only whoever lists its own children may, and waits for them alone.
pub(super) fn reap_ended(pid: u32) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    if let Ok(pid) = as_pid(pid) {
        // One that runs has nothing to reap.
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

/// What a process that is no child of this one has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It runs.
    Runs,
    /// It has ended; only once its parent has reaped it can it be told how.
    Unreaped,
    /// It has ended, and this is how.
    Ended(Exit),
}

/// Says what a process that is no child has come to.
///
/// After its reaping a kernel from 6.15 on tells by the pidfd; before it, any kernel tells by the
/// zombie. What neither tells is `Unknown`.
pub(super) fn foreign(pidfd: &OwnedFd, pid: u32) -> Foreign {
    if !has_ended(pidfd) {
        return Foreign::Runs;
    }
    let zombie = zombie_status(pid).map(exit_of);
    match (info(pidfd), zombie) {
        (Info::Exited(status), _) => Foreign::Ended(exit_of(status)),
        // Not reaped yet, so `pid` is still the same process and the status was its own.
        (Info::Present, Some(exit)) => Foreign::Ended(exit),
        (Info::Present, None) => Foreign::Unreaped,
        (Info::Gone, _) => Foreign::Ended(Exit::Unknown),
        (Info::Unsupported, zombie) => {
            // A signal of nothing finds the process only while its zombie is there.
            let present =
                as_pid(pid).is_ok_and(|pid| rustix::process::test_kill_process(pid).is_ok());
            Foreign::Ended(zombie.filter(|_| present).unwrap_or(Exit::Unknown))
        }
    }
}

/// Says whether the process of a pidfd has ended, child or not.
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    has_ended_within(pidfd, Duration::ZERO)
}

/// Says whether the process of a pidfd has ended after at most this long.
pub(super) fn has_ended_within(pidfd: &OwnedFd, wait: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let wait = Timespec::try_from(wait).expect("invariant: a wait of seconds");
    matches!(poll(&mut fds, Some(&wait)), Ok(1..))
}

/// Returns the inode of a pidfd, which names a process for ever on Linux 6.9 and later.
pub(super) fn inode(pidfd: &OwnedFd) -> u64 {
    const PIDFS_MAGIC: u64 = 0x5049_4446;
    let is_pidfs = rustix::fs::fstatfs(pidfd).is_ok_and(|fs| fs.f_type as u64 == PIDFS_MAGIC);
    match rustix::fs::fstat(pidfd) {
        Ok(stat) if is_pidfs => stat.st_ino,
        Ok(_) | Err(_) => 0,
    }
}

/// Sends a signal, one of the real-time signals included, which rustix does not name.
#[expect(unsafe_code, reason = "the call has no safe form for real-time signals")]
pub(super) fn send(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let (fd, none) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: numbers and a null pointer, for which the kernel fills in what `kill` would.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Turns a number that was read into rustix's type.
///
/// # Errors
/// When no process can have it.
pub(super) fn as_pid(pid: u32) -> io::Result<Pid> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    raw.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Opens a process. From here on its number cannot pass to another unnoticed.
///
/// # Errors
/// When there is none of this number, or no descriptor is left.
pub(super) fn open(pid: u32) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(as_pid(pid)?, PidfdFlags::empty())?)
}

enum Info {
    Exited(i32),
    Present,
    Gone,
    Unsupported,
}

#[expect(unsafe_code, reason = "the call has no safe form")]
fn info(pidfd: &OwnedFd) -> Info {
    // SAFETY: all fields are numbers, for which zero is valid.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = u64::from(libc::PIDFD_INFO_PID | libc::PIDFD_INFO_EXIT);
    // SAFETY: the kernel writes at most the size that the request's number carries.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) };
    let exited = info.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0;
    match result {
        0 if exited => Info::Exited(info.exit_code),
        0 => Info::Present,
        _ => match io::Error::last_os_error().raw_os_error() {
            Some(libc::ESRCH) => Info::Gone,
            _ => Info::Unsupported,
        },
    }
}

/// Reads the wait status of a zombie, the 52nd field of its `stat`.
///
/// To whom may not see it the kernel shows 0, which would be success: a 0 counts only where we know
/// that we may see it.
fn zombie_status(pid: u32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    (fields.next()? == "Z").then_some(())?;
    let status = fields.nth(52 - 4)?.parse().ok()?;
    (status != 0 || may_see(pid)).then_some(status)
}

fn may_see(pid: u32) -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    let all =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE));
    let ours = || {
        fs::metadata(format!("/proc/{pid}")).is_ok_and(|meta| {
            meta.uid() == rustix::process::geteuid().as_raw()
                && meta.gid() == rustix::process::getegid().as_raw()
        })
    };
    all || ours()
}

fn exit_of(status: i32) -> Exit {
    match status & 0x7f {
        0 => Exit::Code(status >> 8 & 0xff),
        signal => Exit::Signal { signal, core: status & 0x80 != 0 },
    }
}
