//! The local socket: transport for signed envelopes, and readings for those whom its permissions let in.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tracing::{debug, error};

use super::outlet::Outlet;
use super::wake::{Wake, Waker};
use crate::ipc::channel::{Listener, Receiver, Sender};
use crate::ipc::frame::Packet;
use crate::ipc::hello::{Hello, Incarnation, Part};
use crate::ipc::local::{LocalAnswer, LocalRequest, RequestId};
use crate::ipc::socket::Peer;

/// People and jobs at one machine's socket at one time.
const CONNECTIONS: usize = 64;

/// Answers that wait for a slow caller; one who does not read is cut off.
const ANSWERS: usize = 1024;

/// How long a caller may take to read before it is cut off.
const READ_DEADLINE: Duration = Duration::from_secs(10);

/// Where to answer somebody at the local socket.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Straight to the socket where nothing waits: what was said last before the agent ends is with the kernel then.
    answers: Arc<Outlet>,
    /// Told when an answer was lost: what is missing of an answer must not look like all of it.
    lost: Arc<Notify>,
}

impl Caller {
    /// Queues an answer. One who does not read loses it, and the connection with it.
    pub(super) fn answer(&self, id: RequestId, bytes: Vec<u8>) {
        self.push(LocalAnswer::Answer { id, bytes: ByteBuf::from(bytes) });
    }

    /// Ends a request that was understood.
    pub(super) fn end(&self, id: RequestId) {
        self.push(LocalAnswer::End { id });
    }

    /// Ends a request that was not.
    pub(super) fn refuse(&self, id: RequestId, code: String, why: String) {
        self.push(LocalAnswer::Refused { id, code, why });
    }

    fn push(&self, answer: LocalAnswer) {
        let packet = match Packet::new(&answer) {
            Ok(packet) => packet,
            Err(error) => {
                error!(%error, "an answer at the local socket does not fit");
                return self.lost.notify_one();
            }
        };
        if self.answers.send(packet).is_err() {
            debug!("a caller at the local socket does not read its answers");
            self.lost.notify_one();
        }
    }
}

/// Serves the socket for as long as the agent lives.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn listen(path: &Path, incarnation: Incarnation, waker: Waker) -> std::io::Result<()> {
    let listener = Listener::bind(path)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (sender, receiver, peer) = listener.next().await;
            let waker = waker.clone();
            tokio::spawn(async move {
                let _place = place;
                if let Err(error) = converse(sender, receiver, peer, incarnation, &waker).await {
                    debug!(%error, "a caller at the local socket is gone");
                }
            });
        }
    });
    Ok(())
}

async fn converse(
    sender: Sender,
    mut receiver: Receiver,
    peer: Peer,
    incarnation: Incarnation,
    waker: &Waker,
) -> anyhow::Result<()> {
    debug!(uid = peer.uid, pid = peer.pid, "a caller at the local socket");
    let hello = LocalAnswer::Hello(Hello::of(Part::Agent, incarnation));
    timeout(READ_DEADLINE, sender.send(&hello)).await??;
    let (outlet, sending) = Outlet::new(sender, ANSWERS, Some(READ_DEADLINE));
    let lost = Arc::new(Notify::new());
    let caller = Caller { answers: Arc::new(outlet), lost: lost.clone() };
    let receiving = async {
        loop {
            let wake = match receiver.receive::<LocalRequest>().await?.message {
                LocalRequest::Envelope { id, bytes } => {
                    Wake::LocalEnvelope { caller: caller.clone(), id, bytes }
                }
                LocalRequest::Read { id, bytes } => {
                    Wake::LocalRead { caller: caller.clone(), id, bytes }
                }
                // Answers of a cancelled request find nobody and are dropped; nothing is held for it.
                LocalRequest::Cancel { .. } => continue,
            };
            waker.send(wake).await?;
        }
    };
    tokio::select! {
        ended = sending => Ok(ended?),
        ended = receiving => ended,
        () = lost.notified() => anyhow::bail!("it did not read its answers"),
    }
}
