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

    /// Works until the agent is gone.
    pub(super) async fn run(mut self) -> SocketError {
        loop {
            if let Err(error) = self.step().await {
                return error;
            }
        }
    }

    async fn step(&mut self) -> Result<(), SocketError> {
        // Live events are worth nothing later, so only what is kept needs a clock and an eye on the bus.
        let waits = !self.kept.is_empty();
        let next_end = self.kept.iter().map(|kept| kept.keep_until).min();
        tokio::select! {
            work = self.work.recv() => match work {
                None => Err(SocketError::Closed),
                Some(Work::Use(connection)) => {
                    self.state = connection.as_ref().map(Connection::state);
                    self.connection = connection;
                    self.flush_kept().await
                }
                Some(Work::Publish(publication)) => {
                    self.flush_kept().await?;
                    if publication.keep_until > Instant::now() && !self.is_up() {
                        self.kept.push_back(publication);
                        return Ok(());
                    }
                    self.publish(publication).await
                }
            },
            () = changed(&mut self.state), if waits => self.flush_kept().await,
            () = sleep_until(next_end.unwrap_or_else(Instant::now)), if waits => self.expire().await,
        }
    }

    fn is_up(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.borrow().is_up())
    }

    async fn flush_kept(&mut self) -> Result<(), SocketError> {
        while self.is_up() {
            let Some(publication) = self.kept.pop_front() else { break };
            self.publish(publication).await?;
        }
        Ok(())
    }

    async fn expire(&mut self) -> Result<(), SocketError> {
        let now = Instant::now();
        let (ended, kept) = self.kept.drain(..).partition(|kept| kept.keep_until <= now);
        self.kept = kept;
        for publication in Vec::from(ended) {
            self.publish(publication).await?; // Says why it cannot.
        }
        Ok(())
    }

    /// Publishes, says what came of it, and gives the credit back.
    async fn publish(&mut self, publication: Publication) -> Result<(), SocketError> {
        let (ticket, confirm) = (publication.ticket, publication.confirm);
        match (self.try_publish(publication).await, confirm) {
            (Ok(()), Confirm::Nothing) => {}
            (Ok(()), Confirm::Sent | Confirm::Flushed) => {
                self.sender.send(&FromUplink::Published { ticket }).await?;
            }
            (Err(error), _) => {
                let why = error.to_string();
                self.sender.send(&FromUplink::Refused { ticket, why }).await?;
            }
        }
        match self.granting.done() {
            Some(count) => self.sender.send(&FromUplink::Credit(count)).await,
            None => Ok(()),
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
