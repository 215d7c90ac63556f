//! The log pipes of every slot, in the hands of the launcher: when keeper and agent die in the same moment as a service,
//! nobody else would hold what it has just written.
//!
//! The launcher reads nothing and decides nothing. It keeps what a keeper gives it, over a socket that is the keeper's
//! standard input, and gives all of it to the next one. Without a launcher, or with one that was started later, there is
//! no vault, and the pipes of living services are found through /proc.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::ipc::frame::Packet;
use crate::ipc::keeper::{Channel, SlotName};
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
    /// That was all.
    End,
}

/// The pipes of a slot.
pub(super) type Pipes = BTreeMap<Channel, OwnedFd>;

/// The launcher's side.
#[derive(Debug, Default)]
pub(super) struct Vault {
    kept: BTreeMap<SlotName, Pipes>,
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
        for (slot, pipes) in &self.kept {
            if let Err(error) = give(socket, slot, pipes, until) {
                return warn!(%error, "the keeper does not take the pipes");
            }
        }
        if let Err(error) = say(socket, &Message::End, Vec::new(), until) {
            warn!(%error, "the keeper does not take the pipes");
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
            match received.message {
                Message::Pipes { slot, channels } => {
                    let pipes = channels.into_iter().zip(received.descriptors).collect();
                    self.kept.insert(slot, pipes);
                }
                Message::Forget { slot } => drop(self.kept.remove(&slot)),
                Message::End => {}
            }
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
    pub(super) fn find() -> (Self, BTreeMap<SlotName, Pipes>) {
        let mut kept = BTreeMap::new();
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
                Ok(received) => match received.message {
                    Message::Pipes { slot, channels } => {
                        let pipes = channels.into_iter().zip(received.descriptors).collect();
                        kept.insert(slot, pipes);
                    }
                    Message::Forget { .. } => {}
                    Message::End => return (Self { socket: Some(socket) }, kept),
                },
                Err(error) if error.would_block() && wait(&socket, PollFlags::IN, until) => {}
                Err(error) => {
                    warn!(%error, "the launcher does not give the pipes back");
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
        let end = inbox.receive::<Message>(&theirs).unwrap();
        assert!(matches!(end.message, Message::End));
    }
}
