//! The lease: asked for and renewed beside the task, which is told when it is held and when it is not any more.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use super::wake::{Wake, Waker};
use crate::bus::{Connection, Hold, LeaseError, Leases};
use crate::domain::id::{FleetId, NodeId};
use crate::retry;

/// How this controller stands to the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It holds it.
    Held,
    /// Somebody else does, or nobody can tell.
    Away {
        /// Who, when that is known.
        by: Option<NodeId>,
        /// In words.
        why: String,
    },
}

/// Keeps asking, three times within each life of the lease, until nobody listens or it is told to end; then gives it
/// back.
pub(super) async fn keep(
    connection: Connection,
    (fleet, controller): (FleetId, NodeId),
    ttl: Duration,
    waker: Waker,
    mut end: watch::Receiver<bool>,
) {
    let leases = Leases::new(&connection, &fleet, controller, ttl);
    let mut hold: Option<(Hold, Instant)> = None;
    let mut told = None;
    loop {
        // Counted from before the question: the server's time begins later than ours.
        let asked = Instant::now();
        let answer = match hold {
            Some((held, _)) => leases.renew(held).await,
            None => leases.take().await,
        };
        let standing = match answer {
            Ok(held) => {
                hold = Some((held, asked));
                Some(Standing::Held)
            }
            Err(LeaseError::Held { by }) => {
                hold = None;
                Some(Standing::Away { by, why: "another controller holds the lease".to_owned() })
            }
            Err(error) => {
                debug!(%error, "the lease could not be asked for");
                let over = hold.is_none_or(|(_, since)| since.elapsed() >= ttl);
                over.then(|| {
                    hold = None;
                    Standing::Away { by: None, why: error.to_string() }
                })
            }
        };
        if let Some(standing) = standing.filter(|standing| told.as_ref() != Some(standing)) {
            info!(?standing, "the lease");
            told = Some(standing.clone());
            if waker.send(Wake::Lease(standing)).await.is_err() {
                return;
            }
        }
        let pause = ttl / 3;
        tokio::select! {
            () = sleep(retry::drawn(pause * 9 / 10..=pause)) => {}
            _ = end.wait_for(|end| *end) => break,
        }
    }
    if let Some((held, _)) = hold
        && let Err(error) = leases.give_back(held).await
    {
        debug!(%error, "the lease was not given back; it ends by itself");
    }
}

/// Returns the two ends of the wish to end.
pub(super) fn ending() -> (watch::Sender<bool>, watch::Receiver<bool>) {
    watch::channel(false)
}

/// A queue of the task and its sender.
pub(super) fn queue() -> (Waker, mpsc::Receiver<Wake>) {
    mpsc::channel(super::wake::QUEUE)
}
