//! The lease of a fleet: one entry in a JetStream bucket that ends by itself when its holder does not renew it.
//!
//! It keeps two controllers from working at once and nothing more: a bucket can be deleted, and its revisions then begin
//! at 1 again, so that what must never happen twice has to be fenced by terms.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::kv::{Config, CreateErrorKind, Store, UpdateErrorKind};
use async_nats::jetstream::stream::StorageType;
use tokio::time::timeout;

use super::connection::Connection;
use crate::domain::id::{FleetId, NodeId};

/// The one key of the bucket.
const KEY: &str = "leader";

/// How long the server may take for one step.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);

/// Returns the name of the bucket with the lease of a fleet.
pub fn lease_bucket_name(fleet: &FleetId) -> String {
    format!("smgr-lease-{fleet}")
}

/// The lease of one fleet, as one controller sees it.
#[derive(Clone, Debug)]
pub struct Leases {
    context: jetstream::Context,
    bucket: String,
    holder: NodeId,
    ttl: Duration,
}

/// A lease that is held until `ttl` after it was last taken or renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    revision: u64,
    taken: u64,
}

impl Hold {
    fn new(revision: u64) -> Self {
        Self { revision, taken: revision }
    }

    /// Returns a number that is higher than that of every hold before it, for as long as nobody deletes the bucket.
    pub fn taken(self) -> u64 {
        self.taken
    }
}

/// Says why the lease was not taken or renewed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody holds it.
    #[error("the lease is held by {}", .by.as_ref().map_or("somebody else", NodeId::as_str))]
    Held {
        /// Who, when the entry says so.
        by: Option<NodeId>,
    },
    /// The server refused, or has no JetStream.
    #[error("the server does not keep the lease")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server did not answer.
    #[error("the server did not answer about the lease within {} s", STEP_TIMEOUT.as_secs())]
    Timeout,
}

impl Leases {
    /// Names the lease of a fleet, which ends `ttl` after it was last renewed. Nothing is asked of the server.
    pub fn new(connection: &Connection, fleet: &FleetId, holder: NodeId, ttl: Duration) -> Self {
        let context = jetstream::new(connection.client().clone());
        Self { context, bucket: lease_bucket_name(fleet), holder, ttl }
    }

    /// Takes the lease if nobody holds it.
    ///
    /// # Errors
    /// When somebody does, or the server does not say so.
    pub async fn take(&self) -> Result<Hold, LeaseError> {
        within(async {
            let store = self.store().await?;
            match store.create(KEY, self.value().into()).await {
                Ok(revision) => Ok(Hold::new(revision)),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {
                    self.find_own(&store).await
                }
                Err(error) => Err(refused(error)),
            }
        })
        .await
    }

    /// Holds the lease for another `ttl`.
    ///
    /// # Errors
    /// When it ended and somebody else took it, or the server does not say so. It may be held still.
    pub async fn renew(&self, hold: Hold) -> Result<Hold, LeaseError> {
        within(async {
            let store = self.store().await?;
            match store.update(KEY, self.value().into(), hold.revision).await {
                Ok(revision) => Ok(Hold { revision, ..hold }),
                // It ended, or the bucket was made anew: whoever is first has it.
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    match store.create(KEY, self.value().into()).await {
                        Ok(revision) => Ok(Hold::new(revision)),
                        Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {
                            self.find_own(&store).await
                        }
                        Err(error) => Err(refused(error)),
                    }
                }
                Err(error) => Err(refused(error)),
            }
        })
        .await
    }

    /// Gives the lease back, so that nobody has to wait for its end.
    ///
    /// # Errors
    /// When the server does not take it back; it then ends by itself.
    pub async fn give_back(&self, hold: Hold) -> Result<(), LeaseError> {
        within(async {
            let store = self.store().await?;
            store.delete_expect_revision(KEY, Some(hold.revision)).await.map_err(refused)
        })
        .await
    }

    /// An entry of our own is one whose answer was lost, or of a life before this one; it is ours to renew.
    async fn find_own(&self, store: &Store) -> Result<Hold, LeaseError> {
        let entry = store.entry(KEY).await.map_err(refused)?;
        let by = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<NodeId>().ok();
        match entry {
            Some(entry) if entry.value == self.holder.as_str() => Ok(Hold::new(entry.revision)),
            entry => Err(LeaseError::Held { by: entry.and_then(|entry| by(&entry.value)) }),
        }
    }

    async fn store(&self) -> Result<Store, LeaseError> {
        let config = Config {
            bucket: self.bucket.clone(),
            description: "who of the controllers of smgr decides".to_owned(),
            history: 1,
            max_age: self.ttl,
            // No bound in bytes: it would be reserved, and a server whose storage is given away refuses the bucket.
            storage: StorageType::File,
            num_replicas: 1,
            ..Config::default()
        };
        match self.context.get_key_value(&self.bucket).await {
            Ok(store) if store.stream.cached_info().config.max_age == self.ttl => Ok(store),
            Ok(_) => self.context.update_key_value(config).await.map_err(refused),
            Err(_) => self.context.create_key_value(config).await.map_err(refused),
        }
    }

    fn value(&self) -> String {
        self.holder.as_str().to_owned()
    }
}

async fn within<T>(step: impl Future<Output = Result<T, LeaseError>>) -> Result<T, LeaseError> {
    timeout(STEP_TIMEOUT, step).await.unwrap_or(Err(LeaseError::Timeout))
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> LeaseError {
    LeaseError::Refused(Box::new(error))
}
