//! The way into a running controller for a face in the same process: questions to its one task, calls to nodes.
//!
//! Nothing here judges who may ask or wish: whoever lets others in does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::links::{self, Question};
use super::verify::Trusted;
use super::wake::{Wake, Waker};
use crate::bus::{Answers, Connection, NobodyListens};
use crate::config::{TOLD_BYTES_MAX, Told};
use crate::domain::id::{FleetId, IntentId, Kid, NodeId, Principal, ServiceId};
use crate::domain::policy::KeyClass;
use crate::head::folder::StateFolder;
use crate::wire::key::{Keyring, Signer};
use crate::wire::payload::{Answer, Ask, Reply};
use crate::wire::subject::{Callee, Subject};

/// The silence after which the same intent is sent again: who leads now may not have been listening.
const REQUEST_AGAIN: Duration = Duration::from_secs(2);

/// A way into a running controller. Clones lead to the same one.
#[derive(Clone)]
pub struct Access {
    pub(super) fleet: FleetId,
    pub(super) controller: NodeId,
    pub(super) folder: StateFolder,
    pub(super) trusted: Arc<Trusted>,
    pub(super) waker: Waker,
    pub(super) connection: Connection,
    pub(super) signer: Arc<Signer>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("controller", &self.controller).finish_non_exhaustive()
    }
}

/// Says why a question was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The controller is ending.
    #[error("the controller is ending")]
    Ending,
    /// It has too much to do.
    #[error("the controller did not answer in time")]
    Late,
}

/// Something that came back from a node.
#[derive(Debug)]
pub enum Heard {
    /// A verified answer of that node to this very envelope.
    Answer(Box<Answer>),
    /// The server of the bus knows of nobody who listens: nothing was delivered.
    NotThere,
    /// The time is over, or the connection.
    Over,
}

/// The answers of one node to one envelope, as they come in.
#[derive(Debug)]
pub struct Calling {
    answers: Answers,
    node: NodeId,
    cause: IntentId,
    trusted: Arc<Trusted>,
}

impl Access {
    /// Returns the fleet.
    pub fn fleet(&self) -> &FleetId {
        &self.fleet
    }

    /// Returns the controller's name.
    pub fn controller(&self) -> &NodeId {
        &self.controller
    }

    /// Returns the controller's state folder.
    pub fn folder(&self) -> &StateFolder {
        &self.folder
    }

    /// Returns the keys that are trusted.
    pub fn ring(&self) -> &Keyring {
        &self.trusted.ring
    }

    /// Returns the keys that were taken back.
    pub fn revoked(&self) -> &[Kid] {
        &self.trusted.revoked
    }

    /// Says whether the bus can be spoken to.
    pub fn has_bus(&self) -> bool {
        self.connection.state().borrow().is_up()
    }

    /// Waits until the controller ends.
    pub async fn ended(&self) {
        self.waker.closed().await;
    }

    /// Asks the controller's task.
    ///
    /// # Errors
    /// When it does not answer within the time.
    pub async fn ask(&self, ask: Ask, within: Duration) -> Result<Reply, AskError> {
        let (reply, answer) = oneshot::channel();
        let asking = async {
            self.waker.send(Wake::Asked(ask, reply)).await.map_err(|_| AskError::Ending)?;
            answer.await.map_err(|_| AskError::Ending)
        };
        timeout(within, asking).await.unwrap_or(Err(AskError::Late))
    }

    /// Asks a node for the effective configuration of a service, in the controller's own name; nothing when it does not
    /// tell all of it in time.
    pub async fn configuration(&self, node: &NodeId, service: &ServiceId) -> Option<Told> {
        let ask = Ask::Config { service: service.clone() };
        let question = Question::new(&self.signer, &self.fleet, node, ask);
        let (connection, trusted) = (self.connection.clone(), self.trusted.clone());
        let bytes = links::whole(connection, question, trusted, TOLD_BYTES_MAX).await?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Brings an intent to whichever controller leads, until it answers; `None` when none does in time.
    pub async fn request(
        &self,
        principal: &Principal,
        (cause, envelope): (IntentId, &[u8]),
        until: Instant,
    ) -> Option<Reply> {
        let controllers: Vec<_> = self.trusted.origins().collect();
        let subject = Subject::Request { fleet: self.fleet.clone(), principal: principal.clone() };
        while Instant::now() < until {
            let again = until.min(Instant::now() + REQUEST_AGAIN);
            let within = again.saturating_duration_since(Instant::now());
            if let Ok(mut answers) =
                self.connection.request(&subject, envelope.to_vec(), within).await
            {
                while let Ok(Some(bytes)) = answers.next().await {
                    let leads = controllers.iter().filter(|it| it.1 == KeyClass::Controller);
                    let mut read = leads.map(|(name, _)| self.trusted.answer(&bytes, name, cause));
                    if let Some(answer) = read.find_map(Result::ok) {
                        return Some(answer.reply);
                    }
                }
            }
            // Nobody listens for a moment: a lease that was lost is taken anew.
            sleep_until(again).await;
        }
        None
    }

    /// Brings an envelope to a node; `None` when the bus takes nothing at this moment.
    pub async fn call(
        &self,
        node: &NodeId,
        (cause, envelope): (IntentId, Vec<u8>),
        within: Duration,
    ) -> Option<Calling> {
        let to = Callee::node(node.clone()).ok()?;
        let subject = Subject::Call { fleet: self.fleet.clone(), to };
        match self.connection.request(&subject, envelope, within).await {
            Ok(answers) => {
                let (node, trusted) = (node.clone(), self.trusted.clone());
                Some(Calling { answers, node, cause, trusted })
            }
            Err(error) => {
                debug!(%node, %error, "not called");
                None
            }
        }
    }
}

impl Calling {
    /// Returns what comes next. What does not verify is passed over: anybody on a bus can write into an inbox.
    ///
    /// Can be dropped while it waits without losing an answer.
    pub async fn next(&mut self) -> Heard {
        loop {
            let bytes = match self.answers.next().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Heard::Over,
                Err(NobodyListens) => return Heard::NotThere,
            };
            match self.trusted.answer(&bytes, &self.node, self.cause) {
                Ok(answer) => return Heard::Answer(Box::new(answer)),
                Err(why) => debug!(node = %self.node, ?why, "an answer was dropped"),
            }
        }
    }
}
