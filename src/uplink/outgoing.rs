//! From the agent to the bus, in order; keeps only what somebody still waits for while the bus is away.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::bus::{BusState, Connection, SendError};
use crate::ipc::channel::Sender;
use crate::ipc::socket::SocketError;
use crate::ipc::uplink::{Confirm, FromUplink, Granting, Ticket};
use crate::wire::subject::{Inbox, InvalidSubject, Subject};

/// What the session hands to the publisher.
#[derive(Debug)]
pub(super) enum Work {
    /// Publish on this connection from here on, or on none.
    Use(Option<Connection>),
    /// Publish this.
    Publish(Publication),
}

/// One message for the bus.
#[derive(Debug)]
pub(super) struct Publication {
    pub(super) ticket: Ticket,
    pub(super) to: String,
    pub(super) bytes: Vec<u8>,
    pub(super) confirm: Confirm,
    /// Until when it is worth publishing; the past for what can be fetched later.
    pub(super) keep_until: Instant,
}

impl Publication {
    pub(super) fn keep(keep_ms: u32) -> Instant {
        Instant::now() + Duration::from_millis(u64::from(keep_ms))
    }
}

/// Publishes in order. Bounded by the credit of the agent, which comes back when a publication is done with.
pub(super) struct Publisher {
    work: mpsc::Receiver<Work>,
    sender: Sender,
    granting: Granting,
    connection: Option<Connection>,
    state: Option<watch::Receiver<BusState>>,
    /// What waits for the bus, oldest first.
    kept: VecDeque<Publication>,
}

#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("no bus is configured")]
    NoBus,
    #[error("`to` is neither a subject nor an inbox")]
    To(#[from] InvalidSubject),
    #[error(transparent)]
    Send(#[from] SendError),
}

impl Publisher {
    pub(super) fn new(work: mpsc::Receiver<Work>, sender: Sender) -> Self {
        Self {
            work,
            sender,
            granting: Granting::default(),
            connection: None,
            state: None,
            kept: VecDeque::new(),
        }
    }

    /// Works until the session is over and all that it handed over was tried.
    pub(super) async fn run(mut self) -> SocketError {
        while self.step().await {}
        SocketError::Closed
    }

    /// Does what comes next; says whether there can be more.
    async fn step(&mut self) -> bool {
        // Live events are worth nothing later, so only what is kept needs a clock and an eye on the bus.
        let waits = !self.kept.is_empty();
        let next_end = self.kept.iter().map(|kept| kept.keep_until).min();
        tokio::select! {
            work = self.work.recv() => match work {
                None => return false,
                Some(Work::Use(connection)) => {
                    self.state = connection.as_ref().map(Connection::state);
                    self.connection = connection;
                    self.flush_kept().await;
                }
                Some(Work::Publish(publication)) => {
                    self.flush_kept().await;
                    if publication.keep_until > Instant::now() && !self.is_up() {
                        self.kept.push_back(publication);
                    } else {
                        self.publish(publication).await;
                    }
                }
            },
            () = changed(&mut self.state), if waits => self.flush_kept().await,
            () = sleep_until(next_end.unwrap_or_else(Instant::now)), if waits => self.expire().await,
        }
        true
    }

    fn is_up(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.borrow().is_up())
    }

    async fn flush_kept(&mut self) {
        while self.is_up() {
            let Some(publication) = self.kept.pop_front() else { break };
            self.publish(publication).await;
        }
    }

    async fn expire(&mut self) {
        let now = Instant::now();
        let (ended, kept) = self.kept.drain(..).partition(|kept| kept.keep_until <= now);
        self.kept = kept;
        for publication in Vec::from(ended) {
            self.publish(publication).await; // Says why it cannot.
        }
    }

    /// Publishes, says what came of it, and gives the credit back.
    async fn publish(&mut self, publication: Publication) {
        let (ticket, confirm) = (publication.ticket, publication.confirm);
        let said = match (self.try_publish(publication).await, confirm) {
            (Ok(()), Confirm::Nothing) => None,
            (Ok(()), Confirm::Sent | Confirm::Flushed) => Some(FromUplink::Published { ticket }),
            (Err(error), _) => Some(FromUplink::Refused { ticket, why: error.to_string() }),
        };
        let credit = self.granting.done().map(FromUplink::Credit);
        for frame in said.into_iter().chain(credit) {
            // An agent that is gone hears nothing of it, and what it said before it went is published all the same.
            drop(self.sender.send(&frame).await);
        }
    }

    async fn try_publish(&self, publication: Publication) -> Result<(), PublishError> {
        let connection = self.connection.as_ref().ok_or(PublishError::NoBus)?;
        match publication.to.parse::<Subject>() {
            Ok(subject) => connection.publish(&subject, publication.bytes).await?,
            Err(InvalidSubject::Shape) => {
                connection.answer(&publication.to.parse::<Inbox>()?, publication.bytes).await?;
            }
            Err(error) => return Err(error.into()),
        }
        match publication.confirm {
            Confirm::Flushed => Ok(connection.flush().await?),
            Confirm::Nothing | Confirm::Sent => Ok(()),
        }
    }
}

/// Waits for a change of the bus; for ever when there is none.
pub(super) async fn changed(state: &mut Option<watch::Receiver<BusState>>) {
    let told = match state {
        Some(state) => state.changed().await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending::<()>().await;
    }
}
