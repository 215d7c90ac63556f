//! The gate for orders: a controller may only bring what a person or a job signed, to a node that it is meant for, and
//! to those that do not go first only with another node's own word.
//!
//! What needs history (terms, plans, returns) is the core's to say, since it is folded from the log.

use std::sync::Arc;

use super::{
    Authority, Enrolment, Open, Refusal, SKEW_MS, Signed, Verified, Way, actor_of, fits_mode,
};
use crate::domain::code::Code;
use crate::domain::event::{Actor, Event};
use crate::domain::id::{Digest, Generation, IntentId, NodeId};
use crate::domain::input::OrderMark;
use crate::domain::intent::Action;
use crate::domain::policy::Kind;
use crate::domain::release::{ReleaseId, Step};
use crate::domain::selector::Selector;
use crate::domain::text;
use crate::domain::time::UnixMicros;
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::payload::{
    Audience, Body, CANARY_MAX, EventRecord, Intent, Mode, Order, PAYLOAD_VERSION,
};

/// How many of the nodes that go first a refusal names.
const NAMED_MAX: usize = 4;

/// An order that passed every check that needs no history.
#[derive(Clone, Debug)]
pub struct VerifiedOrder {
    /// The intent inside it; on the authority of whoever signed that.
    pub intent: Verified<Intent>,
    /// What the order says beside it.
    pub mark: OrderMark,
    /// Who answers for the order.
    pub controller: Actor,
}

/// Why an order was refused, and as far as it could be read what it was. Nothing changed.
#[derive(Clone, Debug)]
pub struct OrderRefusal {
    /// The check that failed.
    pub refusal: Refusal,
    /// Which step was ordered, in which term; absent before the controller's signature held.
    pub about: Option<(Step, u64)>,
    /// The wish inside, once its signature held.
    pub wish: Option<(Generation, Option<ReleaseId>)>,
}

impl VerifiedOrder {
    /// Says that the intent inside is not taken, and why, to whoever sent the order.
    pub fn refused(self, refusal: Refusal) -> OrderRefusal {
        let Self { intent, mark, controller } = self;
        let action = &intent.payload.action;
        OrderRefusal {
            about: Some((mark.step, mark.term)),
            wish: Some((action.generation().unwrap_or_default(), action.release())),
            refusal: Refusal {
                signed: Some(Signed { id: Some(intent.payload.id), actor: controller }),
                ..refusal
            },
        }
    }
}

impl From<Refusal> for OrderRefusal {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, about: None, wish: None }
    }
}

impl Authority {
    /// Takes in which nodes root enrolled: whose word of a canary counts, and by which labels nodes are selected.
    pub fn enrol(&mut self, nodes: impl Into<Arc<Enrolment>>) {
        self.roster = nodes.into();
    }

    /// Checks an order and the intent inside it. The controller's key must hold now: its own word for when it signed binds
    /// nobody who stole it.
    ///
    /// # Errors
    /// The first check that failed.
    pub fn order(
        &mut self,
        bytes: &[u8],
        way: Way,
        now: UnixMicros,
    ) -> Result<VerifiedOrder, OrderRefusal> {
        let Open { payload: order, kid, holder, .. } =
            self.open::<Order>(bytes, Kind::Order, way)?;
        let controller = actor_of(&holder, kid);
        let about = Some((order.step, order.term));
        let refuse = |code: Code, why: String, id: Option<IntentId>| OrderRefusal {
            refusal: Refusal {
                code,
                why: text::brief(why, text::WHY_BYTES_MAX),
                signed: Some(Signed { id, actor: controller.clone() }),
            },
            about,
            wish: None,
        };
        let outer = [
            (order.v != PAYLOAD_VERSION, Code::BAD_PAYLOAD, "its payload is of another version"),
            (order.canary.len() > CANARY_MAX, Code::BAD_PAYLOAD, "it carries too many results"),
            (order.wave == 0, Code::BAD_PAYLOAD, "waves are counted from 1"),
            (order.iss != kid, Code::WRONG_ISSUER, "it was issued in the name of another key"),
            (
                order.controller.as_str() != holder.name.as_str(),
                Code::WRONG_ISSUER,
                "it was issued in the name of another controller",
            ),
            (order.fleet != self.fleet, Code::WRONG_AUDIENCE, "it is for another fleet"),
            (order.node != self.node, Code::WRONG_AUDIENCE, "it is for another node"),
        ];
        if let Some((_, code, why)) = outer.into_iter().find(|(is_wrong, ..)| *is_wrong) {
            return Err(refuse(code, why.to_owned(), None));
        }
        self.holds_now(&holder, order.iat, now).map_err(|(code, why)| refuse(code, why, None))?;
        let intent = self.inside(&order).map_err(|(code, why)| refuse(code, why, None))?;
        let wish = intent.payload.action.generation().unwrap_or_default();
        let wish = Some((wish, intent.payload.action.release()));
        let id = Some(intent.payload.id);
        let is_unproved = self
            .covers(&order, &intent.payload)
            .and_then(|()| self.is_unproved(&order, &intent))
            .map_err(|(code, why)| OrderRefusal { wish, ..refuse(code, why, id) })?;
        let mark = OrderMark {
            step: order.step,
            plan: order.plan,
            term: order.term,
            controller: order.controller,
            verified_at: order.verified_at,
            wave: order.wave,
            is_unproved,
        };
        Ok(VerifiedOrder { intent, mark, controller })
    }

    /// Opens the intent of an order.
    fn inside(&self, order: &Order) -> Result<Verified<Intent>, (Code, String)> {
        let named =
            |refusal: Refusal| (refusal.code, format!("the intent inside: {}", refusal.why));
        let refused = |error| named(super::refusal_of(error));
        let sealed = envelope::read(&order.intent, ENVELOPE_BYTES_MAX).map_err(refused)?;
        if sealed.kind() != Kind::Intent {
            return Err((Code::OUTSIDE_INTENT, "there is no intent inside".to_owned()));
        }
        if let Some(kid) = sealed.kids().find(|kid| self.revoked.contains(kid)) {
            return Err((Code::KEY_REVOKED, format!("the intent's key {kid} was taken back")));
        }
        let opened = sealed.open(&self.ring).map_err(refused)?;
        let intent: Intent = codec::decode(opened.payload)
            .map_err(|error| (Code::BAD_PAYLOAD, format!("the intent inside: {error}")))?;
        let mut actor = actor_of(opened.holder, opened.kid);
        match () {
            () if intent.v != PAYLOAD_VERSION => {
                return Err((Code::BAD_PAYLOAD, "the intent is of another version".to_owned()));
            }
            () if intent.note.len() > super::NOTE_BYTES_MAX => {
                return Err((Code::BAD_PAYLOAD, "the intent's note is too long".to_owned()));
            }
            () if intent.iss != opened.kid => {
                return Err((Code::WRONG_ISSUER, "the intent is in another key's name".to_owned()));
            }
            () => {}
        }
        // The box may have been away for long: that the key had not ended when a controller took the wish is what counts.
        super::might_sign(opened.holder, intent.iat, order.verified_at)?;
        fits_mode(&intent)?;
        if intent.mode != Mode::Desired {
            let why = "orders for wishes that run once are not in this version".to_owned();
            return Err((Code::NOT_YET, why));
        }
        self.granted(opened.holder, intent.action.verb(), intent.action.service())?;
        actor.note.clone_from(&intent.note);
        let digest = opened.digest;
        Ok(Verified { payload: intent, digest, actor, objection: None })
    }

    /// Says whether the intent means what the order makes of it.
    fn covers(&self, order: &Order, intent: &Intent) -> Result<(), (Code, String)> {
        if intent.fleet != self.fleet {
            return Err((Code::WRONG_AUDIENCE, "the intent is for another fleet".to_owned()));
        }
        // What is desired does not expire, but nobody can have verified it before it was signed.
        if order.verified_at.plus_ms(SKEW_MS) < intent.iat {
            let why = "it was verified before the intent was signed".to_owned();
            return Err((Code::OUTSIDE_INTENT, why));
        }
        if order.step == Step::Leave {
            return self.is_left_out(&intent.audience);
        }
        let is_meant = match &intent.audience {
            Audience::Nodes(nodes) => nodes.contains(&self.node),
            Audience::Select { selector, .. } => self.is_selected(selector)?,
            Audience::All => false,
        };
        match is_meant {
            true => Ok(()),
            false => Err((Code::OUTSIDE_INTENT, "the intent does not mean this node".to_owned())),
        }
    }

    /// Says whether the selection of an intent does not mean this node, as root enrolled it.
    fn is_left_out(&self, audience: &Audience) -> Result<(), (Code, String)> {
        let is_known = self.roster.get(&self.node).is_some();
        let means = match audience {
            Audience::Select { selector, .. } => self.is_selected(selector)?,
            Audience::Nodes(_) | Audience::All => true,
        };
        match is_known && !means {
            true => Ok(()),
            false => Err((Code::OUTSIDE_INTENT, "the intent means this node still".to_owned())),
        }
    }

    fn is_selected(&self, selector: &str) -> Result<bool, (Code, String)> {
        let selector: Selector =
            selector.parse().map_err(|error| (Code::BAD_SELECTOR, format!("{error}")))?;
        let own = self.roster.get(&self.node);
        Ok(own.is_some_and(|own| selector.matches(&own.node, &own.labels)))
    }

    /// Checks that this node may take the release: it is of those that go first, or another node proved it. Says whether
    /// neither is so, and it may only if nothing of the service was ever here: which the core knows.
    ///
    /// Which nodes the canary has, stands in the plan, of which a node knows the digest alone. So at least one other
    /// node has to say in its own signed words that exactly this release became healthy there, and each word that is
    /// carried has to be such a one: behind a canary that failed no rollout goes on, whatever others say.
    fn is_unproved(&self, order: &Order, wish: &Verified<Intent>) -> Result<bool, (Code, String)> {
        let intent = &wish.payload;
        let Action::Deploy { service, generation, emergency, retry, .. } = &intent.action else {
            return Ok(false);
        };
        if order.step != Step::Apply || emergency.is_some() {
            return Ok(false);
        }
        if order.wave == 1 && order.canary.is_empty() {
            return self.goes_first(wish);
        }
        let unproven = |why: String| (Code::CANARY_UNPROVEN, why);
        let mut is_proved = false;
        for bytes in &order.canary {
            let (record, event) = self.word_of_a_node(bytes).map_err(unproven)?;
            let told = match &event {
                Event::ReleaseHealthy(body) => Some((body.generation, body.release, true)),
                Event::ReleaseFailed(body) => Some((body.generation, body.release, false)),
                _ => None,
            };
            // Whoever signs that it goes on with an earlier rollout lets that one's canary count.
            let is_meant = |of| of == *generation || retry.is_some() && of < *generation;
            let release = intent.action.release();
            let is_about_it = record.service.as_ref() == Some(service);
            let told = told
                .filter(|(of, which, _)| is_about_it && is_meant(*of) && Some(*which) == release);
            let origin = &record.origin;
            match told {
                Some((.., true)) => is_proved |= *origin != self.node,
                Some((.., false)) => {
                    return Err(unproven(format!("{origin} says that the release failed there")));
                }
                None => return Err(unproven(format!("{origin} says nothing of this release"))),
            }
        }
        match is_proved {
            true => Ok(false),
            false => Err(unproven(format!(
                "it is of wave {} and carries no node's word that the release is healthy",
                order.wave
            ))),
        }
    }

    /// Checks that this node is one of those that may go first, whatever the controller says of it. Says whether it is
    /// none, and those may as well that have nothing of the service.
    fn goes_first(&self, wish: &Verified<Intent>) -> Result<bool, (Code, String)> {
        let named = |roster: &Digest| {
            let mut known = std::iter::once(&self.roster).chain(&self.earlier);
            known.find(|known| known.digest() == *roster)
        };
        // A plan is made from the roster that the wish names; one that is not known any more was much like this one.
        let roster = match &wish.payload.audience {
            Audience::Select { roster, .. } => named(roster),
            Audience::Nodes(_) | Audience::All => Some(&self.roster),
        };
        let hint =
            if roster.is_none() { "; the roster is another one since: deploy anew" } else { "" };
        let roster = roster.unwrap_or(&self.roster);
        let first = roster.first(wish.digest, &wish.payload)?;
        if first.nodes.contains(&self.node) {
            return Ok(false);
        }
        if first.newcomers {
            return Ok(true);
        }
        let names: Vec<&str> = first.nodes.iter().map(NodeId::as_str).take(NAMED_MAX).collect();
        let more = if first.nodes.len() > NAMED_MAX { ", …" } else { "" };
        Err((
            Code::CANARY_UNPROVEN,
            format!(
                "it carries no node's word that the release is healthy, and without one it may go to {} of {} nodes: {}{more}{hint}",
                first.nodes.len(),
                first.of,
                names.join(", "),
            ),
        ))
    }

    /// Says whether a word that was verified before is signed by the key that the roster has for its node today.
    pub fn is_word_of(&self, node: &NodeId, bytes: &[u8]) -> bool {
        let own = self.roster.get(node).map(|enrolled| enrolled.kid);
        let own = own.filter(|kid| !self.revoked.contains(kid));
        let sealed = envelope::read(bytes, ENVELOPE_BYTES_MAX).ok();
        own.is_some() && sealed.is_some_and(|sealed| sealed.kids().all(|kid| Some(kid) == own))
    }

    /// Opens an event by the key that the roster has for its node.
    fn word_of_a_node(&self, bytes: &[u8]) -> Result<(EventRecord, Event), String> {
        let sealed = envelope::read(bytes, ENVELOPE_BYTES_MAX).map_err(|it| it.to_string())?;
        if let Some(kid) = sealed.kids().find(|kid| self.revoked.contains(kid)) {
            return Err(format!("a result is signed by {kid}, which was taken back"));
        }
        let opened = sealed.open(&self.ring).map_err(|error| format!("a result: {error}"))?;
        if opened.kind != Kind::Event {
            return Err("a result is no event".to_owned());
        }
        let record: EventRecord =
            codec::decode(opened.payload).map_err(|error| format!("a result: {error}"))?;
        let enrolled = self.roster.get(&record.origin);
        if enrolled.is_none_or(|enrolled| enrolled.kid != opened.kid) {
            return Err(format!("a result of {} is not signed by its key", record.origin));
        }
        match record.event() {
            Ok(Body::Known(event)) => Ok((record, event)),
            Ok(Body::Unknown) => Err(format!("a result of {} is not known here", record.origin)),
            Err(error) => Err(format!("a result of {}: {error}", record.origin)),
        }
    }
}

#[cfg(test)]
mod tests;
