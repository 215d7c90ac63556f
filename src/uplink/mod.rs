//! The voice of a node: carries envelopes between the bus and the agent.
//!
//! It holds no signing key, decides nothing and remembers nothing: which bus, which filters and what is published
//! comes from the agent at every start of either. Killed at any moment it loses what the agent's log still holds.

mod bus_link;
mod incoming;
mod outgoing;
mod session;

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::ipc::channel;
use crate::ipc::hello::{Incarnation, Part};
use crate::ipc::place::{LockError, Place};
use crate::retry;

use bus_link::BusLink;
use session::SessionEnd;

/// The delay before the agent's socket is tried again; it doubles with each failure.
const REDIAL_FIRST: Duration = Duration::from_millis(20);

/// The longest such delay. An agent is away for longer only when it cannot start.
const REDIAL_MAX: Duration = Duration::from_secs(2);

/// How long an agent may still be served when the uplink was told to stop: the agent ends first, and what it said last
/// may lie unread in the socket.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// Where the uplink finds its agent.
#[derive(Clone, Debug)]
pub struct UplinkOptions {
    /// The state folder of the node; see [`Place`].
    pub state_dir: PathBuf,
}

/// Says why the uplink did not start or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// Another uplink of this node is running, or the lock cannot be taken.
    #[error("the uplink of this state folder may not begin")]
    Lock(#[from] LockError),
    /// The runtime or its signal handlers could not be made.
    #[error("failed to start the runtime of the uplink")]
    Runtime { source: io::Error },
    /// The agent speaks another protocol.
    #[error("the agent cannot be spoken with")]
    Protocol { source: crate::ipc::hello::NoCommonProtocol },
}

/// Runs the uplink until it is told to stop with SIGTERM or SIGINT.
///
/// # Errors
/// Fails when another uplink holds the lock, or the agent speaks a protocol that this build does not know.
pub fn run(options: &UplinkOptions) -> Result<(), UplinkError> {
    let place = Place::of(&options.state_dir);
    let _lock = place.lock(Part::Uplink)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| UplinkError::Runtime { source })?;
    runtime.block_on(async {
        let stop = |kind| signal(kind).map_err(|source| UplinkError::Runtime { source });
        let (mut terminate, mut interrupt) =
            (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
        let (mut bus, socket) = (BusLink::default(), place.uplink_socket());
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let ended = serve(&socket, &mut bus, stop).await;
        bus.close().await;
        ended
    })
}

/// Serves one agent after the other, until it is told to stop. What an agent that has ended said last still goes out.
async fn serve(
    socket: &Path,
    bus: &mut BusLink,
    stop: impl Future<Output = ()>,
) -> Result<(), UplinkError> {
    let incarnation = Incarnation::draw();
    let mut failures = 0_u32;
    let mut stop = pin!(stop);
    loop {
        match channel::connect(socket) {
            Ok((sender, receiver)) => {
                let mut session = pin!(session::serve(sender, receiver, incarnation, bus));
                let ended = tokio::select! {
                    ended = &mut session => ended,
                    () = &mut stop => {
                        drop(timeout(LAST_WORDS_WITHIN, session).await);
                        return Ok(());
                    }
                };
                match ended {
                    SessionEnd::Protocol(source) => return Err(UplinkError::Protocol { source }),
                    // A session that worked starts the delays anew; one that was refused does not.
                    SessionEnd::Served(why) => {
                        tracing::info!(%why, "the agent is gone");
                        failures = 0;
                    }
                    SessionEnd::NoHello => failures = failures.saturating_add(1),
                }
            }
            Err(_) => failures = failures.saturating_add(1),
        }
        let longest = retry::doubled(REDIAL_FIRST, REDIAL_MAX, failures);
        tokio::select! {
            () = sleep(retry::drawn(longest / 2..=longest)) => {}
            () = &mut stop => return Ok(()),
        }
    }
}
