//! What travels, held to its bytes, its schemas and the known traps of its format.

mod golden;
mod pitfalls;
mod rollouts;
pub(super) mod samples;
mod schemas;
