//! Reads the files of a slot again: for people, and for a run that was adopted while it started.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use rustix::fs::{Mode, OFlags};

use super::sink::CURRENT;
use super::sweep::{compression, past_files};
use super::{format, zstd};
use crate::domain::spec::Compress;
use crate::domain::time::UnixMicros;

/// The most lines of one reading.
pub const READ_LINES_MAX: usize = 10_000;

/// The most bytes of one reading; the oldest lines are left out.
const READ_BYTES_MAX: usize = 1 << 20;

/// How far back the live file is read in search of a line that tells readiness.
const SINCE_BYTES_MAX: u64 = 1 << 20;

/// Opens a file of a log for reading. Its folder may belong to the service, whose word on what a name stands for is not
/// taken: a link would show what the reader may see and the service may not, and a pipe would hold the reader up.
///
/// # Errors
/// When it cannot be opened, or is anything but a regular file of that name.
pub fn open_log(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Returns the last lines in the files of a folder, oldest first.
pub(super) fn last_lines(dir: &Path, n: usize) -> io::Result<Vec<String>> {
    let n = n.min(READ_LINES_MAX);
    let mut found: VecDeque<String> = VecDeque::new();
    let mut bytes = 0;
    let mut files = past_files(dir)?;
    files.insert(0, dir.join(CURRENT));
    for path in files {
        if found.len() >= n || bytes >= READ_BYTES_MAX {
            break;
        }
        let lines = match file_lines(&path, n - found.len()) {
            // It may be rotated, compressed or removed while we read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            lines => lines?,
        };
        for line in lines.into_iter().rev() {
            bytes += line.len() + 1;
            if found.len() >= n || bytes > READ_BYTES_MAX {
                break;
            }
            found.push_front(line);
        }
    }
    Ok(found.into())
}

/// Returns the last `n` lines of one file.
fn file_lines(path: &Path, n: usize) -> io::Result<VecDeque<String>> {
    let mut file = open_log(path)?;
    match compression(path) {
        Compress::Gzip => return keep_last(BufReader::new(MultiGzDecoder::new(file)), n),
        Compress::Zstd => return keep_last(BufReader::new(zstd::decoder(file)?), n),
        Compress::None => {}
    }
    let size = file.seek(SeekFrom::End(0))?;
    let from = size.saturating_sub(READ_BYTES_MAX as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut reader = BufReader::new(file.take(size - from));
    if from > 0 {
        reader.skip_until(b'\n')?;
    }
    keep_last(reader, n)
}

fn keep_last(mut reader: impl BufRead, n: usize) -> io::Result<VecDeque<String>> {
    let mut lines = VecDeque::new();
    let mut bytes = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        // A raw file may hold a line of any length; what is beyond the bound is a line of its own.
        if reader.by_ref().take(READ_BYTES_MAX as u64).read_until(b'\n', &mut line)? == 0 {
            return Ok(lines);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        bytes += text.len();
        lines.push_back(String::from_utf8_lossy(text).into_owned());
        while lines.len() > n || bytes > READ_BYTES_MAX {
            bytes -= lines.pop_front().map_or(bytes, |oldest| oldest.len().min(bytes));
        }
    }
}

/// Returns the lines of the live file that were written since a time, without time and stream.
pub(super) fn lines_since(dir: &Path, since: UnixMicros) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = open_log(&dir.join(CURRENT))?;
        let size = file.seek(SeekFrom::End(0))?;
        let from = size.saturating_sub(SINCE_BYTES_MAX);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(size - from).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // Without a file nothing was written.
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().filter_map(format::read_cri);
    lines.filter(|line| line.at >= since).map(|line| line.text.to_owned()).collect()
}
