//! `smgr up` and `smgr attach`: begins a node on this machine, shows what happens, and ends it in good order.

pub(super) mod fleet;
pub(super) mod members;

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::archive::Archive;
use super::service::{Place, outcome};
use crate::agent::setup::{BUS_SERVICE, BusSetup, METRICS_SERVICE, NodeSetup};
use crate::cli::args::{Up, Waiting};
use crate::cli::client::{Client, Whom};
use crate::cli::context::{Context, host_name, not_up, short, user_name};
use crate::cli::error::CliError;
use crate::cli::feed::{Feed, Turn};
use crate::cli::fleet::Fleet;
use crate::cli::follow::{Follower, From, cri};
use crate::cli::interrupt::{Interrupted, Interrupts};
use crate::cli::nats::{self, Members};
use crate::cli::out::{Out, width};
use crate::cli::screen::ending::Ending;
use crate::cli::screen::feed::Feed as Lines;
use crate::cli::screen::names::Names;
use crate::cli::screen::up as screen;
use crate::cli::session::{Mode, Session, alive, already_up, terminate, until_down};
use crate::cli::view::View;
use crate::cli::wish::{Caller, from_keys};
use crate::cli::{launch, specs, time};
use crate::config::Loaded;
use crate::domain::code::{Code, ExitCode};
use crate::domain::event::Desired;
use crate::domain::intent::Action;
use crate::domain::text::printable;
use crate::head::account::account_ids;
use crate::head::folder::{Accounts, write_whole};
use crate::head::keyfile::{KeyName, Keys, Owner, make_keys_and_trust};
use crate::wire::payload::{Audience, EventRecord, Reply};
use crate::wire::status::{BusState, InstanceStatus, NodeStatus, ServiceStatus};

/// The account of the uplink, and of a nats-server of our own.
const UPLINK_ACCOUNT: &str = "smgr-uplink";

/// An exit and the start that follows it at once are one line; this long nothing more belongs to it.
const QUIET: Duration = Duration::from_millis(200);

/// Begins a node here, or goes on with one whose `smgr up` was killed.
pub(super) async fn up(context: &Context, args: Up, out: Out) -> Result<ExitCode, CliError> {
    if let Some(mut wanted) = Fleet::wanted(context, args.fleet)? {
        if let Some(address) = args.listen {
            wanted.listen_at(address);
        }
        wanted.label(&args.labels)?;
        if args.set_up_only {
            return fleet::set_up(context, &wanted, out);
        }
        return Box::pin(fleet::up(context, &wanted, &args, out)).await;
    }
    if args.http.is_some() {
        return Err(CliError::new(
            Code::USAGE,
            "a single node has no controller, which serves HTTP",
        )
        .hint("smgr up --nodes 1 --http 7465"));
    }
    if !args.labels.is_empty() {
        return Err(CliError::new(Code::USAGE, "a single node is selected by nobody")
            .hint("a fleet has labels: smgr up --nodes 3 --label env=prod"));
    }
    if args.listen.is_some() {
        return Err(CliError::new(Code::USAGE, "a single node has nobody to listen for").hint(
            "a fleet of several machines begins with one: smgr up --nodes 1 --listen ADDRESS:4222",
        ));
    }
    let began = Instant::now();
    let since = time::log_stamp();
    context.folder.make().map_err(|error| {
        CliError::caused(Code::IO, "failed to make the state folder", &error)
            .at(short(context.folder.root()))
    })?;
    let mut session = Session::take(context)?;
    // From here on there is something to be ended in good order.
    let mut interrupts = Interrupts::watch()?;
    let mode = if args.detach { Mode::Detached } else { Mode::Foreground };
    let goes_on = alive(context);
    let was_killed = session.before.is_some_and(|before| before.mode == Mode::Foreground);
    if let Some(alive) = goes_on
        && !was_killed
    {
        return Err(already_up(alive.pid()));
    }
    let mut launcher = None;
    let mut made_keys = false;
    let mut wanted = None;
    if goes_on.is_none() {
        divide(context)?;
        super::metrics::supervise(context, args.metrics)?;
        let (keys, loaded) = prepare(context, specs::project_here())?;
        made_keys = keys.made;
        wanted = Some(loaded);
        // Once more, for what was made just now.
        divide(context)?;
        session.record(Mode::Foreground, 0)?;
        launcher = Some(launch::start(context)?);
    }
    let pid = launcher.as_ref().map(Child::id).or(session.before.map(|before| before.launcher));
    session.record(Mode::Foreground, pid.unwrap_or(0))?;
    let is_up = interrupts.guard(launch::until_up(context, launcher.as_mut())).await;
    let (mut client, mut status) = match is_up {
        Ok(Ok(up)) => up,
        // What did not begin is not left behind half-way; if it is gone already, so much the better.
        Ok(Err(error)) => {
            drop(terminate(context));
            return Err(error);
        }
        Err(interrupted) => {
            drop(terminate(context));
            out.note("stopped before it was up");
            return Ok(interrupted.exit());
        }
    };
    session.record(mode, pid.unwrap_or(0))?;
    start_own(context, &mut client, &status).await?;
    if let Some(wanted) = wanted.filter(|wanted| !is_current(&status, wanted)) {
        // Refused at the start, or in a new epoch: whoever asks now hears why.
        let action = Action::Apply { services: Vec::new() };
        let applied =
            outcome(context, &Whom::default(), action, Waiting::default(), (Place::Last, out))
                .await?;
        if let Err(interrupted) = applied {
            return Ok(interrupted.exit());
        }
        status = launch::status(&mut client).await.unwrap_or(status);
        // What is gone from the files may be on its way down still.
        status.services.retain(|it| wanted.services.contains_key(&it.service));
    }
    let project = context.setup()?.and_then(|setup| setup.specs.project);
    let text = first_screen(context, &status, made_keys, goes_on.is_some(), began, !args.detach)?;
    out.data(&text);
    if args.detach {
        return Ok(ExitCode::Done);
    }
    let mut outputs = Outputs::new(project.as_deref(), since);
    outputs.add(&status);
    foreground(context, client, &status, launcher, outputs, interrupts, out).await
}

/// Shows what happens; Ctrl-C leaves everything as it is.
pub(super) async fn attach(context: &Context, out: Out) -> Result<ExitCode, CliError> {
    let whom = Whom::default();
    let mut client = Client::connect(context, &whom).await?;
    let status = launch::status(&mut client).await.ok_or_else(|| not_up(context))?;
    let mut interrupts = Interrupts::watch()?;
    let mut feed = Feed::after(Some(status.head));
    let mut lines = Lines::new(Names::of_one_machine());
    let down = until_down(context, None);
    tokio::pin!(down);
    loop {
        tokio::select! {
            turn = feed.next(context, &whom, &mut client, true) => show(&turn?, &mut lines, out),
            () = sleep(QUIET), if lines.holds() => print(lines.flush(), out),
            _ = interrupts.next() => return Ok(ExitCode::Done),
            _ = &mut down => {
                out.note("smgr was ended");
                return Ok(ExitCode::Done);
            }
        }
    }
}

/// Returns the accounts of the parts, if each has one and neither is root.
fn accounts() -> Option<Accounts> {
    let ids = |name| account_ids(name).filter(|(uid, _)| *uid != 0);
    Some(Accounts { agent: ids("smgr")?, uplink: ids(UPLINK_ACCOUNT)? })
}

/// Says as whom a nats-server of our own runs: `None` where everything has the user's account.
fn bus_user(context: &Context, found: &nats::Found) -> Option<&'static str> {
    let uplink = context.is_root.then(accounts).flatten().map(|accounts| accounts.uplink);
    match uplink {
        Some(account) if found.runs_as(account) => Some(UPLINK_ACCOUNT),
        Some(_) => {
            let program = found.program.display();
            Out { form: context.global.output }.note(&format!(
                "{UPLINK_ACCOUNT} may not execute {program}, which therefore runs as root"
            ));
            Some("root")
        }
        None => context.is_root.then_some("root"),
    }
}

/// Started by root, gives the agent's account what it needs of the state folder, if the parts have accounts.
pub(super) fn divide(context: &Context) -> Result<(), CliError> {
    if !context.is_root {
        return Ok(());
    }
    context.folder.divide(&context.service_logs(), accounts()).map_err(|error| {
        CliError::caused(Code::IO, "failed to divide the state folder", &error)
            .at(short(context.folder.root()))
    })
}

/// Checks the files, makes what is missing, and writes down how the node is set up. Nothing is started by it.
fn prepare(context: &Context, project: Option<PathBuf>) -> Result<(Keys, Loaded), CliError> {
    let before = context.setup()?;
    let sources = specs::sources(context, project);
    let logs = context.service_logs();
    specs::load(context, &sources, &logs, "nothing was started")?;
    let (fleet, node) = match &before {
        Some(setup) => (setup.fleet.clone(), setup.node.clone()),
        None => ("local".parse().expect("a constant that is a name"), host_name()),
    };
    let owner =
        Owner { fleet: fleet.clone(), node: node.clone(), operator: user_name(), now: time::now() };
    let keys = make_keys_and_trust(&context.folder, &owner).map_err(|error| from_keys(&error))?;
    let members = Members::of(fleet.clone(), node.clone(), &keys.ring);
    let mut setup = NodeSetup::new(fleet, node, sources, logs);
    let is_known = before.is_some();
    setup.bus = bus(context, before.and_then(|setup| setup.bus), &members)?;
    setup.write(&context.folder).map_err(|error| {
        CliError::caused(Code::IO, "failed to write the set-up", &error)
            .at(short(&context.folder.setup()))
    })?;
    if is_known {
        apply_at_start(context, &setup)?;
    }
    // Once more, as the bus has brought a service of its own.
    let loaded = specs::load(context, &setup.specs, &setup.service_logs, "nothing was started")?;
    Ok((keys, loaded))
}

/// Leaves the wish to match the files for an agent that is not there yet: what the log knows would go on as it was
/// applied otherwise.
fn apply_at_start(context: &Context, setup: &NodeSetup) -> Result<(), CliError> {
    let wish = Caller::load(context, true)?.intent(
        Action::Apply { services: Vec::new() },
        Audience::Nodes(vec![setup.node.clone()]),
    )?;
    let path = context.folder.boot_wish();
    let folder = path.parent().unwrap_or(context.folder.root());
    let written = std::fs::create_dir_all(folder);
    written.and_then(|()| write_whole(&path, &wish.bytes, 0o600)).map_err(|error| {
        CliError::caused(Code::IO, "failed to write the wish to apply", &error).at(short(&path))
    })
}

/// Says whether a node runs by these files and by no others.
fn is_current(status: &NodeStatus, files: &Loaded) -> bool {
    let digest = |it: &ServiceStatus| files.services.get(&it.service).map(|new| new.digest);
    status.services.len() == files.services.len()
        && status.services.iter().all(|it| digest(it) == Some(it.spec))
}

/// Decides on the bus: the one that was told, else a server of our own where there is one, else none.
fn bus(
    context: &Context,
    before: Option<BusSetup>,
    members: &Members,
) -> Result<Option<BusSetup>, CliError> {
    if let Some(url) = &context.global.bus {
        let told = |name: &str| Some(context.folder.keys().join(name)).filter(|path| path.exists());
        return Ok(Some(BusSetup {
            urls: vec![url.clone()],
            nkey: told("node.nk"),
            operator_nkey: told("operator.nk"),
            own_server: false,
            ca: context.told_bus_ca(),
        }));
    }
    if before.as_ref().is_some_and(|bus| !bus.own_server) {
        return Ok(before);
    }
    match nats::find()? {
        Some(found) => {
            let folder = &context.folder;
            let user = bus_user(context, &found);
            nats::prepare(folder, &found, before.as_ref(), members, user).map(Some)
        }
        None => {
            let spec = context.folder.internal_services().join(format!("{}.toml", *BUS_SERVICE));
            drop(std::fs::remove_file(spec)); // Without a server its service would only fail.
            if before.is_some() && !nats::is_off() {
                Out { form: context.global.output }.note(
                    "no nats-server is found any more: the bus of this machine stays away until the next `smgr up` \
                     finds one; SMGR_NATS_SERVER=off gives it up",
                );
                return Ok(before);
            }
            Ok(None)
        }
    }
}

/// Shows what happens until Ctrl-C, then ends everything in good order.
async fn foreground(
    context: &Context,
    mut client: Client,
    status: &NodeStatus,
    mut launcher: Option<Child>,
    mut outputs: Outputs,
    mut interrupts: Interrupts,
    out: Out,
) -> Result<ExitCode, CliError> {
    let whom = Whom::default();
    let mut feed = Feed::after(Some(status.head.clone()));
    let down = until_down(context, None);
    tokio::pin!(down);
    let mut screen = Screen::new(context, status, out);
    let mut asked = false;
    loop {
        tokio::select! {
            turn = feed.next(context, &whom, &mut client, true) => match turn {
                Ok(Turn::Event(record)) => {
                    screen.event(&record);
                    if record.kind == "service.added" {
                        outputs.look(context).await;
                    }
                }
                Ok(Turn::CaughtUp(_)) => {}
                Err(_) if asked => {} // It is on its way out.
                Err(error) => return Err(error),
            },
            lines = outputs.next() => lines.iter().for_each(|line| screen.line(line)),
            () = sleep(QUIET), if screen.lines.holds() => screen.flush(),
            interrupted = interrupts.next() => {
                if interrupted == Interrupted::Int && std::io::stderr().is_terminal() {
                    out.note(""); // Behind the ^C that the terminal shows.
                }
                if asked {
                    out.note("still stopping; it goes on without this terminal: smgr status");
                    return Ok(interrupted.exit());
                }
                asked = true;
                shut_down(context).await?;
            }
            _ = &mut down => break,
        }
        if let Some(child) = &mut launcher {
            // Reaped here, or it would look alive for ever to whoever waits for it.
            drop(child.try_wait());
        }
    }
    // The agent was gone before it could tell the end of it; its files have it.
    let rest = Archive::open(context, None).and_then(|archive| {
        archive.each(feed.cursor(), |_, _, record| {
            screen.event(record);
            ControlFlow::Continue(())
        })
    });
    drop(rest);
    outputs.rest().iter().for_each(|line| screen.line(line));
    screen.flush();
    if !asked {
        out.note("smgr was ended from elsewhere");
    }
    let head = feed.head().unwrap_or(&status.head);
    let (head, is_verified) = super::audit::closed(context).unwrap_or((head.clone(), false));
    out.data(&screen::closed_text(&head, is_verified));
    Ok(ExitCode::Done)
}

/// What the foreground prints: events in lines, and from the end's beginning on what is stopped.
struct Screen {
    lines: Lines,
    ending: Option<Ending>,
    /// Becomes `ending`.
    later: Ending,
    out: Out,
}

impl Screen {
    fn new(context: &Context, status: &NodeStatus, out: Out) -> Self {
        let names = Names::of(&View::of(status));
        let later = Ending::new(names.clone(), specs::stop_signals(context));
        Self { lines: Lines::new(names), ending: None, later, out }
    }

    fn event(&mut self, record: &EventRecord) {
        if record.kind == "agent.stopping" {
            self.flush();
            self.ending = Some(std::mem::take(&mut self.later));
        }
        match &mut self.ending {
            Some(ending) => self.out.data(&ending.push(record)),
            None => {
                // What is on its way down already when the end begins is told with it.
                drop(self.later.push(record));
                drop(self.later.step_aside());
                print(self.lines.push(record), self.out);
            }
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(ending) = &mut self.ending {
            self.out.data(&ending.step_aside());
        }
        self.out.line(line);
    }

    fn flush(&mut self) {
        print(self.lines.flush(), self.out);
        if let Some(ending) = &mut self.ending {
            self.out.data(&ending.step_aside());
        }
    }
}

/// What the services of the project write, each line behind its instance's name.
struct Outputs {
    project: Option<String>,
    follower: Option<Follower>,
    names: Vec<(PathBuf, String)>,
    /// Lines that are older are not of this start.
    since: String,
}

impl Outputs {
    fn new(project: Option<&Path>, since: String) -> Self {
        let project = project.map(|path| path.display().to_string());
        let follower = project.as_ref().and_then(|_| Follower::new().ok());
        Self { project, follower, names: Vec::new(), since }
    }

    /// Follows the instances that are not followed yet.
    async fn look(&mut self, context: &Context) {
        let Ok(mut client) = Client::connect(context, &Whom::default()).await else { return };
        if let Some(status) = launch::status(&mut client).await {
            self.add(&status);
        }
    }

    fn add(&mut self, status: &NodeStatus) {
        let (Some(follower), Some(project)) = (&mut self.follower, &self.project) else { return };
        let own = |it: &&ServiceStatus| it.origin.starts_with(project);
        let own: Vec<_> = status.services.iter().filter(own).map(|it| &it.service).collect();
        for it in status.instances.iter().filter(|it| own.contains(&&it.service)) {
            let Some(path) = it.log_path.as_ref().map(PathBuf::from) else { continue };
            let is_known = self.names.iter().any(|(known, _)| *known == path);
            // A log that may not be read is nobody's loss but that of these lines.
            if !is_known && follower.add(path.clone(), From::Start).is_ok() {
                self.names.push((path, format!("{}/{}", it.service, it.index)));
            }
        }
    }

    async fn next(&mut self) -> Vec<String> {
        match &mut self.follower {
            Some(follower) => {
                let lines = follower.next().await;
                self.words(lines)
            }
            None => std::future::pending().await,
        }
    }

    fn rest(&mut self) -> Vec<String> {
        let lines = self.follower.as_mut().map(Follower::written).unwrap_or_default();
        self.words(lines)
    }

    fn words(&self, lines: Vec<(usize, String)>) -> Vec<String> {
        let width = self.names.iter().map(|(_, name)| name.len()).max().unwrap_or(0);
        let words = |(number, line): (usize, String)| {
            let (at, text) = cri(&line)?;
            let name = &self.names.get(number)?.1;
            (at >= self.since.as_str()).then(|| format!("{name:<width$} | {}", printable(text)))
        };
        lines.into_iter().filter_map(words).collect()
    }
}

fn show(turn: &Turn, lines: &mut Lines, out: Out) {
    match turn {
        Turn::Event(record) => print(lines.push(record), out),
        Turn::CaughtUp(_) => {}
    }
}

fn print(lines: Vec<String>, out: Out) {
    lines.iter().for_each(|line| out.line(line));
}

/// Asks every agent of this machine to end, the one that has the bus last.
pub(super) async fn shut_down_here(
    context: &Context,
    deadline: tokio::time::Instant,
) -> Result<(), CliError> {
    fleet::shut_down_all(context, Some(deadline)).await
}

/// Asks the agent to end its services and itself; the keeper where the agent does not answer.
async fn shut_down(context: &Context) -> Result<(), CliError> {
    let asked = ask_to_shut_down(context).await;
    match asked {
        Err(error) if error.code == Code::AGENT_UNREACHABLE => terminate(context),
        asked => asked,
    }
}

/// Starts what `up` made services of, whatever was said of them before: a stop survives this end of smgr, and without the
/// bus nobody could be asked for anything else.
async fn start_own(
    context: &Context,
    client: &mut Client,
    status: &NodeStatus,
) -> Result<(), CliError> {
    let folder = context.folder.internal_services().display().to_string();
    let own = status.services.iter().filter(|it| it.origin.starts_with(&folder));
    for service in own.map(|it| &it.service) {
        let is_stopped =
            |it: &InstanceStatus| it.service == *service && it.desired == Desired::Stopped;
        if status.instances.iter().any(is_stopped) {
            tell(client, Action::Start { service: service.clone() }).await?;
        }
    }
    Ok(())
}

async fn ask_to_shut_down(context: &Context) -> Result<(), CliError> {
    let mut client = Client::connect(context, &Whom::default()).await?;
    tell(&mut client, Action::Shutdown { leave_running: false }).await
}

/// Sends a wish, and waits until it is taken.
async fn tell(client: &mut Client, action: Action) -> Result<(), CliError> {
    let wish = client.wish(action)?;
    let deadline = client.deadline();
    let mut pending = client.send(&wish, deadline).await?;
    while let Some(answer) = pending.next().await? {
        match answer.reply {
            Reply::Accepted { .. } | Reply::Outcome { .. } => return Ok(()),
            Reply::Refused { code, why } => {
                return Err(CliError::new(code.parse().unwrap_or(Code::INTERNAL), why));
            }
            Reply::Pong { .. }
            | Reply::Fleet(_)
            | Reply::Piece { .. }
            | Reply::Arrivals { .. }
            | Reply::Status(_)
            | Reply::Lines { .. }
            | Reply::Range { .. } => {}
        }
    }
    Ok(()) // Whoever was told to end may have ended before it could say so.
}

/// Returns the first screen.
fn first_screen(
    context: &Context,
    status: &NodeStatus,
    made_keys: bool,
    goes_on: bool,
    began: Instant,
    is_foreground: bool,
) -> Result<String, CliError> {
    let bus = context.setup()?.and_then(|setup| setup.bus);
    let version = nats::find().ok().flatten().map(|found| found.version.to_string());
    let address = bus.as_ref().and_then(|bus| bus.urls.first()).cloned().unwrap_or_default();
    let address = address.trim_start_matches("nats://");
    let bus = match &bus {
        None => screen::Bus::Off,
        Some(bus) if bus.own_server => {
            screen::Bus::Ours { version: version.as_deref().unwrap_or("of before"), address }
        }
        Some(_) => screen::Bus::Named {
            url: address,
            away: match &status.bus {
                BusState::Away { why } => Some(why),
                BusState::Off | BusState::Connected { .. } => None,
            },
        },
    };
    let own =
        |service: &&ServiceStatus| ![&*BUS_SERVICE, &*METRICS_SERVICE].contains(&&service.service);
    let services: Vec<_> = status
        .services
        .iter()
        .filter(own)
        .map(|service| (service.service.clone(), service.instances))
        .collect();
    let was_there = |instance: &&InstanceStatus| {
        let adopted = instance.conditions.get("Adopted").and_then(|it| it.status);
        instance.pid.is_some() && (goes_on || adopted == Some(true))
    };
    let state = short(context.folder.root());
    let banner = screen::Banner {
        version: &status.version,
        state: &state,
        keys: if made_keys { screen::Keys::Made } else { screen::Keys::Found },
        bus,
        // Whoever has the root key is the fleet's first machine, or all of it.
        member: (!KeyName::Root.path(&context.folder).exists())
            .then_some((&status.node, &status.fleet)),
        trees: match status.trees.as_str() {
            "cgroup" => screen::Trees::Cgroup,
            _ => screen::Trees::ProcessGroup,
        },
        services: &services,
        adopted: status.instances.iter().filter(was_there).count() as u64,
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        is_foreground,
    };
    Ok(screen::banner_text(&banner, width()))
}
