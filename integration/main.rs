//! Tests against real processes, a real nats-server and the built binary.

mod bus;
mod cli_up;
mod fuzz_seeds;
mod golden;
mod keeper;
mod kill;
mod layering;
mod shop;
mod store;
mod support;
mod uplink;
