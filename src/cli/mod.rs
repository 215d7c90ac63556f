//! (being written)

pub mod error;
pub mod selector;
pub mod view;

pub mod json;
pub mod screen;

#[cfg(test)]
mod sample;
