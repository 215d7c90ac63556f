//! The way out to another part: straight to its socket while nothing waits, else behind what does.
//!
//! The agent's task says what somebody waits for first and signs or publishes after that: what left with the task's next
//! pause would wait for all of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::timeout;

use crate::ipc::channel;
use crate::ipc::frame::Packet;
use crate::ipc::socket::SocketError;

/// Where packets go, in the order of the calls.
#[derive(Debug)]
pub(super) struct Outlet {
    socket: channel::Sender,
    queue: mpsc::Sender<Packet>,
    waiting: Arc<AtomicUsize>,
}

/// Says why a packet was not sent.
#[derive(Debug)]
pub(super) enum Unsent {
    /// As much waits for the other part as may wait.
    Full,
    /// The other part is gone, of which the task is about to hear.
    Gone,
}

impl Outlet {
    /// Makes the way out through `socket`, and what sends the packets that wait, at most so many, until the other side is
    /// gone or nobody holds the outlet any more. With `read_within` one who leaves a full socket unread for longer is gone.
    pub(super) fn new(
        socket: channel::Sender,
        waiting_max: usize,
        read_within: Option<Duration>,
    ) -> (Self, impl Future<Output = Result<(), SocketError>>) {
        let (queue, mut packets) = mpsc::channel::<Packet>(waiting_max);
        let waiting = Arc::new(AtomicUsize::new(0));
        let outlet = Self { socket: socket.clone(), queue, waiting: Arc::clone(&waiting) };
        let sending = async move {
            while let Some(packet) = packets.recv().await {
                let sending = socket.send_packet(&packet);
                match read_within {
                    Some(within) => {
                        timeout(within, sending).await.unwrap_or(Err(SocketError::Closed))?;
                    }
                    None => sending.await?,
                }
                waiting.fetch_sub(1, Ordering::Release);
            }
            Ok(())
        };
        (outlet, sending)
    }

    /// Sends a packet.
    ///
    /// # Errors
    /// When the other side does not keep up, or is gone.
    pub(super) fn send(&self, packet: Packet) -> Result<(), Unsent> {
        // Where the other side is gone, whoever takes from the queue finds out and says so.
        let is_next = self.waiting.load(Ordering::Acquire) == 0;
        if is_next && matches!(self.socket.try_send_packet(&packet), Ok(true)) {
            return Ok(());
        }
        self.waiting.fetch_add(1, Ordering::Release);
        self.queue.try_send(packet).map_err(|error| {
            self.waiting.fetch_sub(1, Ordering::Release);
            match error {
                TrySendError::Full(_) => Unsent::Full,
                TrySendError::Closed(_) => Unsent::Gone,
            }
        })
    }
}
