//! A thread of low priority that compresses and removes files of the past, and reads for people.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{LogSetup, read, zstd};
use crate::domain::spec::Compress;

/// The readings that may wait; people ask, and not often.
const READS_MAX: usize = 64;

/// How a file of the past is called: the time of its rotation and this.
const PAST: &str = "Z.log";

/// What is behind it once it is compressed.
const GZIP: &str = "gz";
const ZSTD: &str = "zst";

/// Marks a file that is being compressed; left over only by a crash.
const UNFINISHED: &str = ".tmp";

/// What is done about the files of one folder.
#[derive(Debug, Clone)]
pub(super) struct Sweep {
    dir: PathBuf,
    past_files_max: usize,
    age_max: Duration,
    compress: Compress,
}

impl Sweep {
    pub(super) fn of(setup: &LogSetup) -> Self {
        Self {
            dir: setup.dir.clone(),
            // The live file is one of them.
            past_files_max: (setup.spec.max_files as usize).saturating_sub(1),
            age_max: setup.spec.max_age.duration(),
            compress: setup.spec.compress,
        }
    }
}

#[derive(Debug)]
struct Reading {
    dir: PathBuf,
    n: usize,
    reply: oneshot::Sender<io::Result<Vec<String>>>,
}

#[derive(Debug, Default)]
struct Jobs {
    /// At most one for each folder.
    sweeps: VecDeque<Sweep>,
    reads: VecDeque<Reading>,
    closed: bool,
}

/// The thread's handle. Dropped, it ends the thread after the file it is at.
#[derive(Debug)]
pub(super) struct Sweeper {
    shared: Arc<(Mutex<Jobs>, Condvar)>,
}

impl Sweeper {
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new((Mutex::default(), Condvar::new()));
        let jobs = shared.clone();
        std::thread::Builder::new().name("smgr-log-files".to_owned()).spawn(move || {
            // Only a wish: compressing must not take a core from a service.
            let _ = rustix::process::setpriority_process(None, 19);
            work(&jobs);
        })?;
        Ok(Self { shared })
    }

    /// Has a folder swept some time soon.
    pub(super) fn sweep(&self, sweep: Sweep) {
        let mut jobs = lock(&self.shared.0);
        jobs.sweeps.retain(|waiting| waiting.dir != sweep.dir);
        jobs.sweeps.push_back(sweep);
        self.shared.1.notify_one();
    }

    /// Has lines read. The reply is dropped when too many wait.
    pub(super) fn read(
        &self,
        dir: PathBuf,
        n: usize,
        reply: oneshot::Sender<io::Result<Vec<String>>>,
    ) {
        let mut jobs = lock(&self.shared.0);
        if jobs.reads.len() < READS_MAX {
            jobs.reads.push_back(Reading { dir, n, reply });
            self.shared.1.notify_one();
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        lock(&self.shared.0).closed = true;
        self.shared.1.notify_one();
    }
}

fn lock(jobs: &Mutex<Jobs>) -> std::sync::MutexGuard<'_, Jobs> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(shared: &(Mutex<Jobs>, Condvar)) {
    let mut jobs = lock(&shared.0);
    loop {
        if jobs.closed {
            return;
        } else if let Some(Reading { dir, n, reply }) = jobs.reads.pop_front() {
            drop(jobs);
            drop(reply.send(read::last_lines(&dir, n)));
            jobs = lock(&shared.0);
        } else if let Some(sweep) = jobs.sweeps.pop_front() {
            drop(jobs);
            let again = sweep_once(&sweep).unwrap_or_else(|error| {
                tracing::warn!(%error, dir = %sweep.dir.display(), "old log files were not tidied");
                false
            });
            jobs = lock(&shared.0);
            if again && jobs.sweeps.iter().all(|waiting| waiting.dir != sweep.dir) {
                jobs.sweeps.push_back(sweep);
            }
        } else {
            jobs = shared.1.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Removes what is too old or too many, then compresses one file. Returns whether there are others.
fn sweep_once(sweep: &Sweep) -> io::Result<bool> {
    let mut past = past_files(&sweep.dir)?;
    let old = |path: &Path| {
        let age = fs::metadata(path).and_then(|about| about.modified());
        age.ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok())
            .is_some_and(|age| age > sweep.age_max)
    };
    for (at, path) in past.iter().enumerate().rev() {
        if at >= sweep.past_files_max || old(path) {
            fs::remove_file(path)?;
        }
    }
    past.truncate(sweep.past_files_max);
    let extension = match sweep.compress {
        Compress::Gzip => GZIP,
        Compress::Zstd => ZSTD,
        Compress::None => return Ok(false),
    };
    // Oldest first: the newest ones are what people look into.
    let mut plain =
        past.iter().rev().filter(|path| compression(path) == Compress::None && path.exists());
    let Some(next) = plain.next() else { return Ok(false) };
    compress(next, extension)?;
    Ok(plain.next().is_some())
}

/// Returns the files of the past in a folder, the youngest first.
pub(super) fn past_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut past = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(past),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Only what is named as we name files: the folder may hold others.
        let ours = name.len() >= rotated_name(SystemTime::UNIX_EPOCH).len()
            && name.starts_with(|c: char| c.is_ascii_digit());
        let plain = name.strip_suffix(GZIP).or(name.strip_suffix(ZSTD));
        let plain = plain.and_then(|name| name.strip_suffix('.')).unwrap_or(name);
        if ours && plain.ends_with(PAST) {
            past.push(path);
        }
    }
    past.sort_unstable_by(|one, other| other.cmp(one));
    Ok(past)
}

/// Says how a file of the past is compressed.
pub(super) fn compression(path: &Path) -> Compress {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some(GZIP) => Compress::Gzip,
        Some(ZSTD) => Compress::Zstd,
        _ => Compress::None,
    }
}

/// Returns how a file that is rotated now is called; names sort by time.
pub(super) fn rotated_name(at: SystemTime) -> String {
    let at = Timestamp::try_from(at).unwrap_or_default();
    at.strftime("%Y%m%dT%H%M%S.%6f").to_string() + PAST
}

pub(super) fn compress(path: &Path, extension: &str) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    let finished = PathBuf::from(name.clone());
    name.push(UNFINISHED);
    let unfinished = PathBuf::from(name);
    let written = (|| {
        // What a killed predecessor left, or a service that owns the folder put there, is not written to.
        drop(fs::remove_file(&unfinished));
        let target =
            OpenOptions::new().write(true).create_new(true).mode(0o640).open(&unfinished)?;
        let mut source = read::open_log(path)?;
        if extension == ZSTD {
            zstd::compress(&mut source, target)?;
        } else {
            let mut encoder = GzEncoder::new(target, Compression::default());
            io::copy(&mut source, &mut encoder)?;
            encoder.finish()?;
        }
        fs::rename(&unfinished, &finished)
    })();
    match written {
        Ok(()) => fs::remove_file(path),
        Err(error) => {
            // Half a file helps nobody, least of all on a full disk.
            drop(fs::remove_file(&unfinished));
            Err(error)
        }
    }
}
