//! The head: verifies, decides and remembers; opens no network connection and never forks.

pub mod detached;
pub mod launch;
pub mod logs;
