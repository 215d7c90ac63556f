//! Where this machine keeps things, and who is asking.

use std::path::{Path, PathBuf};

use etcetera::base_strategy::{BaseStrategy, Xdg};

use super::args::Global;
use super::error::CliError;
use super::selector::{Scope, Selector};
use crate::agent::setup::{NodeSetup, ReadSetupError};
use crate::domain::code::Code;
use crate::domain::id::{NodeId, Principal};
use crate::head::folder::StateFolder;

/// The environment of one call.
#[derive(Clone, Debug)]
pub struct Context {
    /// The flags that every command has.
    pub global: Global,
    /// The state folder.
    pub folder: StateFolder,
    /// The folder of `NAME.toml` that people write.
    pub services: PathBuf,
    /// The folder of `NAME.toml` that came with packages, where there is one.
    pub packages: Option<PathBuf>,
    /// Whether this user is root.
    pub is_root: bool,
    /// The command, where it says more of a wish than the wish itself: `run`, `up`.
    pub verb: Option<&'static str>,
}

impl Context {
    /// Finds the folders: what a flag or `SMGR_STATE` says, else those of root or of this user.
    ///
    /// # Errors
    /// When the user has no home folder.
    pub fn new(global: Global) -> Result<Self, CliError> {
        let is_root = rustix::process::geteuid().is_root();
        let told = global.state.clone().or_else(|| {
            std::env::var_os("SMGR_STATE").filter(|dir| !dir.is_empty()).map(PathBuf::from)
        });
        // A folder of one's own, as tests and CI jobs have, keeps its specs to itself.
        let (state, services, packages) = match (told, is_root) {
            (Some(state), _) => {
                let state = std::path::absolute(&state)
                    .map_err(|error| CliError::caused(Code::IO, "no current folder", &error))?;
                let services = state.join("config/services.d");
                let packages = state.join("config/vendor.d");
                (state, services, Some(packages))
            }
            (None, true) => (
                "/var/lib/smgr".into(),
                "/etc/smgr/services.d".into(),
                Some("/usr/lib/smgr/services.d".into()),
            ),
            (None, false) => {
                let home = Xdg::new().map_err(|error| {
                    CliError::caused(Code::IO, "this user has no home folder", &error)
                        .hint("name a state folder: --state DIR")
                })?;
                let state = home.state_dir().unwrap_or_else(|| home.data_dir()).join("smgr");
                (state, home.config_dir().join("smgr/services.d"), None)
            }
        };
        Ok(Self {
            global,
            folder: StateFolder::new(state),
            services,
            packages,
            is_root,
            verb: None,
        })
    }

    /// Returns as whom a service runs whose file is written for root, who has to say it: the person behind `sudo`, else root.
    pub fn service_user(&self) -> Option<String> {
        self.is_root.then(|| var("SUDO_USER").unwrap_or_else(|| "root".to_owned()))
    }

    /// Returns the same with wishes that say which command they come from.
    pub fn by(&self, verb: &'static str) -> Self {
        Self { verb: Some(verb), ..self.clone() }
    }

    /// Returns the same with what a scope says: its node is asked, and its instances are asked about.
    pub fn scoped(&self, scope: Option<Scope>) -> (Self, Option<Selector>) {
        let mut context = self.clone();
        match scope {
            Some(Scope::Node(node)) => {
                context.global.nodes.push(node);
                (context, None)
            }
            Some(Scope::Instances(selector)) => (context, Some(selector)),
            None => (context, None),
        }
    }

    /// Returns the folder of the log files of services that name none.
    pub fn service_logs(&self) -> PathBuf {
        match self.folder.root() == Path::new("/var/lib/smgr") {
            true => "/var/log/smgr".into(),
            false => self.folder.service_logs(),
        }
    }

    /// Returns who vouches for a bus that is named and not set up: whoever names one at `tls://` may leave the certificate of
    /// its authority in the state folder.
    pub fn told_bus_ca(&self) -> Option<PathBuf> {
        Some(self.folder.bus_ca()).filter(|path| path.exists())
    }

    /// Reads the node's set-up; `None` where no node was ever set up.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn setup(&self) -> Result<Option<NodeSetup>, CliError> {
        match NodeSetup::read(&self.folder) {
            Ok(setup) => Ok(Some(setup)),
            Err(ReadSetupError::Missing { .. }) => Ok(None),
            Err(error) => Err(CliError::from_error(Code::FILE_UNREADABLE, &error)),
        }
    }

    /// Returns the node of this machine.
    ///
    /// # Errors
    /// When no node was ever set up here.
    pub fn own_node(&self) -> Result<NodeId, CliError> {
        self.setup()?.map(|setup| setup.node).ok_or_else(|| not_up(self))
    }
}

/// Says that nothing runs here.
pub fn not_up(context: &Context) -> CliError {
    let error = CliError::new(Code::AGENT_UNREACHABLE, "smgr is not up here")
        .at(short(context.folder.root()))
        .next("smgr up");
    match context.folder.log().is_dir() && context.folder.trust().exists() {
        true => error.hint("what was here is in its files: smgr history, smgr status --at 1s"),
        false => error,
    }
}

/// Returns a path as people write it: `~` for the home folder.
pub fn short(path: &Path) -> String {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match home.as_deref().and_then(|home| path.strip_prefix(home).ok()) {
        Some(rest) if !rest.as_os_str().is_empty() => format!("~/{}", rest.display()),
        Some(_) | None => path.display().to_string(),
    }
}

/// Returns the name of the user who runs this, as a principal.
pub fn user_name() -> Principal {
    let name = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
    token(&name).unwrap_or_else(|| "operator".parse().expect("a constant that is a name"))
}

/// Returns the first label of the host's name, as a node.
pub fn host_name() -> NodeId {
    let name = rustix::system::uname();
    let first = name.nodename().to_string_lossy().split('.').next().unwrap_or_default().to_owned();
    token(&first)
        .filter(|node: &NodeId| node.as_str() != crate::wire::subject::ALL)
        .unwrap_or_else(|| "n1".parse().expect("a constant that is a name"))
}

fn token<T: std::str::FromStr>(text: &str) -> Option<T> {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let mapped: String = text.chars().take(63).map(fits).collect();
    mapped.trim_matches('-').parse().ok()
}

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns what the signer says of itself inside a signature: who stands behind `sudo`, which CI run it is, or else
/// which command it was.
pub fn note(context: &Context) -> String {
    let github = || {
        let (server, repository, run) =
            (var("GITHUB_SERVER_URL")?, var("GITHUB_REPOSITORY")?, var("GITHUB_RUN_ID")?);
        Some(format!("run {server}/{repository}/actions/runs/{run}"))
    };
    let job = || {
        let run = github().or_else(|| var("CI_JOB_URL").map(|url| format!("run {url}")))?;
        let commit = var("GITHUB_SHA").or_else(|| var("CI_COMMIT_SHA"));
        Some(commit.map_or(run.clone(), |commit| format!("{run} commit {commit}")))
    };
    let sudo =
        || var("SUDO_USER").filter(|_| context.is_root).map(|user| format!("sudo by {user}"));
    let note = sudo().or_else(job).or(context.verb.map(str::to_owned)).unwrap_or_default();
    note.chars().filter(|c| !c.is_control()).take(200).collect()
}
