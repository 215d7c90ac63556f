//! One node: everything that is folded from its log.
//!
//! `evolve` folds a fact, `decide` says what would follow from an input. The shell around them appends the
//! events, folds them, and lets promises go when they are durable.

mod releases;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::decide;
use super::event::{
    Actor, Because, Cause, Context, Desired, Event, Exit, IntentAccepted, ServiceAdded,
    TrustChanged,
};
use super::id::{BootId, Digest, Generation, InstanceId, IntentId, NodeId, RunId, ServiceId};
use super::input::{Decision, Input, World};
use super::instance::{Firing, IllegalEvent, Instance, State};
use super::intent::Action;
use super::overrides::Overrides;
use super::rejection::Rejection;
use super::release::trial::Releases;
use super::seen::{Fact, Progress, Record, Seen};
use super::time::UnixMicros;

/// The version of the folding rules. State hashes are compared only between equal versions.
///
/// From 3 on what is set of the node itself is folded apart; older rules count it among what is set for a part of the fleet;
/// and why a process could not be started is kept.
pub const FOLD_VERSION: u32 = 3;

/// How many wishes one part of the state holds. The state hash is over the parts as they are cut here; what has to
/// fit an event is cut further, see [`NodePart::halve`].
const INTENTS_PER_PART: usize = 100;

/// What is folded from one node's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    head: Head,
    services: BTreeMap<ServiceId, Service>,
    /// Apart from the services: a generation is never used twice, whether the service is there or not.
    releases: BTreeMap<ServiceId, Releases>,
    /// What was set by signed wishes. Apart from the services as well.
    overrides: BTreeMap<ServiceId, Overrides>,
    seen: Seen,
}

/// What is folded beside services and wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// When the log's epoch began. A wish from before is refused: that it ran may be forgotten.
    pub epoch_began: UnixMicros,
    /// The latest expiry of a wish that was forgotten.
    pub forgotten: UnixMicros,
    /// How many wishes were ever taken.
    pub accepted: u64,
    /// The highest run number of any service that is gone.
    pub run_floor: RunId,
    /// Set while the agent is on its way down: whether services go on without it.
    pub stopping: Option<bool>,
    /// Whose act that follows.
    #[serde(default, skip_serializing_if = "Because::is_nobody")]
    pub stopping_by: Because,
    /// The keeper that was last recorded.
    pub keeper: Option<KeeperMark>,
    /// The trust document that was last in force. An older one gives keys back what was taken from them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<TrustChanged>,
    /// The highest term of a controller that was obeyed, and which controller that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<(u64, NodeId)>,
}

/// Which keeper it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperMark {
    /// Drawn at its start.
    pub incarnation: u64,
    /// The boot it runs in.
    pub boot: BootId,
}

/// A service of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// SHA-256 of the spec that was adopted last.
    pub digest: Digest,
    /// Where that was read.
    pub origin: String,
    /// What is wanted.
    pub desired: Desired,
    /// The number of that wish; 0 while nobody has said anything.
    pub generation: Generation,
    /// Whose act its spec, its desired state or its removal follows, whichever came last.
    #[serde(default, skip_serializing_if = "Because::is_nobody")]
    pub changed_by: Because,
    /// How many slots are wanted. Slots beyond are kept at rest, so that no run number is used twice.
    pub wanted: u16,
    /// Whether it is forgotten once nothing runs.
    pub removed: bool,
    /// Its slots.
    pub instances: Vec<Instance>,
    /// On whose authority the wish stands; absent while nobody has said anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_by: Option<Actor>,
    /// Since when it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_at: Option<UnixMicros>,
}

/// A part of a node, small enough for one event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodePart {
    /// The first one.
    Head(Head),
    /// A service.
    Service(ServiceId, Service),
    /// Some of the wishes.
    Intents(Vec<(IntentId, Record)>),
    /// More slots of a service, behind those that came before.
    Slots(ServiceId, Vec<Instance>),
    /// Alerts that fire, of the slot that came last.
    Firing(ServiceId, Vec<(String, Firing)>),
    /// More instances that a wish awaits.
    Awaiting(IntentId, Vec<(InstanceId, RunId)>),
    /// The releases of a service.
    Releases(ServiceId, Releases),
    /// What was set of a service.
    Overrides(ServiceId, Overrides),
}

impl NodePart {
    /// Cuts a part in two that lead to the same state, or gives it back when it is one thing.
    ///
    /// # Errors
    ///
    /// The part itself: there is nothing in it to cut between.
    pub fn halve(self) -> Result<(Self, Self), Box<Self>> {
        match self {
            Self::Service(id, mut service) if service.instances.len() > 1 => {
                let rest = service.instances.split_off(service.instances.len() / 2);
                Ok((Self::Service(id.clone(), service), Self::Slots(id, rest)))
            }
            Self::Slots(id, mut slots) if slots.len() > 1 => {
                let rest = slots.split_off(slots.len() / 2);
                Ok((Self::Slots(id.clone(), slots), Self::Slots(id, rest)))
            }
            Self::Service(id, mut service) => match take_firing(&mut service.instances) {
                Some(firing) => Ok((Self::Service(id.clone(), service), Self::Firing(id, firing))),
                None => Err(Box::new(Self::Service(id, service))),
            },
            Self::Slots(id, mut slots) => match take_firing(&mut slots) {
                Some(firing) => Ok((Self::Slots(id.clone(), slots), Self::Firing(id, firing))),
                None => Err(Box::new(Self::Slots(id, slots))),
            },
            Self::Firing(id, mut firing) if firing.len() > 1 => {
                let rest = firing.split_off(firing.len() / 2);
                Ok((Self::Firing(id.clone(), firing), Self::Firing(id, rest)))
            }
            Self::Intents(mut intents) if intents.len() > 1 => {
                let rest = intents.split_off(intents.len() / 2);
                Ok((Self::Intents(intents), Self::Intents(rest)))
            }
            Self::Intents(mut intents) => match intents.first_mut() {
                Some((id, Record { progress: Progress::Open(open), .. }))
                    if !open.awaiting.is_empty() =>
                {
                    let awaiting = std::mem::take(&mut open.awaiting).into_iter().collect();
                    let id = *id;
                    Ok((Self::Intents(intents), Self::Awaiting(id, awaiting)))
                }
                _ => Err(Box::new(Self::Intents(intents))),
            },
            Self::Awaiting(id, mut awaiting) if awaiting.len() > 1 => {
                let rest = awaiting.split_off(awaiting.len() / 2);
                Ok((Self::Awaiting(id, awaiting), Self::Awaiting(id, rest)))
            }
            Self::Overrides(id, mut all) => match all.halve() {
                Some(rest) => Ok((Self::Overrides(id.clone(), all), Self::Overrides(id, rest))),
                None => Err(Box::new(Self::Overrides(id, all))),
            },
            part @ (Self::Head(_) | Self::Firing(..) | Self::Awaiting(..) | Self::Releases(..)) => {
                Err(Box::new(part))
            }
        }
    }
}

/// Takes the alerts out of the last slot, when it has any.
fn take_firing(slots: &mut [Instance]) -> Option<Vec<(String, Firing)>> {
    let firing = std::mem::take(&mut slots.last_mut()?.firing);
    (!firing.is_empty()).then(|| firing.into_iter().collect())
}

impl Service {
    /// Returns the slots with their numbers.
    pub fn slots(&self) -> impl Iterator<Item = (u16, &Instance)> {
        (0..).zip(&self.instances)
    }

    /// Says whether a slot is to be up, the agent's own end aside.
    pub fn wants(&self, index: u16) -> bool {
        !self.removed && self.desired != Desired::Stopped && index < self.wanted
    }
}

impl Node {
    /// Returns what is folded beside services and wishes.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Returns the services.
    pub fn services(&self) -> &BTreeMap<ServiceId, Service> {
        &self.services
    }

    /// Returns what is known of releases, by service.
    pub fn releases(&self) -> &BTreeMap<ServiceId, Releases> {
        &self.releases
    }

    /// Returns what was set by signed wishes, by service.
    pub fn overrides(&self) -> &BTreeMap<ServiceId, Overrides> {
        &self.overrides
    }

    /// Returns one slot.
    pub fn instance(&self, id: &InstanceId) -> Option<&Instance> {
        self.services.get(&id.service)?.instances.get(usize::from(id.index))
    }

    /// Says whether a process of this run may be made: whether it is awaited still.
    pub fn awaits_start(&self, id: &InstanceId, run: RunId) -> bool {
        let state = self.instance(id).and_then(|instance| instance.of_run(run));
        state.is_some_and(|state| state.awaits_start(run))
    }

    /// Returns the wishes that are remembered.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Returns what would happen and what would be done about it. Changes nothing.
    ///
    /// # Errors
    ///
    /// A wish that the node does not take; every other input is answered with a decision, if only an empty one.
    pub fn decide(&self, world: &World<'_>, input: Input) -> Result<Decision, Rejection> {
        decide::decide(self, world, input)
    }

    /// Folds a fact that happened at `at`. On an error nothing has changed.
    ///
    /// # Errors
    ///
    /// The event cannot follow the state: the log is not one of this node, or not whole.
    pub fn evolve(
        &mut self,
        at: UnixMicros,
        context: &Context,
        event: &Event,
    ) -> Result<(), IllegalEvent> {
        match event {
            Event::LogOpened(_) => self.head.epoch_began = at,
            Event::AgentStarted(_) | Event::AgentStopped(_) => {
                (self.head.stopping, self.head.stopping_by) = (None, Because::default());
            }
            Event::AgentStopping(body) => {
                self.head.stopping = Some(body.leave_running);
                self.head.stopping_by = context.authority();
            }
            Event::TrustChanged(body) => self.head.trust = Some(body.clone()),
            Event::KeeperStarted(body) => {
                let mark = KeeperMark { incarnation: body.incarnation, boot: body.boot };
                self.head.keeper = Some(mark);
            }
            Event::ServiceAdded(body) => {
                self.add_service(context, body)?;
                self.mark_changed(context);
                self.look_at_release(at, context, Some(body.digest));
            }
            Event::ServiceRemoved(_) => {
                self.service_mut(context, event)?.removed = true;
                self.mark_changed(context);
                self.drop_removed(context);
            }
            Event::DesiredChanged(body) => {
                let service = self.service_mut(context, event)?;
                if body.generation <= service.generation {
                    return Err(IllegalEvent { state: "newer generation", event: event.kind() });
                }
                service.desired = body.desired;
                service.generation = body.generation;
                service.desired_by.clone_from(&context.by);
                service.desired_at = Some(at);
                self.mark_changed(context);
                self.look_at_release(at, context, None);
            }
            Event::IntentAccepted(body) => {
                self.accept(context, body)?;
                self.accept_release(at, body);
            }
            Event::OrderAccepted(_)
            | Event::ReleaseApplied(_)
            | Event::ReleaseHealthy(_)
            | Event::ReleaseFailed(_)
            | Event::ReleaseReturned(_) => self.evolve_releases(at, context, event)?,
            Event::ConfigChanged(body) => {
                let nameless = IllegalEvent { state: "no service named", event: event.kind() };
                let service = context.service.as_ref().ok_or(nameless)?;
                let by = context.by.as_ref().map(|by| &by.name);
                let known = self.overrides.entry(service.clone()).or_default();
                if known.change(body, by)
                    && let Some(open) = self.seen.open_mut(&body.intent)
                {
                    open.changed = true;
                }
            }
            Event::ConfigExpired(body) => {
                let known = context.service.as_ref().and_then(|it| self.overrides.get_mut(it));
                let unknown = IllegalEvent { state: "nothing is set", event: event.kind() };
                known.ok_or(unknown)?.expire(body);
            }
            Event::IntentExecuted(body) => {
                if let Some(known) =
                    context.service.as_ref().and_then(|it| self.releases.get_mut(it))
                {
                    known.executed(body.intent);
                }
                if !self.seen.execute(at, &body.intent, &body.outcome) {
                    return Err(IllegalEvent { state: "not under way", event: event.kind() });
                }
            }
            Event::ActionStarted(body) => {
                let until = Some(body.until);
                if let Some(trying) = self.follow_up_mut(context, body.intent, &body.action) {
                    trying.acts_until = until;
                } else if let Some(open) = self.seen.open_mut(&body.intent) {
                    open.action_until = until;
                } else {
                    return Err(IllegalEvent { state: "not under way", event: event.kind() });
                }
            }
            Event::ActionEnded(body) => {
                if let Some(trying) = self.follow_up_mut(context, body.intent, &body.action) {
                    trying.acts_until = None;
                    if body.exit == Exit::Code(0) {
                        trying.after.remove(0);
                    }
                } else if self.seen.open_mut(&body.intent).is_none() {
                    return Err(IllegalEvent { state: "not under way", event: event.kind() });
                }
            }
            Event::InstanceWaiting(_)
            | Event::InstanceStarting(_)
            | Event::InstanceStarted(_)
            | Event::InstanceStartFailed(_)
            | Event::InstanceReady(_)
            | Event::InstanceHealthy(_)
            | Event::InstanceUnhealthy(_)
            | Event::InstanceExited(_)
            | Event::InstanceStopping(_)
            | Event::InstanceStopped(_)
            | Event::InstanceReloading(_)
            | Event::InstanceReloaded(_)
            | Event::InstanceSignalled(_)
            | Event::InstanceHandedOver(_)
            | Event::InstanceAdopted(_) => self.evolve_instance(at, context, event)?,
            Event::AlertFired(_) | Event::AlertResolved(_) | Event::Summarized(_)
                if context.index.is_some() =>
            {
                self.evolve_instance(at, context, event)?;
            }
            // Told for people. A baseline is the state that was just folded, or is restored by the shell.
            Event::AlertFired(_)
            | Event::AlertResolved(_)
            | Event::Summarized(_)
            | Event::Baseline(_)
            | Event::LogRetired(_)
            | Event::LogUnavailable(_)
            | Event::LogRecovered(_)
            | Event::IntentRefused(_)
            | Event::LinesDropped(_)
            | Event::ReleaseStaged(_)
            | Event::ReleaseRemoved(_)
            | Event::ReleaseRefused(_)
            | Event::ControllerStarted(_)
            | Event::ControllerLed(_)
            | Event::ControllerSteppedDown(_)
            | Event::NodeUnreachable(_)
            | Event::PlacementOrdered(_)
            | Event::PlacementHeld(_)
            | Event::NodeSeen(_)
            | Event::LogForked(_)
            | Event::Rollout(_) => {}
        }
        if let Some(forgotten) = self.seen.forget(at) {
            self.head.forgotten = self.head.forgotten.max(forgotten);
        }
        Ok(())
    }

    /// Returns the whole state in parts, the head first.
    pub fn parts(&self) -> Vec<NodePart> {
        let mut parts = vec![NodePart::Head(self.head.clone())];
        let services = self.services.iter();
        parts.extend(services.map(|(id, service)| NodePart::Service(id.clone(), service.clone())));
        let releases = self.releases.iter();
        parts.extend(releases.map(|(id, known)| NodePart::Releases(id.clone(), known.clone())));
        let overrides = self.overrides.iter();
        parts.extend(overrides.map(|(id, all)| NodePart::Overrides(id.clone(), all.clone())));
        let intents: Vec<_> = self.seen.iter().map(|(id, record)| (*id, record.clone())).collect();
        parts.extend(intents.chunks(INTENTS_PER_PART).map(|some| NodePart::Intents(some.to_vec())));
        parts
    }

    /// Takes a part in. The head replaces whatever was there before.
    pub fn restore(&mut self, part: NodePart) {
        match part {
            NodePart::Head(head) => *self = Self { head, ..Self::default() },
            NodePart::Service(id, service) => {
                self.services.insert(id, service);
            }
            NodePart::Intents(intents) => {
                for (id, record) in intents {
                    self.seen.restore(id, record);
                }
            }
            NodePart::Releases(id, known) => {
                self.releases.insert(id, known);
            }
            NodePart::Overrides(id, more) => {
                self.overrides.entry(id).or_default().append(more);
            }
            NodePart::Slots(id, slots) => {
                if let Some(service) = self.services.get_mut(&id) {
                    service.instances.extend(slots);
                }
            }
            NodePart::Firing(id, firing) => {
                let service = self.services.get_mut(&id);
                if let Some(slot) = service.and_then(|service| service.instances.last_mut()) {
                    slot.firing.extend(firing);
                }
            }
            NodePart::Awaiting(id, awaiting) => {
                if let Some(open) = self.seen.open_mut(&id) {
                    open.awaiting.extend(awaiting);
                }
            }
        }
    }

    /// Returns the part of the state that facts about `service` can touch, to be evolved on its own.
    pub(super) fn excerpt_head(&self) -> Self {
        Self { head: self.head.clone(), ..Self::default() }
    }

    /// Adds to an excerpt what facts about `service` can touch.
    pub(super) fn excerpt_into(&self, excerpt: &mut Self, service: &ServiceId) {
        if let Some(found) = self.services.get(service) {
            excerpt.services.insert(service.clone(), found.clone());
        }
        if let Some(found) = self.releases.get(service) {
            excerpt.releases.insert(service.clone(), found.clone());
        }
        if let Some(found) = self.overrides.get(service) {
            excerpt.overrides.insert(service.clone(), found.clone());
        }
        for (id, record, open) in self.seen.open() {
            let concerned = open.awaiting.keys().any(|instance| instance.service == *service)
                || record.action.service() == Some(service);
            if concerned && excerpt.seen.get(id).is_none() {
                excerpt.seen.restore(*id, record.clone());
            }
        }
    }

    /// Adds one wish to an excerpt.
    pub(super) fn excerpt_intent(&self, excerpt: &mut Self, intent: &IntentId) {
        if let (Some(record), None) = (self.seen.get(intent), excerpt.seen.get(intent)) {
            excerpt.seen.restore(*intent, record.clone());
        }
    }

    /// Notes whose act changed a service, and that its wish changed something.
    fn mark_changed(&mut self, context: &Context) {
        if let Some(service) = context.service.as_ref().and_then(|id| self.services.get_mut(id)) {
            service.changed_by = context.authority();
        }
        if let Some(Cause::Intent(intent)) = &context.cause
            && let Some(open) = self.seen.open_mut(intent)
        {
            open.changed = true;
        }
    }

    fn service_mut(
        &mut self,
        context: &Context,
        event: &Event,
    ) -> Result<&mut Service, IllegalEvent> {
        let unknown = IllegalEvent { state: "unknown service", event: event.kind() };
        self.services.get_mut(context.service.as_ref().ok_or(unknown.clone())?).ok_or(unknown)
    }

    fn add_service(&mut self, context: &Context, body: &ServiceAdded) -> Result<(), IllegalEvent> {
        let nameless = IllegalEvent { state: "no service named", event: "service.added" };
        let id = context.service.clone().ok_or(nameless)?;
        let service = self.services.entry(id).or_insert_with(|| Service {
            digest: body.digest,
            origin: String::new(),
            desired: body.desired,
            generation: Generation(0),
            changed_by: Because::default(),
            wanted: 0,
            removed: false,
            instances: Vec::new(),
            desired_by: None,
            desired_at: None,
        });
        // What somebody said outlives a change of the files, until the service itself was removed.
        if service.generation == Generation(0) || service.removed {
            service.desired = body.desired;
            (service.desired_by, service.desired_at) = (None, None);
        }
        service.digest = body.digest;
        for slot in &mut service.instances {
            slot.keep(body.keeps, body.digest);
        }
        service.origin.clone_from(&body.origin);
        service.wanted = body.instances;
        service.removed = false;
        let count = service.instances.len().max(usize::from(body.instances));
        let floor = self.head.run_floor;
        service.instances.resize_with(count, || Instance::new(floor));
        Ok(())
    }

    fn accept(&mut self, context: &Context, body: &IntentAccepted) -> Result<(), IllegalEvent> {
        let mut awaiting = BTreeMap::new();
        for id in body.awaited() {
            let unknown = IllegalEvent { state: "unknown instance", event: "intent.accepted" };
            let instance = self.instance(&id).ok_or(unknown)?;
            let run = last_run_before(&body.action, instance);
            awaiting.insert(id, run);
        }
        let number = self.head.accepted + 1;
        let known = body.action.service().and_then(|service| self.releases.get(service));
        if known.is_some_and(|known| known.left == Some(body.intent)) {
            // It means the node again, and is carried out anew.
            self.seen.drop_executed(&body.intent);
        }
        if !self.seen.accept(number, body, context.by.as_ref(), awaiting) {
            return Err(IllegalEvent { state: "already taken", event: "intent.accepted" });
        }
        self.head.accepted = number;
        Ok(())
    }

    fn evolve_instance(
        &mut self,
        at: UnixMicros,
        context: &Context,
        event: &Event,
    ) -> Result<(), IllegalEvent> {
        let index = context
            .index
            .ok_or(IllegalEvent { state: "no instance named", event: event.kind() })?;
        let unknown = IllegalEvent { state: "unknown instance", event: event.kind() };
        let name = context.service.as_ref().ok_or_else(|| unknown.clone())?;
        let service = self.services.get_mut(name).ok_or_else(|| unknown.clone())?;
        let instance = service.instances.get_mut(usize::from(index)).ok_or(unknown)?;
        let is_beside = instance.is_beside(context.run);
        let state = context.run.and_then(|run| instance.of_run(run));
        let ran = state.and_then(State::main).map(|main| main.spec);
        let was_ready = state.is_some_and(State::is_ready);
        instance.evolve(at, context, event)?;
        let trial = self.releases.get_mut(name).and_then(|known| known.trial.as_mut());
        if let Some(trying) = trial.and_then(|trial| trial.trying.as_mut()) {
            let id = InstanceId { service: name.clone(), index };
            trying.note(at, &id, ran, was_ready, event, service);
        }
        let after = &service.instances[usize::from(index)];
        let fact = Fact { run: context.run, event, is_beside, after };
        self.seen.note(name, index, &fact, service.desired);
        if service.removed {
            self.drop_removed(context);
        }
        Ok(())
    }

    /// Forgets a removed service once nothing of it runs, but never its run numbers.
    fn drop_removed(&mut self, context: &Context) {
        let Some(name) = &context.service else { return };
        let gone = self
            .services
            .get(name)
            .filter(|service| service.removed && service.instances.iter().all(Instance::at_rest));
        if let Some(service) = gone {
            let highest = service.instances.iter().map(|instance| instance.last_run).max();
            self.head.run_floor = self.head.run_floor.max(highest.unwrap_or_default());
            self.services.remove(name);
        }
    }
}

/// Returns the run that a wish found: only a later one can fulfil it.
fn last_run_before(action: &Action, instance: &Instance) -> RunId {
    match (action, &instance.state) {
        // A start that is under way already is the one that is asked for.
        (Action::Start { .. }, State::Spawning { run }) => RunId(run.0.saturating_sub(1)),
        (
            Action::Start { .. },
            State::Starting { main, .. } | State::Running { main } | State::Reloading { main, .. },
        ) => RunId(main.run.0.saturating_sub(1)),
        // One that is to take over is not signalled, and not waited for.
        (Action::Signal { .. }, state) => state.run().unwrap_or(instance.last_run),
        _ => instance.last_run,
    }
}
