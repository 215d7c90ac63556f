//! The connection to the keeper: dials, says hello, carries frames both ways, and dials again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{debug, warn};

use super::asked::SILENCE_MAX;
use super::outlet::Outlet;
use super::wake::{Wake, Waker};
use crate::ipc::channel;
use crate::ipc::hello::{Hello, Incarnation, Part};
use crate::ipc::keeper::{FromKeeper, ToKeeper};
use crate::retry;

/// Operations under way to the keeper: a start of every service of a full node.
const OPERATIONS: usize = 8192;

/// The keeper is started again within milliseconds, so dialling begins fast and backs off.
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Dials the keeper for as long as the agent lives.
pub(super) async fn run(path: PathBuf, incarnation: Incarnation, waker: Waker) {
    let mut failures = 0_u32;
    loop {
        match converse(&path, incarnation, &waker).await {
            Ok(()) => failures = 0,
            Err(why) => debug!(%why, "no keeper yet"),
        }
        if waker.is_closed() {
            return;
        }
        let longest = retry::doubled(RETRY_FIRST, RETRY_MAX, failures);
        tokio::time::sleep(retry::drawn(longest / 2..=longest)).await;
        failures = failures.saturating_add(1);
    }
}

/// Speaks with one keeper until it is gone. Fails when there was none.
async fn converse(path: &Path, incarnation: Incarnation, waker: &Waker) -> anyhow::Result<()> {
    let (sender, mut receiver) = channel::connect(path)?;
    sender.send(&ToKeeper::Hello(Hello::of(Part::Agent, incarnation))).await?;
    let first = tokio::time::timeout(SILENCE_MAX, receiver.receive()).await??;
    let FromKeeper::Hello { hello, trees, isolation } = first.message else {
        anyhow::bail!("the keeper did not begin with a hello");
    };
    hello.agree()?;
    let (outlet, sending) = Outlet::new(sender, OPERATIONS);
    let up = Wake::KeeperUp { hello, trees, isolation, outlet };
    if waker.send(up).await.is_err() {
        return Ok(());
    }
    let receiving = async {
        loop {
            let received = match receiver.receive::<FromKeeper>().await {
                Ok(received) => received,
                Err(error) => {
                    warn!(%error, "lost the keeper");
                    return;
                }
            };
            let wake = Wake::Keeper { frame: received.message, descriptors: received.descriptors };
            if waker.send(wake).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        ended = sending => debug!(?ended, "the keeper is gone"),
        () = receiving => {}
    }
    // The queue of the agent is drained in order, so nothing of the old keeper follows this.
    drop(waker.send(Wake::KeeperDown).await);
    Ok(())
}
