//! Collects the answers of many to one message.

use std::time::Duration;

use async_nats::{StatusCode, Subscriber};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

/// The answers to one request, as they come in. Nothing in them is verified.
#[derive(Debug)]
pub struct Answers {
    subscriber: Subscriber,
    deadline: Instant,
}

/// Says that the server knows of nobody who listens to the subject: waiting is in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody on the bus listens to this subject")]
pub struct NobodyListens;

impl Answers {
    pub(super) fn new(subscriber: Subscriber, within: Duration) -> Self {
        Self { subscriber, deadline: Instant::now() + within }
    }

    /// Returns the next answer, or `None` when the time is over or the connection was closed.
    ///
    /// Can be dropped while it waits without losing an answer.
    ///
    /// # Errors
    /// Fails when the server says that nobody could have heard the request.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, NobodyListens> {
        match timeout_at(self.deadline, self.subscriber.next()).await {
            Ok(Some(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                Err(NobodyListens)
            }
            Ok(Some(message)) => Ok(Some(message.payload.into())),
            Ok(None) | Err(_) => Ok(None),
        }
    }
}
