//! The second head.
pub mod setup;
