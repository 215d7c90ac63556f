//! A controller's set-up: what `smgr up` or an operator decided before it first runs.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::id::{FleetId, NodeId};
use crate::head::folder::{StateFolder, write_whole};

/// The version of the file's shape.
const VERSION: u8 = 1;

/// Larger than any set-up; more is not read.
const BYTES_MAX: u64 = 64 * 1024;

/// How long the lease holds when it is not renewed, unless told otherwise, in milliseconds.
pub const LEASE_MS: u64 = 10_000;

/// Who a controller is and how its bus is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerSetup {
    /// The version of this shape.
    pub v: u8,
    /// Its fleet.
    pub fleet: FleetId,
    /// Its name.
    pub controller: NodeId,
    /// `nats://HOST:PORT` or `tls://HOST:PORT`.
    pub urls: Vec<String>,
    /// The file with its NKey seed; `None` shows no credentials.
    #[serde(default)]
    pub nkey: Option<PathBuf>,
    /// Who vouches for a server at `tls://`, as a PEM file; absent: the authorities of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How long the lease holds when it is not renewed, in milliseconds.
    #[serde(default = "lease_ms")]
    pub lease_ms: u64,
    /// Where it serves HTTP, on the loopback; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<SocketAddr>,
    /// The folder of the programs that checks of releases may name; absent: none is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<PathBuf>,
}

/// Says why a set-up could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadSetupError {
    /// The file is missing or cannot be read.
    #[error("failed to read the set-up of the controller at `{path}`")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("the set-up of the controller at `{path}` was not understood: {why}")]
    Shape {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl ControllerSetup {
    /// Describes a controller with everything else as usual.
    pub fn new(fleet: FleetId, controller: NodeId, urls: Vec<String>) -> Self {
        Self {
            v: VERSION,
            fleet,
            controller,
            urls,
            nkey: None,
            ca: None,
            lease_ms: LEASE_MS,
            http: None,
            checks: None,
        }
    }

    /// Returns where the set-up of a state folder is.
    pub fn path(folder: &StateFolder) -> PathBuf {
        folder.root().join("controller.json")
    }

    /// Reads the set-up of a state folder.
    ///
    /// # Errors
    /// When there is none, or it is not one of this version.
    pub fn read(folder: &StateFolder) -> Result<Self, ReadSetupError> {
        let path = Self::path(folder);
        let bytes = read_capped(&path, BYTES_MAX)
            .map_err(|source| ReadSetupError::Read { path: path.clone(), source })?;
        let shape = |why: String| ReadSetupError::Shape { path: path.clone(), why };
        let setup: Self = serde_json::from_slice(&bytes).map_err(|why| shape(why.to_string()))?;
        if let Some(http) = setup.http.filter(|http| !http.ip().is_loopback()) {
            // Tokens would travel where others read them.
            return Err(shape(format!(
                "`http` is {http}, which others reach without encryption: serve on the loopback and put a proxy with TLS \
                 in front"
            )));
        }
        match (setup.v, setup.lease_ms) {
            (VERSION, 1..) => Ok(setup),
            (VERSION, _) => Err(shape("a lease of 0 ms holds nothing".to_owned())),
            (other, _) => Err(shape(format!("it is of version {other}, not {VERSION}"))),
        }
    }

    /// Writes the set-up, whole or not at all.
    ///
    /// # Errors
    /// When the disk or the permissions refuse.
    pub fn write(&self, folder: &StateFolder) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        text.push(b'\n');
        write_whole(&Self::path(folder), &text, 0o600)
    }
}

fn lease_ms() -> u64 {
    LEASE_MS
}

pub(super) fn read_capped(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}
