//! The names in a state folder: what lies where, and nothing of what is in it.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use crate::ipc::place::Place;

/// A state folder: all that one node keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateFolder {
    root: PathBuf,
}

impl StateFolder {
    /// Names the folder. Nothing is read or made.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns where the key files are.
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// Returns the trust envelope.
    pub fn trust(&self) -> PathBuf {
        self.root.join("trust.smgr")
    }

    /// Returns the trust envelope that came by the bus, in a folder that is the agent's own: it proves itself.
    pub fn received_trust(&self) -> PathBuf {
        self.specs().join("trust.smgr")
    }

    /// Returns the receipt by which a controller showed that this log had been set back, kept as evidence.
    pub fn witnessed(&self) -> PathBuf {
        self.specs().join("witnessed.receipt")
    }

    /// Returns the public root key that this node was told to trust, as a line of hex.
    pub fn root_pin(&self) -> PathBuf {
        self.root.join("root.pub")
    }

    /// Returns the node's set-up, see `agent::setup::NodeSetup`.
    pub fn setup(&self) -> PathBuf {
        self.root.join("node.json")
    }

    /// Returns the wish to match the files that `smgr up` leaves for an agent that is not there yet.
    pub fn boot_wish(&self) -> PathBuf {
        // In a folder that is the agent's own, so that it can take it away.
        self.specs().join("apply.wish")
    }

    /// Returns where the event log is.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Returns the texts of specs that are or were in force, by digest.
    pub fn specs(&self) -> PathBuf {
        self.root.join("specs")
    }

    /// Returns the releases of services: manifests and files.
    pub fn releases(&self) -> PathBuf {
        self.root.join("releases")
    }

    /// Returns the specs of services that smgr itself needs, such as nats-server.
    pub fn internal_services(&self) -> PathBuf {
        self.root.join("internal/services.d")
    }

    /// Returns what a nats-server of our own reads.
    pub fn bus_config(&self) -> PathBuf {
        self.root.join("nats.conf")
    }

    /// Returns the certificate and the key of an encrypted one, which only that server reads.
    pub fn bus_certificate(&self) -> PathBuf {
        self.root.join("nats.pem")
    }

    /// Returns who vouches for the server of the bus, for everybody who connects to it.
    pub fn bus_ca(&self) -> PathBuf {
        self.root.join("bus-ca.pem")
    }

    /// Returns what it keeps.
    pub fn bus_store(&self) -> PathBuf {
        self.root.join("nats")
    }

    /// Returns where the folders of the other members of a fleet on one machine are.
    pub fn members(&self) -> PathBuf {
        self.root.join("fleet")
    }

    /// Returns the log files of services, where the set-up names no other folder.
    pub fn service_logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Returns what the command line remembers: the heads that it has seen.
    pub fn pins(&self) -> PathBuf {
        self.root.join("pins")
    }

    /// Returns what is worthless after a reboot: sockets, locks and pids.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Returns where the parts of the node find each other.
    pub fn place(&self) -> Place {
        Place::of(&self.root)
    }

    /// Returns the lock that `smgr up` holds as long as it is there.
    pub fn up_lock(&self) -> PathBuf {
        self.run().join("up.lock")
    }

    /// Returns where the parts write what they have to say for themselves.
    pub fn parts_log(&self) -> PathBuf {
        self.run().join("smgr.log")
    }

    /// Makes the folder and those inside it that everything else expects, closed to other users.
    ///
    /// # Errors
    /// When the disk or the permissions refuse.
    pub fn make(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        [self.root.clone(), self.keys(), self.run()]
            .iter()
            .try_for_each(|path| builder.create(path))
    }

    /// Returns the user who runs smgr here: root, or else whose folder it is, whatever account this process has.
    ///
    /// # Errors
    /// When the folder cannot be looked at.
    pub fn ruler(&self) -> io::Result<u32> {
        match rustix::process::geteuid().is_root() {
            true => Ok(0),
            false => Ok(std::fs::metadata(&self.root)?.uid()),
        }
    }

    /// Divides the folder of root between root and the accounts of the parts; `None` takes all of it back. Nothing may run on it meanwhile. Can be called again at any time.
    ///
    /// The agent owns what it writes: the log, texts, log files. What says who may do what it can only read, and of the
    /// keys it can read its own alone. A nats-server of our own has the account of the uplink: it is the other end of the
    /// same transport, which nobody trusts.
    ///
    /// # Errors
    /// When the disk or the permissions refuse.
    pub fn divide(&self, service_logs: &Path, accounts: Option<Accounts>) -> io::Result<()> {
        if std::fs::metadata(&self.root)?.uid() != 0 {
            // It is somebody's own, which is not taken away.
            return Ok(());
        }
        let Accounts { agent: (uid, gid), uplink } = accounts.unwrap_or_default();
        let mode = |divided: u32, whole: u32| if accounts.is_some() { divided } else { whole };
        for folder in [self.log(), self.specs(), self.root.join("detached")] {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            give(&folder, uid, gid)?;
        }
        // The accounts of services run what lies here.
        DirBuilder::new().recursive(true).mode(0o755).create(self.releases())?;
        give(&self.releases(), uid, gid)?;
        DirBuilder::new().recursive(true).mode(0o750).create(service_logs)?;
        give(service_logs, uid, gid)?;
        for key in ["node.key", "node.nk"] {
            give(&self.keys().join(key), uid, gid)?;
        }
        give(&self.boot_wish(), uid, gid)?;
        for folder in [self.internal_services(), self.root.join("internal")] {
            for file in files_of(&folder) {
                keep(&file, gid, 0o640)?;
            }
            keep(&folder, gid, 0o750)?;
        }
        give(&self.bus_store(), uplink.0, uplink.1)?;
        for file in [self.bus_config(), self.bus_certificate()] {
            keep(&file, uplink.1, mode(0o640, 0o600))?;
        }
        keep(&self.setup(), gid, mode(0o640, 0o600))?;
        keep(&self.keys(), gid, mode(0o710, 0o700))?;
        keep(&self.run(), gid, 0o711)?;
        // The accounts of the other members pass through it to folders of their own.
        keep(&self.members(), gid, mode(0o711, 0o700))?;
        keep(&self.root, gid, mode(0o755, 0o700))
    }
}

/// The accounts of the parts, each by its user and group; root where they have none of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Of the agent.
    pub agent: (u32, u32),
    /// Of the uplink.
    pub uplink: (u32, u32),
}

/// Lists the files of a folder, and none of one that is missing.
fn files_of(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.map(|entry| entry.path()).collect()
}

/// Keeps a path for root, and says what the group may do with it. One that is missing is no error, and what a link
/// leads to is not touched.
fn keep(path: &Path, gid: u32, mode: u32) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(about) if about.is_symlink() => return Ok(()),
        about => about?,
    };
    lchown(path, Some(0), Some(gid))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Gives a path away with all that is in it, unless it has its owner already: in what belongs to another account
/// nothing is touched. One that is missing is no error.
fn give(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let about = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        about => about?,
    };
    if about.uid() == uid {
        return Ok(());
    }
    if about.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path(), uid, gid)?;
        }
    }
    // The folder itself last: a division that was cut short goes on at the next call.
    lchown(path, Some(uid), Some(gid))
}

/// More bring no more: what a journal takes in one turn comes from a few.
const SYNCS_AT_ONCE: usize = 16;

/// Puts a file in its place, whole and on disk, or leaves what was there.
///
/// # Errors
/// When the disk or the permissions refuse.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let staged = stage(path, bytes, mode)?;
    std::fs::rename(&staged, path)?;
    sync_folder_of(path)
}

/// Puts many files of one folder in their places, each whole, all of them on disk: with one sync of the folder, and
/// with so many files under way at once that the disk takes several in one turn of its journal.
///
/// # Errors
/// When the disk or the permissions refuse; then some may be in their place.
pub fn write_all_whole(folder: &Path, files: &[(PathBuf, &[u8])], mode: u32) -> io::Result<()> {
    let stage_some = |some: &[(PathBuf, &[u8])]| {
        some.iter().map(|(path, bytes)| stage(path, bytes, mode)).collect::<io::Result<Vec<_>>>()
    };
    let share = files.len().div_ceil(SYNCS_AT_ONCE).max(1);
    std::thread::scope(|scope| {
        let staging: Vec<_> =
            files.chunks(share).map(|some| (some, scope.spawn(move || stage_some(some)))).collect();
        staging.into_iter().try_for_each(|(some, staged)| {
            let staged = staged.join().map_err(|_| io::Error::other("a writer panicked"))??;
            some.iter()
                .zip(staged)
                .try_for_each(|((path, _), staged)| std::fs::rename(staged, path))
        })
    })?;
    File::open(folder)?.sync_all()
}

/// Puts a file in its place unless there is one already. Says whether it did.
///
/// # Errors
/// When the disk or the permissions refuse.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let staged = stage(path, bytes, mode)?;
    match renameat_with(CWD, &staged, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => sync_folder_of(path).map(|()| true),
        Err(rustix::io::Errno::EXIST) => std::fs::remove_file(&staged).map(|()| false),
        Err(errno) => Err(errno.into()),
    }
}

/// Writes the bytes beside their place. What a killed predecessor left there is overwritten: it was never named.
fn stage(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let staged = path.with_file_name(name);
    drop(std::fs::remove_file(&staged));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(staged)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_is_never_replaced_by_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert!(write_new(&path, b"one", 0o600).unwrap());
        assert!(!write_new(&path, b"two", 0o600).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn many_files_are_put_in_their_places_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let names = (0..50).map(|n| folder.path().join(n.to_string()));
        let files: Vec<(PathBuf, &[u8])> = names.map(|path| (path, &b"text"[..])).collect();
        write_all_whole(folder.path(), &files, 0o600).unwrap();
        write_all_whole(folder.path(), &[], 0o600).unwrap();
        assert!(files.iter().all(|(path, text)| std::fs::read(path).unwrap() == *text));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), files.len());
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.json");
        write_whole(&path, b"one", 0o600).unwrap();
        write_whole(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
    }
}
