//! Speaks NATS, and is the only part that does.
//!
//! The bus only transports. It may lose, repeat, reorder, redirect and invent messages, so nothing here verifies or
//! decides anything; that is done on the signed bytes by whoever reads them.

mod answers;
mod artifacts;
mod connection;
mod lease;
mod options;
mod retained;
mod server;

pub use answers::{Answers, NobodyListens};
pub use artifacts::{ObjectError, ObjectPlace, artifact_bucket_name, copy_object, put_artifact};
pub use connection::{
    BusState, Connection, Delivered, DialError, SendError, SubscribeError, Subscription,
};
pub use lease::{Hold, LeaseError, Leases, lease_bucket_name};
pub use options::{
    BusOptions, Credentials, InvalidOptions, ReadCredentialsError, TlsFiles, host_of, vouches,
};
pub use retained::{EnsureStreamError, ensure_event_stream, event_stream_name};
pub use server::{SERVER_VERSION_FLOOR, ServerVersion};
