//! The meeting of agent and keeper: what the keeper lists and has kept is brought before the core as a whole.

use std::collections::BTreeSet;

use tracing::warn;

use super::asked::Asked;
use super::clock;
use super::execute::{self, exit_of};
use super::hands::Standing;
use super::names::{self, Memo};
use super::task::{Agent, keeper_uid};
use crate::domain::event::PartStarted;
use crate::domain::input::{Kept, KeptAction, KeptRun};
use crate::domain::time::UnixMicros;
use crate::ipc::keeper::{Fact, RunState, Verb, What};

impl Agent {
    /// Takes a page of the keeper's list; at the end of the last one, agent and keeper have met.
    pub(super) fn listed(&mut self, page: Vec<RunState>, more: bool) {
        let Standing::Meeting(meeting) = &mut self.hands.standing else { return };
        let after = page.last().map(|run| run.run.clone());
        meeting.runs.extend(page);
        if more && after.is_some() {
            return self.hands.ask(Asked::List, Verb::List { after });
        }
        let meeting = std::mem::take(meeting);
        let missing: BTreeSet<_> = meeting
            .runs
            .iter()
            .filter(|state| !self.hands.holds(&state.slot, &state.run))
            .filter(|state| names::instance_of(&state.slot).is_some())
            .map(|state| state.slot.clone())
            .collect();
        for slot in missing {
            let verb = Verb::TakeDescriptors { slot: slot.clone() };
            self.hands.ask(Asked::Descriptors(slot), verb);
        }
        let identity = |state: &RunState| (state.run.clone(), (state.pid, state.memo.clone()));
        self.hands.listed = meeting.runs.iter().map(identity).collect();
        self.errands.forget();
        for state in meeting.runs.iter().filter(|state| state.tree_lives) {
            self.errands.began(&state.run, &state.memo);
        }
        if self.is_new {
            // The life before this one may have died before it came to that.
            self.launchers
                .forget_but(&meeting.runs.iter().map(|state| state.run.clone()).collect());
        }
        let kept = self.kept(&meeting.runs, &meeting.facts);
        self.met(kept);
        self.is_new = false;
        for fact in meeting.facts {
            self.fact(fact);
            self.follow_up();
        }
        self.close_slots();
        self.leave_without_errands();
    }

    fn kept(&self, runs: &[RunState], facts: &[Fact]) -> Kept {
        let mut kept = Kept {
            keeper: self.keeper_started(),
            agent_is_new: self.is_new,
            away_ms: clock::now().at.ms_since(self.away_since),
            runs: Vec::new(),
            actions: Vec::new(),
        };
        for state in runs {
            let ended = facts.iter().find_map(|fact| match &fact.what {
                What::Exited { exit, usage, ran_ms, .. } if fact.run == state.run => {
                    Some((*exit, *usage, *ran_ms, fact.at))
                }
                _ => None,
            });
            match Memo::decode(&state.memo) {
                Some(Memo::Run { instance, run, spec }) => kept.runs.push(KeptRun {
                    ended: ended.map(|(exit, usage, ran_ms, at)| {
                        let ran_ms = self.ran_ms(&instance, run, ran_ms, at);
                        execute::ended(exit, usage, ran_ms, !state.tree_lives)
                    }),
                    instance,
                    run,
                    pid: state.pid,
                    pidfd_inode: state.inode,
                    spec,
                }),
                Some(Memo::Action { intent, .. }) => kept.actions.push(KeptAction {
                    intent,
                    ended: ended
                        .map(|(exit, _, ran_ms, _)| (exit_of(exit), ran_ms.unwrap_or_default())),
                }),
                Some(Memo::Hook { .. } | Memo::Check { .. }) => {}
                None => warn!(run = %state.run, "the keeper holds a run of which nothing is known"),
            }
        }
        kept
    }

    fn keeper_started(&self) -> PartStarted {
        let hello = self.queries.keeper.as_ref();
        let before = hello.and_then(|hello| hello.before);
        PartStarted {
            version: hello.map(|hello| hello.build.clone()).unwrap_or_default(),
            incarnation: hello.map_or(0, |hello| hello.incarnation.0),
            pid: self.queries.place.pid(crate::ipc::hello::Part::Keeper).unwrap_or(0),
            uid: self.hands.isolation.as_ref().map_or(0, keeper_uid),
            boot: self.boot,
            after: before.map(|before| exit_of(before.exit)),
            away_ms: before
                .map_or(0, |before| clock::now().at.ms_since(UnixMicros(before.unix_us))),
        }
    }
}
