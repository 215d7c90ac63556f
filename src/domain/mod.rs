//! The rules of smgr, pure and synchronous: no clock, no randomness, no IO.
//!
//! Times and ids come in as arguments; what would be done comes out as values.
#![deny(clippy::disallowed_methods)]

pub mod code;
pub mod id;
pub mod time;

pub mod intent;

pub mod event;

pub mod policy;
pub mod signal;
pub mod spec;
pub mod template;
pub mod text;
pub mod tree;
