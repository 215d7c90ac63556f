//! The gate of the controllers: wishes that mean many nodes, and words about a rollout.
//!
//! Nothing rests on it, since each node checks the same wish again inside its order; but what would be refused there is
//! refused here, before anything has begun.

use std::collections::{BTreeMap, BTreeSet};

use super::{Authority, Open, Refusal, Signed, Verified, Way, actor_of, fits_mode};
use crate::domain::code::Code;
use crate::domain::event::Actor;
use crate::domain::id::{Digest, NodeId, ServiceId};
use crate::domain::intent::{Action, Verb};
use crate::domain::selector::{Roster, SelectError, Selector};
use crate::domain::time::UnixMicros;
use crate::wire::payload::{Audience, Intent, Mode, NODES_MAX};

/// A wish for the controllers that passed every check that needs no history.
#[derive(Clone, Debug)]
pub struct Requested {
    /// The wish.
    pub verified: Verified<Intent>,
    /// The nodes that it means; none for a word about a rollout, whose nodes stand in its plan.
    pub targets: BTreeSet<NodeId>,
}

impl Authority {
    /// Checks an intent that is meant for the controllers. `roster` is the digest of the one in force.
    ///
    /// # Errors
    /// The first check that failed.
    pub fn request(
        &mut self,
        bytes: &[u8],
        way: Way,
        (now, roster): (UnixMicros, Digest),
    ) -> Result<Requested, Refusal> {
        let Open { payload: intent, kid, holder, digest } = self.read_intent(bytes, way)?;
        let actor = Actor { note: intent.note.clone(), ..actor_of(&holder, kid) };
        let refuse = |(code, why): (Code, String)| Refusal {
            code,
            why,
            signed: Some(Signed { id: Some(intent.id), actor: actor.clone() }),
        };
        fits_mode(&intent).map_err(refuse)?;
        let (verb, service) = (intent.action.verb(), intent.action.service());
        let (targets, allowed) = match &intent.action {
            Action::Rollout { .. } => {
                self.addressed(&intent.fleet, &intent.audience, true)
                    .map_err(|why| refuse((Code::WRONG_AUDIENCE, why)))?;
                let in_time = self.in_time(intent.iat, intent.exp, way, holder.class, now);
                (BTreeSet::new(), in_time)
            }
            _ if intent.mode == Mode::Desired => {
                let targets = self.meant(&intent, roster).map_err(refuse)?;
                let granted = targets
                    .iter()
                    .try_for_each(|node| self.granted_on(&holder, verb, service, node));
                (targets, granted)
            }
            _ => {
                let why = "a controller resolves releases only, in this version".to_owned();
                return Err(refuse((Code::NOT_YET, why)));
            }
        };
        let objection = self.holds_now(&holder, intent.iat, now).and(allowed).err().map(refuse);
        Ok(Requested { verified: Verified { payload: intent, digest, actor, objection }, targets })
    }

    /// Says whether whoever signed may do this to the service on all these nodes.
    ///
    /// # Errors
    /// Where not.
    pub fn may<'a>(
        &self,
        actor: &Actor,
        verb: Verb,
        service: &ServiceId,
        nodes: impl IntoIterator<Item = &'a NodeId>,
    ) -> Result<(), (Code, String)> {
        let holder = actor.key.and_then(|kid| self.ring.get(kid)).map(|(_, holder)| holder);
        let Some(holder) = holder else {
            return Err((Code::NOT_GRANTED, format!("nothing is known of `{}`", actor.name)));
        };
        nodes.into_iter().try_for_each(|node| self.granted_on(holder, verb, Some(service), node))
    }

    /// Returns the nodes that root enrolled, with their labels.
    pub fn roster(&self) -> Roster {
        self.enrolled().map(|(node, labels)| (node.clone(), labels.clone())).collect()
    }

    /// The same where they stand, for whoever looks often.
    pub fn enrolled(&self) -> impl Iterator<Item = (&NodeId, &BTreeMap<String, String>)> {
        self.roster.labelled()
    }

    /// Returns the nodes that a wish means: never none.
    fn meant(&self, intent: &Intent, in_force: Digest) -> Result<BTreeSet<NodeId>, (Code, String)> {
        if intent.fleet != self.fleet {
            let why = format!("it is for fleet `{}`, this is `{}`", intent.fleet, self.fleet);
            return Err((Code::WRONG_AUDIENCE, why));
        }
        let selector = match &intent.audience {
            Audience::All => {
                let why = "an intent names its nodes, or selects them".to_owned();
                return Err((Code::WRONG_AUDIENCE, why));
            }
            Audience::Nodes(nodes) if nodes.is_empty() => {
                return Err((Code::EMPTY_SELECTION, "it names no node".to_owned()));
            }
            Audience::Nodes(nodes) if nodes.len() > NODES_MAX => {
                let why = format!("it names {} nodes, more than {NODES_MAX}", nodes.len());
                return Err((Code::WRONG_AUDIENCE, why));
            }
            Audience::Nodes(nodes) => Selector::nodes(nodes),
            Audience::Select { roster, .. } if *roster != in_force => {
                let why =
                    format!("it was selected from the roster {roster}, and {in_force} is in force");
                return Err((Code::ROSTER_CHANGED, why));
            }
            Audience::Select { selector, .. } => {
                selector.parse().map_err(|error| (Code::BAD_SELECTOR, format!("{error}")))?
            }
        };
        selector.select(&self.roster()).map_err(|error| match error {
            SelectError::NothingMatches { .. } => (Code::EMPTY_SELECTION, error.to_string()),
            SelectError::NoSuchNode(_) => (Code::NO_SUCH_NODE, error.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Enrolment;
    use super::super::tests::{NOW, gate};
    use super::*;
    use crate::domain::id::{Generation, IntentId, Kid};
    use crate::domain::intent::RolloutCommand;
    use crate::domain::policy::{Grant, Holder, KeyClass, Kind, Names};
    use crate::wire::codec::encode;
    use crate::wire::envelope::seal;
    use crate::wire::key::Signer;
    use crate::wire::payload::{Enrolled, PAYLOAD_VERSION};

    const ROSTER: Digest = Digest([5; 32]);

    fn job() -> Signer {
        Signer::from_seed(&[22; 32])
    }

    /// A gate of a controller that knows three nodes, and a job that may deploy `web` on two of them.
    fn controllers_gate() -> Authority {
        let mut gate = gate();
        let nodes = ["n1", "n2"].map(|name| name.parse().unwrap()).to_vec();
        let grant = Grant {
            verbs: Names::Only(vec![Verb::Deploy]),
            services: Names::Only(vec!["web".parse().unwrap()]),
            nodes: Names::Only(nodes),
        };
        let name = "ci".parse().unwrap();
        let holder = Holder { name, class: KeyClass::Ci, grants: vec![grant], until: None };
        std::sync::Arc::make_mut(&mut gate.ring).insert(job().public(), holder);
        let enrolled = |name: &str, env: &str| Enrolled {
            node: name.parse().unwrap(),
            kid: Kid([1; 16]),
            labels: [("env".to_owned(), env.to_owned())].into(),
        };
        let nodes = vec![enrolled("n1", "prod"), enrolled("n2", "prod"), enrolled("n3", "test")];
        gate.enrol(Enrolment::from(nodes));
        gate
    }

    fn select(selector: &str) -> Audience {
        Audience::Select { selector: selector.to_owned(), roster: ROSTER }
    }

    fn deploy(audience: Audience) -> Intent {
        Intent {
            v: PAYLOAD_VERSION,
            id: IntentId([7; 16]),
            iss: job().kid(),
            iat: NOW,
            exp: NOW.plus_ms(60_000),
            fleet: "acme".parse().unwrap(),
            mode: Mode::Desired,
            action: Action::Deploy {
                service: "web".parse().unwrap(),
                generation: Generation(1),
                release: b"manifest".to_vec(),
                back_to: None,
                emergency: None,
                retry: None,
                on_conflict: None,
                rollback: false,
            },
            audience,
            note: String::new(),
        }
    }

    fn judged(intent: &Intent) -> Result<Requested, Refusal> {
        let bytes = seal(Kind::Intent, &encode(intent), &job());
        controllers_gate().request(&bytes, Way::Bus, (NOW, ROSTER))
    }

    #[test]
    fn a_selection_means_the_nodes_of_the_signed_roster() {
        let taken = judged(&deploy(select("env=prod"))).unwrap();
        let names: Vec<&str> = taken.targets.iter().map(NodeId::as_str).collect();
        assert_eq!(names, ["n1", "n2"]);
        assert!(taken.verified.objection.is_none());
    }

    #[test]
    fn each_wish_that_means_the_wrong_nodes_is_refused_by_its_own_code() {
        let nodes =
            |names: &[&str]| Audience::Nodes(names.iter().map(|it| it.parse().unwrap()).collect());
        let other = Audience::Select { selector: "*".to_owned(), roster: Digest([6; 32]) };
        for (audience, code) in [
            (Audience::All, Code::WRONG_AUDIENCE),
            (nodes(&[]), Code::EMPTY_SELECTION),
            (nodes(&["n9"]), Code::NO_SUCH_NODE),
            (select("env=stage"), Code::EMPTY_SELECTION),
            (select(""), Code::BAD_SELECTOR),
            (other, Code::ROSTER_CHANGED),
        ] {
            let refused = judged(&deploy(audience.clone())).unwrap_err();
            assert_eq!(refused.code, code, "{audience:?}");
        }
    }

    #[test]
    fn whoever_may_not_deploy_on_one_of_the_nodes_may_not_deploy_on_any() {
        let objection = judged(&deploy(select("*"))).unwrap().verified.objection.unwrap();
        assert_eq!(objection.code, Code::NOT_GRANTED);
        assert!(objection.why.contains("n3"), "{}", objection.why);
    }

    #[test]
    fn a_word_about_a_rollout_lives_for_minutes_and_names_its_controllers() {
        let word = |audience: Audience| Intent {
            mode: Mode::Once,
            action: Action::Rollout {
                service: "web".parse().unwrap(),
                rollout: IntentId([8; 16]),
                command: RolloutCommand::Pause,
            },
            audience,
            ..deploy(Audience::All)
        };
        let own = Audience::Nodes(vec!["n1".parse().unwrap()]);
        assert!(judged(&word(own.clone())).unwrap().verified.objection.is_none());
        let stranger = Audience::Nodes(vec!["n2".parse().unwrap()]);
        assert_eq!(judged(&word(stranger)).unwrap_err().code, Code::WRONG_AUDIENCE);
        let old = Intent { iat: UnixMicros(1), exp: UnixMicros(2), ..word(own) };
        let objection = judged(&old).unwrap().verified.objection.unwrap();
        assert_eq!(objection.code, Code::EXPIRED);
    }
}
