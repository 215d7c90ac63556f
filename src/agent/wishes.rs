//! What comes in envelopes: judged, decided upon, refused, answered.

use super::answers::ReplyTo;
use super::authority::{OrderRefusal, Refusal, Verified, VerifiedOrder, Way};
use super::clock;
use super::release::{Refused, mistaken};
use super::task::{Agent, Promise};
use crate::config;
use crate::domain::code::Code;
use crate::domain::effect::Reply as WishReply;
use crate::domain::event::{Actor, Context, Event, IntentRefused};
use crate::domain::id::{EventId, IntentId, Principal, Seq, ServiceId};
use crate::domain::input::{Decision, Input, OrderMark, World};
use crate::domain::intent::{Action, ActorKind};
use crate::domain::policy::Kind;
use crate::domain::release::{ReleaseId, ReleaseRefused, Step};
use crate::domain::text;
use crate::domain::time::{Now, UnixMicros};
use crate::wire::envelope;
use crate::wire::payload::{Audience, Intent, Reply};

/// How often a refusal of one kind may cost an event.
const REFUSED_EVERY_MS: u64 = 60_000;

impl Agent {
    /// Judges an envelope, and does what it may ask for.
    pub(super) fn heard(&mut self, bytes: &[u8], way: Way, to: ReplyTo) {
        let now = clock::now();
        let kind = match envelope::read(bytes, envelope::ENVELOPE_BYTES_MAX) {
            Ok(sealed) => sealed.kind(),
            // The gate names what is wrong with it.
            Err(_) => Kind::Intent,
        };
        match kind {
            Kind::Query => match self.authority.query(bytes, way, now.at) {
                Ok(verified) => {
                    let to = self.own_inbox(to, &verified.actor.name);
                    self.query(verified.payload, to);
                }
                Err(refusal) => self.refuse(now, refusal, &to),
            },
            Kind::Order => match self.authority.order(bytes, way, now.at) {
                Ok(verified) => {
                    let to = self.own_inbox(to, &verified.controller.name);
                    self.ordered(now, verified, way, to);
                }
                Err(refusal) => self.refuse_order(now, refusal, &to),
            },
            Kind::Trust => {
                if let Err(refusal) = self.trust_came(now, bytes) {
                    self.refuse(now, refusal, &to);
                }
            }
            Kind::Receipt => {
                if let Err(refusal) = self.receipt_came(now, bytes, way) {
                    self.refuse(now, refusal, &to);
                }
            }
            Kind::Intent | Kind::Answer | Kind::Event | Kind::Beat => {
                match self.authority.intent(bytes, way, now.at) {
                    Ok(verified) => {
                        let to = self.own_inbox(to, &verified.actor.name);
                        self.take_in_turn(now, verified, way, to);
                    }
                    Err(refusal) => self.refuse(now, refusal, &to),
                }
            }
        }
    }

    /// Takes a wish of whoever signed it, or refuses it.
    pub(super) fn take_wish(
        &mut self,
        now: Now,
        verified: &Verified<Intent>,
        way: Way,
        to: ReplyTo,
    ) {
        if let Err(refusal) = self.wish(now, verified, way, to.clone(), None) {
            self.refuse(now, refusal, &to);
        }
    }

    /// Takes an order: the intent inside it is what is done, on the authority of whoever signed that.
    fn ordered(&mut self, now: Now, verified: VerifiedOrder, way: Way, to: ReplyTo) {
        if let Err((code, why)) = self.may_leave(&verified) {
            let refusal = verified.intent.refused(code, why);
            return self.refuse_order(now, verified.refused(refusal), &to);
        }
        let mark = Some(verified.mark.clone());
        if let Err(refusal) = self.wish(now, &verified.intent, way, to.clone(), mark) {
            self.refuse_order(now, verified.refused(refusal), &to);
        }
    }

    /// Says whether the spec that was signed lets a controller take the service from this node, if it wants to.
    fn may_leave(&self, order: &VerifiedOrder) -> Result<(), (Code, String)> {
        let (intent, mark) = (&order.intent.payload, &order.mark);
        let Action::Deploy { service, generation, release, .. } = &intent.action else {
            return match mark.step {
                Step::Leave => Err((Code::OUTSIDE_INTENT, "it places no service".to_owned())),
                Step::Apply | Step::Return => Ok(()),
            };
        };
        if mark.step != Step::Leave {
            return Ok(());
        }
        let manifest = crate::head::manifest::check_manifest(service, release)
            .map_err(|why| (Code::BAD_MANIFEST, why))?;
        let layer = config::release_layer(ReleaseId::of(release), manifest);
        let rollouts = config::rollouts_of(layer).map_err(|mistakes| {
            let Refused { code, why } = mistaken(&mistakes);
            (code, why)
        })?;
        let known = self.node.releases().get(service).map(|known| known.generation);
        let is_obeyed = known.unwrap_or_default() >= *generation;
        let select = match &intent.audience {
            Audience::Select { selector, .. } => selector.parse().ok(),
            Audience::Nodes(_) | Audience::All => None,
        };
        match select.is_some_and(|select| rollouts.placement.lets_go(&select, is_obeyed)) {
            true => Ok(()),
            false => Err((Code::OUTSIDE_INTENT, "its spec leaves the service here".to_owned())),
        }
    }

    /// Refuses an order: whoever sent it is answered, and at most once a minute and code the history says so.
    fn refuse_order(&mut self, now: Now, refused: OrderRefusal, to: &ReplyTo) {
        let OrderRefusal { refusal, about, wish } = refused;
        let (Some((step, term)), Some(signed)) = (about, refusal.signed.clone()) else {
            return self.refuse(now, refusal, to);
        };
        let (code, why) = (refusal.code.to_string(), refusal.why.clone());
        let Some(count) = self.answer_refusal(now, refusal, to) else { return };
        let (generation, release) = wish.unzip();
        let release = release.flatten();
        let intent = signed.id;
        let body = ReleaseRefused { intent, generation, release, step, term, code, why, count };
        let context = Context::default().because(None, Some(signed.actor));
        let events = vec![(context, Event::ReleaseRefused(body))];
        self.commit(now, Decision { events, effects: Vec::new() });
    }

    /// Decides on a wish that passed the gate.
    ///
    /// # Errors
    /// Why it is not taken. Nothing changed.
    fn wish(
        &mut self,
        now: Now,
        verified: &Verified<Intent>,
        way: Way,
        to: ReplyTo,
        order: Option<OrderMark>,
    ) -> Result<(), Refusal> {
        let Verified { payload: intent, actor, objection, .. } = verified;
        let seen = self.node.seen().get(&intent.id).is_some();
        let refused = |code, why| verified.refused(code, why);
        // A repeat of a wish that was taken is answered from the log, however late it comes.
        if let Some(refusal) = objection
            && !seen
        {
            return Err(refusal.clone());
        }
        if let Some(why) = self.outage()
            && !seen
            && !self.may_pass_an_outage(actor, &intent.action)
        {
            let why = format!("the history cannot be written: {why}");
            return Err(refused(Code::LOG_UNAVAILABLE, why));
        }
        if !seen && let Some(service) = self.own_part(&intent.action) {
            let why = format!("{service} is part of smgr itself on this node");
            return Err(refused(Code::PART_OF_SMGR, why));
        }
        // The core has no regular expressions, so the patterns of parameters are checked here.
        if let Action::Run { service, action, params, .. } = &intent.action
            && !seen
            && let Some((spec, _)) = self.services.spec_of(service)
        {
            super::launch::bind_action(&spec, action, params)
                .map_err(|error| refused(error.code(), error.to_string()))?;
        }
        if !seen {
            let kept = self.services.keep_set(&self.node, intent, order.as_ref());
            kept.map_err(|Refused { code, why }| refused(code, why))?;
        }
        let manifest =
            manifest_of(&intent.action).map_err(|why| refused(Code::BAD_MANIFEST, why))?;
        let is_own = way == Way::Local && actor.kind == ActorKind::Local;
        let wish = verified.wish(is_own, order);
        let world = World {
            now,
            specs: self.services.specs(),
            entropy: clock::entropy(),
            reconciled: self.hands.met(),
            bus: self.setup.own_bus(),
        };
        let decision = self
            .node
            .decide(&world, Input::Wish(wish))
            .map_err(|rejection| refused(rejection.code(), rejection.to_string()))?;
        let is_new = !decision.events.is_empty();
        if let Some((service, bytes)) = manifest.filter(|_| is_new) {
            // On disk before an event names it.
            let kept = self.services.releases().keep(service, bytes);
            let why = |error| format!("the release cannot be kept: {error}");
            kept.map_err(|error| refused(Code::IO, why(error)))?;
        }
        self.answers.wait(intent.id, to);
        let accepted = self.recorder.event_id(self.recorder.next());
        self.commit(now, decision);
        if is_new {
            self.recorder.promise(Promise::Accepted(intent.id, accepted));
        }
        Ok(())
    }

    /// Returns the service that an action would replace, take away or set otherwise, where smgr made it for itself: a fleet
    /// without its bus or its controllers could not take that back.
    fn own_part<'a>(&self, action: &'a Action) -> Option<&'a ServiceId> {
        let (Action::Deploy { service, .. }
        | Action::Remove { service, .. }
        | Action::Configure { service, .. }) = action
        else {
            return None;
        };
        let made = self.setup.specs.vendor.as_ref()?.join(format!("{service}.toml"));
        made.exists().then_some(service)
    }

    /// On a full disk the owner of the machine can still stop and restart.
    fn may_pass_an_outage(&self, actor: &Actor, action: &Action) -> bool {
        actor.kind == ActorKind::Local
            && matches!(
                action,
                Action::Stop { .. } | Action::Restart { .. } | Action::Shutdown { .. }
            )
    }

    /// Refuses a message: a counter, at most one event a minute and code, and an answer to a known signer.
    pub(super) fn refuse(&mut self, now: Now, refusal: Refusal, to: &ReplyTo) {
        let (code, why) = (refusal.code.to_string(), refusal.why.clone());
        let signed = refusal.signed.clone();
        let Some((count, signed)) = self.answer_refusal(now, refusal, to).zip(signed) else {
            return;
        };
        let why = text::brief(why, text::WHY_BYTES_MAX);
        let body = IntentRefused { intent: signed.id, code, why, count };
        let context = Context::default().because(None, Some(signed.actor));
        let events = vec![(context, Event::IntentRefused(body))];
        self.commit(now, Decision { events, effects: Vec::new() });
    }

    /// Counts and answers a refusal; returns how many of its kind an event has to stand for, when one is due.
    fn answer_refusal(&mut self, now: Now, refusal: Refusal, to: &ReplyTo) -> Option<u64> {
        self.queries.refused += 1;
        let Refusal { code, why, signed } = refusal;
        let why = text::brief(why, text::WHY_BYTES_MAX);
        match (&signed, to) {
            (Some(signed), to) => {
                let to = self.own_inbox(to.clone(), &signed.actor.name);
                let cause = signed.id.unwrap_or(IntentId([0; 16]));
                let reply = Reply::Refused { code: code.to_string(), why };
                self.answers.reply(&to, cause, reply, &mut self.voice);
            }
            // Somebody at the local socket is told why; a stranger on the bus is not answered.
            (None, ReplyTo::Local(caller, id)) => caller.refuse(*id, code.to_string(), why),
            (None, ReplyTo::Bus(_) | ReplyTo::Nobody) => {}
        }
        // Before a signature has held, a message may not cost a row: anybody could fill the log.
        if signed.is_none() || self.outage.is_some() {
            return None;
        }
        let (last, count) = self.refusals.entry(code).or_insert((UnixMicros(0), 0));
        *count += 1;
        if now.at.ms_since(*last) < REFUSED_EVERY_MS {
            return None;
        }
        *last = now.at;
        Some(std::mem::take(count))
    }

    /// Returns the event that says how far a wish is: while the log takes nothing, the last one that will.
    pub(super) fn said_by(&self, intent: &IntentId) -> EventId {
        let last = || self.recorder.event_id(Seq(self.recorder.next().0 - 1));
        self.recorder.told(intent).unwrap_or_else(last)
    }

    /// An answer goes to an inbox of whoever signed, or of a controller that brought it, and nowhere else: or a caller
    /// could have it delivered to others.
    fn own_inbox(&self, to: ReplyTo, signer: &Principal) -> ReplyTo {
        match to {
            ReplyTo::Bus(inbox) if !self.authority.may_hear(signer, inbox.principal()) => {
                ReplyTo::Nobody
            }
            other => other,
        }
    }

    /// Says what came of a wish to whoever waits for it, once all that was recorded is durable.
    pub(super) fn promise_answer(&mut self, intent: IntentId, reply: WishReply) {
        let WishReply::Outcome(outcome) = reply else { return };
        let event = self.said_by(&intent);
        if let Some(sealed) = self.answers.sign(intent, Reply::Outcome { outcome, event }) {
            self.recorder.promise(Promise::Outcome(intent, sealed));
        }
    }
}

/// Returns the manifest of a deploy, once it was found to read.
fn manifest_of(action: &Action) -> Result<Option<(&ServiceId, &[u8])>, String> {
    let Action::Deploy { service, release, .. } = action else { return Ok(None) };
    crate::head::manifest::check_manifest(service, release)?;
    Ok(Some((service, release)))
}
