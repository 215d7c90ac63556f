//! How a run is probed, and what follows when it does not answer as it should.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Millis;
use crate::domain::template::Template;

/// One probe of every instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Health {
    /// What is asked, and what a good answer is.
    pub probe: Probe,
    /// The longest interval between two probes.
    pub interval: Millis,
    /// The shortest: after a start, a failure, a change. At most `interval`.
    pub min_interval: Millis,
    /// How long an answer may take.
    pub timeout: Millis,
    /// How many bad answers in a row make it failing; at least 1.
    pub failures: u32,
    /// How many good answers in a row make it passing; at least 1.
    pub successes: u32,
    /// What follows when it fails.
    pub on_failure: OnFailure,
}

/// What is asked of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// A TCP connection that is accepted.
    Tcp {
        /// `HOST:PORT`; the host is an address or `localhost`.
        address: Template,
    },
    /// A connection to a Unix socket that is accepted.
    Unix {
        /// Its absolute path.
        path: Template,
    },
    /// A GET over HTTP/1.1 that is answered with a status in a range.
    Http {
        /// Where: `HOST:PORT`, or the absolute path of a Unix socket.
        address: Template,
        /// What is asked for; begins with `/`.
        path: String,
        /// The lowest good status.
        status_min: u16,
        /// The highest good status.
        status_max: u16,
    },
    /// A program, under the account and in the folder of the service, that ends with 0. It is killed with all that it
    /// began when its time is over.
    Exec {
        /// The program and its arguments.
        exec: Vec<Template>,
    },
}

/// What follows when a check fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The run is not ready until the check passes.
    #[default]
    Unready,
    /// The run is stopped, and the policy of restarts goes on from there; not as long as the check has never passed
    /// and the run is within `ready.timeout`.
    Restart,
    /// Somebody can read of it.
    Report,
}

/// Where a probe connects to, once names are expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// These addresses, the first that accepts.
    Tcp(Vec<SocketAddr>),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Target {
    /// Reads `HOST:PORT`, or the absolute path of a Unix socket.
    ///
    /// A host is an address or `localhost`: a probe must not hang on a resolver, nor fail with it.
    ///
    /// # Errors
    /// What is wrong with the text, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err("it has no port: HOST:PORT".to_owned());
        };
        let port: u16 = match port.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err("its port is not a number from 1 to 65535".to_owned()),
        };
        if host == "localhost" {
            let local: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            return Ok(Self::Tcp(local.map(|host| SocketAddr::new(host, port)).to_vec()));
        }
        match text.parse() {
            Ok(address) => Ok(Self::Tcp(vec![address])),
            Err(_) => Err("its host is neither an address nor `localhost`".to_owned()),
        }
    }
}

impl Probe {
    /// Returns where it connects to; a program connects to nothing that we know of.
    pub fn address(&self) -> Option<&Template> {
        match self {
            Self::Tcp { address } | Self::Http { address, .. } => Some(address),
            Self::Unix { path } => Some(path),
            Self::Exec { .. } => None,
        }
    }
}
