//! A node's set-up: what `smgr up` or an operator decided before the agent first runs.

use std::io;
use std::path::PathBuf;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::folder::{StateFolder, write_whole};
use crate::config::Roots;
use crate::domain::id::{FleetId, NodeId, ServiceId};

/// The version of the file's shape.
const VERSION: u8 = 1;

/// Larger than any set-up; more is not read.
const BYTES_MAX: u64 = 1024 * 1024;

/// Who a node is, where its specs are and how its bus is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSetup {
    /// The version of this shape.
    pub v: u8,
    /// Its fleet.
    pub fleet: FleetId,
    /// Its name.
    pub node: NodeId,
    /// Where its services are described.
    pub specs: SpecSources,
    /// The folder with a folder of log files for each service that names none.
    pub service_logs: PathBuf,
    /// How its bus is reached; `None` is a node without a bus.
    pub bus: Option<BusSetup>,
}

/// Where services are described, by layer. A folder that does not exist is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecSources {
    /// Services that came with packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<PathBuf>,
    /// Services that came with smgr or were made by it, such as its nats-server.
    pub vendor: Option<PathBuf>,
    /// Services that people of this machine wrote: `services.d`.
    pub host: Option<PathBuf>,
    /// What the services of a group have in common: `groups.d`.
    pub group: Option<PathBuf>,
    /// This machine's last word: `override.d`.
    pub node: Option<PathBuf>,
    /// A project's `smgr.toml`, absolute.
    pub project: Option<PathBuf>,
}

impl SpecSources {
    /// Returns where the files of all layers are looked for.
    pub fn roots(&self) -> Roots {
        Roots {
            package: self.package.clone(),
            vendor: self.vendor.clone(),
            host: self.host.clone(),
            group: self.group.clone(),
            node: self.node.clone(),
            project: self.project.clone(),
        }
    }
}

/// The service that is the bus of a node, when it runs its own.
pub static BUS_SERVICE: LazyLock<ServiceId> =
    LazyLock::new(|| "nats".parse().expect("a name of a service: it is lower-case letters"));

/// The service that serves the figures of a node, where somebody wants them.
pub static METRICS_SERVICE: LazyLock<ServiceId> =
    LazyLock::new(|| "metrics".parse().expect("a name of a service: it is lower-case letters"));

/// How a bus is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusSetup {
    /// `nats://HOST:PORT` or `tls://HOST:PORT`.
    pub urls: Vec<String>,
    /// The file with the node's NKey seed; `None` shows no credentials.
    pub nkey: Option<PathBuf>,
    /// The file with the operator's NKey seed, for the command line on this machine.
    pub operator_nkey: Option<PathBuf>,
    /// Whether the server is the service `nats` of this node.
    pub own_server: bool,
    /// Who vouches for a server at `tls://`, as a PEM file; absent: the authorities of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

impl BusSetup {
    /// Describes a bus whose server and operator are elsewhere.
    pub fn elsewhere(urls: Vec<String>, nkey: Option<PathBuf>, ca: Option<PathBuf>) -> Self {
        Self { urls, nkey, operator_nkey: None, own_server: false, ca }
    }
}

/// Says why a set-up could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadSetupError {
    /// There is none.
    #[error("no set-up at `{path}`")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("failed to read the set-up at `{path}`")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("the set-up at `{path}` was not understood: {why}")]
    Shape {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl NodeSetup {
    /// Describes a node without a bus.
    pub fn new(fleet: FleetId, node: NodeId, specs: SpecSources, service_logs: PathBuf) -> Self {
        Self { v: VERSION, fleet, node, specs, service_logs, bus: None }
    }

    /// Returns the service that is the bus of this node, when it runs its own.
    pub fn own_bus(&self) -> Option<&'static ServiceId> {
        self.bus.as_ref().filter(|bus| bus.own_server).map(|_| &*BUS_SERVICE)
    }

    /// Reads the set-up of a state folder.
    ///
    /// # Errors
    /// When there is none, or it is not one of this version.
    pub fn read(folder: &StateFolder) -> Result<Self, ReadSetupError> {
        let path = folder.setup();
        let read = |source| ReadSetupError::Read { path: path.clone(), source };
        let shape = |why: String| ReadSetupError::Shape { path: path.clone(), why };
        let bytes = match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ReadSetupError::Missing { path });
            }
            Err(error) => return Err(read(error)),
            Ok(meta) if meta.len() > BYTES_MAX => return Err(shape("it is too large".to_owned())),
            Ok(_) => std::fs::read(&path).map_err(read)?,
        };
        let setup: Self = serde_json::from_slice(&bytes).map_err(|why| shape(why.to_string()))?;
        match setup.v {
            VERSION => Ok(setup),
            other => Err(shape(format!("it is of version {other}, not {VERSION}"))),
        }
    }

    /// Writes the set-up, whole or not at all.
    ///
    /// # Errors
    /// When the disk or the permissions refuse.
    pub fn write(&self, folder: &StateFolder) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        text.push(b'\n');
        write_whole(&folder.setup(), &text, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> NodeSetup {
        let specs = SpecSources {
            host: Some("/etc/smgr/services.d".into()),
            project: Some("/srv/shop/smgr.toml".into()),
            ..SpecSources::default()
        };
        let (fleet, node) = ("local".parse().unwrap(), "n1".parse().unwrap());
        NodeSetup::new(fleet, node, specs, "/var/log/smgr".into())
    }

    #[test]
    fn a_setup_reads_what_it_writes() {
        let temp = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(temp.path());
        setup().write(&folder).unwrap();
        assert_eq!(NodeSetup::read(&folder).unwrap(), setup());
    }

    #[test]
    fn a_setup_of_another_version_or_with_an_unknown_key_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(temp.path());
        assert!(matches!(NodeSetup::read(&folder), Err(ReadSetupError::Missing { .. })));
        for (from, to) in [("\"v\": 1", "\"v\": 9"), ("\"bus\"", "\"bsu\""), ("{", "[")] {
            let text = serde_json::to_string_pretty(&setup()).unwrap().replacen(from, to, 1);
            std::fs::write(folder.setup(), text).unwrap();
            assert!(matches!(NodeSetup::read(&folder), Err(ReadSetupError::Shape { .. })), "{to}");
        }
    }
}
