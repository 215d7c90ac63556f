//! `smgr up --nodes N`: a whole fleet on this machine, each node with its own folder, keeper, agent, uplink, log and
//! keys.
//!
//! The first node runs the bus and the controllers as services of its own: what supervises services already supervises
//! them well, and whichever of them dies comes back without anybody else noticing more than a gap.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{QUIET, apply_at_start, divide, print, shut_down, start_own};
use crate::agent::setup::{BUS_SERVICE, BusSetup, METRICS_SERVICE, NodeSetup};
use crate::cli::args::Up;
use crate::cli::client::{Client, Whom};
use crate::cli::context::{Context, short};
use crate::cli::error::CliError;
use crate::cli::feed::{Feed, Turn};
use crate::cli::fleet::{Fleet, folders};
use crate::cli::interrupt::{Interrupted, Interrupts};
use crate::cli::nats;
use crate::cli::out::Out;
use crate::cli::screen::feed::Feed as Lines;
use crate::cli::screen::names::Names;
use crate::cli::screen::up as screen;
use crate::cli::session::{Mode, Session, alive, already_up, terminate, until_down};
use crate::cli::view::{Readiness, readiness};
use crate::cli::wish::from_keys;
use crate::cli::{launch, specs};
use crate::config::Loaded;
use crate::controller::setup::ControllerSetup;
use crate::domain::code::{Code, ExitCode};
use crate::domain::event::{Desired, StateName};
use crate::domain::id::ServiceId;
use crate::head::enrol::{Enrolment, Member, enrol};
use crate::head::folder::{StateFolder, write_whole};
use crate::wire::payload::EventRecord;
use crate::wire::status::{BusState, InstanceStatus, NodeStatus};

/// How long the controllers are waited for: without them the fleet is up and says so.
const CONTROLLERS_WITHIN: Duration = Duration::from_secs(20);

/// How long the bus is waited for before the nodes are started all the same.
const BUS_WITHIN: Duration = Duration::from_secs(5);

/// How long the nodes may take to find the bus: the longest pause between two tries of theirs.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);

/// How long services may take to become ready before the fleet is said to be up without them.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// How soon a node is asked again whether it has found the bus.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Events of all nodes that wait to be printed.
const EVENTS_MAX: usize = 64;

/// One node of the fleet while it comes up.
struct Rising {
    context: Context,
    session: Session,
    launcher: Option<Child>,
}

/// Begins the fleet, or goes on with one whose `smgr up` was killed.
pub(super) async fn up(
    context: &Context,
    fleet: &Fleet,
    args: &Up,
    out: Out,
) -> Result<ExitCode, CliError> {
    let began = Instant::now();
    let contexts = fleet.contexts(context);
    let mut rising = Vec::with_capacity(contexts.len());
    for context in contexts {
        context.folder.make().map_err(|error| {
            CliError::caused(Code::IO, "failed to make the state folder", &error)
                .at(short(context.folder.root()))
        })?;
        let session = Session::take(&context)?;
        rising.push(Rising { context, session, launcher: None });
    }
    let mut interrupts = Interrupts::watch()?;
    let mode = if args.detach { Mode::Detached } else { Mode::Foreground };
    let is_alive: Vec<bool> = rising.iter().map(|node| alive(&node.context).is_some()).collect();
    let was_killed = rising[0].session.before.is_some_and(|before| before.mode == Mode::Foreground);
    if let Some(alive) = alive(context)
        && !was_killed
        && is_alive.iter().all(|alive| *alive)
    {
        return Err(already_up(alive.pid()));
    }
    if is_alive[0] && Fleet::read(context)?.as_ref() != Some(fleet) {
        return Err(CliError::new(Code::ALREADY_UP, "the fleet runs with other members or labels")
            .hint("it takes in new ones at its next start")
            .next("smgr down"));
    }
    if !is_alive[0] {
        rising.iter().try_for_each(|node| divide(&node.context))?;
        crate::cli::commands::metrics::supervise(context, args.metrics)?;
        prepare(context, fleet, args.http)?;
        rising.iter().try_for_each(|node| divide(&node.context))?;
    }
    let statuses = match interrupts.guard(begin(&mut rising, fleet)).await {
        Ok(Ok(statuses)) => statuses,
        Ok(Err(error)) => {
            end_all(&rising);
            return Err(error);
        }
        Err(interrupted) => {
            end_all(&rising);
            out.note("stopped before it was up");
            return Ok(interrupted.exit());
        }
    };
    for node in &mut rising {
        let before = node.session.before.map_or(0, |before| before.launcher);
        let pid = node.launcher.as_ref().map_or(before, Child::id);
        node.session.record(mode, pid)?;
    }
    let services: Vec<ServiceId> = fleet.controllers.iter().map(service_of).collect();
    let contexts = fleet.contexts(context);
    let all = async {
        let is_connected = until_connected(&contexts).await;
        let is_controlled = until_ready(context, &services, CONTROLLERS_WITHIN).await;
        (is_controlled, is_connected, until_settled(&contexts).await)
    };
    let (is_controlled, is_connected, is_settled) = match interrupts.guard(all).await {
        Ok(done) => done,
        Err(interrupted) => {
            out.note("the fleet goes on without this terminal: smgr status, smgr down");
            return Ok(interrupted.exit());
        }
    };
    let own = |service: &ServiceId| {
        [&*BUS_SERVICE, &*METRICS_SERVICE].contains(&service) || services.contains(service)
    };
    let is_empty = statuses.iter().all(|it| it.services.iter().all(|it| own(&it.service)));
    out.data(&first_screen(context, fleet, (began, is_empty), !args.detach)?);
    for controller in fleet.controller_members(context) {
        if let Ok(ControllerSetup { http: Some(http), .. }) =
            ControllerSetup::read(&controller.folder)
        {
            out.note(&format!("{} serves http://{http}/openapi.json", controller.name));
        }
    }
    if let Some(listen) = fleet.listen.filter(|_| !fleet.tls) {
        out.note(&format!(
            "the bus at {listen} is not encrypted; how it becomes so: smgr help bus"
        ));
    }
    if !is_controlled {
        out.note("the controller is not ready; the nodes do not need it: smgr status controller");
    }
    if !is_connected {
        out.note("not every node is on the bus yet; they go on trying: smgr ping");
    }
    if !is_settled {
        out.note("not every service is ready yet: smgr status");
    }
    if args.detach {
        return Ok(ExitCode::Done);
    }
    foreground(context, rising, &statuses, interrupts, out).await
}

/// Ends every node of the fleet; the first last, whose bus the others use for their farewell.
pub(super) async fn shut_down_all(
    context: &Context,
    deadline: Option<tokio::time::Instant>,
) -> Result<(), CliError> {
    // Whatever `fleet.json` says by now: what runs is ended.
    let contexts = folders(context);
    let mut last = Ok(());
    let mut ending = Vec::new();
    for node in contexts[1..].iter().filter(|node| alive(node).is_some()) {
        match shut_down(node).await {
            Ok(()) => ending.push(node),
            Err(error) => last = Err(error),
        }
    }
    for node in ending {
        until_down(node, deadline).await;
    }
    if alive(context).is_some() {
        last = shut_down(context).await.and(last);
    }
    last
}

/// Ends the nodes that were started here.
fn end_all(rising: &[Rising]) {
    for node in rising.iter().filter(|node| node.launcher.is_some()) {
        drop(terminate(&node.context));
    }
}

/// Starts the nodes that do not run, the first before the others: it has the bus, and who finds it there need not come
/// back for it.
async fn begin(rising: &mut [Rising], fleet: &Fleet) -> Result<Vec<NodeStatus>, CliError> {
    let mut statuses = Vec::with_capacity(rising.len());
    let (first, others) = rising.split_first_mut().expect("invariant: a fleet has a node");
    launch_missing(first)?;
    statuses.push(until_up(first).await?);
    until_ready(&first.context, std::slice::from_ref(&*BUS_SERVICE), BUS_WITHIN).await;
    others.iter_mut().try_for_each(launch_missing)?;
    for node in others {
        statuses.push(until_up(node).await?);
    }
    debug_assert_eq!(statuses.len(), fleet.nodes.len());
    Ok(statuses)
}

fn launch_missing(node: &mut Rising) -> Result<(), CliError> {
    if alive(&node.context).is_none() {
        node.session.record(Mode::Foreground, 0)?;
        let launcher = launch::start(&node.context)?;
        node.session.record(Mode::Foreground, launcher.id())?;
        node.launcher = Some(launcher);
    }
    Ok(())
}

async fn until_up(node: &mut Rising) -> Result<NodeStatus, CliError> {
    let (mut client, status) =
        Box::pin(launch::until_up(&node.context, node.launcher.as_mut())).await?;
    start_own(&node.context, &mut client, &status).await?;
    Ok(status)
}

/// Waits until every node has found the bus, and says whether all have.
async fn until_connected(contexts: &[Context]) -> bool {
    let all = async {
        for context in contexts {
            let Ok(mut client) = Client::connect(context, &Whom::default()).await else { continue };
            while let Some(status) = launch::status(&mut client).await
                && !matches!(status.bus, BusState::Connected { .. })
            {
                // A node records nothing about its bus, so there is nothing to wait for.
                sleep(LOOK_AGAIN).await;
            }
        }
    };
    timeout(CONNECTED_WITHIN, Box::pin(all)).await.is_ok()
}

/// Waits until no service of any node is on its way up, and says whether that is so.
async fn until_settled(contexts: &[Context]) -> bool {
    let whom = Whom::default();
    let rising = |it: &InstanceStatus| {
        let is_on_its_way =
            matches!(it.state, StateName::Inactive | StateName::Waiting | StateName::Starting);
        it.desired == Desired::Running && is_on_its_way
    };
    let all = async {
        for context in contexts {
            let Ok(mut client) = Client::connect(context, &whom).await else { continue };
            let mut feed: Option<Feed> = None;
            while let Some(status) = launch::status(&mut client).await
                && status.instances.iter().any(rising)
            {
                let feed = feed.get_or_insert_with(|| Feed::after(Some(status.head.clone())));
                if feed.next(context, &whom, &mut client, true).await.is_err() {
                    break;
                }
            }
        }
    };
    timeout(SETTLED_WITHIN, Box::pin(all)).await.is_ok()
}

/// Waits until a node says that services of it are ready. Says whether they are.
async fn until_ready(context: &Context, services: &[ServiceId], within: Duration) -> bool {
    let whom = Whom::default();
    let wait = async {
        let mut client = Client::connect(context, &whom).await.ok()?;
        let status = launch::status(&mut client).await?;
        let mut feed = Feed::after(Some(status.head.clone()));
        let mut ready = ready_in(&status, services);
        while ready.len() < services.len() {
            let Turn::Event(record) = feed.next(context, &whom, &mut client, true).await.ok()?
            else {
                continue;
            };
            let is_ready = record.kind == "instance.ready";
            let is_new = |it: &ServiceId| is_ready && services.contains(it) && !ready.contains(it);
            let new = record.service.filter(is_new);
            ready.extend(new);
        }
        Some(())
    };
    matches!(timeout(within, Box::pin(wait)).await, Ok(Some(())))
}

fn ready_in(status: &NodeStatus, services: &[ServiceId]) -> Vec<ServiceId> {
    let ready = status.instances.iter().filter(|it| readiness(it) == Readiness::Yes);
    ready.map(|it| it.service.clone()).filter(|it| services.contains(it)).collect()
}

/// Returns the service of the first node that is a controller.
pub(in crate::cli::commands) fn service_of(controller: &crate::domain::id::NodeId) -> ServiceId {
    let name = format!("controller-{controller}");
    name.parse().expect("a short name of a controller is one of a service")
}

/// Checks the files, makes what is missing, and writes down how each member is set up. Nothing is started by it.
fn prepare(context: &Context, fleet: &Fleet, http: Option<u16>) -> Result<Loaded, CliError> {
    let sources = specs::sources(context, specs::project_here());
    let logs = context.service_logs();
    specs::load(context, &sources, &logs, "nothing was started")?;
    let _lock = Fleet::lock(context)?;
    let (enrolment, bus) = super::members::enrol_all(context, fleet)?;
    let (nodes, controllers) = (&enrolment.nodes, &enrolment.controllers);
    for (controller, place) in controllers.iter().zip(0..) {
        // Each controller serves on a port of its own.
        let http = http.map(|port| port.saturating_add(place));
        let nkey = Some(controller.folder.keys().join("controller.nk"));
        set_up_controller(context, controller, &enrolment, (&bus, nkey, http))?;
        supervise_controller(context, controller)?;
    }
    for (node, member) in fleet.contexts(context).iter().zip(nodes).skip(1) {
        let nkey = member.folder.keys().join("node.nk");
        let bus = BusSetup::elsewhere(bus.urls.clone(), Some(nkey), bus.ca.clone());
        let sources = specs::sources(node, None);
        set_up_node(node, member, &enrolment, sources, Some(bus))?;
    }
    let loaded = set_up_node(context, &nodes[0], &enrolment, sources, Some(bus))?;
    fleet.write(context)?;
    Ok(loaded)
}

/// Makes the keys and set-ups of a fleet on a bus that is there, and starts nothing: each part is started at a place of
/// its own, `smgr agent` and `smgr controller` with `--state`.
pub(super) fn set_up(context: &Context, fleet: &Fleet, out: Out) -> Result<ExitCode, CliError> {
    let Some(url) = &context.global.bus else {
        let what = "parts at places of their own meet on a bus, and none is named";
        return Err(CliError::new(Code::USAGE, what).hint("--bus nats://HOST:PORT"));
    };
    let enrolment = super::members::enrolment(context, fleet)?;
    enrol(&enrolment).map_err(|error| from_keys(&error))?;
    let bus = BusSetup::elsewhere(vec![url.clone()], None, context.told_bus_ca());
    for controller in &enrolment.controllers {
        set_up_controller(context, controller, &enrolment, (&bus, None, None))?;
        out.line(&format!("smgr controller --state {}", controller.folder.root().display()));
    }
    for (node, member) in fleet.contexts(context).iter().zip(&enrolment.nodes) {
        let sources = specs::sources(node, None);
        set_up_node(node, member, &enrolment, sources, Some(bus.clone()))?;
        out.line(&format!("smgr agent --state {}", member.folder.root().display()));
    }
    fleet.write(context)?;
    Ok(ExitCode::Done)
}

fn set_up_node(
    context: &Context,
    member: &Member,
    enrolment: &Enrolment,
    sources: crate::agent::setup::SpecSources,
    bus: Option<BusSetup>,
) -> Result<Loaded, CliError> {
    let is_known = context.setup()?.is_some();
    let (fleet, node) = (enrolment.fleet.clone(), member.name.clone());
    let mut setup = NodeSetup::new(fleet, node, sources, context.service_logs());
    setup.bus = bus;
    setup.write(&context.folder).map_err(|error| unwritten(context.folder.setup(), &error))?;
    if is_known {
        apply_at_start(context, &setup)?;
    }
    specs::load(context, &setup.specs, &setup.service_logs, "nothing was started")
}

fn set_up_controller(
    context: &Context,
    member: &Member,
    enrolment: &Enrolment,
    (bus, nkey, http): (&BusSetup, Option<PathBuf>, Option<u16>),
) -> Result<(), CliError> {
    let folder: &StateFolder = &member.folder;
    // What an operator wrote into it stays.
    let mut setup = ControllerSetup::read(folder).unwrap_or_else(|_| {
        let checks = Some(context.services.with_file_name("checks.d"));
        let (fleet, name) = (enrolment.fleet.clone(), member.name.clone());
        ControllerSetup { checks, ..ControllerSetup::new(fleet, name, Vec::new()) }
    });
    setup.urls.clone_from(&bus.urls);
    setup.ca.clone_from(&bus.ca);
    setup.nkey = nkey;
    if let Some(port) = http {
        setup.http = Some((Ipv4Addr::LOCALHOST, port).into());
    }
    setup.write(folder).map_err(|error| unwritten(ControllerSetup::path(folder), &error))
}

/// Makes a controller a service of the first node.
fn supervise_controller(context: &Context, member: &Member) -> Result<(), CliError> {
    let folder = &member.folder;
    let program = std::env::current_exe()
        .map_err(|error| CliError::caused(Code::IO, "failed to find this program", &error))?;
    let words = [&program, &PathBuf::from("controller"), &"--state".into(), &folder.root().into()];
    let words: Vec<_> = words.into_iter().map(|word| nats::argument(word)).collect();
    let user = if context.is_root { "user = \"root\"\n" } else { "" };
    let text = format!(
        "# Written by `smgr up`; changes are overwritten.\n\
         description = \"A controller of this fleet\"\n\
         exec = [{}]\n\
         working_dir = \"/\"\n{user}\n\
         [ready]\nby = \"notify\"\n{}",
        words.join(", "),
        authorities()
    );
    let spec =
        context.folder.internal_services().join(format!("{}.toml", service_of(&member.name)));
    write_whole(&spec, text.as_bytes(), 0o600).map_err(|error| unwritten(spec.clone(), &error))
}

/// Returns a table of what names the authorities that this machine trusts, where the environment names others than usual.
fn authorities() -> String {
    let told = |name: &str| std::env::var_os(name).filter(|path| Path::new(path).is_absolute());
    let set = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(|name| {
        let path = told(name)?;
        Some(format!("{name} = {}\n", nats::argument(Path::new(&path))))
    });
    let set: String = set.collect();
    if set.is_empty() { set } else { format!("\n[env]\n{set}") }
}

fn unwritten(path: PathBuf, error: &std::io::Error) -> CliError {
    CliError::caused(Code::IO, "failed to write the set-up", error).at(short(&path))
}

fn first_screen(
    context: &Context,
    fleet: &Fleet,
    (began, is_empty): (Instant, bool),
    is_foreground: bool,
) -> Result<String, CliError> {
    let bus = context.setup()?.and_then(|setup| setup.bus);
    let address = bus.as_ref().and_then(|bus| bus.urls.first()).cloned().unwrap_or_default();
    let version = nats::find().ok().flatten().map(|found| found.version.to_string());
    let bus = screen::Bus::Ours {
        version: version.as_deref().unwrap_or("of before"),
        address: address.trim_start_matches("nats://"),
    };
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let members = (&fleet.controllers[..], &fleet.nodes[..]);
    Ok(screen::fleet_text(members, bus, took_ms, is_foreground, is_empty))
}

/// Shows what happens everywhere until Ctrl-C, then ends everything in good order.
async fn foreground(
    context: &Context,
    mut rising: Vec<Rising>,
    statuses: &[NodeStatus],
    mut interrupts: Interrupts,
    out: Out,
) -> Result<ExitCode, CliError> {
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let mut tellers: Vec<JoinHandle<()>> = Vec::new();
    for (node, status) in rising.iter().zip(statuses) {
        tellers.push(tokio::spawn(tell(node.context.clone(), status.clone(), sender.clone())));
    }
    drop(sender);
    let mut lines: Vec<Lines> = rising.iter().map(|_| Lines::new(Names::of_fleet())).collect();
    let place = |record: &EventRecord| {
        statuses.iter().position(|status| status.node == record.origin).unwrap_or(0)
    };
    let mut ending: Option<JoinHandle<Result<(), CliError>>> = None;
    let down = async {
        for node in folders(context) {
            until_down(&node, None).await;
        }
    };
    tokio::pin!(down);
    loop {
        tokio::select! {
            Some(record) = events.recv() => print(lines[place(&record)].push(&record), out),
            () = sleep(QUIET), if lines.iter().any(Lines::holds) => {
                lines.iter_mut().for_each(|lines| print(lines.flush(), out));
            }
            interrupted = interrupts.next() => {
                if ending.is_some() {
                    out.note("still stopping; it goes on without this terminal: smgr status");
                    return Ok(interrupted.exit());
                }
                if interrupted == Interrupted::Int {
                    out.note("stopping the fleet …");
                }
                let context = context.clone();
                // As long as it takes: whoever waits at the terminal can leave.
                ending = Some(tokio::spawn(async move { shut_down_all(&context, None).await }));
            }
            () = &mut down => break,
        }
        for child in rising.iter_mut().filter_map(|node| node.launcher.as_mut()) {
            // Reaped here, or it would look alive for ever to whoever waits for it.
            drop(child.try_wait());
        }
    }
    tellers.iter().for_each(JoinHandle::abort);
    lines.iter_mut().for_each(|lines| print(lines.flush(), out));
    match ending {
        Some(ending) => {
            if let Ok(Err(error)) = ending.await {
                return Err(error);
            }
        }
        None => out.note("the fleet was ended from elsewhere"),
    }
    out.data("the fleet is down; what happened is kept. Start again with: smgr up\n");
    Ok(ExitCode::Done)
}

/// Passes the events of one node on until it is down.
async fn tell(context: Context, status: NodeStatus, to: mpsc::Sender<Box<EventRecord>>) {
    let whom = Whom::default();
    let Ok(mut client) = Client::connect(&context, &whom).await else { return };
    let mut feed = Feed::after(Some(status.head));
    while let Ok(turn) = feed.next(&context, &whom, &mut client, true).await {
        if let Turn::Event(record) = turn
            && to.send(record).await.is_err()
        {
            return;
        }
    }
}
