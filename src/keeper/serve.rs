//! The keeper's one loop: it waits in one place, and does one thing at a time.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::accounts::Accounts;
use super::connection::Connection;
use super::facts::{Results, Seen};
use super::hands::{Hands, Reply};
use super::launcher::FILES_SOFT;
use super::notify::NotifyFolder;
use super::operations::Operations;
use super::parts::{Ended, Supervised};
use super::poller::{Poller, Token};
use super::records::Records;
use super::trees::Forest;
use super::{exits, proc, runtime, signals};
use crate::ipc::hello::{Hello, Incarnation, Part};
use crate::ipc::keeper::{Account, Answer, FromKeeper, Refusal, ShutdownMode, ToKeeper, Verb};
use crate::ipc::place::{LockError, PartLock, Place};
use crate::ipc::socket::{self, Inbox, SocketError};

/// Requests that are read before anything else gets its turn.
const TURN_MAX: usize = 64;

/// Orphans that a main process's signal may have hidden are looked for this much later.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// An agent that is asked to leave its services has this long.
const LEAVE_MAX: Duration = Duration::from_secs(10);

/// What the keeper is started with.
#[derive(Debug, Clone)]
pub struct KeeperOptions {
    /// The state folder of this node.
    pub state: PathBuf,
    /// The command that starts the agent; none is started without one.
    pub agent: Option<Vec<OsString>>,
    /// The command that starts the uplink; none is started without one.
    pub uplink: Option<Vec<OsString>>,
    /// Whether runs may have cgroups where they can be made.
    pub may_use_cgroups: bool,
}

/// Says why the keeper could not begin, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another keeper of this state folder goes on.
    #[error("the keeper cannot begin")]
    Lock(#[from] LockError),
    /// The kernel refused.
    #[error("failed to {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn tried(what: &'static str) -> impl Fn(io::Error) -> KeeperError {
    move |source| KeeperError::Io { what, source }
}

/// Runs the keeper until it is told to end.
///
/// # Errors
/// When another keeper goes on, or the state folder cannot be used.
pub fn run(options: KeeperOptions) -> Result<(), KeeperError> {
    let mut keeper = Keeper::begin(options)?;
    keeper.hands.adopt(&keeper.poller).map_err(tried("find the runs of an earlier keeper"))?;
    keeper.serve().map_err(tried("wait for events"))?;
    keeper.hands.fell();
    Ok(())
}

struct Keeper {
    place: Place,
    _lock: PartLock,
    incarnation: Incarnation,
    accounts: Accounts,
    poller: Poller,
    signals: OwnedFd,
    listener: OwnedFd,
    inbox: Inbox,
    connection: Option<Connection>,
    hands: Hands,
    results: Results,
    /// Agent and uplink, in this order, as far as there are commands for them.
    agent: Option<Supervised>,
    uplink: Option<Supervised>,
    files: libc::rlimit64,
    ending: Option<Ending>,
    sweep_at: Option<Instant>,
}

/// The parts are about to end.
#[derive(Debug, Clone, Copy)]
struct Ending {
    mode: ShutdownMode,
    /// When an agent that does not end is told so by a signal.
    agent_until: Option<Instant>,
}

impl Keeper {
    fn begin(options: KeeperOptions) -> Result<Self, KeeperError> {
        // Before the lock is held: whoever sees it held may send them.
        let asked = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGCHLD];
        let signals = signals::divert(&asked).map_err(tried("divert signals"))?;
        let place = Place::of(&options.state);
        place.create().map_err(tried("create the folder of the parts"))?;
        let lock = place.lock(Part::Keeper)?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|errno| tried("become a subreaper")(errno.into()))?;
        let files = raise_files();
        // Without the privilege the keeper stays as likely a victim as any.
        drop(fs::write("/proc/self/oom_score_adj", "-900"));
        let accounts = Accounts::find(&options.state);
        let owner = |part: Part| place.folder_of(part);
        for (part, account) in [(Part::Agent, &accounts.agent), (Part::Uplink, &accounts.uplink)] {
            own_folder(&owner(part), account.as_ref()).map_err(tried("make a part's folder"))?;
        }
        // The folder of each run is made in it by the agent, which may make nothing beside it.
        let domain = domain(&place).map_err(tried("name the domain of this state folder"))?;
        let agent_uid = accounts.agent.as_ref().map(|account| account.uid);
        runtime::make(&place.runtime(), &domain, agent_uid)
            .and_then(|()| own_folder(&place.runtime(), accounts.agent.as_ref()))
            .map_err(tried("make the folder of runs"))?;
        let listener = listen(&place, accounts.agent.as_ref()).map_err(tried("listen"))?;
        let memory = place.folder_of(Part::Keeper).join("cgroup");
        let notify = NotifyFolder::find(&domain, &place.folder_of(Part::Keeper));
        let forest = Forest::find(&domain, &memory, options.may_use_cgroups);
        let records = Records::open(place.folder_of(Part::Keeper).join("runs"))
            .map_err(tried("open the records of runs"))?;
        let path = place.folder_of(Part::Keeper).join("operations");
        let operations = Operations::open(&path, &super::proc::boot_id())
            .map_err(tried("open the record of operations"))?;
        let poller = Poller::new().map_err(tried("make an epoll"))?;
        let watch = |fd: &OwnedFd, token| poller.watch(fd, token).map_err(tried("watch"));
        watch(&signals, Token::Signal)?;
        watch(&listener, Token::Listener)?;
        if let Some(cgroups) = forest.watch() {
            watch(cgroups, Token::Cgroups)?;
        }
        let part = |part, number, command: Option<Vec<OsString>>, account: &Option<Account>| {
            command.map(|command| Supervised::new(part, number, command, account.clone()))
        };
        info!(trees = ?forest.describe(), isolation = ?accounts.isolation, "keeper begins");
        Ok(Self {
            agent: part(Part::Agent, 0, options.agent, &accounts.agent),
            uplink: part(Part::Uplink, 1, options.uplink, &accounts.uplink),
            hands: Hands::new(notify, forest, records, operations, files)
                .map_err(tried("open /dev/null"))?,
            place,
            _lock: lock,
            incarnation: Incarnation::draw(),
            accounts,
            poller,
            signals,
            listener,
            inbox: Inbox::default(),
            connection: None,
            results: Results::default(),
            files,
            ending: None,
            sweep_at: None,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            for part in [&mut self.agent, &mut self.uplink].into_iter().flatten() {
                part.turn(&self.poller, &self.place, self.files);
            }
            if self.is_over() {
                runtime::tidy(&self.place.runtime());
                return Ok(());
            }
            self.flush();
            let timeout = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
            for token in self.poller.wait(timeout)? {
                self.take(token);
            }
            if self.sweep_at.is_some_and(|at| at <= Instant::now()) {
                self.sweep_orphans();
            }
            self.hands.look_again(&self.poller);
        }
    }

    fn take(&mut self, token: Token) {
        match token {
            Token::Signal => self.take_signals(),
            Token::Listener => self.accept(),
            Token::Connection => self.read(),
            Token::Cgroups => self.hands.cgroups_changed(&self.poller),
            Token::Main(number) => self.hands.main_stirred(&self.poller, number),
            Token::Member(number) => self.hands.member_ended(&self.poller, number),
            Token::Part(number) => self.part_ended(number),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let parts = [&self.agent, &self.uplink].into_iter().flatten();
        let until = self.ending.and_then(|ending| ending.agent_until);
        let looks = self.hands.looks_again_at();
        parts.filter_map(Supervised::deadline).chain(self.sweep_at).chain(until).chain(looks).min()
    }

    fn take_signals(&mut self) {
        while let Some(came) = signals::next(&self.signals) {
            match came.signal {
                libc::SIGTERM | libc::SIGINT => match self.ending {
                    None => self.end(ShutdownMode::Drain),
                    // Asked twice: whoever asks will not wait for the services.
                    Some(_) => self.end(ShutdownMode::Leave),
                },
                libc::SIGUSR1 => self.end(ShutdownMode::Leave),
                libc::SIGCHLD if self.is_ours(came.pid) => {
                    // Signals of one kind merge, so another child may be hidden behind this one.
                    self.sweep_at.get_or_insert(Instant::now() + SWEEP_PAUSE);
                }
                libc::SIGCHLD => self.sweep_orphans(),
                _ => {}
            }
        }
    }

    fn is_ours(&self, pid: u32) -> bool {
        let mut parts = [&self.agent, &self.uplink].into_iter().flatten();
        parts.any(|part| part.has_child(pid)) || self.hands.is_main(pid)
    }

    /// Reaps the orphans that came to this process as their subreaper.
    fn sweep_orphans(&mut self) {
        self.sweep_at = None;
        for pid in proc::children() {
            if !self.is_ours(pid) {
                exits::reap_ended(pid);
            }
        }
    }

    fn accept(&mut self) {
        loop {
            let socket = match socket::accept(&self.listener) {
                Ok(socket) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return warn!(%error, "failed to accept a connection"),
            };
            match self.is_agent(&socket) {
                Ok(true) => match Connection::new(&self.poller, socket) {
                    Ok(connection) => self.welcome(connection),
                    Err(error) => warn!(%error, "failed to watch a connection"),
                },
                Ok(false) => warn!("a process that is not the agent was turned away"),
                Err(error) => warn!(%error, "failed to learn who connects"),
            }
        }
    }

    /// The agent has its account, and holds its lock.
    fn is_agent(&self, socket: &OwnedFd) -> io::Result<bool> {
        let peer = socket::peer(socket)?;
        let own = rustix::process::geteuid().as_raw();
        let uid = self.accounts.agent.as_ref().map_or(own, |account| account.uid);
        Ok(peer.uid == uid
            && self.place.is_locked(Part::Agent)?
            && self.place.pid(Part::Agent) == Some(peer.pid))
    }

    fn welcome(&mut self, mut connection: Connection) {
        let hello = FromKeeper::Hello {
            hello: Hello::of(Part::Keeper, self.incarnation),
            trees: self.hands.forest.describe(),
            isolation: self.accounts.isolation.clone(),
        };
        connection.push(&hello, Vec::new());
        if let Some(ending) = self.ending {
            connection.push(&FromKeeper::Shutdown(ending.mode), Vec::new());
        }
        self.connection = Some(connection);
        self.hands.facts.rewind();
    }

    fn read(&mut self) {
        for _ in 0..TURN_MAX {
            let Some(connection) = &self.connection else { return };
            let received = match connection.receive(&mut self.inbox) {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(error) => return self.hang_up(&error),
            };
            match (received.message, connection.agent) {
                (ToKeeper::Hello(hello), None) if hello.part == Part::Agent => {
                    match hello.agree() {
                        Ok(_) => self.begin_talk(hello.incarnation),
                        Err(error) => {
                            warn!(%error, "the agent was turned away");
                            self.connection = None;
                        }
                    }
                }
                (ToKeeper::Operate { number, verb }, Some(agent)) => {
                    let (answer, descriptors) = match self.results.seen(number) {
                        Seen::First => {
                            let reply = self.execute(agent, verb, received.descriptors);
                            self.results.keep(number, &reply.0);
                            reply
                        }
                        Seen::Repeat(answer) => (*answer, Vec::new()),
                        Seen::Forgotten => (Answer::Refused(Refusal::Forgotten), Vec::new()),
                    };
                    if let Some(connection) = &mut self.connection {
                        connection.push(&FromKeeper::Answer { number, answer }, descriptors);
                    }
                }
                (ToKeeper::Hello(_), _) | (ToKeeper::Operate { .. }, None) => {
                    warn!("the agent was turned away: its first frame is its one hello");
                    self.connection = None;
                }
            }
        }
    }

    fn begin_talk(&mut self, agent: Incarnation) {
        self.results.begin(agent);
        if let Some(connection) = &mut self.connection {
            connection.agent = Some(agent);
        }
    }

    fn execute(&mut self, agent: Incarnation, verb: Verb, descriptors: Vec<OwnedFd>) -> Reply {
        let (hands, poller) = (&mut self.hands, &self.poller);
        match verb {
            Verb::Spawn(spawn) => match self.ending.map(|ending| ending.mode) {
                // While services are stopped their hooks still have to run.
                None | Some(ShutdownMode::Drain) => hands.spawn(poller, agent, &spawn),
                Some(ShutdownMode::Leave) => (Answer::Refused(Refusal::ShuttingDown), Vec::new()),
            },
            Verb::Signal { run, signal, to, operation } => {
                hands.signal_once(&run, signal, to, operation)
            }
            Verb::KillTree { run } => hands.kill_tree(poller, &run),
            Verb::List { after } => hands.list(poller, after.as_ref()),
            Verb::TakeDescriptors { slot } => hands.take_descriptors(agent, &slot),
            Verb::GiveDescriptors { slot, channels, runs } => {
                hands.give_descriptors(poller, &slot, &channels, &runs, descriptors)
            }
            Verb::CloseSlot { slot } => hands.close_slot(&slot),
            Verb::CloseSockets { slot } => hands.close_sockets(&slot),
            Verb::Acknowledge { through } => hands.acknowledge(poller, through),
            Verb::Shutdown(mode) => {
                self.end(mode);
                (Answer::Done, Vec::new())
            }
        }
    }

    fn flush(&mut self) {
        if let Some(connection) = &mut self.connection
            && let Err(error) = connection.flush(&self.poller, &mut self.hands.facts)
        {
            self.hang_up(&error);
        }
    }

    fn hang_up(&mut self, error: &SocketError) {
        info!(%error, "the agent's connection ended");
        self.connection = None;
    }

    fn part_ended(&mut self, number: u64) {
        let stays_down = self.ending.is_some();
        let part = if number == 0 { &mut self.agent } else { &mut self.uplink };
        let Some(part) = part else { return };
        if part.ended(&self.poller, stays_down) == Ended::Badly && number == 0 && stays_down {
            info!("the agent died before it had stopped the services");
        }
    }

    fn end(&mut self, mode: ShutdownMode) {
        info!(?mode, "told to end");
        let agent_until = (mode == ShutdownMode::Leave).then(|| Instant::now() + LEAVE_MAX);
        self.ending = Some(Ending { mode, agent_until });
        if let Some(connection) = &mut self.connection {
            connection.push(&FromKeeper::Shutdown(mode), Vec::new());
        }
    }

    /// Ends the agent when its time is up and the uplink after the agent; says whether all is done.
    fn is_over(&mut self) -> bool {
        let Some(ending) = &mut self.ending else { return false };
        if ending.agent_until.is_some_and(|until| until <= Instant::now()) {
            ending.agent_until = None;
            if let Some(agent) = &mut self.agent {
                agent.end();
            }
        }
        if !self.agent.as_ref().is_none_or(Supervised::is_over) {
            return false;
        }
        if let Some(uplink) = &mut self.uplink {
            uplink.end();
        }
        let is_over = self.uplink.as_ref().is_none_or(Supervised::is_over);
        if is_over {
            self.flush();
        }
        is_over
    }
}

/// Raises our own limit of open descriptors to the most we may have; returns what it was.
fn raise_files() -> libc::rlimit64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let was = getrlimit(Resource::Nofile);
    // With fewer descriptors there is room for fewer services.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: was.maximum, maximum: was.maximum });
    let raw = |limit: Option<u64>| limit.unwrap_or(libc::RLIM64_INFINITY);
    let launchers = std::env::var(FILES_SOFT).ok().and_then(|text| text.parse().ok());
    let was = Rlimit { current: launchers.or(was.current), maximum: was.maximum };
    libc::rlimit64 { rlim_cur: raw(was.current), rlim_max: raw(was.maximum) }
}

/// Makes a part's folder, and gives it with what an earlier life of another account left in it.
fn own_folder(folder: &std::path::Path, account: Option<&Account>) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711))?;
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (uid, gid) = account.map_or(own, |account| (account.uid, account.gid));
    if fs::metadata(folder)?.uid() != uid {
        for entry in fs::read_dir(folder)? {
            lchown(entry?.path(), Some(uid), Some(gid))?;
        }
        chown(folder, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn listen(place: &Place, agent: Option<&Account>) -> io::Result<OwnedFd> {
    let path = place.keeper_socket();
    let listener = socket::listen(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    if let Some(agent) = agent {
        chown(&path, Some(agent.uid), Some(agent.gid))?;
    }
    Ok(listener)
}

/// Returns the name under which this state folder's runs are told from another's, for ever.
fn domain(place: &Place) -> io::Result<String> {
    let path = place.folder_of(Part::Keeper).join("domain");
    if let Ok(text) = fs::read_to_string(&path)
        && text.len() == 16
        && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        return Ok(text);
    }
    let domain = format!("{:016x}", Incarnation::draw().0);
    let draft = path.with_extension("draft");
    fs::write(&draft, &domain)?;
    fs::rename(draft, path)?;
    Ok(domain)
}
