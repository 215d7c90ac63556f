//! Tests against real processes, a real nats-server and the built binary.

mod keeper;
mod layering;
