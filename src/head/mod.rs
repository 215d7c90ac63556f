//! What the two heads, agent and controller, have in common: the gate, the pen, keys and trust, the names in a state
//! folder, the clock.

pub mod account;
pub mod authority;
pub mod clock;
pub mod enrol;
pub mod folder;
pub mod http;
pub mod keyfile;
pub mod manifest;
pub mod recorder;
pub mod trust;

use crate::domain::id::{FleetId, NodeId};

/// The name under which a node or controller signs the heads of its log; each names its epoch in its text.
pub fn note_name(fleet: &FleetId, origin: &NodeId) -> String {
    format!("smgr/{fleet}/{origin}")
}
