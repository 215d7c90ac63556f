//! From the bus to the agent: drops at once what can be no envelope, and what the agent does not take.

use std::sync::{Arc, Mutex, PoisonError};

use serde_bytes::ByteBuf;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::bus::{Connection, Delivered, Subscription};
use crate::ipc::channel::Sender;
use crate::ipc::socket::SocketError;
use crate::ipc::uplink::{CREDIT_AT_START, CREDIT_MAX, DropCounts, FromUplink, Ticket};
use crate::wire::envelope::{ENVELOPE_BYTES_MAX, TRUST_BYTES_MAX};
use crate::wire::subject::Filter;

/// How many messages wait for the agent's credit. With the size cap it bounds the memory of this part.
const WAITING_MAX: usize = 256;

/// The first bytes of every envelope: an array of five, and the version.
const ENVELOPE_HEAD: [u8; 2] = [0x95, 0x01];

/// A message on its way to the agent.
#[derive(Debug)]
pub(super) struct Incoming {
    ticket: Ticket,
    message: Delivered,
}

/// What may still be delivered, and the queue for it.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    queue: mpsc::Sender<Incoming>,
    credit: Arc<Semaphore>,
    drops: Arc<Drops>,
}

/// Counts what was dropped since it was last told.
#[derive(Debug, Default)]
struct Drops {
    counts: Mutex<Tally>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Tally {
    untold: DropCounts,
    /// How much of what the bus dropped before we saw it is counted already.
    overflow_seen: u64,
}

impl Delivery {
    /// Returns the two ends: one to hand messages to, one that sends them while there is credit.
    pub(super) fn new(
        sender: Sender,
    ) -> (Self, impl Future<Output = SocketError> + Send + 'static) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let granted = usize::try_from(CREDIT_AT_START).expect("a small number fits");
        let credit = Arc::new(Semaphore::new(granted));
        let deliver = deliver(waiting, credit.clone(), sender);
        (Self { queue, credit, drops: Arc::default() }, deliver)
    }

    /// Adds what the agent granted.
    pub(super) fn grant(&self, count: u32) {
        let room = (CREDIT_MAX as usize).saturating_sub(self.credit.available_permits());
        self.credit.add_permits(room.min(count as usize));
    }

    /// Passes on what comes for one filter, for as long as it comes.
    pub(super) async fn forward(
        self,
        mut subscription: Subscription,
        ticket: Ticket,
        filter: Filter,
        connection: Connection,
    ) {
        let bytes_max = match filter {
            Filter::Trust { .. } => TRUST_BYTES_MAX,
            Filter::Calls { .. }
            | Filter::Orders { .. }
            | Filter::Requests { .. }
            | Filter::Events { .. }
            | Filter::Beats { .. }
            | Filter::Log { .. }
            | Filter::Copies { .. }
            | Filter::Receipts { .. } => ENVELOPE_BYTES_MAX,
        };
        while let Some(message) = subscription.next().await {
            self.drops.see_overflow(connection.overflowed());
            let payload = message.payload();
            if payload.len() > bytes_max {
                self.drops.count(|counts| counts.oversize += 1);
            } else if !payload.starts_with(&ENVELOPE_HEAD) {
                self.drops.count(|counts| counts.malformed += 1);
            } else if self.queue.try_send(Incoming { ticket, message }).is_err() {
                // Never waits here: what piles up behind would be unread, unbounded in size and stale.
                self.drops.count(|counts| counts.overflow += 1);
            }
        }
    }

    /// Waits until something was dropped that was not told.
    pub(super) async fn dropped(&self) {
        self.drops.changed.notified().await;
    }

    /// Returns what was dropped since the last call.
    pub(super) fn take_drops(&self) -> DropCounts {
        std::mem::take(&mut self.drops.tally().untold)
    }
}

impl Drops {
    fn count(&self, add: impl FnOnce(&mut DropCounts)) {
        add(&mut self.tally().untold);
        self.changed.notify_one();
    }

    fn see_overflow(&self, total: u64) {
        let mut tally = self.tally();
        if total > tally.overflow_seen {
            tally.untold.overflow += total - tally.overflow_seen;
            tally.overflow_seen = total;
            self.changed.notify_one();
        }
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what waits, one credit each. Ends only when the agent is gone.
async fn deliver(
    mut waiting: mpsc::Receiver<Incoming>,
    credit: Arc<Semaphore>,
    sender: Sender,
) -> SocketError {
    loop {
        let (Ok(permit), Some(Incoming { ticket, message })) =
            (credit.acquire().await, waiting.recv().await)
        else {
            return SocketError::Closed;
        };
        permit.forget();
        let frame = FromUplink::Delivered {
            ticket,
            subject: message.subject().to_owned(),
            reply: message.reply().map(str::to_owned),
            bytes: ByteBuf::from(message.into_payload()),
        };
        match sender.send(&frame).await {
            Ok(()) => {}
            // A subject of absurd length; the next message is another matter.
            Err(SocketError::Frame(error)) => tracing::warn!(%error, "a message was dropped"),
            Err(error) => return error,
        }
    }
}
