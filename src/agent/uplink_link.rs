//! The uplink's connection, seen from the agent: accepts one uplink at a time and carries frames both ways.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::outlet::Outlet;
use super::wake::{Wake, Waker};
use crate::ipc::channel::{Listener, Receiver, Sender};
use crate::ipc::hello::{Hello, Incarnation, Part};
use crate::ipc::uplink::{FromUplink, ToUplink};

/// Frames on their way to the uplink. One that lets them pile up is cut off.
const FRAMES: usize = 4096;

/// Connections that have not introduced themselves; others are closed at once.
const STRANGERS_MAX: usize = 16;

/// How long one who connects may take to introduce itself.
const HELLO_MAX: Duration = Duration::from_secs(5);

/// Accepts uplinks for as long as the agent lives; a newer one takes the place of an older one once it has
/// introduced itself, so that garbage displaces nobody.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn listen(
    path: &Path,
    incarnation: Incarnation,
    uids: Vec<u32>,
    waker: Waker,
) -> std::io::Result<()> {
    let listener = Listener::bind(path)?;
    tokio::spawn(async move {
        let current: Arc<Mutex<Option<AbortHandle>>> = Arc::default();
        let places = Arc::new(Semaphore::new(STRANGERS_MAX));
        loop {
            let (sender, receiver, peer) = listener.next().await;
            if !uids.contains(&peer.uid) {
                warn!(uid = peer.uid, "refused an uplink of a foreign account");
                continue;
            }
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let (waker, current) = (waker.clone(), current.clone());
            tokio::spawn(async move {
                let receiver = match introduced(&sender, receiver, incarnation).await {
                    Ok(receiver) => receiver,
                    Err(why) => return warn!(%why, "one who is no uplink was turned away"),
                };
                drop(place);
                let speaking = tokio::spawn(async move {
                    if let Err(error) = converse(sender, receiver, &waker).await {
                        warn!(%error, "lost the uplink");
                    }
                    drop(waker.send(Wake::UplinkDown).await);
                });
                let older = current
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .replace(speaking.abort_handle());
                if let Some(older) = older {
                    older.abort();
                }
            });
        }
    });
    Ok(())
}

/// Says hello and demands one.
async fn introduced(
    sender: &Sender,
    mut receiver: Receiver,
    incarnation: Incarnation,
) -> anyhow::Result<Receiver> {
    let greeting = async {
        sender.send(&ToUplink::Hello(Hello::of(Part::Agent, incarnation))).await?;
        let FromUplink::Hello(hello) = receiver.receive().await?.message else {
            anyhow::bail!("the uplink did not begin with a hello");
        };
        hello.agree()?;
        info!(build = hello.build, "the uplink is here");
        Ok(())
    };
    tokio::time::timeout(HELLO_MAX, greeting).await??;
    Ok(receiver)
}

async fn converse(sender: Sender, mut receiver: Receiver, waker: &Waker) -> anyhow::Result<()> {
    let (outlet, sending) = Outlet::new(sender, FRAMES, None);
    waker.send(Wake::UplinkUp { outlet }).await?;
    let receiving = async {
        loop {
            let frame = receiver.receive::<FromUplink>().await?.message;
            waker.send(Wake::Uplink { frame }).await?;
        }
    };
    tokio::select! {
        ended = sending => Ok(ended?),
        ended = receiving => ended,
    }
}
