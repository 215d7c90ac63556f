//! The events of one node after a cursor, verified row by row, with nothing left out and nothing twice.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::sleep;

use super::client::{Client, Missing, Whom};
use super::context::Context;
use super::error::CliError;
use super::witness::Witness;
use crate::domain::code::Code;
use crate::domain::id::{EpochId, EventId, Seq};
use crate::domain::policy::{KeyClass, Kind};
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::key::Keyring;
use crate::wire::payload::{Answer, Ask, EventRecord, Reply};

/// Events that are asked for at once.
const PAGE: u32 = 256;

/// How long a node is asked to wait for the next event, in milliseconds.
const WAIT_MS: u32 = 30_000;

/// The same over the bus, where nobody tells that an answer was lost: so soon it is asked again.
const WAIT_BY_BUS_MS: u32 = 3_000;

/// The pause before a node that was lost is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// The longest such pause.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(2);

/// A place in a node's log, and what was read beyond it already.
#[derive(Debug)]
pub struct Feed {
    after: Option<EventId>,
    ready: VecDeque<EventRecord>,
    /// The last durable event that the node spoke of.
    head: Option<EventId>,
    pause: Duration,
    /// Sees every row once, in order.
    pub witness: Option<Witness>,
}

/// What a turn of the feed brought.
#[derive(Debug)]
pub enum Turn {
    /// The next event.
    Event(Box<EventRecord>),
    /// Everything up to here was given out.
    CaughtUp(Option<EventId>),
}

impl Feed {
    /// Begins after an event, or at the first one that is kept.
    pub fn after(cursor: Option<EventId>) -> Self {
        Self { after: cursor, ready: VecDeque::new(), head: None, pause: ASK_AGAIN, witness: None }
    }

    /// Returns the next event, or says that there is none yet: at once, or after half a minute when told to `wait`.
    ///
    /// Can be dropped while it waits without losing an event.
    ///
    /// # Errors
    /// When an event does not verify, one is missing, or the node refuses. An agent that is away while one waits is
    /// called again.
    pub async fn next(
        &mut self,
        context: &Context,
        whom: &Whom,
        client: &mut Client,
        wait: bool,
    ) -> Result<Turn, CliError> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                self.after = Some(record.id());
                return Ok(Turn::Event(Box::new(record)));
            }
            let wait_ms = match (wait, client.is_by_bus()) {
                (false, _) => 0,
                (true, false) => WAIT_MS,
                (true, true) => WAIT_BY_BUS_MS,
            };
            match self.read(client, wait_ms).await {
                Ok(true) if self.ready.is_empty() => return Ok(Turn::CaughtUp(self.head.clone())),
                Ok(true) => self.pause = ASK_AGAIN,
                Ok(false) if wait => self.call_again(context, whom, client).await,
                Ok(false) => return Err(lost(whom)),
                Err(error) if wait && error.code == Code::AGENT_UNREACHABLE => {
                    self.call_again(context, whom, client).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the last event that was given out, or behind which it began.
    pub fn cursor(&self) -> Option<&EventId> {
        self.after.as_ref()
    }

    /// Returns the last durable event that the node spoke of.
    pub fn head(&self) -> Option<&EventId> {
        self.head.as_ref()
    }

    /// Reads one page. Says whether the node answered.
    async fn read(&mut self, client: &mut Client, wait_ms: u32) -> Result<bool, CliError> {
        let ask = Ask::Range { after: self.after.clone(), events_max: PAGE, wait_ms };
        let ring = client.ring().clone();
        let mut pending = client.ask(ask).await?;
        let mut heard = false;
        let mut last = self.after.clone();
        while let Some(answer) = pending.next().await? {
            heard = true;
            let Answer { node, reply, .. } = answer;
            match reply {
                Reply::Range { epoch, first, rows, head } => {
                    for (row, seq) in rows.iter().zip(first.0..) {
                        let record = verified(row, &ring)?;
                        let at = EventId { origin: node.clone(), epoch, seq: Seq(seq) };
                        follows(last.as_ref(), &at)?;
                        if record.id() != at {
                            return Err(CliError::new(
                                Code::EVENT_ALTERED,
                                format!("{at} holds another event, {}", record.id()),
                            ));
                        }
                        if let Some(witness) = &mut self.witness {
                            witness.row(&at, row);
                        }
                        last = Some(at);
                        self.ready.push_back(record);
                    }
                    self.head = Some(head);
                }
                Reply::Refused { code, why } => {
                    return Err(CliError::new(code.parse().unwrap_or(Code::INTERNAL), why));
                }
                Reply::Pong { .. }
                | Reply::Fleet(_)
                | Reply::Piece { .. }
                | Reply::Arrivals { .. }
                | Reply::Status(_)
                | Reply::Lines { .. }
                | Reply::Accepted { .. }
                | Reply::Outcome { .. } => {}
            }
        }
        let gone = pending.missing().iter().find(|(_, missing)| **missing == Missing::NotThere);
        match gone {
            Some((node, _)) => Err(CliError::new(
                Code::AGENT_UNREACHABLE,
                format!("nobody listens for {node} on the bus"),
            )),
            None => Ok(heard),
        }
    }

    async fn call_again(&mut self, context: &Context, whom: &Whom, client: &mut Client) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(ASK_AGAIN_MAX);
        if let Ok(again) = Client::connect(context, whom).await {
            *client = again;
        }
    }
}

fn lost(whom: &Whom) -> CliError {
    let of = whom.only().map(|node| format!(" of {node}")).unwrap_or_default();
    CliError::new(Code::AGENT_UNREACHABLE, format!("the agent{of} did not answer in time"))
}

/// Reads a row of a log: an event, signed by the node that it names.
///
/// # Errors
/// When the signature does not hold, or is not that of the event's origin.
pub fn verified(row: &[u8], ring: &Keyring) -> Result<EventRecord, CliError> {
    let altered = |error: &dyn std::error::Error| {
        CliError::caused(Code::EVENT_ALTERED, "an event does not verify", error)
    };
    let opened = envelope::read(row, ENVELOPE_BYTES_MAX)
        .and_then(|sealed| sealed.open(ring))
        .map_err(|error| altered(&error))?;
    let record: EventRecord = codec::decode(opened.payload).map_err(|error| altered(&error))?;
    let is_origin = opened.holder.name.as_str() == record.origin.as_str();
    let keeps_log = matches!(opened.holder.class, KeyClass::Node | KeyClass::Controller);
    match opened.kind == Kind::Event && keeps_log && is_origin {
        true => Ok(record),
        false => Err(CliError::new(
            Code::EVENT_ALTERED,
            format!("an event of {} is signed by {}", record.origin, opened.holder.name),
        )),
    }
}

/// Demands that an event is the very next one: in its epoch, or the first one of a later epoch.
fn follows(last: Option<&EventId>, next: &EventId) -> Result<(), CliError> {
    let is_next = match last {
        None => true, // The first one kept need not be the first one written.
        Some(last) if last.epoch == next.epoch => next.seq.0 == last.seq.0 + 1,
        Some(last) => begins_later(last.epoch, next),
    };
    match (is_next, last) {
        (true, _) | (false, None) => Ok(()),
        (false, Some(last)) => Err(CliError::new(
            Code::SEGMENT_MISSING,
            format!("after {last} comes {next}; what lies between was not given"),
        )
        .next("smgr audit verify")),
    }
}

fn begins_later(last: EpochId, next: &EventId) -> bool {
    next.epoch.unix_ms() >= last.unix_ms() && next.seq == Seq(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(epoch: u64, seq: u64) -> EventId {
        let epoch = EpochId::new(epoch, 0);
        EventId { origin: "n1".parse().unwrap(), epoch, seq: Seq(seq) }
    }

    #[test]
    fn the_next_event_is_the_next_number_or_the_first_of_a_later_epoch() {
        for (last, next) in [(id(5, 3), id(5, 4)), (id(5, 3), id(6, 1))] {
            assert!(follows(Some(&last), &next).is_ok(), "{last} {next}");
        }
        for (last, next) in
            [(id(5, 3), id(5, 5)), (id(5, 3), id(5, 3)), (id(5, 3), id(6, 2)), (id(5, 3), id(4, 1))]
        {
            assert!(follows(Some(&last), &next).is_err(), "{last} {next}");
        }
        assert!(follows(None, &id(5, 100)).is_ok());
    }
}
