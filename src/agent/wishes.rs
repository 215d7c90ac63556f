//! What comes in envelopes: judged, decided upon, refused, answered.

use super::answers::ReplyTo;
use super::authority::{Refusal, Signed, Verified, Way};
use super::clock;
use super::release;
use super::task::{Agent, Promise};
use crate::domain::code::Code;
use crate::domain::effect::Reply as WishReply;
use crate::domain::event::{Actor, Context, Event, IntentRefused};
use crate::domain::id::{EventId, IntentId, Principal, Seq, ServiceId};
use crate::domain::input::{Decision, Input, OrderMark, Wish, World};
use crate::domain::intent::{Action, ActorKind};
use crate::domain::policy::Kind;
use crate::domain::text;
use crate::domain::time::{Now, UnixMicros};
use crate::wire::envelope;
use crate::wire::payload::{Intent, Reply};

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
                    let to = own_inbox(to, &verified.actor.name);
                    self.query(verified.payload, to);
                }
                Err(refusal) => self.refuse(now, refusal, &to),
            },
            Kind::Intent | Kind::Order | Kind::Answer | Kind::Event | Kind::Beat | Kind::Trust => {
                match self.authority.intent(bytes, way, now.at) {
                    Ok(verified) => {
                        let to = own_inbox(to, &verified.actor.name);
                        self.wish(now, verified, way, to, None);
                    }
                    Err(refusal) => self.refuse(now, refusal, &to),
                }
            }
        }
    }

    fn wish(
        &mut self,
        now: Now,
        verified: Verified<Intent>,
        way: Way,
        to: ReplyTo,
        order: Option<OrderMark>,
    ) {
        let Verified { payload: intent, digest, actor, objection } = verified;
        let seen = self.node.seen().get(&intent.id).is_some();
        // A repeat of a wish that was taken is answered from the log, however late it comes.
        if let Some(refusal) = objection
            && !seen
        {
            return self.refuse(now, refusal, &to);
        }
        if let Some(why) = self.outage()
            && !seen
            && !self.may_pass_an_outage(&actor, &intent.action)
        {
            let why = format!("the history cannot be written: {why}");
            let signed = Some(Signed { id: Some(intent.id), actor });
            return self.refuse(now, Refusal { code: Code::LOG_UNAVAILABLE, why, signed }, &to);
        }
        // The core has no regular expressions, so the patterns of parameters are checked here.
        if let Action::Run { service, action, params } = &intent.action
            && !seen
            && let Some((spec, _)) = self.services.spec_of(service)
            && let Err(refused) = super::launch::bind_action(&spec, action, params)
        {
            let signed = Some(Signed { id: Some(intent.id), actor });
            let refusal = Refusal { code: refused.code(), why: refused.to_string(), signed };
            return self.refuse(now, refusal, &to);
        }
        let manifest = match self.manifest_of(&intent.action) {
            Ok(manifest) => manifest,
            Err((code, why)) => {
                let signed = Some(Signed { id: Some(intent.id), actor });
                return self.refuse(now, Refusal { code, why, signed }, &to);
            }
        };
        let wish = Wish {
            id: intent.id,
            digest,
            action: intent.action,
            issued_at: intent.iat,
            generation: None,
            expires_at: intent.exp,
            by: actor.clone(),
            is_own: way == Way::Local && actor.kind == ActorKind::Local,
            order,
        };
        let world = World {
            now,
            specs: self.services.specs(),
            entropy: clock::entropy(),
            reconciled: self.hands.met(),
            bus: self.setup.own_bus(),
        };
        match self.node.decide(&world, Input::Wish(wish)) {
            Ok(decision) => {
                // On disk before an event names it.
                let kept = manifest
                    .filter(|_| !decision.events.is_empty())
                    .map_or(Ok(()), |(service, bytes)| {
                        self.services.releases().keep(&service, &bytes)
                    });
                if let Err(why) = kept {
                    let why = format!("the release cannot be kept: {why}");
                    let signed = Some(Signed { id: Some(intent.id), actor });
                    return self.refuse(now, Refusal { code: Code::IO, why, signed }, &to);
                }
                self.answers.wait(intent.id, to);
                let accepted = self.recorder.event_id(self.recorder.next());
                let is_new = !decision.events.is_empty();
                self.commit(now, decision);
                if is_new {
                    self.recorder.promise(Promise::Accepted(intent.id, accepted));
                }
            }
            Err(rejection) => {
                let signed = Some(Signed { id: Some(intent.id), actor });
                let refusal =
                    Refusal { code: rejection.code(), why: rejection.to_string(), signed };
                self.refuse(now, refusal, &to);
            }
        }
    }

    /// Returns the manifest of a deploy, once it was found to read.
    fn manifest_of(&self, action: &Action) -> Result<Option<(ServiceId, Vec<u8>)>, (Code, String)> {
        let Action::Deploy { service, release, .. } = action else { return Ok(None) };
        release::check_manifest(service, release)
            .map(|_| Some((service.clone(), release.clone())))
            .map_err(|why| (Code::BAD_MANIFEST, why))
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
        self.queries.refused += 1;
        let Refusal { code, why, signed } = refusal;
        let why = text::brief(why, text::WHY_BYTES_MAX);
        match (&signed, to) {
            (Some(signed), to) => {
                let to = own_inbox(to.clone(), &signed.actor.name);
                let cause = signed.id.unwrap_or(IntentId([0; 16]));
                let reply = Reply::Refused { code: code.to_string(), why: why.clone() };
                self.answers.reply(&to, cause, reply, &mut self.voice);
            }
            // Somebody at the local socket is told why; a stranger on the bus is not answered.
            (None, ReplyTo::Local(caller, id)) => {
                caller.refuse(*id, code.to_string(), why.clone());
            }
            (None, ReplyTo::Bus(_) | ReplyTo::Nobody) => {}
        }
        // Before a signature has held, a message may not cost a row: anybody could fill the log.
        let Some(signed) = signed else { return };
        if self.outage.is_some() {
            return;
        }
        let (last, count) = self.refusals.entry(code).or_insert((UnixMicros(0), 0));
        *count += 1;
        if now.at.ms_since(*last) < REFUSED_EVERY_MS {
            return;
        }
        *last = now.at;
        let count = std::mem::take(count);
        let body = IntentRefused { intent: signed.id, code: code.to_string(), why, count };
        let context = Context::default().because(None, Some(signed.actor));
        let events = vec![(context, Event::IntentRefused(body))];
        self.commit(now, Decision { events, effects: Vec::new() });
    }

    /// Returns the event that says how far a wish is: while the log takes nothing, the last one that will.
    pub(super) fn said_by(&self, intent: &IntentId) -> EventId {
        let last = || self.recorder.event_id(Seq(self.recorder.next().0 - 1));
        self.recorder.told(intent).unwrap_or_else(last)
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

/// An answer goes to an inbox of whoever signed, and nowhere else: or a caller could have it delivered as a call.
fn own_inbox(to: ReplyTo, signer: &Principal) -> ReplyTo {
    match to {
        ReplyTo::Bus(inbox) if inbox.principal() != signer => ReplyTo::Nobody,
        other => other,
    }
}
