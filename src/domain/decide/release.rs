//! Releases on this node: taken up, watched, judged, and left again.
//!
//! The verdict is the node's own: nobody else sees a process end before it is ready. On a failure the node returns by
//! itself, under the generation after that of the wish, so that no order can apply it again.

use std::collections::BTreeMap;

use super::Turn;
use crate::domain::code::Code;
use crate::domain::effect::{Act, Effect, Reply, Timer};
use crate::domain::event::{
    ActionStarted, Cause, Context, Desired, DesiredChanged, Event, Exit, Outcome, RunResult,
    ServiceAdded, ServiceRemoved,
};
use crate::domain::id::{ActionName, Digest, Generation, InstanceId, IntentId, ServiceId};
use crate::domain::input::{OrderMark, StagedRelease, Wish};
use crate::domain::intent::Action;
use crate::domain::rejection::Rejection;
use crate::domain::release::trial::{Broken, Failure, Releases, Trial};
use crate::domain::release::{
    OrderAccepted, Phase, ReleaseApplied, ReleaseFailed, ReleaseHealthy, ReleaseReturned,
    ReleaseStaged, Step,
};
use crate::domain::seen::failed;
use crate::domain::spec::{Kind, OnFailure};
use crate::domain::text;
use crate::domain::time::UnixMicros;

/// What a return may take until it has failed, in milliseconds, where the spec that is returned to says less.
const RETURN_MS_MIN: u64 = 60_000;

/// Why a release failed.
struct Found {
    code: Code,
    why: String,
    instance: Option<InstanceId>,
    result: Option<RunResult>,
    exit: Option<Exit>,
    ran_ms: Option<u64>,
}

impl Found {
    fn of(code: Code, why: String) -> Self {
        Self { code, why, instance: None, result: None, exit: None, ran_ms: None }
    }

    fn broken(code: Code, broken: &Broken) -> Self {
        let Broken { instance, why, result, exit, ran_ms, was_ready: _ } = broken.clone();
        Self { code, why, instance: Some(instance), result, exit, ran_ms }
    }

    /// An action runs beside the first instance, and what it says stands in the log of that.
    fn by_action(
        service: &ServiceId,
        action: &ActionName,
        why: String,
        exit: Option<Exit>,
        ran_ms: Option<u64>,
    ) -> Self {
        let instance = Some(InstanceId { service: service.clone(), index: 0 });
        let why = format!("action {action}: {why}");
        Self { instance, exit, ran_ms, ..Self::of(Code::ACTION_FAILED, why) }
    }
}

impl Turn<'_> {
    fn releases(&self, service: &ServiceId) -> Option<&Releases> {
        let node = if self.loaded.contains(service) { &self.draft } else { self.node };
        node.releases().get(service)
    }

    pub(super) fn trial(&self, service: &ServiceId) -> Option<&Trial> {
        self.releases(service)?.trial.as_deref()
    }

    /// Says whether a wish for a release may be taken, or what is answered without taking it.
    pub(super) fn may_deploy(&self, wish: &Wish) -> Result<Option<Reply>, Rejection> {
        let (Some(service), Some(generation)) = (wish.action.service(), wish.action.generation())
        else {
            return Ok(None);
        };
        if let Action::Configure { .. } = wish.action {
            return wish
                .order
                .as_ref()
                .map_or(Ok(None), |order| self.may_obey(order).map(|()| None));
        }
        if let Some(order) = &wish.order {
            self.may_follow(order, wish.id, service, generation)?;
        }
        let known = self.releases(service).filter(|it| generation <= it.generation);
        let Some(known) = known.filter(|_| !self.has_left(wish)) else {
            return self.risks_nothing(wish, service).map(|()| None);
        };
        let mark = known.current.as_ref();
        let is_so = mark.is_some_and(|mark| {
            mark.generation == generation && Some(mark.release) == wish.action.release()
        });
        match (is_so && known.trial.is_none(), &wish.action) {
            // Its id is so old that it was forgotten, and it is so.
            (true, _) => Ok(Some(Reply::Outcome(Outcome::Done { changed: false }))),
            (false, Action::Remove { .. }) if known.generation == generation => {
                Ok(Some(Reply::Outcome(Outcome::Done { changed: false })))
            }
            (false, _) => Err(Rejection::StaleGeneration),
        }
    }

    /// Checks that a release which no node has proved comes only where nothing of the service is, or was.
    fn risks_nothing(&self, wish: &Wish, service: &ServiceId) -> Result<(), Rejection> {
        let is_unproved = wish.order.as_ref().is_some_and(|order| order.is_unproved);
        let is_here = self.service(service).is_some() || self.releases(service).is_some();
        match is_unproved && is_here {
            true => Err(Rejection::Unproved(service.clone())),
            false => Ok(()),
        }
    }

    /// Checks whether the controller of an order leads, as far as this node knows.
    fn may_obey(&self, order: &OrderMark) -> Result<(), Rejection> {
        let Some((term, controller)) = &self.head().term else { return Ok(()) };
        if order.term < *term {
            return Err(Rejection::StaleTerm { term: order.term, seen: *term });
        }
        if order.term == *term && order.controller != *controller {
            return Err(Rejection::ForkedTerm { term: *term, leads: controller.clone() });
        }
        Ok(())
    }

    /// Checks an order against what was seen before.
    fn may_follow(
        &self,
        order: &OrderMark,
        intent: IntentId,
        service: &ServiceId,
        generation: Generation,
    ) -> Result<(), Rejection> {
        self.may_obey(order)?;
        let Some(known) = self.releases(service) else { return Ok(()) };
        if known.plan.is_some_and(|(of, plan)| of == intent && plan != order.plan) {
            return Err(Rejection::AnotherPlan);
        }
        if order.step == Step::Apply && known.generation == Generation(generation.0 + 1) {
            return Err(Rejection::Returned);
        }
        Ok(())
    }

    /// Checks the order of a wish that was taken before, and notes a newer leader.
    pub(super) fn follow_order(&mut self, wish: &Wish) -> Result<(), Rejection> {
        let (Some(order), Some(service), Some(generation)) =
            (&wish.order, wish.action.service(), wish.action.generation())
        else {
            return Ok(());
        };
        self.may_follow(order, wish.id, service, generation)?;
        if self.head().term.as_ref().is_none_or(|(term, _)| *term < order.term) {
            self.ordered(wish);
        }
        Ok(())
    }

    /// Writes down that an order was taken.
    pub(super) fn ordered(&mut self, wish: &Wish) {
        let (Some(order), Some(service), Some(generation)) =
            (&wish.order, wish.action.service(), wish.action.generation())
        else {
            return;
        };
        let body = OrderAccepted {
            intent: wish.id,
            generation,
            release: wish.action.release(),
            step: order.step,
            plan: order.plan,
            term: order.term,
            controller: order.controller.clone(),
            verified_at: order.verified_at,
            wave: order.wave,
        };
        let cause = Some(Cause::Intent(wish.id));
        let context = Context::service(service).because(cause, Some(wish.by.clone()));
        self.emit(context, Event::OrderAccepted(body));
    }

    /// Does what the order of a return asks for.
    pub(super) fn ordered_return(&mut self, wish: &Wish) -> Result<(), Rejection> {
        let (Some(service), Some(generation)) = (wish.action.service(), wish.action.generation())
        else {
            return Ok(());
        };
        if let Some(order) = &wish.order {
            self.may_follow(order, wish.id, service, generation)?;
        }
        let known = self.releases(service).map(|it| it.generation).unwrap_or_default();
        if known > Generation(generation.0 + 1) {
            return Err(Rejection::StaleGeneration);
        }
        if known < Generation(generation.0 + 1) {
            let own = |trial: &&Trial| trial.intent == wish.id;
            let other = self.under_way(service).filter(|intent| *intent != wish.id);
            let was_staging = self.trial(service).filter(own).is_some_and(|it| it.trying.is_none());
            self.ordered(wish);
            if let Some(other) = other.filter(|other| self.under_way(service) != Some(*other)) {
                let why = "the release before it was taken back";
                self.execute(other, failed(Code::SUPERSEDED, why, None));
            }
            match self.trial(service).filter(own).map(|trial| trial.back.is_some()) {
                Some(true) => self.stage(service),
                Some(false) => self.end_in_failure(service, Code::NO_WAY_BACK),
                None if was_staging => {
                    let why = "the controller ordered the return";
                    self.execute(wish.id, failed(Code::RETURNED, why, None));
                }
                None => {}
            }
        }
        self.answer(wish.id, Reply::InProgress);
        Ok(())
    }

    /// Says whether a controller orders anew what was taken from the node because the wish did not mean it.
    ///
    /// Only an order brings it back: whoever sends the wish itself again, repeats it.
    pub(super) fn has_left(&self, wish: &Wish) -> bool {
        let known = wish.action.service().and_then(|service| self.releases(service));
        let is_next = |known: &Releases| {
            known.left == Some(wish.id) && wish.action.generation() == Some(known.generation)
        };
        wish.order.is_some() && known.is_some_and(is_next)
    }

    /// Takes the service away, since the wish means the node no more.
    pub(super) fn ordered_leave(&mut self, wish: &Wish) -> Result<(), Rejection> {
        let (Some(service), Some(generation)) = (wish.action.service(), wish.action.generation())
        else {
            return Ok(());
        };
        if let Some(order) = &wish.order {
            self.may_follow(order, wish.id, service, generation)?;
        }
        let known = self.releases(service);
        if known.is_some_and(|it| it.generation > Generation(generation.0 + 1)) {
            return Err(Rejection::StaleGeneration);
        }
        if known.is_none_or(|it| it.left != Some(wish.id)) {
            if let Some(older) = self.under_way(service) {
                let why = "the node is not meant any more";
                self.execute(older, failed(Code::SUPERSEDED, why, None));
            }
            self.ordered(wish);
            let cause = Some(Cause::Intent(wish.id));
            self.remove(service, Context::service(service).because(cause, Some(wish.by.clone())));
        }
        self.answer(wish.id, Reply::Outcome(Outcome::Done { changed: true }));
        Ok(())
    }

    /// Begins with what was accepted.
    pub(super) fn deploy(&mut self, wish: &Wish, older: Option<IntentId>) {
        if let Some(older) = older {
            let why = "a newer release took its place";
            self.execute(older, failed(Code::SUPERSEDED, why, None));
        }
        let Some(service) = wish.action.service() else { return };
        self.stage(service);
    }

    /// Returns the wish whose release is on its way.
    pub(super) fn under_way(&self, service: &ServiceId) -> Option<IntentId> {
        self.trial(service).map(|trial| trial.intent)
    }

    /// Asks for the files and the spec of what is on its way.
    pub(super) fn stage(&mut self, service: &ServiceId) {
        let Some(trial) = self.trial(service).filter(|trial| trial.trying.is_none()) else {
            return;
        };
        let (generation, step) = (trial.generation, trial.step);
        let (release, spec) = match (step, &trial.back) {
            (Step::Apply, _) => (Some(trial.release), None),
            (Step::Return, Some(back)) => (back.release, Some(back.spec)),
            (Step::Return, None) | (Step::Leave, _) => return,
        };
        let service = service.clone();
        self.promise(Act::Stage { service, generation, step, release, spec });
    }

    /// Asks again for what an agent before this one had asked for.
    pub(super) fn stage_again(&mut self) {
        let releases = self.node.releases().iter();
        let open = releases.filter(|(_, it)| it.trial.is_some()).map(|(id, _)| id.clone());
        for service in open.collect::<Vec<_>>() {
            self.stage(&service);
        }
    }

    pub(super) fn about_release(&self, service: &ServiceId) -> Context {
        let intent = self.trial(service).map(|trial| trial.intent);
        let by = intent.and_then(|intent| self.record(&intent)).and_then(|it| it.by.clone());
        Context::service(service).because(intent.map(Cause::Intent), by)
    }

    /// Takes in that files and spec are here, or are not to be had.
    pub(super) fn staged(
        &mut self,
        service: &ServiceId,
        generation: Generation,
        staged: Result<StagedRelease, (Code, String)>,
    ) {
        let Some(trial) = self.trial(service) else { return };
        if trial.generation != generation || trial.trying.is_some() {
            return; // Of a wish that something newer took the place of.
        }
        match staged {
            Ok(staged) => self.switch(service, staged),
            Err((code, why)) => self.not_staged(service, code, why),
        }
    }

    fn not_staged(&mut self, service: &ServiceId, code: Code, why: String) {
        let Some(trial) = self.trial(service) else { return };
        let (intent, step) = (trial.intent, trial.step);
        let why = text::brief(why, text::WHY_BYTES_MAX);
        let body = ReleaseFailed {
            generation: trial.generation,
            release: trial.release,
            step,
            phase: Phase::Staging,
            code: code.to_string(),
            why: why.clone(),
            instance: None,
            result: None,
            exit: None,
            ran_ms: None,
            tail: None,
            returns: false,
        };
        let context = self.about_release(service);
        self.emit(context, Event::ReleaseFailed(body));
        let code = if step == Step::Return { Code::RETURN_FAILED } else { code };
        self.execute(intent, failed(code, why, None));
    }

    /// Lets the service run from what was staged.
    fn switch(&mut self, service: &ServiceId, staged: StagedRelease) {
        let Some(spec) = self.spec(service) else { return };
        let Some(trial) = self.trial(service).cloned() else { return };
        let context = self.about_release(service);
        let now = match trial.step {
            Step::Apply => Some(trial.release),
            Step::Return | Step::Leave => trial.back.as_ref().and_then(|back| back.release),
        };
        if trial.step == Step::Apply {
            let body = ReleaseStaged {
                generation: trial.generation,
                release: trial.release,
                version: staged.version.clone(),
                artifact: staged.artifact,
                tree: staged.tree,
                bytes: staged.bytes,
                took_ms: self.now().ms_since(trial.since),
            };
            self.emit(context.clone(), Event::ReleaseStaged(body));
        }
        let deadline_ms = match trial.step {
            Step::Apply => spec.verdict.healthy_deadline.0,
            Step::Return | Step::Leave => spec.verdict.healthy_deadline.0.max(RETURN_MS_MIN),
        };
        let by_process = spec.verdict.by_process;
        let is_judged = |on_failure| !by_process && on_failure != OnFailure::Report;
        let judged = spec.health.iter().filter(|(_, rule)| is_judged(rule.on_failure));
        let follow_ups = spec.action.iter().filter(|(_, action)| action.after_deploy);
        let ordered = self.releases(service).and_then(|it| it.plan);
        let plan = ordered.filter(|(of, _)| *of == trial.intent).map(|(_, plan)| plan);
        let body = ReleaseApplied {
            generation: trial.generation,
            release: trial.release,
            step: trial.step,
            now,
            version: staged.version,
            spec: staged.digest,
            after: match trial.step {
                Step::Apply => follow_ups.map(|(name, _)| name.clone()).collect(),
                Step::Return | Step::Leave => Vec::new(),
            },
            min_healthy_ms: match trial.step {
                Step::Apply => spec.verdict.min_healthy_time.0,
                Step::Return | Step::Leave => 0,
            },
            healthy_by: self.now().plus_ms(deadline_ms),
            checks: match trial.step {
                Step::Apply => judged.map(|(name, _)| name.clone()).collect(),
                Step::Return | Step::Leave => Vec::new(),
            },
            by_process,
            keep: spec.verdict.keep,
            plan,
            term: plan.and(self.head().term.as_ref().map(|(term, _)| *term)),
        };
        self.emit(context.clone(), Event::ReleaseApplied(body));
        let up = if spec.kind == Kind::Oneshot { Desired::Completed } else { Desired::Running };
        let known = self.service(service).filter(|known| !known.removed);
        let is_current = known.is_some_and(|known| known.digest == staged.digest);
        let wants = known.map(|known| (known.desired, known.generation));
        if !is_current {
            let body = ServiceAdded {
                digest: staged.digest,
                origin: staged.origin,
                instances: spec.instances,
                desired: up,
                keeps: None,
                keys: Vec::new(),
            };
            self.emit(context.clone(), Event::ServiceAdded(body));
            self.try_anew(service);
        }
        // What is deployed is to run; whoever wants it down says so afterwards.
        if let Some((Desired::Stopped, generation)) = wants
            && trial.step == Step::Apply
        {
            let generation = Generation(generation.0 + 1);
            self.emit(context, Event::DesiredChanged(DesiredChanged { desired: up, generation }));
        }
        self.end_orphaned_alerts(service);
        self.forget_orphaned_checks(service);
    }

    /// Judges what is on trial, as far as there is something to say.
    pub(super) fn judge_releases(&mut self) {
        let mut services: Vec<ServiceId> = self
            .node
            .releases()
            .iter()
            .chain(self.draft.releases())
            .filter(|(_, it)| it.trial.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        services.sort();
        services.dedup();
        for service in services {
            self.judge(&service);
        }
    }

    fn judge(&mut self, service: &ServiceId) {
        let Some(trial) = self.trial(service) else { return };
        let Some(trying) = &trial.trying else { return };
        let passed = self.passed.as_ref().filter(|(of, _)| of == service).map(|(_, at)| *at);
        let is_over = |due: UnixMicros| passed.is_some_and(|at| due <= at);
        let held = trying.held_since.filter(|since| {
            trying.min_healthy_ms == 0 || is_over(since.plus_ms(trying.min_healthy_ms))
        });
        if trying.broken.is_some() {
            return self.fail(service, None);
        }
        match (trial.step, held) {
            // An action begins when it was healthy for long enough, and has what is left of its time.
            (Step::Apply, _) if trial.acting().is_some() => {
                // It has none where the clock was set meanwhile: what is healthy now was so too late by that.
                let is_late = trial.deadline().is_some_and(is_over);
                if let Some(action) = trial.next_action().cloned().filter(|_| is_late) {
                    let why = "it was not over in the time that the release had".to_owned();
                    self.fail(service, Some(Found::by_action(service, &action, why, None, None)));
                }
            }
            (Step::Return | Step::Leave, Some(_)) => self.returned(service),
            (Step::Apply, Some(since)) => {
                let generation = trial.generation;
                let slots = self.service(service).into_iter().flat_map(|known| known.slots());
                let mains = slots.filter_map(|(index, slot)| Some((index, slot.state.main()?)));
                let first = mains.map(|(index, main)| (index, main.pid)).next();
                let pid = first.map(|(_, pid)| pid);
                let service = service.clone();
                self.repair(Act::ProveRelease { service, generation, since, pid });
            }
            (_, None) if is_over(trying.healthy_by) => self.fail(service, None),
            (_, None) => {}
        }
    }

    /// Takes in what the first instance runs: the release is good.
    pub(super) fn proved(
        &mut self,
        service: &ServiceId,
        generation: Generation,
        held: UnixMicros,
        running: Result<Option<Digest>, String>,
    ) {
        let now = self.now();
        let Some(trial) = self.trial(service).filter(|trial| trial.generation == generation) else {
            return;
        };
        let Some(trying) = &trial.trying else { return };
        // It may have been unwell since it was looked at.
        let Some(since) = trying.held_since.filter(|since| *since == held) else { return };
        if trial.step != Step::Apply || trial.acting().is_some() {
            return;
        }
        let running = match running {
            Ok(running) => running,
            Err(why) => return self.fail(service, Some(Found::of(Code::WRONG_PROGRAM, why))),
        };
        if let Some(action) = trial.next_action() {
            if self.head().stopping == Some(false) {
                return; // It would be ended at once. It begins when the release is healthy again.
            }
            let (intent, id, action) = (trial.intent, trial.action_id(action), action.clone());
            let declared = self.spec(service).and_then(|spec| spec.action.get(&action));
            let body = ActionStarted { intent, action, until: self.until(declared) };
            self.begun(id, self.about_release(service), body);
            return self.ask_for_follow_up(service);
        }
        let (intent, body) = (
            trial.intent,
            ReleaseHealthy {
                generation,
                release: trial.release,
                running,
                ready_ms: since.ms_since(trying.since),
                held_ms: now.ms_since(since),
            },
        );
        let context = self.about_release(service);
        self.emit(context, Event::ReleaseHealthy(body));
        let changed = self.open(&intent).is_some_and(|open| open.changed);
        self.execute(intent, Outcome::Done { changed });
        self.promise(Act::PruneReleases { service: service.clone() });
    }

    /// Returns the actions after a deploy that have begun: whose they are, and under which id the keeper knows them.
    pub(super) fn follow_ups(&self) -> impl Iterator<Item = (ServiceId, IntentId)> {
        let older = self.node.releases().keys();
        let newer = self.draft.releases().keys();
        let newer = newer.filter(|service| !self.node.releases().contains_key(*service));
        older.chain(newer).filter_map(|service| {
            let (id, _) = self.trial(service)?.acting()?;
            Some((service.clone(), id))
        })
    }

    /// Returns when such an action is killed.
    pub(super) fn follow_up_until(&self, id: IntentId) -> Option<UnixMicros> {
        let (service, _) = self.follow_ups().find(|(_, known)| *known == id)?;
        self.trial(&service)?.trying.as_ref()?.acts_until
    }

    /// Asks for the action that has begun; asking again is harmless as long as the keeper lives.
    pub(super) fn ask_for_follow_up(&mut self, service: &ServiceId) {
        let acting = self.trial(service).and_then(Trial::acting);
        let Some((intent, action)) = acting.map(|(id, action)| (id, action.clone())) else {
            return;
        };
        let (service, params) = (service.clone(), BTreeMap::new());
        self.promise(Act::StartAction { intent, service, action, params });
    }

    /// Takes in what came of an action after a deploy. One that succeeded leads on when the release is looked at again.
    pub(super) fn follow_up_ended(
        &mut self,
        service: &ServiceId,
        action: &ActionName,
        outcome: &Outcome,
        ran_ms: u64,
    ) {
        let (why, exit) = match outcome {
            Outcome::Done { .. } => return,
            Outcome::Failed { why, exit, .. } => (why.clone(), *exit),
            Outcome::Unknown { why } => (why.clone(), None),
        };
        let ran_ms = exit.map(|_| ran_ms);
        self.fail(service, Some(Found::by_action(service, action, why, exit, ran_ms)));
    }

    fn returned(&mut self, service: &ServiceId) {
        let Some(trial) = self.trial(service).cloned() else { return };
        let body = ReleaseReturned {
            generation: trial.generation,
            release: trial.release,
            to: trial.back.and_then(|back| back.release),
            took_ms: self.now().ms_since(trial.since),
            kept_serving: self.runs_since_before(service, trial.since),
        };
        let context = self.about_release(service);
        self.emit(context, Event::ReleaseReturned(body));
        let Failure { why, exit } =
            trial.failure.unwrap_or(Failure { why: String::new(), exit: None });
        self.execute(trial.intent, failed(Code::RELEASE_RETURNED, why, exit));
        self.promise(Act::PruneReleases { service: service.clone() });
    }

    /// Says whether each instance is still served by a process that was there at that time.
    fn runs_since_before(&self, service: &ServiceId, at: UnixMicros) -> bool {
        let slots = self.service(service).into_iter().flat_map(|known| known.slots());
        let mut mains = slots.filter_map(|(_, slot)| slot.state.main()).peekable();
        mains.peek().is_some() && mains.all(|main| main.started_at < at)
    }

    /// Writes down that a release failed, and begins the return where there is one; `found` says why where it was neither
    /// an instance nor the time.
    fn fail(&mut self, service: &ServiceId, found: Option<Found>) {
        let Some(trial) = self.trial(service).cloned() else { return };
        let Some(trying) = &trial.trying else { return };
        let returns = trial.step == Step::Apply && trial.back.is_some();
        let code = Releases::code_of(trial.step, returns);
        let late = || {
            let all = trial.step == Step::Apply && trying.held_since.is_some();
            match all {
                true => "it was not healthy for long enough in its time".to_owned(),
                false => "not all instances were healthy in time".to_owned(),
            }
        };
        let broken = |broken: &Broken| Found::broken(code, broken);
        let found = found.or_else(|| trying.broken.as_ref().map(broken));
        let found = found.unwrap_or_else(|| Found::of(code, late()));
        let why = text::brief(found.why, text::WHY_BYTES_MAX);
        let exit = found.exit;
        let body = ReleaseFailed {
            generation: trial.generation,
            release: trial.release,
            step: trial.step,
            phase: trial.phase(),
            code: found.code.to_string(),
            why: why.clone(),
            instance: found.instance,
            result: found.result,
            exit,
            ran_ms: found.ran_ms,
            tail: None,
            returns,
        };
        let context = self.about_release(service);
        self.emit(context, Event::ReleaseFailed(body));
        match returns {
            true => self.stage(service),
            false => self.execute(trial.intent, failed(code, why, exit)),
        }
    }

    fn end_in_failure(&mut self, service: &ServiceId, code: Code) {
        self.not_staged(service, code, "there is nothing to return to".to_owned());
    }

    /// Takes a service from the node.
    pub(super) fn remove(&mut self, service: &ServiceId, context: Context) {
        let Some(known) = self.service(service).filter(|known| !known.removed) else { return };
        let digest = known.digest;
        self.end_all_alerts(service);
        self.emit(context, Event::ServiceRemoved(ServiceRemoved { digest }));
    }

    /// Adds the timers of trials that follow from where they stand now.
    pub(super) fn time_releases(&self, effects: &mut Vec<Effect>) {
        let deadline = |releases: Option<&Releases>| -> Option<UnixMicros> {
            releases?.trial.as_ref()?.deadline()
        };
        let all = self.node.releases().keys().chain(self.draft.releases().keys());
        let mut all: Vec<&ServiceId> = all.collect();
        all.sort();
        all.dedup();
        for service in all {
            let before = deadline(self.node.releases().get(service));
            let after = deadline(self.releases(service));
            let is_lost = self.reconciling && self.agent_is_new && after.is_some();
            if before == after && !is_lost {
                continue;
            }
            let timer = Timer::Release(service.clone());
            effects.push(Effect::Repair(match after {
                Some(at) => self.set_timer(timer, at),
                None => Act::CancelTimer { timer },
            }));
        }
    }
}
