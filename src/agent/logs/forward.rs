//! Where lines go besides the file: the journal, or the standard output of this process.
//!
//! A thread of its own does the writing, since both can block for as long as they like. What does not fit its queue is
//! dropped and counted: nothing that is slow there may slow a service.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use super::Stream;
use crate::domain::id::InstanceId;

/// What may wait, in bytes of lines; some 200 lines of the longest sort for each of a dozen services.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// What a line costs in the queue beside its text.
const LINE_BYTES: usize = 64;

/// When the kernel is asked for a thread again that it refused. Lines come by the thousand in that time.
const START_AGAIN: Duration = Duration::from_secs(10);

/// Where the journal takes datagrams.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The priorities of syslog that lines get: what container engines give them too.
const INFO: u8 = 6;
const ERROR: u8 = 3;

/// A line on its way.
#[derive(Debug)]
struct Parcel {
    to: Goal,
    slot: InstanceId,
    stream: Stream,
    text: Vec<u8>,
}

/// Where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Journal,
    Stdout,
}

#[derive(Debug, Default)]
struct Waiting {
    parcels: VecDeque<Parcel>,
    bytes: usize,
    /// Lines of each slot that could not be handed on, and their length, since somebody asked.
    lost: BTreeMap<InstanceId, (u64, u64)>,
    closed: bool,
}

type Shared = Arc<(Mutex<Waiting>, Condvar)>;

/// The way to the thread. Dropped, it ends the thread after the line it is at.
#[derive(Debug)]
pub(super) struct Forwarder {
    shared: Shared,
}

impl Forwarder {
    pub(super) fn start() -> io::Result<Self> {
        Self::start_with(PathBuf::from(JOURNAL), Box::new(io::stdout()))
    }

    pub(super) fn start_with(journal: PathBuf, stdout: Box<dyn Write + Send>) -> io::Result<Self> {
        let shared = Shared::default();
        let theirs = shared.clone();
        std::thread::Builder::new()
            .name("smgr-log-forward".to_owned())
            .spawn(move || Exits { journal, socket: None, stdout }.work(&theirs))?;
        Ok(Self { shared })
    }

    /// Sends lines on their way, as far as there is room. Returns how many of this slot were lost since the last call,
    /// and their length.
    pub(super) fn push<'a>(
        &self,
        to: Goal,
        slot: &InstanceId,
        stream: Stream,
        lines: impl Iterator<Item = &'a [u8]>,
    ) -> (u64, u64) {
        let mut waiting = lock(&self.shared.0);
        let mut lost = waiting.lost.remove(slot).unwrap_or_default();
        for line in lines {
            if waiting.bytes >= WAITING_BYTES_MAX {
                lost = (lost.0 + 1, lost.1 + line.len() as u64);
                continue;
            }
            waiting.bytes += line.len() + LINE_BYTES;
            let text = line.to_vec();
            waiting.parcels.push_back(Parcel { to, slot: slot.clone(), stream, text });
        }
        self.shared.1.notify_one();
        lost
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        lock(&self.shared.0).closed = true;
        self.shared.1.notify_one();
    }
}

/// The forwarder of all slots, made for the first line that is forwarded.
#[derive(Debug, Default)]
pub(super) enum Forwarding {
    /// Nobody forwards anything.
    #[default]
    Unused,
    /// It works.
    Runs(Forwarder),
    /// The kernel gave no thread; it is asked again then.
    Refused { again_at: Instant },
}

impl Forwarding {
    /// Returns the forwarder; `None` while there is none, and what is to be forwarded is lost.
    pub(super) fn get(
        &mut self,
        now: Instant,
        start: impl FnOnce() -> io::Result<Forwarder>,
    ) -> Option<&Forwarder> {
        let is_due = match self {
            Self::Unused => true,
            Self::Runs(_) => false,
            Self::Refused { again_at } => now >= *again_at,
        };
        if is_due {
            *self = match start() {
                Ok(forwarder) => Self::Runs(forwarder),
                Err(error) => {
                    warn!(%error, "no thread forwards the lines of services: they are dropped");
                    Self::Refused { again_at: now + START_AGAIN }
                }
            };
        }
        match self {
            Self::Runs(forwarder) => Some(forwarder),
            Self::Unused | Self::Refused { .. } => None,
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread's own state.
struct Exits {
    journal: PathBuf,
    socket: Option<UnixDatagram>,
    stdout: Box<dyn Write + Send>,
}

impl Exits {
    fn work(mut self, shared: &(Mutex<Waiting>, Condvar)) {
        let mut waiting = lock(&shared.0);
        loop {
            if waiting.closed {
                return;
            }
            let Some(parcel) = waiting.parcels.pop_front() else {
                waiting = shared.1.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            waiting.bytes -= parcel.text.len() + LINE_BYTES;
            drop(waiting);
            let sent = match parcel.to {
                Goal::Journal => self.put_in_journal(&parcel),
                Goal::Stdout => self.put_on_stdout(&parcel),
            };
            waiting = lock(&shared.0);
            if sent.is_err() {
                let lost = waiting.lost.entry(parcel.slot).or_default();
                *lost = (lost.0 + 1, lost.1 + parcel.text.len() as u64);
            }
        }
    }

    fn put_on_stdout(&mut self, parcel: &Parcel) -> io::Result<()> {
        // One write a line, so that lines of several writers do not run into one another.
        let mut line = format!("{} | ", parcel.slot).into_bytes();
        line.extend_from_slice(&parcel.text);
        line.push(b'\n');
        self.stdout.write_all(&line)?;
        self.stdout.flush()
    }

    fn put_in_journal(&mut self, parcel: &Parcel) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(UnixDatagram::unbound()?),
        };
        socket.send_to(&entry(parcel), Path::new(&self.journal)).map(drop)
    }
}

/// Writes a line as the journal's own protocol has it. A line holds no line end, so no length is needed.
fn entry(parcel: &Parcel) -> Vec<u8> {
    let priority = match parcel.stream {
        Stream::Stdout => INFO,
        Stream::Stderr => ERROR,
    };
    let (service, slot) = (&parcel.slot.service, &parcel.slot);
    let mut entry =
        format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER={service}\nSMGR_INSTANCE={slot}\nMESSAGE=")
            .into_bytes();
    entry.extend_from_slice(&parcel.text);
    entry.push(b'\n');
    entry
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn slot() -> InstanceId {
        InstanceId { service: "web".parse().unwrap(), index: 1 }
    }

    /// Hands on what is written to it, and waits for each word until it is taken.
    struct Slow(mpsc::SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_reach_standard_output_with_the_name_of_their_instance() {
        let (sender, heard) = mpsc::sync_channel(1);
        let forwarder = Forwarder::start_with("/nowhere".into(), Box::new(Slow(sender))).unwrap();
        let lines: [&[u8]; 2] = [b"one", b"\xff two"];
        assert_eq!(
            forwarder.push(Goal::Stdout, &slot(), Stream::Stderr, lines.into_iter()),
            (0, 0)
        );
        assert_eq!(heard.recv_timeout(SOON).unwrap(), b"web/1 | one\n");
        assert_eq!(heard.recv_timeout(SOON).unwrap(), b"web/1 | \xff two\n");
    }

    #[test]
    fn lines_reach_the_journal_with_priority_and_instance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_read_timeout(Some(SOON)).unwrap();
        let forwarder = Forwarder::start_with(path, Box::new(io::sink())).unwrap();
        forwarder.push(Goal::Journal, &slot(), Stream::Stderr, [&b"it fails"[..]].into_iter());
        let mut bytes = [0; 1000];
        let length = journal.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        assert_eq!(
            text,
            "PRIORITY=3\nSYSLOG_IDENTIFIER=web\nSMGR_INSTANCE=web/1\nMESSAGE=it fails\n"
        );
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_no_time() {
        let (sender, heard) = mpsc::sync_channel(0);
        let forwarder = Forwarder::start_with("/nowhere".into(), Box::new(Slow(sender))).unwrap();
        let line = vec![b'x'; 64 << 10];
        let push = || {
            let line = [line.as_slice()].into_iter();
            forwarder.push(Goal::Stdout, &slot(), Stream::Stdout, line).0
        };
        let lost: u64 = (0..200).map(|_| push()).sum();
        assert!((130..=140).contains(&lost), "{lost}");
        assert!(heard.recv_timeout(SOON).is_ok());
    }

    #[test]
    fn a_thread_that_the_kernel_refuses_is_not_asked_for_with_each_line() {
        let (mut forwarding, mut asked) = (Forwarding::default(), 0);
        let began = Instant::now();
        for second in 0..25 {
            let now = began + Duration::from_secs(second);
            let none = forwarding.get(now, || {
                asked += 1;
                Err(io::ErrorKind::WouldBlock.into())
            });
            assert!(none.is_none());
        }
        assert_eq!(asked, 3);
        let start = || Forwarder::start_with("/nowhere".into(), Box::new(io::sink()));
        assert!(forwarding.get(began + START_AGAIN * 3, start).is_some());
        assert!(forwarding.get(began, || unreachable!("it runs")).is_some());
    }

    #[test]
    fn what_the_journal_does_not_take_is_told_with_the_next_line() {
        let forwarder = Forwarder::start_with("/nowhere".into(), Box::new(io::sink())).unwrap();
        let push = || {
            let line = [&b"x"[..]].into_iter();
            forwarder.push(Goal::Journal, &slot(), Stream::Stdout, line)
        };
        assert_eq!(push(), (0, 0));
        let start = std::time::Instant::now();
        while push() == (0, 0) {
            assert!(start.elapsed() < SOON, "the loss is told");
            std::thread::yield_now();
        }
    }
}
