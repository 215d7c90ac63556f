//! The log pipes of every slot, in the hands of the launcher: when keeper and agent die in the same moment as a service,
//! nobody else would hold what it has just written. And the records of runs that a full disk had no room for, and the
//! listening sockets of services.
//!
//! The launcher reads nothing and decides nothing. It keeps what a keeper gives it, over a socket that is the keeper's
//! standard input, and gives all of it to the next one. Without a launcher, or with one that was started later, there is
//! no vault, and the pipes of living services are found through /proc.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::sockets::Known;
use crate::ipc::frame::Packet;
use crate::ipc::keeper::{Channel, RunName, SlotName};
use crate::ipc::socket::{self, Inbox};

/// How long launcher and keeper wait for each other when a keeper starts.
const HAND_OVER_MAX: Duration = Duration::from_secs(5);

/// What travels between the two.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// The pipes of a slot; they come with it.
    Pipes { slot: SlotName, channels: Vec<Channel> },
    /// The slot is closed.
    Forget { slot: SlotName },
    /// The record of a run; it comes with it.
    Record { run: RunName },
    /// The run is over.
    ForgetRecord { run: RunName },
    /// A listening socket; it comes with it.
    Socket(Known),
    /// The socket is closed.
    ForgetSocket { key: String },
    /// That was all.
    End,
}

/// The pipes of a slot.
pub(super) type Pipes = BTreeMap<Channel, OwnedFd>;

/// What is kept from one keeper to the next.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) pipes: BTreeMap<SlotName, Pipes>,
    pub(super) records: BTreeMap<RunName, OwnedFd>,
    pub(super) sockets: BTreeMap<String, (Known, OwnedFd)>,
}

impl Kept {
    /// Takes in what was given; says whether that was all.
    fn take_in(&mut self, message: Message, descriptors: Vec<OwnedFd>) -> bool {
        let mut descriptors = descriptors.into_iter();
        match message {
            Message::Pipes { slot, channels } => {
                self.pipes.insert(slot, channels.into_iter().zip(descriptors).collect());
            }
            Message::Forget { slot } => drop(self.pipes.remove(&slot)),
            Message::Record { run } => self.records.extend(descriptors.next().map(|fd| (run, fd))),
            Message::ForgetRecord { run } => drop(self.records.remove(&run)),
            Message::Socket(known) => {
                let key = known.listening.key.clone();
                self.sockets.extend(descriptors.next().map(|fd| (key, (known, fd))));
            }
            Message::ForgetSocket { key } => drop(self.sockets.remove(&key)),
            Message::End => return true,
        }
        false
    }
}

/// The launcher's side.
#[derive(Debug, Default)]
pub(super) struct Vault {
    kept: Kept,
    socket: Option<OwnedFd>,
    inbox: Inbox,
}

impl Vault {
    /// Makes the socket for a keeper that is about to be started, and returns the keeper's end.
    pub(super) fn open(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socket::pair()?;
        self.socket = Some(ours);
        Ok(theirs)
    }

    /// There is a keeper that was not started here.
    pub(super) fn close(&mut self) {
        self.socket = None;
    }

    /// Returns what becomes readable when the keeper gives something.
    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Gives all that is kept to a keeper that has just been started.
    pub(super) fn hand_over(&self) {
        let Some(socket) = &self.socket else { return };
        let until = Instant::now() + HAND_OVER_MAX;
        let give_all = || {
            for (slot, pipes) in &self.kept.pipes {
                give(socket, slot, pipes, until)?;
            }
            for (run, record) in &self.kept.records {
                give_record(socket, run, record.as_fd(), until)?;
            }
            for (known, held) in self.kept.sockets.values() {
                give_socket(socket, known, held.as_fd(), until)?;
            }
            say(socket, &Message::End, Vec::new(), until)
        };
        if let Err(error) = give_all() {
            warn!(%error, "the keeper does not take what is kept for it");
        }
    }

    /// Takes in what the keeper gave. Also after its death: what it sent is still there.
    pub(super) fn take_in(&mut self) {
        while let Some(socket) = &self.socket {
            let received = match self.inbox.receive::<Message>(socket) {
                Ok(received) => received,
                Err(error) if error.would_block() => return,
                // The keeper is gone, which is seen elsewhere.
                Err(_) => return self.close(),
            };
            self.kept.take_in(received.message, received.descriptors);
        }
    }
}

/// The keeper's side.
#[derive(Debug)]
pub(super) struct Deposit {
    socket: Option<OwnedFd>,
}

impl Deposit {
    /// Finds the launcher at standard input and takes what earlier keepers gave it.
    pub(super) fn find() -> (Self, Kept) {
        let mut kept = Kept::default();
        let stdin = rustix::stdio::stdin();
        let is_socket = rustix::net::sockopt::socket_type(stdin)
            .is_ok_and(|kind| kind == rustix::net::SocketType::SEQPACKET);
        let Some(socket) = is_socket.then(|| stdin.try_clone_to_owned().ok()).flatten() else {
            return (Self { socket: None }, kept);
        };
        let until = Instant::now() + HAND_OVER_MAX;
        let mut inbox = Inbox::default();
        loop {
            match inbox.receive::<Message>(&socket) {
                Ok(received) => {
                    if kept.take_in(received.message, received.descriptors) {
                        return (Self { socket: Some(socket) }, kept);
                    }
                }
                Err(error) if error.would_block() && wait(&socket, PollFlags::IN, until) => {}
                Err(error) => {
                    warn!(%error, "the launcher does not give back what it keeps");
                    return (Self { socket: None }, kept);
                }
            }
        }
    }

    /// Gives the pipes of a slot into the launcher's hands.
    pub(super) fn keep(&self, slot: &SlotName, pipes: &Pipes) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = give(socket, slot, pipes, Instant::now()) {
            warn!(%slot, %error, "the launcher does not take the pipes");
        }
    }

    /// Gives the record of a run, for which the disk had no room, into the launcher's hands.
    pub(super) fn keep_record(&self, run: &RunName, record: BorrowedFd<'_>) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = give_record(socket, run, record, Instant::now()) {
            warn!(%run, %error, "the launcher does not take the record of a run");
        }
    }

    /// Says that a run whose record was given is over.
    pub(super) fn forget_record(&self, run: &RunName) {
        let Some(socket) = &self.socket else { return };
        let message = Message::ForgetRecord { run: run.clone() };
        if let Err(error) = say(socket, &message, Vec::new(), Instant::now()) {
            warn!(%run, %error, "the launcher keeps a record that nobody needs");
        }
    }

    /// Gives a listening socket into the launcher's hands.
    pub(super) fn keep_socket(&self, known: &Known, held: BorrowedFd<'_>) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = give_socket(socket, known, held, Instant::now()) {
            let key = &known.listening.key;
            warn!(key, %error, "the launcher does not take a listening socket");
        }
    }

    /// Says that a listening socket is closed.
    pub(super) fn forget_socket(&self, key: &str) {
        let Some(socket) = &self.socket else { return };
        let message = Message::ForgetSocket { key: key.to_owned() };
        if let Err(error) = say(socket, &message, Vec::new(), Instant::now()) {
            warn!(key, %error, "the launcher keeps a listening socket that nobody needs");
        }
    }

    /// Says that a slot is closed.
    pub(super) fn forget(&self, slot: &SlotName) {
        let Some(socket) = &self.socket else { return };
        let message = Message::Forget { slot: slot.clone() };
        if let Err(error) = say(socket, &message, Vec::new(), Instant::now()) {
            warn!(%slot, %error, "the launcher keeps pipes that nobody needs");
        }
    }
}

fn give(socket: &OwnedFd, slot: &SlotName, pipes: &Pipes, until: Instant) -> io::Result<()> {
    let descriptors: io::Result<Vec<OwnedFd>> = pipes.values().map(OwnedFd::try_clone).collect();
    let message = Message::Pipes { slot: slot.clone(), channels: pipes.keys().copied().collect() };
    say(socket, &message, descriptors?, until)
}

fn give_record(
    socket: &OwnedFd,
    run: &RunName,
    record: BorrowedFd<'_>,
    until: Instant,
) -> io::Result<()> {
    let record = record.try_clone_to_owned()?;
    say(socket, &Message::Record { run: run.clone() }, vec![record], until)
}

fn give_socket(
    socket: &OwnedFd,
    known: &Known,
    held: BorrowedFd<'_>,
    until: Instant,
) -> io::Result<()> {
    let held = held.try_clone_to_owned()?;
    say(socket, &Message::Socket(known.clone()), vec![held], until)
}

fn say(
    socket: &OwnedFd,
    message: &Message,
    descriptors: Vec<OwnedFd>,
    until: Instant,
) -> io::Result<()> {
    let packet = Packet::with_descriptors(message, descriptors).map_err(io::Error::other)?;
    loop {
        match socket::send(socket, &packet) {
            Ok(()) => return Ok(()),
            Err(error) if error.would_block() && wait(socket, PollFlags::OUT, until) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// Waits until the socket is as wanted; false when the time is up.
fn wait(socket: &OwnedFd, flags: PollFlags, until: Instant) -> bool {
    let rest = until.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: i64::try_from(rest.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(rest.subsec_nanos()),
    };
    let mut fds = [PollFd::new(socket, flags)];
    !rest.is_zero() && poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_keeper_gets_what_the_one_before_gave() {
        let mut vault = Vault::default();
        let slot = |name: &str| -> SlotName { name.parse().unwrap() };
        let pipes = || {
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            Pipes::from([(Channel::Stdout, reader), (Channel::Stderr, writer)])
        };
        let first = Deposit { socket: Some(vault.open().unwrap()) };
        first.keep(&slot("web.0"), &pipes());
        first.keep(&slot("old.0"), &pipes());
        first.forget(&slot("old.0"));
        let run = |name: &str| -> RunName { name.parse().unwrap() };
        let record = || OwnedFd::from(tempfile::tempfile().unwrap());
        first.keep_record(&run("web.0.7"), record().as_fd());
        first.keep_record(&run("web.0.6"), record().as_fd());
        first.forget_record(&run("web.0.6"));
        // It dies before the launcher has looked.
        drop(first);
        vault.take_in();

        let theirs = vault.open().unwrap();
        vault.hand_over();
        let mut inbox = Inbox::default();
        let received = inbox.receive::<Message>(&theirs).unwrap();
        assert!(matches!(&received.message, Message::Pipes { slot: name, channels }
            if *name == slot("web.0") && channels.len() == 2));
        assert_eq!(received.descriptors.len(), 2);
        let received = inbox.receive::<Message>(&theirs).unwrap();
        assert!(
            matches!(&received.message, Message::Record { run: name } if *name == run("web.0.7"))
        );
        assert_eq!(received.descriptors.len(), 1);
        let end = inbox.receive::<Message>(&theirs).unwrap();
        assert!(matches!(end.message, Message::End));
    }
}
