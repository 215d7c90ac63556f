//! One agent, from its hello to its end.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::bus_link::BusLink;

use super::incoming::Delivery;
use super::outgoing::{Publication, Publisher, Work, changed};
use crate::bus::{BusState, Connection, ObjectError, ObjectPlace, SubscribeError, copy_object};
use crate::ipc::channel::{Receiver, Sender};
use crate::ipc::hello::{Hello, Incarnation, NoCommonProtocol, Part};
use crate::ipc::socket::SocketError;
use crate::ipc::uplink::{
    BusConfig, CREDIT_AT_START, FILTERS_MAX, FromUplink, SUBSCRIPTIONS_MAX, Ticket, ToUplink,
};
use crate::web;
use crate::wire::subject::{Filter, InvalidSubject};

/// How long the agent may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the agent may leave a full socket unread. One that takes longer hangs, and is dialled again.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the bus may take for what an agent said before it went.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(500);

/// The shortest time between two reports of drops, so that a flood on the bus is none on the socket.
const DROPS_INTERVAL: Duration = Duration::from_secs(1);

/// What the agent may have under way at once is its credit, and a few changes of the bus; more is a breach.
const WORK_MAX: usize = CREDIT_AT_START as usize + 8;

/// How a session ended.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The agent never said hello.
    NoHello,
    /// It speaks another protocol: this build is of no use to it.
    Protocol(NoCommonProtocol),
    /// It was served until it went away or broke the rules.
    Served(EndReason),
}

/// Why a session that had begun is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndReason {
    #[error("{0}")]
    Socket(#[from] SocketError),
    #[error("it left its socket unread for {} s", SEND_TIMEOUT.as_secs())]
    Unread,
    #[error("it sent more than it had credit for")]
    Overspent,
    #[error("it said hello twice")]
    SecondHello,
}

#[derive(Debug, thiserror::Error)]
enum RefuseSubscription {
    #[error("no bus is configured")]
    NoBus,
    #[error("at most {SUBSCRIPTIONS_MAX} subscriptions of {FILTERS_MAX} filters may be held")]
    TooMany,
    #[error("`{text}` is no filter")]
    Filter { text: String, source: InvalidSubject },
    #[error(transparent)]
    Bus(#[from] SubscribeError),
}

struct Session<'a> {
    sender: Sender,
    bus: &'a mut BusLink,
    /// How the bus is, when there is one.
    state: Option<watch::Receiver<BusState>>,
    delivery: Delivery,
    work: mpsc::Sender<Work>,
    subscriptions: BTreeMap<Ticket, Vec<AbortHandle>>,
    /// All that runs for this session; dropping it ends them.
    tasks: JoinSet<()>,
}

/// Serves the agent behind a connected socket until it is gone.
pub(super) async fn serve(
    sender: Sender,
    mut receiver: Receiver,
    incarnation: Incarnation,
    bus: &mut BusLink,
) -> SessionEnd {
    match greet(&sender, &mut receiver, incarnation).await {
        Some(Ok(_)) => {}
        Some(Err(error)) => return SessionEnd::Protocol(error),
        None => return SessionEnd::NoHello,
    }
    let (delivery, deliver) = Delivery::new(sender.clone());
    let (work, todo) = mpsc::channel(WORK_MAX);
    let publisher = Publisher::new(todo, sender.clone());
    let session = Session {
        sender,
        bus,
        state: None,
        delivery,
        work,
        subscriptions: BTreeMap::new(),
        tasks: JoinSet::new(),
    };
    let mut publishing = pin!(publisher.run());
    let end = tokio::select! {
        end = session.run(&mut receiver) => {
            // What the agent said before it went is still said; the publisher ends behind the last of it.
            drop(timeout(LAST_WORDS_WITHIN, publishing).await);
            end
        }
        end = deliver => end.into(),
        end = &mut publishing => end.into(),
    };
    SessionEnd::Served(end)
}

/// Exchanges hellos; `None` when the agent does not.
async fn greet(
    sender: &Sender,
    receiver: &mut Receiver,
    incarnation: Incarnation,
) -> Option<Result<u16, NoCommonProtocol>> {
    let hello = FromUplink::Hello(Hello::of(Part::Uplink, incarnation));
    sender.send(&hello).await.ok()?;
    match timeout(HELLO_TIMEOUT, receiver.receive::<ToUplink>()).await.ok()?.ok()?.message {
        ToUplink::Hello(hello) if hello.part == Part::Agent => Some(hello.agree()),
        ToUplink::Hello(_)
        | ToUplink::Configure(_)
        | ToUplink::Publish { .. }
        | ToUplink::Subscribe { .. }
        | ToUplink::Unsubscribe { .. }
        | ToUplink::Fetch { .. }
        | ToUplink::Credit(_) => None,
    }
}

/// Fetches a URL into a pipe, and says what came of it.
async fn download(
    sender: Sender,
    bus: Option<Connection>,
    (ticket, url, bytes_max): (Ticket, String, u64),
    into: OwnedFd,
) {
    let fetched = async {
        let mut into = pipe::Sender::from_owned_fd(into).map_err(|error| error.to_string())?;
        match ObjectPlace::parse(&url) {
            None => web::fetch(&url, bytes_max, &mut into).await.map_err(|it| it.to_string()),
            Some(place) => {
                let bus = bus.ok_or_else(|| ObjectError::NoBus.to_string())?;
                let copied = copy_object(&bus, &place, bytes_max, &mut into).await;
                copied.map_err(|error| error.to_string())
            }
        }
    };
    let frame = match fetched.await {
        Ok(_) => FromUplink::Published { ticket },
        Err(why) => FromUplink::Refused { ticket, why },
    };
    // One that is gone needs no word.
    drop(sender.send(&frame).await);
}

impl Session<'_> {
    async fn run(mut self, receiver: &mut Receiver) -> EndReason {
        let mut told = Instant::now();
        let mut tell_at: Option<Instant> = None;
        loop {
            let step = tokio::select! {
                frame = receiver.receive::<ToUplink>() => match frame {
                    Ok(frame) => self.handle(frame.message, frame.descriptors).await,
                    Err(error) => Err(error.into()),
                },
                () = changed(&mut self.state) => self.tell_state().await,
                () = self.delivery.dropped(), if tell_at.is_none() => {
                    tell_at = Some(told + DROPS_INTERVAL);
                    Ok(())
                }
                () = sleep_until(tell_at.unwrap_or(told)), if tell_at.is_some() => {
                    (told, tell_at) = (Instant::now(), None);
                    let counts = self.delivery.take_drops();
                    self.send(FromUplink::Dropped(counts)).await
                }
                Some(_ended) = self.tasks.join_next() => Ok(()),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn handle(
        &mut self,
        message: ToUplink,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), EndReason> {
        match message {
            ToUplink::Hello(_) => Err(EndReason::SecondHello),
            ToUplink::Configure(config) => self.configure(config).await,
            ToUplink::Publish { ticket, to, bytes, keep_ms, confirm } => {
                let keep_until = Publication::keep(keep_ms);
                let bytes = bytes.into_vec();
                let publication = Publication { ticket, to, bytes, confirm, keep_until };
                self.hand_over(Work::Publish(publication))
            }
            ToUplink::Subscribe { ticket, filters } => {
                match self.subscribe(ticket, &filters).await {
                    Ok(()) => Ok(()),
                    Err(why) => {
                        self.send(FromUplink::Refused { ticket, why: why.to_string() }).await
                    }
                }
            }
            ToUplink::Unsubscribe { ticket } => {
                self.unsubscribe(ticket);
                Ok(())
            }
            ToUplink::Credit(count) => {
                self.delivery.grant(count);
                Ok(())
            }
            ToUplink::Fetch { ticket, url, bytes_max } => {
                let Some(into) = descriptors.into_iter().next() else {
                    let why = "no pipe came with it".to_owned();
                    return self.send(FromUplink::Refused { ticket, why }).await;
                };
                let bus = self.bus.connection().cloned();
                let what = (ticket, url, bytes_max);
                self.tasks.spawn(download(self.sender.clone(), bus, what, into));
                Ok(())
            }
        }
    }

    async fn configure(&mut self, config: BusConfig) -> Result<(), EndReason> {
        let configured = self.bus.configure(config).await;
        let state = self.bus.state();
        let is_same = match (&self.state, &state) {
            (Some(before), Some(after)) => before.same_channel(after),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !is_same {
            for ticket in self.subscriptions.keys().copied().collect::<Vec<_>>() {
                self.unsubscribe(ticket);
            }
        }
        self.state = state;
        self.hand_over(Work::Use(self.bus.connection().cloned()))?;
        match configured {
            Ok(()) => self.tell_state().await,
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                let why = [Some(error.to_string()), source].into_iter().flatten();
                let why = why.collect::<Vec<_>>().join(": ");
                self.send(FromUplink::BusDown { why }).await
            }
        }
    }

    async fn subscribe(
        &mut self,
        ticket: Ticket,
        filters: &[String],
    ) -> Result<(), RefuseSubscription> {
        self.unsubscribe(ticket);
        let connection = self.bus.connection().ok_or(RefuseSubscription::NoBus)?.clone();
        if self.subscriptions.len() >= SUBSCRIPTIONS_MAX || filters.len() > FILTERS_MAX {
            return Err(RefuseSubscription::TooMany);
        }
        let parse = |text: &String| {
            text.parse::<Filter>()
                .map_err(|source| RefuseSubscription::Filter { text: text.clone(), source })
        };
        let filters = filters.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let mut handles = Vec::new();
        for filter in filters {
            let subscription = connection.subscribe(&filter).await?;
            let delivery = self.delivery.clone();
            let forward = delivery.forward(subscription, ticket, filter, connection.clone());
            handles.push(self.tasks.spawn(forward));
        }
        self.subscriptions.insert(ticket, handles);
        Ok(())
    }

    fn unsubscribe(&mut self, ticket: Ticket) {
        for handle in self.subscriptions.remove(&ticket).unwrap_or_default() {
            handle.abort();
        }
    }

    async fn tell_state(&mut self) -> Result<(), EndReason> {
        let state = self.state.as_mut().map(|state| state.borrow_and_update().clone());
        let frame = match state {
            Some(BusState::Up { version, session, encrypted }) => {
                if let Some(retain) = self.bus.retain_events() {
                    self.tasks.spawn(retain);
                }
                FromUplink::BusUp { version: version.to_string(), session, encrypted }
            }
            Some(BusState::Down { why }) => FromUplink::BusDown { why },
            None => FromUplink::BusDown { why: RefuseSubscription::NoBus.to_string() },
        };
        self.send(frame).await
    }

    fn hand_over(&self, work: Work) -> Result<(), EndReason> {
        self.work.try_send(work).map_err(|_| EndReason::Overspent)
    }

    async fn send(&self, frame: FromUplink) -> Result<(), EndReason> {
        match timeout(SEND_TIMEOUT, self.sender.send(&frame)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(EndReason::Unread),
        }
    }
}
