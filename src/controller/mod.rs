//! The second head: takes in the log of every node, projects the fleet, answers for it, and leads rollouts.
//!
//! It decides nothing that a node would have to believe: what a node does stands in an intent that a person or a job
//! signed, and the node looks at that itself. See `docs/controller.md`.

mod access;
mod alarms;
mod arrivals;
mod boot;
mod bringing;
mod checks;
mod configuring;
mod intake;
mod lead;
mod lease;
mod links;
mod orders;
mod own;
mod placement;
mod projection;
mod queries;
mod reports;
mod rollouts;
pub mod setup;
mod shown;
mod standing;
mod tails;
mod task;
pub mod tokens;
mod verify;
mod wake;
mod wishes;

pub use access::{Access, AskError, Calling, Heard};
pub use boot::{ControllerOptions, run};
