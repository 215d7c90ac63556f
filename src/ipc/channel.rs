//! The tokio end of a `SOCK_SEQPACKET` socket, as two halves that two tasks may own.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::frame::{Packet, Received};
use super::socket::{self, Inbox, Peer, SocketError};

/// The pauses after a connection that could not be accepted.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(20);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Sends messages; waits while the other side does not read.
#[derive(Debug, Clone)]
pub struct Sender {
    socket: Arc<AsyncFd<OwnedFd>>,
}

/// Receives messages.
#[derive(Debug)]
pub struct Receiver {
    socket: Arc<AsyncFd<OwnedFd>>,
    inbox: Inbox,
}

/// Accepts connections.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
}

/// Connects to the socket at `path`.
///
/// # Errors
/// When nobody listens there.
pub fn connect(path: &Path) -> io::Result<(Sender, Receiver)> {
    split(socket::connect(path)?)
}

/// Makes the two halves of a connected, non-blocking socket.
///
/// # Errors
/// When the runtime cannot watch the descriptor.
pub fn split(socket: OwnedFd) -> io::Result<(Sender, Receiver)> {
    let socket = Arc::new(watch(socket)?);
    let sender = Sender { socket: Arc::clone(&socket) };
    Ok((sender, Receiver { socket, inbox: Inbox::default() }))
}

/// Makes a descriptor something that tasks can wait to read from. It must be non-blocking.
///
/// # Errors
/// When the runtime cannot watch it.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch_for(descriptor, Interest::READABLE)
}

#[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
fn watch_for(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one open descriptor from here until it is dropped, and `AsyncFd`
    // takes it out of the runtime before it drops it.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    Ok(watched?)
}

impl Sender {
    /// Sends a message.
    ///
    /// # Errors
    /// When the message does not fit or the other side is gone.
    pub async fn send<T: Serialize>(&self, message: &T) -> Result<(), SocketError> {
        self.send_packet(&Packet::new(message)?).await
    }

    /// Sends a message and duplicates of descriptors with it.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub async fn send_with<T: Serialize>(
        &self,
        message: &T,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), SocketError> {
        self.send_packet(&Packet::with_descriptors(message, descriptors)?).await
    }

    /// Sends a packet. Dropped while it waits, it has sent nothing.
    ///
    /// # Errors
    /// When the other side is gone.
    pub async fn send_packet(&self, packet: &Packet) -> Result<(), SocketError> {
        match self.try_send_packet(packet)? {
            true => Ok(()),
            false => self.send_when_read(packet).await,
        }
    }

    /// Sends a packet at once and says whether there was room for it.
    ///
    /// # Errors
    /// When the other side is gone.
    pub fn try_send_packet(&self, packet: &Packet) -> Result<bool, SocketError> {
        match socket::send(self.socket.get_ref(), packet) {
            Err(error) if error.would_block() => Ok(false),
            sent => sent.map(|()| true),
        }
    }

    /// Waits for the other side to read. Only here is room for more waited for: a socket that is watched for it all
    /// the time wakes its owner after every message, when the other side has read it.
    async fn send_when_read(&self, packet: &Packet) -> Result<(), SocketError> {
        let socket = self.socket.get_ref().try_clone().map_err(SocketError::Io)?;
        let socket = watch_for(socket, Interest::WRITABLE).map_err(SocketError::Io)?;
        loop {
            let mut ready = socket.writable().await.map_err(SocketError::Io)?;
            match socket::send(socket.get_ref(), packet) {
                Err(error) if error.would_block() => ready.clear_ready(),
                sent => return sent,
            }
        }
    }
}

impl Receiver {
    /// Receives a message. Dropped while it waits, it has received nothing.
    ///
    /// # Errors
    /// As [`Inbox::receive`], except that it waits.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<Received<T>, SocketError> {
        loop {
            let mut ready = self.socket.readable().await.map_err(SocketError::Io)?;
            match self.inbox.receive(self.socket.get_ref()) {
                Err(error) if error.would_block() => ready.clear_ready(),
                got => return got,
            }
        }
    }
}

impl Listener {
    /// Listens at `path`, replacing what stands there.
    ///
    /// # Errors
    /// When the folder does not exist or the kernel refuses.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Ok(Self { socket: watch(socket::listen(path)?)? })
    }

    /// Waits for the next connection and says who it is. While none can be accepted, as without a descriptor, those
    /// who connect wait.
    pub async fn next(&self) -> (Sender, Receiver, Peer) {
        let mut pause = ACCEPT_PAUSE_MIN;
        loop {
            match self.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => warn!(%error, "failed to accept a connection; tried again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
        }
    }

    /// Accepts the next connection and says who it is.
    ///
    /// # Errors
    /// When the kernel has no descriptor left, or the one who connected is gone. The listener goes on.
    pub async fn accept(&self) -> io::Result<(Sender, Receiver, Peer)> {
        loop {
            let mut ready = self.socket.readable().await?;
            match socket::accept(self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Err(error),
                Ok(accepted) => {
                    let peer = socket::peer(&accepted)?;
                    let (sender, receiver) = split(accepted)?;
                    return Ok((sender, receiver, peer));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sender_waits_for_a_slow_reader_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("s")).unwrap();
        let (sender, _unused) = connect(&folder.path().join("s")).unwrap();
        let (_answers, mut receiver, _) = listener.accept().await.unwrap();
        let sending = tokio::spawn(async move {
            for number in 0..2_000_u32 {
                sender.send(&(number, "x".repeat(500))).await.unwrap();
            }
        });
        for number in 0..2_000_u32 {
            let got = receiver.receive::<(u32, String)>().await.unwrap();
            assert_eq!(got.message.0, number);
        }
        sending.await.unwrap();
    }
}
