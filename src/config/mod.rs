//! Reads what people write: spec files in layers, the node's own file, environment files.
//!
//! Everything that is wrong with a file is told at once, each mistake at its place. Names of users are
//! not looked up and nothing is started here: that is the agent's.

mod assemble;
mod build;
pub mod keys;
mod load;
mod merge;
pub mod mistake;
pub mod owner;
pub mod params;
mod quantity;
mod read;
mod source;

pub use assemble::{Input, Loaded, LoadedService, Options, Part, assemble, canonical};
pub use load::{Roots, load};
pub use merge::Effective;
pub use mistake::{Mark, Mistake, json, render};

#[cfg(test)]
mod tests;
