//! Texts that lie beside the log: tails, argv, specifications. The event holds a salted hash.
//!
//! The salt keeps a short text from being guessed from its hash, so deleting the file deletes the
//! text, and the proof over the event still holds. Files are written by a thread of their own.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::domain::event::Detached;
use crate::domain::id::Digest;
use crate::wire::codec;
use crate::wire::key::digest_of;

/// What may wait for the disk, in bytes; beyond it texts are lost, their hashes are not.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// How much is written between two looks at what is too old or too much.
const SWEEP_EVERY_BYTES: u64 = 8 << 20;

/// Marks a file that is being written; left over only by a crash.
const UNFINISHED: &str = "tmp";

/// How long texts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// At most so long.
    pub age: Duration,
    /// At most so many bytes together; the oldest go first.
    pub bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: Duration::from_secs(90 * 24 * 60 * 60), bytes: 256 << 20 }
    }
}

/// Says why a text cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GetDetachedError {
    /// The file is there and cannot be read.
    #[error("failed to read the detached text {hash}")]
    Read {
        /// Which.
        hash: Digest,
        /// Why.
        source: io::Error,
    },
    /// The file does not hold what the event says.
    #[error("the detached text {hash} is not the one that the event names")]
    Altered {
        /// Which.
        hash: Digest,
    },
}

/// What lies in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    salt: ByteBuf,
    text: String,
}

#[derive(Debug)]
struct Job {
    hash: Digest,
    record: Arc<Record>,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// What is not in its file yet, so that it can be read at once.
    texts: BTreeMap<Digest, Arc<Record>>,
    bytes: usize,
    lost: u64,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    retention: Retention,
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

/// The texts beside one log.
#[derive(Debug)]
pub struct DetachedStore {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl DetachedStore {
    /// Opens the folder `dir`, making it (0700) if needed, and starts the thread that writes.
    pub fn open(dir: &Path, retention: Retention) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let (waiting, wake) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { dir: dir.to_owned(), retention, waiting, wake });
        let worker = shared.clone();
        let thread = std::thread::Builder::new()
            .name("smgr-detached".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes a text in and returns what the event says of it. Does not wait for the disk.
    ///
    /// While more waits than may wait, the text is lost, which is counted; its hash is still good.
    pub fn put(&self, text: impl Into<String>) -> Detached {
        let text = text.into();
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).expect("the kernel gives random bytes since it booted");
        let hash = salted(&salt, &text);
        let detached = Detached { hash, bytes: text.len() as u64 };
        self.shared.put(hash, Record { salt: ByteBuf::from(salt), text });
        detached
    }

    /// Takes in a text that another log's event names, as its store gave it out. Does not wait for the disk.
    ///
    /// # Errors
    /// When it is not the one that the event names.
    pub fn keep(&self, hash: &Digest, record: &[u8]) -> Result<(), GetDetachedError> {
        self.shared.put(*hash, read(hash, record)?);
        Ok(())
    }

    /// Returns a text, or `None` when it is no longer kept. Reads a file of the text's size.
    pub fn get(&self, hash: &Digest) -> Result<Option<String>, GetDetachedError> {
        if let Some(record) = self.shared.lock().texts.get(hash) {
            return Ok(Some(record.text.clone()));
        }
        let bytes = self.bytes(hash)?;
        bytes.map(|bytes| Ok(read(hash, &bytes)?.text)).transpose()
    }

    /// The same with its salt, for another store to [`keep`](Self::keep).
    pub fn record(&self, hash: &Digest) -> Result<Option<Vec<u8>>, GetDetachedError> {
        if let Some(record) = self.shared.lock().texts.get(hash) {
            return Ok(Some(codec::encode(&**record)));
        }
        self.bytes(hash)
    }

    fn bytes(&self, hash: &Digest) -> Result<Option<Vec<u8>>, GetDetachedError> {
        match fs::read(self.shared.path(hash)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(GetDetachedError::Read { hash: *hash, source }),
            Ok(bytes) => Ok(Some(bytes)),
        }
    }

    /// Deletes a text for good. What was proved about its event stays proved.
    pub fn delete(&self, hash: &Digest) -> io::Result<()> {
        let mut waiting = self.shared.lock();
        waiting.texts.remove(hash);
        waiting.jobs.retain(|job| job.hash != *hash);
        // Under the lock, so that the thread cannot bring it back.
        match fs::remove_file(self.shared.path(hash)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns how many texts were lost since the start, because the disk did not keep up or refused.
    pub fn lost(&self) -> u64 {
        self.shared.lock().lost
    }
}

impl Drop for DetachedStore {
    /// Writes what waits.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that writes detached texts had panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, hash: Digest, record: Record) {
        let mut waiting = self.lock();
        if waiting.bytes + record.text.len() > WAITING_BYTES_MAX {
            waiting.lost += 1;
            return;
        }
        waiting.bytes += record.text.len();
        let record = Arc::new(record);
        waiting.texts.insert(hash, record.clone());
        waiting.jobs.push_back(Job { hash, record });
        self.wake.notify_one();
    }

    fn path(&self, hash: &Digest) -> PathBuf {
        let name = hash.to_string();
        self.dir.join(&name[..2]).join(name)
    }

    fn run(&self) {
        let mut unswept = SWEEP_EVERY_BYTES;
        let mut waiting = self.lock();
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
                drop(waiting);
                unswept += job.record.text.len() as u64;
                let written = self.write(&job);
                waiting = self.lock();
                waiting.bytes -= job.record.text.len();
                let wanted = waiting.texts.remove(&job.hash).is_some();
                if written.is_err() {
                    waiting.lost += 1;
                } else if !wanted {
                    // Deleted while it was written.
                    drop(fs::remove_file(self.path(&job.hash)));
                }
                if let Err(error) = written {
                    tracing::warn!(%error, hash = %job.hash, "a detached text was not written");
                }
            } else if waiting.closed {
                return;
            } else if unswept >= SWEEP_EVERY_BYTES {
                drop(waiting);
                unswept = 0;
                if let Err(error) = sweep(&self.dir, self.retention) {
                    tracing::warn!(%error, "old detached texts were not removed");
                }
                waiting = self.lock();
            } else {
                waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn write(&self, job: &Job) -> io::Result<()> {
        let path = self.path(&job.hash);
        let unfinished = path.with_extension(UNFINISHED);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = match options.open(&unfinished) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = path.parent().expect("a text lies in a folder of its prefix");
                DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
                options.open(&unfinished)?
            }
            opened => opened?,
        };
        let written = file
            .write_all(&codec::encode(&*job.record))
            .and_then(|()| fs::rename(&unfinished, &path));
        if written.is_err() {
            drop(fs::remove_file(&unfinished));
        }
        written
    }
}

fn read(hash: &Digest, bytes: &[u8]) -> Result<Record, GetDetachedError> {
    match codec::decode::<Record>(bytes) {
        Ok(record) if salted(&record.salt, &record.text) == *hash => Ok(record),
        Ok(_) | Err(_) => Err(GetDetachedError::Altered { hash: *hash }),
    }
}

fn salted(salt: &[u8], text: &str) -> Digest {
    digest_of(&[salt, text.as_bytes()].concat())
}

/// Removes texts that are too old, and the oldest of those that are too many.
fn sweep(dir: &Path, retention: Retention) -> io::Result<()> {
    let mut files = Vec::new();
    for folder in fs::read_dir(dir)? {
        let folder = folder?;
        if !folder.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(folder.path())? {
            let file = file?;
            let about = file.metadata()?;
            files.push((about.modified()?, about.len(), file.path()));
        }
    }
    files.sort_unstable_by_key(|(at, ..)| std::cmp::Reverse(*at));
    let now = SystemTime::now();
    let mut bytes = 0;
    for (at, length, path) in files {
        bytes += length;
        let too_old = now.duration_since(at).is_ok_and(|age| age > retention.age);
        let unfinished = path.extension().is_some_and(|extension| extension == UNFINISHED);
        if too_old || unfinished || bytes > retention.bytes {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn store(dir: &Path) -> DetachedStore {
        DetachedStore::open(dir, Retention::default()).unwrap()
    }

    #[test]
    fn a_text_is_there_at_once_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store_one = store(dir.path());
        let kept = store_one.put("FATAL missing DATABASE_URL");
        assert_eq!(kept.bytes, 26);
        assert!(store_one.get(&kept.hash).unwrap().unwrap().starts_with("FATAL"));
        drop(store_one);
        assert!(store(dir.path()).get(&kept.hash).unwrap().unwrap().starts_with("FATAL"));
    }

    #[test]
    fn equal_texts_have_different_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        assert_ne!(store.put("secret").hash, store.put("secret").hash);
    }

    #[test]
    fn another_store_takes_a_text_only_as_its_event_names_it() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [one, other] = dirs.each_ref().map(|dir| store(dir.path()));
        let (kept, second) = (one.put("FATAL"), one.put("another"));
        let record = one.record(&kept.hash).unwrap().unwrap();
        assert!(other.keep(&second.hash, &record).is_err());
        assert_eq!(other.get(&second.hash).unwrap(), None);
        other.keep(&kept.hash, &record).unwrap();
        drop((one, other));
        assert_eq!(store(dirs[1].path()).get(&kept.hash).unwrap().as_deref(), Some("FATAL"));
    }

    #[test]
    fn a_deleted_text_is_gone_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let (gone, kept) = (store.put("gone"), store.put("kept"));
        store.delete(&gone.hash).unwrap();
        assert_eq!(store.get(&gone.hash).unwrap(), None);
        assert_eq!(store.get(&kept.hash).unwrap().as_deref(), Some("kept"));
    }

    #[test]
    fn an_altered_text_is_not_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let detached = store.put("as it was");
        let record = Record { salt: ByteBuf::from([0; 16]), text: "as it was not".to_owned() };
        // The file is in place before its text leaves the memory.
        while store.shared.lock().texts.contains_key(&detached.hash) {
            std::thread::yield_now();
        }
        fs::write(store.shared.path(&detached.hash), codec::encode(&record)).unwrap();
        assert!(matches!(store.get(&detached.hash), Err(GetDetachedError::Altered { .. })));
    }

    #[test]
    fn the_oldest_texts_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let texts = [store.put("a".repeat(1000)), store.put("b".repeat(1000))];
        let shared = store.shared.clone();
        drop(store);
        let past = SystemTime::now() - Duration::from_secs(60);
        let oldest = File::open(shared.path(&texts[0].hash)).unwrap();
        oldest.set_modified(past).unwrap();
        sweep(dir.path(), Retention { age: Duration::from_secs(3600), bytes: 1500 }).unwrap();
        assert!(!shared.path(&texts[0].hash).exists());
        assert!(shared.path(&texts[1].hash).exists());
        sweep(dir.path(), Retention { age: Duration::ZERO, bytes: u64::MAX }).unwrap();
        assert!(!shared.path(&texts[1].hash).exists());
    }
}
