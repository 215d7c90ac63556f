//! Many nodes in one process, for measuring what a fleet costs: each with a connection, a key, a gate, a core and a log
//! of its own.
//!
//! The gate ([`crate::head::authority`]), the core ([`crate::domain::node::Node`]), the folding, the encoding and the
//! signatures are those of an agent, and so are the subjects and the heartbeat. Replaced are:
//!
//! - the keeper: a service is there, and ready, as soon as it is to be started ([`hands`]);
//! - the disk: a log lies in memory and is durable at once ([`rows`]), and is gone with the process;
//! - files: a release has none, and its spec is read once for all nodes ([`specs`]);
//! - the uplink: a node speaks on the bus itself ([`link`]).

mod hands;
mod link;
mod node;
mod rows;
mod specs;
#[cfg(test)]
mod tests;
mod voice;

pub use specs::Specs;

use std::io;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use link::Link;
use node::EmulatedNode;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tracing::debug;

use crate::bus::{BusOptions, DialError};
use crate::domain::event::TrustChanged;
use crate::domain::id::{BootId, FleetId, Kid, NodeId};
use crate::head::authority::Enrolment;
use crate::wire::key::{Keyring, Signer};
use crate::wire::subject::InboxPrefix;

/// Nodes that connect at the same time: more of them would wait for one another in the server's queue.
const CONNECTING_MAX: usize = 128;

/// What all nodes of a process have in common.
#[derive(Debug)]
pub struct Fleet {
    /// Its name.
    pub fleet: FleetId,
    /// The machine's boot.
    pub boot: BootId,
    /// The keys that are trusted.
    pub ring: Arc<Keyring>,
    /// Those that are not any more.
    pub revoked: Vec<Kid>,
    /// The nodes that root enrolled.
    pub roster: Arc<Enrolment>,
    /// The trust document that says so.
    pub trust: TrustChanged,
    /// The specs of the releases that nodes were asked to run.
    pub specs: Specs,
    /// What the nodes record of themselves.
    pub load: Load,
}

/// What each node records without being asked, for measuring who takes it in: that its agent was started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// So many events when it begins.
    pub backlog: u32,
    /// One event each so often.
    pub every: Option<Duration>,
}

/// Where the nodes find their bus.
#[derive(Clone, Debug)]
pub struct Bus {
    /// `nats://HOST:PORT` or `tls://HOST:PORT`.
    pub urls: Vec<String>,
    /// Who vouches for a server at `tls://`, as a PEM file; `None` means the authorities of the system.
    pub ca: Option<PathBuf>,
}

/// Says why nodes cannot be emulated.
#[derive(Debug, thiserror::Error)]
pub enum EmulateError {
    /// A name is none that a node can have on the bus.
    #[error("`{0}` is no name of a node")]
    Name(NodeId),
    /// The bus cannot be reached with what was given.
    #[error("the bus cannot be reached")]
    Dial(#[from] DialError),
    /// The server takes no subscription.
    #[error("node {node} cannot listen")]
    Listen {
        /// Which.
        node: NodeId,
        /// Why.
        source: crate::bus::SubscribeError,
    },
    /// The process cannot have so many connections.
    #[error("{wanted} nodes need more open files than the {limit} that this process may have")]
    Descriptors {
        /// How many nodes are wanted.
        wanted: usize,
        /// How many files may be open.
        limit: u64,
    },
    /// A signal cannot be waited for.
    #[error("the end cannot be waited for")]
    Signal(#[from] io::Error),
}

/// Runs the nodes until `end` is over, shared out among as many threads as there are processors. `up` is called once,
/// when all are connected and listen.
///
/// # Errors
/// When one cannot begin. A bus that goes away later is waited for.
pub async fn run(
    fleet: &Arc<Fleet>,
    nodes: Vec<(NodeId, Signer)>,
    bus: &Bus,
    up: impl FnOnce(),
    end: impl Future<Output = ()>,
) -> Result<(), EmulateError> {
    check_descriptors(nodes.len())?;
    let count = nodes.len();
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(count.max(1));
    let mut shares: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
    for (node, share) in nodes.into_iter().zip((0..threads).cycle()) {
        shares[share].push(node);
    }
    let (listening, mut listen) = watch::channel(0);
    let (ending, is_ending) = watch::channel(false);
    let (failed, mut failures) = mpsc::channel(threads);
    let mut workers = Vec::with_capacity(threads);
    for share in shares {
        let (fleet, bus, failed) = (fleet.clone(), bus.clone(), failed.clone());
        let (listening, is_ending) = (listening.clone(), is_ending.clone());
        let work = move || {
            if let Err(error) = serve(&fleet, share, &bus, &listening, is_ending) {
                // The first failure is told; whoever comes later has nobody to tell.
                drop(failed.try_send(error));
            }
        };
        workers.push(std::thread::Builder::new().name("emulated-nodes".to_owned()).spawn(work)?);
    }
    let mut up = Some(up);
    tokio::pin!(end);
    let ended = loop {
        tokio::select! {
            () = &mut end => break Ok(()),
            Some(error) = failures.recv() => break Err(error),
            Ok(_) = listen.wait_for(|listening| *listening == count), if up.is_some() => {
                if let Some(up) = up.take() {
                    up();
                }
            }
        }
    };
    ending.send_replace(true);
    for worker in workers {
        // A panic was reported by its hook.
        drop(worker.join());
    }
    ended
}

/// Serves one thread's share of the nodes.
fn serve(
    fleet: &Arc<Fleet>,
    nodes: Vec<(NodeId, Signer)>,
    bus: &Bus,
    listening: &watch::Sender<usize>,
    mut is_ending: watch::Receiver<bool>,
) -> Result<(), EmulateError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connecting = Arc::new(Semaphore::new(CONNECTING_MAX));
        let mut running = JoinSet::new();
        for (name, signer) in nodes {
            let principal = name.as_str().parse().map_err(|_| EmulateError::Name(name.clone()))?;
            let inbox = InboxPrefix(principal);
            let mut options = BusOptions::new(bus.urls.clone(), inbox, name.as_str());
            options.tls.ca.clone_from(&bus.ca);
            let node = EmulatedNode::new(fleet.clone(), name, signer);
            let (connecting, listening) = (connecting.clone(), listening.clone());
            running.spawn(async move {
                let turn = connecting.acquire().await;
                let link = Link::open(&options, node).await?;
                drop(turn);
                listening.send_modify(|listening| *listening += 1);
                link.run().await;
                Ok::<(), EmulateError>(())
            });
        }
        loop {
            tokio::select! {
                _ = is_ending.wait_for(|ending| *ending) => return Ok(()),
                Some(Ok(ended)) = running.join_next() => ended?,
            }
        }
    })
}

/// Raises the limit of open files as far as it goes, and says whether that is enough.
fn check_descriptors(nodes: usize) -> Result<(), EmulateError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// What a process has open beside its nodes: a runtime and the standard streams.
    const OTHERS: u64 = 64;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(why) = setrlimit(Resource::Nofile, raised) {
        debug!(%why, "the limit of open files stays as it is");
    }
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < nodes as u64 + OTHERS => {
            Err(EmulateError::Descriptors { wanted: nodes, limit })
        }
        _ => Ok(()),
    }
}
