//! smgr: a service manager for one machine or a whole fleet.
//!
//! The picture, the code map and the invariants are in `ARCHITECTURE.md`. Modules in reading order:

pub mod domain;

mod retry;

pub mod wire;

pub mod store;

pub mod bus;
pub mod ipc;
pub mod web;

pub mod keeper;

pub mod head;

pub mod agent;
pub mod controller;

pub mod uplink;

pub mod config;

pub mod emulate;

pub mod cli;
pub mod http;
