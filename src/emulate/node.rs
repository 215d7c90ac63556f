//! One emulated node: the gate and the core of an agent, without a process around them.
//!
//! The order within a decision is an agent's: events are folded and signed, then effects follow. Since a row is durable
//! as soon as it is in [`Rows`], a promise is kept at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_bytes::ByteBuf;
use tracing::error;

use super::Fleet;
use super::hands::serve;
use super::rows::Rows;
use super::voice::Voice;
use crate::domain::code::Code;
use crate::domain::effect::{Act, Reply as WishReply, Timer};
use crate::domain::event::{Context, EpochReason, Event, IntentRefused, LogOpened, PartStarted};
use crate::domain::id::{
    Digest, EpochId, EventId, FleetId, Generation, IntentId, NodeId, Seq, ServiceId,
};
use crate::domain::input::{Decision, Input, Kept, OrderMark, World};
use crate::domain::intent::Action;
use crate::domain::node::{FOLD_VERSION, Node};
use crate::domain::policy::Kind;
use crate::domain::rejection::Rejection;
use crate::domain::release::{ReleaseId, ReleaseRefused};
use crate::domain::spec::Spec;
use crate::domain::text;
use crate::domain::time::{Now, UnixMicros};
use crate::head::authority::{
    Authority, OrderRefusal, Refusal, Signed, Verified, VerifiedOrder, Way,
};
use crate::head::clock;
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::fold;
use crate::wire::key::Signer;
use crate::wire::payload::{Answer, Ask, Beat, Intent, PAYLOAD_VERSION, Query, Reply};
use crate::wire::status::NodeStatus;
use crate::wire::subject::Inbox;

/// The most events in one answer to a range, and the most bytes: as an agent.
const RANGE_EVENTS_MAX: usize = 1000;
const RANGE_BYTES_MAX: usize = 48 * 1024;

/// Callers that wait for outcomes.
const WAITING_MAX: usize = 64;

/// A node.
pub(super) struct EmulatedNode {
    common: Arc<Fleet>,
    name: NodeId,
    signer: Signer,
    authority: Authority,
    node: Node,
    specs: BTreeMap<ServiceId, Arc<Spec>>,
    rows: Rows,
    /// When each deadline is due on the monotonic clock, and as it was recorded.
    timers: BTreeMap<Timer, (u64, UnixMicros)>,
    inbox: VecDeque<Input>,
    /// Who waits for the outcome of a wish.
    waiting: BTreeMap<IntentId, Inbox>,
    /// The event that says how far each remembered wish is.
    told: BTreeMap<IntentId, Seq>,
    voice: Voice,
    state_hash: Option<(Seq, Digest)>,
    has_met: bool,
}

impl EmulatedNode {
    pub(super) fn new(common: Arc<Fleet>, name: NodeId, signer: Signer) -> Self {
        let (fleet, ring) = (common.fleet.clone(), common.ring.clone());
        let mut authority =
            Authority::new(fleet.clone(), name.clone(), ring, common.revoked.clone());
        authority.enrol(common.roster.clone());
        let epoch = EpochId::new(clock::now().at.millis(), clock::entropy() as u16);
        Self {
            rows: Rows::new(name.clone(), common.boot, epoch),
            voice: Voice::new(fleet, name.clone()),
            common,
            name,
            signer,
            authority,
            node: Node::default(),
            specs: BTreeMap::new(),
            timers: BTreeMap::new(),
            inbox: VecDeque::new(),
            waiting: BTreeMap::new(),
            told: BTreeMap::new(),
            state_hash: None,
            has_met: false,
        }
    }

    pub(super) fn name(&self) -> &NodeId {
        &self.name
    }

    pub(super) fn fleet(&self) -> &FleetId {
        &self.common.fleet
    }

    /// Returns what is folded of its log.
    #[cfg(test)]
    pub(super) fn state(&self) -> &Node {
        &self.node
    }

    pub(super) fn voice(&mut self) -> &mut Voice {
        &mut self.voice
    }

    /// Begins the log as an agent does, and meets a keeper that has nothing.
    pub(super) fn begin(&mut self, now: Now) {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let opened = LogOpened { reason: EpochReason::FirstStart, predecessor: None, version };
        let facts = [
            Event::LogOpened(opened),
            Event::AgentStarted(self.part()),
            Event::TrustChanged(self.common.trust.clone()),
        ];
        let events = facts.map(|event| (Context::default(), event)).into();
        self.commit(now, Decision { events, effects: Vec::new() });
        self.has_met = true;
        let keeper = self.part();
        let kept =
            Kept { keeper, agent_is_new: true, away_ms: 0, runs: Vec::new(), actions: Vec::new() };
        self.inbox.push_back(Input::Reconcile(kept));
        self.follow_up(now);
        // Who listens already hears of these as of any gap: from the log.
        let said = self.voice.len();
        (0..self.common.load.backlog).for_each(|_| self.record(now));
        self.voice.truncate(said);
    }

    /// Records that the agent was started.
    pub(super) fn record(&mut self, now: Now) {
        let events = vec![(Context::default(), Event::AgentStarted(self.part()))];
        self.commit(now, Decision { events, effects: Vec::new() });
    }

    /// Returns how often the node is to record something of itself.
    pub(super) fn pace(&self) -> Option<Duration> {
        self.common.load.every
    }

    /// Judges an envelope, and does what it may ask for.
    pub(super) fn hear(&mut self, now: Now, bytes: &[u8], reply: Option<Inbox>) {
        let kind = envelope::read(bytes, envelope::ENVELOPE_BYTES_MAX).map(|sealed| sealed.kind());
        match kind {
            Ok(Kind::Query) => match self.authority.query(bytes, Way::Bus, now.at) {
                Ok(verified) => {
                    let to = self.own_inbox(reply, &verified.actor.name);
                    self.query(now, verified.payload, to);
                }
                Err(refusal) => self.refuse(now, refusal, reply),
            },
            Ok(Kind::Order) => match self.authority.order(bytes, Way::Bus, now.at) {
                Ok(verified) => self.order(now, verified, reply),
                Err(refusal) => self.refuse_order(now, refusal, reply),
            },
            // The gate names what is wrong with anything else.
            _ => match self.authority.intent(bytes, Way::Bus, now.at) {
                Ok(verified) => {
                    let to = self.own_inbox(reply, &verified.actor.name);
                    if let Err(refusal) = self.wish(now, &verified, to.clone(), None) {
                        self.refuse(now, refusal, to);
                    }
                }
                Err(refusal) => self.refuse(now, refusal, reply),
            },
        }
        self.follow_up(now);
    }

    /// Signs the head of the log.
    pub(super) fn beat(&mut self, now: Now) {
        let head = self.rows.head();
        let state_hash = match self.state_hash {
            Some((seq, hash)) if seq == head.seq => hash,
            _ => fold::state_hash(&self.node),
        };
        self.state_hash = Some((head.seq, state_hash));
        let beat = Beat {
            v: PAYLOAD_VERSION,
            origin: self.name.clone(),
            epoch: head.epoch,
            seq: head.seq,
            root: head.root,
            state_hash,
            fold: FOLD_VERSION,
            at: now.at,
            asks: false,
        };
        self.voice.beat(envelope::seal(Kind::Beat, &codec::encode(&beat), &self.signer).into());
    }

    /// Returns how long it is until the next deadline.
    pub(super) fn due_in(&self, now: Now) -> Option<Duration> {
        let due = self.timers.values().map(|(due, _)| *due).min()?;
        Some(Duration::from_nanos(due.saturating_sub(now.mono_ns)))
    }

    /// Decides on the deadlines that are over.
    pub(super) fn ring(&mut self, now: Now) {
        while let Some((timer, at)) = self
            .timers
            .iter()
            .find(|(_, (due, _))| *due <= now.mono_ns)
            .map(|(timer, (_, at))| (timer.clone(), *at))
        {
            self.timers.remove(&timer);
            self.inbox.push_back(Input::Timer { timer, at });
            self.follow_up(now);
        }
    }

    fn query(&mut self, now: Now, query: Query, to: Option<Inbox>) {
        let head = self.rows.head();
        let head = self.rows.id(head.seq);
        let reply = match query.ask {
            Ask::Ping => Reply::Pong { version: env!("CARGO_PKG_VERSION").to_owned() },
            Ask::Status => {
                let (fleet, name) = (self.common.fleet.clone(), self.name.clone());
                let status = NodeStatus::folded(fleet, name, &self.node, head, now.at);
                let mut parts = (0..).zip(status.into_parts()).peekable();
                while let Some((part, status)) = parts.next() {
                    let last = parts.peek().is_none();
                    let reply = Reply::Status(Box::new(status));
                    self.answer(now, to.clone(), query.id, (part, last), reply);
                }
                return;
            }
            // Nobody is kept waiting here: whoever wants to wait asks again.
            Ask::Range { after, events_max, wait_ms: _ } => {
                let rows_max = (events_max as usize).clamp(1, RANGE_EVENTS_MAX);
                let (first, rows) = self.rows.behind(after.as_ref(), rows_max, RANGE_BYTES_MAX);
                let rows = rows.iter().map(|row| ByteBuf::from(row.to_vec())).collect();
                Reply::Range { epoch: head.epoch, first, rows, head }
            }
            Ask::Outcome { .. }
            | Ask::Config { .. }
            | Ask::Beside { .. }
            | Ask::Trust(_)
            | Ask::Logs { .. }
            | Ask::Fleet
            | Ask::Rollouts
            | Ask::Rollout { .. }
            | Ask::Wish { .. }
            | Ask::Arrivals { .. }
            | Ask::Copy { .. } => {
                let why = "an emulated node does not answer this".to_owned();
                Reply::Refused { code: Code::NOT_YET.to_string(), why }
            }
        };
        self.answer(now, to, query.id, (0, true), reply);
    }

    /// Takes an order: the intent inside it is what is done, on the authority of whoever signed that.
    fn order(&mut self, now: Now, verified: VerifiedOrder, reply: Option<Inbox>) {
        let to = self.own_inbox(reply, &verified.controller.name);
        let mark = Some(verified.mark.clone());
        if let Err(refusal) = self.wish(now, &verified.intent, to.clone(), mark) {
            self.refuse_order(now, verified.refused(refusal), to);
        }
    }

    fn wish(
        &mut self,
        now: Now,
        verified: &Verified<Intent>,
        to: Option<Inbox>,
        order: Option<OrderMark>,
    ) -> Result<(), Refusal> {
        let Verified { payload: intent, objection, .. } = verified;
        if let Some(refusal) = objection
            && self.node.seen().get(&intent.id).is_none()
        {
            return Err(refusal.clone());
        }
        let refused = |code, why| verified.refused(code, why);
        if let Action::Deploy { service, release, .. } = &intent.action {
            let read = self.common.specs.read(service, ReleaseId::of(release), release);
            read.map_err(|(code, why)| refused(code, why))?;
        }
        let decision = self
            .decision(now, Input::Wish(verified.wish(false, order)))
            .map_err(|rejection| refused(rejection.code(), rejection.to_string()))?;
        let is_new = !decision.events.is_empty();
        let event = self.rows.next();
        if let Some(to) = to.filter(|_| self.waiting.len() < WAITING_MAX) {
            self.waiting.insert(intent.id, to);
        }
        self.commit(now, decision);
        if is_new && let Some(to) = self.waiting.get(&intent.id).cloned() {
            self.answer(now, Some(to), intent.id, (0, false), Reply::Accepted { event });
        }
        Ok(())
    }

    fn decision(&mut self, now: Now, input: Input) -> Result<Decision, Rejection> {
        let world = World {
            now,
            specs: &self.specs,
            entropy: clock::entropy(),
            reconciled: self.has_met,
            bus: None,
        };
        self.node.decide(&world, input)
    }

    fn follow_up(&mut self, now: Now) {
        while let Some(input) = self.inbox.pop_front() {
            match self.decision(now, input) {
                Ok(decision) => self.commit(now, decision),
                Err(rejection) => error!(%rejection, "an input that is no wish was refused"),
            }
        }
    }

    fn commit(&mut self, now: Now, decision: Decision) {
        for (context, event) in &decision.events {
            if let Err(illegal) = self.node.evolve(now.at, context, event) {
                return error!(%illegal, kind = event.kind(), "an event does not follow");
            }
            let seq = self.rows.next().seq;
            fold::wishes_told_by(event, |intent| {
                self.told.insert(intent, seq);
            });
            let row = self.rows.append(now, context, event, &self.signer);
            self.voice.event(event.kind(), context.service.clone(), row);
        }
        for effect in decision.effects {
            self.act(now, effect.act());
        }
    }

    fn act(&mut self, now: Now, act: &Act) {
        match act {
            Act::SetTimer { timer, at, after_ms } => {
                let due = now.mono_ns + after_ms.saturating_mul(1_000_000);
                self.timers.insert(timer.clone(), (due, *at));
            }
            Act::CancelTimer { timer } => {
                self.timers.remove(timer);
            }
            Act::Answer { intent, reply: WishReply::Outcome(outcome) } => {
                let to = self.waiting.remove(intent);
                let event = self.said_by(intent);
                let reply = Reply::Outcome { outcome: outcome.clone(), event };
                self.answer(now, to, *intent, (1, true), reply);
            }
            Act::Stage { service, generation, release, .. } => {
                let input = self.stage(service, *generation, *release);
                self.inbox.push_back(input);
            }
            Act::LoadSpecs { intent, .. } => {
                self.inbox.push_back(Input::Applied { intent: *intent, failed: None });
            }
            act => self.inbox.extend(serve(&self.node, act)),
        }
    }

    /// Puts the spec of a release into force.
    fn stage(
        &mut self,
        service: &ServiceId,
        generation: Generation,
        release: Option<ReleaseId>,
    ) -> Input {
        let none = || (Code::RELEASE_GONE, "an emulated node has no spec files".to_owned());
        let read = release.map_or_else(|| Err(none()), |release| self.common.specs.get(release));
        let staged = read.map(|(staged, spec)| {
            self.specs.insert(service.clone(), spec);
            staged
        });
        Input::Staged { service: service.clone(), generation, staged }
    }

    fn refuse(&mut self, now: Now, refusal: Refusal, reply: Option<Inbox>) {
        let Refusal { code, why, signed: Some(signed) } = refusal else { return };
        let why = text::brief(why, text::WHY_BYTES_MAX);
        self.answer_refusal(now, &signed, (code, why.clone()), reply);
        let code = code.to_string();
        let body = IntentRefused { intent: signed.id, code, why, count: 1 };
        let context = Context::default().because(None, Some(signed.actor));
        let events = vec![(context, Event::IntentRefused(body))];
        self.commit(now, Decision { events, effects: Vec::new() });
    }

    fn refuse_order(&mut self, now: Now, refused: OrderRefusal, reply: Option<Inbox>) {
        let OrderRefusal { refusal, about, wish } = refused;
        let (Some((step, term)), Some(signed)) = (about, refusal.signed.clone()) else {
            return self.refuse(now, refusal, reply);
        };
        let why = text::brief(refusal.why, text::WHY_BYTES_MAX);
        self.answer_refusal(now, &signed, (refusal.code, why.clone()), reply);
        let (generation, release) = wish.unzip();
        let (code, release) = (refusal.code.to_string(), release.flatten());
        let intent = signed.id;
        let body = ReleaseRefused { intent, generation, release, step, term, code, why, count: 1 };
        let context = Context::default().because(None, Some(signed.actor));
        let events = vec![(context, Event::ReleaseRefused(body))];
        self.commit(now, Decision { events, effects: Vec::new() });
    }

    fn answer_refusal(
        &mut self,
        now: Now,
        signed: &Signed,
        (code, why): (Code, String),
        reply: Option<Inbox>,
    ) {
        let to = self.own_inbox(reply, &signed.actor.name);
        let cause = signed.id.unwrap_or(IntentId([0; 16]));
        let reply = Reply::Refused { code: code.to_string(), why };
        self.answer(now, to, cause, (0, true), reply);
    }

    fn own_inbox(
        &self,
        reply: Option<Inbox>,
        signer: &crate::domain::id::Principal,
    ) -> Option<Inbox> {
        reply.filter(|inbox| self.authority.may_hear(signer, inbox.principal()))
    }

    fn answer(
        &mut self,
        now: Now,
        to: Option<Inbox>,
        cause: IntentId,
        (part, last): (u32, bool),
        reply: Reply,
    ) {
        let Some(to) = to else { return };
        let (node, at) = (self.name.clone(), now.at);
        let answer = Answer { v: PAYLOAD_VERSION, node, cause, at, part, last, reply };
        self.voice.answer(to, envelope::seal(Kind::Answer, &codec::encode(&answer), &self.signer));
    }

    fn said_by(&self, intent: &IntentId) -> EventId {
        let last = self.rows.head().seq;
        self.rows.id(self.told.get(intent).copied().unwrap_or(last))
    }

    fn part(&self) -> PartStarted {
        PartStarted {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uid: rustix::process::geteuid().as_raw(),
            boot: self.common.boot,
            after: None,
            away_ms: 0,
            incarnation: 1,
        }
    }
}
