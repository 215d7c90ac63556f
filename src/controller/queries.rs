//! What others ask of a controller: the fleet, the stream of all events, its copies of logs, its own log.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tracing::debug;

use super::links::Saying;
use super::projection::SILENT_MS;
use super::task::{Controller, Role};
use crate::domain::code::Code;
use crate::domain::event::Actor;
use crate::domain::id::{EventId, IntentId, NodeId, Principal, Seq};
use crate::domain::policy::{KeyClass, Kind};
use crate::domain::time::Now;
use crate::head::authority::{Refusal, Way};
use crate::head::clock;
use crate::store::{EventPos, RangeLimits};
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::key::Signer;
use crate::wire::payload::{Answer, Ask, PAYLOAD_VERSION, Reply};
use crate::wire::status::FleetStatus;
use crate::wire::subject::Inbox;

/// The most events in one answer, and the most bytes, so that an answer fits a message of the bus.
const EVENTS_MAX: u32 = 1000;
const BYTES_MAX: usize = 48 * 1024;

/// Askers that wait for the next arrival: beyond it they are answered at once and ask again.
const WAITING_MAX: usize = 1024;

/// The longest wait for the next arrival, in milliseconds.
const WAIT_MS_MAX: u32 = 30_000;

/// Who is answered.
#[derive(Debug)]
pub(super) enum Asker {
    /// Somebody on the bus, who asked by this query.
    Bus(Inbox, IntentId),
    /// A face in this process.
    Here(oneshot::Sender<Reply>),
}

impl Asker {
    /// Says whether nobody waits for the answer any more, as far as that can be known.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Bus(..) => false,
            Self::Here(reply) => reply.is_closed(),
        }
    }
}

/// An asker who waits for the next arrival.
#[derive(Debug)]
pub(super) struct Waiting {
    to: Asker,
    after: u64,
    events_max: u32,
    until: Instant,
}

/// Signs answers, also beside the task.
#[derive(Clone, Debug)]
pub(super) struct Desk {
    controller: NodeId,
    signer: Arc<Signer>,
    saying: mpsc::Sender<Saying>,
}

impl Desk {
    /// Gives the one answer.
    pub(super) fn tell(&self, to: Asker, reply: Reply) {
        match to {
            Asker::Bus(inbox, cause) => self.answer(&inbox, cause, (0, true), reply),
            // Whoever went away is told nothing.
            Asker::Here(answer) => drop(answer.send(reply)),
        }
    }

    fn answer(&self, to: &Inbox, cause: IntentId, (part, last): (u32, bool), reply: Reply) {
        let (node, at) = (self.controller.clone(), clock::now().at);
        let answer = Answer { v: PAYLOAD_VERSION, node, cause, at, part, last, reply };
        let sealed = envelope::seal(Kind::Answer, &codec::encode(&answer), &self.signer);
        if self.saying.try_send(Saying::Answer(to.clone(), sealed)).is_err() {
            debug!(%to, "an answer was dropped: too many wait to be sent");
        }
    }
}

impl Controller {
    /// Judges an envelope that came as a call, and answers it.
    pub(super) fn called(&mut self, now: Now, reply: Option<Inbox>, bytes: &[u8]) {
        let kind = envelope::read(bytes, ENVELOPE_BYTES_MAX).map(|sealed| sealed.kind());
        match kind {
            Ok(Kind::Query) => match self.authority.query(bytes, Way::Bus, now.at) {
                // An answer goes to whoever signed and to nobody else.
                Ok(verified) => {
                    if let Some(to) = self.heard_by(reply, &verified.actor.name) {
                        let to = Asker::Bus(to, verified.payload.id);
                        self.query(verified.payload.ask, &verified.actor, to);
                    }
                }
                Err(refusal) => self.refuse(reply, &refusal),
            },
            Ok(Kind::Intent) => self.requested(now, reply, bytes),
            Ok(_) | Err(_) => self.intake.unsigned += 1,
        }
    }

    pub(super) fn desk(&self) -> Desk {
        Desk {
            controller: self.setup.controller.clone(),
            signer: self.signer.clone(),
            saying: self.saying.clone(),
        }
    }

    /// Answers one asker with one last answer.
    pub(super) fn reply(&self, to: &Inbox, cause: IntentId, reply: Reply) {
        self.desk().answer(to, cause, (0, true), reply);
    }

    /// Answers one asker with a part of an answer: its number, and whether it is the last one.
    pub(super) fn reply_part(&self, to: &Inbox, cause: IntentId, part: (u32, bool), reply: Reply) {
        self.desk().answer(to, cause, part, reply);
    }

    /// Returns the inbox to answer at, unless it is of somebody who is not to hear it.
    pub(super) fn heard_by(&self, reply: Option<Inbox>, signer: &Principal) -> Option<Inbox> {
        reply.filter(|to| self.authority.may_hear(signer, to.principal()))
    }

    /// Answers what was refused, if a trusted key signed it.
    pub(super) fn refuse(&mut self, reply: Option<Inbox>, refusal: &Refusal) {
        let Some(signed) = &refusal.signed else {
            self.intake.unsigned += 1;
            return;
        };
        if let (Some(id), Some(to)) = (signed.id, self.heard_by(reply, &signed.actor.name)) {
            self.reply(&to, id, refused(refusal.code, refusal.why.clone()));
        }
    }

    /// Answers a question of one who may ask it.
    pub(super) fn query(&mut self, ask: Ask, asker: &Actor, to: Asker) {
        match ask {
            Ask::Ping => {
                let version = env!("CARGO_PKG_VERSION").to_owned();
                self.desk().tell(to, Reply::Pong { version });
            }
            Ask::Fleet => {
                let desk = self.desk();
                let Asker::Bus(to, cause) = to else {
                    return desk.tell(to, Reply::Fleet(Box::new(self.fleet_status())));
                };
                let parts = self.fleet_status().into_parts();
                let count = parts.len();
                for (part, status) in parts.into_iter().enumerate() {
                    let place = (u32::try_from(part).unwrap_or(u32::MAX), part + 1 == count);
                    desk.answer(&to, cause, place, Reply::Fleet(Box::new(status)));
                }
            }
            Ask::Range { after, events_max, .. } => {
                self.own_range(to, after.as_ref(), events_max);
            }
            Ask::Copy { origin, after, events_max } => {
                self.copy(to, &origin, after.as_ref(), events_max);
            }
            Ask::Arrivals { after, events_max, wait_ms } => {
                self.arrived(to, after, events_max, wait_ms);
            }
            Ask::Rollouts => self.list_rollouts(to),
            Ask::Rollout { name, seen, wait_ms } => {
                self.show_rollout(to, &name, (seen, wait_ms));
            }
            Ask::Wish { rollout } => self.show_wish(to, asker, rollout),
            Ask::Status
            | Ask::Config { .. }
            | Ask::Beside { .. }
            | Ask::Trust(_)
            | Ask::Logs { .. }
            | Ask::Outcome { .. } => {
                let why = "a node answers this; a controller answers for the fleet".to_owned();
                self.desk().tell(to, refused(Code::UNKNOWN_TYPE, why));
            }
        }
    }

    fn fleet_status(&self) -> FleetStatus {
        let now = clock::now();
        let recent = |heard: Option<Now>| {
            heard.is_some_and(|heard| {
                now.mono_ns.saturating_sub(heard.mono_ns) / 1_000_000 <= SILENT_MS
            })
        };
        let own = &self.setup.controller;
        let (leader, term) = match &self.role {
            Role::Leader(term) => (Some(own.clone()), *term),
            Role::Rising(_) => (None, self.own.term.max(self.term_seen)),
            Role::Standby(by) => (by.clone(), self.own.term.max(self.term_seen)),
        };
        let others = self.lines.iter().filter(|(name, line)| {
            line.class == KeyClass::Controller && (*name == own || recent(line.heard))
        });
        let standby = others.map(|(name, _)| name.clone());
        let last = |node: &NodeId| self.arrivals.last(node);
        let mut nodes = self.projection.status(&self.setup.fleet, now, last);
        let mut roster = self.authority.roster();
        for node in &mut nodes {
            node.labels = roster.remove(&node.node).unwrap_or_default();
        }
        FleetStatus {
            fleet: self.setup.fleet.clone(),
            controller: own.clone(),
            at: now.at,
            standby: standby.filter(|name| Some(name) != leader.as_ref()).collect(),
            leader,
            term,
            cursor: self.cursor(self.arrivals.durable_count()),
            intake: self.intake,
            nodes,
        }
    }

    pub(super) fn cursor(&self, place: u64) -> EventId {
        EventId {
            origin: self.setup.controller.clone(),
            epoch: self.arrivals.epoch(),
            seq: Seq(place),
        }
    }

    fn own_range(&self, to: Asker, after: Option<&EventId>, events_max: u32) {
        let log = self.recorder.log().clone();
        let head = log.head();
        let from = after.map_or(EventPos { epoch: head.epoch, seq: Seq(1) }, |after| EventPos {
            epoch: after.epoch,
            seq: Seq(after.seq.0.saturating_add(1)),
        });
        let (desk, origin) = (self.desk(), self.setup.controller.clone());
        let head = EventId { origin, epoch: head.epoch, seq: head.seq };
        spawn_blocking(move || {
            let mut rows = Vec::new();
            let rows_max = events_max.clamp(1, EVENTS_MAX) as usize;
            let limits = RangeLimits { rows: rows_max, bytes: BYTES_MAX };
            let read = log.range(from, limits, |_, row| {
                rows.push(ByteBuf::from(row.to_vec()));
                ControlFlow::Continue(())
            });
            let reply = match read {
                Ok(_) => Reply::Range { epoch: from.epoch, first: from.seq, rows, head },
                Err(why) => refused(why.code(), why.to_string()),
            };
            desk.tell(to, reply);
        });
    }

    fn copy(&self, to: Asker, origin: &NodeId, after: Option<&EventId>, events_max: u32) {
        let copied = match self.arrivals.copy(origin, after) {
            Ok(copied) => copied,
            Err(why) => return self.desk().tell(to, refused(why.code(), why.to_string())),
        };
        let head = self.arrivals.last(origin).unwrap_or_else(|| self.cursor(0));
        let desk = self.desk();
        spawn_blocking(move || {
            let events_max = events_max.clamp(1, EVENTS_MAX) as usize;
            let reply = match copied.read(events_max, BYTES_MAX) {
                Ok((epoch, first, rows)) => Reply::Range { epoch, first, rows, head },
                Err(why) => refused(why.code(), why.to_string()),
            };
            desk.tell(to, reply);
        });
    }

    fn arrived(&mut self, to: Asker, after: Option<EventId>, events_max: u32, wait_ms: u32) {
        let last = self.arrivals.durable_count();
        let is_own = |cursor: &EventId| {
            cursor.origin == self.setup.controller && cursor.epoch == self.arrivals.epoch()
        };
        let (after, again) = match &after {
            None => (0, 0),
            Some(cursor) if is_own(cursor) && cursor.seq.0 <= last => (cursor.seq.0, 0),
            Some(cursor) if is_own(cursor) => {
                let why = format!("{cursor} lies beyond the last place here, {last}");
                return self.desk().tell(to, refused(Code::BAD_CURSOR, why));
            }
            // The order of arrival is another at each controller: nothing is missed, and what may come twice is marked.
            Some(_) => (0, last),
        };
        let wait_ms = wait_ms.min(WAIT_MS_MAX);
        if after == last && wait_ms > 0 && self.waiting.len() < WAITING_MAX {
            let until = Instant::now() + Duration::from_millis(u64::from(wait_ms));
            self.waiting.push(Waiting { to, after, events_max, until });
            return;
        }
        self.read_stream(to, after, (events_max, again));
    }

    fn read_stream(&self, to: Asker, after: u64, (events_max, again): (u32, u64)) {
        let stream = self.arrivals.stream(after);
        let head = self.cursor(self.arrivals.durable_count());
        let desk = self.desk();
        spawn_blocking(move || {
            let events_max = events_max.clamp(1, EVENTS_MAX) as usize;
            let reply = match stream.read(events_max, BYTES_MAX) {
                Ok((first, rows)) => {
                    let again = u32::try_from(again).unwrap_or(u32::MAX);
                    Reply::Arrivals { epoch: head.epoch, first: Seq(first), rows, head, again }
                }
                Err(why) => refused(why.code(), why.to_string()),
            };
            desk.tell(to, reply);
        });
    }

    /// Answers those who waited for the next arrival.
    pub(super) fn wake_waiting(&mut self) {
        for Waiting { to, after, events_max, .. } in std::mem::take(&mut self.waiting) {
            self.read_stream(to, after, (events_max, 0));
        }
    }

    /// Answers those who have waited long enough with an empty page.
    pub(super) fn tire(&mut self, now: Instant) {
        let (tired, patient) =
            std::mem::take(&mut self.waiting).into_iter().partition(|it: &Waiting| it.until <= now);
        self.waiting = patient;
        self.waiting.retain(|it| !it.to.is_gone());
        for Waiting { to, after, events_max, .. } in tired {
            self.read_stream(to, after, (events_max, 0));
        }
    }
}

pub(super) fn refused(code: Code, why: String) -> Reply {
    Reply::Refused { code: code.to_string(), why }
}
