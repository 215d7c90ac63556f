//! The rules of smgr, pure and synchronous: no clock, no randomness, no IO.
//!
//! Times and ids come in as arguments; what would be done comes out as values.
#![deny(clippy::disallowed_methods)]

pub mod code;
pub mod controller;
pub mod id;
mod name;
pub mod time;

pub mod origin;
pub mod overrides;
pub mod signal;
pub mod template;
pub mod text;

pub mod spec;

pub mod alert;
pub mod health;

pub mod intent;

pub mod release;

pub mod event;

pub mod policy;

pub mod effect;
pub mod input;
pub mod promises;
pub mod recent;
pub mod rejection;

mod decide;
pub mod node;

pub mod backoff;
pub mod instance;
pub mod seen;

pub mod tree;

pub mod document;
pub mod rollout;
pub mod selector;

#[cfg(test)]
pub(in crate::domain) mod sim;
