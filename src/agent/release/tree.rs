//! What the files of a release are: a digest over all of them, and a seal by which a change shows quickly.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::domain::id::Digest;

/// What was verified, beside the folder that it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seal {
    /// The content, in hex.
    tree: String,
    /// How the kernel describes the same files, in hex: a change of any of them shows in it.
    looks: String,
    /// All files together.
    pub(super) bytes: u64,
}

impl Seal {
    /// Looks at a tree that was just verified.
    pub(super) fn of(folder: &Path) -> io::Result<Self> {
        let (tree, bytes) = content(folder)?;
        Ok(Self { tree: tree.to_string(), looks: looks(folder)?.to_string(), bytes })
    }

    /// Returns the digest over names, modes and contents.
    pub(super) fn tree(&self) -> Option<Digest> {
        self.tree.parse().ok()
    }

    /// Says whether the files are still what was sealed.
    ///
    /// The kernel's description is compared first. Only when that differs, as after a restore from a backup, every
    /// byte is read.
    pub(super) fn holds(&self, folder: &Path) -> io::Result<bool> {
        if looks(folder)?.to_string() == self.looks {
            return Ok(true);
        }
        Ok(content(folder)?.0.to_string() == self.tree)
    }
}

/// Walks a tree in the order of names.
fn walk(
    folder: &Path,
    visit: &mut dyn FnMut(&Path, &fs::Metadata) -> io::Result<()>,
) -> io::Result<()> {
    let mut below = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    below.sort_by_key(fs::DirEntry::file_name);
    for entry in below {
        let path = entry.path();
        let about = fs::symlink_metadata(&path)?;
        visit(&path, &about)?;
        if about.is_dir() {
            walk(&path, visit)?;
        }
    }
    Ok(())
}

/// Returns the digest over names, modes and contents, and the size of all files.
fn content(folder: &Path) -> io::Result<(Digest, u64)> {
    let mut hash = Sha256::new_with_prefix(b"smgr-tree-v1\0");
    let mut bytes = 0;
    walk(folder, &mut |path, about| {
        let name = path.strip_prefix(folder).unwrap_or(path).as_os_str().as_bytes();
        hash.update((name.len() as u64).to_be_bytes());
        hash.update(name);
        hash.update(about.mode().to_be_bytes());
        if about.is_symlink() {
            hash.update(fs::read_link(path)?.as_os_str().as_bytes());
        } else if about.is_file() {
            hash.update(digest_of(&mut File::open(path)?)?.0);
            bytes += about.len();
        }
        Ok(())
    })?;
    Ok((Digest(hash.finalize().into()), bytes))
}

/// Returns a digest over what the kernel says of each file. The time of the last change cannot be set by anybody.
fn looks(folder: &Path) -> io::Result<Digest> {
    let mut hash = Sha256::new_with_prefix(b"smgr-looks-v1\0");
    walk(folder, &mut |path, about| {
        hash.update(path.strip_prefix(folder).unwrap_or(path).as_os_str().as_bytes());
        hash.update([0]);
        for number in [about.ino(), u64::from(about.mode()), about.len()] {
            hash.update(number.to_be_bytes());
        }
        for number in [about.ctime(), about.ctime_nsec()] {
            hash.update(number.to_be_bytes());
        }
        Ok(())
    })?;
    Ok(Digest(hash.finalize().into()))
}

/// Returns the digest of a whole file.
pub(super) fn digest_of(file: &mut File) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest(hash.finalize().into())),
            len => hash.update(&buffer[..len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_a_new_file_and_another_mode_break_the_seal() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let web = folder.path().join("web");
        fs::write(&web, b"one").unwrap();
        let seal = Seal::of(folder.path()).unwrap();
        assert!(seal.holds(folder.path()).unwrap());
        // The same bytes again: the kernel sees a change, and the content is the same.
        fs::write(&web, b"one").unwrap();
        assert!(seal.holds(folder.path()).unwrap());
        fs::write(&web, b"two").unwrap();
        assert!(!seal.holds(folder.path()).unwrap());
        fs::write(&web, b"one").unwrap();
        fs::write(folder.path().join("new"), b"").unwrap();
        assert!(!seal.holds(folder.path()).unwrap());
        fs::remove_file(folder.path().join("new")).unwrap();
        assert!(seal.holds(folder.path()).unwrap());
        fs::set_permissions(&web, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!seal.holds(folder.path()).unwrap());
    }
}
