//! The other parts of this node, agent and uplink: started, watched, and started again.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tracing::{info, warn};

use super::exits::{self, Foreign};
use super::poller::{Poller, Token};
use super::prepared::Prepared;
use super::proc;
use super::spawn::{self, Descriptors};
use crate::ipc::hello::{Before, Part};
use crate::ipc::keeper::{Account, Exit};
use crate::ipc::place::Place;
use crate::retry;

/// How well agent and uplink are spared when memory runs out; the keeper itself is spared more.
const PART_OOM_SCORE: i32 = -500;

/// The first pause before a part is started again; it doubles with each short life.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A part that lived this long is started again at once: it has worked, and one start a second harms nobody.
const STABLE: Duration = Duration::from_secs(1);

/// A part that ends after a drain has this long, before it is killed.
const END_MAX: Duration = Duration::from_secs(10);

/// A part and what is known of it.
#[derive(Debug)]
pub(super) struct Supervised {
    part: Part,
    command: Vec<OsString>,
    account: Option<Account>,
    life: Life,
    before: Option<Before>,
    short_lives: u32,
    token: Token,
}

#[derive(Debug)]
enum Life {
    /// To be started.
    Due { at: Instant },
    /// Our child.
    Child { pid: u32, pidfd: OwnedFd, since: Instant },
    /// Started by an earlier keeper.
    Foreign { pid: u32, pidfd: OwnedFd, since: Instant },
    /// Told to end.
    Ending { pid: u32, pidfd: OwnedFd, is_child: bool, kill_at: Instant },
    /// Not to be started again.
    Ended,
}

/// How a life of a part ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// As it was asked to.
    Well,
    /// Otherwise.
    Badly,
}

impl Supervised {
    pub(super) fn new(
        part: Part,
        number: u64,
        command: Vec<OsString>,
        account: Option<Account>,
    ) -> Self {
        let life = Life::Due { at: Instant::now() };
        let token = Token::Part(number);
        Self { part, command, account, life, before: None, short_lives: 0, token }
    }

    /// Returns when something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.life {
            Life::Due { at } | Life::Ending { kill_at: at, .. } => Some(*at),
            Life::Child { .. } | Life::Foreign { .. } | Life::Ended => None,
        }
    }

    /// Says whether nothing of it is left or to come.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.life, Life::Ended)
    }

    /// Does what is due: starts it, or kills it when it does not end.
    pub(super) fn turn(&mut self, poller: &Poller, place: &Place, files: libc::rlimit64) {
        match &self.life {
            Life::Due { at } if *at <= Instant::now() => {
                self.life = match self.find(poller, place).transpose() {
                    Some(found) => found,
                    None => self.start(poller, files),
                }
                .unwrap_or_else(|error| {
                    warn!(part = self.part.name(), %error, "failed to start a part");
                    self.short_lives = self.short_lives.saturating_add(1);
                    self.later()
                });
            }
            Life::Ending { pidfd, kill_at, .. } if *kill_at <= Instant::now() => {
                // Whoever is gone need not be killed.
                let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
                if let Life::Ending { kill_at, .. } = &mut self.life {
                    *kill_at += END_MAX;
                }
            }
            Life::Due { .. }
            | Life::Child { .. }
            | Life::Foreign { .. }
            | Life::Ending { .. }
            | Life::Ended => {}
        }
    }

    /// Finds a life that an earlier keeper started.
    fn find(&self, poller: &Poller, place: &Place) -> io::Result<Option<Life>> {
        if !place.is_locked(self.part)? {
            return Ok(None);
        }
        let pid = place.pid(self.part).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = exits::open(pid)?;
        // The file belongs to the part, which may have written any number into it: signals of this process reach
        // no account but the part's own.
        let own = rustix::process::geteuid().as_raw();
        let user = self.account.as_ref().map_or(own, |account| account.uid);
        if proc::user_of(pid) != Some(user) {
            return Err(io::Error::other(format!(
                "process {pid} in its pid file is no life of it"
            )));
        }
        // Still held after the opening: the number has not passed to another process meanwhile.
        if exits::has_ended(&pidfd)
            || !place.is_locked(self.part)?
            || place.pid(self.part) != Some(pid)
        {
            return Err(io::ErrorKind::Interrupted.into());
        }
        poller.watch(&pidfd, self.token)?;
        info!(part = self.part.name(), pid, "found");
        Ok(Some(Life::Foreign { pid, pidfd, since: Instant::now() }))
    }

    fn start(&self, poller: &Poller, files: libc::rlimit64) -> io::Result<Life> {
        // Root's parts go last when memory runs out; others may not lower theirs.
        let oom_score = own_oom_score().max(PART_OOM_SCORE);
        let prepared =
            Prepared::part(&self.command, self.before, self.account.clone(), oom_score, files)
                .map_err(io::Error::other)?;
        let stdin = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let (stdout, stderr) = (rustix::stdio::stdout(), rustix::stdio::stderr());
        let stdio = [stdin.as_fd(), stdout, stderr];
        let descriptors =
            Descriptors { stdio, ready: None, sockets: Vec::new(), cgroup: None, birth: None };
        let started = spawn::spawn(&prepared, &descriptors).map_err(io::Error::other)?;
        poller.watch(&started.pidfd, self.token)?;
        info!(part = self.part.name(), pid = started.pid, "started");
        Ok(Life::Child { pid: started.pid, pidfd: started.pidfd, since: Instant::now() })
    }

    /// Takes in that its process has ended; `stays_down` says not to start it again after a good end.
    pub(super) fn ended(&mut self, poller: &Poller, stays_down: bool) -> Ended {
        let life = std::mem::replace(&mut self.life, Life::Ended);
        let (pid, pidfd, is_child, since, was_told) = match life {
            Life::Child { pid, pidfd, since } => (pid, pidfd, true, Some(since), false),
            Life::Foreign { pid, pidfd, since } => (pid, pidfd, false, Some(since), false),
            Life::Ending { pid, pidfd, is_child, .. } => (pid, pidfd, is_child, None, true),
            life @ (Life::Due { .. } | Life::Ended) => {
                self.life = life;
                return Ended::Badly;
            }
        };
        poller.forget(&pidfd);
        let exit = match is_child {
            true => exits::peek(&pidfd).ok().flatten().map(|(exit, _)| exit),
            false => match exits::foreign(&pidfd, pid) {
                Foreign::Ended(exit) if exit != Exit::Unknown => Some(exit),
                Foreign::Ended(_) | Foreign::Runs | Foreign::Unreaped => None,
            },
        };
        if is_child {
            exits::reap(&pidfd);
        }
        info!(part = self.part.name(), ?exit, "ended");
        self.before = exit.and_then(Before::now);
        // Where nobody can tell how it ended it is believed: it had been asked to.
        let is_good = exit.is_none_or(|exit| exit == Exit::Code(0));
        if was_told || (stays_down && is_good) {
            return Ended::Well;
        }
        let lived = since.map(|since| since.elapsed()).unwrap_or_default();
        self.short_lives = if lived >= STABLE { 0 } else { self.short_lives.saturating_add(1) };
        self.life = self.later();
        Ended::Badly
    }

    fn later(&self) -> Life {
        let pause = match self.short_lives.checked_sub(1) {
            None => Duration::ZERO,
            Some(before) => spread(retry::doubled(PAUSE_MIN, PAUSE_MAX, before)),
        };
        Life::Due { at: Instant::now() + pause }
    }

    /// Tells it to end.
    pub(super) fn end(&mut self) {
        let life = std::mem::replace(&mut self.life, Life::Ended);
        let (pid, pidfd, is_child) = match life {
            Life::Child { pid, pidfd, .. } => (pid, pidfd, true),
            Life::Foreign { pid, pidfd, .. } => (pid, pidfd, false),
            life @ Life::Ending { .. } => {
                self.life = life;
                return;
            }
            Life::Due { .. } | Life::Ended => return,
        };
        // Whoever is gone need not be told.
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::TERM);
        self.life = Life::Ending { pid, pidfd, is_child, kill_at: Instant::now() + END_MAX };
    }

    /// Says whether its process is this one, so that it is not reaped by the way.
    pub(super) fn has_child(&self, child: u32) -> bool {
        match &self.life {
            Life::Child { pid, .. } | Life::Ending { pid, is_child: true, .. } => *pid == child,
            Life::Foreign { .. } | Life::Ending { .. } | Life::Due { .. } | Life::Ended => false,
        }
    }
}

/// Spreads a pause by a quarter either way.
pub(super) fn spread(pause: Duration) -> Duration {
    let quarter = pause / 4;
    retry::drawn(pause - quarter..=pause + quarter)
}

/// Returns the keeper's own score: a part can be given a higher one, but not everywhere a lower one.
fn own_oom_score() -> i32 {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    const FILES: libc::rlimit64 = libc::rlimit64 { rlim_cur: 1024, rlim_max: 1024 };

    fn uplink(program: &str, account: Option<Account>) -> Supervised {
        Supervised::new(Part::Uplink, 1, vec![program.into()], account)
    }

    #[test]
    fn a_part_that_cannot_be_started_is_tried_less_and_less_often() {
        let state = tempfile::tempdir().unwrap();
        let (place, poller) = (Place::of(state.path()), Poller::new().unwrap());
        let mut part = uplink("/no/such/program", None);
        let mut pauses = Vec::new();
        for _ in 0..5 {
            part.life = Life::Due { at: Instant::now() };
            let before = Instant::now();
            part.turn(&poller, &place, FILES);
            pauses.push(part.deadline().unwrap() - before);
        }
        assert!(pauses[0] >= PAUSE_MIN.mul_f64(0.75), "{pauses:?}");
        assert!(pauses[4] >= PAUSE_MIN * 12, "{pauses:?}");
    }

    /// A part's place whose lock is held by this process, with a pid file that names another.
    fn with_pid_file(pid: &str) -> (tempfile::TempDir, Place, crate::ipc::place::PartLock) {
        let state = tempfile::tempdir().unwrap();
        let place = Place::of(state.path());
        let lock = place.lock(Part::Uplink).unwrap();
        fs::write(place.folder_of(Part::Uplink).join("pid"), pid).unwrap();
        (state, place, lock)
    }

    #[test]
    fn a_pid_file_of_an_account_names_no_process_of_another() {
        let mut victim = Command::new("sleep").arg("1000").spawn().unwrap();
        let (_state, place, _lock) = with_pid_file(&victim.id().to_string());
        let poller = Poller::new().unwrap();
        let another = rustix::process::geteuid().as_raw() + 1;
        let account = Account { uid: another, gid: another, groups: Vec::new() };
        let mut part = uplink("/no/such/program", Some(account));
        part.turn(&poller, &place, FILES);
        assert!(matches!(part.life, Life::Due { .. }), "{:?}", part.life);
        part.end();
        assert!(victim.try_wait().unwrap().is_none());
        victim.kill().unwrap();
        victim.wait().unwrap();
    }

    #[test]
    fn a_pid_file_that_names_no_process_is_survived() {
        for text in ["0", "-1", "4294967295", "2147483648", "", "x"] {
            let (_state, place, _lock) = with_pid_file(text);
            let mut part = uplink("/no/such/program", None);
            part.turn(&Poller::new().unwrap(), &place, FILES);
            assert!(matches!(part.life, Life::Due { .. }), "{text}: {:?}", part.life);
        }
    }
}
