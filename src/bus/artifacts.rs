//! The store of a fleet's artifacts: a bucket of NATS objects, from which nodes on other machines fetch what they are to
//! run.
//!
//! It only carries: what a node keeps is in its own releases, and every byte is compared with the digest that was
//! signed. So the bucket can be deleted at any time, and the oldest in it makes room for the newest.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::object_store::{Config, ObjectStore};
use async_nats::jetstream::stream::StorageType;
use futures_util::TryStreamExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::connection::Connection;
use crate::domain::id::FleetId;

/// How much the store may take on the server's disk, in bytes.
const BYTES_MAX: u64 = 2 << 30;

/// What a message of an object takes besides its bytes, at most, in bytes; an object is cut into messages of 128 KiB.
const MESSAGE_MORE: u64 = 512;
const MESSAGE_BYTES: u64 = 128 * 1024;

/// How long the server may take to say something more.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// Where an object is: `nats:BUCKET/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPlace {
    /// The bucket.
    pub bucket: String,
    /// The object's name in it.
    pub name: String,
}

/// Why an object was not fetched, or not put.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There is no bus.
    #[error("there is no bus to the fleet")]
    NoBus,
    /// The server has no such bucket, or lets us see none.
    #[error("the bus has no bucket `{bucket}` for us: {why}")]
    NoBucket {
        /// Which.
        bucket: String,
        /// What the server says.
        why: String,
    },
    /// There is no such object in the bucket.
    #[error("`{bucket}` holds no `{name}`: {why}")]
    NoObject {
        /// In which.
        bucket: String,
        /// Which.
        name: String,
        /// What the server says.
        why: String,
    },
    /// No bucket has room for it.
    #[error("with {bytes} bytes it is larger than the {BYTES_MAX} that the store of a fleet takes")]
    TooLarge {
        /// How large it is.
        bytes: u64,
    },
    /// The server did not take it.
    #[error("the store did not take it: {0}")]
    Put(String),
    /// The server said nothing for too long.
    #[error("the bus said nothing for {} s", SILENT_MAX.as_secs())]
    Silent,
    /// What came could not be read or passed on.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Returns the name of the bucket of a fleet.
pub fn artifact_bucket_name(fleet: &FleetId) -> String {
    format!("smgr-artifacts-{fleet}")
}

impl ObjectPlace {
    /// Reads `nats:BUCKET/NAME`; `None` when it is none.
    pub fn parse(source: &str) -> Option<Self> {
        let (bucket, name) = source.strip_prefix("nats:")?.split_once('/')?;
        let is_token = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_bucket = !bucket.is_empty() && bucket.chars().all(is_token);
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic());
        (is_bucket && is_name).then(|| Self { bucket: bucket.to_owned(), name: name.to_owned() })
    }
}

impl std::fmt::Display for ObjectPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "nats:{}/{}", self.bucket, self.name)
    }
}

/// Copies an object into `into`, at most so many bytes and one: so that more is seen to be more.
///
/// # Errors
/// What was copied until then is not the object.
pub async fn copy_object(
    connection: &Connection,
    place: &ObjectPlace,
    bytes_max: u64,
    into: &mut (impl AsyncWrite + Unpin),
) -> Result<u64, ObjectError> {
    let ObjectPlace { bucket, name } = place;
    let opened = timeout(SILENT_MAX, async {
        let store = open(connection, bucket).await?;
        store.get(name).await.map_err(|error| ObjectError::NoObject {
            bucket: bucket.clone(),
            name: name.clone(),
            why: error.to_string(),
        })
    });
    let object = opened.await.map_err(|_| ObjectError::Silent)??;
    let mut object = object.take(bytes_max.saturating_add(1));
    let (mut buffer, mut copied) = (vec![0; 64 * 1024], 0);
    loop {
        let read = timeout(SILENT_MAX, object.read(&mut buffer)).await;
        let len = read.map_err(|_| ObjectError::Silent)??;
        if len == 0 {
            break;
        }
        into.write_all(&buffer[..len]).await?;
        copied += len as u64;
    }
    into.flush().await?;
    Ok(copied)
}

/// Puts `bytes` bytes into the store of a fleet, unless they are there. What was put first makes room.
///
/// # Errors
/// When the server has no JetStream, does not let us, or does not take it.
pub async fn put_artifact(
    connection: &Connection,
    ObjectPlace { bucket, name }: &ObjectPlace,
    bytes: u64,
    from: &mut (impl AsyncRead + Unpin),
) -> Result<(), ObjectError> {
    let takes = bytes + (bytes / MESSAGE_BYTES + 2) * MESSAGE_MORE;
    if takes > BYTES_MAX {
        return Err(ObjectError::TooLarge { bytes });
    }
    let store = match open(connection, bucket).await {
        Ok(store) => store,
        Err(_) => create(connection, bucket).await?,
    };
    let is_whole = |size: usize| u64::try_from(size).is_ok_and(|size| size == bytes);
    if store.info(name).await.is_ok_and(|info| !info.deleted && is_whole(info.size)) {
        return Ok(());
    }
    make_room(connection, &store, bucket, takes).await?;
    store.put(name.as_str(), from).await.map_err(|error| put_failed(&error))?;
    Ok(())
}

fn put_failed(error: &dyn std::error::Error) -> ObjectError {
    ObjectError::Put(error.to_string())
}

async fn open(connection: &Connection, bucket: &str) -> Result<ObjectStore, ObjectError> {
    let context = jetstream::new(connection.client().clone());
    context.get_object_store(bucket).await.map_err(|error| no_bucket(bucket, &error))
}

async fn create(connection: &Connection, bucket: &str) -> Result<ObjectStore, ObjectError> {
    let context = jetstream::new(connection.client().clone());
    let config = Config {
        bucket: bucket.to_owned(),
        description: Some("artifacts of smgr, until each node has them".to_owned()),
        max_bytes: BYTES_MAX.cast_signed(),
        storage: StorageType::File,
        num_replicas: 1,
        ..Config::default()
    };
    context.create_object_store(config).await.map_err(|error| no_bucket(bucket, &error))
}

fn no_bucket(bucket: &str, error: &dyn std::error::Error) -> ObjectError {
    let why = error.source().map_or_else(|| error.to_string(), |source| source.to_string());
    ObjectError::NoBucket { bucket: bucket.to_owned(), why }
}

/// Deletes what was put first until so many bytes have room.
async fn make_room(
    connection: &Connection,
    store: &ObjectStore,
    bucket: &str,
    takes: u64,
) -> Result<(), ObjectError> {
    let context = jetstream::new(connection.client().clone());
    let held = async || {
        let stream = context.get_stream(format!("OBJ_{bucket}")).await;
        Ok::<_, ObjectError>(stream.map_err(|error| put_failed(&error))?.cached_info().state.bytes)
    };
    if held().await? + takes <= BYTES_MAX {
        return Ok(());
    }
    let all = store.list().await.map_err(|error| put_failed(&error))?;
    let mut all: Vec<_> = all.try_collect().await.map_err(|error| put_failed(&error))?;
    all.sort_by_key(|object| object.modified);
    for object in all {
        store.delete(&object.name).await.map_err(|error| put_failed(&error))?;
        if held().await? + takes <= BYTES_MAX {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_names_a_bucket_and_an_object_and_what_does_not_is_none() {
        let place = ObjectPlace::parse("nats:smgr-artifacts-acme/web/1.0.tar.gz").unwrap();
        assert_eq!((&*place.bucket, &*place.name), ("smgr-artifacts-acme", "web/1.0.tar.gz"));
        assert_eq!(place.to_string(), "nats:smgr-artifacts-acme/web/1.0.tar.gz");
        for text in
            ["nats:", "nats:b", "nats:b/", "nats:/n", "nats:a.b/n", "nats:b/a b", "http://b/n"]
        {
            assert_eq!(ObjectPlace::parse(text), None, "{text}");
        }
    }
}
