//! The one connection of the agent: what is to be sent waits here, in order, answers before facts. Only a list of runs
//! comes behind the facts that it rests on: an end that came later would make a run that is over look alive.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use tracing::warn;

use super::facts::Facts;
use super::poller::{Poller, Token};
use crate::ipc::frame::{Packet, Received};
use crate::ipc::hello::Incarnation;
use crate::ipc::keeper::{Answer, FromKeeper, ToKeeper};
use crate::ipc::socket::{self, Inbox, SocketError};

/// Answers that wait to be sent, before no further request is read.
const OUTBOX_MAX: usize = 64;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    outbox: VecDeque<Outgoing>,
    is_blocked: bool,
    /// Which agent, once it has said so.
    pub(super) agent: Option<Incarnation>,
}

#[derive(Debug)]
struct Outgoing {
    packet: Packet,
    /// Whether all facts go first.
    behind_facts: bool,
}

impl Connection {
    pub(super) fn new(poller: &Poller, socket: OwnedFd) -> std::io::Result<Self> {
        poller.watch(&socket, Token::Connection)?;
        Ok(Self { socket, outbox: VecDeque::new(), is_blocked: false, agent: None })
    }

    /// Receives a message, if one waits and there is room for its answer.
    ///
    /// # Errors
    /// When the connection is of no use any more.
    pub(super) fn receive(
        &self,
        inbox: &mut Inbox,
    ) -> Result<Option<Received<ToKeeper>>, SocketError> {
        if self.outbox.len() >= OUTBOX_MAX {
            return Ok(None);
        }
        match inbox.receive(&self.socket) {
            Ok(received) => Ok(Some(received)),
            Err(error) if error.would_block() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a message behind those that wait.
    pub(super) fn push(&mut self, message: &FromKeeper, descriptors: Vec<OwnedFd>) {
        match Packet::with_descriptors(message, descriptors) {
            Ok(packet) => {
                let behind_facts =
                    matches!(message, FromKeeper::Answer { answer: Answer::Runs { .. }, .. });
                self.outbox.push_back(Outgoing { packet, behind_facts });
            }
            // Every answer is bounded below the limits; the agent's deadline would notice.
            Err(error) => warn!(%error, "an answer does not fit"),
        }
    }

    /// Sends what can be sent without waiting, then the facts that the agent was not sent.
    ///
    /// # Errors
    /// When the connection is of no use any more.
    pub(super) fn flush(&mut self, poller: &Poller, facts: &mut Facts) -> Result<(), SocketError> {
        let was = (self.is_blocked, self.outbox.len() >= OUTBOX_MAX);
        self.is_blocked = !self.send_all(facts)?;
        let is = (self.is_blocked, self.outbox.len() >= OUTBOX_MAX);
        if was != is {
            poller.watch_room(&self.socket, Token::Connection, is.0, !is.1);
        }
        Ok(())
    }

    fn send_all(&mut self, facts: &mut Facts) -> Result<bool, SocketError> {
        while let Some(next) = self.outbox.front() {
            if next.behind_facts && !self.send_facts(facts)? {
                return Ok(false);
            }
            match socket::send(&self.socket, &next.packet) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.would_block() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.send_facts(facts)
    }

    fn send_facts(&self, facts: &mut Facts) -> Result<bool, SocketError> {
        while let Some(fact) = facts.next().filter(|_| self.agent.is_some()) {
            match socket::send(&self.socket, &Packet::new(&FromKeeper::Fact(fact.clone()))?) {
                Ok(()) => facts.mark_sent(),
                Err(error) if error.would_block() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
