//! From a specification to a process: everything that the keeper needs to start it, looked up.
//!
//! Runs on the agent's own task for each start, so it reads only small files and remembers what
//! cannot change. Whether something is started, and what follows a fault, is decided elsewhere.

mod account;
mod acl;
mod environment;
mod fault;
mod folder;
mod names;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use rustix::process::getrlimit;
use serde_bytes::ByteBuf;

use crate::domain::id::{ActionName, FleetId, InstanceId, NodeId, RunId};
use crate::domain::spec::{self, ReadyBy, ReloadBy, Spec, UpdateMethod};
use crate::domain::template::Template;
use crate::ipc::keeper::{Limit, Resource, RunName, Spawn};
use crate::ipc::listen::Listening;

use account::{Accounts, Identity};
use environment::Environment;
use folder::RunFolder;

pub use fault::{ActionRefusal, Degradation, LaunchFault};
pub use names::{run_name, slot_name};

/// How many descriptors a service may have, unless the parts themselves may have fewer.
const FILES_DEFAULT: u64 = 65_536;

/// Where programs without `/` are sought, unless the specification says otherwise.
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is the same for every start on this node.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// The node.
    pub node: NodeId,
    /// Its fleet.
    pub fleet: FleetId,
    /// `<state>/run/runtime`, mostly a link into memory: holds one folder for each run that needs one. Made if it is missing,
    /// with 0711; folders above it must let the services' accounts pass.
    pub runtime_dir: PathBuf,
    /// `<state>/releases`: `${release}` is a folder in it.
    pub releases_dir: PathBuf,
    /// Whether the keeper can take on other accounts.
    pub keeper_is_root: bool,
    /// The `PATH` of services; [`PATH_DEFAULT`], or the user's own under `smgr up`.
    pub path: String,
}

/// Which run of what is to be prepared.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The effective specification.
    pub spec: &'a Spec,
    /// The slot.
    pub instance: &'a InstanceId,
    /// The number of the start; for a process beside a run, that of the run.
    pub run: RunId,
}

/// A process that can be started.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// What the keeper is asked for.
    pub spawn: Spawn,
    /// What is not as the specification promises; for `status`.
    pub degraded: Vec<Degradation>,
}

/// Says why the account of a service cannot be taken on by this machine, where it cannot.
pub fn account_fault(spec: &Spec, keeper_is_root: bool) -> Option<String> {
    let mut accounts = Accounts::new();
    let found = accounts.identify(spec.user.as_ref(), &spec.supplementary_groups, keeper_is_root);
    found.err().map(|fault| fault.why)
}

/// Prepares starts. One for the agent; holds what may be remembered between them.
#[derive(Debug)]
pub struct Launcher {
    facts: NodeFacts,
    accounts: Accounts,
    files_hard: u64,
}

impl Launcher {
    /// Makes one for this node. Reads nothing yet.
    pub fn new(facts: NodeFacts) -> Self {
        let files_hard = getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
        Self { facts, accounts: Accounts::new(), files_hard }
    }

    /// Takes in whether the keeper can take on other accounts, which it says itself.
    pub fn keeper_is_root(&mut self, is_root: bool) {
        self.facts.keeper_is_root = is_root;
    }

    /// Prepares a run of a service: its folder and credentials are there when this returns.
    ///
    /// `memo` comes back with every fact of the run.
    pub fn service(&mut self, start: Start<'_>, memo: Vec<u8>) -> Result<Launch, LaunchFault> {
        let spec = start.spec;
        let name = run_name(start.instance, start.run);
        let mut launch = self
            .process(
                start,
                Process {
                    name: name.clone(),
                    exec: &spec.exec,
                    user: spec.user.as_ref(),
                    params: &BTreeMap::new(),
                    makes_folder: true,
                },
                memo,
            )
            // A start that fails has no end that would be acknowledged.
            .inspect_err(|_| drop(self.clean_up(&name)))?;
        launch.spawn.notify = spec.notifies();
        launch.spawn.ready_fd = match spec.ready.by {
            ReadyBy::Fd(number) => Some(u32::from(number)),
            ReadyBy::Started | ReadyBy::Notify | ReadyBy::Log(_) | ReadyBy::Health => None,
        };
        let names = Names {
            facts: &self.facts,
            instance: start.instance,
            run: Some(start.run),
            release: artifact(spec),
            params: &BTreeMap::new(),
        };
        launch.spawn.sockets = listening(spec, &names)?;
        if !launch.spawn.sockets.is_empty() {
            let names: Vec<&str> = spec.socket.keys().map(String::as_str).collect();
            let variables = [
                ("LISTEN_FDS".to_owned(), names.len().to_string()),
                ("LISTEN_FDNAMES".to_owned(), names.join(":")),
            ];
            // `LISTEN_PID` is known when there is a process.
            let is_ours =
                |name: &str| matches!(name, "LISTEN_FDS" | "LISTEN_FDNAMES" | "LISTEN_PID");
            launch.spawn.env.retain(|(name, _)| !is_ours(name));
            launch.spawn.env.extend(variables);
        }
        Ok(launch)
    }

    /// Prepares an action with the values that [`bind_action`] returned.
    pub fn action(
        &mut self,
        start: Start<'_>,
        name: RunName,
        action: &ActionName,
        values: &BTreeMap<String, String>,
        memo: Vec<u8>,
    ) -> Result<Launch, LaunchFault> {
        let Some(declared) = start.spec.action.get(action) else {
            return Err(LaunchFault::ours("action", format!("no action is called {action}")));
        };
        let user = declared.user.as_ref().or(start.spec.user.as_ref());
        self.beside(start, name, &declared.exec, user, values, memo)
    }

    /// Prepares the command of `reload.by = "exec"`.
    pub fn reload(
        &mut self,
        start: Start<'_>,
        name: RunName,
        memo: Vec<u8>,
    ) -> Result<Launch, LaunchFault> {
        let ReloadBy::Exec(exec) = &start.spec.reload.by else {
            return Err(LaunchFault::ours("reload", "the service reloads without a command"));
        };
        self.beside(start, name, exec, start.spec.user.as_ref(), &BTreeMap::new(), memo)
    }

    /// Prepares the command of `stop.pre`.
    pub fn before_stop(
        &mut self,
        start: Start<'_>,
        name: RunName,
        memo: Vec<u8>,
    ) -> Result<Launch, LaunchFault> {
        let Some(exec) = &start.spec.stop.pre else {
            return Err(LaunchFault::ours("stop", "the service has no command before its stop"));
        };
        self.beside(start, name, exec, start.spec.user.as_ref(), &BTreeMap::new(), memo)
    }

    /// Prepares a program that tells how a run is.
    pub fn check(
        &mut self,
        start: Start<'_>,
        exec: &[Template],
        name: RunName,
        memo: Vec<u8>,
    ) -> Result<Launch, LaunchFault> {
        self.beside(start, name, exec, start.spec.user.as_ref(), &BTreeMap::new(), memo)
    }

    /// Returns a text about an instance with its names expanded.
    ///
    /// # Errors
    /// A name in it stands for nothing here.
    pub fn text(
        &self,
        text: &Template,
        instance: &InstanceId,
        run: Option<RunId>,
    ) -> Result<String, LaunchFault> {
        let params = BTreeMap::new();
        let names = Names { facts: &self.facts, instance, run, release: None, params: &params };
        expand("text", text, &names)
    }

    /// Returns the folder of an instance's log.
    pub fn log_dir(&self, spec: &Spec, instance: &InstanceId) -> Result<PathBuf, LaunchFault> {
        let params = BTreeMap::new();
        let release = artifact(spec);
        let names = Names { facts: &self.facts, instance, run: None, release, params: &params };
        let dir = PathBuf::from(expand("log", &spec.log.dir, &names)?);
        match dir.is_absolute() {
            true => Ok(dir),
            false => Err(LaunchFault::ours("log", "log.dir is not an absolute path")),
        }
    }

    /// Removes the folder of a run, if it had one. Called when its end was acknowledged.
    pub fn clean_up(&self, run: &RunName) -> io::Result<()> {
        folder::remove(&self.facts.runtime_dir, run)
    }

    /// Removes the folders of all runs but those that live. Called once, when the agent starts.
    pub fn clean_up_but(&self, live: &BTreeSet<RunName>) -> io::Result<()> {
        folder::remove_but(&self.facts.runtime_dir, live)
    }

    fn beside(
        &mut self,
        start: Start<'_>,
        name: RunName,
        exec: &[Template],
        user: Option<&spec::Account>,
        params: &BTreeMap<String, String>,
        memo: Vec<u8>,
    ) -> Result<Launch, LaunchFault> {
        let process = Process { name, exec, user, params, makes_folder: false };
        let mut launch = self.process(start, process, memo)?;
        launch.spawn.is_errand = true;
        Ok(launch)
    }

    fn process(
        &mut self,
        start: Start<'_>,
        process: Process<'_>,
        memo: Vec<u8>,
    ) -> Result<Launch, LaunchFault> {
        let Start { spec, instance, run } = start;
        let names = Names {
            facts: &self.facts,
            instance,
            run: Some(run),
            release: artifact(spec),
            params: process.params,
        };
        let identity = self.accounts.identify(
            process.user,
            &spec.supplementary_groups,
            self.facts.keeper_is_root,
        )?;
        let argv = process
            .exec
            .iter()
            .map(|argument| expand("exec", argument, &names))
            .collect::<Result<Vec<_>, _>>()?;
        let working_dir = expand("working_dir", &spec.working_dir, &names)?;
        if !working_dir.starts_with('/') {
            return Err(LaunchFault::ours("working_dir", "working_dir is not an absolute path"));
        }
        let folder = RunFolder::new(&self.facts.runtime_dir, &run_name(instance, run));
        let mut degraded = Vec::new();
        if process.makes_folder && folder::is_needed(spec) {
            folder.make(&identity, &mut degraded)?;
        }
        let env = Environment {
            facts: &self.facts,
            start,
            identity: &identity,
            names: &names,
            folder: &folder,
            copies_credentials: process.makes_folder,
        }
        .build()?;
        let spawn = Spawn {
            run: process.name,
            slot: slot_name(instance),
            argv,
            env,
            working_dir,
            account: identity.account,
            umask: u32::from(spec.umask),
            limits: self.limits(),
            oom_score_adjust: i32::from(spec.limits.oom_score_adjust),
            no_new_privileges: true,
            notify: false,
            ready_fd: None,
            sockets: Vec::new(),
            is_errand: false,
            memo: ByteBuf::from(memo),
        };
        Ok(Launch { spawn, degraded })
    }

    fn limits(&self) -> Vec<Limit> {
        let files = FILES_DEFAULT.min(self.files_hard);
        vec![
            // A daemon that knows how many it needs may raise its own, as far as we could.
            Limit { resource: Resource::Files, soft: files, hard: self.files_hard },
            Limit { resource: Resource::Core, soft: 0, hard: 0 },
        ]
    }
}

/// Checks the parameters of an action, before it is accepted, and returns a value for each.
pub fn bind_action(
    spec: &Spec,
    action: &ActionName,
    given: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, ActionRefusal> {
    let declared = spec.action.get(action).ok_or_else(|| ActionRefusal::NoSuchAction {
        action: action.clone(),
        known: spec.action.keys().cloned().collect(),
    })?;
    Ok(crate::config::params::bind(declared, given)?)
}

/// What differs between a service and what runs beside it.
struct Process<'a> {
    name: RunName,
    exec: &'a [Template],
    user: Option<&'a spec::Account>,
    params: &'a BTreeMap<String, String>,
    makes_folder: bool,
}

/// What `${name}` stands for.
#[derive(Debug, Clone, Copy)]
struct Names<'a> {
    facts: &'a NodeFacts,
    instance: &'a InstanceId,
    run: Option<RunId>,
    /// The folder of its artifact.
    release: Option<&'a str>,
    params: &'a BTreeMap<String, String>,
}

impl Names<'_> {
    fn get(&self, name: &str) -> Option<String> {
        if let Some(value) = self.params.get(name) {
            return Some(value.clone());
        }
        match name {
            "service" => Some(self.instance.service.to_string()),
            "instance" => Some(self.instance.index.to_string()),
            "node" => Some(self.facts.node.to_string()),
            "fleet" => Some(self.facts.fleet.to_string()),
            "release" => {
                let folder = self.facts.releases_dir.join(self.instance.service.as_str());
                Some(folder.join(self.release?).display().to_string())
            }
            "run" => self.run.map(|run| run.to_string()),
            "runtime" => {
                let run = run_name(self.instance, self.run?);
                Some(self.facts.runtime_dir.join(run.as_str()).display().to_string())
            }
            _ => None,
        }
    }
}

/// Returns the name of the folder of a spec's release, when that has files.
fn artifact(spec: &Spec) -> Option<&str> {
    spec.release.as_ref()?.artifact.as_deref()
}

fn expand(
    step: &'static str,
    template: &Template,
    names: &Names<'_>,
) -> Result<String, LaunchFault> {
    let text = template
        .expand(|name| names.get(name))
        .map_err(|error| LaunchFault::ours(step, error.to_string()))?;
    match text.contains('\0') {
        true => Err(LaunchFault::ours(step, "a text holds a NUL byte")),
        false => Ok(text),
    }
}

/// Returns where a run is to listen.
fn listening(spec: &Spec, names: &Names<'_>) -> Result<Vec<Listening>, LaunchFault> {
    let sockets = spec.socket.iter().map(|(name, socket)| {
        let text = expand("socket", &socket.listen, names)?;
        let address = text.parse().map_err(|why: spec::InvalidAddress| {
            LaunchFault::ours("socket", format!("socket.{name}.listen, `{text}`, {why}"))
        })?;
        let holder = match (socket.per_instance, spec.update.method, names.run) {
            // Old and new never share it.
            (true, UpdateMethod::Handover, Some(run)) => run_name(names.instance, run).to_string(),
            (true, ..) => slot_name(names.instance).to_string(),
            (false, ..) => names.instance.service.to_string(),
        };
        Ok(Listening {
            name: name.clone(),
            key: format!("{holder}/{name}"),
            address,
            backlog: socket.backlog,
            mode: u32::from(socket.mode),
        })
    });
    sockets.collect()
}

/// Says whether an account is the one that the agent itself runs as.
fn is_own(identity: &Identity) -> bool {
    identity.account.as_ref().is_none_or(|account| account.uid == identity.agent_uid)
}
