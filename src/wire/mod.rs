//! (being written)

pub mod subject;
