//! How the parts of one node speak: frames over `SOCK_SEQPACKET`, descriptors beside them, and the
//! closed set of messages of each pair. It carries; who may ask for what is decided by the receiver.
//!
//! `frame` turns messages into packets, `socket` is the synchronous end (the keeper), `channel` the
//! tokio end (agent, uplink, command line). `hello` opens every connection.

pub mod channel;
pub mod frame;
pub mod hello;
pub mod keeper;
pub mod listen;
pub mod local;
pub mod place;
pub mod sealed;
pub mod socket;
pub mod uplink;

/// Says whether the disk had no room, for which no part may end and no restart may wait.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}
