//! Agent and keeper meet: what the log says and what the keeper knows are brought together.
//!
//! The keeper's list is the whole truth about processes. Three things can differ: the keeper knows of a start or an
//! end that the log does not (the record was not durable when the agent died): it is written down now; the log
//! knows of a run that the keeper does not: nobody saw its end; and requests may have been lost on the way: they
//! are made again under the same names.

use std::collections::BTreeMap;

use super::Turn;
use crate::domain::effect::{Act, Timer};
use crate::domain::event::{
    Cause, Context, Desired, Event, Exit, InstanceAdopted, InstanceStarting, StopReason, Usage,
};
use crate::domain::id::{InstanceId, IntentId, RunId};
use crate::domain::input::{ActionEnd, Delivery, Ended, Kept, KeptRun};
use crate::domain::instance::{Left, State};
use crate::domain::intent::Action;

/// Who met whom.
#[derive(Clone, Copy)]
struct Meeting {
    /// The keeper knows nothing of requests that were made before.
    keeper_is_new: bool,
    /// The agent does not know which of its requests were answered.
    agent_is_new: bool,
    /// The machine was started anew.
    booted: bool,
    away_ms: u64,
}

impl Turn<'_> {
    pub(super) fn reconcile(&mut self, kept: Kept) {
        self.reconciling = true;
        self.agent_is_new = kept.agent_is_new;
        self.may_end = true;
        let before = self.head().keeper;
        let meeting = Meeting {
            keeper_is_new: before.is_none_or(|mark| mark.incarnation != kept.keeper.incarnation),
            agent_is_new: kept.agent_is_new,
            booted: before.is_some_and(|mark| mark.boot != kept.keeper.boot),
            away_ms: kept.away_ms,
        };
        let keeper = kept.keeper;
        let mut runs: BTreeMap<InstanceId, BTreeMap<RunId, KeptRun>> = BTreeMap::new();
        for run in kept.runs {
            runs.entry(run.instance.clone()).or_default().insert(run.run, run);
        }
        let ids: Vec<InstanceId> = self
            .services()
            .flat_map(|(id, service)| {
                service.slots().map(|(index, _)| InstanceId { service: id.clone(), index })
            })
            .collect();
        for id in &ids {
            // The timers of an agent before are gone with it.
            let before = self.node.instance(id).and_then(|instance| instance.deadline(id));
            self.before.entry(id.clone()).or_insert(before);
            self.meet(id, runs.remove(id).unwrap_or_default(), meeting);
        }
        if meeting.booted {
            self.boot(&ids);
        }
        self.meet_intents(
            kept.actions.into_iter().map(|kept| (kept.intent, kept.ended)).collect(),
            meeting,
        );
        if meeting.agent_is_new {
            self.stage_again();
        }
        // The last of all: as long as it is not on disk the conclusions may be missing there too, and are drawn
        // again. With it first, a torn tail would make a keeper that knows nothing look like one that was asked.
        if meeting.keeper_is_new {
            self.emit(Context::default(), Event::KeeperStarted(keeper));
        }
    }

    fn meet(&mut self, id: &InstanceId, kept: BTreeMap<RunId, KeptRun>, meeting: Meeting) {
        let Some(state) = self.state(id) else { return };
        if let Some(run) = state.run()
            && !kept.contains_key(&run)
        {
            let newest = kept.keys().all(|other| *other < run);
            self.missing(id, run, newest, meeting);
        }
        let newest = kept.keys().next_back().copied();
        for (run, kept) in kept {
            let Some(instance) = self.instance(id) else { return };
            if instance.state.run() != Some(run) && run <= instance.last_run {
                match kept.ended {
                    Some(_) => self.promise(Act::Acknowledge { instance: id.clone(), run }),
                    // Two of one instance: the older one goes.
                    None => self.repair(Act::KillTree { instance: id.clone(), run }),
                }
                continue;
            }
            if kept.ended.is_none() && newest != Some(run) {
                self.repair(Act::KillTree { instance: id.clone(), run });
                continue;
            }
            self.take_over(id, run, kept, meeting);
        }
    }

    /// Takes in what the keeper says of a run that is the present one or a later one.
    fn take_over(&mut self, id: &InstanceId, run: RunId, kept: KeptRun, meeting: Meeting) {
        if let Some(State::Stopping { run: older, .. }) = self.state(id)
            && *older != run
        {
            let older = *older;
            self.stopped(id, older);
        }
        if self.state(id).and_then(State::run) != Some(run) {
            let Some(state) = self.state(id) else { return };
            let body = InstanceStarting { from: state.name(), fresh: false };
            self.emit(Context::run(id, run), Event::InstanceStarting(body));
        }
        let knew = self.state(id).is_some_and(|state| state.main().is_some());
        self.started(id, run, kept.pid, kept.pidfd_inode, kept.spec);
        match kept.ended {
            Some(ended) => self.exited(id, run, kept.pid, ended),
            None => {
                if knew {
                    let away = if meeting.agent_is_new { "agent" } else { "keeper" }.to_owned();
                    let body = InstanceAdopted { pid: kept.pid, away, away_ms: meeting.away_ms };
                    self.emit(Context::run(id, run), Event::InstanceAdopted(body));
                }
                self.ask_to_end(id);
            }
        }
    }

    /// Draws the conclusion from a run that the log knows and the keeper does not.
    fn missing(&mut self, id: &InstanceId, run: RunId, newest: bool, meeting: Meeting) {
        match self.state(id) {
            Some(State::Spawning { .. })
                if newest
                    && self.is_wanted(id)
                    && meeting.keeper_is_new
                    && meeting.agent_is_new =>
            {
                // Nobody can tell whether the last keeper made it; its number is not used again. An agent that
                // lives has the request in its hands still, so for that one the number stays.
                let Some(instance) = self.instance(id) else { return };
                let (next, from) = (instance.next_run(), instance.state.name());
                let body = InstanceStarting { from, fresh: false };
                self.emit(self.about(id, next), Event::InstanceStarting(body));
            }
            Some(State::Spawning { .. }) if newest && !self.is_wanted(id) => {
                self.begin_stop(id, false, StopReason::Wish);
                self.stopped(id, run);
            }
            Some(State::Spawning { .. }) if newest => {
                self.spawns.insert(id.clone(), (run, true));
            }
            Some(State::Spawning { .. }) | None => {}
            Some(State::Stopping { left: Left::Asked | Left::Rest, .. }) => self.stopped(id, run),
            Some(state) => {
                let Some(main) = state.main() else { return };
                let (pid, ran_ms) = (main.pid, self.now().ms_since(main.started_at));
                let ended = Ended {
                    exit: Exit::Unknown,
                    usage: Usage::default(),
                    oom_killed: false,
                    ran_ms,
                    tree_empty: true,
                    tail: None,
                };
                self.exited(id, run, pid, ended);
            }
        }
    }

    /// Begins anew after a boot: what is wanted is started, whatever its last run came to.
    fn boot(&mut self, ids: &[InstanceId]) {
        for id in ids {
            let ended = matches!(
                self.state(id),
                Some(State::Completed | State::Failed | State::Backoff { .. })
            );
            let desired = self.service(&id.service).map(|service| service.desired);
            if ended && desired != Some(Desired::Stopped) && self.is_wanted(id) {
                self.bring_up(id, true);
            }
        }
    }

    fn meet_intents(&mut self, kept: BTreeMap<IntentId, Option<(Exit, u64)>>, meeting: Meeting) {
        let open: Vec<_> = self
            .open_intents()
            .map(|(id, record, open)| {
                let awaiting: Vec<_> =
                    open.awaiting.iter().map(|(id, run)| (id.clone(), *run)).collect();
                (
                    id,
                    record.action.clone(),
                    record.by.clone(),
                    open.until,
                    open.action_until,
                    awaiting,
                )
            })
            .collect();
        for (intent, action, by, until, action_until, awaiting) in open {
            if meeting.agent_is_new {
                let timer = self.set_timer(Timer::Intent(intent), until);
                self.repair(timer);
            }
            match action {
                // The keeper, whichever it is, answers with what was done, or does it for the first time. It is asked
                // about the run that the wish was for, even when that has ended since: the signal may have come first.
                Action::Signal { signal, .. } => {
                    for (id, run) in awaiting {
                        if meeting.booted {
                            self.signal_delivered(intent, &id, Delivery::Lost);
                        } else {
                            self.send_signal(signal, intent, id, run);
                        }
                    }
                }
                Action::Reload { .. } => {
                    for (id, _) in awaiting {
                        if let Some(State::Reloading { .. }) = self.state(&id) {
                            self.ask_to_reload(&id, intent);
                        }
                    }
                }
                Action::Run { .. } => {
                    if let Some(at) = action_until.filter(|_| meeting.agent_is_new) {
                        let timer = self.set_timer(Timer::Action(intent), at);
                        self.repair(timer);
                    }
                    match kept.get(&intent) {
                        Some(ended) => {
                            self.action_started(intent);
                            if let Some((exit, ran_ms)) = *ended {
                                self.action_ended(intent, ActionEnd::Exited { exit, ran_ms });
                            }
                        }
                        // What a boot ended, and what is known to have begun, is not begun again.
                        None if meeting.booted || action_until.is_some() => {
                            self.action_ended(intent, ActionEnd::Lost);
                        }
                        None => self.start_action(intent),
                    }
                }
                Action::Apply { services } if meeting.agent_is_new => {
                    self.promise(Act::LoadSpecs { intent, services });
                }
                Action::Shutdown { leave_running } => {
                    self.shut_down(leave_running, Some(Cause::Intent(intent)), by);
                }
                Action::Start { .. }
                | Action::Stop { .. }
                | Action::Restart { .. }
                | Action::Apply { .. }
                | Action::Deploy { .. }
                | Action::Remove { .. } => {}
            }
        }
        let known: Vec<_> = kept.into_iter().filter(|(_, ended)| ended.is_some()).collect();
        for (intent, _) in known {
            if self.open(&intent).is_none() {
                self.promise(Act::AcknowledgeAction { intent });
            }
        }
    }
}
