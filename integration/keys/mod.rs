//! What the keys of a spec file do, each with a real process.

mod alert;
mod depends_on;
mod health;
mod log;
mod process;
mod ready;
mod stop;
