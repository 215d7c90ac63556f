//! Where the parts of one node find each other: sockets, locks and pid files in the state folder.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::hello::Part;

/// How often a held lock is tried before its holder counts as another life of the part.
const LOCK_TRIES: u32 = 5;

/// The pause between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// The part of the state folder that the parts share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    run: PathBuf,
}

/// Says why a part may not begin.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another life of the part goes on.
    #[error("{} is running already{}", .part.name(), .pid.map(|pid| format!(" as process {pid}")).unwrap_or_default())]
    Held {
        /// Which part.
        part: Part,
        /// Its process, when its pid file can be read.
        pid: Option<u32>,
    },
    /// The lock cannot be taken at all.
    #[error("failed to lock `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Says that this process is the one life of its part; ends with the value, or with the process.
#[derive(Debug)]
pub struct PartLock {
    _file: File,
}

impl Place {
    /// Names the place in a state folder. Creates nothing.
    pub fn of(state: &Path) -> Self {
        Self { run: state.join("run") }
    }

    /// Returns the folder, created by the keeper; others may pass through it, not list it.
    pub fn folder(&self) -> &Path {
        &self.run
    }

    /// Creates the folder.
    ///
    /// # Errors
    /// When the state folder cannot be created or written.
    pub fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.run)
    }

    /// Returns the socket on which the keeper listens for the agent.
    pub fn keeper_socket(&self) -> PathBuf {
        self.run.join("keeper.sock")
    }

    /// Returns the socket on which the agent listens for the uplink.
    pub fn uplink_socket(&self) -> PathBuf {
        self.run.join("agent/uplink.sock")
    }

    /// Returns the socket on which the agent listens for the command line.
    pub fn local_socket(&self) -> PathBuf {
        self.run.join("agent/local.sock")
    }

    /// Returns the folder with a folder of its own for each run that needs one: a link into memory where that is to be
    /// had.
    pub fn runtime(&self) -> PathBuf {
        self.run.join("runtime")
    }

    /// Returns the folder of a part's lock, pid file and sockets, owned by the part's account.
    pub fn folder_of(&self, part: Part) -> PathBuf {
        self.run.join(part.name())
    }

    /// Takes the lock of a part and writes its pid file.
    ///
    /// # Errors
    /// [`LockError::Held`] when another life of the part goes on.
    pub fn lock(&self, part: Part) -> Result<PartLock, LockError> {
        let path = self.lock_path(part);
        let io = |source| LockError::Io { path: path.clone(), source };
        let folder = self.folder_of(part);
        fs::DirBuilder::new().recursive(true).mode(0o711).create(folder).map_err(io)?;
        let file = open_lock(&path).map_err(io)?;
        let mut tries = LOCK_TRIES;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // Somebody may only be asking, by `is_locked`, for a few microseconds.
                Err(TryLockError::WouldBlock) if tries > 1 => tries -= 1,
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held { part, pid: self.pid(part) });
                }
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        self.write_pid(part).map_err(io)?;
        Ok(PartLock { _file: file })
    }

    /// Writes the pid file, by a rename: a reader never sees half a number.
    ///
    /// On a full disk the number takes the place of the one before, which is as long. Half a number would be a process
    /// that does not hold the lock, and whoever reads looks again until the two agree.
    fn write_pid(&self, part: Part) -> io::Result<()> {
        let path = self.pid_path(part);
        let draft = path.with_extension("pid-draft");
        let text = format!("{:<10}\n", std::process::id());
        match fs::write(&draft, &text).and_then(|()| fs::rename(&draft, &path)) {
            Err(error) if super::is_full(&error) => {
                drop(fs::remove_file(&draft));
                File::options().write(true).open(&path)?.write_all_at(text.as_bytes(), 0)
            }
            written => written,
        }
    }

    /// Says whether a life of the part goes on.
    ///
    /// # Errors
    /// When the lock file exists and cannot be opened.
    pub fn is_locked(&self, part: Part) -> io::Result<bool> {
        let file = match File::open(self.lock_path(part)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Returns the process in a part's pid file. Only while the lock is held does it mean anything.
    pub fn pid(&self, part: Part) -> Option<u32> {
        let pid = fs::read_to_string(self.pid_path(part)).ok()?.trim().parse::<i32>().ok()?;
        u32::try_from(pid).ok().filter(|pid| *pid != 0)
    }

    fn lock_path(&self, part: Part) -> PathBuf {
        self.folder_of(part).join("lock")
    }

    fn pid_path(&self, part: Part) -> PathBuf {
        self.folder_of(part).join("pid")
    }
}

/// The kernel's names of file systems that are never on a disk, beside swap: `tmpfs` and `ramfs`.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Says whether what is written below a path stays in memory.
pub fn is_in_memory(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|about| {
        let kind = u64::try_from(about.f_type).unwrap_or(u64::MAX);
        IN_MEMORY.contains(&kind)
    })
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).read(true).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_lives_once() {
        let state = tempfile::tempdir().unwrap();
        let place = Place::of(state.path());
        place.create().unwrap();
        assert!(!place.is_locked(Part::Agent).unwrap());
        let lock = place.lock(Part::Agent).unwrap();
        assert!(place.is_locked(Part::Agent).unwrap());
        let error = place.lock(Part::Agent).unwrap_err();
        assert!(
            matches!(error, LockError::Held { pid: Some(pid), .. } if pid == std::process::id())
        );
        drop(lock);
        assert!(place.lock(Part::Agent).is_ok());
    }
}
