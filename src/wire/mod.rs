//! What travels: envelopes, payloads and subjects. No IO.

pub mod codec;
pub mod key;

pub mod envelope;

pub mod payload;

pub mod status;
//! (being written)

pub mod subject;
pub mod note;
