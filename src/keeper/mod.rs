//! The hands: parent of every service, without policy and without network. See `docs/keeper.md`.
//!
//! `launcher` starts the keeper; `serve` is its loop; `hands` knows runs and slots and executes the
//! verbs of `ipc::keeper`; `spawn` makes a process, `trees` holds its descendants together, `exits`
//! reads how it ended; `records` is what the next keeper finds, `adopt` how it takes over.

mod accounts;
mod adopt;
mod channels;
mod clock;
mod connection;
mod exits;
mod facts;
mod hands;
mod launcher;
mod notify;
mod operations;
mod parts;
mod poller;
mod prepared;
mod proc;
mod records;
mod run;
mod runtime;
mod serve;
mod signals;
mod sockets;
mod spawn;
mod strike;
mod trees;
mod vault;

pub use launcher::{LaunchOptions, launch};
pub use proc::living_runs;
pub use serve::{KeeperError, KeeperOptions, run};
