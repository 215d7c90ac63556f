//! Tests against real processes, a real nats-server and the built binary.

mod bus;
mod fuzz_seeds;
mod golden;
mod layering;
mod shop;
mod support;
mod uplink;
mod store;
