//! Leading: intents for the controllers pass the same gate as in a node, and become rollouts that this controller drives.

use std::collections::{BTreeMap, BTreeSet};

use super::queries::refused;
use super::task::{Controller, Promise};
use crate::config::{self, Mistake};
use crate::domain::code::Code;
use crate::domain::document::rfc3339;
use crate::domain::event::Outcome;
use crate::domain::id::{Generation, IntentId, NodeId, ServiceId};
use crate::domain::intent::{Action, RolloutCommand, Verb};
use crate::domain::release::ReleaseId;
use crate::domain::rollout::view::{kind_of, rollout_name};
use crate::domain::rollout::{
    Command, Input, NodeReport, Observed, OnConflict, Opening, Parameters, Plan, PlanError,
    PlanRequest, Rejection, Retry, Rollout, RolloutFact, Verdict, Why,
};
use crate::domain::text;
use crate::domain::time::Now;
use crate::head::authority::{Requested, Verified, Way};
use crate::head::manifest::check_manifest;
use crate::wire::envelope::ENVELOPE_BYTES_MAX;
use crate::wire::parts;
use crate::wire::payload::{Intent, Reply};
use crate::wire::subject::Inbox;

/// What an order adds to the wish inside it, in bytes: names, digests, the words of canaries, a signature.
const ORDER_BYTES_MAX: usize = 6 * 1024;

/// Why a wish is not taken.
pub(super) type Refused = (Code, String);

/// What a rollout is to bring about.
struct Asked<'a> {
    service: &'a ServiceId,
    generation: Generation,
    release: ReleaseId,
    back_to: Option<ReleaseId>,
    emergency: Option<&'a String>,
    retry: Option<IntentId>,
    on_conflict: Option<OnConflict>,
    rollback: bool,
}

impl<'a> Asked<'a> {
    fn of(intent: IntentId, action: &'a Action) -> Result<Self, Refused> {
        match action {
            Action::Configure { service, generation: Some(generation), node: false, .. } => {
                Ok(Self::without_release(service, *generation, ReleaseId::of(&intent.0)))
            }
            Action::Deploy {
                service,
                generation,
                release,
                back_to,
                emergency,
                retry,
                on_conflict,
                rollback,
            } => Ok(Self {
                service,
                generation: *generation,
                release: ReleaseId::of(release),
                back_to: *back_to,
                emergency: emergency.as_ref(),
                retry: *retry,
                on_conflict: *on_conflict,
                rollback: *rollback,
            }),
            Action::Remove { service, generation } => {
                Ok(Self::without_release(service, *generation, ReleaseId::NOTHING))
            }
            _ => Err((Code::INTERNAL, "it is not about where a service is to be".into())),
        }
    }

    /// Describes what brings no release: `name` stands where one would.
    fn without_release(service: &'a ServiceId, generation: Generation, name: ReleaseId) -> Self {
        Self {
            service,
            generation,
            release: name,
            back_to: None,
            emergency: None,
            retry: None,
            on_conflict: None,
            rollback: false,
        }
    }
}

/// What is answered to a wish for the controllers.
#[derive(Debug)]
pub(super) enum Word {
    /// This, once all that was recorded is durable.
    Promised(Reply),
    /// Nothing: whoever leads answers.
    Nothing,
}

impl Controller {
    /// Judges an intent that is meant for the controllers, and begins with it where this one leads.
    pub(super) fn requested(&mut self, now: Now, reply: Option<Inbox>, bytes: &[u8]) {
        let request = match self.authority.request(bytes, Way::Bus, (now.at, self.roster)) {
            Ok(request) => request,
            Err(refusal) if self.leads().is_some() => return self.refuse(reply, &refusal),
            Err(_) => return,
        };
        let (id, actor) = (request.verified.payload.id, request.verified.actor.clone());
        let to = self.heard_by(reply, &actor.name);
        match (self.request(now, request, bytes), to) {
            (Ok(Word::Promised(reply)), Some(to)) => {
                self.recorder.promise(Promise::Answer(to, id, Box::new(reply)));
                self.keep_what_is_due();
            }
            (Err((code, why)), Some(to)) => {
                self.reply(&to, id, refused(code, text::brief(why, text::WHY_BYTES_MAX)));
            }
            (Ok(_) | Err(_), _) => {}
        }
    }

    /// Takes a wish that passed the gate. Those who do not lead keep its bytes: they may lead it to its end.
    pub(super) fn request(
        &mut self,
        now: Now,
        request: Requested,
        bytes: &[u8],
    ) -> Result<Word, Refused> {
        let Requested { verified, targets } = request;
        let is_known = self.rollouts.all.contains_key(&verified.payload.id);
        if let Some(refusal) = verified.objection.as_ref().filter(|_| !is_known) {
            return match self.leads() {
                Some(_) => Err((refusal.code, refusal.why.clone())),
                None => Ok(Word::Nothing),
            };
        }
        let is_led = matches!(
            verified.payload.action,
            Action::Deploy { .. } | Action::Remove { .. } | Action::Configure { .. }
        );
        let Some(term) = self.leads() else {
            if is_led {
                self.keep_wish(verified.payload.id, bytes)?;
            }
            return Ok(Word::Nothing);
        };
        match &verified.payload.action {
            _ if is_led && is_known => self.known(&verified, bytes),
            _ if is_led => self.begin(now, term, &verified, targets, bytes),
            Action::Rollout { service, rollout, command } => {
                self.command(now, &verified, (service, *rollout, *command))
            }
            _ => Err((Code::NOT_YET, "controllers lead releases only, in this version".into())),
        }
    }

    fn keep_wish(&self, intent: IntentId, bytes: &[u8]) -> Result<(), Refused> {
        let is_rollout = self.rollouts.all.contains_key(&intent);
        let kept = self.wishes.keep(intent, bytes, is_rollout);
        kept.map_err(|why| (Code::IO, format!("the wish cannot be kept: {why}")))?;
        self.prune_wishes();
        Ok(())
    }

    /// Answers a repeat of a wish that became a rollout.
    fn known(&mut self, wish: &Verified<Intent>, bytes: &[u8]) -> Result<Word, Refused> {
        let intent = wish.payload.id;
        if self.wish_of(intent).is_some_and(|known| *known != *bytes) {
            return Err((Code::REPLAYED, "another wish with this id was taken".into()));
        }
        match self.rollouts.all.get(&intent).and_then(|it| it.story.records().first()) {
            Some(first) => Ok(Word::Promised(Reply::Accepted { event: first.id.clone() })),
            None => Ok(Word::Nothing),
        }
    }

    /// Opens a rollout.
    fn begin(
        &mut self,
        now: Now,
        term: u64,
        wish: &Verified<Intent>,
        targets: BTreeSet<NodeId>,
        bytes: &[u8],
    ) -> Result<Word, Refused> {
        let Verified { payload: intent, actor, .. } = wish;
        let Asked {
            service,
            generation,
            release: id,
            back_to,
            emergency,
            retry,
            on_conflict,
            rollback,
        } = Asked::of(intent.id, &intent.action)?;
        if bytes.len() + ORDER_BYTES_MAX > ENVELOPE_BYTES_MAX {
            let why = format!("with {} bytes it does not fit an order", bytes.len());
            return Err((Code::TOO_LARGE, why));
        }
        if let Action::Configure { unset, .. } = &intent.action {
            self.may_unset(service, unset, &targets)?;
        }
        let (targets, parameters) = match &intent.action {
            Action::Deploy { release, .. } => {
                let manifest =
                    check_manifest(service, release).map_err(|why| (Code::BAD_MANIFEST, why))?;
                let layer = config::release_layer(id, manifest);
                let parameters = config::rollouts_of(layer).map_err(mistaken)?.parameters;
                (targets, parameters.on_the_way(rollback))
            }
            _ => self.holders(service, targets)?,
        };
        // Before its number is looked at: whoever waited for the same end has signed the same one, and is to wait again.
        self.has_room(service, on_conflict.unwrap_or(parameters.on_conflict))?;
        self.is_newest(service, generation, &targets)?;
        for (name, check) in &parameters.checks {
            self.is_measured(&check.probe)
                .map_err(|(code, why)| (code, format!("rollout.check.{name}: {why}")))?;
        }
        if rollback && !self.has_succeeded(service, id, &targets) {
            let why = format!("release {} of {service} never succeeded here", id.short());
            return Err((Code::NO_EARLIER_RELEASE, why));
        }
        let retry = retry.map(|of| self.goes_on(of, (service, id), &targets)).transpose()?;
        let before = targets.iter().map(|node| (node.clone(), self.observed(node, service)));
        let before: BTreeMap<NodeId, Observed> = before.collect();
        let away: BTreeSet<NodeId> =
            targets.iter().filter(|node| self.projection.is_lost(node)).cloned().collect();
        let mut plan = Plan::new(&PlanRequest {
            intent: intent.id,
            service: service.clone(),
            generation,
            release: id,
            back_to,
            emergency: emergency.cloned(),
            retry,
            targets: &targets,
            roster: &self.authority.roster(),
            roster_digest: self.roster,
            away: &away,
            is_new: targets.iter().all(|node| self.is_new_to(node, service)),
            parameters: &parameters,
        })
        .map_err(|why| (plan_code(&why), why.to_string()))?;
        plan.configures = matches!(intent.action, Action::Configure { .. });
        let events = Rollout::open(
            Opening {
                plan,
                by: Some(actor.clone()),
                reason: emergency.cloned().unwrap_or_default(),
                origins: parameters.origins.clone(),
                before,
                controller: self.setup.controller.clone(),
                term,
            },
            now.at,
        );
        if let Some(event) = events.first().cloned() {
            parts::cut(RolloutFact { rollout: intent.id, event })
                .map_err(|why| (Code::NO_PLAN, format!("over {} nodes: {why}", targets.len())))?;
        }
        self.keep_wish(intent.id, bytes)?;
        self.supersede(now, service, intent.id)?;
        let event = self.open_rollout(now, intent.id, service, events);
        for node in away {
            let report = NodeReport::Unreachable;
            let input = Input::Node { node, event: None, report };
            drop(self.drive(now, intent.id, &input));
        }
        Ok(Word::Promised(Reply::Accepted { event }))
    }

    /// Says whether a release was brought to its end by a rollout that is remembered, or is good on one of these nodes:
    /// whoever goes back passes the canary by.
    fn has_succeeded(
        &self,
        service: &ServiceId,
        release: ReleaseId,
        targets: &BTreeSet<NodeId>,
    ) -> bool {
        let all = self.rollouts.of_service(service);
        let by_rollout = all.iter().any(|(_, state)| {
            state.verdict() == Some(Verdict::Succeeded) && state.plan().release == release
        });
        let is_good = |node: &NodeId| {
            let known = self.projection.node(node).and_then(|it| it.releases().get(service));
            known.is_some_and(|it| it.good.iter().any(|good| good.release == Some(release)))
        };
        by_rollout || targets.iter().any(is_good)
    }

    /// Returns the nodes that have a service, those of which nobody can say among them, and how something is done to it
    /// there: as many at a time as its last release said.
    fn holders(
        &self,
        service: &ServiceId,
        mut targets: BTreeSet<NodeId>,
    ) -> Result<(BTreeSet<NodeId>, Parameters), Refused> {
        let has_it = |node: &NodeId| {
            let known = self.projection.node(node);
            self.projection.is_lost(node)
                || known.is_none_or(|known| known.services().contains_key(service))
        };
        targets.retain(has_it);
        if targets.is_empty() {
            let why = format!("no node that is meant has a service called {service}");
            return Err((Code::NO_SUCH_SERVICE, why));
        }
        let all = self.rollouts.of_service(service);
        let mut plans = all.iter().map(|(_, state)| state.plan());
        let last = plans.find(|plan| kind_of(plan) == "deploy");
        let parameters = last.map(|plan| plan.parameters.clone()).unwrap_or_default();
        Ok((targets, parameters.without_release()))
    }

    /// Checks that a wish sets no more what is a key: a node takes it from an order as it is.
    fn may_unset(
        &self,
        service: &ServiceId,
        unset: &BTreeSet<String>,
        targets: &BTreeSet<NodeId>,
    ) -> Result<(), Refused> {
        let nodes = targets.iter().filter_map(|node| self.projection.node(node));
        let known: Vec<_> = nodes.filter_map(|node| node.overrides().get(service)).collect();
        config::keys::check_unset(unset, |key| known.iter().any(|known| known.knows(key)))
            .map_err(|why| (Code::BAD_PARAMETER, why))
    }

    /// Returns what an earlier rollout of the same release has done already.
    fn goes_on(
        &self,
        of: IntentId,
        (service, release): (&ServiceId, ReleaseId),
        targets: &BTreeSet<NodeId>,
    ) -> Result<Retry, Refused> {
        let name = rollout_name(of);
        let state = self.rollouts.all.get(&of).and_then(|driven| driven.story.state());
        let is_it = |state: &&Rollout| state.plan().service == *service;
        let Some(state) = state.filter(is_it) else {
            return Err((
                Code::NO_SUCH_ROLLOUT,
                format!("there is no rollout {name} of {service}"),
            ));
        };
        if state.plan().release != release {
            let why = format!("{name} was about another release than this");
            return Err((Code::ROLLOUT_NOT_SO, why));
        }
        let (left, retry) = state.retry().map_err(|why| rejected(&why))?;
        match targets.iter().find(|node| !left.contains(*node)) {
            None => Ok(retry),
            Some(node) => {
                Err((Code::ROLLOUT_NOT_SO, format!("{name} left nothing to do on {node}")))
            }
        }
    }

    /// Says whether the number of a wish is higher than that of each one before.
    fn is_newest(
        &self,
        service: &ServiceId,
        generation: Generation,
        targets: &BTreeSet<NodeId>,
    ) -> Result<(), Refused> {
        if generation.0 >= u64::MAX - 1 || generation.0 == 0 {
            return Err((Code::BAD_PAYLOAD, format!("{generation} is no number of a wish")));
        }
        let led = self.rollouts.of_service(service).into_iter().next();
        let led = led.map(|(_, state)| {
            (state.plan().generation.0.saturating_add(1), "a rollout".to_owned())
        });
        let there = targets
            .iter()
            .map(|node| (self.projection.generation(node, service).0, format!("node {node}")));
        match led.into_iter().chain(there).find(|(known, _)| generation.0 <= *known) {
            None => Ok(()),
            Some((known, who)) => Err((
                Code::STALE_GENERATION,
                format!("{who} has taken wish {known} for {service}, and this is {generation}"),
            )),
        }
    }

    /// Says whether a rollout of the service may begin: none is under way, or it ends that one.
    fn has_room(&self, service: &ServiceId, on_conflict: OnConflict) -> Result<(), Refused> {
        match (on_conflict, self.under_way(service).first()) {
            (OnConflict::Supersede, _) | (_, None) => Ok(()),
            // Whoever asked waits for the end of it and asks again: nothing is kept for those who went away.
            (OnConflict::Reject | OnConflict::Queue, Some(other)) => {
                let begun = self.begun(*other).unwrap_or_default();
                let name = rollout_name(*other);
                let why = format!("{name} of {service} is under way{begun}");
                Err((Code::ROLLOUT_UNDER_WAY, why))
            }
        }
    }

    /// Ends what is in the way of a rollout that has room.
    fn supersede(&mut self, now: Now, service: &ServiceId, with: IntentId) -> Result<(), Refused> {
        for other in self.under_way(service) {
            let command = Command::Supersede { with };
            let input = Input::Command { intent: with, by: None, command };
            self.drive(now, other, &input).map_err(|why| rejected(&why))?;
        }
        Ok(())
    }

    /// Returns the rollouts of a service that have not ended.
    fn under_way(&self, service: &ServiceId) -> Vec<IntentId> {
        let all = self.rollouts.of_service(service).into_iter();
        all.filter(|(_, state)| state.verdict().is_none()).map(|(intent, _)| intent).collect()
    }

    /// Says who asked for a rollout, and when.
    fn begun(&self, rollout: IntentId) -> Option<String> {
        let (at, planned) = self.rollouts.all.get(&rollout)?.story.planned()?;
        let since = rfc3339(at);
        Some(match &planned.by {
            Some(by) if by.note.is_empty() => format!(" since {since}, asked for by {}", by.name),
            Some(by) => format!(" since {since}, asked for by {} ({})", by.name, by.note),
            None => format!(" since {since}"),
        })
    }

    /// Returns what runs on a node, as its log tells it.
    fn observed(&self, node: &NodeId, service: &ServiceId) -> Observed {
        let Some(known) = self.projection.node(node) else { return Observed::default() };
        let release = known.releases().get(service).and_then(|it| it.current.as_ref());
        let healthy = known.services().get(service).is_some_and(|known| {
            let mut wanted = known.slots().filter(|(index, _)| known.wants(*index)).peekable();
            wanted.peek().is_some() && wanted.all(|(_, slot)| slot.is_ready() || slot.at_rest())
        });
        let judged = release.is_none_or(|mark| mark.healthy);
        Observed { release: release.map(|mark| mark.release), healthy: healthy && judged }
    }

    /// Says whether a node is there and, as far as anything is known of it, has nothing of a service and never had a
    /// release of it. Of a node that was just made nothing has arrived; one that knows better refuses.
    fn is_new_to(&self, node: &NodeId, service: &ServiceId) -> bool {
        let known = self.projection.node(node).filter(|_| !self.projection.is_lost(node));
        known.is_some_and(|known| {
            !known.services().contains_key(service) && !known.releases().contains_key(service)
        })
    }

    /// Lets a rollout take in what somebody says of it.
    fn command(
        &mut self,
        now: Now,
        wish: &Verified<Intent>,
        (service, rollout, command): (&ServiceId, IntentId, RolloutCommand),
    ) -> Result<Word, Refused> {
        let driven = self.rollouts.all.get(&rollout);
        let state =
            driven.and_then(|it| it.story.state()).filter(|it| it.plan().service == *service);
        let (Some(driven), Some(state)) = (driven, state) else {
            let name = rollout_name(rollout);
            return Err((
                Code::NO_SUCH_ROLLOUT,
                format!("there is no rollout {name} of {service}"),
            ));
        };
        self.authority.may(&wish.actor, Verb::Deploy, service, state.plan().targets())?;
        let id = wish.payload.id;
        let by_it =
            |it: &&crate::domain::rollout::view::Record| *it.event.cause() == Why::Intent(id);
        if let Some(first) = driven.story.records().iter().find(by_it) {
            return Ok(Word::Promised(Reply::Accepted { event: first.id.clone() }));
        }
        // Whoever led it to its end.
        if let Some(verdict) = state.verdict() {
            return Err(rejected(&Rejection::Ended(verdict.as_str())));
        }
        let last = driven.story.records().last().map(|record| record.id.clone());
        let command = match command {
            RolloutCommand::Pause => Command::Pause,
            RolloutCommand::Resume => Command::Resume,
            RolloutCommand::Promote => Command::Promote,
            RolloutCommand::Approve => Command::Approve,
            RolloutCommand::Abort { rollback } => Command::Abort { rollback },
        };
        let next = self.recorder.event_id(self.recorder.next());
        let input = Input::Command { intent: id, by: Some(wish.actor.clone()), command };
        let count = self.drive(now, rollout, &input).map_err(|why| rejected(&why))?;
        match (count, last) {
            (0, Some(event)) => {
                let outcome = Outcome::Done { changed: false };
                Ok(Word::Promised(Reply::Outcome { outcome, event }))
            }
            _ => Ok(Word::Promised(Reply::Accepted { event: next })),
        }
    }
}

fn rejected(why: &Rejection) -> Refused {
    let code = match why {
        Rejection::SamePerson(_) => Code::NOT_GRANTED,
        _ => Code::ROLLOUT_NOT_SO,
    };
    (code, why.to_string())
}

fn plan_code(why: &PlanError) -> Code {
    match why {
        PlanError::Empty => Code::EMPTY_SELECTION,
        PlanError::NotEnrolled(_) => Code::NO_SUCH_NODE,
        PlanError::TooManyWaves(_) | PlanError::Parameters(_) => Code::NO_PLAN,
    }
}

fn mistaken(mistakes: Vec<Mistake>) -> Refused {
    let code = mistakes.first().map_or(Code::BAD_MANIFEST, |mistake| mistake.code);
    let told = mistakes.iter().map(|mistake| format!("{}: {}", mistake.place(), mistake.what));
    (code, told.collect::<Vec<_>>().join("; "))
}
