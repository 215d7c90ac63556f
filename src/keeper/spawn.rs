//! The way from a prepared program to its first instruction, and the only unsafe code on it.
//!
//! The child shares the keeper's memory until its exec (`CLONE_VM | CLONE_VFORK`), so nothing is
//! copied however large the keeper is. In return it may only make system calls: all that it needs
//! is laid out by [`Prepared`] before, and it writes nothing but its own stack and one [`Failure`].
#![expect(unsafe_code, reason = "a child in shared memory cannot be had from a safe interface")]

use std::ffi::{c_char, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::prepared::{LISTEN_PID, Prepared};
use super::records::EXECUTING;
use crate::ipc::keeper::{SpawnFailure, Step};
use crate::ipc::listen::SOCKETS_FROM;

/// `libc::CLONE_INTO_CGROUP` is a `c_int`, in which the flag's bit 33 does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The child calls a dozen functions without large locals; measured use is under 2 KiB.
const STACK_BYTES: usize = 64 * 1024;

/// The last signal of Linux.
const SIGNAL_MAX: c_int = 64;

/// The kernel's `sigset_t`, in bytes.
const SIGSET_BYTES: usize = 8;

/// A started process.
#[derive(Debug)]
pub(super) struct Started {
    /// Its number.
    pub(super) pid: u32,
    /// Its pidfd.
    pub(super) pidfd: OwnedFd,
}

/// What the child sees, laid out before it is born.
struct Child<'a> {
    prepared: &'a Prepared,
    stdio: [RawFd; 3],
    ready: Option<(RawFd, RawFd)>,
    /// What it has from [`SOCKETS_FROM`] on; all of them are above it.
    sockets: &'a [RawFd],
    /// Where it notes its number, and its parent's.
    birth: Option<(RawFd, c_long)>,
    /// Set when the child has to enter its cgroup by itself.
    cgroup_procs: RawFd,
    failure: Failure,
}

/// Written by the child, read by the parent after the child is gone. `errno` 0 is success.
struct Failure {
    step: Step,
    errno: c_int,
}

/// The descriptors of the new process.
#[derive(Debug)]
pub(super) struct Descriptors<'a> {
    /// Standard input, output and error.
    pub(super) stdio: [BorrowedFd<'a>; 3],
    /// The end of the readiness pipe, and its number in the child.
    pub(super) ready: Option<(BorrowedFd<'a>, u32)>,
    /// Sockets that it has from [`SOCKETS_FROM`] on. They are above every number that they get, and that the readiness
    /// pipe gets: none of them is lost to another.
    pub(super) sockets: Vec<RawFd>,
    /// The folder of the run's cgroup.
    pub(super) cgroup: Option<BorrowedFd<'a>>,
    /// A file that takes the process's number at its beginning, before its program is executed. Without the note no
    /// program was executed, even when the keeper is killed in the middle.
    pub(super) birth: Option<BorrowedFd<'a>>,
}

/// Starts a process and returns when its program runs.
///
/// # Errors
/// The step that failed; no process is left then.
pub(super) fn spawn(
    prepared: &Prepared,
    descriptors: &Descriptors<'_>,
) -> Result<Started, SpawnFailure> {
    let mut child = Child {
        prepared,
        stdio: descriptors.stdio.map(|fd| fd.as_raw_fd()),
        ready: descriptors.ready.map(|(fd, number)| (fd.as_raw_fd(), number as RawFd)),
        sockets: &descriptors.sockets,
        birth: descriptors.birth.map(|fd| (fd.as_raw_fd(), c_long::from(std::process::id()))),
        cgroup_procs: -1,
        failure: Failure { step: Step::Clone, errno: 0 },
    };
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    let blocked = block_signals();
    let started = match descriptors.cgroup {
        Some(folder) => clone3(&mut child, &mut stack, Some(folder)).or_else(|error| {
            // A kernel before 5.7, or a filter that does not know the call.
            let procs = rustix::fs::openat(
                folder,
                "cgroup.procs",
                rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            );
            match (error.raw_os_error(), procs) {
                (Some(libc::ENOSYS | libc::EINVAL | libc::E2BIG | libc::EPERM), Ok(procs)) => {
                    child.cgroup_procs = procs.as_raw_fd();
                    clone_classic(&mut child, &mut stack)
                }
                _ => Err(error),
            }
        }),
        None => clone_classic(&mut child, &mut stack),
    };
    restore_signals(&blocked);
    let failure = |step, errno| SpawnFailure { step, errno };
    let started =
        started.map_err(|error| failure(Step::Clone, error.raw_os_error().unwrap_or(libc::EIO)))?;
    // SAFETY: `child` is alive and was shared; the child process is past its exec or its exit, so
    // nobody else writes. The read is volatile since the compiler saw no write.
    let errno = unsafe { ptr::read_volatile(&raw const child.failure.errno) };
    if errno == 0 {
        return Ok(started);
    }
    super::exits::reap(&started.pidfd);
    // SAFETY: as above.
    Err(failure(unsafe { ptr::read_volatile(&raw const child.failure.step) }, errno))
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn clone3(
    child: &mut Child<'_>,
    stack: &mut [u128],
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Started> {
    let mut pidfd: c_int = -1;
    // SAFETY: all fields are numbers, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.stack = stack.as_mut_ptr() as u64;
    args.stack_size = size_of_val(stack) as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let args = &raw const args;
    let argument: *mut c_void = ptr::from_mut(child).cast();
    let entry: extern "C" fn(*mut c_void) -> c_int = begin;
    let result: isize;
    // SAFETY: the parent returns from the call like from any other. The child begins behind it with
    // its own stack, whose top is aligned to 16 bytes, calls `begin` and never comes back. Both see
    // the same registers, and `VFORK` holds the parent until the child no longer uses its memory.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") argument,
            in("r13") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk #1",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            in("x8") libc::SYS_clone3 as usize,
            inlateout("x0") args => result,
            in("x1") size_of::<libc::clone_args>(),
        );
    }
    match result {
        ..0 => Err(io::Error::from_raw_os_error(-result as i32)),
        // SAFETY: the kernel has just made this descriptor for us.
        pid => Ok(Started { pid: pid as u32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn clone3(_: &mut Child<'_>, _: &mut [u128], _: Option<BorrowedFd<'_>>) -> io::Result<Started> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

fn clone_classic(child: &mut Child<'_>, stack: &mut [u128]) -> io::Result<Started> {
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let top: *mut c_void = stack.as_mut_ptr_range().end.cast();
    let argument: *mut c_void = ptr::from_mut(child).cast();
    // SAFETY: `top` is the aligned end of a stack that outlives the child's use of it, since `VFORK`
    // holds this thread; `begin` never returns.
    let pid = unsafe { libc::clone(begin, top, flags, argument, &raw mut pidfd) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made this descriptor for us.
        pid => Ok(Started { pid: pid as u32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Runs in the child: system calls only, no allocation, no panic, no return.
extern "C" fn begin(argument: *mut c_void) -> c_int {
    // SAFETY: the parent passes its `Child` and waits until we are gone.
    let child = unsafe { &mut *argument.cast::<Child<'_>>() };
    let (step, errno) = match become_program(child) {
        Ok(never) => match never {},
        Err(failed) => failed,
    };
    child.failure.step = step;
    child.failure.errno = errno;
    // SAFETY: ends this process without running anything that belongs to the parent.
    unsafe { libc::syscall(libc::SYS_exit_group, 127) };
    127
}

enum Never {}

/// Calls the kernel; the error carries the step.
macro_rules! call {
    ($step:expr, $number:ident $(, $argument:expr)* $(,)?) => {{
        // SAFETY: a system call whose pointers come from `Prepared`, which outlives the child.
        let result = unsafe { libc::syscall(libc::$number $(, $argument)*) };
        match result {
            // SAFETY: the address of this thread's error number is always valid.
            -1 => Err(($step, unsafe { *libc::__errno_location() })),
            result => Ok(result),
        }
    }};
}

fn become_program(child: &Child<'_>) -> Result<Never, (Step, c_int)> {
    let prepared = child.prepared;
    reset_signals()?;
    call!(Step::Session, SYS_setsid)?;
    if child.cgroup_procs >= 0 {
        call!(Step::Cgroup, SYS_write, child.cgroup_procs, b"0".as_ptr(), 1_usize)?;
    }
    write_oom_score(prepared)?;
    for (resource, limit) in &prepared.limits {
        let none = ptr::null::<libc::rlimit64>();
        call!(Step::Limits, SYS_prlimit64, 0, *resource, ptr::from_ref(limit), none)?;
    }
    if let Some(account) = &prepared.account {
        let groups = account.groups.as_ptr();
        call!(Step::Groups, SYS_setgroups, account.groups.len(), groups)?;
        call!(Step::Gid, SYS_setresgid, account.gid, account.gid, account.gid)?;
        call!(Step::Uid, SYS_setresuid, account.uid, account.uid, account.uid)?;
        if account.uid != 0 {
            drop_capabilities()?;
        }
    }
    call!(Step::WorkingDir, SYS_umask, prepared.umask)?;
    call!(Step::WorkingDir, SYS_chdir, prepared.working_dir.as_ptr())?;
    if prepared.no_new_privileges {
        call!(Step::NoNewPrivileges, SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0, 0, 0)?;
    }
    note_birth(child)?;
    set_up_descriptors(child)?;
    let empty = 0_u64;
    let none = ptr::null::<u64>();
    let how = libc::SIG_SETMASK;
    call!(Step::Signals, SYS_rt_sigprocmask, how, &raw const empty, none, SIGSET_BYTES)?;
    Err(execute(prepared))
}

/// Notes that there is a process, unless the keeper has died: then nobody would know of it.
fn note_birth(child: &Child<'_>) -> Result<(), (Step, c_int)> {
    let Some((file, parent)) = child.birth else { return Ok(()) };
    let step = Step::Prepare;
    let option = libc::PR_SET_PDEATHSIG;
    // Not before: a change of credentials takes it back.
    call!(step, SYS_prctl, option, libc::SIGKILL as u64, 0, 0, 0)?;
    if call!(step, SYS_getppid)? != parent {
        return Err((step, libc::ESRCH));
    }
    let pid = (call!(step, SYS_getpid)? as u32).to_le_bytes();
    call!(step, SYS_pwrite64, file, pid.as_ptr(), pid.len(), 0_u64)?;
    // The program itself outlives the keeper.
    call!(step, SYS_prctl, option, 0_u64, 0, 0, 0)?;
    // From here on nothing but its own end keeps the program from being executed.
    let mark = EXECUTING.to_le_bytes();
    call!(step, SYS_pwrite64, file, mark.as_ptr(), mark.len(), pid.len())?;
    Ok(())
}

fn reset_signals() -> Result<(), (Step, c_int)> {
    // The kernel's `struct sigaction` is at most 32 bytes; all zero is the default disposition.
    let default = [0_u64; 4];
    for signal in 1..=SIGNAL_MAX {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        let none = ptr::null::<u64>();
        call!(Step::Signals, SYS_rt_sigaction, signal, default.as_ptr(), none, SIGSET_BYTES)?;
    }
    Ok(())
}

fn write_oom_score(prepared: &Prepared) -> Result<(), (Step, c_int)> {
    let path = c"/proc/self/oom_score_adj".as_ptr();
    let flags = libc::O_WRONLY | libc::O_CLOEXEC;
    let fd = call!(Step::OomScore, SYS_openat, libc::AT_FDCWD, path, flags, 0)?;
    let text = &prepared.oom_score;
    match call!(Step::OomScore, SYS_write, fd, text.as_ptr(), text.len()) {
        // Only the privileged may go below what was inherited, which then stays: whoever reads it can see that.
        Ok(_) | Err((_, libc::EACCES)) => {}
        Err(error) => return Err(error),
    }
    call!(Step::OomScore, SYS_close, fd)?;
    Ok(())
}

fn drop_capabilities() -> Result<(), (Step, c_int)> {
    let step = Step::Capabilities;
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
    call!(step, SYS_prctl, libc::PR_CAP_AMBIENT, clear as u64, 0, 0, 0)?;
    // Header: version 3 and this process; data: no set holds anything.
    let header = [0x2008_0522_u32, 0];
    let none = [0_u32; 6];
    call!(step, SYS_capset, header.as_ptr(), none.as_ptr())?;
    // A process that could become root again has not been given away.
    let root: c_long = 0;
    match call!(step, SYS_setresuid, root, root, root) {
        Ok(_) => Err((step, libc::EPERM)),
        Err(_) => Ok(()),
    }
}

fn set_up_descriptors(child: &Child<'_>) -> Result<(), (Step, c_int)> {
    let step = Step::Descriptors;
    for (number, fd) in child.stdio.into_iter().enumerate() {
        if fd == number as RawFd {
            call!(step, SYS_fcntl, fd, libc::F_SETFD, 0)?;
        } else {
            call!(step, SYS_dup3, fd, number as RawFd, 0)?;
        }
    }
    // Every descriptor of the keeper closes on exec; this also covers what it may have inherited.
    // A kernel before 5.11 refuses the flag and has the first only.
    let mark = u64::from(libc::CLOSE_RANGE_CLOEXEC);
    match call!(step, SYS_close_range, 3_u64, u64::from(u32::MAX), mark) {
        Ok(_) | Err((_, libc::ENOSYS | libc::EINVAL)) => {}
        Err(failed) => return Err(failed),
    }
    match child.ready {
        Some((fd, number)) if fd == number => call!(step, SYS_fcntl, fd, libc::F_SETFD, 0)?,
        Some((fd, number)) => call!(step, SYS_dup3, fd, number, 0)?,
        None => 0,
    };
    for (number, fd) in (SOCKETS_FROM as RawFd..).zip(child.sockets) {
        call!(step, SYS_dup3, *fd, number, 0)?;
    }
    if let Some(text) = &child.prepared.listen_pid {
        let pid = call!(step, SYS_getpid)?;
        // SAFETY: the parent waits, and nobody else looks at the text.
        let text = unsafe { &mut *text.get() };
        write_decimal(&mut text[LISTEN_PID.len()..], pid as u64);
    }
    Ok(())
}

/// Writes a number and a zero byte behind it, without any help.
fn write_decimal(text: &mut [u8], number: u64) {
    let digits = number.checked_ilog10().map_or(1, |log| log as usize + 1);
    let mut rest = number;
    for place in text.iter_mut().take(digits).rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    if let Some(end) = text.get_mut(digits) {
        *end = 0;
    }
}

/// Tries the places of a program in turn, as a shell would; returns the error that says most.
fn execute(prepared: &Prepared) -> (Step, c_int) {
    let mut told = libc::ENOENT;
    for program in &prepared.programs {
        let argv: *const *const c_char = prepared.argv.as_ptr();
        let env: *const *const c_char = prepared.env.as_ptr();
        let result = call!(Step::Exec, SYS_execve, program.as_ptr(), argv, env);
        match result.map_err(|(_, errno)| errno) {
            Ok(_) | Err(libc::ENOENT | libc::ENOTDIR) => {}
            Err(libc::EACCES) => told = libc::EACCES,
            Err(errno) => return (Step::Exec, errno),
        }
    }
    (Step::Exec, told)
}

fn block_signals() -> libc::sigset_t {
    // SAFETY: both sets are plain memory that the calls fill.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: the set was filled by `block_signals`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
}
