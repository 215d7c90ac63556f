//! What the tests stand on: real servers and a runtime.

pub(crate) mod machine;
pub(crate) mod mounts;
pub(crate) mod nats;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod schema;
pub(crate) mod sweep;
pub(crate) mod wait;
pub(crate) mod web;

use std::future::Future;

/// Runs a test on the kind of runtime that the agent and the uplink have.
pub(crate) fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}
