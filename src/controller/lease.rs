//! The lease: asked for and renewed beside the task, which is told when it is held and when it is not any more.

use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::wake::{Wake, Waker};
use crate::bus::{Connection, Hold, LeaseError, Leases};
use crate::domain::id::{FleetId, NodeId};
use crate::retry;

/// How this controller stands to the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It holds it, since the step that has this number. Somebody else may have held it before.
    Held { taken: u64 },
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
    let mut bus = connection.state();
    let mut hold: Option<(Hold, Instant)> = None;
    let mut told = None;
    loop {
        // Counted from before the question: the server's time begins later than ours.
        let asked = Instant::now();
        // Nothing is asked of a bus that is not there: answers to what was asked before the first connection never come.
        let is_up = bus.borrow_and_update().is_up();
        let answer = match is_up {
            false => Err("the bus is away".to_owned()),
            true => ask(&Leases::new(&connection, &fleet, controller.clone(), ttl), hold).await,
        };
        let standing = match answer {
            Ok(Ok(held)) => {
                hold = Some((held, asked));
                Some(Standing::Held { taken: held.taken() })
            }
            Ok(Err(by)) => {
                hold = None;
                Some(Standing::Away { by, why: "another controller holds the lease".to_owned() })
            }
            Err(why) => {
                debug!(why, "the lease could not be asked for");
                let over = hold.is_none_or(|(_, since)| since.elapsed() >= ttl);
                over.then(|| {
                    hold = None;
                    Standing::Away { by: None, why }
                })
            }
        };
        if let Some(standing) = standing {
            let is_news = told.as_ref() != Some(&standing);
            if is_news {
                match &standing {
                    Standing::Away { by: None, why } => warn!(why, "nobody can tell who leads"),
                    standing => info!(?standing, "the lease"),
                }
                told = Some(standing.clone());
            }
            // Told again each time: a controller that gave way to a higher term leads again when it holds the lease still.
            // That is no news, and must not wait behind what nodes say: the lease would end meanwhile.
            let is_heard = match is_news {
                true => waker.send(Wake::Lease(standing)).await.is_ok(),
                false => {
                    !matches!(waker.try_send(Wake::Lease(standing)), Err(TrySendError::Closed(_)))
                }
            };
            if !is_heard {
                return;
            }
        }
        let pause = ttl / 3;
        tokio::select! {
            () = sleep(retry::drawn(pause * 9 / 10..=pause)) => {}
            Ok(()) = bus.changed() => {}
            _ = end.wait_for(|end| *end) => break,
        }
    }
    if let Some((held, _)) = hold
        && let Err(error) = Leases::new(&connection, &fleet, controller, ttl).give_back(held).await
    {
        debug!(%error, "the lease was not given back; it ends by itself");
    }
}

/// Takes or renews the lease: it is held, somebody else holds it, or nobody can tell.
async fn ask(
    leases: &Leases,
    hold: Option<(Hold, Instant)>,
) -> Result<Result<Hold, Option<NodeId>>, String> {
    let answer = match hold {
        Some((held, _)) => leases.renew(held).await,
        None => leases.take().await,
    };
    match answer {
        Ok(held) => Ok(Ok(held)),
        Err(LeaseError::Held { by }) => Ok(Err(by)),
        Err(error) => {
            let why = std::error::Error::source(&error).map(ToString::to_string);
            Err(why.map_or_else(|| error.to_string(), |why| format!("{error}: {why}")))
        }
    }
}

/// Returns the first term from `least` on that belongs to the controller at this place among so many: each has every so
/// many-th one.
///
/// The step that took the lease counts from 1 again when its bucket is made anew, and whoever led before may not have been
/// heard yet. Two who know nothing of each other do not lead in one term all the same.
pub(super) fn own_term(least: u64, place: usize, count: usize) -> u64 {
    let number = |size: usize| u64::try_from(size).expect("controllers are few");
    let count = number(count).max(1);
    let ahead = (number(place) % count + count - least % count) % count;
    least.saturating_add(ahead)
}

/// Returns the two ends of the wish to end.
pub(super) fn ending() -> (watch::Sender<bool>, watch::Receiver<bool>) {
    watch::channel(false)
}

/// A queue of the task and its sender.
pub(super) fn queue() -> (Waker, mpsc::Receiver<Wake>) {
    mpsc::channel(super::wake::QUEUE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_controllers_never_lead_in_one_term_whatever_they_know() {
        for count in 1..5 {
            for (one, other) in (0..count).flat_map(|one| (0..one).map(move |it| (one, it))) {
                let terms = |place| (0..20).map(move |least| own_term(least, place, count));
                assert!(terms(one).all(|term| terms(other).all(|it| it != term)));
            }
            let is_near = |least: u64| {
                (0..count).all(|place| {
                    (0..count as u64).contains(&(own_term(least, place, count) - least))
                })
            };
            assert!((0..20).all(is_near));
        }
        assert_eq!((own_term(7, 0, 1), own_term(7, 0, 0)), (7, 7));
    }
}
