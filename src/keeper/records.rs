//! What the next keeper has to know about the runs of this one: a small file for each, in the page
//! cache. It need not survive power loss, since no process does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::proc;
use crate::ipc::keeper::{RunName, SlotName};
use crate::ipc::{frame, is_full};

/// The main process comes last to be known, at a fixed place: its number and its start, 12 bytes. The number is
/// written by the process itself, in its last steps before its program.
const HEAD_BYTES: usize = 12;

/// Stands for the start of a process that was about to execute its program.
pub(super) const EXECUTING: u64 = u64::MAX;

/// The folder of the records.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
    boot: String,
    /// Runs that the disk had no room for.
    in_memory: BTreeMap<RunName, File>,
}

/// A run, as the keeper before left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) slot: SlotName,
    pub(super) memo: ByteBuf,
    boot: String,
    /// The inodes of the pipes that it writes to.
    #[serde(default)]
    pub(super) pipes: Option<[u64; 2]>,
    /// `None` when the program was never executed.
    #[serde(skip)]
    pub(super) main: Option<Main>,
}

/// Which process is the main one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Main {
    pub(super) pid: u32,
    /// When it began, in ticks since boot. When its keeper died before it looked: [`EXECUTING`], or 0 before that.
    pub(super) start_ticks: u64,
}

impl Records {
    /// Opens the folder.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder, boot: proc::boot_id(), in_memory: BTreeMap::new() })
    }

    /// Takes back what [`Records::in_memory`] returned to an earlier keeper.
    pub(super) fn take_back(&mut self, kept: BTreeMap<RunName, OwnedFd>) {
        self.in_memory.extend(kept.into_iter().map(|(run, file)| (run, File::from(file))));
    }

    /// Returns the record of a run that is not on disk and ends with whoever holds it.
    pub(super) fn in_memory(&self, run: &RunName) -> Option<&File> {
        self.in_memory.get(run)
    }

    /// Notes a run before its first process; the file takes the main process afterwards.
    pub(super) fn begin(
        &mut self,
        run: &RunName,
        slot: &SlotName,
        memo: &ByteBuf,
        pipes: [u64; 2],
    ) -> io::Result<File> {
        let record = Record {
            slot: slot.clone(),
            memo: memo.clone(),
            boot: self.boot.clone(),
            pipes: Some(pipes),
            main: None,
        };
        let mut bytes = vec![0; HEAD_BYTES];
        bytes.extend(frame::encode(&record).map_err(io::Error::other)?);
        match self.write(run, &bytes) {
            Err(error) if is_full(&error) => {
                // A service that is not started at all would be worse.
                drop(fs::remove_file(self.path(run)));
                tracing::warn!(%run, %error, "the run is noted in memory only");
                let mut memory = File::from(memfd_create("smgr-run", MemfdFlags::CLOEXEC)?);
                memory.write_all(&bytes)?;
                self.in_memory.insert(run.clone(), memory.try_clone()?);
                Ok(memory)
            }
            written => written,
        }
    }

    fn write(&self, run: &RunName, bytes: &[u8]) -> io::Result<File> {
        let mut file = File::create(self.path(run))?;
        file.write_all(bytes)?;
        Ok(file)
    }

    /// Notes the main process of a run that was begun.
    pub(super) fn complete(file: &File, main: Main) -> io::Result<()> {
        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(&main.pid.to_le_bytes());
        head[4..].copy_from_slice(&main.start_ticks.to_le_bytes());
        file.write_all_at(&head, 0)
    }

    /// Returns what is noted of the main process of a run at this moment.
    pub(super) fn main(&self, run: &RunName) -> Option<Main> {
        let bytes = match self.in_memory.get(run) {
            Some(file) => read_whole(file),
            None => fs::read(self.path(run)),
        };
        main_of(&bytes.ok()?)
    }

    /// Forgets a run; says whether it was noted in memory only.
    pub(super) fn end(&mut self, run: &RunName) -> bool {
        if self.in_memory.remove(run).is_some() {
            return true;
        }
        // What is left behind is dropped by the next keeper, as it finds no process.
        drop(fs::remove_file(self.path(run)));
        false
    }

    /// Reads what an earlier keeper of this boot left; what cannot be read counts as not there.
    pub(super) fn read(&self) -> BTreeMap<RunName, Record> {
        let mut records: BTreeMap<RunName, Record> = self
            .in_memory
            .iter()
            .filter_map(|(run, file)| Some((run.clone(), parse(&read_whole(file).ok()?)?)))
            .collect();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let run = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let record = fs::read(entry.path()).ok().and_then(|bytes| parse(&bytes));
            match (run, record) {
                (Some(run), Some(record)) if record.boot == self.boot => {
                    records.insert(run, record);
                }
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        records
    }

    fn path(&self, run: &RunName) -> PathBuf {
        self.folder.join(run.as_str())
    }
}

fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Option<Record> {
    let mut record: Record = frame::decode(bytes.get(HEAD_BYTES..)?).ok()?;
    record.main = main_of(bytes);
    Some(record)
}

fn main_of(bytes: &[u8]) -> Option<Main> {
    let pid = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    let start_ticks = u64::from_le_bytes(bytes.get(4..HEAD_BYTES)?.try_into().ok()?);
    (pid != 0).then_some(Main { pid, start_ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_as_it_was_noted_and_not_after_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::open(folder.path().join("runs")).unwrap();
        let run: RunName = "web.0.1".parse().unwrap();
        let file = records
            .begin(&run, &"web.0".parse().unwrap(), &ByteBuf::from(vec![7]), [1, 2])
            .unwrap();
        assert_eq!(records.read()[&run].main, None);
        let main = Main { pid: 5, start_ticks: 9 };
        Records::complete(&file, main).unwrap();
        assert_eq!(records.read()[&run].main, Some(main));
        assert_eq!(records.read()[&run].memo, ByteBuf::from(vec![7]));
        records.end(&run);
        assert!(records.read().is_empty());
    }

    #[test]
    fn a_record_of_another_boot_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::open(folder.path().to_owned()).unwrap();
        let run: RunName = "web.0.1".parse().unwrap();
        records.begin(&run, &"web.0".parse().unwrap(), &ByteBuf::new(), [1, 2]).unwrap();
        records.boot = "another".to_owned();
        assert!(records.read().is_empty());
        assert!(!records.path(&run).exists());
    }
}
