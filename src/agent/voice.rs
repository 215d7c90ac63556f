//! The agent's side of the bus: what it says through the uplink, and what it hears.
//!
//! The uplink may be away for days. A live event that cannot be said is not kept: whoever listens sees the gap and
//! fetches the range. An answer is kept by the uplink for as long as its caller still waits.
//!
//! The uplink grants how much may be under way. What there is no credit for waits here, within bounds, and the last of
//! the credit is for answers: somebody waits for them, and a burst of events must not take their place.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_bytes::ByteBuf;
use tracing::error;

use super::outlet::Outlet;
use super::recorder::Live;
use crate::domain::id::{FleetId, NodeId};
use crate::ipc::frame::Packet;
use crate::ipc::uplink::{BusConfig, Confirm, Credit, FromUplink, Granting, Ticket, ToUplink};
use crate::wire::status::BusState;
use crate::wire::subject::{Callee, Filter, Inbox, Scope, Subject, event_kind};

/// How long an answer may wait for a bus that is down, in milliseconds.
const ANSWER_KEEP_MS: u32 = 30_000;

/// The credit that only answers may use.
const CREDIT_FOR_ANSWERS: u32 = 16;

/// What waits for credit at most, in bytes: events and heartbeats, and answers.
const TELLING_BYTES_MAX: usize = 4 << 20;
const ANSWERS_BYTES_MAX: usize = 16 << 20;

/// The one subscription of an agent.
const CALLS: Ticket = Ticket(1);

/// The one message of which the uplink says when the server has read it, and so all before it.
const FAREWELL: Ticket = Ticket(2);

/// A message from the bus.
#[derive(Debug)]
pub(super) struct Heard {
    /// Where an answer goes, when it is an inbox at all.
    pub(super) reply: Option<Inbox>,
    /// The envelope.
    pub(super) bytes: ByteBuf,
}

/// Messages that wait for credit, oldest first.
#[derive(Debug)]
struct Waiting {
    messages: VecDeque<(String, Arc<[u8]>)>,
    bytes: usize,
    bytes_max: usize,
}

impl Waiting {
    fn up_to(bytes_max: usize) -> Self {
        Self { messages: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Lets a message wait; says whether there is room.
    fn push(&mut self, to: String, bytes: &Arc<[u8]>) -> bool {
        let fits = self.bytes + bytes.len() <= self.bytes_max;
        if fits {
            self.bytes += bytes.len();
            self.messages.push_back((to, bytes.clone()));
        }
        fits
    }

    fn pop(&mut self) -> Option<(String, Arc<[u8]>)> {
        let (to, bytes) = self.messages.pop_front()?;
        self.bytes -= bytes.len();
        Some((to, bytes))
    }

    fn clear(&mut self) {
        *self = Self::up_to(self.bytes_max);
    }
}

/// What the agent knows of its uplink.
#[derive(Debug)]
pub(super) struct Voice {
    fleet: FleetId,
    node: NodeId,
    config: Option<BusConfig>,
    uplink: Option<Outlet>,
    credit: Credit,
    granting: Granting,
    next: u64,
    state: BusState,
    /// What everybody may hear.
    telling: Waiting,
    /// What somebody waits for.
    answers: Waiting,
    farewell_heard: bool,
    /// Messages that the uplink dropped because the agent was slow.
    pub(super) dropped: u64,
}

impl Voice {
    pub(super) fn new(fleet: FleetId, node: NodeId, config: Option<BusConfig>) -> Self {
        let state = match &config {
            Some(_) => BusState::Away { why: "the uplink is not here yet".to_owned() },
            None => BusState::Off,
        };
        Self {
            fleet,
            node,
            config,
            uplink: None,
            credit: Credit::default(),
            granting: Granting::default(),
            next: 2,
            state,
            telling: Waiting::up_to(TELLING_BYTES_MAX),
            answers: Waiting::up_to(ANSWERS_BYTES_MAX),
            farewell_heard: false,
            dropped: 0,
        }
    }

    /// Returns how the node stands to the bus.
    pub(super) fn state(&self) -> &BusState {
        &self.state
    }

    /// Takes a new uplink into service.
    pub(super) fn connected(&mut self, uplink: Outlet) {
        (self.credit, self.granting) = (Credit::default(), Granting::default());
        self.uplink = Some(uplink);
        let Some(config) = self.config.clone() else { return };
        self.say(ToUplink::Configure(config));
        let node = Callee::node(self.node.clone()).expect("the node's name was checked at start");
        let filters = [node, Callee::EVERY_NODE]
            .map(|to| Filter::Calls { fleet: self.fleet.clone(), to }.to_string());
        self.say(ToUplink::Subscribe { ticket: CALLS, filters: filters.to_vec() });
    }

    /// The uplink is gone.
    pub(super) fn disconnected(&mut self) {
        self.uplink = None;
        self.telling.clear();
        self.answers.clear();
        if self.config.is_some() {
            self.state = BusState::Away { why: "the uplink is away".to_owned() };
        }
    }

    /// Takes in what the uplink said; returns a message to be judged.
    pub(super) fn hear(&mut self, frame: FromUplink) -> Option<Heard> {
        match frame {
            FromUplink::Delivered { reply, bytes, .. } => {
                if let Some(grant) = self.granting.done() {
                    self.say(ToUplink::Credit(grant));
                }
                Some(Heard { reply: reply.and_then(|text| text.parse().ok()), bytes })
            }
            FromUplink::BusUp { version, .. } => {
                self.state = BusState::Connected { server: version };
                None
            }
            FromUplink::BusDown { why } => {
                self.state = match self.config {
                    Some(_) => BusState::Away { why },
                    None => BusState::Off,
                };
                None
            }
            FromUplink::Credit(count) => {
                self.credit.grant(count);
                self.spend();
                None
            }
            FromUplink::Dropped(counts) => {
                self.dropped += counts.malformed + counts.oversize + counts.overflow;
                None
            }
            FromUplink::Published { ticket } | FromUplink::Refused { ticket, .. } => {
                self.farewell_heard |= ticket == FAREWELL;
                None
            }
            FromUplink::Hello(_) => None,
        }
    }

    /// Publishes a durable event, if there is anybody to say it to.
    pub(super) fn publish(&mut self, live: &Live) {
        let Ok(kind) = event_kind(live.kind) else { return };
        let subject = Subject::Event {
            fleet: self.fleet.clone(),
            origin: self.node.clone(),
            scope: Scope::from(live.service.clone()),
            kind,
        };
        self.tell(&subject, &live.row);
    }

    /// Publishes a heartbeat, behind the events that it is about.
    pub(super) fn beat(&mut self, envelope: &Arc<[u8]>) {
        let subject = Subject::Beat { fleet: self.fleet.clone(), origin: self.node.clone() };
        self.tell(&subject, envelope);
    }

    /// Says a last heartbeat, behind everything else.
    pub(super) fn farewell(&mut self, envelope: &Arc<[u8]>) {
        let subject = Subject::Beat { fleet: self.fleet.clone(), origin: self.node.clone() };
        self.farewell_heard = false;
        self.say(ToUplink::Publish {
            ticket: FAREWELL,
            to: subject.to_string(),
            bytes: ByteBuf::from(envelope.as_ref()),
            keep_ms: 0,
            confirm: Confirm::Flushed,
        });
    }

    /// Says whether the server of the bus has read it, or never will.
    pub(super) fn was_farewell_heard(&self) -> bool {
        self.farewell_heard
    }

    /// Answers at an inbox.
    pub(super) fn answer(&mut self, to: &Inbox, envelope: &Arc<[u8]>) {
        if self.uplink.is_none() {
            return;
        }
        if !self.answers.push(to.to_string(), envelope) {
            error!(%to, "an answer was dropped: the uplink takes none, and too many wait already");
        }
        self.spend();
    }

    /// Asks for a download into a pipe; `None` when there is nobody to ask.
    pub(super) fn fetch(&mut self, url: String, bytes_max: u64, into: OwnedFd) -> Option<Ticket> {
        let uplink = self.uplink.as_ref()?;
        self.next += 1;
        let ticket = Ticket(self.next);
        let packet =
            Packet::with_descriptors(&ToUplink::Fetch { ticket, url, bytes_max }, vec![into]);
        uplink.send(packet.ok()?).ok()?;
        Some(ticket)
    }

    /// Says whether anybody can hear.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self.state, BusState::Connected { .. })
    }

    fn tell(&mut self, subject: &Subject, envelope: &Arc<[u8]>) {
        if self.uplink.is_none() || !self.is_connected() {
            return;
        }
        // Without room it is not said, as if nobody heard it.
        self.telling.push(subject.to_string(), envelope);
        self.spend();
    }

    /// Says what waits, as far as the credit goes.
    fn spend(&mut self) {
        while self.credit.left() > 0
            && let Some((to, bytes)) = self.answers.pop()
        {
            self.publish_bytes(to, &bytes, ANSWER_KEEP_MS);
        }
        while self.credit.left() > CREDIT_FOR_ANSWERS
            && let Some((to, bytes)) = self.telling.pop()
        {
            self.publish_bytes(to, &bytes, 0);
        }
    }

    fn publish_bytes(&mut self, to: String, bytes: &[u8], keep_ms: u32) {
        self.credit.take();
        self.next += 1;
        self.say(ToUplink::Publish {
            ticket: Ticket(self.next),
            to,
            bytes: ByteBuf::from(bytes),
            keep_ms,
            confirm: Confirm::Nothing,
        });
    }

    fn say(&mut self, frame: ToUplink) {
        let Some(uplink) = &self.uplink else { return };
        let packet = match Packet::new(&frame) {
            Ok(packet) => packet,
            Err(error) => return error!(%error, "a frame for the uplink does not fit"),
        };
        if uplink.send(packet).is_err() {
            // It does not read: the link cuts it off and the next one begins anew.
            self.disconnected();
        }
    }
}
