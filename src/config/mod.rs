//! Reads what people write: spec files in layers, the node's own file, environment files.
//!
//! Everything that is wrong with a file is told at once, each mistake at its place. Names of users are
//! not looked up and nothing is started here: that is the agent's.

mod assemble;
mod build;
mod env_file;
pub mod keys;
mod load;
mod merge;
pub mod mistake;
mod node;
pub mod owner;
pub mod params;
mod pattern;
mod quantity;
mod read;
mod reference;
mod shared;
mod source;
mod told;
mod write;

pub use assemble::{
    Input, Loaded, LoadedService, Options, Part, assemble, canonical, check_set, likely_service,
    release_layer, rollouts_of, set_layer,
};
pub use env_file::{load_env_file, parse_env_file};
pub use load::{Roots, load, load_with, read_input, read_regular};
pub use merge::Effective;
pub use mistake::{Mark, Mistake, json, render, render_warnings};
pub use node::{NodeConfig, NodeDefaults, load_node, parse_node};
pub use pattern::alert_set;
pub use reference::{node_schema, project_schema, service_schema, spec_help, spec_markdown};
pub use told::{TOLD_BYTES_MAX, Told};
pub use write::{
    Command, json_value, service_text, template, with_settings, write_new, write_service_file,
};

#[cfg(test)]
mod tests;
