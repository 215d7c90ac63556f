//! The step that leads an instance from where it is to where it is wanted.

use std::collections::BTreeMap;

use super::Turn;
use crate::domain::event::{
    Because, Context, Event, InstanceStarting, InstanceWaiting, StopReason,
};
use crate::domain::id::{InstanceId, ServiceId};
use crate::domain::instance::{Instance, State};
use crate::domain::intent::Action;
use crate::domain::node::Service;
use crate::domain::spec::DependencyCondition;

/// How often all instances are looked at in one decision. Each step is taken once per instance, and one step can
/// make room for another only along the dependencies.
const PASSES_MAX: usize = 64;

/// One step of one instance.
#[derive(Debug)]
pub(super) enum Step {
    Start { fresh: bool },
    BeginBeside,
    HandOver,
    StopBeside { reason: StopReason },
    Wait(Unmet),
    Rest,
    Stop { then_start: bool, reason: StopReason },
    Redirect { then_start: bool },
}

/// What a service waits for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unmet {
    /// These have not come far enough.
    pub(super) on: Vec<ServiceId>,
    /// Nobody brings these up.
    pub(super) missing: Vec<ServiceId>,
}

impl Turn<'_> {
    /// Lets every instance take its steps until none has one.
    pub(super) fn drive(&mut self) {
        if self.head().stopping == Some(true) {
            return;
        }
        for _ in 0..PASSES_MAX {
            let mut steps = self.steps();
            if steps.is_empty() && self.is_deadlocked() {
                steps = self.stop_all();
            }
            if steps.is_empty() {
                break;
            }
            for (id, step) in steps {
                self.step(&id, step);
            }
        }
    }

    fn steps(&self) -> Vec<(InstanceId, Step)> {
        let mut steps = Vec::new();
        for (id, service) in self.services() {
            for (index, instance) in service.slots() {
                let wanted = self.head().stopping.is_none() && service.wants(index);
                // Most instances are where they should be; no name is copied for them.
                if wanted
                    && matches!(&instance.state, State::Running { main } if main.spec == service.digest)
                    && self.node.seen().open_len() == 0
                    && self.draft.seen().open_len() == 0
                    && instance.started_after.is_empty()
                    && instance.beside.is_none()
                {
                    continue;
                }
                let id = InstanceId { service: id.clone(), index };
                if let Some(step) = self.step_beside(&id, service, instance, wanted) {
                    steps.push((id, step));
                } else if let Some(step) = self.next_step(&id, service, instance, wanted) {
                    steps.push((id, step));
                }
            }
        }
        steps
    }

    fn next_step(
        &self,
        id: &InstanceId,
        service: &Service,
        instance: &Instance,
        wanted: bool,
    ) -> Option<Step> {
        match (&instance.state, wanted) {
            (State::Inactive, true) => {
                Some(self.start_or_wait(id, self.is_asked_for(id, instance)))
            }
            (State::Completed | State::Failed | State::Backoff { .. }, true) => {
                self.is_asked_for(id, instance).then(|| self.start_or_wait(id, true))
            }
            (State::Waiting { on }, true) => match self
                .start_or_wait(id, self.is_asked_for(id, instance))
            {
                Step::Wait(unmet) if unmet.on == *on && unmet.missing.is_empty() => None,
                Step::Wait(unmet) if unmet.on == *on && !self.is_asked_for(id, instance) => None,
                step => Some(step),
            },
            (State::Spawning { .. }, true) => None,
            (
                State::Starting { main, .. }
                | State::Running { main }
                | State::Reloading { main, .. },
                true,
            ) => {
                if self.has_restart_turn(id, instance) {
                    self.replace(id, service, instance, StopReason::Wish)
                } else if main.spec != service.digest
                    && self.has_turn(id, service, instance, |slot| {
                        slot.state.main().is_some_and(|main| main.spec != service.digest)
                    })
                {
                    self.replace(id, service, instance, StopReason::Update)
                } else if self.has_new_dependency(&id.service, instance)
                    && self.has_turn(id, service, instance, |slot| {
                        self.has_new_dependency(&id.service, slot)
                    })
                {
                    self.replace(id, service, instance, StopReason::Dependency)
                } else {
                    None
                }
            }
            (State::Stopping { then, .. }, true) => {
                let turned = !then.starts()
                    && (*then == crate::domain::instance::Then::Inactive
                        || self.is_asked_for(id, instance));
                turned.then_some(Step::Redirect { then_start: true })
            }

            (State::Inactive | State::Completed | State::Failed, false) => None,
            (State::Waiting { .. } | State::Backoff { .. }, false) => Some(Step::Rest),
            (
                State::Spawning { .. }
                | State::Starting { .. }
                | State::Running { .. }
                | State::Reloading { .. },
                false,
            ) => self
                .may_go_down(id)
                .then_some(Step::Stop { then_start: false, reason: StopReason::Wish }),
            (State::Stopping { then, .. }, false) => {
                then.starts().then_some(Step::Redirect { then_start: false })
            }
        }
    }

    fn step(&mut self, id: &InstanceId, step: Step) {
        match step {
            Step::Start { fresh } => self.start(id, fresh),
            Step::Wait(unmet) => self.wait(id, unmet),
            Step::Rest => self.rest(id),
            Step::Stop { then_start, reason } => self.begin_stop(id, then_start, reason),
            Step::Redirect { then_start } => self.redirect(id, then_start),
            Step::BeginBeside => self.begin_beside(id),
            Step::HandOver => self.hand_over(id, true),
            Step::StopBeside { reason } => {
                let instance = self.instance(id);
                let beside = instance.and_then(|instance| instance.beside.as_ref());
                if let Some(run) = beside.and_then(|beside| beside.state.run()) {
                    self.begin_stop_of(id, run, false, reason);
                }
            }
        }
    }

    fn start_or_wait(&self, id: &InstanceId, fresh: bool) -> Step {
        let unmet = self.unmet(&id.service);
        if unmet.on.is_empty() { Step::Start { fresh } } else { Step::Wait(unmet) }
    }

    /// Starts an instance that has no process, or lets it wait for what it needs.
    pub(super) fn bring_up(&mut self, id: &InstanceId, fresh: bool) {
        let step = self.start_or_wait(id, fresh);
        self.step(id, step);
    }

    fn start(&mut self, id: &InstanceId, fresh: bool) {
        let Some(instance) = self.instance(id) else { return };
        let (run, from) = (instance.next_run(), instance.state.name());
        let body = InstanceStarting { from, fresh, beside: None };
        self.emit(
            Context::run(id, run).with(self.brought_up_by(id)),
            Event::InstanceStarting(body),
        );
    }

    fn wait(&mut self, id: &InstanceId, unmet: Unmet) {
        let Some(state) = self.state(id) else { return };
        let body = InstanceWaiting { from: state.name(), on: unmet.on, missing: unmet.missing };
        let context = Context::instance(id).with(self.brought_up_by(id));
        self.emit(context, Event::InstanceWaiting(body));
    }

    /// Returns whose act a start follows: that of an open wish, or that of this decision.
    fn brought_up_by(&self, id: &InstanceId) -> Because {
        let is_news = self.events.iter().any(|(context, event)| {
            matches!(event, Event::ServiceAdded(_) | Event::DesiredChanged(_))
                && context.service.as_ref() == Some(&id.service)
        });
        match (self.asked_by(id), self.service(&id.service)) {
            (Some(asked), _) => asked,
            (None, Some(service)) if is_news => service.changed_by.clone(),
            _ => self.authority(id),
        }
    }

    /// Returns what a service still waits for.
    pub(super) fn unmet(&self, service: &ServiceId) -> Unmet {
        let mut unmet = Unmet::default();
        let Some(spec) = self.spec(service) else { return unmet };
        for (name, rule) in &spec.depends_on {
            let Some(other) = self.service(name) else {
                if rule.required {
                    unmet.on.push(name.clone());
                    unmet.missing.push(name.clone());
                }
                continue;
            };
            let mut slots = other.slots().filter(|(index, _)| *index < other.wanted);
            let is_met = slots.all(|(_, slot)| has_come_to(slot, rule.condition));
            let comes = other
                .slots()
                .any(|(index, slot)| other.wants(index) && !matches!(slot.state, State::Failed));
            match (is_met, comes, rule.required) {
                (true, ..) => {}
                (false, true, _) => unmet.on.push(name.clone()),
                (false, false, true) => {
                    unmet.on.push(name.clone());
                    unmet.missing.push(name.clone());
                }
                // Order only: what does not come is not waited for.
                (false, false, false) => {}
            }
        }
        unmet
    }

    /// Returns how often each service was started whose restarts this one follows.
    pub(super) fn followed(&self, service: &ServiceId) -> BTreeMap<ServiceId, u64> {
        let Some(spec) = self.spec(service) else { return BTreeMap::new() };
        let rules = spec.depends_on.iter().filter(|(_, rule)| rule.restart);
        rules.filter_map(|(name, _)| Some((name.clone(), starts(self.service(name)?)))).collect()
    }

    /// Says whether a service whose restarts this instance follows was started anew, and is there again.
    ///
    /// Numbers of runs are compared, not times: a clock that jumps restarts nothing. As long as the other one is on the
    /// way from one run to the next there is nothing to follow yet, so a rolling restart is followed once.
    fn has_new_dependency(&self, service: &ServiceId, instance: &Instance) -> bool {
        instance.started_after.iter().any(|(name, before)| {
            let rule = self.spec(service).and_then(|spec| spec.depends_on.get(name));
            let (Some(rule), Some(other)) = (rule, self.service(name)) else { return false };
            rule.restart
                && starts(other) > *before
                && other.slots().take(usize::from(other.wanted)).all(|(_, slot)| {
                    has_come_to(slot, rule.condition)
                        && slot.state.main().is_none_or(|main| main.spec == other.digest)
                })
                && !self.is_restarting(name)
        })
    }

    fn is_restarting(&self, name: &ServiceId) -> bool {
        self.open_intents().any(|(_, record, open)| {
            !open.awaiting.is_empty()
                && matches!(&record.action, Action::Restart { service } if service == name)
        })
    }

    /// Says whether somebody waits for a start of this instance that has not been made.
    pub(super) fn is_asked_for(&self, id: &InstanceId, instance: &Instance) -> bool {
        self.open_intents().any(|(_, record, open)| {
            record.brings_up()
                && open.awaiting.get(id).is_some_and(|from| instance.last_run <= *from)
        })
    }

    /// Says whether a restart that somebody asked for has come to this instance.
    ///
    /// One restart at a time, one instance at a time, the next when the one before is ready: the others serve on.
    fn has_restart_turn(&self, id: &InstanceId, instance: &Instance) -> bool {
        let oldest = self.open_intents().find(|(_, record, _)| {
            matches!(&record.action, Action::Restart { service } if *service == id.service)
        });
        let Some((_, _, open)) = oldest else { return false };
        open.awaiting
            .first_key_value()
            .is_some_and(|(first, from)| first == id && instance.last_run <= *from)
    }

    /// Says whether an instance that is to be replaced may be: while all the others serve or are completed, one after
    /// the other.
    ///
    /// One that was given up was so under the spec that is to be taken here: a newer one is always tried on it first.
    fn has_turn(
        &self,
        id: &InstanceId,
        service: &Service,
        instance: &Instance,
        is_due: impl Fn(&Instance) -> bool,
    ) -> bool {
        let mut others =
            service.slots().filter(|(index, _)| *index != id.index && *index < service.wanted);
        let first = service.slots().find(|(_, slot)| slot.state.is_ready() && is_due(slot));
        let is_first = first.is_none_or(|(index, _)| index == id.index);
        !self.is_restarting(&id.service)
            && (!instance.state.is_ready()
                || (is_first
                    && others
                        .all(|(_, slot)| slot.state.is_ready() || slot.state == State::Completed)))
    }

    /// Says whether an instance may be stopped: when the agent ends, those that depend on it go first, and what its
    /// answers go through goes when there is nothing left to tell.
    fn may_go_down(&self, id: &InstanceId) -> bool {
        if self.head().stopping.is_none() {
            return true;
        }
        if self.is_bus(&id.service) && (!self.others_at_rest() || self.runs_actions()) {
            return false;
        }
        self.services().all(|(other, service)| {
            let depends =
                self.spec(other).is_some_and(|spec| spec.depends_on.contains_key(&id.service));
            !depends || *other == id.service || service.instances.iter().all(Instance::at_rest)
        })
    }

    /// Says whether the agent cannot end because services depend on each other in a circle.
    fn is_deadlocked(&self) -> bool {
        let mut states = self.services().flat_map(|(_, service)| &service.instances);
        self.head().stopping == Some(false)
            && states.any(|slot| !slot.at_rest())
            && !(self.others_at_rest() && self.runs_actions())
            && !self.services().any(|(_, service)| {
                let mut states = service.instances.iter().flat_map(Instance::states);
                states.any(|state| matches!(state, State::Stopping { .. }))
            })
    }

    fn stop_all(&self) -> Vec<(InstanceId, Step)> {
        let others = self.services().filter(|(id, _)| !self.is_bus(id) || self.others_at_rest());
        let up = others.flat_map(|(id, service)| {
            let slots = service.slots().filter(|(_, slot)| slot.state.run().is_some());
            slots.map(|(index, _)| InstanceId { service: id.clone(), index })
        });
        up.map(|id| (id, Step::Stop { then_start: false, reason: StopReason::Wish })).collect()
    }
}

/// Returns how often the slots of a service were started, but for a run that has not taken over.
fn starts(service: &Service) -> u64 {
    let slots = service.slots().take(usize::from(service.wanted));
    slots.map(|(_, slot)| slot.state.run().unwrap_or(slot.last_run).0).sum()
}

fn has_come_to(slot: &Instance, condition: DependencyCondition) -> bool {
    match (condition, &slot.state) {
        (_, State::Completed) => true,
        (DependencyCondition::Ready, State::Running { .. } | State::Reloading { .. }) => {
            slot.is_ready()
        }
        (
            DependencyCondition::Started,
            State::Starting { .. } | State::Running { .. } | State::Reloading { .. },
        ) => true,
        (
            _,
            State::Inactive
            | State::Waiting { .. }
            | State::Spawning { .. }
            | State::Starting { .. }
            | State::Stopping { .. }
            | State::Backoff { .. }
            | State::Failed,
        ) => false,
    }
}
