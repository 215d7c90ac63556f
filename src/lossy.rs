//! Where this process says what it has to say, on standard error: beside whoever says it. The file behind may be on a
//! disk that stands still, and a part of a node must not stand still with it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// What waits for the disk at most, in bytes; what comes on top of it is dropped and counted.
const WAITING_BYTES_MAX: usize = 256 << 10;

/// How long the end of the process waits for its last words.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

static LINES: Lines = Lines {
    state: Mutex::new(State { waiting: VecDeque::new(), bytes: 0, dropped: 0, is_writing: false }),
    changed: Condvar::new(),
    has_writer: OnceLock::new(),
};

/// Makes writers of lines that never wait for the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lossy;

/// Waits, not for long, until what was said is written.
pub(crate) fn finish() {
    let is_busy = |state: &mut State| state.is_writing || !state.waiting.is_empty();
    // What was not written by then waits for a disk that stands still.
    drop(LINES.changed.wait_timeout_while(LINES.lock(), LAST_WORDS_MAX, is_busy));
}

impl<'a> MakeWriter<'a> for Lossy {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for Lossy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Begun with the first line: most commands of a person have nothing to say.
        if *LINES.has_writer.get_or_init(start) {
            LINES.push(line);
            Ok(line.len())
        } else {
            io::stderr().write(line)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Lines {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether there is a thread that writes.
    has_writer: OnceLock<bool>,
}

struct State {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
    is_writing: bool,
}

impl Lines {
    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        state.push(line);
        drop(state);
        self.changed.notify_all();
    }

    fn write_for_ever(&self, mut to: impl Write) {
        let mut state = self.lock();
        loop {
            match state.pop() {
                Some(line) => {
                    state.is_writing = true;
                    drop(state);
                    // There is nowhere to say that it failed.
                    drop(to.write_all(&line));
                    state = self.lock();
                    state.is_writing = false;
                }
                None => {
                    self.changed.notify_all();
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, line: &[u8]) {
        if self.bytes + line.len() > WAITING_BYTES_MAX {
            self.dropped += 1;
            return;
        }
        self.bytes += line.len();
        self.waiting.push_back(line.to_vec());
    }

    /// Takes what is to be written next: after a gap in the lines, how long it is.
    fn pop(&mut self) -> Option<Vec<u8>> {
        if let Some(line) = self.waiting.pop_front() {
            self.bytes -= line.len();
            return Some(line);
        }
        let dropped = std::mem::take(&mut self.dropped);
        (dropped > 0).then(|| format!("{dropped} lines were dropped here\n").into_bytes())
    }
}

/// Starts the thread that writes. It takes no signal: whoever waits for signals here has blocked them in its own thread.
fn start() -> bool {
    let before = signals::block_all();
    let thread = thread::Builder::new()
        .name("smgr-says".to_owned())
        .spawn(|| LINES.write_for_ever(io::stderr()));
    signals::restore(&before);
    thread.is_ok()
}

#[expect(unsafe_code, reason = "signal sets have no safe interface in rustix")]
mod signals {
    pub(super) fn block_all() -> libc::sigset_t {
        // SAFETY: both sets are plain memory; the first is filled before it is read, the second by the kernel.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
            before
        }
    }

    pub(super) fn restore(before: &libc::sigset_t) {
        // SAFETY: the set was filled by the kernel.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_does_not_take_is_dropped_and_counted_and_nobody_waits() {
        let mut state = State { waiting: VecDeque::new(), bytes: 0, dropped: 0, is_writing: true };
        let line = [b'x'; 1024];
        for _ in 0..300 {
            state.push(&line);
        }
        assert_eq!((state.waiting.len(), state.dropped), (256, 44));
        let written: Vec<_> = std::iter::from_fn(|| state.pop()).collect();
        assert_eq!(written.len(), 257);
        assert_eq!(written[256], b"44 lines were dropped here\n");
        assert_eq!(state.bytes, 0);
    }
}
