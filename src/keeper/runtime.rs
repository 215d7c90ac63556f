//! Where the folders of runs lie: in memory, so that a credential is never on a disk and a full disk keeps nobody from
//! starting. Everybody else knows them by one path in the state folder, which is a link to there.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::ipc::place;

/// Makes the folder of runs known by `path`, in memory where there is a place for it, else where the path is.
///
/// `name` is this state folder's own. `agent` is the account that the folder of an earlier life may belong to.
pub(super) fn make(path: &Path, name: &str, agent: Option<u32>) -> io::Result<()> {
    // A folder on the disk that still holds something is in use: it stays until a start finds it empty.
    if fs::symlink_metadata(path).is_ok_and(|about| about.is_dir()) && fs::remove_dir(path).is_err()
    {
        return Ok(());
    }
    let before = fs::read_link(path).ok();
    let wanted = before.into_iter().chain(candidates(name));
    let Some(target) = wanted.into_iter().find(|folder| prepare(folder, agent).is_ok()) else {
        drop(fs::remove_file(path));
        return fs::create_dir_all(path);
    };
    if fs::read_link(path).is_ok_and(|present| present == target) {
        return Ok(());
    }
    drop(fs::remove_file(path));
    symlink(target, path)
}

/// Removes the folder in memory if nothing is left in it.
pub(super) fn tidy(path: &Path) {
    if let Ok(target) = fs::read_link(path) {
        // With a run in it, it stays; the next life goes on with it.
        drop(fs::remove_dir(target));
    }
}

/// Returns the places in memory that this user may have, the best first.
fn candidates(name: &str) -> Vec<PathBuf> {
    let own = match geteuid().is_root() {
        true => Some(PathBuf::from("/run")),
        false => std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
    };
    let own =
        own.filter(|folder| folder.is_absolute()).map(|folder| folder.join("smgr").join(name));
    // Open to all, so the name says whose it is, and whose it is in truth is looked at.
    let shared = format!("/dev/shm/smgr-{}-{name}", geteuid().as_raw());
    own.into_iter().chain([PathBuf::from(shared)]).collect()
}

/// Makes a folder, and refuses one that is not in memory or that somebody else made.
fn prepare(folder: &Path, agent: Option<u32>) -> io::Result<()> {
    let above = folder.parent().filter(|above| above.ends_with("smgr"));
    for made in above.into_iter().chain([folder]) {
        match DirBuilder::new().mode(0o711).create(made) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let about = fs::symlink_metadata(made)?;
        let is_ours = about.uid() == geteuid().as_raw() || Some(about.uid()) == agent;
        if !about.is_dir() || !is_ours || about.mode() & 0o022 != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
    }
    match place::is_in_memory(folder) {
        true => Ok(()),
        false => {
            drop(fs::remove_dir(folder));
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> String {
        format!("test-{:016x}", crate::ipc::hello::Incarnation::draw().0)
    }

    #[test]
    fn the_folder_of_runs_lies_in_memory_and_goes_when_it_is_empty() {
        if !place::is_in_memory(Path::new("/dev/shm")) {
            return; // Then there is nothing to lie in.
        }
        let temp = tempfile::tempdir().unwrap();
        let (path, name) = (temp.path().join("runtime"), name());
        make(&path, &name, None).unwrap();
        assert!(place::is_in_memory(&path));
        let target = fs::read_link(&path).unwrap();
        fs::create_dir(path.join("web.0.1")).unwrap();
        tidy(&path);
        assert!(target.exists(), "a run is in it");
        make(&path, &name, None).unwrap();
        assert!(path.join("web.0.1").exists(), "the next life goes on with it");
        fs::remove_dir(path.join("web.0.1")).unwrap();
        tidy(&path);
        assert!(!target.exists());
        // As after a reboot.
        make(&path, &name, None).unwrap();
        assert!(path.is_dir());
        tidy(&path);
    }

    #[test]
    fn a_folder_on_the_disk_is_left_while_a_run_is_in_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("runtime");
        fs::create_dir_all(path.join("web.0.1")).unwrap();
        make(&path, &name(), None).unwrap();
        assert!(path.join("web.0.1").exists());
        assert!(fs::read_link(&path).is_err());
    }

    #[test]
    fn a_folder_that_somebody_else_could_have_made_is_not_taken() {
        let temp = tempfile::tempdir_in("/dev/shm").unwrap();
        let open = temp.path().join("open");
        DirBuilder::new().create(&open).unwrap();
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert!(prepare(&open, None).is_err());
        let link = temp.path().join("link");
        symlink(temp.path(), &link).unwrap();
        assert!(prepare(&link, None).is_err());
    }
}
