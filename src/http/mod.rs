//! The face for programs that speak HTTP: a controller's fleet as JSON, its stream of events, and wishes that it brings to
//! the nodes. It decides nothing that a node would have to believe: a wish is signed by the caller, or by a key that the
//! controller holds for a job, and every node judges it.
//!
//! It listens on the loopback alone and has a thread of its own, so that nobody who asks here can hold up the controller.

mod asked;
mod callers;
mod events;
mod metrics;
mod problem;
mod reading;
mod requests;
mod rollouts;
mod routes;
mod serve;
mod wishes;

#[cfg(test)]
mod openapi;

pub use metrics::node::{page_of, serve_node};
pub use serve::open;
