//! Puts an agent together: keys, log, replay, sockets; then hands everything to its task.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::info;

use super::alarm::Alarm;
use super::authority::{Authority, Enrolment};
use super::execute::exit_of;
use super::folder::StateFolder;
use super::history::{self, Epoch};
use super::launcher::Launchers;
use super::logs::LogThread;
use super::queries::Queries;
use super::recorder::Recorder;
use super::services::Services;
use super::setup::{BusSetup, NodeSetup};
use super::task::{Agent, Parts};
use super::voice::Voice;
use super::wake::{QUEUE, Wake, Waker};
use super::{clock, keeper_link, keyfile, local, trust, uplink_link};
use crate::domain::event::{
    Cause, Context, EpochReason, Event, IntentExecuted, LogOpened, Outcome, PartStarted,
    TrustChanged,
};
use crate::domain::id::BootId;
use crate::domain::input::Decision;
use crate::domain::intent::Action;
use crate::domain::node::Node;
use crate::domain::time::UnixMicros;
use crate::head::note_name;
use crate::ipc::hello::{Before, Incarnation, Part};
use crate::ipc::place::Place;
use crate::ipc::uplink::{BusConfig, BusCredentials};
use crate::store::Writer;
use crate::wire::fold::{self};

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
    let (trust, ring, digest) = keyfile::load_named_trust(&state)?;
    let signer = Arc::new(keyfile::load_key(&keyfile::KeyName::Node.path(&state))?);
    let note_key = Box::new(signer.for_notes(&note_name(&setup.fleet, &setup.node))?);

    let (waker, mut wakes) = mpsc::channel(QUEUE);
    let writer = Writer::start()?;
    let opened = history::open(&state, &setup, &writer, note_key, waker.clone())?;
    let (log, node, mut epoch) = history::fold(opened, &state)?;
    let trust_in_force = TrustChanged { version: trust.version, digest };
    let trust_changed = trust::succeed(&trust, &trust_in_force, &setup.fleet, &node)?;
    let last_events = std::mem::take(&mut epoch.last_events);
    let restarts = std::mem::take(&mut epoch.restarts);
    let before = Before::told();
    let away_since = before.map_or(epoch.last_at, |before| UnixMicros(before.unix_us));

    let ruler = state.ruler()?;
    let mut services = Services::new(&state, &setup, ruler);
    services.recall(&node);
    services.write_down_set(&node);
    let mut authority =
        Authority::new(setup.fleet.clone(), setup.node.clone(), ring, trust.revoked.clone());
    authority.enrol(Enrolment::from(trust.nodes.clone()));
    authority.raise_floor(epoch.last_at);
    let incarnation = Incarnation::draw();
    let bus = setup.bus.as_ref().map(|bus| bus_config(bus, &setup)).transpose()?;
    let agent = Agent::new(Parts {
        launchers: Launchers::new(&state, &setup)?,
        logs: start_logs(waker.clone())?,
        recorder: Recorder::new(
            log,
            signer.clone(),
            setup.node.clone(),
            boot,
            std::mem::take(&mut epoch.told),
        ),
        voice: Voice::new(setup.fleet.clone(), setup.node.clone(), bus),
        queries: Queries::new(state.clone(), place.clone()),
        setup,
        boot,
        node,
        services,
        authority,
        signer,
        waker: waker.clone(),
        away_since,
        last_events,
        restarts,
    });
    let trust_changed = trust_changed.then_some(trust_in_force);
    let mut agent = begin(agent, &epoch, before, boot, trust_changed);
    agent.apply_at_boot(&mut wakes).await;

    let uids = uplink_uids();
    uplink_link::listen(&place.uplink_socket(), incarnation, uids, waker.clone())?;
    local::listen(&place.local_socket(), incarnation, waker.clone())?;
    if rustix::process::geteuid().as_raw() != ruler {
        // The uplink has another account; who is spoken to is decided by what the kernel says of who connects.
        set_permissions(place.uplink_socket(), Permissions::from_mode(0o666))?;
        // Readings are for the group of this account.
        set_permissions(place.local_socket(), Permissions::from_mode(0o660))?;
    }
    tokio::spawn(keeper_link::run(place.keeper_socket(), incarnation, waker.clone()));
    tokio::spawn(terminate(waker));
    let ended = agent.run(wakes, Alarm::new()?).await;
    // Dropped last: it commits what was appended.
    drop(writer);
    Ok(ended?)
}

/// Writes the first events of this life: the epoch, if it is new, and that the agent is here.
fn begin(
    mut agent: Agent,
    epoch: &Epoch,
    before: Option<Before>,
    boot: BootId,
    trust: Option<TrustChanged>,
) -> Agent {
    let now = clock::now();
    let mut events = Vec::new();
    if let Some(reason) = epoch.begins {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let opened = LogOpened { reason, predecessor: epoch.predecessor.clone(), version };
        let opened = Event::LogOpened(opened);
        // The baseline is the state with the epoch begun, since whoever replays takes it for the whole.
        let mut node = agent.node.clone();
        node.evolve(now.at, &Context::default(), &opened).expect("an epoch begins in any state");
        events.push((Context::default(), opened));
        if reason != EpochReason::FirstStart {
            let parts = fold::baseline(&node);
            events.extend(parts.into_iter().map(|part| (Context::default(), part)));
            events.extend(unfinished_shutdowns(&node));
        }
    }
    let started = PartStarted {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: 0,
        pid: std::process::id(),
        uid: rustix::process::geteuid().as_raw(),
        boot,
        after: before.map(|before| exit_of(before.exit)),
        away_ms: match epoch.begins {
            Some(EpochReason::FirstStart) => 0,
            _ => now.at.ms_since(agent.away_since),
        },
    };
    events.push((Context::default(), Event::AgentStarted(started)));
    // Before anything that it permits.
    events.extend(trust.map(|trust| (Context::default(), Event::TrustChanged(trust))));
    agent.commit(now, Decision { events, effects: Vec::new() });
    agent.adopt_new_services();
    agent.follow_up();
    agent.will_settle();
    agent
}

/// Closes what asked the agent to end before the damage: whoever starts it again must not find it ending.
fn unfinished_shutdowns(node: &Node) -> impl Iterator<Item = (Context, Event)> {
    let shutdowns = node
        .seen()
        .open()
        .filter(|(_, record, _)| matches!(record.action, Action::Shutdown { .. }));
    shutdowns.map(|(intent, record, _)| {
        let context = Context::default().because(Some(Cause::Intent(*intent)), record.by.clone());
        let why = "the history was damaged while it was under way".to_owned();
        let body = IntentExecuted { intent: *intent, outcome: Outcome::Unknown { why } };
        (context, Event::IntentExecuted(body))
    })
}

fn bus_config(bus: &BusSetup, setup: &NodeSetup) -> anyhow::Result<BusConfig> {
    let credentials = match &bus.nkey {
        Some(path) => BusCredentials::NkeySeed(std::fs::read_to_string(path)?.trim().to_owned()),
        None => BusCredentials::Anonymous,
    };
    Ok(BusConfig {
        urls: bus.urls.clone(),
        credentials,
        ca: bus.ca.clone(),
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
    std::iter::once(own)
        .chain(crate::head::account::account_ids("smgr-uplink").map(|(uid, _)| uid))
        .collect()
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
