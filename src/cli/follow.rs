//! The ends of log files on this machine: lines as they are written, told by the kernel.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::agent::logs::open_log;
use crate::ipc::channel::watch;

/// What is read of one file before the others have their turn, bytes.
const TURN_BYTES: u64 = 256 * 1024;

/// A line without an end that is longer than this is given out as it is, bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Where to begin in a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At its first line.
    Start,
    /// Behind its last line.
    End,
}

/// Log files that are followed, across their rotation.
#[derive(Debug)]
pub struct Follower {
    notify: AsyncFd<OwnedFd>,
    tails: Vec<Tail>,
}

#[derive(Debug)]
struct Tail {
    path: PathBuf,
    file: Option<File>,
    /// What stands behind the last newline.
    rest: Vec<u8>,
}

impl Follower {
    /// Follows nothing yet.
    ///
    /// # Errors
    /// When the kernel gives no watch.
    pub fn new() -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        Ok(Self { notify: watch(inotify::init(flags)?)?, tails: Vec::new() })
    }

    /// Follows one more file, which need not be there yet; returns its number, from 0 on.
    ///
    /// # Errors
    /// When the file is there and may not be read.
    pub fn add(&mut self, path: PathBuf, from: From) -> io::Result<usize> {
        let mut tail = Tail { path, file: None, rest: Vec::new() };
        tail.open()?;
        if let (Some(file), From::End) = (&mut tail.file, from) {
            file.seek(SeekFrom::End(0))?;
        }
        self.tails.push(tail);
        self.look()?;
        Ok(self.tails.len() - 1)
    }

    /// Returns the lines that were written since the last call, with the number of the file. Waits for nothing.
    pub fn written(&mut self) -> Vec<(usize, String)> {
        let mut lines = Vec::new();
        for (number, tail) in self.tails.iter_mut().enumerate() {
            // A file that cannot be read at this moment is looked at again with the next change.
            drop(tail.read(&mut |line| lines.push((number, line))));
        }
        lines
    }

    /// Waits until something was written, and returns it; may return nothing. Can be dropped without losing a line.
    pub async fn next(&mut self) -> Vec<(usize, String)> {
        let lines = self.written();
        if !lines.is_empty() {
            return lines;
        }
        if let Ok(mut ready) = self.notify.readable().await {
            let mut buffer = [0; 4096];
            while rustix::io::read(self.notify.get_ref(), &mut buffer).is_ok_and(|n| n > 0) {}
            ready.clear_ready();
        }
        // A folder may have been made since.
        drop(self.look());
        self.written()
    }

    /// Watches each folder, or the one above it as long as it is not there.
    fn look(&self) -> io::Result<()> {
        let changes = inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::MODIFY;
        for tail in &self.tails {
            let there = tail.path.ancestors().skip(1).find(|folder| folder.is_dir());
            let folder = there.unwrap_or(Path::new("/"));
            inotify::add_watch(self.notify.get_ref(), folder, changes)?;
        }
        Ok(())
    }
}

impl Tail {
    fn open(&mut self) -> io::Result<()> {
        match open_log(&self.path) {
            Ok(file) => self.file = Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn read(&mut self, give: &mut impl FnMut(String)) -> io::Result<()> {
        if self.file.is_none() {
            self.open()?;
        }
        self.read_file(give)?;
        if self.was_rotated() {
            // Whatever came between the reading and the renaming.
            self.read_file(give)?;
            self.file = None;
            self.open()?;
            self.read_file(give)?;
        }
        Ok(())
    }

    fn was_rotated(&self) -> bool {
        let identity = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let now = std::fs::metadata(&self.path).ok().map(identity);
        let ours = self.file.as_ref().and_then(|file| file.metadata().ok()).map(identity);
        now.is_some() && ours.is_some() && now != ours
    }

    fn read_file(&mut self, give: &mut impl FnMut(String)) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        loop {
            let read = file.by_ref().take(TURN_BYTES).read_to_end(&mut self.rest)?;
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                give(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.rest.len() > LINE_BYTES_MAX {
                give(String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned());
            }
            if read == 0 {
                return Ok(());
            }
        }
    }
}

/// Returns time and text of a line in the CRI format; `None` for anything else.
pub fn cri(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.splitn(4, ' ');
    let (time, stream, tag) = (fields.next()?, fields.next()?, fields.next()?);
    let is_cri = matches!(stream, "stdout" | "stderr") && matches!(tag, "F" | "P");
    Some((time, fields.next().unwrap_or_default())).filter(|_| is_cri)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn texts(lines: Vec<(usize, String)>) -> Vec<String> {
        lines.into_iter().map(|(number, line)| format!("{number} {line}")).collect()
    }

    #[tokio::test]
    async fn lines_come_as_they_are_written_across_a_rotation_and_none_twice() {
        let temp = tempfile::tempdir().unwrap();
        let (first, second) = (temp.path().join("a/current"), temp.path().join("b/current"));
        fs::create_dir(temp.path().join("a")).unwrap();
        fs::write(&first, "old\n").unwrap();
        let mut follower = Follower::new().unwrap();
        assert_eq!(follower.add(first.clone(), From::End).unwrap(), 0);
        assert_eq!(follower.add(second.clone(), From::Start).unwrap(), 1);
        assert!(follower.written().is_empty());

        let mut file = fs::OpenOptions::new().append(true).open(&first).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(texts(follower.next().await), ["0 one"]);
        file.write_all(b"o\n").unwrap();
        fs::rename(&first, temp.path().join("a/past")).unwrap();
        fs::write(&first, "three\n").unwrap();
        assert_eq!(texts(follower.next().await), ["0 two", "0 three"]);

        fs::create_dir(temp.path().join("b")).unwrap();
        let mut came = Vec::new();
        fs::write(&second, "four\n").unwrap();
        while came.is_empty() {
            came = texts(follower.next().await);
        }
        assert_eq!(came, ["1 four"]);
    }

    #[test]
    fn a_line_of_a_log_file_is_taken_apart() {
        let line = "2026-11-22T14:02:10.000000001Z stderr F a b";
        assert_eq!(cri(line), Some(("2026-11-22T14:02:10.000000001Z", "a b")));
        assert_eq!(cri("anything else at all"), None);
    }
}
