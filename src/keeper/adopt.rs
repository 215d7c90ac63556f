//! Taking over the runs of an earlier keeper: what its records and the kernel show, and what the agent
//! still holds.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use rustix::process::PidfdFlags;
use serde_bytes::ByteBuf;
use tracing::warn;

use super::channels;
use super::exits::{self, as_pid};
use super::hands::{Hands, RUNS_MAX};
use super::poller::{Poller, Token};
use super::proc;
use super::records::{EXECUTING, Main};
use super::run::{MainProcess, Run};
use crate::ipc::keeper::{Claim, Exit, RunName, SlotName, What};

impl Hands {
    /// Takes over what an earlier keeper left.
    pub(super) fn adopt(&mut self, poller: &Poller) {
        let mut records = self.records.read();
        let census = self.forest.census();
        let names: BTreeSet<RunName> = records.keys().chain(census.keys()).cloned().collect();
        for name in names {
            let members = census.get(&name);
            let mut found = members.into_iter().flat_map(|m| m.alive.iter().chain(&m.zombies));
            let record = records.remove(&name);
            let mut noted = record.as_ref().and_then(|record| record.main);
            if let Some(Main { pid, start_ticks: 0 }) = noted
                && proc::process(pid).is_none_or(|found| found.session != pid || found.is_zombie)
            {
                // It died with its keeper on the way to its program.
                noted = None;
            }
            if noted.is_none() && found.clone().next().is_none() {
                // A place that was made and never used: no program was executed, so it may be asked for again.
                self.sweep(name);
                continue;
            }
            let main = match noted {
                // Noted by the process itself, and its keeper died before it could look at the start.
                Some(Main { pid, start_ticks: 0 | EXECUTING }) => {
                    proc::process(pid).filter(|process| process.session == pid)
                }
                Some(main) => proc::process(main.pid)
                    .filter(|process| process.start_ticks == main.start_ticks),
                // On its way to its program: the first leader of a session.
                None => found
                    .clone()
                    .filter(|p| p.session == p.pid)
                    .min_by_key(|p| p.start_ticks)
                    .cloned(),
            };
            let pidfd = main.as_ref().and_then(|main| {
                let pidfd = rustix::process::pidfd_open(as_pid(main.pid), PidfdFlags::empty());
                // Only after the opening can the number not pass to another.
                let same = proc::process(main.pid)?.start_ticks == main.start_ticks;
                pidfd.ok().filter(|_| same)
            });
            let pid = main.map(|main| main.pid).or(noted.map(|main| main.pid)).unwrap_or_default();
            let (slot, memo) = match record {
                Some(record) => {
                    if let Some(pipes) = record.pipes
                        && pidfd.is_some()
                        && !self.orphaned.contains_key(&record.slot)
                    {
                        let found = channels::pipes_of(pid, pipes);
                        if !found.is_empty() {
                            self.orphaned.insert(record.slot.clone(), found);
                        }
                    }
                    (record.slot, record.memo)
                }
                None => (slot_of_unknown(&name), ByteBuf::new()),
            };
            if found.any(|process| !process.is_zombie)
                && let Err(error) = self.forest.watch_run(&name)
            {
                warn!(run = %name, %error, "failed to watch the tree of an adopted run");
            }
            self.insert(poller, name.clone(), Run::adopted(slot, memo, pid, pidfd));
            self.look_at_main(poller, &name);
        }
    }

    /// Reports as unknown what neither we nor the agent saw the end of.
    pub(super) fn give_up_lost(&mut self, poller: &Poller) {
        let lost: Vec<RunName> = self
            .runs
            .iter()
            .filter(|(_, run)| matches!(run.main, MainProcess::Lost))
            .map(|(name, _)| name.clone())
            .collect();
        for name in lost {
            let Some(run) = self.runs.get_mut(&name) else { continue };
            run.main = MainProcess::Ended { pidfd: None, is_child: false };
            let what =
                What::Exited { pid: run.pid, exit: Exit::Unknown, usage: None, tree_empty: false };
            self.facts.push(&name, &run.memo, what);
            self.look_after_tree(poller, &name);
        }
    }

    /// Takes in a run that the agent knows from an earlier keeper.
    pub(super) fn claim(
        &mut self,
        poller: &Poller,
        slot: &SlotName,
        claim: &Claim,
        pidfd: OwnedFd,
    ) {
        let has_room = self.runs.len() < RUNS_MAX;
        if let Some(run) = self.runs.get_mut(&claim.run).filter(|run| run.memo.is_empty()) {
            // Found by its place alone: its record was lost.
            (run.slot, run.memo) = (slot.clone(), claim.memo.clone());
        }
        match self.runs.get_mut(&claim.run) {
            Some(run) if matches!(run.main, MainProcess::Lost) => {
                run.pid = claim.pid;
                run.inode = exits::inode(&pidfd);
                run.main = MainProcess::Foreign { pidfd };
                self.watch_claimed(poller, &claim.run);
            }
            Some(_) => {}
            None if has_room => {
                let run = Run::adopted(slot.clone(), claim.memo.clone(), claim.pid, Some(pidfd));
                self.insert(poller, claim.run.clone(), run);
                self.look_at_main(poller, &claim.run.clone());
            }
            None => warn!(run = %claim.run, "no room for a claimed run"),
        }
    }

    fn watch_claimed(&mut self, poller: &Poller, name: &RunName) {
        let number = self.numbers.iter().find(|(_, run)| *run == name).map(|(number, _)| *number);
        if let (Some(number), Some(MainProcess::Foreign { pidfd })) =
            (number, self.runs.get(name).map(|run| &run.main))
            && let Err(error) = poller.watch_edges(pidfd, Token::Main(number))
        {
            warn!(run = %name, %error, "failed to watch a process");
        }
        self.look_at_main(poller, name);
    }
}

/// A run without record belongs to a slot of its own name, until the agent says otherwise.
fn slot_of_unknown(run: &RunName) -> SlotName {
    run.as_str().parse().expect("a run's name has the form of a slot's name")
}
