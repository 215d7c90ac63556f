//! `smgr agent` itself: starts the keeper, and starts it again. No input, no state but the child and its vault.
//!
//! It is the subreaper above the keeper: what a dead keeper leaves comes here. Such a process is
//! reaped only when a keeper has had the time to see how it ended.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use tracing::warn;

use super::exits::{self, Foreign};
use super::parts::spread;
use super::vault::Vault;
use super::{proc, signals};
use crate::ipc::hello::{Before, Part};
use crate::ipc::keeper::Exit;
use crate::ipc::place::Place;
use crate::retry;

/// How long a zombie is kept here, and how long a keeper has to have lived before it is reaped.
const KEEP: Duration = Duration::from_secs(5);

/// How long a zombie is kept at most, however often keepers die: they must not pile up.
const KEEP_MAX: Duration = Duration::from_secs(30);

/// The longest pause before a keeper that keeps dying is started again. Short: while there is none,
/// no service is restarted, and a start is cheap.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A keeper that lived this long is started again at once.
const STABLE: Duration = Duration::from_secs(1);

/// How soon something that cannot be waited for is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What the launcher is started with.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    /// The state folder of this node.
    pub state: PathBuf,
    /// The command that starts the keeper.
    pub keeper: Vec<OsString>,
}

/// The keeper, started here or found.
struct Keeper {
    pid: u32,
    pidfd: OwnedFd,
    child: Option<Child>,
    since: Instant,
}

/// Keeps a keeper running until one ends well.
///
/// # Errors
/// When the process cannot become what it has to be; never because of a keeper.
pub fn launch(options: &LaunchOptions) -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let signals = signals::divert(&[
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGUSR1,
        libc::SIGCHLD,
    ])?;
    let place = Place::of(&options.state);
    let mut asked = Vec::new();
    let mut short_lives = 0;
    let mut vault = Vault::default();
    // What dead keepers left, and since when each of it is a zombie.
    let mut strangers = BTreeMap::new();
    let files_soft = raise_files();
    let mut before = None;
    loop {
        let keeper = match find_or_start(options, &place, &mut vault, files_soft, before) {
            Ok(keeper) => keeper,
            Err(error) => {
                warn!(%error, "failed to start the keeper");
                short_lives += 1;
                pause(&signals, &mut asked, short_lives)?;
                continue;
            }
        };
        match watch(keeper, &place, &signals, &mut asked, &mut vault, &mut strangers)? {
            (Exit::Code(0), _) => return Ok(()),
            (exit, lived) => {
                warn!(?exit, "the keeper died");
                before = Before::now(exit);
                short_lives = if lived >= STABLE { 0 } else { short_lives + 1 };
                pause(&signals, &mut asked, short_lives)?;
            }
        }
    }
}

/// The variable by which the keeper learns the limit of open files that services are to have.
pub(super) const FILES_SOFT: &str = "SMGR_FILES_SOFT";

/// Makes room for the pipes of every slot; returns what the limit was.
fn raise_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let was = getrlimit(Resource::Nofile);
    // With fewer descriptors the vault holds fewer slots.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: was.maximum, maximum: was.maximum });
    was.current
}

fn find_or_start(
    options: &LaunchOptions,
    place: &Place,
    vault: &mut Vault,
    files_soft: Option<u64>,
    before: Option<Before>,
) -> io::Result<Keeper> {
    let since = Instant::now();
    if place.is_locked(Part::Keeper)? {
        let pid = place.pid(Part::Keeper).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = exits::open(pid)?;
        vault.close();
        // Held after the opening too: the number has not passed to another process meanwhile.
        return match place.is_locked(Part::Keeper)? && place.pid(Part::Keeper) == Some(pid) {
            true => Ok(Keeper { pid, pidfd, child: None, since }),
            false => Err(io::ErrorKind::Interrupted.into()),
        };
    }
    let (program, arguments) = options.keeper.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    // In a group of its own: a terminal's Ctrl-C is for us, who ask it to drain.
    let mut command = Command::new(program);
    command.args(arguments).process_group(0).stdin(vault.open()?);
    if let Some(soft) = files_soft {
        command.env(FILES_SOFT, soft.to_string());
    }
    match before {
        Some(before) => command.env(Before::VARIABLE, before.text()),
        None => command.env_remove(Before::VARIABLE),
    };
    let child = command.spawn()?;
    // It holds the keeper's end no longer than this, or the end of a keeper would not be seen.
    drop(command);
    vault.hand_over();
    let pidfd = exits::open(child.id())?;
    Ok(Keeper { pid: child.id(), pidfd, child: Some(child), since })
}

/// Waits for the end of a keeper, passing on what it is asked; returns how it ended and how old.
fn watch(
    mut keeper: Keeper,
    place: &Place,
    signals: &OwnedFd,
    asked: &mut Vec<Signal>,
    vault: &mut Vault,
    strangers: &mut BTreeMap<u32, Instant>,
) -> io::Result<(Exit, Duration)> {
    loop {
        let mut fds =
            vec![PollFd::new(signals, PollFlags::IN), PollFd::new(&keeper.pidfd, PollFlags::IN)];
        fds.extend(vault.socket().map(|socket| PollFd::new(socket, PollFlags::IN)));
        let wait = match (asked.is_empty(), strangers.is_empty()) {
            (false, _) => Some(LOOK_AGAIN),
            (true, false) => Some(KEEP),
            (true, true) => None,
        };
        wait_for(&mut fds, wait)?;
        let has_ended = !fds[1].revents().is_empty();
        drop(fds);
        vault.take_in();
        take_signals(signals, asked);
        if has_ended {
            let exit = match &mut keeper.child {
                Some(child) => exit_of(child.wait()?),
                None => match exits::foreign(&keeper.pidfd, keeper.pid) {
                    Foreign::Ended(exit) => exit,
                    Foreign::Runs | Foreign::Unreaped => Exit::Unknown,
                },
            };
            return Ok((exit, keeper.since.elapsed()));
        }
        // Before it holds its lock the keeper could not take a signal, but only die of it.
        if !asked.is_empty() && place.pid(Part::Keeper) == Some(keeper.pid) {
            for signal in asked.drain(..) {
                // A keeper that has just ended is seen in the next turn.
                let _ = rustix::process::pidfd_send_signal(&keeper.pidfd, signal);
            }
        }
        reap_strangers(&keeper, strangers);
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    let signal = |signal| Exit::Signal { signal, core: status.core_dumped() };
    let exit = status.code().map(Exit::Code);
    exit.or_else(|| status.signal().map(signal)).unwrap_or(Exit::Unknown)
}

/// Reaps what a dead keeper left, once it is old and a keeper has had the time to look at it.
fn reap_strangers(keeper: &Keeper, strangers: &mut BTreeMap<u32, Instant>) {
    let children: BTreeSet<u32> = proc::children().into_iter().collect();
    strangers.retain(|pid, _| children.contains(pid));
    for pid in children.into_iter().filter(|pid| *pid != keeper.pid) {
        // A zombie stays one until it is reaped here, so it is looked at once.
        let seen = match strangers.get(&pid) {
            Some(seen) => *seen,
            None if proc::process(pid).is_some_and(|process| process.is_zombie) => {
                *strangers.entry(pid).or_insert_with(Instant::now)
            }
            None => continue,
        };
        let age = seen.elapsed();
        if age >= KEEP_MAX || (age >= KEEP && keeper.since.elapsed() >= KEEP) {
            exits::reap_ended(pid);
            strangers.remove(&pid);
        }
    }
}

fn pause(signals: &OwnedFd, asked: &mut Vec<Signal>, short_lives: u32) -> io::Result<()> {
    let pause = match short_lives {
        0 | 1 => Duration::ZERO,
        lives => spread(retry::doubled(LOOK_AGAIN, PAUSE_MAX, lives)),
    };
    let until = Instant::now() + pause;
    while let Some(rest) = until.checked_duration_since(Instant::now()).filter(|r| !r.is_zero()) {
        wait_for(&mut [PollFd::new(signals, PollFlags::IN)], Some(rest))?;
        take_signals(signals, asked);
    }
    Ok(())
}

fn take_signals(signals: &OwnedFd, asked: &mut Vec<Signal>) {
    while let Some(came) = signals::next(signals) {
        match came.signal {
            libc::SIGTERM | libc::SIGINT if asked.len() < 2 => asked.push(Signal::TERM),
            libc::SIGUSR1 if asked.len() < 2 => asked.push(Signal::USR1),
            _ => {}
        }
    }
}

fn wait_for(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
