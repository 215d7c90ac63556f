//! Lets one other user at a file of ours, without being root.
//!
//! The owner of a file may name further users in its access control list, so the agent can hand a
//! credential to a service's account although it may not give the file away.

use std::io;
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr};

/// What the other user may do, as in a file mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Read a file.
    Read,
    /// List, enter and change a folder.
    All,
}

impl Access {
    fn bits(self) -> u16 {
        match self {
            Self::Read => 4,
            Self::All => 7,
        }
    }
}

const VERSION: u32 = 2;
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

/// Gives the owner and `uid` the same access, and nobody else any.
pub(super) fn share(path: &Path, uid: u32, access: Access) -> io::Result<()> {
    let bits = access.bits();
    let entries = [
        (OWNER, bits, NO_ID),
        (USER, bits, uid),
        (OWNING_GROUP, 0, NO_ID),
        (MASK, bits, NO_ID),
        (OTHERS, 0, NO_ID),
    ];
    let mut list = VERSION.to_le_bytes().to_vec();
    for (tag, bits, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(bits.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    Ok(setxattr(path, "system.posix_acl_access", &list, XattrFlags::empty())?)
}
