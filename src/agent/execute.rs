//! Carries out what was decided, and turns what the keeper, the logs and the services say into inputs of the core.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use regex::Regex;
use tracing::{debug, error, warn};

use super::asked::{Asked, delivery_of};
use super::hands::Standing;
use super::launch::Start;
use super::names::{self, Memo};
use super::task::{Agent, Deadline, Promise};
use super::{clock, logs};
use crate::domain::effect::{Act, Hook, Operation};
use crate::domain::event::{Context, Event, Exit, LinesDropped, Usage};
use crate::domain::health::Answer as Checked;
use crate::domain::id::{Digest, InstanceId, IntentId, RunId};
use crate::domain::input::{ActionEnd, Decision, Ended, Input};
use crate::domain::instance::State;
use crate::domain::signal::Signal;
use crate::domain::spec::ReadyBy;
use crate::domain::time::UnixMicros;
use crate::ipc::keeper::{
    Answer, Fact, FromKeeper, Moment, Refusal, ShutdownMode, Target, Verb, What,
};

impl Agent {
    /// Does one thing. What follows from it at once is queued, never decided in the middle of a decision.
    pub(super) fn act(&mut self, act: Act) {
        let Some(act) = self.after_farewell(act) else { return };
        match act {
            Act::Spawn { instance, run, spec } => {
                if self.hands.met() && self.node.awaits_start(&instance, run) {
                    self.spawn(instance, run, spec);
                } else {
                    debug!(%instance, %run, "a start that nobody waits for any more");
                }
            }
            Act::Signal { instance, run, signal, operation } => {
                let asked = match &operation {
                    Operation::Wish(intent, _) => Asked::Signal(*intent, instance.clone()),
                    _ => Asked::Stop(instance.clone(), run),
                };
                let to = match &operation {
                    Operation::StopRest(..) => Target::Tree,
                    _ => Target::Main,
                };
                let operation = match &operation {
                    Operation::Wish(..) => Some(operation.id()),
                    // A signal of a stop that comes twice asks for the same thing.
                    _ => None,
                };
                let run = names::run(&instance, run);
                let verb = Verb::Signal { run, signal, to, operation };
                self.hands.ask(asked, verb);
            }
            Act::KillTree { instance, run } => {
                let run = names::run(&instance, run);
                self.hands.ask(Asked::KillTree(run.clone()), Verb::KillTree { run });
            }
            Act::RunHook { instance, run, hook, operation } => {
                self.run_hook(instance, run, hook, operation.id());
            }
            // A fact is acknowledged by its number, when everything that it led to is durable.
            Act::Acknowledge { instance, run } => self.launchers.forget(&instance, run),
            Act::AcknowledgeAction { .. } => {}
            Act::SetTimer { timer, at, after_ms } => {
                let due = clock::now().mono_ns + after_ms.saturating_mul(1_000_000);
                self.timers.set(Deadline::Core(timer.clone()), due);
                self.overdue.remove(&timer);
                self.recorded.insert(timer, at);
            }
            Act::CancelTimer { timer } => {
                self.timers.cancel(&Deadline::Core(timer.clone()));
                self.overdue.remove(&timer);
                self.recorded.remove(&timer);
            }
            Act::KeepReady { instance, run, how } => self.keep_ready(instance, run, how),
            Act::StartAction { intent, service, action, params } => {
                // A release may have failed, or a wish been given up, since it was promised.
                if self.node.awaits_action(&intent) {
                    self.start_action(intent, &service, &action, &params);
                } else {
                    debug!(%intent, "an action that nobody waits for any more");
                }
            }
            Act::KillAction { intent } => {
                let run = names::action(intent);
                self.hands.ask(Asked::KillTree(run.clone()), Verb::KillTree { run });
            }
            Act::LoadSpecs { intent, services } => self.load_specs(intent, &services),
            Act::Stage { service, generation, release, .. } => {
                self.stage(service, generation, release);
            }
            Act::ProveRelease { service, generation, since, pid } => {
                self.prove(service, generation, since, pid);
            }
            Act::PruneReleases { service } => self.prune_releases(&service),
            Act::Answer { intent, reply } => self.promise_answer(intent, reply),
            Act::StopAgent { leave_running } => self.stop_agent(leave_running),
        }
    }

    /// Ends when all that was recorded is on disk.
    pub(super) fn end(&mut self) {
        // A log that takes nothing may never do so again: what is not in it was told to nobody.
        self.ending |= self.outage().is_some();
        self.recorder.promise(Promise::End);
        self.let_go(self.recorder.durable_seq());
    }

    /// The keeper is gone. One that was told to end has done so.
    pub(super) fn keeper_down(&mut self) {
        if self.hands.pending.is_ending() {
            self.end();
        }
        self.hands.disconnect();
    }

    fn spawn(&mut self, instance: InstanceId, run: RunId, decided: Digest) {
        let Some((spec, digest)) = self.services.spec_of(&instance.service) else {
            let why = "its spec is not there".to_owned();
            return self.start_failed(instance, run, "prepare", 0, why);
        };
        if digest != decided {
            debug!(%instance, %run, "its spec has changed since its start was decided");
        }
        if let Some(why) = self.broken_release(&instance.service, &spec) {
            return self.start_failed(instance, run, "release", 0, why);
        }
        let memo = Memo::Run { instance: instance.clone(), run, spec: digest };
        let prepared = self.launchers.run(&spec, &instance, run, memo.encode());
        match prepared {
            Ok(spawn) => {
                self.prepare_logs(&instance, run, &spec.ready.by, None);
                self.hands.ask(Asked::Spawn(instance, run), Verb::Spawn(Box::new(spawn)));
            }
            Err(fault) => {
                self.start_failed(instance, run, fault.step, fault.errno, fault.why);
            }
        }
    }

    fn start_failed(
        &mut self,
        instance: InstanceId,
        run: RunId,
        step: &str,
        errno: i32,
        why: String,
    ) {
        let step = step.to_owned();
        self.inbox.push_back(Input::StartFailed { instance, run, step, errno, why });
    }

    /// Tells the log thread whose lines come next, before the first of them can come.
    pub(super) fn prepare_logs(
        &self,
        instance: &InstanceId,
        run: RunId,
        ready: &ReadyBy,
        since: Option<UnixMicros>,
    ) {
        let logs = self.logs.handle();
        if since.is_none() {
            told(logs.mark_run(instance.clone(), run));
        }
        if let ReadyBy::Log(pattern) = ready {
            match Regex::new(pattern) {
                Ok(pattern) => told(logs.watch_ready(instance.clone(), run, pattern, since)),
                Err(why) => error!(%instance, %why, "a pattern that was checked does not compile"),
            }
        }
    }

    fn run_hook(&mut self, instance: InstanceId, run: RunId, hook: Hook, operation: [u8; 16]) {
        let memo = Memo::Hook { instance: instance.clone(), run, hook: hook.into() };
        let name = names::hook(&instance, run, hook, operation);
        let prepared = match self.services.spec_of(&instance.service) {
            Some((spec, _)) => {
                self.launchers.hook(&spec, &instance, run, hook, name, memo.encode())
            }
            None => return self.hook_ended(instance, run, hook, Exit::Unknown),
        };
        match prepared {
            Ok(spawn) => {
                let asked = Asked::Hook(instance, run, hook);
                self.hands.ask(asked, Verb::Spawn(Box::new(spawn)));
            }
            Err(fault) => {
                warn!(%instance, ?hook, why = fault.why, "a hook could not be prepared");
                self.hook_ended(instance, run, hook, Exit::Code(127));
            }
        }
    }

    fn hook_ended(&mut self, instance: InstanceId, run: RunId, hook: Hook, exit: Exit) {
        self.inbox.push_back(Input::HookEnded { instance, run, hook, exit });
    }

    fn start_action(
        &mut self,
        intent: IntentId,
        service: &crate::domain::id::ServiceId,
        action: &crate::domain::id::ActionName,
        params: &std::collections::BTreeMap<String, String>,
    ) {
        let instance = InstanceId { service: service.clone(), index: 0 };
        let memo = Memo::Action { intent, instance: instance.clone() };
        // It finds the folder and the credentials of the run that it acts on.
        let run = self.node.instance(&instance).and_then(|slot| slot.state.run());
        let prepared = match self.services.spec_of(service) {
            Some((spec, _)) => self.launchers.action(
                Start { spec: &spec, instance: &instance, run: run.unwrap_or(RunId(0)) },
                action,
                params,
                names::action(intent),
                memo.encode(),
            ),
            None => return self.action_not_started(intent, "its service has no spec".to_owned()),
        };
        match prepared {
            Ok(spawn) => self.hands.ask(Asked::Action(intent), Verb::Spawn(Box::new(spawn))),
            Err(fault) => self.action_not_started(intent, fault.why),
        }
    }

    fn action_not_started(&mut self, intent: IntentId, why: String) {
        let end = ActionEnd::NotStarted { why };
        self.inbox.push_back(Input::ActionEnded { intent, end });
    }

    pub(super) fn keeper_said(&mut self, frame: FromKeeper, descriptors: Vec<OwnedFd>) {
        match frame {
            FromKeeper::Hello { .. } => warn!("the keeper says hello twice"),
            FromKeeper::Answer { number, answer } => {
                let now_ns = clock::now().mono_ns;
                let Some((asked, spawning)) = self.hands.answered(number, &answer, now_ns) else {
                    return;
                };
                match (spawning, &answer) {
                    (Some(spawning), Answer::Spawned { pid, channels, .. }) => {
                        self.hold(spawning, *pid, channels, descriptors);
                    }
                    _ => self.answered(asked, answer, descriptors),
                }
                self.leave_without_errands();
            }
            FromKeeper::Fact(fact) => match &mut self.hands.standing {
                Standing::Meeting(meeting) => meeting.facts.push(fact),
                Standing::Met | Standing::Apart => self.fact(fact),
            },
            FromKeeper::Shutdown(mode) => {
                let leave_running = mode == ShutdownMode::Leave;
                self.inbox.push_back(Input::Shutdown { leave_running });
            }
        }
    }

    pub(super) fn answered(&mut self, asked: Asked, answer: Answer, descriptors: Vec<OwnedFd>) {
        match (asked, answer) {
            // The fact that follows says the same, and is the one that is acknowledged.
            (
                Asked::Spawn(..) | Asked::Hook(..) | Asked::Check(..) | Asked::Action(_),
                Answer::NotSpawned(_),
            ) => {}
            (Asked::Spawn(instance, run), Answer::Refused(refusal)) => match refusal {
                // It was started before: what it does is told by its facts.
                Refusal::RunExists => debug!(%instance, %run, "the run is there already"),
                other => self.start_failed(instance, run, "spawn", 0, other.to_string()),
            },
            (Asked::Hook(instance, run, hook), Answer::Refused(refusal)) => {
                if refusal != Refusal::RunExists {
                    self.hook_ended(instance, run, hook, Exit::Unknown);
                }
            }
            (Asked::Check(instance, run, check), Answer::Refused(refusal)) => {
                self.probed(instance, run, check, Err(refusal.to_string()));
            }
            (Asked::Action(intent), Answer::Refused(refusal)) => {
                if refusal != Refusal::RunExists {
                    self.action_not_started(intent, refusal.to_string());
                }
            }
            (Asked::Signal(intent, instance), answer) => {
                let delivery = delivery_of(&answer);
                self.inbox.push_back(Input::SignalDelivered { intent, instance, delivery });
            }
            (Asked::List, Answer::Runs { runs, more }) => self.listed(runs, more),
            (Asked::Descriptors(slot), Answer::Descriptors { channels, runs }) => {
                self.settled(&Asked::Descriptors(slot.clone()));
                self.take_slot(&slot, &channels, runs, descriptors);
            }
            (Asked::Shutdown, _) => self.end(),
            (Asked::KillTree(run), Answer::Refused(Refusal::NoSuchRun)) => {
                debug!(%run, "the run is gone");
            }
            (asked, Answer::Refused(refusal)) => self.refused(asked, refusal),
            (asked, _) => self.settled(&asked),
        }
    }

    /// Decides on a fact, and has it acknowledged when what it led to is durable.
    pub(super) fn fact(&mut self, fact: Fact) {
        let number = fact.number;
        if fact.what == What::TreeGone {
            self.errands.gone(&fact.run);
        }
        self.hands.pending.told_of(&fact.run);
        if let Some(input) = self.input_of(fact) {
            self.decide(input);
        }
        if let Some(keeper) = self.hands.keeper() {
            self.recorder.promise(Promise::Acknowledge(keeper, number));
        }
        self.let_go(self.recorder.durable_seq());
        self.leave_without_errands();
    }

    fn input_of(&mut self, fact: Fact) -> Option<Input> {
        let Some(memo) = Memo::decode(&fact.memo) else {
            warn!(run = %fact.run, "a fact about a run of which nothing is known");
            return None;
        };
        match (memo, fact.what) {
            (Memo::Run { instance, run, spec }, What::Spawned { pid, inode }) => {
                Some(Input::Started { instance, run, pid, pidfd_inode: inode, spec })
            }
            (Memo::Run { instance, run, .. }, What::NotSpawned(failure)) => {
                let step = failure.step.to_string();
                let (errno, why) = (failure.errno, words(failure.errno));
                Some(Input::StartFailed { instance, run, step, errno, why })
            }
            (
                Memo::Run { instance, run, .. },
                What::Exited { pid, exit, usage, tree_empty, ran_ms },
            ) => {
                let ran_ms = self.ran_ms(&instance, run, ran_ms, fact.at);
                let ended = ended(exit, usage, ran_ms, tree_empty);
                Some(Input::Exited { instance, run, pid, ended })
            }
            (Memo::Run { instance, run, .. }, What::TreeGone) => {
                self.hands.forget_run(&names::slot(&instance), &fact.run);
                told(self.logs.handle().drained(instance.clone(), run));
                self.close_slot_of(&instance);
                Some(Input::TreeGone { instance, run })
            }
            (Memo::Hook { instance, run, hook }, What::Exited { exit, .. }) => {
                let exit = exit_of(exit);
                Some(Input::HookEnded { instance, run, hook: hook.into(), exit })
            }
            (Memo::Hook { instance, run, hook }, What::NotSpawned(_)) => {
                let exit = Exit::Code(127);
                Some(Input::HookEnded { instance, run, hook: hook.into(), exit })
            }
            (Memo::Action { intent, .. }, What::Spawned { .. }) => {
                Some(Input::ActionStarted { intent })
            }
            (Memo::Action { intent, .. }, What::Exited { exit, ran_ms, .. }) => {
                let ran_ms = ran_ms.unwrap_or_default();
                let end = ActionEnd::Exited { exit: exit_of(exit), ran_ms };
                Some(Input::ActionEnded { intent, end })
            }
            (Memo::Action { intent, .. }, What::NotSpawned(failure)) => {
                let why = format!("{failure}: {}", words(failure.errno));
                Some(Input::ActionEnded { intent, end: ActionEnd::NotStarted { why } })
            }
            (Memo::Check { instance, run, check }, What::Exited { exit, tree_empty, .. }) => {
                if tree_empty {
                    self.errands.gone(&fact.run);
                }
                self.check_ended(&fact.run, instance, run, check, checked(exit_of(exit)));
                None
            }
            (Memo::Check { instance, run, check }, What::NotSpawned(failure)) => {
                let why = format!("{failure}: {}", words(failure.errno));
                self.check_ended(&fact.run, instance, run, check, Some(Err(why)));
                None
            }
            (
                Memo::Hook { instance, .. }
                | Memo::Check { instance, .. }
                | Memo::Action { instance, .. },
                What::TreeGone,
            ) => {
                self.hands.forget_run(&names::slot(&instance), &fact.run);
                self.close_slot_of(&instance);
                None
            }
            (Memo::Hook { .. } | Memo::Check { .. }, What::Spawned { .. }) => None,
        }
    }

    /// Returns how long a run lasted: as the keeper measured it, or else by the wall clock, which may have jumped.
    pub(super) fn ran_ms(
        &self,
        instance: &InstanceId,
        run: RunId,
        measured: Option<u64>,
        ended_at: Moment,
    ) -> u64 {
        let state = self.node.instance(instance).and_then(|known| known.of_run(run));
        let started_at = state.and_then(State::main).map(|main| main.started_at);
        let by_wall = || Some(UnixMicros(ended_at.unix_us).ms_since(started_at?));
        measured.or_else(by_wall).unwrap_or_default()
    }

    /// Puts the last lines of a run beside its exit. They are kept apart from the log, which holds their hash.
    pub(super) fn attach_tails(&mut self, events: &mut [(Context, Event)]) {
        let mut tails = BTreeMap::new();
        for (context, event) in &mut *events {
            if let (Event::InstanceExited(body), Some(instance)) = (event, context.instance_id())
                && body.tail.is_none()
            {
                let lines = self.logs.handle().tail_now(&instance);
                body.tail = self.launchers.keep_tail(&instance, lines);
                tails.insert(instance, body.tail.clone());
            }
        }
        for (_, event) in events {
            if let Event::ReleaseFailed(body) = event
                && let Some(instance) = &body.instance
            {
                body.tail = match tails.get(instance) {
                    Some(tail) => tail.clone(),
                    // It was too late, and has not ended.
                    None => self.launchers.keep_lines(&self.logs.handle().tail_now(instance)),
                };
            }
        }
    }

    pub(super) fn logs_said(&mut self, notice: logs::LogNotice) {
        match notice {
            logs::LogNotice::Ready { slot, run, .. } => {
                self.decide(Input::Ready { instance: slot, run, how: "log".to_owned() });
            }
            logs::LogNotice::Dropped { slot, lines, bytes, why } => {
                let body = LinesDropped { lines, bytes, why: why.to_string() };
                let events = vec![(Context::instance(&slot), Event::LinesDropped(body))];
                self.commit(clock::now(), Decision { events, effects: Vec::new() });
            }
            logs::LogNotice::Failed { slot, what, errno } => {
                warn!(instance = %slot, what, why = words(errno), "the log of a service");
            }
            logs::LogNotice::Matched { slot, rule, lines, line } => {
                self.alert_matched(slot, rule, lines, line);
            }
            logs::LogNotice::Drained { .. } => {}
        }
    }
}

/// Returns what the end of a program says of a check; nothing when nobody saw the end.
fn checked(exit: Exit) -> Option<Checked> {
    match exit {
        Exit::Code(0) => Some(Ok(())),
        Exit::Code(code) => Some(Err(format!("exit code {code}"))),
        Exit::Signal { signal, .. } => Some(Err(match Signal::from_number(signal) {
            Some(signal) => format!("signal {signal}"),
            None => format!("signal {signal}"),
        })),
        Exit::Unknown => None,
    }
}

pub(super) fn ended(
    exit: crate::ipc::keeper::Exit,
    usage: Option<crate::ipc::keeper::Usage>,
    ran_ms: u64,
    tree_empty: bool,
) -> Ended {
    Ended {
        exit: exit_of(exit),
        usage: usage.map(usage_of).unwrap_or_default(),
        oom_killed: false,
        ran_ms,
        tree_empty,
        tail: None,
    }
}

pub(super) fn told(result: Result<(), logs::LogBusy>) {
    if let Err(why) = result {
        error!(%why, "the log thread does not keep up");
    }
}

pub(super) fn report(result: std::io::Result<()>) {
    if let Err(why) = result {
        error!(%why, "a channel of a service cannot be heard");
    }
}

pub(super) fn exit_of(exit: crate::ipc::keeper::Exit) -> Exit {
    match exit {
        crate::ipc::keeper::Exit::Code(code) => Exit::Code(code),
        crate::ipc::keeper::Exit::Signal { signal, core } => {
            Exit::Signal { signal, core_dumped: core }
        }
        crate::ipc::keeper::Exit::Unknown => Exit::Unknown,
    }
}

fn usage_of(usage: crate::ipc::keeper::Usage) -> Usage {
    Usage {
        cpu_user_ms: usage.user_us / 1000,
        cpu_system_ms: usage.system_us / 1000,
        memory_peak_bytes: usage.rss_kib_max * 1024,
    }
}

fn words(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}
