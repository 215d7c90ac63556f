//! What follows from an input: the facts to append and the effects to release. Pure.
//!
//! Each input is turned into its own facts first (`fact`, `wish`, `reconcile`); then every instance takes the step
//! that leads from where it is to where it is wanted (`drive`), until none has one; then wishes that came to
//! their end are closed. A lost step is therefore found again by any later input.

mod action;
mod alert;
mod config;
mod drive;
mod fact;
mod handover;
mod health;
mod reconcile;
mod release;
mod stop;
#[cfg(test)]
mod tests;
mod wish;

use std::collections::{BTreeMap, BTreeSet};

use self::stop::KILL_RETRY_MS_MAX;
use super::effect::{Act, Effect, Reply, Timer};
use super::event::{Because, Cause, Context, Event, IntentExecuted, Outcome, StopPhase};
use super::id::{InstanceId, IntentId, RunId, ServiceId};
use super::input::{Decision, Input, World};
use super::instance::{Instance, State};
use super::intent::Action;
use super::node::{Head, Node, Service};
use super::overrides::LIFE_MS_MAX;
use super::rejection::Rejection;
use super::release::ReleaseRemoved;
use super::seen::{Open, Record};
use super::spec::{Reload, Restart, Spec, Stop};
use super::time::UnixMicros;

/// The longest distance at which a recorded deadline is believed, in milliseconds, where no rule says how long it is.
const TIMER_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;

pub(super) fn decide(node: &Node, world: &World<'_>, input: Input) -> Result<Decision, Rejection> {
    let mut turn = Turn::new(node, world);
    turn.take(input)?;
    if world.reconciled || turn.reconciling {
        turn.drive();
        turn.judge_releases();
    }
    turn.settle();
    Ok(turn.finish())
}

/// A decision in the making: the node as it was, and the parts of it that its own facts have changed.
struct Turn<'a> {
    node: &'a Node,
    world: &'a World<'a>,
    /// What was touched, evolved by the facts so far with the same rules as the node itself.
    draft: Node,
    /// The services that the draft holds, or held until they were gone.
    loaded: BTreeSet<ServiceId>,
    events: Vec<(Context, Event)>,
    effects: Vec<Effect>,
    /// The deadlines that touched instances had before.
    before: BTreeMap<InstanceId, BTreeMap<Timer, UnixMicros>>,
    /// Spawns that became due, and whether they are promises.
    spawns: BTreeMap<InstanceId, (RunId, bool)>,
    /// Whether keeper and agent have just met.
    reconciling: bool,
    /// Whether that agent has just begun, without a timer.
    agent_is_new: bool,
    /// The deadline of the release of a service that has passed, which its timer says: the clock of the wall may be set
    /// meanwhile, by decades where a machine has no other.
    passed: Option<(ServiceId, UnixMicros)>,
    /// Whether the node was told to end by this input, or knows the keeper only since it.
    may_end: bool,
}

impl<'a> Turn<'a> {
    fn new(node: &'a Node, world: &'a World<'a>) -> Self {
        Self {
            node,
            world,
            draft: node.excerpt_head(),
            loaded: BTreeSet::new(),
            events: Vec::new(),
            effects: Vec::new(),
            before: BTreeMap::new(),
            spawns: BTreeMap::new(),
            reconciling: false,
            agent_is_new: false,
            passed: None,
            may_end: false,
        }
    }

    fn take(&mut self, input: Input) -> Result<(), Rejection> {
        match input {
            Input::Wish(wish) => return self.wish(wish),
            Input::Started { instance, run, pid, pidfd_inode, spec } => {
                self.started(&instance, run, pid, pidfd_inode, spec);
            }
            Input::StartFailed { instance, run, step, errno, why } => {
                self.start_failed(&instance, run, step, errno, why);
            }
            Input::Ready { instance, run, how } => self.ready(&instance, run, how),
            Input::Exited { instance, run, pid, ended } => self.exited(&instance, run, pid, ended),
            Input::TreeGone { instance, run } => self.tree_gone(&instance, run),
            Input::SignalDelivered { intent, instance, delivery } => {
                self.signal_delivered(intent, &instance, delivery);
            }
            Input::HookEnded { instance, run, hook, exit } => {
                self.hook_ended(&instance, run, hook, exit);
            }
            Input::AlertRaised { instance, alert, alarm } => {
                self.alert_raised(&instance, &alert, alarm);
            }
            Input::AlertOver { instance, alert } => self.alert_over(&instance, alert.as_str()),
            Input::Checked { instance, run, check, verdict } => {
                self.checked(&instance, run, &check, verdict);
            }
            Input::Timer { timer, at } => self.timer(timer, at),
            Input::ActionStarted { intent } => self.action_started(intent),
            Input::ActionEnded { intent, end } => self.action_ended(intent, end),
            Input::SpecAdopted { service, digest, origin, intent, keeps, keys } => {
                self.spec_adopted(&service, digest, origin, intent, keeps, keys);
            }
            Input::SpecRemoved { service, intent } => self.spec_removed(&service, intent),
            Input::Applied { intent, failed } => self.applied(intent, failed),
            Input::Staged { service, generation, staged } => {
                self.staged(&service, generation, staged);
            }
            Input::Proved { service, generation, since, running } => {
                self.proved(&service, generation, since, running);
            }
            Input::Reconcile(kept) => self.reconcile(kept),
            Input::Shutdown { leave_running } => self.shut_down(leave_running, None, None),
        }
        Ok(())
    }

    // What is known.

    fn now(&self) -> UnixMicros {
        self.world.now.at
    }

    fn head(&self) -> &Head {
        self.draft.head()
    }

    fn service(&self, id: &ServiceId) -> Option<&Service> {
        // A service that the draft has lost is gone, not unchanged.
        let services =
            if self.loaded.contains(id) { self.draft.services() } else { self.node.services() };
        services.get(id)
    }

    fn instance(&self, id: &InstanceId) -> Option<&Instance> {
        self.service(&id.service)?.instances.get(usize::from(id.index))
    }

    fn state(&self, id: &InstanceId) -> Option<&State> {
        self.instance(id).map(|instance| &instance.state)
    }

    /// Returns where a run stands, of the two that an instance may have.
    fn of_run(&self, id: &InstanceId, run: RunId) -> Option<&State> {
        self.instance(id)?.of_run(run)
    }

    /// Returns the run of an instance that the keeper was asked for. It is one at most: a run takes over, or begins anew.
    fn spawning(&self, id: &InstanceId) -> Option<RunId> {
        let instance = self.instance(id)?;
        instance.states().find_map(|state| match state {
            State::Spawning { run } => Some(*run),
            _ => None,
        })
    }

    /// Returns the deadlines that an instance had before this decision.
    fn deadlines_before(&self, id: &InstanceId) -> BTreeMap<Timer, UnixMicros> {
        self.node.instance(id).map(|instance| instance.deadlines(id)).unwrap_or_default()
    }

    /// Returns the services as they stand in this decision.
    fn services(&self) -> impl Iterator<Item = (&ServiceId, &Service)> {
        let added =
            self.draft.services().iter().filter(|(id, _)| !self.node.services().contains_key(*id));
        self.node.services().keys().filter_map(|id| Some((id, self.service(id)?))).chain(added)
    }

    fn spec(&self, service: &ServiceId) -> Option<&'a Spec> {
        self.world.specs.get(service).map(|spec| &**spec)
    }

    fn restart_rules(&self, service: &ServiceId) -> Restart {
        self.spec(service).map(|spec| spec.restart.clone()).unwrap_or_default()
    }

    fn stop_rules(&self, service: &ServiceId) -> Stop {
        self.spec(service).map(|spec| spec.stop.clone()).unwrap_or_default()
    }

    fn reload_rules(&self, service: &ServiceId) -> Reload {
        self.spec(service).map(|spec| spec.reload.clone()).unwrap_or_default()
    }

    fn record(&self, id: &IntentId) -> Option<&Record> {
        self.draft.seen().get(id).or_else(|| self.node.seen().get(id))
    }

    fn open(&self, id: &IntentId) -> Option<&Open> {
        self.record(id)?.open()
    }

    /// Returns the wishes under way, the oldest first.
    fn open_intents(&self) -> impl Iterator<Item = (IntentId, &Record, &Open)> {
        let older = self.node.seen().open().map(|(id, ..)| *id);
        let newer = self.draft.seen().open().map(|(id, ..)| *id);
        let newer = newer.filter(|id| self.node.seen().get(id).is_none());
        older.chain(newer).filter_map(|id| {
            let record = self.record(&id)?;
            Some((id, record, record.open()?))
        })
    }

    /// Returns the oldest wish that awaits an instance.
    fn awaited_by(&self, id: &InstanceId) -> Option<(IntentId, &Record, RunId)> {
        self.open_intents()
            .find_map(|(intent, record, open)| Some((intent, record, *open.awaiting.get(id)?)))
    }

    /// Says whether an instance is to be up.
    fn is_wanted(&self, id: &InstanceId) -> bool {
        self.head().stopping.is_none()
            && self.service(&id.service).is_some_and(|service| service.wants(id.index))
    }

    // What is made.

    /// Returns what an event about a run says beside its body.
    fn about(&self, id: &InstanceId, run: RunId) -> Context {
        let beside = self.instance(id).and_then(|instance| instance.beside.as_ref());
        let because = match beside.filter(|beside| beside.state.run() == Some(run)) {
            Some(beside) => self.asked_by(id).unwrap_or_else(|| beside.because.clone()),
            None => self.authority(id),
        };
        Context::run(id, run).with(because)
    }

    /// Returns whose open wish awaits an instance.
    fn asked_by(&self, id: &InstanceId) -> Option<Because> {
        let (intent, record, _) = self.awaited_by(id)?;
        Some(Because { cause: Some(Cause::Intent(intent)), by: record.by.clone() })
    }

    /// Returns whose act something about an instance follows: an open wish, or what it is under way for.
    fn authority(&self, id: &InstanceId) -> Because {
        let under_way = || self.instance(id).map(|instance| instance.because.clone());
        self.asked_by(id).or_else(under_way).unwrap_or_default()
    }

    fn load(&mut self, service: &ServiceId) {
        if self.loaded.insert(service.clone()) {
            self.node.excerpt_into(&mut self.draft, service);
        }
    }

    /// Adds a fact, and takes it in.
    fn emit(&mut self, context: Context, event: Event) {
        if let Some(service) = &context.service {
            self.load(service);
        }
        match &event {
            Event::IntentAccepted(body) => {
                if let Some(service) = body.action.service() {
                    self.load(service);
                }
            }
            Event::IntentExecuted(IntentExecuted { intent, .. }) => {
                self.node.excerpt_intent(&mut self.draft, intent);
            }
            Event::ActionStarted(body) => {
                self.node.excerpt_intent(&mut self.draft, &body.intent);
            }
            Event::ActionEnded(body) => self.node.excerpt_intent(&mut self.draft, &body.intent),
            _ => {}
        }
        if let Some(Cause::Intent(intent)) = &context.cause {
            self.node.excerpt_intent(&mut self.draft, intent);
        }
        let touched = context.instance_id();
        if let Some(id) = &touched
            && !self.before.contains_key(id)
        {
            self.before.insert(id.clone(), self.deadlines_before(id));
        }
        // The promise is seen before the fact, which may fulfil what it was promised to.
        let promised = touched.as_ref().is_some_and(|id| self.awaited_by(id).is_some());
        if let Err(illegal) = self.draft.evolve(self.now(), &context, &event) {
            // A fact that the node could not fold must not reach its log; the state stays as it is.
            debug_assert!(false, "{illegal}: {context:?} {event:?}");
            return;
        }
        if let Some(id) = touched
            && let Some(run) = self.spawning(&id)
            && self.spawns.get(&id).is_none_or(|(known, _)| *known != run)
        {
            self.spawns.insert(id, (run, promised || self.desired_is_news()));
        }
        self.events.push((context, event));
    }

    /// Says whether this decision itself changed what is wanted, so that it is not durable yet.
    fn desired_is_news(&self) -> bool {
        self.events
            .iter()
            .any(|(_, event)| matches!(event, Event::DesiredChanged(_) | Event::ServiceAdded(_)))
    }

    fn promise(&mut self, act: Act) {
        self.effects.push(Effect::Promise(act));
    }

    fn repair(&mut self, act: Act) {
        self.effects.push(Effect::Repair(act));
    }

    fn answer(&mut self, intent: IntentId, reply: Reply) {
        self.promise(Act::Answer { intent, reply });
    }

    /// Closes a wish and answers it.
    fn execute(&mut self, intent: IntentId, outcome: Outcome) {
        let Some(record) = self.record(&intent) else { return };
        let Some(open) = record.open() else { return };
        let had_action = open.action_until.is_some();
        let context = match record.action.service() {
            Some(service) => Context::service(service),
            None => Context::default(),
        }
        .because(Some(Cause::Intent(intent)), record.by.clone());
        let removed = match (&record.action, &outcome) {
            (Action::Remove { generation, .. }, Outcome::Done { .. }) => Some(*generation),
            _ => None,
        };
        if let Some(generation) = removed {
            let body = ReleaseRemoved { generation };
            self.emit(context.clone(), Event::ReleaseRemoved(body));
        }
        let body = IntentExecuted { intent, outcome: outcome.clone() };
        self.emit(context, Event::IntentExecuted(body));
        self.answer(intent, Reply::Outcome(outcome));
        self.repair(Act::CancelTimer { timer: Timer::Intent(intent) });
        if had_action {
            self.repair(Act::CancelTimer { timer: Timer::Action(intent) });
        }
    }

    /// Closes every wish that has nothing left to wait for.
    fn settle(&mut self) {
        let due: Vec<(IntentId, Outcome)> = self
            .open_intents()
            .filter_map(|(id, record, open)| Some((id, self.outcome(record, open)?)))
            .collect();
        for (intent, outcome) in due {
            self.execute(intent, outcome);
        }
        self.end_actions();
        let ended = self.head().stopping.filter(|leave_running| *leave_running || self.is_down());
        if let Some(leave_running) = ended
            && (self.may_end || !self.events.is_empty())
            && (self.world.reconciled || self.reconciling || leave_running)
        {
            self.promise(Act::StopAgent { leave_running });
        }
    }

    fn outcome(&self, record: &Record, open: &Open) -> Option<Outcome> {
        match &record.action {
            Action::Start { .. }
            | Action::Stop { .. }
            | Action::Restart { .. }
            | Action::Reload { .. }
            | Action::Signal { .. }
            | Action::Remove { .. } => open
                .awaiting
                .is_empty()
                .then(|| open.failed.clone().unwrap_or(Outcome::Done { changed: open.changed })),
            Action::Shutdown { leave_running } => {
                let known = self.world.reconciled || self.reconciling;
                let over = *leave_running || (known && self.is_down());
                (over && self.head().stopping.is_some()).then_some(Outcome::Done { changed: true })
            }
            // These end with an input of their own, or are never taken.
            Action::Run { .. }
            | Action::Apply { .. }
            | Action::Configure { .. }
            | Action::Deploy { .. }
            | Action::Rollout { .. } => None,
        }
    }

    /// Ends the actions of a node that goes down, once their services have: each is answered before the node is gone.
    fn end_actions(&mut self) {
        let known = self.world.reconciled || self.reconciling;
        if self.head().stopping != Some(false) || !known || !self.others_at_rest() {
            return;
        }
        for intent in self.actions().collect::<Vec<_>>() {
            self.repair(Act::KillAction { intent });
        }
    }

    /// Returns the actions that have not ended, by the ids under which the keeper knows them.
    fn actions(&self) -> impl Iterator<Item = IntentId> {
        let is_action = |record: &Record| matches!(record.action, Action::Run { .. });
        let wished =
            self.open_intents().filter(move |(_, record, _)| is_action(record)).map(|(id, ..)| id);
        wished.chain(self.follow_ups().map(|(_, id)| id))
    }

    fn runs_actions(&self) -> bool {
        self.actions().next().is_some()
    }

    fn is_bus(&self, service: &ServiceId) -> bool {
        self.world.bus == Some(service)
    }

    /// Says whether nothing runs but what the node's own answers go through.
    fn others_at_rest(&self) -> bool {
        self.services()
            .filter(|(id, _)| !self.is_bus(id))
            .all(|(_, service)| service.instances.iter().all(Instance::at_rest))
    }

    /// Says whether nothing runs, and nobody waits for the outcome of an action.
    fn is_down(&self) -> bool {
        let mut slots = self.services().flat_map(|(_, service)| &service.instances);
        slots.all(Instance::at_rest) && !self.runs_actions()
    }

    /// Adds the spawns and timers that follow from where every touched instance stands now.
    fn finish(mut self) -> Decision {
        let mut effects = Vec::with_capacity(self.effects.len() + 2);
        let known = self.world.reconciled || self.reconciling;
        for (id, (run, promised)) in &self.spawns {
            let due = self.spawning(id) == Some(*run);
            let Some(service) = self.service(&id.service).filter(|_| due && known) else {
                continue;
            };
            let act = Act::Spawn { instance: id.clone(), run: *run, spec: service.digest };
            effects.push(if *promised { Effect::Promise(act) } else { Effect::Repair(act) });
        }
        effects.append(&mut self.effects);
        for (id, before) in &self.before {
            let after = self.instance(id).map(|instance| instance.deadlines(id));
            let after = after.unwrap_or_default();
            for timer in before.keys().filter(|timer| !after.contains_key(timer)) {
                effects.push(Effect::Repair(Act::CancelTimer { timer: timer.clone() }));
            }
            for (timer, at) in after {
                if before.get(&timer) != Some(&at) || self.is_lost(&timer) {
                    effects.push(Effect::Repair(self.set_timer(timer, at)));
                }
            }
        }
        self.time_releases(&mut effects);
        self.time_overrides(&mut effects);
        Decision { events: self.events, effects }
    }

    /// Says whether a deadline that was set before has to be set again: the timers of an agent live as long as it.
    ///
    /// A run has its time to become ready while agent and keeper are together.
    fn is_lost(&self, timer: &Timer) -> bool {
        self.reconciling && (self.agent_is_new || matches!(timer, Timer::Ready(..)))
    }

    /// Returns how long a deadline may be away, in milliseconds: as long as its rule says.
    fn ms_max(&self, timer: &Timer) -> u64 {
        let of_intent = |intent: &IntentId| {
            let record = self.record(intent)?;
            let open = record.open()?;
            Some((&record.action, open.awaiting.keys().cloned().collect::<Vec<_>>()))
        };
        match timer {
            Timer::Ready(id, _) => self.spec(&id.service).map(|spec| spec.ready.timeout.0),
            Timer::Stop(id, run) => {
                let rules = self.stop_rules(&id.service);
                match self.of_run(id, *run) {
                    Some(State::Stopping { phase, .. }) => Some(match phase {
                        StopPhase::PreStop => rules.pre_timeout.0,
                        StopPhase::Drain => rules.drain.0,
                        StopPhase::Term => rules.timeout.0,
                        StopPhase::Kill => KILL_RETRY_MS_MAX,
                    }),
                    _ => None,
                }
            }
            Timer::Backoff(id) => Some(self.restart_rules(&id.service).max_delay.0),
            Timer::Reload(id, _) => Some(self.reload_rules(&id.service).timeout.0),
            Timer::Stable(id, _) => {
                let rules = self.restart_rules(&id.service);
                self.instance(id).map(|instance| instance.backoff.stable_ms(&rules))
            }
            Timer::Intent(intent) => {
                of_intent(intent).map(|(action, awaiting)| self.budget_ms(action, &awaiting))
            }
            Timer::Override(_) => Some(LIFE_MS_MAX),
            Timer::Release(service) => self
                .spec(service)
                .map(|spec| spec.verdict.healthy_deadline.0.max(spec.verdict.min_healthy_time.0)),
            Timer::Action(id) => {
                self.asked_action(*id).and_then(|asked| Some(asked.declared?.timeout.0))
            }
        }
        .unwrap_or(TIMER_MS_MAX)
    }

    fn set_timer(&self, timer: Timer, at: UnixMicros) -> Act {
        let mut after_ms = at.ms_since(self.now()).min(self.ms_max(&timer)).min(TIMER_MS_MAX);
        if let Timer::Ready(id, _) = &timer
            && self.reconciling
        {
            // Nobody heard it while a part was away, and a pipe that nobody reads may have held it up: its time to
            // become ready begins anew.
            after_ms = self.spec(&id.service).map_or(after_ms, |spec| spec.ready.timeout.0);
        }
        if let Timer::Release(service) = &timer
            && self.reconciling
            && let Some(trying) = self.trial(service).and_then(|trial| trial.trying.as_ref())
        {
            // So does a trial: the machine may have been off for weeks, and its clock may be another one.
            after_ms = match trying.held_since {
                Some(_) if trying.acts_until.is_none() => trying.min_healthy_ms,
                _ => trying.healthy_by.ms_since(trying.since),
            };
        }
        Act::SetTimer { timer, at, after_ms }
    }
}
