//! The command line as clap reads it. Meaning is elsewhere; a name here is a promise for ever.

mod config;
mod sign;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use config::{ConfigCommand, ConfigSet, ConfigShow, ConfigUnset};
pub use sign::{Sign, SignAction, SignWish};

use super::error::CliError;
use super::fleet::NODES_MAX;
use super::selector::{Scope, Selector};
use crate::domain::code::Code;
use crate::domain::id::{ActionName, Digest, NodeId, Principal, ServiceId};
use crate::domain::rollout::{Amount, InvalidAmount, OnConflict};
use crate::domain::selector::{Selector as NodeSelector, is_word};
use crate::domain::signal::Signal;

/// Verbs whose names are taken and whose function comes in a later version.
const RESERVED: &[&str] = &[
    "diff", "hold", "release", "service", "alert", "silence", "key", "trust", "policy", "fleet",
    "context", "top", "web", "doctor", "schema", "man", "cancel", "enrol",
];

/// A service manager for one machine or a whole fleet, with history that can be proved.
#[derive(Debug, Parser)]
#[command(name = "smgr", version, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    /// What is common to all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What is common to all commands.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The state folder [default: $SMGR_STATE, /var/lib/smgr for root, else ~/.local/state/smgr]
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Ask this node; may be given several times
    #[arg(long = "node", global = true, value_name = "NODE")]
    pub nodes: Vec<NodeId>,
    /// Go over this bus, even to this machine
    #[arg(long, global = true, value_name = "URL")]
    pub bus: Option<String>,
    /// How to reach the node
    #[arg(long, global = true, value_enum, default_value_t)]
    pub via: Via,
    /// How long to wait; nothing is cancelled when it is over
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// The form of what is printed
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORM")]
    pub output: Output,
}

/// How a node is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// This machine by its socket, others by the bus.
    #[default]
    Auto,
    /// The local socket.
    Local,
    /// The bus.
    Bus,
}

/// The form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people; may change.
    #[default]
    Text,
    /// For programs; one document, or one a line where there are many.
    Json,
    /// For programs; one document a line.
    Jsonl,
    /// Events in the envelope of CloudEvents 1.0, one a line.
    Cloudevents,
}

/// Whether a command ends with the outcome or with the acceptance.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Waiting {
    /// End with the outcome (this is the default)
    #[arg(long, conflicts_with = "detach")]
    wait: bool,
    /// End as soon as the wish is durable
    #[arg(long)]
    pub detach: bool,
}

/// The services that a command is about.
#[derive(Clone, Debug, Args)]
pub struct Targets {
    /// SERVICE or SERVICE@NODE
    #[arg(required = true, value_name = "SERVICE")]
    pub services: Vec<Selector>,
    #[command(flatten)]
    pub over: Over,
    #[command(flatten)]
    pub waiting: Waiting,
}

/// On which nodes of a fleet something is done, and on how many at a time.
#[derive(Clone, Debug, Default, Args)]
pub struct Over {
    /// On those of these nodes of the fleet that have the service: `env=prod,role=web`, `name=n1|n2`, `*`
    #[arg(long, value_name = "NODES")]
    pub select: Option<NodeSelector>,
    /// On how many of them at a time; the last of several repeats [default: 1,25%; for an action 25%]
    #[arg(long, value_name = "N|N%", value_delimiter = ',', requires = "select", value_parser = amount)]
    pub max_parallel: Vec<Amount>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start smgr here, with the services of ./smgr.toml or services.d
    Up(Up),
    /// Stop smgr and its services here
    Down,
    /// Show what happens until Ctrl-C, which leaves everything running
    Attach,
    /// Supervise a command as a service of its own
    Run(Run),
    /// Stop a service and take it away: from this machine with its file, or from the nodes that are selected
    Remove {
        /// Which
        service: ServiceId,
        /// From these nodes of the fleet, some at a time: `env=prod,role=web`, `name=n1|n2`, `*`
        #[arg(long, value_name = "NODES")]
        select: Option<NodeSelector>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Let a service run from a release, wave by wave over a fleet; what does not become healthy is taken back
    Deploy(Deploy),
    /// Let a service run from the release that was good before the present one
    Rollback {
        /// SERVICE or SERVICE@NODE
        service: Selector,
        /// These nodes of the fleet: `env=prod,role=web`, `name=n1|n2`, `*` [default: those that run a release of it]
        #[arg(long, value_name = "NODES")]
        select: Option<NodeSelector>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// See rollouts, and say how they go on
    Rollout {
        #[command(subcommand)]
        command: RolloutArgs,
    },
    /// Bring services up; survives reboot
    Start(Targets),
    /// Bring services down; survives reboot
    Stop(Targets),
    /// Stop, then start, every instance
    Restart(Targets),
    /// Have services take in their configuration, as they say they do
    Reload(Targets),
    /// Send a signal to the main process of every instance
    Signal {
        /// Which signal: TERM, HUP, USR1
        #[arg(short, long, value_parser = signal)]
        signal: Signal,
        #[command(flatten)]
        targets: Targets,
    },
    /// Run an action that a service declares
    Action {
        #[command(subcommand)]
        command: ActionCommand,
    },
    /// Print a wish, signed, and send nothing: whoever carries the bytes to the bus needs no key
    Sign(Sign),
    /// Make this node match its files, restarting exactly what must
    Apply {
        /// Only these services
        services: Vec<ServiceId>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Show what `apply`, or with a spec what `deploy` would do, key by key, and change nothing
    Plan(Planned),
    /// Change what this machine alone wants of a service, in its override file
    Edit {
        /// Of which service
        service: ServiceId,
    },
    /// Show the effective configuration, and where each value was set
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Check spec files and change nothing
    Check {
        /// Files or folders [default: what `up` would load]
        paths: Vec<PathBuf>,
    },
    /// Write a commented smgr.toml here
    Init,
    /// Write a spec and three releases to try a fleet with, one of them broken
    Demo {
        /// Into which folder, which is made
        #[arg(default_value = "shop")]
        folder: PathBuf,
    },
    /// Show what runs, what not, and why
    Status {
        /// SERVICE, SERVICE/INSTANCE, SERVICE@NODE or @NODE
        scope: Option<Scope>,
        /// As it was then: a time, an age or a cursor
        #[arg(long, value_name = "TIME|CURSOR")]
        at: Option<String>,
    },
    /// Show the log lines of a service
    Logs {
        /// SERVICE, SERVICE/INSTANCE or SERVICE@NODE
        selector: Selector,
        /// Of these nodes of the fleet, in the order of time: `env=prod,role=web`, `name=n1|n2`, `*`
        #[arg(long, value_name = "NODES")]
        select: Option<NodeSelector>,
        /// How many lines
        #[arg(short = 'n', long, default_value_t = 50, value_parser = lines)]
        lines: u32,
        /// Go on with what is written from here on
        #[arg(short, long)]
        follow: bool,
    },
    /// Show the raw stream of events
    Events(Events),
    /// Show what happened, one line for each thing
    History(History),
    /// Prove that the history is whole
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Rebuild the state from the log and compare it with the live one
    Replay {
        /// The folder with `log/` [default: the state folder]
        folder: Option<PathBuf>,
    },
    /// Ask nodes whether they are there
    Ping,
    /// Print the figures of this machine's node for Prometheus, or serve them
    Metrics {
        /// Serve them here at /metrics until told to end; `smgr up --metrics` supervises this
        #[arg(long, value_name = "IP:PORT", value_parser = metrics_address)]
        listen: Option<SocketAddr>,
    },
    /// Take nodes on other machines into the fleet of this one
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Make and take back bearer tokens for the HTTP face of a controller
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Write the keys and the trust of this machine into a file
    Backup {
        /// Which file
        #[arg(default_value = "smgr-backup.json")]
        file: PathBuf,
    },
    /// Explain a topic or a command
    Help {
        /// spec, bus, exit-codes, errors, or a command
        topic: Vec<String>,
    },
    /// Explain the code of an error
    Explain {
        /// E0412
        #[arg(value_parser = code)]
        code: Code,
    },
    /// Print completions for a shell
    Completions {
        /// Which
        shell: Shell,
    },
    /// Run the parts of a node; `smgr up` and service units call this
    Agent(PartArgs),
    /// Run a controller; `smgr up --nodes` and service units call this
    Controller,
    /// Answer requests on a socket, as the releases of `smgr demo` do
    #[command(hide = true)]
    DemoServer {
        /// What is answered
        says: String,
    },
    /// Run many nodes in this process, to measure what a fleet of that size costs
    #[command(hide = true)]
    Emulate(Emulate),
}

/// Many nodes in one process: each has a connection, a key, a log, and the gate and the core of an agent.
///
/// Emulated are the processes: a service is ready as soon as it is started and does nothing. A log lies in memory, is
/// durable at once and is gone with the process. Releases have no artifact and services no health checks. All nodes are on
/// the bus as the same user. Keys and trust are made in the state folder, where `smgr ping`, `smgr deploy` and so on
/// then work as ever (a folder that had more nodes trusts the others no more); controllers are set up in `fleet/` below it, to be run with `smgr controller --state`.
#[derive(Clone, Debug, Args)]
pub struct Emulate {
    /// How many
    #[arg(long = "nodes", id = "emulated_nodes", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub nodes: u32,
    /// How many controllers to set up
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(..=8))]
    pub controllers: u8,
    /// Begin each log with so many events more
    #[arg(long, value_name = "EVENTS", default_value_t = 0)]
    pub backlog: u32,
    /// Let all nodes together record so many events a second
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
}

/// What to do with rollouts. They are named `r-9d2c4f01`, or by the beginning of that.
#[derive(Clone, Debug, Subcommand)]
pub enum RolloutArgs {
    /// List those that are remembered, newest first
    List,
    /// Show one, and why it is as it is
    Show {
        /// Which
        name: String,
        /// Exit as the rollout does
        #[arg(long)]
        exit_code: bool,
    },
    /// Wait for the end of one, and exit as it does
    #[command(visible_alias = "wait")]
    Watch {
        /// Which
        name: String,
    },
    /// Give no further node an order; those under way finish
    Pause {
        /// Which
        name: String,
    },
    /// Go on, in spite of what made it pause
    Resume {
        /// Which
        name: String,
    },
    /// Go on behind the canary
    Promote {
        /// Which
        name: String,
    },
    /// Agree to a plan, as a second person
    Approve {
        /// Which
        name: String,
    },
    /// End it; everything touched goes back first
    Abort {
        /// Which
        name: String,
        /// Leave every node on what it runs
        #[arg(long)]
        leave: bool,
    },
    /// Deploy the same release again on the nodes that do not run it
    Retry {
        /// Which
        name: String,
        #[command(flatten)]
        waiting: Waiting,
    },
}

/// What to deploy.
#[derive(Clone, Debug, Args)]
pub struct Deploy {
    /// SERVICE or SERVICE@NODE
    pub service: Selector,
    /// Its spec: the body of a file of services.d
    #[arg(short, long, value_name = "SPEC")]
    pub file: PathBuf,
    /// What it runs: a .tar, .tar.gz or one executable file, which the node fetches itself
    #[arg(long, value_name = "FILE|URL")]
    pub artifact: Option<String>,
    /// What people call the release [default: 1.1 for web-1.1.tar.gz, else the beginning of its digest]
    #[arg(long, value_name = "VERSION")]
    pub release_version: Option<String>,
    /// Changes a key of the spec; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub set: Vec<(String, String)>,
    /// On these nodes of the fleet: `env=prod,role=web`, `name=n1|n2`, `*` [default: `placement.select`, else all]
    #[arg(long, value_name = "NODES")]
    pub select: Option<NodeSelector>,
    /// Without canary and waves, on all nodes at once; the reason is signed with the wish
    #[arg(long, value_name = "REASON")]
    pub emergency: Option<String>,
    /// Start it anew, wave by wave, also where exactly this runs already
    #[arg(long)]
    pub force: bool,
    /// While another rollout of the service is under way: `reject`, `queue` or `supersede` [default: `rollout.on_conflict`]
    #[arg(long, value_name = "WHAT", value_parser = on_conflict)]
    pub on_conflict: Option<OnConflict>,
    #[command(flatten)]
    pub waiting: Waiting,
}

fn on_conflict(text: &str) -> Result<OnConflict, String> {
    let known = OnConflict::WORDS.iter().find(|(word, _)| *word == text);
    known.map(|(_, what)| *what).ok_or_else(|| "it is reject, queue or supersede".to_owned())
}

/// What to look ahead at.
#[derive(Clone, Debug, Args)]
pub struct Planned {
    /// Only these services; with a spec the one that would be deployed
    pub services: Vec<ServiceId>,
    /// What a deploy of this spec would do over the fleet: its waves, what changes for whom, and whereto it could go back
    #[arg(short, long, value_name = "SPEC")]
    pub file: Option<PathBuf>,
    /// As for `deploy`
    #[arg(long, value_name = "FILE|URL", requires = "file")]
    pub artifact: Option<String>,
    /// As for `deploy`
    #[arg(long, value_name = "VERSION", requires = "file")]
    pub release_version: Option<String>,
    /// As for `deploy`
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, requires = "file")]
    pub set: Vec<(String, String)>,
    /// As for `deploy`
    #[arg(long, value_name = "NODES", requires = "file")]
    pub select: Option<NodeSelector>,
    /// As for `deploy`
    #[arg(long, value_name = "REASON", requires = "file")]
    pub emergency: Option<String>,
}

/// Whether the figures of a node are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// There.
    At(SocketAddr),
    /// Not any more.
    Off,
}

fn metrics(text: &str) -> Result<Metrics, String> {
    match text {
        "off" => Ok(Metrics::Off),
        _ => metrics_address(text).map(Metrics::At),
    }
}

/// Reads an address; a port alone is one of the loopback.
fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.parse::<u16>().ok().map(|port| (Ipv4Addr::LOCALHOST, port).into());
    let address: Option<SocketAddr> = port.or_else(|| text.parse().ok());
    let address = address.filter(|address| address.port() != 0);
    address.ok_or_else(|| "an address is IP:PORT, such as 127.0.0.1:9464, or a port".to_owned())
}

/// Something that is said of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Of this one alone; absent: of all.
    pub node: Option<NodeId>,
    /// What kind of thing.
    pub key: String,
    /// What.
    pub value: String,
}

fn label(text: &str) -> Result<Label, String> {
    let (node, pair) = text.split_once(':').map_or((None, text), |(node, it)| (Some(node), it));
    let node = node.map(str::parse).transpose().map_err(|error| format!("{error}"))?;
    match pair.split_once('=') {
        Some((key, value)) if is_word(key) && is_word(value) => {
            Ok(Label { node, key: key.to_owned(), value: value.to_owned() })
        }
        _ => Err("a label is written env=prod, or n2:zone=b for one node".to_owned()),
    }
}

/// Start smgr here.
#[derive(Clone, Debug, Args)]
pub struct Up {
    /// In the background
    #[arg(short, long)]
    pub detach: bool,
    /// A fleet of this many nodes on this machine
    #[arg(long = "nodes", value_name = "N", value_parser = nodes)]
    pub fleet: Option<u16>,
    /// What is said of the nodes of the fleet, by which they are selected, from its next start on: of all, or of one
    #[arg(long = "label", value_name = "[NODE:]KEY=VALUE", value_parser = label)]
    pub labels: Vec<Label>,
    /// Make the keys and set-ups of the fleet and end; its parts are started elsewhere, by the lines that are printed
    #[arg(long, requires = "fleet", conflicts_with_all = ["detach", "http", "listen"])]
    pub set_up_only: bool,
    /// Let the controllers of the fleet serve HTTP on this port of 127.0.0.1 and those behind it
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub http: Option<u16>,
    /// Serve the figures of this machine's node for Prometheus here from now on, or `off`; a port alone is one of 127.0.0.1
    #[arg(long, value_name = "IP:PORT", value_parser = metrics)]
    pub metrics: Option<Metrics>,
    /// Let the bus of the fleet listen here for nodes on other machines, encrypted, from now on
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
}

/// What to do about nodes on other machines: `ssh web-1 smgr node request | smgr node admit | ssh web-1 smgr node join`.
#[derive(Clone, Debug, Subcommand)]
pub enum NodeCommand {
    /// On the new machine: make its keys and print their public halves
    Request {
        /// What the node is to be called [default: the name of this machine]
        #[arg(long)]
        name: Option<NodeId>,
    },
    /// On the machine of the root key: take a node in, by its request, and print what it needs to join
    Admit {
        /// The request; `-` is standard input
        #[arg(default_value = "-")]
        request: PathBuf,
        /// What is said of the node, by which it is selected; may be given several times
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
        labels: Vec<(String, String)>,
        /// How it reaches the bus [default: the address of `smgr up --listen`]
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// On the new machine: join the fleet that admitted it
    Join {
        /// What `admit` printed; `-` is standard input
        #[arg(default_value = "-")]
        welcome: PathBuf,
    },
    /// On the machine of the root key: trust a node on another machine no more
    Remove {
        /// Which
        node: NodeId,
    },
}

/// Supervise a command.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// What to call it
    pub name: ServiceId,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
    #[command(flatten)]
    pub waiting: Waiting,
}

/// What to do with actions.
#[derive(Clone, Debug, Subcommand)]
pub enum ActionCommand {
    /// Run one
    Run {
        /// Of which service
        service: Selector,
        /// Which
        action: ActionName,
        /// Its parameters, NAME=VALUE
        #[arg(value_parser = pair)]
        params: Vec<(String, String)>,
        /// Say yes to an action that wants it (`confirm` in its spec), instead of being asked
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        over: Over,
        #[command(flatten)]
        waiting: Waiting,
    },
}

/// Which events.
#[derive(Clone, Debug, Args)]
pub struct Events {
    /// Go on with what happens from here on
    #[arg(short, long)]
    pub follow: bool,
    /// After this cursor, or since this time or age; `now` leaves out all that has happened
    #[arg(long, value_name = "CURSOR|TIME|now")]
    pub since: Option<String>,
    /// About this service
    #[arg(long)]
    pub service: Option<ServiceId>,
    /// Of the whole fleet, in the order in which they reached a controller
    #[arg(long)]
    pub fleet: bool,
}

/// Which history.
#[derive(Clone, Debug, Args)]
pub struct History {
    /// SERVICE, SERVICE/INSTANCE, SERVICE@NODE or @NODE
    pub scope: Option<Scope>,
    /// One line for each run
    #[arg(long)]
    pub runs: bool,
    /// Fold nothing
    #[arg(long)]
    pub all: bool,
}

/// What to prove.
#[derive(Clone, Debug, Subcommand)]
pub enum AuditCommand {
    /// Verify a log from its files, or with --node from what a live node answers
    Verify {
        /// The folder with `log/` [default: the state folder]
        folder: Option<PathBuf>,
        /// A file of `smgr audit pin`, kept elsewhere: the log must hold what it saw
        #[arg(long, value_name = "FILE")]
        pin: Option<PathBuf>,
        /// The root key that the trust document must be signed by, as `root.pub` has it
        #[arg(long, value_name = "KEY")]
        root: Option<Digest>,
    },
    /// Remember the heads of the logs, so that a cut tail is seen
    Pin,
}

/// What to do with tokens.
#[derive(Clone, Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and show it, this once
    Create {
        /// The job whose key it stands for, one of `jobs` in fleet.json
        #[arg(long = "as", value_name = "JOB")]
        job: Principal,
        /// For this controller [default: the first]
        #[arg(long)]
        controller: Option<NodeId>,
    },
    /// Show which tokens there are
    List,
    /// Take a token back, at once
    Revoke {
        /// The first 8 digits of its SHA-256, as `smgr token list` shows them
        token: String,
    },
}

/// Run a part of a node.
#[derive(Clone, Copy, Debug, Args)]
pub struct PartArgs {
    /// One part, started by another; without it the launcher
    #[arg(long, value_enum, hide = true)]
    pub part: Option<PartName>,
    /// Start no agent and no uplink beside the keeper
    #[arg(long, hide = true)]
    pub alone: bool,
    /// Hold the processes of a run together without cgroups
    #[arg(long, hide = true)]
    pub no_cgroups: bool,
}

/// The parts of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PartName {
    /// The hands.
    Keeper,
    /// The head.
    Agent,
    /// The voice.
    Uplink,
}

/// What the processes of a node and of a controller are started with.
///
/// The whole tree of commands would stay in the memory of each of them, half a megabyte that nothing asks for again.
#[derive(Debug, Parser)]
#[command(name = "smgr")]
struct Part {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: PartCommand,
}

#[derive(Debug, Subcommand)]
enum PartCommand {
    Agent(PartArgs),
    Controller,
}

impl Part {
    /// Reads the command line of a part; what it does not understand is for the whole tree to say.
    fn parse(args: &[OsString]) -> Option<Cli> {
        let name = args.get(1)?.to_str()?;
        if !matches!(name, "agent" | "controller") {
            return None;
        }
        let Self { global, command } = Self::try_parse_from(args).ok()?;
        let command = match command {
            PartCommand::Agent(args) => Command::Agent(args),
            PartCommand::Controller => Command::Controller,
        };
        Some(Cli { global, command: Some(command) })
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// A command to carry out.
    Command(Box<Cli>),
    /// A text that was asked for.
    Text(String),
}

/// Returns the whole tree, reserved verbs included.
pub fn tree() -> clap::Command {
    let rest =
        || clap::Arg::new("rest").num_args(0..).allow_hyphen_values(true).trailing_var_arg(true);
    RESERVED.iter().fold(Cli::command(), |tree, name| {
        tree.subcommand(clap::Command::new(*name).hide(true).disable_help_flag(true).arg(rest()))
    })
}

/// Reads a command line.
///
/// # Errors
/// When it was not understood, or names what this version does not have.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, CliError> {
    let args: Vec<_> = args.into_iter().collect();
    let path = path(&args);
    if let Some(cli) = Part::parse(&args) {
        return Ok(Parsed::Command(Box::new(cli)));
    }
    let mut matches = match tree().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => return refused(&error, &path),
    };
    if let Some(name) = matches.subcommand_name().filter(|name| RESERVED.contains(name)) {
        return Err(CliError::not_yet(&format!("`smgr {name}`")));
    }
    match Cli::from_arg_matches_mut(&mut matches) {
        Ok(cli) => Ok(Parsed::Command(Box::new(cli))),
        Err(error) => refused(&error, &path),
    }
}

/// Returns the names of the commands that a line has, outermost first.
fn path(args: &[OsString]) -> Vec<String> {
    let mut tree = Cli::command();
    let mut path = Vec::new();
    for word in args.iter().skip(1).filter_map(|word| word.to_str()) {
        let found = tree.get_subcommands().find(|it| it.get_name() == word && !it.is_hide_set());
        if let Some(found) = found.cloned() {
            path.push(word.to_owned());
            tree = found;
        }
    }
    path
}

/// Returns the command of the tree with these names.
pub fn command(path: &[impl AsRef<str>]) -> Option<clap::Command> {
    let mut found = tree();
    // So that its usage says what it takes.
    found.build();
    for name in path {
        found = found.find_subcommand(name.as_ref())?.clone();
    }
    Some(found)
}

fn refused(error: &clap::Error, path: &[String]) -> Result<Parsed, CliError> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Ok(Parsed::Text(text));
    }
    let next = match path {
        [] => "smgr --help".to_owned(),
        path => format!("smgr help {}", path.join(" ")),
    };
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let names = visible(path).join(", ");
        let what = format!("`smgr {}` is followed by one of: {names}", path.join(" "));
        return Err(CliError::new(Code::USAGE, what).next(next));
    }
    let mut paragraphs = text.split("\n\n").map(str::trim).filter(|text| !text.is_empty());
    let what = paragraphs.next().unwrap_or_default().trim_start_matches("error: ");
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut hints = Vec::new();
    let meant = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(meant)) => Some(meant.as_str()),
        _ => None,
    };
    if let Some(near) = meant.and_then(|meant| nearest(&visible(path), meant)) {
        hints.push(format!("did you mean `{near}`?"));
    }
    for line in paragraphs.flat_map(str::lines).map(str::trim) {
        if let Some(tip) = line.strip_prefix("tip: ").filter(|_| meant.is_none()) {
            hints.push(tip.to_owned());
        } else if let Some(usage) = line.strip_prefix("Usage: ") {
            hints.push(format!("usage: {usage}"));
        }
    }
    let error = CliError::new(Code::USAGE, what).next(next);
    Err(hints.into_iter().fold(error, CliError::hint))
}

/// Returns the names of the commands in a command, those left out that are not for people.
fn visible(path: &[String]) -> Vec<String> {
    let mut tree = Cli::command();
    for name in path {
        tree = tree.find_subcommand(name).cloned().unwrap_or(tree);
    }
    let shown = tree.get_subcommands().filter(|it| !it.is_hide_set());
    shown.map(|it| it.get_name().to_owned()).collect()
}

/// Returns the name that is meant most probably: two mistakes away at most, and the longer one of two.
fn nearest(names: &[String], meant: &str) -> Option<String> {
    let near = names.iter().map(|name| (strsim::osa_distance(name, meant), name));
    let near = near.filter(|(distance, _)| *distance <= 2);
    near.min_by_key(|(distance, name)| (*distance, usize::MAX - name.len()))
        .map(|(_, name)| name.clone())
}

fn duration(text: &str) -> Result<Duration, String> {
    super::time::duration(text).ok_or_else(|| "a duration is written 90s, 5m or 1h30m".to_owned())
}

fn nodes(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("a number of nodes is expected, 1 to {NODES_MAX}"))
}

fn amount(text: &str) -> Result<Amount, String> {
    let amount: Amount = text.parse().map_err(|error: InvalidAmount| error.to_string())?;
    match amount.is_zero() {
        true => Err("no node at a time would never end".to_owned()),
        false => Ok(amount),
    }
}

fn lines(text: &str) -> Result<u32, String> {
    let lines = text.parse().ok().filter(|lines| (1..=10_000).contains(lines));
    lines.ok_or_else(|| "a number of lines is expected, 1 to 10000".to_owned())
}

fn signal(text: &str) -> Result<Signal, String> {
    text.parse().map_err(|error: crate::domain::signal::InvalidSignal| error.to_string())
}

fn code(text: &str) -> Result<Code, String> {
    text.parse().map_err(|error: crate::domain::code::InvalidCode| error.to_string())
}

fn pair(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "a parameter is written NAME=VALUE".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Parsed, CliError> {
        parse(line.split_whitespace().map(Into::into))
    }

    #[test]
    fn the_tree_is_consistent() {
        tree().debug_assert();
    }

    #[test]
    fn a_reserved_verb_is_known_and_not_in_this_version() {
        for line in ["smgr diff web", "smgr fleet"] {
            let error = read(line).unwrap_err();
            assert_eq!((error.code, error.exit().number()), (Code::NOT_YET, 2), "{line}");
        }
    }

    #[test]
    fn a_misspelt_command_is_answered_with_the_nearest_one() {
        let error = read("smgr statsu").unwrap_err();
        assert_eq!(error.code, Code::USAGE);
        assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("status")), "{error:?}");
        let error = read("smgr restat web").unwrap_err();
        assert!(error.hint.is_some_and(|hint| hint.starts_with("did you mean `restart`?")));
        let hint = read("smgr agnet").unwrap_err().hint.unwrap_or_default();
        assert!(!hint.contains("emulate"), "{hint}");
    }

    #[test]
    fn a_command_of_commands_says_which_there_are() {
        for (line, some) in [("smgr node", "admit"), ("smgr rollout", "retry")] {
            let error = read(line).unwrap_err();
            assert!(error.what.contains(some), "{error:?}");
            assert_eq!(error.next_command(), line.replacen("smgr", "smgr help", 1));
        }
        let error = read("smgr restart --wat").unwrap_err();
        assert_eq!(error.next_command(), "smgr help restart");
    }

    #[test]
    fn a_misspelt_flag_and_a_bad_name_are_usage_errors() {
        for line in ["smgr status --wat", "smgr stop Web.Service", "smgr run x", "smgr signal web"]
        {
            assert_eq!(read(line).unwrap_err().code, Code::USAGE, "{line}");
        }
    }

    #[test]
    fn a_number_that_is_none_is_told_in_our_words() {
        for line in ["smgr up --nodes x", "smgr up --nodes -1", "smgr logs web -n 0"] {
            let what = read(line).unwrap_err().what;
            assert!(what.contains("is expected") || what.contains("unexpected"), "{what}");
        }
    }

    #[test]
    fn a_label_is_said_of_all_nodes_or_of_one() {
        let of = |text: &str| label(text).map(|it| (it.node.map(|node| node.to_string()), it.key));
        assert_eq!(of("env=prod"), Ok((None, "env".to_owned())));
        assert_eq!(of("n2:zone=b"), Ok((Some("n2".to_owned()), "zone".to_owned())));
        assert!(["env", "=x", "env=", "n2:env", ":a=b"].into_iter().all(|text| of(text).is_err()));
    }

    #[test]
    fn help_and_version_are_texts_not_errors() {
        for line in ["smgr --help", "smgr --version", "smgr up --help"] {
            assert!(matches!(read(line), Ok(Parsed::Text(_))), "{line}");
        }
    }

    #[test]
    fn global_flags_stand_before_and_behind_the_command() {
        for line in ["smgr -o json --node n1 status web", "smgr status web -o json --node n1"] {
            let Ok(Parsed::Command(cli)) = read(line) else { panic!("{line}") };
            assert_eq!((cli.global.output, cli.global.nodes.len()), (Output::Json, 1));
        }
    }
}
