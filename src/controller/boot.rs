//! Puts a controller together: keys, logs, replay, the bus; then hands everything to its task.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::access::Access;
use super::arrivals::Arrivals;
use super::bringing::Bringing;
use super::checks::Measuring;
use super::intake::Line;
use super::lease;
use super::links;
use super::orders::Orders;
use super::own::{self, OwnState, Which};
use super::placement::Placements;
use super::projection::Projection;
use super::rollouts::Rollouts;
use super::setup::ControllerSetup;
use super::tails::Tails;
use super::task::{Controller, Role};
use super::verify::Trusted;
use super::wake::{Wake, Waker};
use super::wishes::Wishes;
use crate::bus::{BusOptions, BusState, Connection, Credentials};
use crate::domain::event::{Context, Event, LogOpened, PartStarted};
use crate::domain::id::{BootId, NodeId};
use crate::domain::policy::KeyClass;
use crate::head::authority::{Authority, Enrolment};
use crate::head::folder::StateFolder;
use crate::head::keyfile::{self, KeyName};
use crate::head::recorder::Recorder;
use crate::head::{clock, note_name, say_ready};
use crate::store::Writer;
use crate::wire::payload::Body;
use crate::wire::status::Intake;
use crate::wire::subject::InboxPrefix;

/// Messages that wait for each filter. What a burst drops beyond it is noticed as a gap and fetched.
const INCOMING_MAX: usize = 16 * 1024;

/// How long the bus is waited for before the controller says that it is ready all the same.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// How long the last words may take.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// How a controller is started.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// The state folder.
    pub state: PathBuf,
}

/// Runs the controller of a state folder until it is told to end with SIGTERM or SIGINT. Where its set-up names an
/// address for HTTP, `face` is given both, and must not keep it waiting.
///
/// # Errors
/// When the folder, the keys or the logs cannot be used; whoever started it starts it again.
pub fn run(
    options: &ControllerOptions,
    face: impl FnOnce(SocketAddr, Access) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Box::pin(serve(options, face)))
}

async fn serve(
    options: &ControllerOptions,
    face: impl FnOnce(SocketAddr, Access) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let folder = StateFolder::new(&options.state);
    let setup = ControllerSetup::read(&folder)?;
    let (trust, ring) = keyfile::load_trust(&folder)?;
    let bringing = Bringing::of(&folder, trust.version)?;
    anyhow::ensure!(
        trust.fleet == setup.fleet,
        "the trust document is for the fleet `{}` and not for `{}`",
        trust.fleet,
        setup.fleet
    );
    let signer = Arc::new(keyfile::load_key(&KeyName::Controller.path(&folder))?);
    let trusted = Arc::new(Trusted { ring, revoked: trust.revoked.clone() });
    let own_holder = trusted.ring.get(signer.kid()).map(|(_, holder)| holder);
    anyhow::ensure!(
        own_holder.is_some_and(|holder| {
            holder.class == KeyClass::Controller
                && holder.name.as_str() == setup.controller.as_str()
        }),
        "the trust document does not know the key of this controller, `{}`",
        setup.controller
    );

    let (waker, wakes) = lease::queue();
    let writer = Writer::start()?;
    let (fleet, name) = (&setup.fleet, &setup.controller);
    let note_key = Box::new(signer.for_notes(&note_name(fleet, name))?);
    let names = (fleet, name);
    let own_log = own::open(Which::Own, &folder, names, &writer, Some(note_key), waker.clone())?;
    let mut rollouts = Rollouts::default();
    let state = own::fold(&own_log.log, |record, body| rollouts.fact(name, record, body))?;
    let arrival_log = own::open(Which::Arrivals, &folder, names, &writer, None, waker.clone())?;
    let lines: BTreeMap<NodeId, Line> =
        trusted.origins().map(|(origin, class)| (origin, Line::new(class))).collect();
    let nodes = lines.iter().filter(|(_, line)| line.class == KeyClass::Node);
    let mut projection = Projection::new(nodes.map(|(node, _)| node.clone()), clock::now());
    let mut term_seen = 0;
    let arrivals = Arrivals::fold(arrival_log.log, |id, event| {
        match lines.get(&id.origin).map(|line| line.class) {
            Some(KeyClass::Controller) => match own::read(event) {
                Some((_, Body::Known(Event::ControllerLed(led)))) => {
                    term_seen = term_seen.max(led.term);
                }
                Some((record, body)) => rollouts.fact(name, &record, body),
                None => {}
            },
            _ => {
                projection.event(id, event);
                rollouts.reports.take(id, &ByteBuf::from(event.to_vec()));
            }
        }
    })?;

    rollouts.all_kept();

    let connection = Connection::keep(&bus_options(&setup)?).await?;
    links::listen(&connection, names, &trusted, &waker).await?;
    let boot = clock::boot_id()?;
    let recorder = Recorder::new(own_log.log, signer.clone(), name.clone(), boot, BTreeMap::new());
    let roster = trust.roster_digest();
    let mut authority =
        Authority::new(fleet.clone(), name.clone(), trusted.ring.clone(), trust.revoked);
    authority.enrol(Enrolment::from(trust.nodes));
    let mut controller = Controller {
        trusted,
        authority,
        signer,
        saying: links::say(connection.clone()),
        waker: waker.clone(),
        recorder,
        own: OwnState::default(),
        arrivals,
        projection,
        lines,
        queue: VecDeque::new(),
        fetching: 0,
        intake: Intake::default(),
        role: Role::Standby(None),
        taken: 0,
        term_seen,
        waiting: Vec::new(),
        receipts: BTreeMap::new(),
        ticks: 0,
        ticked_ns: None,
        roster,
        bringing,
        wishes: Wishes::of(&folder)?,
        rollouts,
        orders: Orders::default(),
        placements: Placements::default(),
        measuring: Measuring::new(),
        watchers: Vec::new(),
        tails: Tails::of(&folder)?,
        connection: connection.clone(),
        setup,
    };
    controller.own = state;
    begin(&mut controller, own_log.begins, boot);
    let (fleet, name) = (controller.setup.fleet.clone(), controller.setup.controller.clone());
    let ttl = Duration::from_millis(controller.setup.lease_ms);

    if let Some(address) = controller.setup.http {
        let access = Access {
            fleet: fleet.clone(),
            controller: name.clone(),
            folder: folder.clone(),
            trusted: controller.trusted.clone(),
            waker: waker.clone(),
            connection: connection.clone(),
            signer: controller.signer.clone(),
        };
        // Nodes and people reach it over the bus all the same.
        if let Err(error) = face(address, access) {
            error!(%address, %error, "HTTP is not served");
        }
    }

    let (end, ended) = lease::ending();
    let leasing =
        tokio::spawn(lease::keep(connection.clone(), (fleet, name), ttl, waker.clone(), ended));
    tokio::spawn(notice_connections(connection.state(), waker.clone()));
    tokio::spawn(terminate(waker));
    controller.run(wakes).await;
    end.send_replace(true);
    if timeout(LAST_WORDS_WITHIN, leasing).await.is_err() {
        info!("the lease was not given back in time; it ends by itself");
    }
    // Dropped last: it commits what was appended.
    drop(writer);
    Ok(())
}

/// Writes the first events of this life.
fn begin(
    controller: &mut Controller,
    begins: Option<(crate::domain::event::EpochReason, Option<crate::domain::event::Predecessor>)>,
    boot: BootId,
) {
    let now = clock::now();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let mut facts = Vec::new();
    if let Some((reason, predecessor)) = begins {
        let opened = LogOpened { reason, predecessor, version: version.clone() };
        facts.push((Context::default(), Event::LogOpened(opened)));
    }
    let started = PartStarted {
        version,
        incarnation: 0,
        pid: std::process::id(),
        uid: rustix::process::geteuid().as_raw(),
        boot,
        after: None,
        away_ms: 0,
    };
    facts.push((Context::default(), Event::ControllerStarted(started)));
    controller.recorder.record(now, facts);
}

fn bus_options(setup: &ControllerSetup) -> anyhow::Result<BusOptions> {
    let inbox = InboxPrefix(setup.controller.as_str().parse()?);
    let name = format!("smgr controller {}", setup.controller);
    let mut options = BusOptions::new(setup.urls.clone(), inbox, name);
    options.tls.ca.clone_from(&setup.ca);
    if let Some(path) = &setup.nkey {
        options.credentials = Credentials::read(path)?;
    }
    options.incoming_max = INCOMING_MAX;
    Ok(options)
}

/// Says at each connection that something may have been missed, and at the first one, or soon, that all is ready.
async fn notice_connections(mut state: watch::Receiver<BusState>, waker: Waker) {
    let is_there =
        matches!(timeout(READY_WITHIN, state.wait_for(BusState::is_up)).await, Ok(Ok(_)));
    if !is_there {
        warn!("the bus is not there yet");
    }
    say_ready();
    let mut known = 0;
    loop {
        let session = match state.wait_for(BusState::is_up).await {
            Ok(state) => match &*state {
                BusState::Up { session, .. } => *session,
                BusState::Down { .. } => known,
            },
            Err(_) => return,
        };
        if session != known {
            known = session;
            if waker.send(Wake::Connected).await.is_err() {
                return;
            }
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}

async fn terminate(waker: Waker) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    drop(waker.send(Wake::Terminate).await);
}
