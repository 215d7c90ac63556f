//! What the keeper, the clock and the spec files report.

use std::collections::BTreeMap;

use super::Turn;
use crate::domain::backoff::Retry;
use crate::domain::code::Code;
use crate::domain::effect::{Act, Hook, Timer};
use crate::domain::event::{
    Actor, AgentStopping, AlertFired, AlertResolved, Cause, Context, Desired, Event, Exit,
    InstanceExited, InstanceReady, InstanceReloaded, InstanceSignalled, InstanceStartFailed,
    InstanceStarted, Next, Outcome, RunResult, ServiceAdded, ServiceRemoved, StateName, StopPhase,
    StopReason,
};
use crate::domain::id::{Digest, InstanceId, IntentId, RunId, ServiceId};
use crate::domain::input::{Delivery, Ended};
use crate::domain::instance::{Left, RESTART_LIMIT, State, Then};
use crate::domain::intent::Action;
use crate::domain::seen::{LOST, failed};
use crate::domain::spec::{Kind, OnLimit, ReadyBy, ReloadBy, RestartPolicy, Severity};
use crate::domain::text;
use crate::domain::time::UnixMicros;

impl Turn<'_> {
    pub(super) fn started(
        &mut self,
        id: &InstanceId,
        run: RunId,
        pid: u32,
        pidfd_inode: u64,
        spec: Digest,
    ) {
        let Some(instance) = self.instance(id) else { return };
        let backoff = instance.backoff.clone();
        let is_coming = instance.coming().is_some_and(|coming| coming.state.run() == Some(run));
        let to = match instance.of_run(run) {
            Some(State::Spawning { .. }) => StateName::Running,
            Some(State::Stopping { left: Left::Asked, .. }) => StateName::Stopping,
            Some(_) => return, // Said before.
            // Nobody waits for it any more, and nobody would ever stop it.
            None => return self.repair(Act::KillTree { instance: id.clone(), run }),
        };
        let rules = self.spec(&id.service).map(|spec| spec.ready.clone()).unwrap_or_default();
        let at_once = rules.by == ReadyBy::Started;
        let restart = self.restart_rules(&id.service);
        let stable_at = backoff.alerting.then(|| self.now().plus_ms(backoff.stable_ms(&restart)));
        let body = InstanceStarted {
            from: if to == StateName::Stopping { to } else { StateName::Starting },
            to: if to == StateName::Running && !at_once { StateName::Starting } else { to },
            pid,
            pidfd_inode,
            spec,
            restarts: backoff.restarts,
            ready_by: (!at_once || is_coming).then(|| self.now().plus_ms(rules.timeout.0)),
            stable_at,
            after: self.followed(&id.service),
        };
        self.emit(self.about(id, run), Event::InstanceStarted(body));
        // A stop that came while the process was being made begins to be felt here.
        self.ask_to_end(id, run);
    }

    pub(super) fn start_failed(
        &mut self,
        id: &InstanceId,
        run: RunId,
        step: String,
        errno: i32,
        why: String,
    ) {
        self.promise(Act::Acknowledge { instance: id.clone(), run });
        let Some(instance) = self.instance(id) else { return };
        let backoff = instance.backoff.clone();
        let is_beside = instance.is_beside(Some(run));
        let Some(state) = instance.of_run(run) else { return };
        let from = state.name();
        let stopping = match state {
            State::Spawning { .. } => None,
            State::Stopping { left: Left::Asked, then, .. } => Some(*then),
            _ => return,
        };
        let rules = self.restart_rules(&id.service);
        let retry = backoff.retry(&rules, 0, self.now(), self.entropy(id));
        let wanted = self.is_wanted(id);
        let (to, next_attempt_at) = match stopping {
            _ if !wanted || is_beside => (StateName::Inactive, None),
            Some(then) if then.starts() => (StateName::Backoff, Some(self.now())),
            Some(_) => (StateName::Inactive, None),
            None if rules.policy == RestartPolicy::Never => (StateName::Failed, None),
            None if retry.over_limit && rules.on_limit == OnLimit::Fail => {
                (StateName::Failed, None)
            }
            None => (StateName::Backoff, Some(self.now().plus_ms(retry.delay_ms))),
        };
        let retries = to == StateName::Backoff && stopping.is_none();
        let body = InstanceStartFailed {
            from,
            to,
            step,
            errno,
            why: text::brief(why, text::WHY_BYTES_MAX),
            restarts: if retries { retry.restarts } else { backoff.restarts },
            next_attempt_at,
            base_ms: if retries { retry.base_ms } else { backoff.base_ms },
            window_since: if retries { retry.window_since } else { backoff.window_since },
            window_restarts: if retries { retry.window_restarts } else { backoff.window_restarts },
        };
        self.emit(self.about(id, run), Event::InstanceStartFailed(body));
        if retries && retry.over_limit {
            self.alert(id, run, &retry);
        }
    }

    pub(super) fn ready(&mut self, id: &InstanceId, run: RunId, how: String) {
        match self.of_run(id, run) {
            Some(State::Starting { main, .. }) => {
                let ready_ms = self.now().ms_since(main.started_at);
                self.emit(
                    self.about(id, run),
                    Event::InstanceReady(InstanceReady { how, ready_ms }),
                );
            }
            Some(State::Reloading { main, .. })
                if main.run == run
                    && matches!(self.reload_rules(&id.service).by, ReloadBy::Notify(_)) =>
            {
                self.reloaded(id, run, None);
            }
            Some(State::Spawning { .. }) => {
                self.repair(Act::KeepReady { instance: id.clone(), run, how });
            }
            _ => {} // A repeated word is not news.
        }
    }

    pub(super) fn reloaded(&mut self, id: &InstanceId, run: RunId, failed: Option<String>) {
        let since = self.instance(id).map(|instance| instance.since).unwrap_or_default();
        let body = InstanceReloaded { failed, took_ms: self.now().ms_since(since) };
        self.emit(self.about(id, run), Event::InstanceReloaded(body));
    }

    pub(super) fn exited(&mut self, id: &InstanceId, run: RunId, pid: u32, ended: Ended) {
        let tree_empty = ended.tree_empty;
        let Some(instance) = self.instance(id) else { return };
        let Some(state) = instance
            .of_run(run)
            .filter(|state| !matches!(state, State::Stopping { left: Left::Rest, .. }))
        else {
            match tree_empty {
                true => self.tree_gone(id, run),
                // Whether they were asked to end is not known.
                false if self.reconciling => self.ask_to_end(id, run),
                false => {}
            }
            return;
        };
        if matches!(state, State::Spawning { .. } | State::Stopping { left: Left::Asked, .. }) {
            // The end overtook the word of the start.
            let spec = self.service(&id.service).map_or(Digest([0; 32]), |service| service.digest);
            self.started(id, run, pid, 0, spec);
        }
        if self.state(id).is_some_and(|state| state.is_ready() && state.run() == Some(run)) {
            self.give_way(id);
        }
        self.record_exit(id, run, pid, ended);
        if tree_empty {
            if matches!(self.of_run(id, run), Some(State::Stopping { .. })) {
                self.stopped(id, run);
            }
            self.promise(Act::Acknowledge { instance: id.clone(), run });
        } else {
            self.end_rest(id, run);
        }
    }

    /// Writes down the end of a main process and what follows from it.
    fn record_exit(&mut self, id: &InstanceId, run: RunId, pid: u32, ended: Ended) {
        let Some(instance) = self.instance(id) else { return };
        let rules = self.restart_rules(&id.service);
        let backoff = instance.backoff.clone();
        let Some(state) = instance.of_run(run) else { return };
        let (from, stop) = match state {
            State::Stopping { phase, reason, .. } => (StateName::Stopping, Some((*phase, *reason))),
            state => (state.name(), None),
        };
        let is_beside = instance.is_beside(Some(run));
        let result = self.result(id, &ended, stop);
        let is_outdated = self.is_outdated(id);
        let retry = backoff.retry(&rules, ended.ran_ms, self.now(), self.entropy(id));
        // A stop that was asked for goes on to what was asked for; every other end is for the policy.
        let by_policy = !is_beside
            && !matches!(
                stop,
                Some((_, StopReason::Wish | StopReason::Update | StopReason::Dependency))
            );
        let then = if is_beside { Some(Then::Inactive) } else { None };
        let then = then.or_else(|| {
            by_policy.then(|| match self.follow(id, &ended, result, &retry) {
                // What made it fail may be what was changed in the meantime.
                Then::Failed if is_outdated => Then::Start,
                then => then,
            })
        });
        let retries = then.is_some_and(Then::starts);
        let hit = by_policy
            && retry.over_limit
            && rules.on_limit == OnLimit::Fail
            && then == Some(Then::Failed);
        let leaves_rest = stop.is_none() && !ended.tree_empty;
        let next = match (stop, leaves_rest, then) {
            (None, false, Some(then)) => self.next_after(id, then),
            _ => Next::Stopping,
        };
        let body = InstanceExited {
            from,
            pid,
            exit: ended.exit,
            result: if hit { RunResult::StartLimitHit } else { result },
            oom_killed: ended.oom_killed,
            ran_ms: ended.ran_ms,
            usage: ended.usage,
            next,
            delay_ms: if retries { retry.delay_ms } else { 0 },
            restarts: match (retries, is_beside) {
                (true, _) => retry.restarts,
                (false, true) => backoff.restarts,
                (false, false) => backoff.restarts_after(ended.ran_ms, &rules),
            },
            tail: ended.tail,
            then: (next == Next::Stopping).then_some(then).flatten().map(Next::from),
            until: leaves_rest.then(|| self.now().plus_ms(super::stop::KILL_RETRY_MS)),
            base_ms: if retries { retry.base_ms } else { backoff.base_ms },
            window_since: if retries { retry.window_since } else { backoff.window_since },
            window_restarts: if retries { retry.window_restarts } else { backoff.window_restarts },
        };
        let context = match stop {
            Some(_) => self.about(id, run),
            None => Context::run(id, run).with(self.asked_by(id).unwrap_or_default()),
        };
        self.emit(context, Event::InstanceExited(body));
        if retries && retry.over_limit {
            self.alert(id, run, &retry);
        }
    }

    /// Says whether the process of an instance runs from an older spec than its service has.
    pub(super) fn is_outdated(&self, id: &InstanceId) -> bool {
        let digest = self.service(&id.service).map(|service| service.digest);
        self.state(id).and_then(State::main).is_some_and(|main| Some(main.spec) != digest)
    }

    /// Returns what an end means for the service.
    fn result(
        &self,
        id: &InstanceId,
        ended: &Ended,
        stop: Option<(StopPhase, StopReason)>,
    ) -> RunResult {
        let rules = self.restart_rules(&id.service);
        let asked = self.stop_rules(&id.service).signal.number();
        match (stop, ended.exit) {
            (Some((_, StopReason::ReadyTimeout)), _) => RunResult::Timeout,
            (Some((_, StopReason::Unhealthy)), _) => RunResult::Watchdog,
            (Some((StopPhase::Kill, _)), Exit::Signal { .. }) => RunResult::Timeout,
            (Some(_), Exit::Signal { signal, .. }) if signal == asked => RunResult::Success,
            (_, Exit::Unknown) => RunResult::Unknown,
            (_, Exit::Signal { .. }) if ended.oom_killed => RunResult::OomKill,
            (_, Exit::Signal { core_dumped: true, .. }) => RunResult::CoreDump,
            (_, Exit::Signal { .. }) => RunResult::Signal,
            (_, Exit::Code(code)) if holds(&rules.success_codes, code) => RunResult::Success,
            (_, Exit::Code(_)) => RunResult::ExitCode,
        }
    }

    /// Returns what the service's policy says about an end.
    fn follow(&self, id: &InstanceId, ended: &Ended, result: RunResult, retry: &Retry) -> Then {
        let rules = self.restart_rules(&id.service);
        let oneshot = self.spec(&id.service).is_some_and(|spec| spec.kind == Kind::Oneshot);
        let fatal = matches!(ended.exit, Exit::Code(code) if holds(&rules.fatal_codes, code));
        let success = result == RunResult::Success;
        match rules.policy {
            _ if !self.is_wanted(id) => Then::Inactive,
            _ if fatal => Then::Failed,
            _ if success && oneshot => Then::Completed,
            RestartPolicy::OnFailure | RestartPolicy::Never if success => Then::Completed,
            RestartPolicy::Never => Then::Failed,
            RestartPolicy::Always | RestartPolicy::OnFailure => match retry.delay_ms {
                _ if retry.over_limit && rules.on_limit == OnLimit::Fail => Then::Failed,
                0 => Then::Start,
                delay_ms => Then::StartAt(self.now().plus_ms(delay_ms)),
            },
        }
    }

    fn alert(&mut self, id: &InstanceId, run: RunId, retry: &Retry) {
        if self.instance(id).is_none_or(|instance| instance.backoff.alerting) {
            return;
        }
        let rules = self.restart_rules(&id.service);
        let within_s = self.now().ms_since(retry.window_since).div_ceil(1000);
        let summary = format!(
            "{} restarts in {within_s}s (limit {} in {}s); still trying, every {}s",
            retry.window_restarts,
            rules.limit,
            rules.limit_window.0 / 1000,
            rules.max_delay.0 / 1000,
        );
        let alert = format!("{}{RESTART_LIMIT}", id.service);
        let body = AlertFired {
            alert,
            severity: Severity::Warning.word().to_owned(),
            summary,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            line: None,
        };
        self.emit(Context::run(id, run), Event::AlertFired(body));
    }

    pub(super) fn tree_gone(&mut self, id: &InstanceId, run: RunId) {
        let over = match self.of_run(id, run) {
            Some(State::Stopping { left: Left::Rest, .. }) => {
                self.stopped(id, run);
                true
            }
            Some(_) => false,
            // Its end was written down before, and the keeper did not hear that.
            None => true,
        };
        if over {
            self.promise(Act::Acknowledge { instance: id.clone(), run });
        }
    }

    pub(super) fn signal_delivered(
        &mut self,
        intent: IntentId,
        id: &InstanceId,
        delivery: Delivery,
    ) {
        let Some(record) = self.record(&intent) else { return };
        let (action, by) = (record.action.clone(), record.by.clone());
        if record.open().is_none_or(|open| !open.awaiting.contains_key(id)) {
            return; // Said before.
        }
        if self.instance(id).is_none() {
            // No event can tell of an instance that is not there any more: the wish ends with what is known.
            let outcome = match delivery {
                Delivery::Delivered => Outcome::Done { changed: true },
                Delivery::Gone | Delivery::Refused(_) => {
                    failed(Code::NOT_RUNNING, "the instance was removed", None)
                }
                Delivery::Lost => Outcome::Unknown { why: LOST.to_owned() },
            };
            return self.execute(intent, outcome);
        }
        let failed = match delivery {
            Delivery::Delivered => None,
            Delivery::Gone => Some("the process was gone".to_owned()),
            Delivery::Refused(errno) => Some(format!("the kernel refused with error {errno}")),
            Delivery::Lost => Some(LOST.to_owned()),
        };
        match action {
            Action::Signal { signal, .. } => {
                let context = Context {
                    run: self.state(id).and_then(State::run),
                    ..Context::instance(id).because(Some(Cause::Intent(intent)), by)
                };
                let body = InstanceSignalled { intent, signal, failed };
                self.emit(context, Event::InstanceSignalled(body));
            }
            Action::Reload { .. } => {
                let Some(State::Reloading { main, .. }) = self.state(id) else { return };
                let run = main.run;
                let waits = matches!(self.reload_rules(&id.service).by, ReloadBy::Notify(_));
                if failed.is_some() || !waits {
                    self.reloaded(id, run, failed);
                }
            }
            Action::Start { .. }
            | Action::Stop { .. }
            | Action::Restart { .. }
            | Action::Run { .. }
            | Action::Apply { .. }
            | Action::Deploy { .. }
            | Action::Remove { .. }
            | Action::Configure { .. }
            | Action::Rollout { .. }
            | Action::Shutdown { .. } => {}
        }
    }

    pub(super) fn hook_ended(&mut self, id: &InstanceId, run: RunId, hook: Hook, exit: Exit) {
        match (hook, self.of_run(id, run)) {
            (Hook::PreStop, Some(State::Stopping { phase: StopPhase::PreStop, .. })) => {
                self.next_phase(id, run);
            }
            (Hook::Reload, Some(State::Reloading { main, .. })) if main.run == run => {
                let failed = match exit {
                    Exit::Code(0) => None,
                    Exit::Code(code) => Some(format!("the reload command exited with code {code}")),
                    Exit::Signal { signal, .. } => {
                        Some(format!("signal {signal} ended the reload command"))
                    }
                    Exit::Unknown => Some(LOST.to_owned()),
                };
                self.reloaded(id, run, failed);
            }
            _ => {}
        }
    }

    pub(super) fn timer(&mut self, timer: Timer, at: UnixMicros) {
        match timer {
            Timer::Intent(intent) => {
                if self.open(&intent).is_some_and(|open| open.until == at) {
                    self.give_up(intent);
                }
            }
            Timer::Action(intent) => {
                let of_wish = self.open(&intent).and_then(|open| open.action_until);
                if of_wish.or_else(|| self.follow_up_until(intent)) == Some(at) {
                    self.repair(Act::KillAction { intent });
                }
            }
            // The trial is judged after every input.
            Timer::Release(service) => self.passed = Some((service, at)),
            Timer::Override(service) => self.expire(&service, at),
            Timer::Ready(ref id, run)
            | Timer::Stop(ref id, run)
            | Timer::Reload(ref id, run)
            | Timer::Stable(ref id, run) => self.run_timer(id, run, &timer, at),
            Timer::Backoff(ref id) => {
                if self.is_due(id, &timer, at) && self.is_wanted(id) {
                    self.bring_up(id, false);
                }
            }
        }
    }

    /// Says whether a deadline is one that an instance has; otherwise it is of a state that is over.
    fn is_due(&self, id: &InstanceId, timer: &Timer, at: UnixMicros) -> bool {
        let deadlines = self.instance(id).map(|instance| instance.deadlines(id));
        deadlines.is_some_and(|deadlines| deadlines.get(timer) == Some(&at))
    }

    fn run_timer(&mut self, id: &InstanceId, run: RunId, timer: &Timer, at: UnixMicros) {
        if !self.is_due(id, timer, at) {
            return;
        }
        let counts = self.state(id).and_then(State::run) == Some(run);
        match self.of_run(id, run) {
            Some(State::Starting { .. }) if counts => {
                self.begin_stop(id, self.is_wanted(id), StopReason::ReadyTimeout);
            }
            // It was to take over, and is not ready, or not well, in time.
            Some(State::Starting { .. } | State::Running { .. }) if !counts => {
                self.begin_stop_of(id, run, false, StopReason::ReadyTimeout);
            }
            Some(State::Stopping { .. }) => self.next_phase(id, run),
            Some(State::Reloading { .. }) => {
                self.reloaded(id, run, Some("it was not done in time".to_owned()));
            }
            Some(State::Running { .. }) => {
                let context = Context::run(id, run);
                let alert = format!("{}{RESTART_LIMIT}", id.service);
                self.emit(context, Event::AlertResolved(AlertResolved { alert }));
            }
            _ => {}
        }
    }

    /// Closes a wish that came to no outcome in its time. What it set in motion goes on.
    fn give_up(&mut self, intent: IntentId) {
        let Some(record) = self.record(&intent) else { return };
        let why = "no outcome in its time; what it set in motion goes on";
        let outcome = match &record.action {
            Action::Start { .. } | Action::Restart { .. } => failed(Code::NOT_READY, why, None),
            Action::Stop { .. } | Action::Remove { .. } | Action::Shutdown { .. } => {
                failed(Code::NOT_STOPPED, why, None)
            }
            Action::Reload { .. }
            | Action::Signal { .. }
            | Action::Run { .. }
            | Action::Apply { .. }
            | Action::Configure { .. }
            | Action::Rollout { .. }
            | Action::Deploy { .. } => Outcome::Unknown { why: why.to_owned() },
        };
        self.execute(intent, outcome);
    }

    pub(super) fn spec_adopted(
        &mut self,
        id: &ServiceId,
        digest: Digest,
        origin: String,
        intent: Option<IntentId>,
        keeps: Option<Digest>,
        keys: Vec<String>,
    ) {
        let Some(spec) = self.spec(id) else { return };
        let desired = match (spec.enabled, spec.kind) {
            (false, _) => Desired::Stopped,
            (true, Kind::Daemon) => Desired::Running,
            (true, Kind::Oneshot) => Desired::Completed,
        };
        let instances = spec.instances;
        let is_known = self.service(id).is_some_and(|service| {
            !service.removed
                && service.digest == digest
                && service.origin == origin
                && service.wanted == instances
        });
        if !is_known {
            let by = self.by(intent);
            let context = Context::service(id).because(intent.map(Cause::Intent), by);
            let is_changed = self.service(id).is_some_and(|service| service.digest != digest);
            let body = ServiceAdded { digest, origin, instances, desired, keeps, keys };
            self.emit(context, Event::ServiceAdded(body));
            if is_changed {
                self.try_anew(id);
            }
        }
        self.end_orphaned_alerts(id);
        self.forget_orphaned_checks(id);
    }

    /// Starts what waits for its next try, or was given up, at once: what made it fail may be what was changed.
    pub(super) fn try_anew(&mut self, service: &ServiceId) {
        let Some(known) = self.service(service) else { return };
        let failing = |state: &State| matches!(state, State::Backoff { .. } | State::Failed);
        let slots = known.slots().filter(|(_, slot)| failing(&slot.state));
        let ids: Vec<InstanceId> = slots
            .map(|(index, _)| InstanceId { service: service.clone(), index })
            .filter(|id| self.is_wanted(id))
            .collect();
        for id in ids {
            self.bring_up(&id, true);
        }
    }

    pub(super) fn spec_removed(&mut self, id: &ServiceId, intent: Option<IntentId>) {
        let Some(service) = self.service(id).filter(|service| !service.removed) else { return };
        let digest = service.digest;
        let by = self.by(intent);
        let context = Context::service(id).because(intent.map(Cause::Intent), by);
        // While it is known: what is removed at rest is forgotten at once.
        self.end_all_alerts(id);
        self.emit(context, Event::ServiceRemoved(ServiceRemoved { digest }));
    }

    fn by(&self, intent: Option<IntentId>) -> Option<Actor> {
        self.record(&intent?)?.by.clone()
    }

    pub(super) fn applied(&mut self, intent: IntentId, problem: Option<(String, String)>) {
        let Some(open) = self.open(&intent) else { return };
        let outcome = match problem {
            Some((code, why)) => Outcome::Failed { code, why, exit: None },
            None => Outcome::Done { changed: open.changed },
        };
        self.execute(intent, outcome);
    }

    pub(super) fn shut_down(
        &mut self,
        leave_running: bool,
        cause: Option<Cause>,
        by: Option<Actor>,
    ) {
        self.may_end = true;
        if self.head().stopping.is_none() {
            let context = Context::default().because(cause, by);
            self.emit(context, Event::AgentStopping(AgentStopping { leave_running }));
        }
    }

    /// Returns random bits for one instance, so that those of one decision do not move together.
    fn entropy(&self, id: &InstanceId) -> u64 {
        let mut mixed = self.world.entropy ^ (u64::from(id.index) << 48);
        for byte in id.service.as_str().bytes() {
            mixed = (mixed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        mixed ^ (mixed << 32)
    }
}

fn holds(codes: &[u8], code: i32) -> bool {
    u8::try_from(code).is_ok_and(|code| codes.contains(&code))
}
