//! Where the notify sockets of slots are, and who may send to them.
//!
//! They have paths in a folder of the keeper's own, so that nobody else can take an address before or between the lives
//! of a keeper, and they are bound again under the same path: a service keeps its `NOTIFY_SOCKET` for as long as it lives.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::ipc::keeper::SlotName;

/// The longest path of a socket, in bytes, without the zero behind it.
const ADDRESS_BYTES_MAX: usize = 107;

/// The folder of the sockets.
#[derive(Debug)]
pub(super) struct NotifyFolder(PathBuf);

impl NotifyFolder {
    /// Names the folder: as root one that every account can reach, since a state folder is closed to them; else one in
    /// the keeper's own. Nothing is made.
    pub(super) fn find(domain: &str, keeper: &Path) -> Self {
        use rustix::fs::{Access, access};
        let is_root = rustix::process::geteuid().is_root();
        match is_root && access("/run", Access::WRITE_OK | Access::EXEC_OK).is_ok() {
            true => Self(Path::new("/run/smgr").join(domain)),
            false => Self(keeper.join("notify")),
        }
    }

    /// Returns the address of a slot's socket. Its folder is there when this returns.
    pub(super) fn address(&self, slot: &SlotName) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o711).create(&self.0)?;
        self.path(slot)
    }

    /// Removes a slot's socket.
    pub(super) fn forget(&self, slot: &SlotName) {
        // One that stays harms nobody: it is replaced when the slot is made again.
        drop(self.path(slot).and_then(|path| clear(&path)));
    }

    /// Removes the folder, if no slot has a socket any more.
    pub(super) fn fell(&self) {
        drop(fs::remove_dir(&self.0));
    }

    fn path(&self, slot: &SlotName) -> io::Result<PathBuf> {
        let named = self.0.join(slot.as_str());
        let path = match named.as_os_str().len() <= ADDRESS_BYTES_MAX {
            true => named,
            false => self.0.join(format!("{:016x}", fnv(slot.as_str()))),
        };
        if path.as_os_str().len() > ADDRESS_BYTES_MAX {
            let why = format!("`{}` is too long for the address of a socket", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, why));
        }
        Ok(path)
    }
}

/// Opens a socket to the account of a service alone; to everybody where the service is root and may become another. Who
/// sends is told by the credentials of each datagram in any case.
pub(super) fn admit(address: &Path, uid: Option<u32>) -> io::Result<()> {
    let may_change = uid.is_none_or(|uid| uid == 0) && rustix::process::geteuid().is_root();
    let mode = if may_change { 0o666 } else { 0o600 };
    if let Some(uid) = uid {
        chown(address, Some(uid), None)?;
    }
    fs::set_permissions(address, Permissions::from_mode(mode))
}

/// Removes what stands at an address.
pub(super) fn clear(address: &Path) -> io::Result<()> {
    match fs::remove_file(address) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_fits_however_long_the_names_are() {
        let folder = NotifyFolder(PathBuf::from("/run/smgr/0123456789abcdef"));
        let slot: SlotName = "web.0".parse().unwrap();
        assert_eq!(folder.path(&slot).unwrap(), folder.0.join("web.0"));
        let long: SlotName = "x".repeat(120).parse().unwrap();
        assert_eq!(folder.path(&long).unwrap().as_os_str().len(), 26 + 1 + 16);
        let deep = NotifyFolder(PathBuf::from("/x".repeat(60)));
        assert!(deep.path(&slot).is_err());
    }
}
