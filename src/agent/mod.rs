//! The head of a node: verifies, decides, remembers. It opens no network connection and starts no process.

pub mod folder;
pub mod keyfile;
pub mod setup;
pub mod trust;
//! The head: verifies, decides and remembers; opens no network connection and never forks.

pub mod detached;
pub mod launch;
pub mod logs;
