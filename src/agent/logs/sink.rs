//! The live file of a slot: appended to, rotated by size, opened again when somebody took it away.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::sweep;
use crate::domain::spec::LogFormat;

/// The live file's name.
pub(super) const CURRENT: &str = "current";

/// How often it is looked whether the file is still the one at its path, and a failed open tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How far back a torn last line is looked for; the longest line that one write can hold.
const TORN_BYTES_MAX: u64 = 1 << 20;

/// How much of a batch was written.
#[derive(Debug)]
pub(super) struct Outcome {
    /// So many lines, from the front, stand in files.
    pub(super) lines: usize,
    /// Whether a file was rotated, and the folder wants sweeping.
    pub(super) rotated: bool,
    /// Why the others do not.
    pub(super) error: Option<io::Error>,
}

/// Where the lines of a slot go.
#[derive(Debug)]
pub(super) struct Sink {
    dir: PathBuf,
    format: LogFormat,
    max_size: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Closed { not_before: Option<Instant>, errno: i32 },
    Open { file: File, size: u64, look: Instant },
}

impl Sink {
    pub(super) fn new(dir: PathBuf, format: LogFormat, max_size: u64) -> Self {
        let state = State::Closed { not_before: None, errno: 0 };
        Self { dir, format, max_size: max_size.max(1), state }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the file when it is not open; an error is repeated for a second without trying.
    pub(super) fn open(&mut self, now: Instant) -> io::Result<()> {
        match &self.state {
            State::Open { .. } => return Ok(()),
            State::Closed { not_before: Some(at), errno } if now < *at => {
                return Err(io::Error::from_raw_os_error(*errno));
            }
            State::Closed { .. } => {}
        }
        match open_at_end(&self.dir, self.format) {
            Ok((file, size)) => {
                self.state = State::Open { file, size, look: now + LOOK_AGAIN };
                Ok(())
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                self.state = State::Closed { not_before: Some(now + LOOK_AGAIN), errno };
                Err(error)
            }
        }
    }

    /// Appends the lines of `bytes`, whose ends are `ends`, ascending.
    pub(super) fn append(&mut self, bytes: &[u8], ends: &[usize], now: Instant) -> Outcome {
        let mut outcome = Outcome { lines: 0, rotated: false, error: None };
        while outcome.lines < ends.len() && outcome.error.is_none() {
            if let Err(error) = self.append_some(bytes, ends, now, &mut outcome) {
                outcome.error = Some(error);
            }
        }
        outcome
    }

    fn append_some(
        &mut self,
        bytes: &[u8],
        ends: &[usize],
        now: Instant,
        outcome: &mut Outcome,
    ) -> io::Result<()> {
        self.reopen_if_moved(now);
        self.open(now)?;
        let State::Open { file, size, .. } = &mut self.state else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let start = outcome.lines.checked_sub(1).map_or(0, |last| ends[last]);
        let room = self.max_size.saturating_sub(*size);
        let fitting = ends[outcome.lines..]
            .partition_point(|end| u64::try_from(end - start).is_ok_and(|length| length <= room));
        let count = match fitting {
            0 if *size > 0 => {
                self.rotate(now)?;
                outcome.rotated = true;
                return Ok(());
            }
            // A line longer than a file may be has a file of its own.
            0 => 1,
            fitting => fitting,
        };
        let last = outcome.lines + count;
        let (written, error) = write_fully(file, &bytes[start..ends[last - 1]]);
        let whole = ends[outcome.lines..last].partition_point(|end| end - start <= written);
        let kept = if whole == 0 { 0 } else { ends[outcome.lines + whole - 1] - start };
        outcome.lines += whole;
        if kept < written {
            // A torn line would run into the next one. Cutting frees space, so it works on a full disk.
            file.set_len(*size + kept as u64)?;
        }
        *size += kept as u64;
        error.map_or(Ok(()), Err)
    }

    /// Gives the live file its name in the past; the next write begins another.
    pub(super) fn rotate(&mut self, now: Instant) -> io::Result<()> {
        let current = self.dir.join(CURRENT);
        let mut at = SystemTime::now();
        loop {
            let past = self.dir.join(sweep::rotated_name(at));
            match renameat_with(CWD, &current, CWD, &past, RenameFlags::NOREPLACE) {
                Err(rustix::io::Errno::EXIST) => at += Duration::from_micros(1),
                // Somebody took it away; what was written to it is theirs.
                Ok(()) | Err(rustix::io::Errno::NOENT) => break,
                Err(error) => {
                    // Growing beyond its size is better than losing lines, but not without end.
                    let errno = error.raw_os_error();
                    self.state = State::Closed { not_before: Some(now + LOOK_AGAIN), errno };
                    return Err(error.into());
                }
            }
        }
        self.state = State::Closed { not_before: None, errno: 0 };
        Ok(())
    }

    /// Lets go of a file that is no longer the one at its path.
    fn reopen_if_moved(&mut self, now: Instant) {
        let State::Open { file, look, .. } = &mut self.state else { return };
        if now < *look {
            return;
        }
        *look = now + LOOK_AGAIN;
        let identity = |about: fs::Metadata| (about.dev(), about.ino());
        let ours = file.metadata().map(identity);
        let named = fs::symlink_metadata(self.dir.join(CURRENT)).map(identity);
        if ours.ok() != named.ok() {
            self.state = State::Closed { not_before: None, errno: 0 };
        }
    }
}

/// Writes until it is done or refused; says how much is in the file.
fn write_fully(file: &mut File, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Some(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

fn open_at_end(dir: &Path, format: LogFormat) -> io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o640);
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    let path = dir.join(CURRENT);
    let mut file = match options.open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
            options.open(&path)?
        }
        opened => opened?,
    };
    let size = file.seek(SeekFrom::End(0))?;
    let size = mend(&mut file, size, format)?;
    Ok((file, size))
}

/// Ends a line that a `kill -9` tore, and returns the size of the file.
///
/// Its bytes are still in the pipe and will be written again, so in the CRI format the torn piece is
/// cut off. A raw file may end within a line because the line was split; there it is ended.
fn mend(file: &mut File, size: u64, format: LogFormat) -> io::Result<u64> {
    let mut last = [0];
    if size == 0 || (file.read_exact_at(&mut last, size - 1).is_ok() && last == [b'\n']) {
        return Ok(size);
    }
    let from = size.saturating_sub(TORN_BYTES_MAX);
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    Read::by_ref(file).take(size - from).read_to_end(&mut end)?;
    let newline = end.iter().rposition(|byte| *byte == b'\n');
    match (format, newline) {
        (LogFormat::Cri, Some(at)) => {
            let kept = from + at as u64 + 1;
            file.set_len(kept)?;
            Ok(kept)
        }
        (LogFormat::Cri, None) if from == 0 => {
            file.set_len(0)?;
            Ok(0)
        }
        (LogFormat::Cri | LogFormat::Raw, _) => {
            file.write_all(b"\n")?;
            Ok(size + 1)
        }
    }
}
