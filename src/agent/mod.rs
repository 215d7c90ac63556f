//! The head of a node: verifies, decides, remembers. It opens no network connection and starts no process.
//!
//! `boot` puts the parts together; `task` owns them and takes one wake after the other; `execute` carries out what
//! was decided; `recorder` signs and records; the links carry frames. Everything that decides is in `domain`.

mod alarm;
mod alerts;
mod answers;
mod asked;
mod boot;
mod channels;
pub mod detached;
mod errands;
mod execute;
mod farewell;
mod hands;
mod history;
mod keeper_link;
pub mod launch;
mod launcher;
mod local;
pub mod logs;
mod meeting;
mod memory;
mod names;
pub mod origins;
mod outage;
mod outlet;
pub mod overrides;
mod probe;
mod probes;
mod queries;
mod ready;
pub mod release;
mod renewal;
mod services;
pub mod setup;
mod signs;
mod status;
mod task;
mod telling;
pub mod texts;
mod timers;
mod uplink_link;
mod voice;
mod wake;
mod wishes;
mod witness;

use crate::head::{authority, clock, folder, keyfile, recorder, trust};

pub use boot::{AgentOptions, run};
