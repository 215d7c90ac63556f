//! Text for people. Pure: from what was read, a time and a width, to lines that end with `\n`.
//!
//! The width is the terminal's; without a terminal nothing is cut. A state is always a word. Whatever came from
//! elsewhere goes through [`crate::domain::text::printable`] before it stands in a line.

pub mod ahead;
pub mod names;
pub mod table;
pub mod units;
pub(crate) mod words;

mod controller;
pub mod effective;
pub mod ending;
pub mod error;
pub mod event;
pub mod feed;
pub mod fleet;
pub mod history;
pub mod instance;
pub mod outcome;
pub(super) mod release;
pub mod rollout;
pub mod status;
pub mod up;
