//! (being written)

pub mod note;
