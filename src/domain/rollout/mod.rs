//! Rollouts: how a fleet goes from release to release, and back. Pure: no clock, no randomness, no IO.
//!
//! A [`PlanRequest`] (what a signed wish says, and the roster that it names) becomes an immutable [`Plan`]. A
//! [`Rollout`] is the fold of its [`RolloutEvent`]s: [`Rollout::decide`] says what an [`Input`] leads to,
//! [`Rollout::evolve`] takes in what happened, [`Rollout::effects`] says what should be under way. All three need
//! nothing but the events, so any controller that holds them can go on where another one died.
//! Signatures, leases, resending and the clock are the controller's.

mod decide;
mod effect;
mod event;
mod evolve;
mod fact;
mod first;
mod input;
mod members;
mod parameters;
mod placement;
mod plan;
mod state;
mod story;
pub mod view;
mod words;

pub use self::decide::{Follows, Opening, SEEN_GRACE_MS, VERDICT_SLACK_MS};
pub use self::effect::{Concerns, Effect};
pub use self::event::*;
pub use self::fact::RolloutFact;
pub use self::first::{may_go_first, newcomers_go_first};
pub use self::input::{Command, Failure, Input, Measure, NodeReport, Observed, Rejection};
pub use self::parameters::*;
pub use self::placement::{Held, Known, Moves, Place, Placement, Rollouts, Wished};
pub(crate) use self::plan::chunks;
pub use self::plan::{PROOFS_MAX, Plan, PlanError, PlanRequest, Retry, Wave, WaveKind};
pub use self::state::{At, CheckRun, IllegalEvent, NodeState, Phase, Rollout};
pub use self::story::Story;

pub use super::release::{ReleaseId, Step};

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
