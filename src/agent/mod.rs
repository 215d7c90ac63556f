//! The head of a node: verifies, decides, remembers. It opens no network connection and starts no process.

pub mod folder;
pub mod keyfile;
pub mod setup;
pub mod trust;
