//! Who holds the foreground of this machine's smgr: one `smgr up` at a time, and what the last one left.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::context::{Context, not_up};
use super::error::CliError;
use crate::domain::code::Code;
use crate::ipc::channel::watch;
use crate::ipc::hello::Part;

/// How soon something that cannot be waited for is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How the last `smgr up` left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It stays in the foreground; when it does not, it was killed.
    Foreground,
    /// It left the parts running on purpose.
    Detached,
}

/// What an `smgr up` wrote down of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its process.
    pub pid: u32,
    /// How it meant to leave.
    pub mode: Mode,
    /// The launcher that it started; 0 before it did.
    pub launcher: u32,
}

/// The foreground of a state folder, ours until it is dropped.
#[derive(Debug)]
pub struct Session {
    file: File,
    /// What the last one wrote.
    pub before: Option<Record>,
}

impl Session {
    /// Takes the foreground.
    ///
    /// # Errors
    /// When another `smgr up` holds it.
    pub fn take(context: &Context) -> Result<Self, CliError> {
        Self::take_at(&context.folder.up_lock())
    }

    fn take_at(path: &Path) -> Result<Self, CliError> {
        let failed = |error: io::Error| {
            CliError::caused(Code::IO, "failed to lock the state folder", &error)
                .at(path.display().to_string())
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // One that has just begun, or whoever wrote before it, may not have a process to name.
                let holder = read(&mut file).map(|record| record.pid);
                let lives = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
                return Err(holder.filter(lives).map_or_else(begins, already_up));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let before = read(&mut file);
        let mut session = Self { file, before };
        // At once: whoever comes too late is told of this process.
        let (mode, launcher) =
            before.map_or((Mode::Foreground, 0), |record| (record.mode, record.launcher));
        session.record(mode, launcher)?;
        Ok(session)
    }

    /// Writes down who holds it, and how.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn record(&mut self, mode: Mode, launcher: u32) -> Result<(), CliError> {
        let record = Record { pid: std::process::id(), mode, launcher };
        let text = record.text();
        // Cut behind what was written: whoever reads meanwhile finds a record in its first line.
        let written = self.file.rewind().and_then(|()| {
            self.file.write_all(text.as_bytes())?;
            self.file.set_len(text.len() as u64)
        });
        written
            .map_err(|error| CliError::caused(Code::IO, "failed to write the state folder", &error))
    }
}

impl Record {
    fn text(self) -> String {
        let mode = match self.mode {
            Mode::Foreground => "foreground",
            Mode::Detached => "detached",
        };
        format!("{} {mode} {}\n", self.pid, self.launcher)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let mode = match words.next()? {
            "foreground" => Mode::Foreground,
            "detached" => Mode::Detached,
            _ => return None,
        };
        Some(Self { pid, mode, launcher: words.next()?.parse().ok()? })
    }
}

fn read(file: &mut File) -> Option<Record> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(256).read_to_string(&mut text).ok()?;
    Record::parse(&text)
}

/// Says that one smgr serves one state folder.
pub fn already_up(pid: u32) -> CliError {
    CliError::new(Code::ALREADY_UP, format!("already up (pid {pid}): smgr attach, smgr down"))
}

fn begins() -> CliError {
    CliError::new(Code::ALREADY_UP, "another `smgr up` of this state folder is just beginning")
}

/// Which of the parts that keep a node going are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alive {
    /// The launcher: it starts the rest again.
    Launcher(u32),
    /// The keeper or the agent, without a launcher.
    Part(u32),
}

impl Alive {
    /// Returns the process.
    pub fn pid(self) -> u32 {
        match self {
            Self::Launcher(pid) | Self::Part(pid) => pid,
        }
    }
}

/// Finds what goes on in this state folder.
pub fn alive(context: &Context) -> Option<Alive> {
    let record = File::open(context.folder.up_lock()).ok().and_then(|mut file| read(&mut file));
    let launcher = record.map(|record| record.launcher).filter(|pid| is_launcher(*pid));
    let place = context.folder.place();
    let held = |part: &Part| place.is_locked(*part).unwrap_or(false);
    let part = || [Part::Keeper, Part::Agent].into_iter().find(held);
    launcher
        .map(Alive::Launcher)
        .or_else(|| part().map(|part| Alive::Part(place.pid(part).unwrap_or(0))))
}

/// A pid may have passed to another process since it was written down.
fn is_launcher(pid: u32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).nth(1) == Some(b"agent")
}

/// Waits until no part of the node is left. Says whether that was before the deadline.
pub async fn until_down(context: &Context, deadline: Option<Instant>) -> bool {
    loop {
        let Some(alive) = alive(context) else { return true };
        let pidfd = pidfd(alive.pid()).and_then(|pidfd| watch(pidfd).ok());
        let end = async {
            match &pidfd {
                Some(pidfd) => drop(pidfd.readable().await),
                None => sleep_until(Instant::now() + LOOK_AGAIN).await,
            }
        };
        match deadline {
            Some(deadline) => {
                if timeout_at(deadline, end).await.is_err() {
                    return false;
                }
            }
            None => end.await,
        }
        // A part that ended is gone from /proc only when its parent has reaped it.
        sleep_until(Instant::now() + Duration::from_millis(5)).await;
    }
}

/// Asks what goes on here to drain, without the agent: the keeper ends services in good order.
///
/// # Errors
/// When nothing goes on, or it belongs to somebody else.
pub fn terminate(context: &Context) -> Result<(), CliError> {
    let alive = alive(context).ok_or_else(|| not_up(context))?;
    let pidfd = pidfd(alive.pid()).ok_or_else(|| not_up(context))?;
    pidfd_send_signal(&pidfd, Signal::TERM).map_err(|errno| {
        let error = io::Error::from(errno);
        CliError::caused(Code::SOCKET_REFUSED, "this smgr belongs to another user", &error)
    })
}

fn pidfd(pid: u32) -> Option<std::os::fd::OwnedFd> {
    pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::NONBLOCK).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_refused_in_the_name_of_the_first_from_the_beginning() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("up.lock");
        let first = Session::take_at(&path).unwrap();
        let refused = Session::take_at(&path).unwrap_err();
        assert_eq!(refused.code, Code::ALREADY_UP);
        assert!(refused.what.contains(&format!("pid {}", std::process::id())), "{}", refused.what);
        drop(first);
        assert!(Session::take_at(&path).is_ok());
    }

    #[test]
    fn a_record_reads_what_it_writes_and_nothing_else() {
        let record = Record { pid: 7, mode: Mode::Detached, launcher: 9 };
        assert_eq!(Record::parse(&record.text()), Some(record));
        for text in ["", "7", "7 detached", "x foreground 1", "7 sideways 9"] {
            assert_eq!(Record::parse(text), None, "{text}");
        }
    }
}
