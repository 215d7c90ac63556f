//! The gate of the controllers: wishes that mean many nodes, and words about a rollout.
//!
//! Nothing rests on it, since each node checks the same wish again inside its order; but what would be refused there is
//! refused here, before anything has begun.

use std::collections::BTreeSet;

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
        let objection = allowed.err().map(refuse);
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
        let nodes = self.roster.iter();
        nodes.map(|enrolled| (enrolled.node.clone(), enrolled.labels.clone())).collect()
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
