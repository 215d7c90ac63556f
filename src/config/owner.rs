//! Who may write a spec file: whoever can, can run programs.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::mistake::Mistake;
use crate::domain::code::Code;

/// What the kernel says of a file or a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its type and permissions.
    pub mode: u32,
}

impl From<&fs::Metadata> for Facts {
    fn from(metadata: &fs::Metadata) -> Self {
        Self { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() }
    }
}

/// Says why somebody else could change a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposed {
    /// It belongs to neither root nor the user who runs smgr.
    Owner(u32),
    /// Its group may write it.
    Group(u32),
    /// Everybody may write it.
    World,
}

const GROUP_WRITES: u32 = 0o020;
const WORLD_WRITES: u32 = 0o002;
const STICKY: u32 = 0o1000;
const TYPE: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;

/// Says whether only root and the user `uid` can change what has these facts.
///
/// A group whose number is that of the user is the user's private group, by the custom of the
/// distributions that make one. In a sticky folder others can add files, which are then theirs and
/// refused, but they cannot replace one.
pub fn judge(facts: Facts, uid: u32) -> Result<(), Exposed> {
    if facts.uid != 0 && facts.uid != uid {
        return Err(Exposed::Owner(facts.uid));
    }
    if facts.mode & TYPE == FOLDER && facts.mode & STICKY != 0 {
        return Ok(());
    }
    if facts.mode & WORLD_WRITES != 0 {
        return Err(Exposed::World);
    }
    let trusted_group = facts.gid == 0 || (uid != 0 && facts.gid == uid);
    if facts.mode & GROUP_WRITES != 0 && !trusted_group {
        return Err(Exposed::Group(facts.gid));
    }
    Ok(())
}

/// Checks a file or folder, what it points to if it is a link, and all folders above both.
pub fn check(path: &Path, uid: u32) -> Result<(), Mistake> {
    let unreadable = |error: io::Error| super::load::unreadable(path, &error);
    let target = path.canonicalize().map_err(unreadable)?;
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
        Some(folder) => folder.to_owned(),
        None => PathBuf::from("/"),
    };
    let folder = folder.canonicalize().map_err(unreadable)?;
    for place in target.ancestors().chain(folder.ancestors()) {
        let facts = Facts::from(&fs::metadata(place).map_err(unreadable)?);
        judge(facts, uid).map_err(|exposed| mistake(path, place, &target, exposed))?;
    }
    Ok(())
}

fn mistake(path: &Path, place: &Path, target: &Path, exposed: Exposed) -> Mistake {
    let what = if place == target { "this file" } else { "a folder above it" };
    let shown = place.display();
    let (code, label, hint) = match exposed {
        Exposed::Owner(uid) => (
            Code::FOREIGN_OWNER,
            format!("{what} belongs to user {uid}, who could change what is run"),
            format!("chown it: {shown}"),
        ),
        Exposed::Group(gid) => (
            Code::OPEN_TO_OTHERS,
            format!("group {gid} may write {what}, and so change what is run"),
            format!("chmod g-w {shown}"),
        ),
        Exposed::World => (
            Code::OPEN_TO_OTHERS,
            format!("everybody may write {what}, and so change what is run"),
            format!("chmod go-w {shown}"),
        ),
    };
    Mistake::new(code, path.display().to_string(), None, label).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANA: u32 = 1000;

    fn facts(uid: u32, gid: u32, mode: u32) -> Facts {
        Facts { uid, gid, mode }
    }

    #[test]
    fn only_root_and_the_user_who_runs_smgr_may_write() {
        assert_eq!(judge(facts(0, 0, 0o100_644), ANA), Ok(()));
        assert_eq!(judge(facts(ANA, 100, 0o100_644), ANA), Ok(()));
        assert_eq!(judge(facts(1001, 100, 0o100_600), ANA), Err(Exposed::Owner(1001)));
        assert_eq!(judge(facts(ANA, 100, 0o100_664), ANA), Err(Exposed::Group(100)));
        assert_eq!(judge(facts(ANA, ANA, 0o100_666), ANA), Err(Exposed::World));
        // Root does not run what another user wrote.
        assert_eq!(judge(facts(ANA, ANA, 0o100_644), 0), Err(Exposed::Owner(ANA)));
    }

    #[test]
    fn a_private_group_and_a_sticky_folder_are_no_danger() {
        assert_eq!(judge(facts(ANA, ANA, 0o100_664), ANA), Ok(()));
        assert_eq!(judge(facts(0, 0, 0o041_777), ANA), Ok(()));
        assert_eq!(judge(facts(0, 0, 0o040_777), ANA), Err(Exposed::World));
        // The sticky bit means nothing on a file.
        assert_eq!(judge(facts(0, 0, 0o101_666), ANA), Err(Exposed::World));
    }
}
