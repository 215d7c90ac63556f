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
            let before = self.deadlines_before(id);
            self.before.entry(id.clone()).or_insert(before);
            self.meet(id, runs.remove(id).unwrap_or_default(), meeting);
        }
        if meeting.booted {
            self.boot(&ids);
        }
        let actions = kept.actions.into_iter().map(|kept| (kept.intent, kept.ended)).collect();
        self.meet_follow_ups(&actions, meeting);
        self.meet_intents(actions, meeting);
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
        let Some(instance) = self.instance(id) else { return };
        for run in instance.runs().filter(|run| !kept.contains_key(run)) {
            let newest = kept.keys().all(|other| *other < run);
            self.missing(id, run, newest, meeting);
        }
        let newest = kept.keys().next_back().copied();
        for (run, mut kept) in kept {
            let Some(instance) = self.instance(id) else { return };
            let is_known = instance.of_run(run).is_some();
            let hands_over = instance.beside.is_some() || self.hands_over(&id.service);
            if !is_known && run <= instance.last_run {
                match kept.ended {
                    Some(_) => self.promise(Act::Acknowledge { instance: id.clone(), run }),
                    // Two of one instance: the older one goes.
                    None => self.repair(Act::KillTree { instance: id.clone(), run }),
                }
                continue;
            }
            if let State::Starting { main, .. } = &instance.state
                && !is_known
                && hands_over
            {
                // Whoever asked for this one had seen the one before ready, which the log does not hold.
                let serves = main.run;
                self.ready(id, serves, "successor".to_owned());
            }
            let Some(instance) = self.instance(id) else { return };
            // The one that counts is alive, so this one was to take over, and the log did not hear of it. Wanted or
            // not, its number is taken; what is not wanted is stopped by the next step.
            let is_beside = !is_known && instance.state.is_ready();
            if is_beside {
                let (from, beside) = (instance.state.name(), Some(kept.spec));
                let third = instance.beside.as_ref().map(|beside| &beside.state);
                let third = third.filter(|state| !matches!(state, State::Spawning { .. }));
                if let Some(third) = third.and_then(State::run) {
                    // There are never three: whoever asked for this one had seen the end of the one before.
                    self.end_unseen(id, third);
                }
                let body = InstanceStarting { from, fresh: false, beside };
                self.emit(Context::run(id, run), Event::InstanceStarting(body));
            }
            // Two of an instance that hands over may be side by side.
            let may_stay = is_beside || (is_known && hands_over);
            if !may_stay && kept.ended.is_none() && newest != Some(run) {
                // Whoever asked for the newer one had seen the end of this one, which the log does not hold.
                self.repair(Act::KillTree { instance: id.clone(), run });
                kept.ended = Some(self.unseen_end(id, run));
            }
            self.take_over(id, run, kept, meeting);
        }
    }

    /// Takes in what the keeper says of a run that is the present one or a later one.
    fn take_over(&mut self, id: &InstanceId, run: RunId, kept: KeptRun, meeting: Meeting) {
        let is_known = self.of_run(id, run).is_some();
        if let Some(State::Stopping { run: older, .. }) = self.state(id)
            && !is_known
        {
            let older = *older;
            self.stopped(id, older);
        }
        if !is_known {
            let Some(state) = self.state(id) else { return };
            let body = InstanceStarting { from: state.name(), fresh: false, beside: None };
            self.emit(Context::run(id, run), Event::InstanceStarting(body));
        }
        let knew = self.of_run(id, run).is_some_and(|state| state.main().is_some());
        self.started(id, run, kept.pid, kept.pidfd_inode, kept.spec);
        match kept.ended {
            Some(ended) => self.exited(id, run, kept.pid, ended),
            None => {
                if knew {
                    let away = if meeting.agent_is_new { "agent" } else { "keeper" }.to_owned();
                    let body = InstanceAdopted { pid: kept.pid, away, away_ms: meeting.away_ms };
                    self.emit(Context::run(id, run), Event::InstanceAdopted(body));
                }
                self.ask_to_end(id, run);
            }
        }
    }

    /// Draws the conclusion from a run that the log knows and the keeper does not.
    fn missing(&mut self, id: &InstanceId, run: RunId, newest: bool, meeting: Meeting) {
        match self.of_run(id, run) {
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
                let beside = instance.beside.as_ref().filter(|_| instance.is_beside(Some(run)));
                let beside = beside.map(|beside| beside.spec);
                let body = InstanceStarting { from, fresh: false, beside };
                self.emit(self.about(id, next), Event::InstanceStarting(body));
            }
            Some(State::Spawning { .. }) if newest && !self.is_wanted(id) => {
                self.begin_stop_of(id, run, false, StopReason::Wish);
                self.stopped(id, run);
            }
            Some(State::Spawning { .. }) if newest => {
                self.spawns.insert(id.clone(), (run, true));
            }
            Some(State::Spawning { .. }) | None => {}
            Some(State::Stopping { left: Left::Asked | Left::Rest, .. }) => self.stopped(id, run),
            Some(state) => {
                let Some(pid) = state.main().map(|main| main.pid) else { return };
                let ended = self.unseen_end(id, run);
                self.exited(id, run, pid, ended);
            }
        }
    }

    /// Ends a run of which the keeper still has a process, and the log not the end.
    fn end_unseen(&mut self, id: &InstanceId, run: RunId) {
        let Some(pid) = self.of_run(id, run).map(|state| state.main().map_or(0, |main| main.pid))
        else {
            return;
        };
        self.repair(Act::KillTree { instance: id.clone(), run });
        let ended = self.unseen_end(id, run);
        self.exited(id, run, pid, ended);
    }

    /// Returns the end of a run that nobody can tell any more.
    fn unseen_end(&self, id: &InstanceId, run: RunId) -> Ended {
        let main = self.of_run(id, run).and_then(State::main);
        Ended {
            exit: Exit::Unknown,
            usage: Usage::default(),
            oom_killed: false,
            ran_ms: main.map_or(0, |main| self.now().ms_since(main.started_at)),
            tree_empty: true,
            tail: None,
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

    /// Goes on with the actions after a deploy that had begun. What another keeper may have begun is not begun again.
    fn meet_follow_ups(
        &mut self,
        kept: &BTreeMap<IntentId, Option<(Exit, u64)>>,
        meeting: Meeting,
    ) {
        for (service, id) in self.follow_ups().collect::<Vec<_>>() {
            if let Some(at) = self.follow_up_until(id).filter(|_| meeting.agent_is_new) {
                let timer = self.set_timer(Timer::Action(id), at);
                self.repair(timer);
            }
            match kept.get(&id) {
                Some(Some((exit, ran_ms))) => {
                    let end = ActionEnd::Exited { exit: *exit, ran_ms: *ran_ms };
                    self.action_ended(id, end);
                }
                Some(None) => {}
                None if meeting.keeper_is_new => self.action_ended(id, ActionEnd::Lost),
                None => self.ask_for_follow_up(&service),
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
                Action::Configure { service, .. } if meeting.agent_is_new => {
                    self.promise(Act::LoadSpecs { intent, services: vec![service] });
                }
                Action::Shutdown { leave_running } => {
                    self.shut_down(leave_running, Some(Cause::Intent(intent)), by);
                }
                Action::Start { .. }
                | Action::Stop { .. }
                | Action::Restart { .. }
                | Action::Apply { .. }
                | Action::Configure { .. }
                | Action::Deploy { .. }
                | Action::Rollout { .. }
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
