//! Keeps a stream over the events for stock NATS consumers. smgr itself never reads it.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use tokio::time::timeout;

use super::connection::Connection;
use crate::domain::id::FleetId;
use crate::wire::subject::Filter;

/// How long a consumer can catch up.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How much the stream may take on the server's disk, in bytes.
const BYTES_MAX: i64 = 1 << 30;

/// How long the server may take to make the stream.
const ENSURE_TIMEOUT: Duration = Duration::from_secs(5);

/// Says why there is no stream over the events. Nothing of smgr depends on it.
#[derive(Debug, thiserror::Error)]
pub enum EnsureStreamError {
    /// The server refused, or has no JetStream.
    #[error("failed to make the stream `{name}`")]
    Refused { name: String, source: jetstream::context::CreateStreamError },
    /// The server did not answer.
    #[error("the server did not make the stream `{name}` within {} s", ENSURE_TIMEOUT.as_secs())]
    Timeout { name: String },
}

/// Returns the name of the stream over the events of a fleet.
pub fn event_stream_name(fleet: &FleetId) -> String {
    format!("smgr-events-{fleet}")
}

/// Makes or updates the stream over the events of a fleet, retained by age and size.
///
/// It can be deleted at any time; the logs hold all that it held.
///
/// # Errors
/// Fails when the server has no JetStream, does not let us, or does not answer.
pub async fn ensure_event_stream(
    connection: &Connection,
    fleet: &FleetId,
) -> Result<(), EnsureStreamError> {
    let name = event_stream_name(fleet);
    let config = Config {
        name: name.clone(),
        description: Some("events of smgr, for consumers that catch up".to_owned()),
        subjects: vec![Filter::every_event(fleet.clone()).to_string()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        max_age: AGE_MAX,
        max_bytes: BYTES_MAX,
        num_replicas: 1,
        // Its acknowledgements would say nothing: the origin's log is what holds an event.
        no_ack: true,
        ..Config::default()
    };
    let context = jetstream::new(connection.client().clone());
    match timeout(ENSURE_TIMEOUT, context.create_or_update_stream(config)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(source)) => Err(EnsureStreamError::Refused { name, source }),
        Err(_) => Err(EnsureStreamError::Timeout { name }),
    }
}
