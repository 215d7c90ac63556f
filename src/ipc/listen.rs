//! What the keeper listens at for a service.

use serde::{Deserialize, Serialize};

pub use crate::domain::spec::Address;

/// The first descriptor of a socket in a run: as systemd has it, so that daemons find what they look for.
pub const SOCKETS_FROM: u32 = 3;

/// A socket that a run gets as a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// What it is called among the sockets of the run: goes into `LISTEN_FDNAMES`.
    pub name: String,
    /// What it is called among all sockets of the keeper. Runs that name the same key share it.
    pub key: String,
    /// Where it listens. A socket of another address is closed and made anew.
    pub address: Address,
    /// How many connections may wait.
    pub backlog: u32,
    /// The file mode of a unix socket.
    pub mode: u32,
}
