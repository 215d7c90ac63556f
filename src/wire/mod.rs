//! What travels: envelopes, payloads and subjects. No IO.

pub mod codec;
pub mod key;

pub mod envelope;

pub mod fold;
mod msgpack;
pub mod note;
pub mod parts;
pub mod payload;
mod row;
pub mod status;
pub mod subject;

#[cfg(test)]
mod tests;
