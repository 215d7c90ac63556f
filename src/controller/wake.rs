//! Everything that can wake the controller's task.

use tokio::sync::{mpsc, oneshot};

use super::checks::Measurement;
use super::lease::Standing;
use super::orders::{OrderHeard, OrderKey};
use super::own::Which;
use super::verify::{Arrived, Dropped, Fetched};
use crate::domain::id::{Digest, IntentId, NodeId};
use crate::domain::rollout::Measure;
use crate::store::LogNotice;
use crate::wire::payload::{Ask, Beat, Reply};
use crate::wire::subject::Inbox;

/// How many wakes wait. Beyond it their senders do: what piles up behind them on the bus is dropped, noticed as a gap and
/// fetched.
pub(super) const QUEUE: usize = 256;

/// A way to wake the task.
pub(super) type Waker = mpsc::Sender<Wake>;

/// One wake.
#[derive(Debug)]
pub(super) enum Wake {
    /// Events came live, in the order of the bus.
    Live(Vec<Result<Arrived, Dropped>>),
    /// Heartbeats came, in the order of the bus.
    Beats(Vec<Result<Beat, Dropped>>),
    /// A range was fetched, or was not.
    Fetched {
        /// Whose.
        origin: NodeId,
        /// What came; `None` when nobody answered in time.
        outcome: Option<Result<Fetched, Dropped>>,
    },
    /// A question or a wish came.
    Call {
        /// Where an answer goes, when it is an inbox at all.
        reply: Option<Inbox>,
        /// The envelope.
        bytes: Vec<u8>,
    },
    /// A face in this process asks; it judged itself whether it may.
    Asked(Ask, oneshot::Sender<Reply>),
    /// An order was answered, or was not.
    Ordered(OrderKey, OrderHeard),
    /// Another controller gave the signed wish behind a rollout.
    Wish(IntentId, Vec<u8>),
    /// The last lines of an instance that failed came from its node, or did not.
    Tail(Digest, Option<Vec<u8>>),
    /// A check was measured.
    Measured(Measurement, (Measure, String)),
    /// One of the logs has news.
    Store(Which, LogNotice),
    /// The lease has news.
    Lease(Standing),
    /// The bus is there, from a new connection on.
    Connected,
    /// The controller should end.
    Terminate,
}
