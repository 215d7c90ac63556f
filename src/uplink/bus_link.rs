//! The connection to the bus, kept while agents come and go.

use tokio::sync::watch;

use crate::bus::{
    BusOptions, BusState, Connection, Credentials, DialError, TlsFiles, ensure_event_stream,
};
use crate::ipc::uplink::{BusConfig, BusCredentials};
use crate::wire::subject::InboxPrefix;

/// How many messages wait for each filter. A burst beyond it loses its newest, counted. Each is looked at and passed
/// on or dropped as soon as it is read, so this only has to hold what one read of the socket brings.
const INCOMING_MAX: usize = 4096;

/// At most one connection, and what it was made from.
#[derive(Debug, Default)]
pub(super) struct BusLink {
    current: Option<(BusConfig, Connection)>,
}

impl BusLink {
    /// Connects as `config` says, unless that connection is there already.
    ///
    /// # Errors
    /// Fails when the configuration cannot work; there is no connection then.
    pub(super) async fn configure(&mut self, config: BusConfig) -> Result<(), DialError> {
        if self.current.as_ref().is_some_and(|(current, _)| *current == config) {
            return Ok(());
        }
        self.close().await;
        if !config.urls.is_empty() {
            let connection = Connection::keep(&options(&config)).await?;
            self.current = Some((config, connection));
        }
        Ok(())
    }

    pub(super) fn connection(&self) -> Option<&Connection> {
        self.current.as_ref().map(|(_, connection)| connection)
    }

    /// Returns how the bus is, when there is one.
    pub(super) fn state(&self) -> Option<watch::Receiver<BusState>> {
        self.connection().map(Connection::state)
    }

    /// Returns what to do once at every connect, if anything.
    pub(super) fn retain_events(&self) -> Option<impl Future<Output = ()> + Send + 'static> {
        let (config, connection) = self.current.as_ref()?;
        let (fleet, connection) = (config.retain_events.clone()?, connection.clone());
        Some(async move {
            if let Err(error) = ensure_event_stream(&connection, &fleet).await {
                let why = std::error::Error::source(&error).map(ToString::to_string);
                tracing::info!(%error, ?why, "stock consumers cannot catch up on events");
            }
        })
    }

    /// Writes what was handed over and lets the connection go.
    pub(super) async fn close(&mut self) {
        if let Some((_, connection)) = self.current.take()
            && connection.state().borrow().is_up()
            && let Err(error) = connection.flush().await
        {
            tracing::info!(%error, "not all was written before the connection was closed");
        }
    }
}

fn options(config: &BusConfig) -> BusOptions {
    BusOptions {
        urls: config.urls.clone(),
        credentials: match &config.credentials {
            BusCredentials::Anonymous => Credentials::Anonymous,
            BusCredentials::NkeySeed(seed) => Credentials::NkeySeed(seed.clone()),
            BusCredentials::Creds(text) => Credentials::Creds(text.clone()),
        },
        tls: TlsFiles { ca: config.ca.clone(), client: config.client.clone() },
        inbox: InboxPrefix(config.principal.clone()),
        name: format!("smgr {}", config.principal),
        incoming_max: INCOMING_MAX,
    }
}
