//! The gate of one who brings intents to the nodes that they name: refused here is what every one of them would refuse,
//! so that a person hears it at once. Each node judges it again, and that is what counts.

use super::{Authority, Open, Refusal, Signed, Verified, Way, actor_of, fits_mode};
use crate::domain::code::Code;
use crate::domain::id::Principal;
use crate::domain::intent::Action;
use crate::domain::policy::{self, KeyClass, Kind};
use crate::domain::time::UnixMicros;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::payload::{Audience, Intent, Mode, NODES_MAX, PAYLOAD_VERSION, Receipt};

impl Authority {
    /// Checks an intent for others: all that needs no history, the grants for each node that it names; for a word to a
    /// rollout, that there is one for the service at all. Its age is left as an objection, since one that was taken before
    /// is answered however old it is.
    ///
    /// # Errors
    /// The first check that failed.
    pub fn brought(&mut self, bytes: &[u8], now: UnixMicros) -> Result<Verified<Intent>, Refusal> {
        let Open { payload: intent, kid, holder, digest } =
            self.open::<Intent>(bytes, Kind::Intent, Way::Bus)?;
        let mut actor = actor_of(&holder, kid);
        actor.note.clone_from(&intent.note);
        let signed = Some(Signed { id: Some(intent.id), actor: actor.clone() });
        let refuse = |code: Code, why: String| Refusal { code, why, signed: signed.clone() };
        if intent.v != PAYLOAD_VERSION {
            return Err(refuse(Code::BAD_PAYLOAD, format!("payload version {}", intent.v)));
        }
        if intent.iss != kid {
            let why = format!("it says key {} and was signed by {kid}", intent.iss);
            return Err(refuse(Code::WRONG_ISSUER, why));
        }
        if intent.fleet != self.fleet {
            let why = format!("it is for fleet `{}`, this is `{}`", intent.fleet, self.fleet);
            return Err(refuse(Code::WRONG_AUDIENCE, why));
        }
        let nodes = match &intent.audience {
            Audience::Nodes(nodes) if (1..=NODES_MAX).contains(&nodes.len()) => nodes,
            Audience::Nodes(nodes) => {
                let why = format!("it names {} nodes, not 1 to {NODES_MAX}", nodes.len());
                return Err(refuse(Code::WRONG_AUDIENCE, why));
            }
            Audience::All | Audience::Select { .. } => {
                let why = "an intent names its nodes".to_owned();
                return Err(refuse(Code::ORDER_NEEDED, why));
            }
        };
        if intent.mode == Mode::Desired && nodes.len() != 1 {
            let why =
                format!("it names {} nodes: a controller goes from wave to wave", nodes.len());
            return Err(refuse(Code::ORDER_NEEDED, why));
        }
        fits_mode(&intent).map_err(|(code, why)| refuse(code, why))?;
        let (verb, service) = (intent.action.verb(), intent.action.service());
        let is_refused = |node: &&_| {
            let request = policy::Request { verb, service, node };
            policy::allowed_by(&holder.grants, request).is_none()
        };
        let refused = match intent.action {
            // It names the controllers. Who leads knows the nodes of the rollout, and judges by these.
            Action::Rollout { .. } => (!policy::allowed_somewhere(&holder.grants, verb, service))
                .then(|| "any node".to_owned()),
            _ => nodes.iter().find(is_refused).map(|node| format!("`{node}`")),
        };
        if let Some(place) = refused {
            let of = service.map(|service| format!(" `{service}`")).unwrap_or_default();
            let why = format!("`{}` may not {verb}{of} on {place}", holder.name);
            return Err(refuse(Code::NOT_GRANTED, why));
        }
        let in_time = self.intent_in_time(&intent, &holder, Way::Bus, now);
        let objection = in_time.err().map(|(code, why)| refuse(code, why));
        Ok(Verified { payload: intent, digest, actor, objection })
    }

    /// Checks a controller's receipt for the log of this node.
    ///
    /// # Errors
    /// The first check that failed.
    pub fn receipt(&mut self, bytes: &[u8], way: Way, now: UnixMicros) -> Result<Receipt, Refusal> {
        let Open { payload: receipt, kid, holder, .. } =
            self.open::<Receipt>(bytes, Kind::Receipt, way)?;
        let refuse = |code: Code, why: &str| Refusal {
            code,
            why: why.to_owned(),
            signed: Some(Signed { id: None, actor: actor_of(&holder, kid) }),
        };
        self.holds_now(&holder, receipt.at, now).map_err(|(code, why)| refuse(code, &why))?;
        let is_its_own = holder.name.as_str() == receipt.controller.as_str();
        match () {
            () if receipt.v != PAYLOAD_VERSION => {
                Err(refuse(Code::BAD_PAYLOAD, "its payload is of another version"))
            }
            () if holder.class != KeyClass::Controller || !is_its_own => {
                Err(refuse(Code::WRONG_ISSUER, "only controllers give receipts, each its own"))
            }
            () if receipt.origin != self.node => {
                Err(refuse(Code::WRONG_AUDIENCE, "it is for the log of another node"))
            }
            () => Ok(receipt),
        }
    }

    /// Says whether a key of the fleet that was not taken back signed an envelope: all that can be said of one that is old.
    pub fn is_signed(&self, bytes: &[u8]) -> bool {
        let sealed = envelope::read(bytes, ENVELOPE_BYTES_MAX).ok();
        let sealed = sealed.filter(|it| !it.kids().any(|kid| self.revoked.contains(&kid)));
        sealed.is_some_and(|sealed| sealed.open(&self.ring).is_ok())
    }

    /// Says whether what `signer` is answered may go to an inbox of `listener`: his own, or that of a controller, which
    /// brings wishes to nodes and sees in their logs what comes of them.
    pub fn may_hear(&self, signer: &Principal, listener: &Principal) -> bool {
        signer == listener || self.controllers().any(|name| name == listener)
    }

    /// Returns the controllers of the fleet.
    pub fn controllers(&self) -> impl Iterator<Item = &Principal> {
        let holders = self.ring.iter().map(|(_, holder)| holder);
        holders.filter(|holder| holder.class == KeyClass::Controller).map(|holder| &holder.name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, alice, gate, wish};
    use super::*;
    use crate::domain::intent::{RolloutCommand, Verb};
    use crate::wire::codec::encode;
    use crate::wire::envelope::seal;

    fn code(change: impl FnOnce(&mut Intent)) -> Option<Code> {
        let mut intent = wish();
        change(&mut intent);
        let bytes = seal(Kind::Intent, &encode(&intent), &alice());
        match gate().brought(&bytes, NOW) {
            Ok(verified) => verified.objection.map(|refusal| refusal.code),
            Err(refusal) => Some(refusal.code),
        }
    }

    #[test]
    fn an_intent_is_brought_to_others_only_where_its_signer_is_granted_each_of_them() {
        let nodes = |names: &[&str]| {
            Audience::Nodes(names.iter().map(|name| name.parse().unwrap()).collect())
        };
        assert_eq!(code(|_| ()), None);
        assert_eq!(code(|it| it.audience = nodes(&["n1", "n2"])), Some(Code::NOT_GRANTED));
        assert_eq!(code(|it| it.audience = nodes(&[])), Some(Code::WRONG_AUDIENCE));
        assert_eq!(code(|it| it.audience = Audience::All), Some(Code::ORDER_NEEDED));
        assert_eq!(code(|it| it.fleet = "globex".parse().unwrap()), Some(Code::WRONG_AUDIENCE));
        assert_eq!(code(|it| it.v = 9), Some(Code::BAD_PAYLOAD));
        assert_eq!(code(|it| it.mode = Mode::Desired), Some(Code::NOT_YET));
        assert_eq!(code(|it| it.exp = UnixMicros(it.iat.0 - 60_000_000)), Some(Code::EXPIRED));
    }

    #[test]
    fn a_word_to_a_rollout_names_controllers_and_needs_a_grant_on_some_node() {
        let word = |intent: &mut Intent, service: &str| {
            let service = service.parse().unwrap();
            let rollout = crate::domain::id::IntentId([8; 16]);
            let command = RolloutCommand::Promote;
            intent.action = Action::Rollout { service, rollout, command };
            intent.audience = Audience::Nodes(vec!["c1".parse().unwrap()]);
        };
        let judged = |verbs: &[Verb]| {
            let mut gate = gate();
            let grant = policy::Grant {
                verbs: policy::Names::Only(verbs.to_vec()),
                services: policy::Names::Only(vec!["web".parse().unwrap()]),
                nodes: policy::Names::Only(vec!["n1".parse().unwrap()]),
            };
            let holder = policy::Holder {
                name: "alice".parse().unwrap(),
                class: KeyClass::Human,
                grants: vec![grant],
                until: None,
            };
            std::sync::Arc::make_mut(&mut gate.ring).insert(alice().public(), holder);
            ["web", "shop"].map(|service| {
                let mut intent = wish();
                word(&mut intent, service);
                let bytes = seal(Kind::Intent, &encode(&intent), &alice());
                gate.brought(&bytes, NOW).err().map(|refusal| refusal.code)
            })
        };
        assert_eq!(judged(&[Verb::Deploy]), [None, Some(Code::NOT_GRANTED)]);
        assert_eq!(judged(&[Verb::Restart])[0], Some(Code::NOT_GRANTED));
    }

    #[test]
    fn what_one_is_answered_is_heard_by_him_and_by_controllers_alone() {
        let mut gate = gate();
        let holder = |name: &str, class| policy::Holder {
            name: name.parse().unwrap(),
            class,
            grants: Vec::new(),
            until: None,
        };
        let key = |seed| crate::wire::key::Signer::from_seed(&[seed; 32]).public();
        std::sync::Arc::make_mut(&mut gate.ring)
            .insert(key(50), holder("c1", KeyClass::Controller));
        std::sync::Arc::make_mut(&mut gate.ring).insert(key(51), holder("bob", KeyClass::Human));
        let hears =
            |listener: &str| gate.may_hear(&"alice".parse().unwrap(), &listener.parse().unwrap());
        assert!(hears("alice") && hears("c1") && !hears("bob") && !hears("stranger"));
    }
}
