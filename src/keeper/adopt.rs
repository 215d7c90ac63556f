//! Taking over the runs of an earlier keeper: what its records and the kernel show, and what the agent
//! still holds.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde_bytes::ByteBuf;
use tracing::warn;

use super::channels;
use super::exits;
use super::hands::{Hands, RUNS_MAX};
use super::poller::{Poller, Token};
use super::proc;
use super::records::{EXECUTING, Main};
use super::run::{MainProcess, Run};
use crate::ipc::keeper::{Channel, Claim, Exit, RunName, SlotName, What};

/// How long a process may be on its way to its program. A folder on a network that is away can hold it.
const BIRTH_MAX: Duration = Duration::from_secs(1);

/// How often the record of one that lives is looked at: its first instruction is nothing that could be waited for.
const BIRTH_LOOK: Duration = Duration::from_millis(1);

impl Hands {
    /// Takes over what an earlier keeper left.
    ///
    /// # Errors
    /// When the processes cannot be listed: a run that was not seen would be started twice.
    pub(super) fn adopt(&mut self, poller: &Poller) -> io::Result<()> {
        let mut records = self.records.read();
        let census = match records.is_empty() && self.forest.is_bare() {
            true => BTreeMap::new(),
            false => self.forest.census()?,
        };
        let mut newest: BTreeMap<SlotName, (Option<u64>, RunName)> = BTreeMap::new();
        let names: BTreeSet<RunName> = records.keys().chain(census.keys()).cloned().collect();
        for name in names {
            let members = census.get(&name);
            let mut found = members.into_iter().flat_map(|m| m.alive.iter().chain(&m.zombies));
            let record = records.remove(&name);
            let mut noted = record.as_ref().and_then(|record| record.main);
            let is_on_its_way = record.is_some() && noted.is_none_or(|main| main.start_ticks == 0);
            if is_on_its_way {
                let pids: Vec<u32> = match noted {
                    // Its session is its own by then; a stranger may have got its number since.
                    Some(main) => proc::process(main.pid)
                        .filter(|process| process.session == process.pid)
                        .map(|process| process.pid)
                        .into_iter()
                        .collect(),
                    None => found.clone().map(|process| process.pid).collect(),
                };
                noted = self.see_through_birth(&name, &pids);
            }
            if noted.is_none() && (is_on_its_way || found.clone().next().is_none()) {
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
                let pidfd = exits::open(main.pid);
                // Only after the opening can the number not pass to another.
                let same = proc::process(main.pid)?.start_ticks == main.start_ticks;
                pidfd.ok().filter(|_| same)
            });
            let start_ticks = main.as_ref().map(|main| main.start_ticks);
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
            if pidfd.is_some() {
                // The readiness pipe that was kept of a slot is that of the run which began last.
                let newest = newest.entry(slot.clone()).or_insert((start_ticks, name.clone()));
                *newest = newest.clone().max((start_ticks, name.clone()));
            }
            let run = Run::adopted(slot, memo, pid, pidfd);
            self.insert(poller, name.clone(), run);
            self.look_at_main(poller, &name);
        }
        for (slot, (_, name)) in newest {
            let ready = self.orphaned.get_mut(&slot).and_then(|kept| kept.remove(&Channel::Ready));
            if let Some(run) = self.runs.get_mut(&name) {
                run.ready = ready;
            }
        }
        Ok(())
    }

    /// Waits until what a dead keeper left between birth and program has either begun its program or ended; `None`
    /// when it ended without.
    ///
    /// Only system calls are left to it, and the death of its keeper is a signal to it: it is a matter of
    /// microseconds, in which it must not be taken for a program that runs and then fails.
    fn see_through_birth(&self, name: &RunName, pids: &[u32]) -> Option<Main> {
        let until = Instant::now() + BIRTH_MAX;
        let begun = || self.records.main(name).filter(|main| main.start_ticks == EXECUTING);
        for pid in pids {
            // One that is gone has ended, and has noted before whether it began.
            let Ok(pidfd) = exits::open(*pid) else { continue };
            while !exits::has_ended_within(&pidfd, BIRTH_LOOK) {
                if begun().is_some() {
                    break;
                }
                if Instant::now() >= until {
                    warn!(run = %name, pid, "a process stands still before its program");
                    return Some(Main { pid: *pid, start_ticks: 0 });
                }
            }
        }
        begun()
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
            let what = What::Exited {
                pid: run.pid,
                exit: Exit::Unknown,
                usage: None,
                tree_empty: false,
                ran_ms: None,
            };
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
                run.began_ns = proc::began_ns(claim.pid);
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::{Child, Command};
    use std::thread;

    use super::super::notify::NotifyFolder;
    use super::super::operations::Operations;
    use super::super::records::Records;
    use super::super::run::MainProcess;
    use super::super::trees::Forest;
    use super::*;

    /// What a keeper left that died between the birth of a process and its program.
    struct Left {
        hands: Hands,
        poller: Poller,
        record: File,
        _folder: tempfile::TempDir,
    }

    fn name() -> RunName {
        "web.0.1".parse().unwrap()
    }

    fn left(pid: u32) -> Left {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::open(folder.path().join("runs")).unwrap();
        let slot = "web.0".parse().unwrap();
        let record = records.begin(&name(), &slot, &ByteBuf::new(), [0, 0]).unwrap();
        Records::complete(&record, Main { pid, start_ticks: 0 }).unwrap();
        let forest = Forest::find("0", &folder.path().join("cgroup"), false);
        let operations =
            Operations::open(&folder.path().join("operations"), &proc::boot_id()).unwrap();
        let files = libc::rlimit64 { rlim_cur: 1024, rlim_max: 1024 };
        let notify = NotifyFolder::find("0", folder.path());
        let hands = Hands::new(notify, forest, records, operations, files).unwrap();
        Left { hands, poller: Poller::new().unwrap(), record, _folder: folder }
    }

    fn leader_of_a_session(script: &str) -> Child {
        let child = Command::new("setsid").args(["sh", "-c", script]).spawn().unwrap();
        while proc::process(child.id()).is_none_or(|process| process.session != child.id()) {
            thread::yield_now();
        }
        child
    }

    #[test]
    fn the_pipes_of_a_slot_outlive_an_attempt_that_failed() {
        use crate::ipc::hello::Incarnation;
        use crate::ipc::keeper::Answer;

        let mut hands = left(std::process::id()).hands;
        let slot: SlotName = "busy.0".parse().unwrap();
        let (pipe, _writer) = rustix::pipe::pipe().unwrap();
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let left_behind = inode(&pipe);
        let (socket, _) = crate::ipc::socket::pair().unwrap();
        let pipes = [(Channel::Stdout, pipe), (Channel::Stderr, socket)];
        hands.orphaned.insert(slot.clone(), pipes.into());
        let (answer, _) = hands.take_descriptors(Incarnation(1), &slot);
        assert!(matches!(answer, Answer::Refused(_)), "one of them cannot be opened anew");
        hands.orphaned.get_mut(&slot).unwrap().remove(&Channel::Stderr);
        let (answer, descriptors) = hands.take_descriptors(Incarnation(1), &slot);
        let Answer::Descriptors { channels, .. } = answer else { panic!("{answer:?}") };
        let stdout = channels.iter().position(|channel| *channel == Channel::Stdout).unwrap();
        assert_eq!(inode(&descriptors[stdout]), left_behind);
    }

    #[test]
    fn one_that_died_before_its_program_is_no_run() {
        let mut child = leader_of_a_session("sleep 0.05; kill -9 $$");
        let mut left = left(child.id());
        left.hands.adopt(&left.poller).unwrap();
        assert!(left.hands.runs.is_empty());
        assert_eq!(left.hands.facts.next(), None);
        assert!(left.hands.records.read().is_empty(), "it may be asked for again");
        child.wait().unwrap();
    }

    #[test]
    fn one_that_goes_on_to_its_program_is_a_run() {
        let mut child = leader_of_a_session("exec sleep 10");
        let mut left = left(child.id());
        let (record, pid) = (left.record.try_clone().unwrap(), child.id());
        let goes_on = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            Records::complete(&record, Main { pid, start_ticks: EXECUTING }).unwrap();
        });
        left.hands.adopt(&left.poller).unwrap();
        let run = &left.hands.runs[&name()];
        assert!(matches!(run.main, MainProcess::Foreign { .. }) && run.pid == pid);
        goes_on.join().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
