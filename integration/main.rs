//! Tests against real processes, a real nats-server and the built binary.
#![allow(clippy::print_stdout, reason = "the figures of a run are for whoever reads its output")]

mod accounts;
mod bus;
mod ci;
mod cli_up;
mod compose;
mod daemons;
mod damage;
mod emulate;
mod errands;
mod fleet;
mod frozen;
mod fuzz_seeds;
mod golden;
mod handover;
mod hostile;
mod keeper;
mod keys;
mod kill;
mod layering;
mod layers;
mod metrics;
mod proof;
mod releases;
mod shop;
mod signs;
mod sockets;
mod store;
mod support;
mod uplink;
