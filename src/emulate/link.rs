//! The connection of an emulated node: hears calls, and says what the node wants said.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::EmulateError;
use super::node::EmulatedNode;
use super::voice::Said;
use crate::bus::{BusOptions, BusState, Connection, Delivered, Subscription};
use crate::head::clock;
use crate::retry;
use crate::wire::subject::{Callee, Filter};

/// How often the head of a log is told, as by an agent.
const BEAT: Duration = Duration::from_secs(5);

/// How many calls may wait for a node: it takes one after the other, and a flood of them is nothing that is emulated.
const INCOMING_MAX: usize = 64;

/// A node and its connection.
pub(super) struct Link {
    node: EmulatedNode,
    connection: Connection,
    own: Subscription,
    everybody: Subscription,
}

impl Link {
    /// Connects, listens, and begins the node's log.
    pub(super) async fn open(
        options: &BusOptions,
        mut node: EmulatedNode,
    ) -> Result<Self, EmulateError> {
        let options = BusOptions { incoming_max: INCOMING_MAX, ..options.clone() };
        let connection = Connection::dial(&options).await?;
        let to = Callee::node(node.name().clone())
            .map_err(|_| EmulateError::Name(node.name().clone()))?;
        let own = listen(&connection, &node, to).await?;
        let everybody = listen(&connection, &node, Callee::EVERY_NODE).await?;
        node.begin(clock::now());
        Ok(Self { node, connection, own, everybody })
    }

    /// Serves the node for as long as its connection can come back.
    pub(super) async fn run(mut self) {
        let mut bus = self.connection.state();
        let mut session = 0;
        let mut beat_at = Instant::now();
        let pace = self.node.pace();
        // Spread out, or all would record at the same moment.
        let mut record_at = Instant::now() + retry::drawn(Duration::ZERO..=pace.unwrap_or(BEAT));
        loop {
            let due = self.node.due_in(clock::now()).map(|due| Instant::now() + due);
            let is_up = session > 0;
            tokio::select! {
                Some(call) = self.own.next() => self.hear(&call),
                Some(call) = self.everybody.next() => self.hear(&call),
                changed = bus.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep_until(beat_at), if is_up => {
                    self.node.beat(clock::now());
                    beat_at = Instant::now() + BEAT;
                }
                () = sleep_until(record_at), if is_up && pace.is_some() => {
                    self.node.record(clock::now());
                    record_at += pace.unwrap_or(BEAT);
                }
                () = sleep_until(due.unwrap_or(beat_at)), if due.is_some() => {
                    self.node.ring(clock::now());
                }
            }
            let current = match *bus.borrow_and_update() {
                BusState::Up { session, .. } => session,
                BusState::Down { .. } => 0,
            };
            if current != session {
                session = current;
                beat_at = Instant::now();
            }
            self.say().await;
        }
    }

    fn hear(&mut self, call: &Delivered) {
        let reply = call.reply().and_then(|text| text.parse().ok());
        self.node.hear(clock::now(), call.payload(), reply);
    }

    /// Says all that waits. What the bus does not take is fetched from the log, or asked for again.
    async fn say(&mut self) {
        while let Some(said) = self.node.voice().next() {
            drop(match said {
                Said::Told(to, bytes) => self.connection.publish(&to, bytes.to_vec()).await,
                Said::Answer(to, bytes) => self.connection.answer(&to, bytes).await,
            });
        }
    }
}

async fn listen(
    connection: &Connection,
    node: &EmulatedNode,
    to: Callee,
) -> Result<Subscription, EmulateError> {
    let filter = Filter::Calls { fleet: node.fleet().clone(), to };
    connection
        .subscribe(&filter)
        .await
        .map_err(|source| EmulateError::Listen { node: node.name().clone(), source })
}
