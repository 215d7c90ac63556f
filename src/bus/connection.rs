//! The connection: comes back by itself, says how it is, and bounds everything that waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Client, ClientError, Event};
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::answers::Answers;
use super::options::{BusOptions, InvalidOptions};
use super::server::{SERVER_VERSION_FLOOR, ServerVersion};
use crate::retry;
use crate::wire::subject::{Filter, Inbox, Subject};

/// How long a message may wait for its turn to be written. A connection that takes longer is as good as down.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the first exchange on a fresh connection may take.
const GREET_TIMEOUT: Duration = Duration::from_secs(5);

/// The reconnection delay after the first failure; it doubles with each further one.
const RECONNECT_DELAY: Duration = Duration::from_millis(250);

/// The longest reconnection delay. A node that lost its bus for days is back within this after the bus is.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(8);

/// How many changes of the connection wait for the task that judges them.
const EVENTS_MAX: usize = 32;

/// How the bus is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusState {
    /// Not usable; it is being tried again all the time.
    Down {
        /// What happened, for people.
        why: String,
    },
    /// Usable.
    Up {
        /// What the server says it is.
        version: ServerVersion,
        /// Counts the connections made, from 1: a reader that slept through an outage sees that there was one.
        session: u64,
        /// Says whether the server had to prove its name.
        encrypted: bool,
    },
}

/// A connection to the bus. Clones share it; it closes with the last of them.
#[derive(Clone, Debug)]
pub struct Connection {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    state: watch::Receiver<BusState>,
    overflowed: Arc<AtomicU64>,
    watcher: JoinHandle<()>,
}

/// What arrives for one filter.
#[derive(Debug)]
pub struct Subscription(async_nats::Subscriber);

/// One message as it arrived. Nothing in it is verified.
#[derive(Debug)]
pub struct Delivered(async_nats::Message);

/// Says why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The options cannot work.
    #[error("the bus cannot be reached with these options")]
    Options(#[from] InvalidOptions),
    /// No server answered, or the one that did turned us away.
    #[error("failed to connect to the bus at {tried}")]
    Connect { tried: String, source: async_nats::ConnectError },
    /// The server is there and not usable.
    #[error("the bus at {tried} is not usable: {why}")]
    Unusable { tried: String, why: String },
}

/// Says why a message was not handed to the bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no usable connection.
    #[error("the bus is down: {why}")]
    Down { why: String },
    /// The server takes no message of this size.
    #[error("a message of {bytes} bytes is larger than the {bytes_max} that the bus takes")]
    TooLarge { bytes: usize, bytes_max: usize },
    /// The connection did not take it in time.
    #[error("the bus did not take the message within {} s", SEND_TIMEOUT.as_secs())]
    Stalled,
}

/// Says that a filter was not handed to the bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to listen to `{filter}`: the connection is closed or stalled")]
pub struct SubscribeError {
    filter: String,
}

impl Connection {
    /// Connects, and comes back by itself whenever the connection is lost later.
    ///
    /// # Errors
    /// Fails when no server can be reached now, or when it is older than [`SERVER_VERSION_FLOOR`].
    pub async fn dial(options: &BusOptions) -> Result<Self, DialError> {
        let connection = Self::open(options, false).await?;
        let mut state = connection.state();
        let settled = |state: &BusState| *state != BusState::connecting();
        let settled = match timeout(GREET_TIMEOUT, state.wait_for(settled)).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) | Err(_) => BusState::connecting(),
        };
        match settled {
            BusState::Up { .. } => Ok(connection),
            BusState::Down { why } => Err(DialError::Unusable { tried: options.tried(), why }),
        }
    }

    /// Returns at once and connects as soon as the bus is there, however long that takes.
    ///
    /// # Errors
    /// Fails when the options cannot work.
    pub async fn keep(options: &BusOptions) -> Result<Self, DialError> {
        Self::open(options, true).await
    }

    async fn open(options: &BusOptions, wait: bool) -> Result<Self, DialError> {
        let encrypted = options.encrypted()?;
        let (events, judged) = mpsc::channel(EVENTS_MAX);
        let overflowed = Arc::new(AtomicU64::new(0));
        let overflow_count = overflowed.clone();
        let met = Arc::new(AtomicBool::new(false));
        let has_met = met.clone();
        let mut connect = options
            .connect_options()?
            .reconnect_delay_callback(move |attempt| {
                reconnect_delay(attempt, has_met.load(Ordering::Relaxed))
            })
            .event_callback(move |event| {
                let events = events.clone();
                if let Event::SlowConsumer(_) = event {
                    overflow_count.fetch_add(1, Ordering::Relaxed);
                }
                async move {
                    if !matches!(event, Event::SlowConsumer(_)) {
                        let _closing = events.send(event).await;
                    }
                }
            });
        if wait {
            connect = connect.retry_on_initial_connect();
        }
        let client = connect
            .connect(&options.urls[..])
            .await
            .map_err(|source| DialError::Connect { tried: options.tried(), source })?;
        let (state, reader) = watch::channel(BusState::connecting());
        let watcher = Watcher {
            client: client.clone(),
            events: judged,
            state,
            met,
            encrypted,
            session: 0,
            is_ungreeted: false,
        };
        let watcher = tokio::spawn(watcher.run());
        Ok(Self { shared: Arc::new(Shared { client, state: reader, overflowed, watcher }) })
    }

    /// Returns how the bus is, and a way to wait for a change.
    pub fn state(&self) -> watch::Receiver<BusState> {
        self.shared.state.clone()
    }

    /// Returns how many messages at least were dropped because a subscriber did not take them in time.
    pub fn overflowed(&self) -> u64 {
        self.shared.overflowed.load(Ordering::Relaxed)
    }

    /// Hands a message to the bus; returns when it is queued, in the order of the calls.
    ///
    /// # Errors
    /// Fails when the bus is down, does not take messages of this size, or does not take this one in time.
    pub async fn publish(&self, subject: &Subject, payload: Vec<u8>) -> Result<(), SendError> {
        self.send(subject.to_string(), None, payload).await
    }

    /// Hands an answer to the bus.
    ///
    /// # Errors
    /// As [`Connection::publish`].
    pub async fn answer(&self, to: &Inbox, payload: Vec<u8>) -> Result<(), SendError> {
        self.send(to.to_string(), None, payload).await
    }

    /// Sends a message and returns the answers to it, from however many there are, until `within` has passed.
    ///
    /// # Errors
    /// As [`Connection::publish`].
    pub async fn request(
        &self,
        subject: &Subject,
        payload: Vec<u8>,
        within: Duration,
    ) -> Result<Answers, SendError> {
        let inbox = self.shared.client.new_inbox();
        let listen = self.shared.client.subscribe(inbox.clone());
        let Ok(Ok(subscriber)) = timeout(SEND_TIMEOUT, listen).await else {
            return Err(SendError::Stalled);
        };
        self.send(subject.to_string(), Some(inbox), payload).await?;
        Ok(Answers::new(subscriber, within))
    }

    /// Listens to a filter, also across reconnections.
    ///
    /// # Errors
    /// Fails when the connection was closed or does not take the filter in time.
    pub async fn subscribe(&self, filter: &Filter) -> Result<Subscription, SubscribeError> {
        let text = filter.to_string();
        match timeout(SEND_TIMEOUT, self.shared.client.subscribe(text.clone())).await {
            Ok(Ok(subscriber)) => Ok(Subscription(subscriber)),
            Ok(Err(_)) | Err(_) => Err(SubscribeError { filter: text }),
        }
    }

    /// Waits until the server has read all that was handed over: messages, and filters too.
    ///
    /// It takes a message to an inbox of one's own, which one must be allowed to publish on: what the library calls a
    /// flush ends at the socket.
    ///
    /// # Errors
    /// Fails when the bus is down or that takes too long.
    pub async fn flush(&self) -> Result<(), SendError> {
        let inbox = self.shared.client.new_inbox();
        let round_trip = async {
            let mut echo = self.shared.client.subscribe(inbox.clone()).await.ok()?;
            self.send(inbox, None, Vec::new()).await.ok()?;
            echo.next().await
        };
        if let BusState::Down { why } = &*self.shared.state.borrow() {
            return Err(SendError::Down { why: why.clone() });
        }
        match timeout(SEND_TIMEOUT, round_trip).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => Err(SendError::Stalled),
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.shared.client
    }

    async fn send(
        &self,
        subject: String,
        reply: Option<String>,
        payload: Vec<u8>,
    ) -> Result<(), SendError> {
        if let BusState::Down { why } = &*self.shared.state.borrow() {
            return Err(SendError::Down { why: why.clone() });
        }
        let client = &self.shared.client;
        let (bytes, bytes_max) = (payload.len(), client.max_payload());
        if bytes > bytes_max {
            return Err(SendError::TooLarge { bytes, bytes_max });
        }
        let sent = timeout(SEND_TIMEOUT, async {
            match reply {
                Some(reply) => client.publish_with_reply(subject, reply, payload.into()).await,
                None => client.publish(subject, payload.into()).await,
            }
        });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(SendError::Stalled),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The watcher holds a client, and the connection lives as long as any client does.
        self.watcher.abort();
    }
}

impl BusState {
    fn connecting() -> Self {
        Self::Down { why: "connecting".to_owned() }
    }

    /// Says whether messages can be sent.
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

impl Subscription {
    /// Returns the next message, or `None` when the connection was closed.
    ///
    /// Can be dropped while it waits without losing a message.
    pub async fn next(&mut self) -> Option<Delivered> {
        self.0.next().await.map(Delivered)
    }
}

impl Delivered {
    /// Returns the subject as text.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// Returns where the sender wants to be answered: its own claim.
    pub fn reply(&self) -> Option<&str> {
        self.0.reply.as_deref()
    }

    /// Returns what was sent.
    pub fn payload(&self) -> &[u8] {
        &self.0.payload
    }

    /// Takes what was sent.
    pub fn into_payload(self) -> Vec<u8> {
        self.0.payload.into()
    }
}

/// Judges what the client library reports.
struct Watcher {
    client: Client,
    events: mpsc::Receiver<Event>,
    state: watch::Sender<BusState>,
    met: Arc<AtomicBool>,
    encrypted: bool,
    session: u64,
    /// The connection is there, and its server has not answered.
    is_ungreeted: bool,
}

impl Watcher {
    async fn run(mut self) {
        while let Some(event) = self.next().await {
            let next = match event {
                Event::Connected => self.greet().await,
                Event::Disconnected => {
                    self.is_ungreeted = false;
                    down("the connection was lost")
                }
                Event::Closed => down("the connection was closed"),
                Event::ClientError(ClientError::Other(why)) if !self.state.borrow().is_up() => {
                    // All that the client says of a refused connection.
                    let why = match (&*why, self.encrypted) {
                        ("IO error", false) => "no server answers there",
                        ("IO error", true) => {
                            "no server answers there that its authority vouches for"
                        }
                        (why, _) => why,
                    };
                    down(&format!("cannot connect: {why}"))
                }
                Event::ServerError(why) => {
                    // The server says for instance that a subject is not ours; the connection stays.
                    tracing::warn!(%why, "the bus server reports an error");
                    continue;
                }
                Event::LameDuckMode
                | Event::Draining
                | Event::SlowConsumer(_)
                | Event::ClientError(_) => continue,
            };
            self.state.send_if_modified(|state| {
                let changed = *state != next;
                *state = next;
                changed
            });
        }
    }

    /// Returns the next report. A server that did not answer the greeting and stays connected is greeted again.
    async fn next(&mut self) -> Option<Event> {
        if !self.is_ungreeted {
            return self.events.recv().await;
        }
        match timeout(GREET_TIMEOUT, self.events.recv()).await {
            Ok(event) => event,
            Err(_) => Some(Event::Connected),
        }
    }

    /// Exchanges the first words, after which the server's name card is known, and looks at its age.
    async fn greet(&mut self) -> BusState {
        self.met.store(true, Ordering::Relaxed);
        let answer = timeout(GREET_TIMEOUT, self.client.flush()).await;
        self.is_ungreeted = answer.is_err();
        if !matches!(answer, Ok(Ok(()))) {
            return down("the server does not answer");
        }
        let text = self.client.server_info().version;
        match text.parse::<ServerVersion>() {
            Ok(version) if version >= SERVER_VERSION_FLOOR => {
                self.session += 1;
                BusState::Up { version, session: self.session, encrypted: self.encrypted }
            }
            Ok(version) => down(&format!(
                "nats-server {version} is too old, {SERVER_VERSION_FLOOR} or later is needed"
            )),
            Err(_) => down("the server does not say which version it is"),
        }
    }
}

fn down(why: &str) -> BusState {
    BusState::Down { why: why.to_owned() }
}

/// Returns how long to wait before an attempt to connect: doubling, capped, and spread so that a fleet that lost its
/// server does not come back as one.
fn reconnect_delay(attempt: usize, met: bool) -> Duration {
    if attempt <= 1 && !met {
        return Duration::ZERO; // The very first attempt has nobody to be spread from.
    }
    let failures = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
    let longest = retry::doubled(RECONNECT_DELAY, RECONNECT_DELAY_MAX, failures);
    retry::drawn(Duration::ZERO..=longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_before_an_attempt_grows_to_a_bound_and_is_spread() {
        assert_eq!(reconnect_delay(1, false), Duration::ZERO);
        for attempt in [1, 2, 7, 60, usize::MAX] {
            let delays: Vec<_> = (0..50).map(|_| reconnect_delay(attempt, true)).collect();
            assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(8)));
            assert!(delays.iter().any(|delay| *delay != delays[0]), "{attempt}: {delays:?}");
        }
    }
}
