//! Wishes that came over HTTP, kept as they were signed: so that a request that is sent again is the same wish, also
//! after any death of the controller, and is answered with its first result.
//!
//! These are texts, not truth: what became of a wish stands in the logs of the nodes. Without them a node would refuse
//! the second wish of one id, and execute nothing.
//!
//! Each key has a folder of its own, so that a job that asks without end leaves the others their room. The folder of one that
//! nobody uses any more goes a day after its last request: at a start, or when a key is used for the first time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use super::problem::Problem;
use crate::domain::code::Code;
use crate::domain::id::{Digest, IntentId, Kid};
use crate::domain::rollout::Amount;
use crate::head::folder::{StateFolder, write_new, write_whole};

/// The version of a file's shape.
const VERSION: u8 = 1;

/// How long a request is remembered.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// More requests than one key signs in that time: one every 20 s.
const REQUESTS_MAX: usize = 4096;

/// One request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    v: u8,
    /// SHA-256 of what was asked, in hex: who asks for something else by the same key is told so.
    request: String,
    /// The envelope, base64.
    envelope: String,
    /// On how many of its nodes at a time; the last repeats. Empty: on all at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) max_parallel: Vec<Amount>,
    /// The result, once every node has come to an end.
    pub(super) result: Option<Value>,
}

impl Kept {
    /// Describes a request that has no result yet.
    pub(super) fn new(request: Digest, envelope: &[u8]) -> Self {
        let (request, envelope) = (request.to_string(), STANDARD.encode(envelope));
        Self { v: VERSION, request, envelope, max_parallel: Vec::new(), result: None }
    }

    /// Describes the same for so many nodes at a time.
    pub(super) fn in_turns(self, max_parallel: Vec<Amount>) -> Self {
        Self { max_parallel, ..self }
    }

    /// Says whether this is what is asked.
    pub(super) fn is_of(&self, request: Digest) -> bool {
        self.request == request.to_string()
    }

    /// Says whether two stand for the same thing that was asked.
    pub(super) fn is_same_request(&self, other: &Self) -> bool {
        self.request == other.request
    }

    /// Returns the envelope.
    pub(super) fn envelope(&self) -> io::Result<Vec<u8>> {
        STANDARD.decode(&self.envelope).map_err(io::Error::other)
    }
}

/// The folder of all requests.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    folder: PathBuf,
    /// Held while a request is kept or forgotten: a folder goes between two requests and not within one.
    writing: Arc<Mutex<()>>,
}

impl Requests {
    /// Makes the folder where there is none.
    ///
    /// # Errors
    /// When the disk or the permissions refuse.
    pub(super) fn open(folder: &StateFolder) -> io::Result<Self> {
        let folder = folder.root().join("requests");
        private_folder(&folder)?;
        let requests = Self { folder, writing: Arc::default() };
        requests.forget_keys()?;
        Ok(requests)
    }

    /// Removes the folders in which nothing was kept for longer than a request is remembered: keys are changed for others.
    /// One that cannot be removed only takes room.
    fn forget_keys(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)?.flatten().filter(is_old) {
            let removed = entry.file_type().and_then(|kind| match kind.is_dir() {
                true => fs::remove_dir_all(entry.path()),
                // Earlier versions kept the files of all keys beside each other.
                false => fs::remove_file(entry.path()),
            });
            if let Err(error) = removed {
                warn!(path = %entry.path().display(), %error, "old requests stay on the disk");
            }
        }
        Ok(())
    }

    /// Returns what is known of a request.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub(super) fn get(&self, id: IntentId) -> io::Result<Option<Kept>> {
        let Some(path) = self.find(id)? else { return Ok(None) };
        let kept: Kept = serde_json::from_slice(&fs::read(path)?)?;
        match kept.v {
            VERSION => Ok(Some(kept)),
            other => Err(io::Error::other(format!("it is of version {other}"))),
        }
    }

    /// Finds a request, whoever signed it.
    fn find(&self, id: IntentId) -> io::Result<Option<PathBuf>> {
        for folder in fs::read_dir(&self.folder)? {
            let folder = folder?;
            let path = file_of(&folder.path(), id);
            if folder.file_type()?.is_dir() && path.try_exists()? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Keeps a request that `by` signed, on disk when this returns, unless there is one of this id. Returns the one that is
    /// kept, and whether it is new.
    ///
    /// # Errors
    /// When too many of this key are kept, or the disk refuses.
    pub(super) fn keep(&self, id: IntentId, by: Kid, new: Kept) -> Result<(Kept, bool), Problem> {
        let failed = |error: io::Error| Problem::new(Code::IO, format!("not kept: {error}"));
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = self.get(id).map_err(failed)? {
            return Ok((first, false));
        }
        let folder = self.folder.join(by.to_string());
        if !folder.exists() {
            self.forget_keys().map_err(failed)?;
        }
        private_folder(&folder).map_err(failed)?;
        if make_room(&folder).map_err(failed)? >= REQUESTS_MAX {
            let what = format!("{REQUESTS_MAX} requests of this key in 24 hours are remembered");
            return Err(Problem::new(Code::BUSY, what));
        }
        let text = serde_json::to_vec(&new).map_err(|error| failed(error.into()))?;
        if write_new(&file_of(&folder, id), &text, 0o600).map_err(failed)? {
            return Ok((new, true));
        }
        let first = self.get(id).map_err(failed)?;
        let first = first.map(|first| (first, false));
        first.ok_or_else(|| Problem::new(Code::BUSY, "the request was forgotten a moment ago"))
    }

    /// Forgets a request that became nothing, so that the next one of this id is judged anew; unless another one took its
    /// place meanwhile.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn forget(&self, id: IntentId, kept: &Kept) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.find(id)? {
            Some(path) if self.get(id)?.as_ref() == Some(kept) => fs::remove_file(path),
            _ => Ok(()),
        }
    }

    /// Keeps the result of a request.
    ///
    /// # Errors
    /// When the disk refuses: a repeat is then answered by the nodes again.
    pub(super) fn finish(&self, id: IntentId, kept: &Kept) -> io::Result<()> {
        match self.find(id)? {
            Some(path) => write_whole(&path, &serde_json::to_vec(kept)?, 0o600),
            None => Ok(()),
        }
    }
}

fn file_of(folder: &Path, id: IntentId) -> PathBuf {
    folder.join(format!("{id}.json"))
}

fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Forgets old requests of a folder where there are many; returns how many there are.
fn make_room(folder: &Path) -> io::Result<usize> {
    let files: Vec<_> = fs::read_dir(folder)?.flatten().collect();
    if files.len() < REQUESTS_MAX {
        return Ok(files.len());
    }
    let (old, young): (Vec<_>, Vec<_>) = files.into_iter().partition(is_old);
    let remove = |file: &fs::DirEntry| match fs::remove_file(file.path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    old.iter().try_for_each(remove)?;
    Ok(young.len())
}

/// Says whether a file, or what is in a folder, was changed longer ago than a request is remembered.
fn is_old(entry: &fs::DirEntry) -> bool {
    let changed = entry.metadata().and_then(|about| about.modified());
    let age = changed.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_some_and(|age| age > KEPT_FOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::key::digest_of;

    #[test]
    fn the_first_request_of_an_id_stays_and_its_result_is_found_again() {
        let temp = tempfile::tempdir().unwrap();
        let requests = Requests::open(&StateFolder::new(temp.path())).unwrap();
        let id = IntentId([7; 16]);
        assert_eq!(requests.get(id).unwrap(), None);
        let (one, other) = (digest_of(b"restart web"), digest_of(b"stop web"));
        let by = |kid: u8| Kid([kid; 16]);
        let (mut first, is_new) = requests.keep(id, by(1), Kept::new(one, b"signed")).unwrap();
        assert!(is_new);
        let (again, is_new) = requests.keep(id, by(2), Kept::new(other, b"signed later")).unwrap();
        assert!(!is_new && again == first && again.is_of(one) && !again.is_of(other));
        assert_eq!(again.envelope().unwrap(), b"signed");
        first.result = Some(serde_json::json!({"exit_code": 0}));
        requests.finish(id, &first).unwrap();
        assert_eq!(requests.get(id).unwrap(), Some(first));
    }

    #[test]
    fn a_request_that_became_nothing_is_forgotten_and_one_that_took_its_place_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let requests = Requests::open(&StateFolder::new(temp.path())).unwrap();
        let (id, by) = (IntentId([7; 16]), Kid([1; 16]));
        let kept = |bytes: &[u8]| Kept::new(digest_of(b"deploy web"), bytes);
        let (first, _) = requests.keep(id, by, kept(b"signed")).unwrap();
        requests.forget(id, &first).unwrap();
        assert_eq!(requests.get(id).unwrap(), None);
        let (second, is_new) = requests.keep(id, by, kept(b"signed later")).unwrap();
        assert!(is_new);
        requests.forget(id, &first).unwrap();
        assert_eq!(requests.get(id).unwrap(), Some(second.clone()));
        // What has a result came to an end.
        let done = Kept { result: Some(serde_json::json!({"changed": true})), ..second.clone() };
        requests.finish(id, &done).unwrap();
        requests.forget(id, &second).unwrap();
        assert_eq!(requests.get(id).unwrap(), Some(done));
    }

    #[test]
    fn a_key_that_asks_without_end_leaves_the_others_their_room() {
        let temp = tempfile::tempdir().unwrap();
        let requests = Requests::open(&StateFolder::new(temp.path())).unwrap();
        let id = |number: usize| IntentId((number as u128).to_be_bytes());
        let kept = || Kept::new(digest_of(b"restart web"), b"signed");
        let (noisy, other) = (Kid([1; 16]), Kid([2; 16]));
        let folder = requests.folder.join(noisy.to_string());
        private_folder(&folder).unwrap();
        (0..REQUESTS_MAX).for_each(|number| fs::write(file_of(&folder, id(number)), "").unwrap());
        let refused = requests.keep(id(REQUESTS_MAX), noisy, kept()).unwrap_err();
        assert!(format!("{refused:?}").contains("of this key"), "{refused:?}");
        assert!(requests.keep(id(REQUESTS_MAX), other, kept()).unwrap().1);
    }

    #[test]
    fn the_folder_of_a_key_that_was_changed_for_another_goes_when_its_requests_are_old() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateFolder::new(temp.path());
        let requests = Requests::open(&state).unwrap();
        let (before, since) = (Kid([1; 16]), Kid([2; 16]));
        let kept = || Kept::new(digest_of(b"restart web"), b"signed");
        let folder = requests.folder.join(before.to_string());
        let age = |days: u64| {
            let at = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
            fs::File::open(&folder).unwrap().set_modified(at).unwrap();
        };
        assert!(requests.keep(IntentId([1; 16]), before, kept()).unwrap().1);
        age(0);
        drop(Requests::open(&state).unwrap());
        assert!(folder.exists(), "they are remembered for a day");
        age(2);
        assert!(requests.keep(IntentId([2; 16]), since, kept()).unwrap().1);
        assert!(!folder.exists());
        assert!(requests.get(IntentId([2; 16])).unwrap().is_some());
    }
}
