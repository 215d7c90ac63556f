//! Puts an agent together: keys, log, replay, sockets; then hands everything to its task.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{error, info};

use super::authority::Authority;
use super::folder::StateFolder;
use super::launcher::Launchers;
use super::logs::LogThread;
use super::queries::Queries;
use super::recorder::Recorder;
use super::services::Services;
use super::setup::{BusSetup, NodeSetup};
use super::task::{Agent, Parts};
use super::voice::Voice;
use super::wake::{QUEUE, Wake, Waker};
use super::{clock, keeper_link, keyfile, local, uplink_link};
use crate::domain::event::{Context, EpochReason, Event, LogOpened, PartStarted, Predecessor};
use crate::domain::id::{BootId, EpochId, FleetId, NodeId};
use crate::domain::input::Decision;
use crate::domain::node::Node;
use crate::domain::time::UnixMicros;
use crate::ipc::hello::{Incarnation, Part};
use crate::ipc::place::Place;
use crate::ipc::uplink::{BusConfig, BusCredentials};
use crate::store::{self, Log, LogNotice, LogOptions, Opened, Writer};
use crate::wire::fold::{self, Broken, Fold};

/// How the agent is started.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// The state folder.
    pub state: PathBuf,
}

/// Runs the agent of a state folder until it is told to end.
///
/// # Errors
/// When the folder, the keys or the log cannot be used; the keeper starts it again.
pub fn run(options: AgentOptions) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: AgentOptions) -> anyhow::Result<()> {
    let state = StateFolder::new(&options.state);
    let place = Place::of(&options.state);
    let _lock = place.lock(Part::Agent)?;
    let setup = NodeSetup::read(&state)?;
    let boot = clock::boot_id()?;
    let (trust, ring) = keyfile::load_trust(&state)?;
    let signer = Arc::new(keyfile::load_key(&keyfile::KeyName::Node.path(&state))?);
    let note_key = Box::new(signer.for_notes(&note_name(&setup.fleet, &setup.node))?);

    let (waker, wakes) = mpsc::channel(QUEUE);
    let writer = Writer::start()?;
    let opened = open_log(&state, &setup, &writer, note_key, waker.clone())?;
    let (log, node, epoch) = fold_log(opened, &state)?;
    let away_since = epoch.last_at;

    let mut services = Services::new(&state, &setup, rustix::process::geteuid().as_raw());
    services.recall(&node);
    let mut authority =
        Authority::new(setup.fleet.clone(), setup.node.clone(), ring, trust.revoked.clone());
    authority.raise_floor(epoch.last_at);
    let incarnation = Incarnation::draw();
    let bus = setup.bus.as_ref().map(|bus| bus_config(bus, &setup)).transpose()?;
    let agent = Agent::new(Parts {
        launchers: Launchers::new(&state, &setup)?,
        logs: start_logs(waker.clone())?,
        recorder: Recorder::new(log, signer.clone(), setup.node.clone(), boot),
        voice: Voice::new(setup.fleet.clone(), setup.node.clone(), bus),
        queries: Queries::new(place.clone()),
        setup,
        boot,
        node,
        services,
        authority,
        signer,
        waker: waker.clone(),
        away_since,
    });
    let agent = begin(agent, epoch, boot);

    let uids = uplink_uids();
    uplink_link::listen(&place.uplink_socket(), incarnation, uids, waker.clone())?;
    local::listen(&place.local_socket(), incarnation, waker.clone())?;
    tokio::spawn(keeper_link::run(place.keeper_socket(), incarnation, waker.clone()));
    tokio::spawn(terminate(waker));
    agent.run(wakes).await;
    // Dropped last: it commits what was appended.
    drop(writer);
    Ok(())
}

/// Writes the first events of this life: the epoch, if it is new, and that the agent is here.
fn begin(mut agent: Agent, epoch: Epoch, boot: BootId) -> Agent {
    let now = clock::now();
    let mut events = Vec::new();
    if let Some(reason) = epoch.begins {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let opened = LogOpened { reason, predecessor: epoch.predecessor, version };
        events.push((Context::default(), Event::LogOpened(opened)));
        if reason != EpochReason::FirstStart {
            let parts = fold::baseline(&agent.node);
            events.extend(parts.into_iter().map(|part| (Context::default(), part)));
        }
    }
    let started = PartStarted {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: 0,
        pid: std::process::id(),
        uid: rustix::process::geteuid().as_raw(),
        boot,
        after: None,
        away_ms: match epoch.begins {
            Some(EpochReason::FirstStart) => 0,
            _ => now.at.ms_since(epoch.last_at),
        },
    };
    events.push((Context::default(), Event::AgentStarted(started)));
    agent.commit(now, Decision { events, effects: Vec::new() });
    agent.adopt_new_services();
    agent.follow_up();
    agent
}

/// What was learnt of the epoch while its log was opened and folded.
struct Epoch {
    /// Why it begins, when it does.
    begins: Option<EpochReason>,
    predecessor: Option<Predecessor>,
    /// When the last event was written.
    last_at: UnixMicros,
}

fn open_log(
    state: &StateFolder,
    setup: &NodeSetup,
    writer: &Writer,
    signer: Box<dyn crate::wire::note::NoteSigner>,
    waker: Waker,
) -> anyhow::Result<Opened> {
    let options = LogOptions::new(state.log(), setup.fleet.clone(), setup.node.clone());
    let told = move |notice: LogNotice| {
        // The writer waits for the agent here, never the agent for the writer.
        drop(waker.blocking_send(Wake::Store(notice)));
    };
    Ok(Log::open(options, writer, Some(signer), told)?)
}

/// Folds the rows into the state; where they do not follow, a new epoch begins on what was folded.
fn fold_log(opened: Opened, state: &StateFolder) -> anyhow::Result<(Log, Node, Epoch)> {
    let fresh = || EpochId::new(clock::now().at.millis(), clock::entropy() as u16);
    match opened {
        Opened::Continues(log) => {
            let mut node = Node::default();
            let mut fold = Fold::new(&mut node);
            log.replay(|seq, row| fold.row(seq, row))?;
            let (last_at, broken) = (fold.last_at, fold.broken);
            let Some((seq, why)) = broken else {
                return Ok((log, node, Epoch { begins: None, predecessor: None, last_at }));
            };
            if let Broken::Newer(why) = why {
                anyhow::bail!("event {seq} of the log in {}: {why}", state.log().display());
            }
            error!(%seq, ?why, "the log does not follow; a new epoch begins on the state before it");
            let predecessor = log.begin_epoch(fresh(), std::time::Duration::from_secs(10))?;
            let epoch = Epoch {
                begins: Some(EpochReason::Integrity),
                predecessor: predecessor.map(predecessor_of),
                last_at,
            };
            Ok((log, node, epoch))
        }
        Opened::NeedsEpoch(vacant) => {
            let mut node = Node::default();
            let (reason, last_at) = match vacant.reason() {
                store::EpochReason::FirstStart => (EpochReason::FirstStart, clock::now().at),
                store::EpochReason::Damaged { why } => {
                    error!(why, "the log was damaged: the files are set aside, a new epoch begins");
                    let mut fold = Fold::new(&mut node);
                    vacant.replay(|at, row| fold.row(at.seq, row))?;
                    (EpochReason::Integrity, fold.last_at)
                }
            };
            let predecessor = vacant.predecessor().map(predecessor_of);
            let log = vacant.begin(fresh())?;
            Ok((log, node, Epoch { begins: Some(reason), predecessor, last_at }))
        }
    }
}

fn predecessor_of(known: store::Predecessor) -> Predecessor {
    Predecessor { epoch: known.epoch, size: known.size, root: known.root }
}

/// The name under which a node signs the heads of its log; each names its epoch in its text.
pub(crate) fn note_name(fleet: &FleetId, node: &NodeId) -> String {
    format!("smgr/{fleet}/{node}")
}

fn bus_config(bus: &BusSetup, setup: &NodeSetup) -> anyhow::Result<BusConfig> {
    let credentials = match &bus.nkey {
        Some(path) => BusCredentials::NkeySeed(std::fs::read_to_string(path)?.trim().to_owned()),
        None => BusCredentials::Anonymous,
    };
    Ok(BusConfig {
        urls: bus.urls.clone(),
        credentials,
        ca: None,
        client: None,
        principal: setup.node.as_str().parse()?,
        retain_events: bus.own_server.then(|| setup.fleet.clone()),
    })
}

fn start_logs(waker: Waker) -> std::io::Result<LogThread> {
    LogThread::start(move |notice| {
        // The log thread waits for the agent here, and services for the log thread: nothing is lost.
        drop(waker.blocking_send(Wake::Logs(notice)));
    })
}

/// Whose uplink is spoken to: the account of its own, or this one where there are no accounts.
fn uplink_uids() -> Vec<u32> {
    let own = rustix::process::geteuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let account = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some("smgr-uplink")).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    std::iter::once(own).chain(account).collect()
}

async fn terminate(waker: Waker) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    if terminate.recv().await.is_some() {
        drop(waker.send(Wake::Terminate).await);
    }
}

/// Two pipes, a pidfd and a socket for each instance do not fit the usual 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let hard = getrlimit(Resource::Nofile).maximum;
    if let Err(why) = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }) {
        info!(%why, "the limit of open files stays as it is");
    }
}
