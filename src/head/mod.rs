//! What the two heads, agent and controller, have in common: the gate, the pen, keys and trust, the names in a state
//! folder, the clock.

pub mod account;
pub mod authority;
pub mod clock;
pub mod detached;
pub mod enrol;
pub mod folder;
pub mod http;
pub mod keyfile;
pub mod manifest;
pub mod recorder;
pub mod trust;

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::domain::id::{FleetId, NodeId};

/// The name under which a node or controller signs the heads of its log; each names its epoch in its text.
pub fn note_name(fleet: &FleetId, origin: &NodeId) -> String {
    format!("smgr/{fleet}/{origin}")
}

/// Tells whoever supervises this process that it is ready.
pub fn say_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let bytes = path.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let said =
        address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1\n", &address));
    if let Err(why) = said {
        tracing::warn!(%why, "nobody was told that this process is ready");
    }
}
