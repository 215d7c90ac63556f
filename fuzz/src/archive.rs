//! What must hold of an archive that is unpacked, whoever made it.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use smgr::agent::release::archive::{Limits, UnpackError};

/// The size of everything in a tar archive.
const BLOCK: usize = 512;

/// Small, so that little has to be written to reach them.
const LIMITS: Limits = Limits { bytes_max: 64 * 1024, entries_max: 24 };

/// Asserts that what `unpack` makes of an archive stays in its folder and within the limits, and that what it refuses is
/// the archive's fault.
///
/// # Panics
/// When it does not hold.
pub fn holds(data: &[u8], unpack: impl Fn(&[u8], &Path, Limits) -> Result<u64, UnpackError>) {
    let around = tempfile::tempdir().expect("a folder for the archive");
    let (into, beside) = (around.path().join("into"), around.path().join("beside"));
    fs::create_dir(&into).expect("the folder is new");
    fs::write(&beside, b"untouched").expect("the disk has room");
    let unpacked = unpack(data, &into, LIMITS);
    if let Err(error) = &unpacked {
        let why = error.to_string();
        assert!(!matches!(error, UnpackError::Write { .. }), "{why}: the disk is blamed");
        assert!(!why.contains(char::is_control), "{why:?} is not one line");
    }
    assert_eq!(fs::read(&beside).expect("it stays"), b"untouched", "it was written through");
    let names = fs::read_dir(around.path()).expect("it is there").count();
    assert_eq!(names, 2, "something was made outside");
    let mut found = Found::default();
    walk(&into, &into, &mut found);
    assert!(found.entries <= LIMITS.entries_max, "{} entries", found.entries);
    assert!(found.bytes <= LIMITS.bytes_max, "{} bytes", found.bytes);
    if let Ok(bytes) = unpacked {
        assert!(bytes <= LIMITS.bytes_max, "{bytes} bytes were told");
    }
}

#[derive(Default)]
struct Found {
    entries: usize,
    bytes: u64,
}

fn walk(root: &Path, folder: &Path, found: &mut Found) {
    for entry in fs::read_dir(folder).expect("a folder that was unpacked") {
        let path = entry.expect("an entry that was unpacked").path();
        let about = fs::symlink_metadata(&path).expect("it was just named");
        found.entries += 1;
        let kind = about.file_type();
        assert!(
            !(kind.is_block_device()
                || kind.is_char_device()
                || kind.is_fifo()
                || kind.is_socket()),
            "{} is no file",
            path.display()
        );
        if kind.is_symlink() {
            let target = fs::read_link(&path).expect("a link");
            assert!(stays(root, folder, &target), "{} leads out", path.display());
        } else if kind.is_dir() {
            walk(root, &path, found);
        } else {
            found.bytes += about.len();
        }
    }
}

/// Says whether a link leads to a place inside, by its words and, where it leads anywhere, by what the kernel makes of it.
fn stays(root: &Path, from: &Path, target: &Path) -> bool {
    let mut at = PathBuf::from(from);
    for part in target.components() {
        match part {
            std::path::Component::Normal(part) => at.push(part),
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => drop(at.pop()),
            std::path::Component::RootDir | std::path::Component::Prefix(_) => return false,
        }
        if !at.starts_with(root) {
            return false;
        }
    }
    let root = fs::canonicalize(root).expect("it is there");
    fs::canonicalize(from.join(target)).map_or(true, |real| real.starts_with(root))
}

/// Returns the archive with the sum of each header as it has to be, so that what was changed in it is looked at.
pub fn mended(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    let mut at = 0;
    while let Some(block) = bytes.get_mut(at..at + BLOCK) {
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = std::str::from_utf8(&block[124..136]).unwrap_or_default();
        let size = usize::from_str_radix(digits.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        at = at.saturating_add(BLOCK).saturating_add(size.next_multiple_of(BLOCK).min(1 << 30));
    }
    bytes
}
