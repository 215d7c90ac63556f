//! What follows from a verified wish.

use std::collections::BTreeMap;

use super::Turn;
use super::stop::KILL_RETRY_MS;
use crate::domain::code::Code;
use crate::domain::effect::{Act, Hook, Operation, Reply, Timer};
use crate::domain::event::{
    Cause, Context, Desired, DesiredChanged, Event, InstanceReloading, IntentAccepted,
};
use crate::domain::id::{ActionName, Generation, InstanceId, IntentId, RunId, ServiceId};
use crate::domain::input::Wish;
use crate::domain::instance::State;
use crate::domain::intent::{Action, ActorKind};
use crate::domain::node::Service;
use crate::domain::rejection::Rejection;
use crate::domain::release::Step;
use crate::domain::seen::{OPEN_MAX, OWN_ROOM, Progress, SEEN_MAX, SKEW_MS, failed};
use crate::domain::signal::Signal;
use crate::domain::spec::{self, Kind, Param, ReloadBy};
use crate::domain::time::UnixMicros;

/// What every wish is given beside the times that its service declares, in milliseconds: for the disk, the keeper,
/// and services that it waits for.
const GRACE_MS: u64 = 60_000;

/// How long reading the spec files may take, in milliseconds.
const APPLY_MS: u64 = 5 * 60_000;

/// How long a oneshot may run before a start of it is answered without its end, in milliseconds.
const ONESHOT_MS: u64 = 60 * 60_000;

/// How long a release may take to be fetched, to become healthy, and to be left again, in milliseconds, before the
/// wish is answered without it.
const DEPLOY_MS: u64 = 2 * 60 * 60_000;

/// How long the id of a desired state is remembered at least, in milliseconds.
const REMEMBERED_MS: u64 = 15 * 60_000;

/// How long all services together may take to end, in milliseconds, before the wish is answered without it.
const SHUTDOWN_MS: u64 = 10 * 60_000;

/// The longest value of a parameter, in bytes.
const PARAM_BYTES_MAX: usize = 4096;

impl Turn<'_> {
    pub(super) fn wish(&mut self, wish: Wish) -> Result<(), Rejection> {
        match wish.order.as_ref().map(|order| order.step) {
            Some(Step::Return) => return self.ordered_return(&wish),
            Some(Step::Leave) => return self.ordered_leave(&wish),
            Some(Step::Apply) | None => {}
        }
        let record = self.record(&wish.id);
        if let Some(record) = record.filter(|_| !self.has_left(&wish)) {
            if record.digest != wish.digest {
                return Err(Rejection::Replayed);
            }
            let progress = record.progress.clone();
            // The next leader goes on with the same wish, and has to be known from here on.
            self.follow_order(&wish)?;
            let reply = match progress {
                Progress::Open(_) => Reply::InProgress,
                Progress::Executed { outcome, .. } => Reply::Outcome(outcome),
            };
            self.answer(wish.id, reply);
            return Ok(());
        }
        if let Some(reply) = self.may_deploy(&wish)? {
            self.answer(wish.id, reply);
            return Ok(());
        }
        self.may_take(&wish)?;
        let instances = self.concerned(&wish.action)?;
        self.may_configure(&wish.action)?;
        let older =
            wish.action.release_generation().and_then(|_| self.under_way(wish.action.service()?));
        self.ordered(&wish);
        let until = self.now().plus_ms(self.budget_ms(&wish.action, &instances));
        let cause = Some(Cause::Intent(wish.id));
        let context = match wish.action.service() {
            Some(service) => Context::service(service),
            None => Context::default(),
        }
        .because(cause.clone(), Some(wish.by.clone()));
        let body = IntentAccepted {
            intent: wish.id,
            digest: wish.digest,
            action: wish.action.clone().recorded(),
            release: wish.action.release(),
            // A desired state has its generation; its id need not be remembered for ever.
            expires_at: match wish.action.generation() {
                Some(_) => wish.expires_at.min(self.now().plus_ms(REMEMBERED_MS)),
                None => wish.expires_at,
            },
            instances: Vec::new(),
            until,
            slots: Vec::new(),
        }
        .awaiting(&instances);
        self.emit(context.clone(), Event::IntentAccepted(body));
        self.answer(wish.id, Reply::InProgress);
        let timer = self.set_timer(Timer::Intent(wish.id), until);
        self.repair(timer);

        match wish.action {
            Action::Deploy { .. } => {
                self.deploy(&wish, older);
                return Ok(());
            }
            Action::Configure { .. } => {
                self.configure(&wish, context);
                return Ok(());
            }
            _ => {}
        }
        match wish.action {
            Action::Start { service } | Action::Restart { service } => {
                let oneshot = self.spec(&service).is_some_and(|spec| spec.kind == Kind::Oneshot);
                let up = if oneshot { Desired::Completed } else { Desired::Running };
                self.desire(&service, up, wish.generation, context);
            }
            Action::Stop { service } => {
                self.desire(&service, Desired::Stopped, wish.generation, context);
            }
            Action::Reload { service } => self.reload(&service, wish.id, &instances),
            Action::Signal { signal, .. } => self.signal(signal, wish.id, &instances),
            Action::Run { .. } => self.start_action(wish.id),
            Action::Apply { services } => {
                self.promise(Act::LoadSpecs { intent: wish.id, services });
            }
            Action::Shutdown { leave_running } => {
                self.shut_down(leave_running, cause, Some(wish.by));
            }
            Action::Remove { service, .. } => {
                if let Some(older) = older {
                    self.execute(older, failed(Code::SUPERSEDED, "the service was removed", None));
                }
                self.remove(&service, context);
            }
            // Refused above: see `concerned`.
            Action::Deploy { .. } | Action::Rollout { .. } | Action::Configure { .. } => {}
        }
        Ok(())
    }

    /// Checks what holds for every wish, in the order in which it is cheap.
    fn may_take(&self, wish: &Wish) -> Result<(), Rejection> {
        let head = self.head();
        // A desired state never expires: its generation says whether it is new.
        let by_generation = wish.action.generation().is_some();
        // For a wish of one's own the id alone says whether it is new: a wrong clock, of now or of then, locks nobody
        // out of their own machine.
        let by_time = !wish.is_own && !by_generation;
        // An id whose first time may be forgotten is never a first time.
        let is_late = wish.expires_at.plus_ms(SKEW_MS) < self.now();
        if by_time && (is_late || wish.expires_at <= head.forgotten) {
            return Err(Rejection::Expired);
        }
        if by_time && wish.issued_at < head.epoch_began {
            return Err(Rejection::StaleEpoch);
        }
        let known = wish.action.service().and_then(|service| self.service(service));
        if let (Some(generation), Some(service)) = (wish.generation, known)
            && generation <= service.generation
        {
            return Err(Rejection::StaleGeneration);
        }
        let seen = self.node.seen();
        let kept = if wish.by.kind == ActorKind::Local { 0 } else { OWN_ROOM };
        if seen.open_len() >= OPEN_MAX - kept || seen.len() >= SEEN_MAX - kept {
            return Err(Rejection::Busy);
        }
        if head.stopping.is_some() {
            return Err(Rejection::Ending);
        }
        Ok(())
    }

    fn known(&self, id: &ServiceId) -> Result<&Service, Rejection> {
        let known = self.service(id).filter(|service| !service.removed);
        known.ok_or_else(|| Rejection::NoSuchService(id.clone()))
    }

    /// Returns the instances that have to come somewhere before the wish is fulfilled.
    fn concerned(&self, action: &Action) -> Result<Vec<InstanceId>, Rejection> {
        let Some(id) = action.service() else { return Ok(Vec::new()) };
        match action {
            // It may be the first that the node hears of the service.
            Action::Rollout { .. } => return Err(Rejection::ForControllers),
            Action::Deploy { .. } => return Ok(Vec::new()),
            Action::Remove { .. } if self.known(id).is_err() => return Ok(Vec::new()),
            _ => {}
        }
        let service = self.known(id)?;
        let select = |wanted: fn(&State) -> bool, all: bool| -> Vec<InstanceId> {
            let slots = service.slots().filter(|(index, _)| all || *index < service.wanted);
            slots
                .filter(|(_, slot)| wanted(&slot.state))
                .map(|(index, _)| InstanceId { service: id.clone(), index })
                .collect()
        };
        match action {
            Action::Start { .. } => {
                let oneshot = self.spec(id).is_some_and(|spec| spec.kind == Kind::Oneshot);
                Ok(if oneshot {
                    select(|_| true, false)
                } else {
                    select(|state| !state.is_ready(), false)
                })
            }
            Action::Restart { .. } => Ok(select(|_| true, false)),
            Action::Stop { .. } | Action::Remove { .. } => {
                let slots = service.slots().filter(|(_, slot)| !slot.at_rest());
                Ok(slots.map(|(index, _)| InstanceId { service: id.clone(), index }).collect())
            }
            Action::Signal { signal, .. } => {
                Signal::from_number(*signal).ok_or(Rejection::BadSignal(*signal))?;
                let alive = select(|state| state.main().is_some(), true);
                if alive.is_empty() { Err(Rejection::NotRunning(id.clone())) } else { Ok(alive) }
            }
            Action::Reload { .. } => {
                if self.reload_rules(id).by == ReloadBy::None {
                    return Err(Rejection::NoReload(id.clone()));
                }
                if !select(|state| matches!(state, State::Reloading { .. }), true).is_empty() {
                    return Err(Rejection::Reloading(id.clone()));
                }
                if service.instances.iter().any(|slot| slot.coming().is_some()) {
                    return Err(Rejection::HandingOver(id.clone()));
                }
                let ready = select(|state| matches!(state, State::Running { .. }), true);
                if ready.is_empty() { Err(Rejection::NotRunning(id.clone())) } else { Ok(ready) }
            }
            Action::Run { action, params, confirmed, .. } => {
                self.check_params(id, action, params)?;
                let declared = self.spec(id).and_then(|spec| spec.action.get(action));
                if declared.is_some_and(|declared| declared.confirm) && !confirmed {
                    let (service, action) = (id.clone(), action.clone());
                    return Err(Rejection::NotConfirmed { service, action });
                }
                Ok(Vec::new())
            }
            Action::Apply { .. }
            | Action::Configure { .. }
            | Action::Shutdown { .. }
            | Action::Rollout { .. }
            | Action::Deploy { .. } => Ok(Vec::new()),
        }
    }

    /// Checks names, presence, numbers and lengths. A pattern is checked by the shell, which can run one.
    fn check_params(
        &self,
        service: &ServiceId,
        action: &ActionName,
        params: &BTreeMap<String, String>,
    ) -> Result<(), Rejection> {
        let spec = self.spec(service);
        let declared = spec.and_then(|spec| spec.action.get(action)).ok_or_else(|| {
            Rejection::NoSuchAction {
                service: service.clone(),
                action: action.clone(),
                known: spec.map(|spec| spec.action.keys().cloned().collect()).unwrap_or_default(),
            }
        })?;
        for (name, value) in params {
            let bad = |why| Rejection::BadParameter { name: name.clone(), why };
            match declared
                .params
                .get(name)
                .ok_or_else(|| bad("the action takes no such parameter"))?
            {
                _ if value.len() > PARAM_BYTES_MAX => return Err(bad("longer than 4096 bytes")),
                Param::String { .. } if value.contains('\0') => {
                    return Err(bad("holds a zero byte"));
                }
                Param::String { .. } => {}
                Param::Integer { min, max, .. } => {
                    let number: i64 = value.parse().map_err(|_| bad("not a whole number"))?;
                    if min.is_some_and(|min| number < min) || max.is_some_and(|max| number > max) {
                        return Err(bad("outside its bounds"));
                    }
                }
                Param::Bool { .. } if value == "true" || value == "false" => {}
                Param::Bool { .. } => return Err(bad("neither true nor false")),
            }
        }
        let missing = declared.params.iter().find(|(name, param)| {
            let has_default = match param {
                Param::String { default, .. } => default.is_some(),
                Param::Integer { default, .. } => default.is_some(),
                Param::Bool { default } => default.is_some(),
            };
            !has_default && !params.contains_key(*name)
        });
        missing.map_or(Ok(()), |(name, _)| Err(Rejection::MissingParameter(name.clone())))
    }

    /// Returns how long the wish may take until it is answered without its end.
    pub(super) fn budget_ms(&self, action: &Action, instances: &[InstanceId]) -> u64 {
        let spec = action.service().and_then(|service| self.spec(service));
        let stop_ms = |spec: &spec::Spec| {
            let stop = &spec.stop;
            stop.pre_timeout
                .0
                .saturating_add(stop.drain.0)
                .saturating_add(stop.timeout.0)
                .saturating_add(KILL_RETRY_MS)
        };
        let each_ms = spec.map_or(0, |spec| stop_ms(spec).saturating_add(spec.ready.timeout.0));
        let count = u64::try_from(instances.len()).unwrap_or(u64::MAX);
        let own_ms = match action {
            Action::Start { .. } if spec.is_some_and(|spec| spec.kind == Kind::Oneshot) => {
                ONESHOT_MS
            }
            // One after the other.
            Action::Restart { .. } => each_ms.saturating_mul(count),
            Action::Start { .. } | Action::Stop { .. } | Action::Remove { .. } => each_ms,
            Action::Deploy { .. } => DEPLOY_MS,
            Action::Reload { .. } => spec.map_or(0, |spec| spec.reload.timeout.0),
            Action::Signal { .. } | Action::Rollout { .. } => 0,
            Action::Run { action, .. } => {
                spec.and_then(|spec| spec.action.get(action)).map_or(0, |action| action.timeout.0)
            }
            Action::Apply { .. } | Action::Configure { .. } => APPLY_MS,
            Action::Shutdown { .. } => SHUTDOWN_MS,
        };
        own_ms.saturating_add(GRACE_MS)
    }

    fn desire(
        &mut self,
        service: &ServiceId,
        desired: Desired,
        generation: Option<Generation>,
        context: Context,
    ) {
        let Some(known) = self.service(service) else { return };
        // A numbered wish leaves its number even where nothing else changes.
        if known.desired != desired || generation.is_some() {
            let next = Generation(known.generation.0 + 1);
            let generation = generation.unwrap_or(next);
            self.emit(context, Event::DesiredChanged(DesiredChanged { desired, generation }));
        }
    }

    fn reload(&mut self, service: &ServiceId, intent: IntentId, instances: &[InstanceId]) {
        let rules = self.reload_rules(service);
        let until: UnixMicros = self.now().plus_ms(rules.timeout.0);
        for id in instances {
            let Some(run) = self.state(id).and_then(State::run) else { continue };
            self.emit(self.about(id, run), Event::InstanceReloading(InstanceReloading { until }));
            self.ask_to_reload(id, intent);
        }
    }

    /// Asks the keeper for what a reload consists of. Asking the same keeper again is harmless.
    pub(super) fn ask_to_reload(&mut self, id: &InstanceId, intent: IntentId) {
        let Some(run) = self.state(id).and_then(State::run) else { return };
        let (instance, operation) = (id.clone(), Operation::Wish(intent, id.clone()));
        let act = match self.reload_rules(&id.service).by {
            ReloadBy::Signal(signal) | ReloadBy::Notify(signal) => {
                Act::Signal { instance, run, signal: signal.number(), operation }
            }
            ReloadBy::Exec(_) => Act::RunHook { instance, run, hook: Hook::Reload, operation },
            ReloadBy::None => return,
        };
        self.promise(act);
    }

    pub(super) fn signal(&mut self, signal: i32, intent: IntentId, instances: &[InstanceId]) {
        for id in instances {
            let Some(main) = self.state(id).and_then(State::main) else { continue };
            let run = main.run;
            self.send_signal(signal, intent, id.clone(), run);
        }
    }

    /// Asks the keeper for a signal to one run. Asking again is harmless: the operation is done once.
    pub(super) fn send_signal(
        &mut self,
        signal: i32,
        intent: IntentId,
        instance: InstanceId,
        run: RunId,
    ) {
        let operation = Operation::Wish(intent, instance.clone());
        self.promise(Act::Signal { instance, run, signal, operation });
    }
}
