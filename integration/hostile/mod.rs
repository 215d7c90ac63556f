//! A node in bad company: disks that are full or stand still, floods, forgeries and mistakes. It goes on, says clearly
//! what is wrong, and changes nothing that nobody was allowed to change.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test says what it measured, or why it did nothing"
)]

mod account;
mod commands;
mod disk;
mod envelopes;
mod flood;
mod node;
mod sockets;
mod trust;
