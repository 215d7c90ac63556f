//! All rollouts: their facts from whichever log, and the way from a fact on the disk to an order.
//!
//! The core decides; here its facts are recorded, and only what is durable is acted upon: each rollout has a second state
//! that follows the disk, and orders come from that one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::links::{self, Question};
use super::reports::{Reports, Said};
use super::task::{Controller, Promise, Role};
use super::wake::Wake;
use super::wishes::{Wishes, is_behind, manifest_in};
use crate::domain::event::{Context, Event};
use crate::domain::id::{Digest, EpochId, EventId, Generation, IntentId, NodeId, Seq, ServiceId};
use crate::domain::policy::KeyClass;
use crate::domain::rollout::view::Record;
use crate::domain::rollout::{
    Command, Concerns, Failure, Input, NodeReport, NodeState, Rejection, ReleaseId, Rollout,
    RolloutEvent, RolloutFact, Story, Wished,
};
use crate::domain::selector::Selector;
use crate::domain::time::{Now, UnixMicros};
use crate::head::recorder::Recorder;
use crate::wire::envelope::ENVELOPE_BYTES_MAX;
use crate::wire::parts::{self, Joiner};
use crate::wire::payload::{Ask, Audience, Body, EventRecord};

/// How long every deadline is put off when a leader begins: until the nodes have told it what they did meanwhile.
const GRACE_MS: u64 = 30_000;

/// How many ticks lie between two questions for a wish that is not here.
const ASK_TICKS: u64 = 10;

/// One rollout.
#[derive(Debug, Default)]
pub(super) struct Driven {
    pub(super) story: Story,
    /// What is on the disk of it, and how many facts that are.
    on_disk: Option<Rollout>,
    kept: usize,
    turns: u32,
    /// The next deadline.
    wake_at: Option<UnixMicros>,
    /// When it was told last that time passed.
    ticked_at: UnixMicros,
    /// Before that it is not shown again to those who watch it.
    pub(super) show_at: Option<Instant>,
    /// The signed wish, once it was read from its file.
    pub(super) wish: Option<Arc<[u8]>>,
    pub(super) version: Option<(ReleaseId, String)>,
    /// The digest of the plan, once an order needed it.
    pub(super) digest: Option<Digest>,
    /// Which nodes and keys it is about, where it sets some, once that was read from its file.
    configured: Option<(Selector, BTreeSet<String>)>,
    /// Where it wants the service, once that was read from its file.
    pub(super) wished: Option<Wished>,
    /// The tick at which the other controllers were asked for the wish.
    asked_at: Option<u64>,
}

/// Every rollout that is remembered.
#[derive(Debug, Default)]
pub(super) struct Rollouts {
    pub(super) all: BTreeMap<IntentId, Driven>,
    pub(super) reports: Reports,
    /// The facts of each controller that are on their way in pieces.
    joiners: BTreeMap<NodeId, Joiner>,
    /// How far the own log is folded: its facts are taken in when they are made, and come again with the arrivals.
    own: Option<(EpochId, Seq)>,
}

impl Driven {
    /// Returns the facts that are on the disk.
    pub(super) fn told(&self) -> &[Record] {
        let records = self.story.records();
        &records[..self.kept.min(records.len())]
    }

    /// Returns the state that the disk knows.
    pub(super) fn on_disk(&self) -> Option<&Rollout> {
        self.on_disk.as_ref()
    }

    /// Says whether it is over, as the disk knows it.
    pub(super) fn is_over(&self) -> bool {
        self.on_disk.as_ref().is_some_and(|state| state.verdict().is_some())
    }

    /// Says whether it is over, or stands until a person lets it go on.
    pub(super) fn stands(&self) -> bool {
        self.on_disk.as_ref().is_some_and(|state| state.exit_code().is_some())
    }

    /// Says whether its nodes were told to go back.
    pub(super) fn has_turned(&self) -> bool {
        let turned = |it: &Record| matches!(it.event, RolloutEvent::RollbackStarted(_));
        self.told().iter().any(turned)
    }

    fn is_open(&self) -> bool {
        self.story.state().is_some_and(|state| state.verdict().is_none())
    }

    /// Takes in that so many facts are on the disk; says whose orders that may change.
    fn keep(&mut self, facts: usize) -> Concerned {
        let records = self.story.records();
        let facts = facts.min(records.len());
        let goes_on = self.turns == self.story.turns() && self.kept <= facts;
        let before = self.on_disk.take().filter(|_| goes_on);
        let fresh = &records[if before.is_some() { self.kept } else { 0 }..facts];
        let mut concerned = match &before {
            Some(_) => Concerned::Nodes(BTreeSet::new()),
            None => {
                self.digest = None;
                Concerned::All
            }
        };
        self.on_disk = match before {
            Some(mut state) => {
                let follows = fresh.iter().try_for_each(|record| state.evolve(&record.event));
                follows.is_ok().then_some(state)
            }
            None => Rollout::replay(fresh.iter().map(|record| &record.event)).ok().flatten(),
        };
        for record in fresh {
            match (record.event.concerns(), &mut concerned) {
                (Concerns::Nodes(nodes), Concerned::Nodes(all)) => {
                    all.extend(nodes.iter().cloned());
                }
                (Concerns::All, _) => concerned = Concerned::All,
                (Concerns::Nodes(_), Concerned::All) => {}
            }
        }
        (self.kept, self.turns) = (facts, self.story.turns());
        concerned
    }

    /// Returns which nodes and keys the wish behind it is about, where it is here and sets some.
    pub(super) fn configured(
        &mut self,
        intent: IntentId,
        wishes: &Wishes,
    ) -> Option<&(Selector, BTreeSet<String>)> {
        self.configured = self.configured.take().or_else(|| wishes.configured(intent));
        self.configured.as_ref()
    }

    /// Returns where the wish behind it wants the service, where it is here and says so.
    pub(super) fn wished(&mut self, intent: IntentId, wishes: &Wishes) -> Option<&Wished> {
        self.wished = self.wished.take().or_else(|| wishes.wished(intent));
        self.wished.as_ref()
    }

    fn look(&mut self) {
        let open = self.story.state().filter(|state| state.verdict().is_none());
        self.wake_at = open.and_then(Rollout::wake_at);
    }
}

/// Makes rows of the facts of one rollout, which get their numbers before they are recorded.
struct Pen<'a> {
    recorder: &'a Recorder<Promise>,
    intent: IntentId,
    service: &'a ServiceId,
    next: Seq,
    facts: Vec<(Context, Event)>,
}

impl<'a> Pen<'a> {
    fn new(recorder: &'a Recorder<Promise>, intent: IntentId, service: &'a ServiceId) -> Self {
        Self { recorder, intent, service, next: recorder.next(), facts: Vec::new() }
    }

    /// Returns the name of the event that the fact becomes; none when it fits no log.
    fn write(&mut self, event: &RolloutEvent) -> Option<EventId> {
        let intent = self.intent;
        info!(rollout = %intent, event = event.kind(), text = event.text(), "rollout");
        let parts = match parts::cut(RolloutFact { rollout: intent, event: event.clone() }) {
            Ok(parts) => parts,
            Err(why) => {
                // A plan is looked at before it is taken, and no fact names more than its nodes.
                error!(%intent, %why, "a fact of a rollout fits no log");
                return None;
            }
        };
        self.next = Seq(self.next.0 + parts.len() as u64);
        self.facts.extend(parts.into_iter().map(|fact| {
            let context = fact.context(self.service);
            (context, Event::Rollout(Box::new(fact)))
        }));
        // It is one where the last of its pieces stands.
        Some(self.recorder.event_id(Seq(self.next.0 - 1)))
    }
}

/// Whose orders may be others than before.
#[derive(Debug)]
pub(super) enum Concerned {
    Nodes(BTreeSet<NodeId>),
    All,
}

impl Rollouts {
    /// Takes in an event of a controller's log, in the order of that log.
    pub(super) fn fact(&mut self, own: &NodeId, record: &EventRecord, body: Body) {
        let Body::Known(Event::Rollout(fact)) = body else { return };
        if record.origin == *own {
            let place = (record.epoch, record.seq);
            if self.own.is_some_and(|known| place <= known) {
                return;
            }
            self.own = Some(place);
        }
        let joiner = self.joiners.entry(record.origin.clone()).or_default();
        let Some(RolloutFact { rollout, event }) = joiner.take(*fact) else { return };
        let driven = self.all.entry(rollout).or_default();
        driven.story.take(Record { id: record.id(), at: record.at, event });
        // While this controller leads, what others wrote is not in force, and what it wrote itself may be on its way.
        let is_mine = driven.story.state().is_some_and(|state| state.leader().0 == own);
        // Orders are looked at as a whole when this controller begins to lead.
        let _concerned = driven.keep(match is_mine && record.origin != *own {
            true => driven.kept,
            false => driven.story.records().len(),
        });
        driven.look();
    }

    /// Takes in that every fact is on the disk, since all of them were read from there: in which order the logs were does not
    /// count.
    pub(super) fn all_kept(&mut self) {
        for driven in self.all.values_mut() {
            driven.keep(driven.story.records().len());
        }
    }

    /// Returns the rollouts that have not ended.
    pub(super) fn open(&self) -> Vec<IntentId> {
        let open = self.all.iter().filter(|(_, driven)| driven.is_open());
        open.map(|(intent, _)| *intent).collect()
    }

    /// Returns the rollouts of a service, the last one first.
    pub(super) fn of_service(&self, service: &ServiceId) -> Vec<(IntentId, &Rollout)> {
        let states = self.all.iter().filter_map(|(id, it)| Some((*id, it.story.state()?)));
        let mut found: Vec<_> = states.filter(|(_, it)| it.plan().service == *service).collect();
        found.sort_by_key(|(_, state)| std::cmp::Reverse(state.plan().generation));
        found
    }
}

impl Controller {
    /// Returns the term in which this controller leads.
    pub(super) fn leads(&self) -> Option<u64> {
        match self.role {
            Role::Leader(term) => Some(term),
            Role::Rising(_) | Role::Standby(_) => None,
        }
    }

    /// Lets a rollout take in something. Says how many facts followed; none when this controller does not lead it.
    ///
    /// # Errors
    /// Why the core does not take it.
    pub(super) fn drive(
        &mut self,
        now: Now,
        intent: IntentId,
        input: &Input,
    ) -> Result<usize, Rejection> {
        let Some(term) = self.leads() else { return Ok(0) };
        let Some(driven) = self.rollouts.all.get_mut(&intent) else { return Ok(0) };
        let Some(state) = driven.story.state() else { return Ok(0) };
        let is_mine = state.leader() == (&self.setup.controller, term);
        if !is_mine && !matches!(input, Input::TakenOver { .. }) {
            return Ok(0);
        }
        let service = state.plan().service.clone();
        // A clock that was set back must not let a rollout go back in time.
        let last = driven.story.records().last().map(|record| record.at);
        let now = Now { at: last.unwrap_or_default().max(now.at), ..now };
        let mut pen = Pen::new(&self.recorder, intent, &service);
        let count = driven.story.decide(now.at, input, |event| pen.write(event))?;
        self.written(now, intent, pen.facts);
        Ok(count)
    }

    /// The same for what the core never refuses.
    pub(super) fn drive_on(&mut self, now: Now, intent: IntentId, input: &Input) {
        if let Err(why) = self.drive(now, intent, input) {
            error!(%intent, %why, "a rollout did not take what happened");
        }
    }

    /// Writes the first facts of a rollout down; what follows from them waits for the disk.
    pub(super) fn open_rollout(
        &mut self,
        now: Now,
        intent: IntentId,
        service: &ServiceId,
        events: Vec<RolloutEvent>,
    ) -> EventId {
        let mut pen = Pen::new(&self.recorder, intent, service);
        let story = &mut self.rollouts.all.entry(intent).or_default().story;
        for event in events {
            let Some(id) = pen.write(&event) else { break };
            story.take(Record { id, at: now.at, event });
        }
        let first = story.records().first().map(|record| record.id.clone());
        self.written(now, intent, pen.facts);
        first.unwrap_or_else(|| self.recorder.event_id(self.recorder.next()))
    }

    /// Hands facts that are in force to the log.
    fn written(&mut self, now: Now, intent: IntentId, mut facts: Vec<(Context, Event)>) {
        if facts.is_empty() {
            return;
        }
        facts.extend(self.alerts(intent, &facts));
        let last = Seq(self.recorder.next().0 + facts.len() as u64 - 1);
        let last = self.recorder.event_id(last);
        self.rollouts.own = Some((last.epoch, last.seq));
        let Some(driven) = self.rollouts.all.get_mut(&intent) else { return };
        driven.look();
        let count = driven.story.records().len();
        self.recorder.record(now, facts);
        self.recorder.promise(Promise::Rollout(intent, count));
    }

    /// So many facts of a rollout are on the disk: what follows from them may be done.
    pub(super) fn rollout_kept(&mut self, now: Now, intent: IntentId, facts: usize) {
        let Some(driven) = self.rollouts.all.get_mut(&intent) else { return };
        let own = &self.setup.controller;
        // A promise from before another took over counts facts that are not in force any more.
        let is_mine = driven.story.state().is_some_and(|state| state.leader().0 == own);
        let concerned = driven.keep(if is_mine { facts } else { driven.story.records().len() });
        if let Some(verdict) = driven.on_disk().and_then(Rollout::verdict) {
            info!(rollout = %intent, state = verdict.as_str(), "a rollout ended");
        }
        match concerned {
            Concerned::Nodes(nodes) => self.look_at_orders_of(intent, nodes),
            Concerned::All => self.look_at_orders(intent),
        }
        self.send_orders(now);
        self.look_at_checks(now);
        self.wake_watchers();
    }

    /// Goes on with every rollout that has not ended, first of all in the new term.
    pub(super) fn lead_on(&mut self, now: Now, term: u64) {
        self.orders.begin_anew();
        self.placements.begin_anew();
        for intent in self.rollouts.open() {
            self.take_over(now, term, intent);
        }
        for intent in self.rollouts.all.keys().copied().collect::<Vec<_>>() {
            self.look_at_orders(intent);
        }
        self.send_orders(now);
    }

    fn take_over(&mut self, now: Now, term: u64, intent: IntentId) {
        let controller = self.setup.controller.clone();
        let lead = Input::TakenOver { controller, term, grace_ms: GRACE_MS };
        self.drive_on(now, intent, &lead);
        self.tell_again(now, intent);
    }

    /// Goes on with rollouts of earlier leaders that were not known when this one began: whoever led before may have been
    /// out of reach then, or have begun one before it heard that it leads no more.
    pub(super) fn lead_late(&mut self, now: Now) {
        let Some(term) = self.leads() else { return };
        for intent in self.rollouts.open() {
            let state = self.rollouts.all.get(&intent).and_then(|driven| driven.story.state());
            let Some(state) = state else { continue };
            let (leader, of) = state.leader();
            // While more of its log is on its way it may say that the rollout is over.
            if of >= term || self.is_on_its_way(leader) {
                continue;
            }
            let all = self.rollouts.of_service(&state.plan().service);
            let is_alike = |(_, other): &(IntentId, &Rollout)| {
                other.plan().configures == state.plan().configures
            };
            let newest = all.into_iter().find(is_alike);
            let newest = newest.map(|(newest, _)| newest).filter(|newest| *newest != intent);
            info!(rollout = %intent, %leader, term = of, "goes on with what another began");
            self.take_over(now, term, intent);
            if let Some(with) = newest {
                let command = Command::Supersede { with };
                self.drive_on(now, intent, &Input::Command { intent: with, by: None, command });
            }
        }
    }

    /// Lets a rollout take in all that its nodes said of it, and which of them are there: nobody may have listened, or
    /// only an earlier leader.
    pub(super) fn tell_again(&mut self, now: Now, intent: IntentId) {
        let Some(state) = self.rollouts.all.get(&intent).and_then(|it| it.story.state()) else {
            return;
        };
        let plan = state.plan().clone();
        for node in plan.targets() {
            for (id, report) in self.rollouts.reports.about(&plan, node) {
                let input = Input::Node { node: node.clone(), event: Some(id), report };
                self.drive_on(now, intent, &input);
            }
            self.look_at_return(now, intent, node);
            let report = match self.projection.is_lost(node) {
                true => NodeReport::Unreachable,
                false if self.projection.is_heard(node, now) => NodeReport::Seen,
                false => continue,
            };
            self.drive_on(now, intent, &Input::Node { node: node.clone(), event: None, report });
        }
    }

    /// A node said something: where it is about a release, its rollout takes it in.
    pub(super) fn node_said(&mut self, now: Now, id: &EventId, envelope: &ByteBuf) {
        let Some(heard) = self.rollouts.reports.take(id, envelope) else { return };
        let node = &id.origin;
        match heard.said {
            Said::Took { intent, step, term } => {
                if self.leads() == Some(term) {
                    self.orders.taken(&(intent, node.clone(), step));
                    self.look_at_return(now, intent, node);
                }
            }
            Said::Reports(report) => {
                if let NodeReport::Failed { failure: Failure { tail: Some(tail), .. }, .. } =
                    &report
                {
                    self.want_tail(node, tail);
                }
                let mut open = self.rollouts.open();
                open.retain(|intent| self.is_of(intent, &heard.service));
                for intent in open {
                    let (node, event) = (node.clone(), Some(id.clone()));
                    let input = Input::Node { node, event, report: report.clone() };
                    self.drive_on(now, intent, &input);
                }
            }
        }
    }

    /// Takes in that a node which is to go back has nothing to undo: it took the order and never changed, or was back
    /// before, and says no more of it.
    fn look_at_return(&mut self, now: Now, intent: IntentId, node: &NodeId) {
        let state = self.rollouts.all.get(&intent).and_then(|driven| driven.story.state());
        let is_awaited =
            |state: &&Rollout| matches!(state.node(node), Some(NodeState::Returning { .. }));
        let Some(state) = state.filter(is_awaited) else { return };
        let plan = state.plan();
        let generation = Generation(plan.generation.0.saturating_add(1));
        let known = self.projection.node(node).and_then(|it| it.releases().get(&plan.service));
        let known = known.filter(|it| it.generation == generation && it.trial.is_none());
        let to = known.map(|it| it.current.as_ref().map(|mark| mark.release));
        let Some(to) = to.filter(|to| *to != Some(plan.release)) else { return };
        let report = NodeReport::Returned { generation, to, took_ms: 0, kept_serving: true };
        self.drive_on(now, intent, &Input::Node { node: node.clone(), event: None, report });
    }

    fn is_of(&self, intent: &IntentId, service: &ServiceId) -> bool {
        let state = self.rollouts.all.get(intent).and_then(|driven| driven.story.state());
        state.is_some_and(|state| state.plan().service == *service)
    }

    /// A node fell silent, or is heard again.
    pub(super) fn node_is(&mut self, now: Now, node: &NodeId, event: EventId, report: &NodeReport) {
        for intent in self.rollouts.open() {
            let is_target = |state: &Rollout| state.node(node).is_some();
            let driven = self.rollouts.all.get(&intent);
            if driven.and_then(|it| it.story.state()).is_some_and(is_target) {
                let (node, event) = (node.clone(), Some(event.clone()));
                self.drive_on(now, intent, &Input::Node { node, event, report: report.clone() });
            }
        }
        if *report == NodeReport::Seen {
            self.orders.seen(node);
            self.send_orders(now);
        }
    }

    /// Lets time pass for the rollouts whose deadline is over.
    pub(super) fn tick_rollouts(&mut self, now: Now) {
        if self.leads().is_none() {
            return;
        }
        for intent in self.rollouts.open() {
            let Some(driven) = self.rollouts.all.get_mut(&intent) else { continue };
            if driven.wake_at.is_some_and(|at| at <= now.at) {
                driven.ticked_at = now.at;
                self.drive_on(now, intent, &Input::Tick);
            }
        }
    }

    /// Returns how long nothing falls due, as far as rollouts are concerned.
    pub(super) fn rollouts_wait(&self, now: Now) -> Option<Duration> {
        self.leads()?;
        let due = self.rollouts.all.values().filter_map(|driven| {
            // What a deadline did not change is looked at again with the next tick of the task.
            driven.wake_at.filter(|at| *at > driven.ticked_at)
        });
        due.min().map(|at| Duration::from_millis(at.ms_since(now.at).saturating_add(1)))
    }

    /// Returns the signed wish of a rollout, and remembers what people call its release.
    pub(super) fn wish_of(&mut self, intent: IntentId) -> Option<Arc<[u8]>> {
        let driven = self.rollouts.all.get_mut(&intent)?;
        if driven.wish.is_none() {
            let bytes = self.wishes.read(intent)?;
            let plan = driven.story.state().map(Rollout::plan);
            if plan.is_some_and(|plan| !is_behind(&bytes, plan)) {
                return None;
            }
            if let Some((release, manifest)) = manifest_in(&bytes) {
                driven.version = Some((release, manifest.version));
            }
            driven.wish = Some(bytes.into());
        }
        driven.wish.clone()
    }

    /// Asks the other controllers for the signed wish of a rollout: they heard it when this one did not. However many orders
    /// wait for it, it is asked for once.
    pub(super) fn ask_for_wish(&mut self, rollout: IntentId) {
        let Some(driven) = self.rollouts.all.get_mut(&rollout) else { return };
        if driven.asked_at.is_some_and(|at| self.ticks < at.saturating_add(ASK_TICKS)) {
            return;
        }
        driven.asked_at = Some(self.ticks);
        let own = &self.setup.controller;
        let others = self
            .lines
            .iter()
            .filter(|(name, line)| line.class == KeyClass::Controller && *name != own);
        for (controller, _) in others {
            let question = self.question(controller, Ask::Wish { rollout });
            let waker = self.waker.clone();
            let asked = links::whole(
                self.connection.clone(),
                question,
                self.trusted.clone(),
                ENVELOPE_BYTES_MAX,
            );
            tokio::spawn(async move {
                if let Some(wish) = asked.await {
                    drop(waker.send(Wake::Wish(rollout, wish)).await);
                }
            });
        }
    }

    /// Signs a question to a node or another controller.
    pub(super) fn question(&self, of: &NodeId, ask: Ask) -> Question {
        Question::new(&self.signer, &self.setup.fleet, of, ask)
    }

    /// Signs a question; returns its id too.
    pub(super) fn sealed_query(&self, audience: Audience, ask: Ask) -> (IntentId, Vec<u8>) {
        links::sealed_query(&self.signer, &self.setup.fleet, audience, ask)
    }

    /// Takes in a signed wish that another controller gave: it has to be the one that was planned.
    pub(super) fn wish_came(&mut self, now: Now, rollout: IntentId, bytes: &[u8]) {
        let state = self.rollouts.all.get(&rollout).and_then(|driven| driven.story.state());
        let is_it = state.is_some_and(|state| is_behind(bytes, state.plan()));
        // It has to be somebody's. Whether that one may is for the nodes to say, each for itself.
        let is_it = is_it && self.authority.is_signed(bytes);
        match is_it.then(|| self.wishes.keep(rollout, bytes, false)) {
            Some(Ok(())) => {
                self.orders.hurry(rollout);
                self.send_orders(now);
            }
            Some(Err(why)) => warn!(%why, "a wish cannot be kept"),
            None => warn!(%rollout, "another controller gave a wish that is not this rollout's"),
        }
    }

    /// Removes wishes that nobody needs any more.
    pub(super) fn prune_wishes(&self) {
        if let Err(why) = self.wishes.prune(|intent| self.rollouts.all.contains_key(intent)) {
            warn!(%why, "old wishes stay on the disk");
        }
    }
}
