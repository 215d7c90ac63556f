//! Probes the runs of services as their specs say, and tells the core which checks pass and which fail.
//!
//! A probe is a task of its own with a deadline, or a program that the keeper starts as it does a hook; the agent starts it when its time has come and hears its answer as a
//! wake. What does not run is not probed, and without a keeper nothing is: what a failure leads to is asked of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::asked::Asked;
use super::clock;
use super::launch::Start;
use super::names::{self, Memo};
use super::probe;
use super::task::{Agent, Deadline};
use super::wake::Wake;
use crate::domain::event::{Context, Event};
use crate::domain::health::{Age, Answer, Check, Watch};
use crate::domain::id::{CheckName, InstanceId, RunId, ServiceId};
use crate::domain::input::Input;
use crate::domain::instance::{Instance, State};
use crate::domain::spec::{Millis, Probe, ReadyBy, Spec, Target};
use crate::domain::template::Template;
use crate::domain::time::UnixMicros;
use crate::ipc::keeper::{RunName, Verb};
use crate::wire::status::CheckStatus;

/// How many probes are under way at a time. Others wait for their turn, and their own time begins with it.
const AT_ONCE_MAX: usize = 64;

/// What is probed. It is not folded: an agent that begins anew counts anew.
#[derive(Debug)]
pub(super) struct Probes {
    watched: BTreeMap<InstanceId, BTreeMap<(RunId, CheckName), Probing>>,
    turns: Arc<Semaphore>,
    /// Tells programs apart, those of an agent before this one as well.
    number: u64,
}

impl Default for Probes {
    fn default() -> Self {
        let turns = Arc::new(Semaphore::new(AT_ONCE_MAX));
        Self { watched: BTreeMap::new(), turns, number: clock::now().mono_ns }
    }
}

impl Probes {
    /// Says whether a check waits for this program.
    pub(super) fn awaits(
        &self,
        instance: &InstanceId,
        run: RunId,
        check: &CheckName,
        program: &RunName,
    ) -> bool {
        let checks = self.watched.get(instance);
        let probing = checks.and_then(|checks| checks.get(&(run, check.clone())));
        let asking = probing.and_then(|probing| probing.asking.as_ref());
        asking.is_some_and(|asking| asking.program.as_ref() == Some(program))
    }
}

#[derive(Debug)]
struct Probing {
    watch: Watch,
    /// Where it connects to, and how that is written, unless a program is asked; or why nowhere.
    target: Result<Option<(Target, String)>, String>,
    last_at: Option<UnixMicros>,
    asking: Option<Asking>,
}

/// A probe that is under way; it ends with this.
#[derive(Debug)]
struct Asking {
    /// Asks, or tells when the time of a program is over.
    task: JoinHandle<()>,
    /// The program, which is an errand.
    program: Option<RunName>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns the runs of a slot that are to be probed, each with what is known of its checks.
fn probed_runs<'a>(
    slot: &'a Instance,
    spec: &Spec,
) -> impl Iterator<Item = (RunId, &'a BTreeMap<CheckName, Check>)> {
    let beside = slot.beside.as_ref().filter(|_| slot.coming().is_some());
    let beside = beside.and_then(|beside| Some((probed_run(&beside.state, spec)?, &beside.checks)));
    probed_run(&slot.state, spec).map(|run| (run, &slot.checks)).into_iter().chain(beside)
}

fn probed_run(state: &State, spec: &Spec) -> Option<RunId> {
    match state {
        State::Starting { main, .. } if spec.ready.by == ReadyBy::Health => Some(main.run),
        State::Running { main } | State::Reloading { main, .. } => Some(main.run),
        State::Starting { .. }
        | State::Inactive
        | State::Waiting { .. }
        | State::Spawning { .. }
        | State::Stopping { .. }
        | State::Backoff { .. }
        | State::Completed
        | State::Failed => None,
    }
}

impl Agent {
    /// Lets the probes follow what has happened.
    pub(super) fn heed_probes(&mut self, context: &Context, event: &Event) {
        let Some(service) = &context.service else { return };
        match (event, context.instance_id()) {
            (Event::ServiceAdded(_) | Event::ServiceRemoved(_), _) => {
                self.watch_checks_of(service);
            }
            (
                Event::InstanceStarted(_)
                | Event::InstanceReady(_)
                | Event::InstanceHandedOver(_)
                | Event::InstanceReloaded(_)
                | Event::InstanceStopping(_)
                | Event::InstanceExited(_),
                Some(instance),
            ) => self.watch_checks(instance),
            _ => {}
        }
    }

    /// Probes whatever is to be probed, after agent and keeper have met.
    pub(super) fn watch_all_checks(&mut self) {
        // What became of programs in between is not known: they are asked anew.
        let all = self.probes.watched.values_mut().flat_map(BTreeMap::values_mut);
        for probing in all.filter(|it| matches!(it.watch.rule().probe, Probe::Exec { .. })) {
            probing.asking = None;
        }
        let services: Vec<ServiceId> = self.node.services().keys().cloned().collect();
        for service in services {
            self.watch_checks_of(&service);
        }
    }

    fn watch_checks_of(&mut self, service: &ServiceId) {
        let slots = self.node.services().get(service).map_or(0, |known| known.instances.len());
        let watched = self.probes.watched.keys().filter(|id| id.service == *service);
        let gone: Vec<_> = watched.filter(|id| usize::from(id.index) >= slots).cloned().collect();
        let known = (0..slots).filter_map(|index| u16::try_from(index).ok());
        let known = known.map(|index| InstanceId { service: service.clone(), index });
        for instance in known.chain(gone).collect::<Vec<_>>() {
            self.watch_checks(instance);
        }
    }

    /// Begins, goes on, or ends to probe one slot. Each check is asked soon: something has changed.
    fn watch_checks(&mut self, instance: InstanceId) {
        let spec = self.services.spec_of(&instance.service).map(|(spec, _)| spec);
        let spec = spec.filter(|spec| !spec.health.is_empty());
        let mut before = self.probes.watched.remove(&instance).unwrap_or_default();
        let mut after = BTreeMap::new();
        let slot = self.node.instance(&instance);
        if let (Some(slot), Some(spec)) = (slot, spec) {
            for (run, checks) in probed_runs(slot, &spec) {
                for (name, rule) in &spec.health {
                    let key = (run, name.clone());
                    let kept = before.remove(&key).filter(|kept| kept.watch.watches(rule));
                    let mut probing = kept.unwrap_or_else(|| {
                        let known = checks.get(name).map(|check| check.failing.is_none());
                        let watch = Watch::new(rule, known);
                        let target = rule.probe.address().map(|address| {
                            let text = self.launchers.text(address, &instance, run)?;
                            Ok((Target::parse(&text)?, text))
                        });
                        let target = target.transpose();
                        Probing { watch, target, last_at: None, asking: None }
                    });
                    probing.watch.hurry();
                    if probing.asking.is_none() {
                        let deadline = Deadline::Probe(instance.clone(), run, name.clone());
                        self.timers.set(deadline, clock::now().mono_ns);
                    }
                    after.insert(key, probing);
                }
            }
        }
        for (run, name) in before.into_keys() {
            self.timers.cancel(&Deadline::Probe(instance.clone(), run, name));
        }
        if !after.is_empty() {
            self.probes.watched.insert(instance, after);
        }
    }

    /// Starts a probe whose time has come.
    pub(super) fn probe(&mut self, instance: InstanceId, run: RunId, check: CheckName) {
        if !self.hands.met() {
            return; // The next meeting begins it again.
        }
        let checks = self.probes.watched.get_mut(&instance);
        let probing = checks.and_then(|checks| checks.get_mut(&(run, check.clone())));
        let Some(probing) = probing else { return };
        let rule = probing.watch.rule().clone();
        if let Probe::Exec { exec } = &rule.probe {
            return self.probe_by_program(instance, run, check, exec, rule.timeout);
        }
        let (target, turns) = (probing.target.clone(), self.probes.turns.clone());
        let waker = self.waker.clone();
        let task = tokio::spawn(async move {
            let _turn = turns.acquire().await.expect("the semaphore is never closed");
            let (answer, rest) = match target {
                Ok(Some((target, host))) => probe::ask(&target, &host, &rule).await,
                Ok(None) => (Err("there is no address".to_owned()), None),
                Err(why) => (Err(why), None),
            };
            if waker.send(Wake::Probed { instance, run, check, answer }).await.is_ok()
                && let Some(rest) = rest
            {
                probe::read_rest(rest).await;
            }
        });
        probing.asking = Some(Asking { task, program: None });
    }

    /// Has the keeper start a program, which is given its time from here on.
    fn probe_by_program(
        &mut self,
        instance: InstanceId,
        run: RunId,
        check: CheckName,
        exec: &[Template],
        within: Millis,
    ) {
        let Some((spec, _)) = self.services.spec_of(&instance.service) else { return };
        self.probes.number += 1;
        let program = names::check(&instance, run, self.probes.number);
        let memo = Memo::Check { instance: instance.clone(), run, check: check.clone() };
        let start = Start { spec: &spec, instance: &instance, run };
        let prepared = self.launchers.check(start, exec, program.clone(), memo.encode());
        let waker = self.waker.clone();
        let late = Wake::Probed {
            instance: instance.clone(),
            run,
            check: check.clone(),
            answer: Err(format!("not ended within {}ms", within.0)),
        };
        let task = tokio::spawn(async move {
            tokio::time::sleep(within.duration()).await;
            drop(waker.send(late).await); // An agent that ends needs no answer.
        });
        let checks = self.probes.watched.get_mut(&instance);
        let probing = checks.and_then(|checks| checks.get_mut(&(run, check.clone())));
        let probing = probing.expect("whoever calls this has found it");
        probing.asking = Some(Asking { task, program: Some(program) });
        match prepared {
            Ok(spawn) => {
                let asked = Asked::Check(instance, run, check);
                self.hands.ask(asked, Verb::Spawn(Box::new(spawn)));
            }
            Err(fault) => self.probed(instance, run, check, Err(fault.to_string())),
        }
    }

    /// Takes the end of a program; an end that nobody saw says nothing, and it is asked again.
    pub(super) fn check_ended(
        &mut self,
        program: &RunName,
        instance: InstanceId,
        run: RunId,
        check: CheckName,
        answer: Option<Answer>,
    ) {
        if !self.probes.awaits(&instance, run, &check, program) {
            return; // Its time was over before.
        }
        match answer {
            Some(answer) => self.probed(instance, run, check, answer),
            None => self.timers.set(Deadline::Probe(instance, run, check), clock::now().mono_ns),
        }
    }

    /// Takes the answer of a probe, and sets the time of the next.
    pub(super) fn probed(
        &mut self,
        instance: InstanceId,
        run: RunId,
        check: CheckName,
        answer: Answer,
    ) {
        let now = clock::now();
        let age = self.age(&instance, run, now.at);
        let checks = self.probes.watched.get_mut(&instance);
        let probing = checks.and_then(|checks| checks.get_mut(&(run, check.clone())));
        let Some(probing) = probing else { return };
        if matches!(probing.watch.rule().probe, Probe::Exec { .. })
            && probing.asking.take().is_none()
        {
            return; // It ended just before its time was over.
        }
        if !self.hands.met() {
            probing.asking = None;
            return;
        }
        probing.last_at = Some(now.at);
        let verdict = probing.watch.answered(answer, age);
        let due = now.mono_ns.saturating_add(probing.watch.interval_ms().saturating_mul(1_000_000));
        self.timers.set(Deadline::Probe(instance.clone(), run, check.clone()), due);
        if let Some(verdict) = verdict {
            self.inbox.push_back(Input::Checked { instance, run, check, verdict });
        }
        self.kill_useless_errands();
    }

    fn age(&self, instance: &InstanceId, run: RunId, now: UnixMicros) -> Age {
        let spec = self.services.spec_of(&instance.service);
        let given_ms = spec.map_or(0, |(spec, _)| spec.ready.timeout.0);
        let slot = self.node.instance(instance);
        match slot.and_then(|slot| slot.of_run(run)) {
            Some(State::Starting { .. }) => Age::Starting,
            // One that is to take over is not judged before it has.
            Some(_) if slot.is_some_and(|slot| slot.state.run() != Some(run)) => Age::Starting,
            Some(state)
                if state.main().is_some_and(|it| now.ms_since(it.started_at) < given_ms) =>
            {
                Age::Young
            }
            _ => Age::Grown,
        }
    }

    /// Says how the checks of a slot stand at this moment.
    pub(super) fn check_status(&self, instance: &InstanceId, slot: &Instance) -> Vec<CheckStatus> {
        let Some((spec, _)) = self.services.spec_of(&instance.service) else { return Vec::new() };
        let watched = self.probes.watched.get(instance);
        let status = |name: &CheckName| {
            let mut status = CheckStatus::folded(name, slot.checks.get(name));
            let key = slot.state.run().map(|run| (run, name.clone()));
            let probing = watched.zip(key).and_then(|(checks, key)| checks.get(&key));
            if let Some(probing) = probing {
                status.last_at = probing.last_at;
                status.interval_ms = Some(probing.watch.interval_ms());
                status.failures = probing.watch.failures();
                if let Some(message) = probing.watch.message() {
                    message.clone_into(&mut status.message);
                }
            }
            status
        };
        spec.health.keys().map(status).collect()
    }
}
