//! Hears the signs of life that services give by themselves: datagrams on `NOTIFY_SOCKET`, and a line on a pipe.
//!
//! What is heard stays in the kernel until what it led to is durable, so that an agent which dies in between takes no
//! service's word with it: datagrams are looked at where they lie and taken out later, a readiness pipe is never emptied.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use rustix::pipe::{PipeFlags, SpliceFlags};
use tokio::task::JoinHandle;
use tracing::debug;

use super::wake::{Wake, Waker};
use crate::domain::id::{InstanceId, RunId};
use crate::ipc::channel;

/// The longest text that is read of a datagram, in bytes; systemd's own limit.
const DATAGRAM_BYTES_MAX: usize = 4096;

/// Datagrams that may stay in a socket. The kernel holds a sender back at 10 (`net.unix.max_dgram_qlen`), and while the
/// log takes nothing no service may be held back: the oldest is then taken out before it is durable.
const INSIDE_MAX: usize = 8;

/// Signs that wait for the start of their run to be told; a service needs one.
const EARLY_MAX: usize = 8;

/// Looks at a readiness pipe at once; what lies behind is looked at next.
const PIPE_BYTES: usize = 64 << 10;

/// Who sent a datagram, as the kernel tells it, and what its process was when it was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sender {
    pid: u32,
    uid: u32,
    /// Its session; `None` when the process was gone already.
    session: Option<u32>,
}

impl Sender {
    fn new(pid: u32, uid: u32) -> Self {
        // The sixth field, behind the name in brackets, is the session: the keeper makes each main process its leader.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let session = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3));
        Self { pid, uid, session: session.and_then(|text| text.parse().ok()) }
    }

    /// Says whether it may speak for a service whose main process is `main`: it, a process of its session, or one that
    /// did not outlive its word and was of the same user. `before` is the main process of the run before.
    pub(super) fn speaks_for(&self, main: u32, before: Option<u32>) -> bool {
        match self.session {
            _ if self.pid == main => true,
            Some(session) => session == main,
            None if Some(self.pid) == before => false,
            None => {
                let uid = fs::metadata(format!("/proc/{main}")).map(|about| about.uid());
                uid.is_ok_and(|uid| uid == self.uid)
            }
        }
    }

    /// Says whether nobody can tell any more whose process it was.
    pub(super) fn is_gone(&self) -> bool {
        self.session.is_none()
    }
}

/// A datagram that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// `READY=1`.
    Ready(Sender),
    /// Anything else.
    Other,
    /// No text at all.
    Empty,
}

/// Numbers the datagrams of a socket that were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SignNumber(u64);

/// The notify socket of a slot.
#[derive(Debug)]
pub(super) struct Ear {
    socket: OwnedFd,
    listening: JoinHandle<()>,
    /// The datagrams that are in the socket still, oldest first, and whether each is done with.
    inside: VecDeque<bool>,
    /// How many were taken out.
    taken: u64,
    early: Vec<(SignNumber, Sender)>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Ear {
    /// Listens to a notify socket, and returns what is in it already.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub(super) fn open(
        instance: InstanceId,
        socket: OwnedFd,
        waker: Waker,
    ) -> io::Result<(Self, Vec<Sign>)> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        look_from_the_front(&socket)?;
        let mut there = Vec::new();
        while let Some(sign) = peek(&socket).map(Some).or_else(none_yet)? {
            there.push(sign);
        }
        let watched = channel::watch(socket.try_clone()?)?;
        let listening = tokio::spawn(async move {
            // Watched by its edges: what was looked at and stays wakes nobody.
            while let Ok(mut ready) = watched.readable().await {
                let sign = match ready.try_io(|socket| peek(socket.get_ref())) {
                    Ok(Ok(sign)) => sign,
                    Ok(Err(error)) => return debug!(%error, "a notify socket is closed"),
                    Err(_would_block) => continue,
                };
                if waker.send(Wake::Notify { instance: instance.clone(), sign }).await.is_err() {
                    return;
                }
            }
        });
        let (inside, early) = (VecDeque::new(), Vec::new());
        Ok((Self { socket, listening, inside, taken: 0, early }, there))
    }

    /// Counts a datagram that was looked at; one without text has no number.
    pub(super) fn heard(&mut self, sign: Sign) -> Option<SignNumber> {
        if sign == Sign::Empty {
            if self.inside.is_empty() {
                // Whatever it is behind was taken out, so it is the first.
                let _ = self.take_out();
            }
            return None;
        }
        if self.inside.len() == INSIDE_MAX {
            self.drop_first();
        }
        self.inside.push_back(false);
        Some(SignNumber(self.taken + self.inside.len() as u64 - 1))
    }

    /// Lets go of a datagram: what it led to is durable, or it led to nothing.
    pub(super) fn done(&mut self, number: SignNumber) {
        let at = number.0.checked_sub(self.taken).and_then(|at| usize::try_from(at).ok());
        if let Some(done) = at.and_then(|at| self.inside.get_mut(at)) {
            *done = true;
        }
        while self.inside.front() == Some(&true) {
            self.drop_first();
        }
    }

    /// Keeps a sign until the start of its run is told.
    pub(super) fn keep_early(&mut self, number: SignNumber, sender: Sender) {
        self.early.push((number, sender));
        if self.early.len() > EARLY_MAX {
            // Where others may send at all, the service was started as root, and is likely so still.
            let stranger = self.early.iter().position(|(_, sender)| sender.uid != 0);
            let (number, _) = self.early.remove(stranger.unwrap_or(EARLY_MAX));
            self.done(number);
        }
    }

    /// Returns the signs that were kept.
    pub(super) fn take_early(&mut self) -> Vec<(SignNumber, Sender)> {
        std::mem::take(&mut self.early)
    }

    fn drop_first(&mut self) {
        self.inside.pop_front();
        self.taken += 1;
        while let Ok(0) = self.take_out() {}
    }

    /// Takes the first datagram out of the socket and returns how long it was.
    fn take_out(&self) -> rustix::io::Result<usize> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let mut byte = [0_u8; 1];
        rustix::net::recv(&self.socket, &mut byte, flags).map(|(_, whole)| whole)
    }
}

/// Waits for one line end on the readiness pipe of a run.
///
/// # Errors
/// When the descriptor cannot be watched.
pub(super) fn hear_ready_fd(
    instance: InstanceId,
    run: RunId,
    pipe: OwnedFd,
    waker: Waker,
) -> io::Result<JoinHandle<()>> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    let pipe = channel::watch(pipe)?;
    Ok(tokio::spawn(async move {
        while let Ok(mut ready) = pipe.readable().await {
            match ready.try_io(|pipe| line_end(pipe.get_ref())) {
                Ok(Ok(true)) => {
                    drop(waker.send(Wake::ReadyFd { instance, run }).await);
                    return;
                }
                Ok(Ok(false) | Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }))
}

fn none_yet(error: io::Error) -> io::Result<Option<Sign>> {
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(None),
        _ => Err(error),
    }
}

/// Has the socket remember how far it was looked through, beginning at its first datagram.
#[expect(unsafe_code, reason = "rustix does not know SO_PEEK_OFF")]
fn look_from_the_front(socket: &OwnedFd) -> io::Result<()> {
    let from: libc::c_int = 0;
    // SAFETY: the option is an int, and `from` is one that outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const from).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Looks at the next datagram and leaves it where it is.
fn peek(socket: &OwnedFd) -> io::Result<Sign> {
    let mut bytes = [0; DATAGRAM_BYTES_MAX];
    let Part { count, sender, mut is_cut } = peek_part(socket, &mut bytes)?;
    while is_cut {
        // The rest of a datagram is not the next one.
        let mut rest = [0; DATAGRAM_BYTES_MAX];
        is_cut = peek_part(socket, &mut rest)?.is_cut;
    }
    let is_ready = bytes[..count].split(|byte| *byte == b'\n').any(|line| line == b"READY=1");
    Ok(match sender {
        _ if count == 0 => Sign::Empty,
        // Without the sender's credentials nobody can be held to it.
        Some((pid, uid)) if is_ready => Sign::Ready(Sender::new(pid, uid)),
        _ => Sign::Other,
    })
}

/// A datagram, or as much of it as there was room for.
struct Part {
    count: usize,
    /// Its process and user.
    sender: Option<(u32, u32)>,
    is_cut: bool,
}

fn peek_part(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<Part> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT | RecvFlags::PEEK;
    let got = recvmsg(socket.as_fd(), &mut parts, &mut ancillary, flags)?;
    let sender = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(sender) => {
            let pid = u32::try_from(sender.pid.as_raw_nonzero().get()).ok()?;
            Some((pid, sender.uid.as_raw()))
        }
        _ => None,
    });
    Ok(Part { count: got.bytes, sender, is_cut: got.flags.contains(ReturnFlags::TRUNC) })
}

/// Says whether a line end is in the pipe, and leaves it there; false when the writer is gone without one.
fn line_end(pipe: &OwnedFd) -> io::Result<bool> {
    let (from, to) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let mut bytes = vec![0; PIPE_BYTES];
    loop {
        let copied = rustix::pipe::tee(pipe, &to, PIPE_BYTES, SpliceFlags::NONBLOCK)?;
        if copied == 0 {
            return Ok(false);
        }
        let count = rustix::io::read(&from, &mut bytes[..copied])?;
        if bytes[..count].contains(&b'\n') {
            return Ok(true);
        }
        // These mean nothing, and the line end may not fit behind them.
        rustix::io::read(pipe, &mut bytes[..count])?;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;

    fn id() -> InstanceId {
        InstanceId { service: "web".parse().unwrap(), index: 0 }
    }

    /// A service's end and the socket that keeper and agents share.
    fn sockets() -> (UnixDatagram, OwnedFd) {
        let (service, socket) = UnixDatagram::pair().unwrap();
        rustix::net::sockopt::set_socket_passcred(&socket, true).unwrap();
        (service, socket.into())
    }

    fn open(socket: &OwnedFd) -> (Ear, Vec<Sign>, mpsc::Receiver<Wake>) {
        let (waker, wakes) = mpsc::channel(64);
        let (ear, there) = Ear::open(id(), socket.try_clone().unwrap(), waker).unwrap();
        (ear, there, wakes)
    }

    async fn next(wakes: &mut mpsc::Receiver<Wake>) -> Option<Sign> {
        match tokio::time::timeout(Duration::from_secs(5), wakes.recv()).await.unwrap()? {
            Wake::Notify { sign, .. } => Some(sign),
            other => panic!("{other:?}"),
        }
    }

    fn me() -> Sign {
        Sign::Ready(Sender::new(std::process::id(), rustix::process::getuid().as_raw()))
    }

    #[tokio::test]
    async fn a_word_that_is_not_durable_is_heard_again_by_the_next_agent() {
        let (service, socket) = sockets();
        service.send(b"STATUS=up\nREADY=1\n").unwrap();
        let (mut ear, there, _) = open(&socket);
        assert_eq!(there, [me()]);
        ear.heard(there[0]);
        drop(ear);
        let (mut ear, there, _) = open(&socket);
        assert_eq!(there, [me()], "the agent before had died");
        let number = ear.heard(there[0]).unwrap();
        ear.done(number);
        assert_eq!(open(&socket).1, [], "it was durable");
    }

    #[tokio::test]
    async fn what_comes_behind_a_word_that_waits_is_heard_and_taken_with_it() {
        let (service, socket) = sockets();
        let (mut ear, there, mut wakes) = open(&socket);
        assert_eq!(there, []);
        service.send(b"READY=1").unwrap();
        let ready = next(&mut wakes).await.unwrap();
        assert_eq!(ready, me());
        let ready = ear.heard(ready).unwrap();
        service.send(b"").unwrap();
        service.send(&[b'x'; 3 * DATAGRAM_BYTES_MAX + 1]).unwrap();
        service.send(b"STOPPING=1").unwrap();
        for sign in [Sign::Empty, Sign::Other, Sign::Other] {
            assert_eq!(next(&mut wakes).await, Some(sign));
            if let Some(number) = ear.heard(sign) {
                ear.done(number);
            }
        }
        assert_eq!(ear.inside.len(), 3);
        ear.done(ready);
        assert!(ear.inside.is_empty());
        assert_eq!(open(&socket).1, []);
        service.send(b"READY=1").unwrap();
        assert_eq!(open(&socket).1, [me()], "and no other");
    }

    #[tokio::test]
    async fn a_word_that_waits_wakes_nobody_and_holds_no_service_back() {
        let (service, socket) = sockets();
        service.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        let (mut ear, _, mut wakes) = open(&socket);
        for _ in 0..50 {
            service.send(b"READY=1").unwrap();
            let sign = next(&mut wakes).await.unwrap();
            assert_eq!(sign, me());
            ear.heard(sign);
        }
        assert_eq!(ear.inside.len(), INSIDE_MAX);
        assert_eq!(open(&socket).1.len(), INSIDE_MAX);
        let idle = tokio::time::timeout(Duration::from_millis(200), wakes.recv()).await;
        assert!(idle.is_err(), "nothing was sent");
    }

    #[tokio::test]
    async fn a_line_end_stays_in_its_pipe() {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
        assert!(line_end(&reader).is_err(), "nothing yet");
        for _ in 0..40 {
            // More than the pipe holds together.
            rustix::io::write(&writer, &[b'x'; 4096]).unwrap();
            assert!(line_end(&reader).is_err());
        }
        rustix::io::write(&writer, b"ready\n").unwrap();
        for _ in 0..3 {
            assert!(line_end(&reader).unwrap());
            let (waker, mut wakes) = mpsc::channel(1);
            let heard = hear_ready_fd(id(), RunId(1), reader.try_clone().unwrap(), waker).unwrap();
            assert!(matches!(wakes.recv().await, Some(Wake::ReadyFd { run: RunId(1), .. })));
            heard.await.unwrap();
        }
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
        rustix::io::write(&writer, b"no").unwrap();
        drop(writer);
        assert!(!line_end(&reader).unwrap());
    }

    #[test]
    fn a_helper_that_did_not_outlive_its_word_speaks_for_its_user() {
        let (own, uid) = (std::process::id(), rustix::process::getuid().as_raw());
        let gone = Sender { pid: u32::MAX >> 2, uid, session: None };
        assert!(gone.speaks_for(own, None));
        assert!(!gone.speaks_for(own, Some(gone.pid)), "it was the run before");
        assert!(!Sender { uid: uid + 1, ..gone }.speaks_for(own, None));
        let alive = Sender { session: Some(own + 1), ..gone };
        assert!(!alive.speaks_for(own, None), "of another session");
    }
}
