//! The texts of specs, by digest, in a folder beside the log: on disk before an event names them.
//!
//! A few are a file each. Many at once, as at a first start, are one file together: to make a file costs a disk far more
//! than to write one.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tracing::warn;

use super::folder::{write_all_whole, write_whole};
use crate::config;
use crate::domain::id::Digest;
use crate::wire::key::digest_of;

/// More than this many at once are one file.
const SINGLE_MAX: usize = 8;

/// Larger than any text and any bundle; more is not read.
const BYTES_MAX: u64 = 64 << 20;

/// They may hold values of the environment, so only the agent's own account reads them.
const MODE: u32 = 0o600;

/// The ending of a file with one text, whose name is the digest.
const SINGLE: &str = "json";

/// The ending of a file with many.
const BUNDLE: &str = "bundle";

/// Texts by digest in hex.
type Bundle = BTreeMap<String, String>;

/// The folder.
#[derive(Clone, Debug)]
pub struct Texts {
    folder: PathBuf,
}

/// The folder while it is read; a file with many texts is read once.
#[derive(Debug)]
pub struct Reading {
    texts: Texts,
    bundled: OnceCell<Bundle>,
}

impl Texts {
    /// Names the folder of a state folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Reads what is there.
    pub fn reading(&self) -> Reading {
        Reading { texts: self.clone(), bundled: OnceCell::new() }
    }

    /// Returns the folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps texts; they are on disk when it returns.
    pub(super) fn keep(&self, texts: &BTreeMap<Digest, &str>) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        if texts.len() > SINGLE_MAX {
            let texts: BTreeMap<_, _> =
                texts.iter().map(|(it, text)| (it.to_string(), text)).collect();
            let bundle = serde_json::to_vec(&texts)?;
            return write_whole(&self.bundle_path(&bundle), &bundle, MODE);
        }
        let new = texts.iter().map(|(digest, text)| (self.path(*digest), text.as_bytes()));
        // One that was damaged is made whole.
        let is_whole = |path: &Path, text: &[u8]| fs::read(path).is_ok_and(|there| there == text);
        let new: Vec<_> = new.filter(|(path, text)| !is_whole(path, text)).collect();
        match new.is_empty() {
            true => Ok(()),
            false => write_all_whole(&self.folder, &new, MODE),
        }
    }

    /// Begins to count the age of texts: no later event names them.
    ///
    /// What was in a file with others gets one anew, with those that age now: the others in the old one do not.
    pub(super) fn age(&self, digests: &BTreeSet<Digest>) -> io::Result<()> {
        let now = SystemTime::now();
        let reading = self.reading();
        let (mut bundled, mut failed) = (BTreeMap::new(), Ok(()));
        for digest in digests {
            let aged = File::open(self.path(*digest)).and_then(|file| file.set_modified(now));
            let Err(error) = aged else { continue };
            match reading.bundled().get(&digest.to_string()) {
                Some(text) if error.kind() == io::ErrorKind::NotFound => {
                    bundled.insert(*digest, text.as_str());
                }
                // The others age all the same.
                Some(_) | None => failed = Err(error),
            }
        }
        if !bundled.is_empty() {
            self.keep(&bundled)?;
        }
        failed
    }

    /// Removes the texts that are neither needed nor younger than `before`. A text is as young as the youngest file that
    /// has it, and stays in no other.
    pub(super) fn prune(&self, needed: &BTreeSet<Digest>, before: SystemTime) {
        let needed: BTreeSet<String> = needed.iter().map(Digest::to_string).collect();
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut files: Vec<(SystemTime, PathBuf)> = entries
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        files.sort_by(|one, other| other.cmp(one));
        let mut younger = BTreeSet::new();
        for (modified, path) in files {
            let is_young = modified >= before;
            let stays =
                |text: &str| (is_young || needed.contains(text)) && younger.insert(text.to_owned());
            if let Err(why) = self.prune_file(&path, stays) {
                warn!(path = %path.display(), %why, "a spec that nothing names stays");
            }
        }
    }

    fn prune_file(&self, path: &Path, mut stays: impl FnMut(&str) -> bool) -> io::Result<()> {
        let part =
            |part: Option<&std::ffi::OsStr>| part.and_then(|it| it.to_str()).map(str::to_owned);
        match (part(path.file_stem()), part(path.extension()).as_deref()) {
            (Some(digest), Some(SINGLE)) => match stays(&digest) {
                true => Ok(()),
                false => fs::remove_file(path),
            },
            (_, Some(BUNDLE)) => {
                let mut left = read_bundle(path)?;
                let whole = left.len();
                left.retain(|digest, _| stays(digest));
                if left.len() == whole {
                    return Ok(());
                }
                if !left.is_empty() {
                    // As old as it was.
                    let modified = fs::metadata(path)?.modified()?;
                    let bundle = serde_json::to_vec(&left)?;
                    let smaller = self.bundle_path(&bundle);
                    write_whole(&smaller, &bundle, MODE)?;
                    File::open(&smaller)?.set_modified(modified)?;
                }
                fs::remove_file(path)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn path(&self, digest: impl std::fmt::Display) -> PathBuf {
        self.folder.join(format!("{digest}.{SINGLE}"))
    }

    fn bundle_path(&self, bundle: &[u8]) -> PathBuf {
        self.folder.join(format!("{}.{BUNDLE}", digest_of(bundle)))
    }
}

impl Reading {
    /// Returns the text with this digest, as far as its name says so.
    pub fn get(&self, digest: Digest) -> Option<String> {
        match config::read_regular(&self.texts.path(digest), BYTES_MAX) {
            Ok(text) => String::from_utf8(text).ok(),
            Err(_) => self.bundled().get(&digest.to_string()).cloned(),
        }
    }

    fn bundled(&self) -> &Bundle {
        self.bundled.get_or_init(|| {
            let entries = fs::read_dir(&self.texts.folder).into_iter().flatten().flatten();
            let paths = entries.map(|entry| entry.path());
            let bundles = paths.filter(|path| path.extension().is_some_and(|it| it == BUNDLE));
            let read = bundles.map(|path| {
                read_bundle(&path).unwrap_or_else(|why| {
                    // Whoever plans may be one who may not read them.
                    if why.kind() != io::ErrorKind::PermissionDenied {
                        warn!(path = %path.display(), %why, "texts of specs are not read");
                    }
                    Bundle::new()
                })
            });
            read.flatten().collect()
        })
    }
}

fn read_bundle(path: &Path) -> io::Result<Bundle> {
    Ok(serde_json::from_slice(&config::read_regular(path, BYTES_MAX)?)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn many_texts_are_one_file_and_each_is_kept_as_long_as_it_is_needed_or_young() {
        let folder = tempfile::tempdir().unwrap();
        let texts = Texts::new(folder.path().join("specs"));
        let digest = |n: u8| Digest([n; 32]);
        let many: BTreeMap<Digest, String> =
            (1..=20).map(|n| (digest(n), format!("{n}"))).collect();
        texts.keep(&many.iter().map(|(digest, text)| (*digest, text.as_str())).collect()).unwrap();
        texts.keep(&BTreeMap::from([(digest(21), "21")])).unwrap();
        assert_eq!(files(&texts.folder), 2);
        for n in 1..=21 {
            assert_eq!(texts.reading().get(digest(n)), Some(n.to_string()));
        }
        assert_eq!(texts.reading().get(digest(22)), None);

        // The first went out of force and is as young as its file; the others were never in force.
        let (past, future) = (Duration::from_secs(60), Duration::from_secs(60));
        texts.age(&BTreeSet::from([digest(1)])).unwrap();
        let needed: BTreeSet<Digest> = (3..=20).map(digest).collect();
        texts.prune(&needed, SystemTime::now() - past);
        assert_eq!(texts.reading().get(digest(1)), Some("1".to_owned()));
        assert_eq!(texts.reading().get(digest(2)), Some("2".to_owned()));
        texts.prune(&needed, SystemTime::now() + future);
        for gone in [1, 2, 21] {
            assert_eq!(texts.reading().get(digest(gone)), None);
        }
        assert_eq!(texts.reading().get(digest(3)), Some("3".to_owned()));
        assert_eq!(files(&texts.folder), 1);
        texts.prune(&BTreeSet::new(), SystemTime::now() + future);
        assert_eq!(files(&texts.folder), 0);
    }
    #[test]
    fn a_damaged_text_is_made_whole_when_it_is_kept_again() {
        let folder = tempfile::tempdir().unwrap();
        let texts = Texts::new(folder.path().join("specs"));
        let digest = Digest([1; 32]);
        let keep = || texts.keep(&BTreeMap::from([(digest, "spec")])).unwrap();
        keep();
        fs::write(texts.path(digest), "").unwrap();
        keep();
        assert_eq!(texts.reading().get(digest).as_deref(), Some("spec"));
    }

    #[test]
    fn texts_that_age_together_are_one_file_of_their_age_and_no_other_keeps_them() {
        let folder = tempfile::tempdir().unwrap();
        let texts = Texts::new(folder.path().join("specs"));
        let digest = |n: u8| Digest([n; 32]);
        let many: BTreeMap<Digest, String> =
            (1..=40).map(|n| (digest(n), format!("{n}"))).collect();
        texts.keep(&many.iter().map(|(digest, text)| (*digest, text.as_str())).collect()).unwrap();
        let ago = SystemTime::now() - Duration::from_secs(60);
        let file = fs::read_dir(&texts.folder).unwrap().next().unwrap().unwrap().path();
        File::open(&file).unwrap().set_modified(ago).unwrap();
        texts.age(&(1..=20).map(digest).collect()).unwrap();
        assert_eq!(files(&texts.folder), 2);

        let needed: BTreeSet<Digest> = (21..=30).map(digest).collect();
        texts.prune(&needed, SystemTime::now() - Duration::from_secs(30));
        let left =
            |texts: &Texts| (1..=40).filter(|n| texts.reading().get(digest(*n)).is_some()).count();
        assert_eq!(left(&texts), 30, "what aged is young, what was never in force is old");
        texts.prune(&needed, SystemTime::now() + Duration::from_secs(1));
        assert_eq!(left(&texts), 10);
        assert_eq!(files(&texts.folder), 1);
    }
}
