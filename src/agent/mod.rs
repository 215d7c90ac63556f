//! The head of a node: verifies, decides, remembers. It opens no network connection and starts no process.

pub mod detached;
pub mod folder;
pub mod keyfile;
pub mod launch;
pub mod logs;
pub mod setup;
pub mod trust;
