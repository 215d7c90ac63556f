//! The runs and slots, and what each verb does to them. Knows no socket.
//!
//! A run goes through two ends, each a fact: its main process exits, its tree is gone. Its zombie is
//! kept until the first is acknowledged, its place until both are.

mod ends;
mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use tracing::warn;

use super::channels::Slot;
use super::clock;
use super::exits;
use super::facts::Facts;
use super::notify::NotifyFolder;
use super::operations::Operations;
use super::poller::{Poller, Token};
use super::prepared::Prepared;
use super::proc;
use super::records::{Main, Records};
use super::run::{MainProcess, Run, Tree};
use super::sockets::Sockets;
use super::spawn::{self, Descriptors};
use super::trees::Forest;
use super::vault::{Deposit, Pipes};
use crate::ipc::hello::Incarnation;
use crate::ipc::keeper::{
    Answer, Channel, Fact, FactNumber, LIST_PAGE, MEMO_BYTES_MAX, Refusal, RunName, SlotName,
    Spawn, SpawnFailure, Step, What,
};

/// Runs at one time, ended and not acknowledged ones included: more than one machine has services.
pub(super) const RUNS_MAX: usize = 8192;

/// What is answered, and the descriptors that go with it.
pub(super) type Reply = (Answer, Vec<OwnedFd>);

/// All runs and slots.
#[derive(Debug)]
pub(super) struct Hands {
    notify: NotifyFolder,
    pub(super) forest: Forest,
    pub(super) records: Records,
    pub(super) operations: Operations,
    deposit: Deposit,
    pub(super) facts: Facts,
    pub(super) runs: BTreeMap<RunName, Run>,
    /// Runs by the number under which their main process is watched.
    pub(super) numbers: BTreeMap<u64, RunName>,
    /// Processes of trees without cgroup whose ends are waited for.
    members: BTreeMap<u64, (RunName, OwnedFd)>,
    last_number: u64,
    slots: BTreeMap<SlotName, Slot>,
    sockets: Sockets,
    /// The pipes of an earlier keeper, until a slot takes them.
    pub(super) orphaned: BTreeMap<SlotName, Pipes>,
    /// Trees of which it could not be told whether they live, and when they are looked at again.
    unseen: BTreeSet<RunName>,
    look_at: Option<Instant>,
    /// Places that could not be removed at once.
    unswept: Vec<RunName>,
    null: OwnedFd,
    /// The limit of open descriptors that this process was started with.
    files: libc::rlimit64,
    /// Whether an agent has given what it had, so that what is lost is lost.
    pub(super) is_told: bool,
}

impl Hands {
    pub(super) fn new(
        notify: NotifyFolder,
        forest: Forest,
        mut records: Records,
        operations: Operations,
        files: libc::rlimit64,
    ) -> io::Result<Self> {
        let (deposit, kept) = Deposit::find();
        records.take_back(kept.records);
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        Ok(Self {
            notify,
            forest,
            records,
            operations,
            deposit,
            facts: Facts::default(),
            runs: BTreeMap::new(),
            numbers: BTreeMap::new(),
            members: BTreeMap::new(),
            last_number: 0,
            slots: BTreeMap::new(),
            sockets: Sockets::of(kept.sockets),
            orphaned: kept.pipes,
            unseen: BTreeSet::new(),
            look_at: None,
            unswept: Vec::new(),
            null: rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())?,
            files,
            is_told: false,
        })
    }

    /// Starts a process.
    pub(super) fn spawn(&mut self, poller: &Poller, agent: Incarnation, spawn: &Spawn) -> Reply {
        match self.check(spawn).and_then(|()| self.slot(&spawn.slot).map(drop)) {
            Ok(()) => {}
            Err(refusal) => return refused(refusal),
        }
        match self.start(poller, agent, spawn) {
            Ok(reply) => reply,
            Err(Unstarted::Refused(refusal)) => refused(refusal),
            Err(Unstarted::Failed(failure)) => {
                self.sockets.close_of_run(&spawn.run, &self.deposit);
                self.facts.push(&spawn.run, &spawn.memo, What::NotSpawned(failure));
                (Answer::NotSpawned(failure), Vec::new())
            }
        }
    }

    fn check(&self, spawn: &Spawn) -> Result<(), Refusal> {
        if self.runs.contains_key(&spawn.run) {
            return Err(Refusal::RunExists);
        }
        if spawn.memo.len() > MEMO_BYTES_MAX {
            return Err(Refusal::Invalid(format!("the memo is larger than {MEMO_BYTES_MAX}")));
        }
        if self.runs.len() >= RUNS_MAX {
            return Err(Refusal::Full);
        }
        Ok(())
    }

    fn start(
        &mut self,
        poller: &Poller,
        agent: Incarnation,
        spawn: &Spawn,
    ) -> Result<Reply, Unstarted> {
        let mut added = vec![(proc::RUN_VARIABLE, self.forest.token(&spawn.run))];
        if spawn.notify {
            let address = self.listen(spawn).map_err(failed(Step::Prepare))?;
            added.push(("NOTIFY_SOCKET", address));
        }
        let account = spawn.account.as_ref();
        let sockets = match spawn.is_errand {
            true => Vec::new(),
            false => self
                .sockets
                .open(&spawn.slot, &spawn.run, &spawn.sockets, account, &self.deposit)
                .map_err(failed(Step::Sockets))?,
        };
        let prepared = Prepared::of(spawn, &added, self.files)
            .map_err(|why| Unstarted::Refused(Refusal::Invalid(why.to_string())))?;
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let ready = spawn.ready_fd.map(|number| {
            rustix::pipe::pipe_with(flags).map(|(reader, writer)| (reader, writer, number))
        });
        let ready = ready.transpose().map_err(|errno| failed(Step::Prepare)(errno.into()))?;
        let slot = self.slots.get(&spawn.slot).expect("the slot was completed in `spawn`");
        let record = self
            .records
            .begin(&spawn.run, &spawn.slot, &spawn.memo, slot.pipes())
            .map_err(failed(Step::Prepare))?;
        if let Some(record) = self.records.in_memory(&spawn.run) {
            self.deposit.keep_record(&spawn.run, record.as_fd());
        }
        let cgroup = self.forest.plant(&spawn.run).map_err(|error| {
            self.forget_record(&spawn.run);
            // A tree of this name stands: no second copy.
            if error.kind() == io::ErrorKind::AlreadyExists {
                Unstarted::Refused(Refusal::RunExists)
            } else {
                failed(Step::Cgroup)(error)
            }
        })?;
        let slot = self.slots.get_mut(&spawn.slot).expect("the slot was completed in `spawn`");
        if let Some(account) = &spawn.account {
            slot.give_to(account.uid, account.gid);
        }
        let (out, err) = (slot.channel(Channel::Stdout), slot.channel(Channel::Stderr));
        let descriptors = Descriptors {
            stdio: [self.null.as_fd(), out, err],
            ready: ready.as_ref().map(|(_, writer, number)| (writer.as_fd(), *number)),
            sockets: sockets.iter().map(|socket| socket.as_raw_fd()).collect(),
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            birth: Some(record.as_fd()),
        };
        let started = match spawn::spawn(&prepared, &descriptors) {
            Ok(started) => started,
            Err(failure) => {
                self.sweep(spawn.run.clone());
                return Err(Unstarted::Failed(failure));
            }
        };
        let pid = started.pid;
        let start_ticks = proc::process(pid).map(|process| process.start_ticks).unwrap_or_default();
        if let Err(error) = Records::complete(&record, Main { pid, start_ticks }) {
            // Only the next keeper would miss it, and it asks the agent too.
            warn!(run = %spawn.run, %error, "failed to note the main process");
        }
        let inode = exits::inode(&started.pidfd);
        let (mut names, mut passed) = (Vec::new(), Vec::new());
        if let Ok(pidfd) = started.pidfd.try_clone() {
            passed.push(pidfd);
            if slot.known_to != Some(agent)
                && let Ok((channels, copies)) = slot.duplicate()
            {
                slot.known_to = Some(agent);
                names.extend(channels);
                passed.extend(copies);
            }
            if let Some((reader, ..)) = &ready
                && let (Ok(copy), Ok(to_keep)) = (reader.try_clone(), reader.try_clone())
            {
                names.push(Channel::Ready);
                passed.push(copy);
                // A pipe that nobody reads would end the service that writes to it.
                let mut kept = slot.to_keep();
                kept.insert(Channel::Ready, to_keep);
                self.deposit.keep(&spawn.slot, &kept);
            }
        }
        let run = Run {
            slot: spawn.slot.clone(),
            memo: spawn.memo.clone(),
            pid,
            inode,
            began_ns: Some(clock::since_boot_ns()),
            adopted: false,
            main: MainProcess::Child { pidfd: started.pidfd },
            tree: Tree::Lives,
            ready: ready.map(|(reader, ..)| reader),
            exit_acknowledged: false,
            gone_acknowledged: false,
        };
        self.insert(poller, spawn.run.clone(), run);
        self.facts.push(&spawn.run, &spawn.memo, What::Spawned { pid, inode });
        Ok((Answer::Spawned { pid, inode, channels: names }, passed))
    }

    /// Removes what no service needs any more.
    pub(super) fn fell(&self) {
        self.forest.fell();
        self.notify.fell();
    }

    pub(super) fn insert(&mut self, poller: &Poller, name: RunName, run: Run) {
        self.last_number += 1;
        let token = Token::Main(self.last_number);
        let watched = match &run.main {
            MainProcess::Child { pidfd } => poller.watch(pidfd, token),
            MainProcess::Foreign { pidfd } => poller.watch_edges(pidfd, token),
            MainProcess::Lost | MainProcess::Ended { .. } | MainProcess::Reaped => Ok(()),
        };
        if let Err(error) = watched {
            warn!(run = %name, %error, "failed to watch a process");
        }
        self.numbers.insert(self.last_number, name.clone());
        self.runs.insert(name, run);
    }

    /// Lists a page of runs.
    pub(super) fn list(&mut self, poller: &Poller, after: Option<&RunName>) -> Reply {
        if !self.is_told {
            self.is_told = true;
            self.give_up_lost(poller);
        }
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.runs.range::<RunName, _>((from, Bound::Unbounded));
        let runs = rest.by_ref().take(LIST_PAGE).map(|(name, run)| run.state(name)).collect();
        (Answer::Runs { runs, more: rest.next().is_some() }, Vec::new())
    }

    /// Reaps and forgets what the agent knows durably.
    pub(super) fn acknowledge(&mut self, poller: &Poller, through: FactNumber) -> Reply {
        for run in std::mem::take(&mut self.unswept) {
            self.sweep(run);
        }
        for Fact { run: name, what, .. } in self.facts.acknowledge(through) {
            let Some(run) = self.runs.get_mut(&name) else { continue };
            match what {
                What::Spawned { .. } | What::NotSpawned(_) => {}
                What::Exited { .. } => run.exit_acknowledged = true,
                What::TreeGone => run.gone_acknowledged = true,
            }
            // Without a cgroup the tree is found by the session, whose number the zombie keeps.
            let is_named_by_main = self.forest.watch().is_none();
            if run.exit_acknowledged && (run.tree == Tree::Gone || !is_named_by_main) {
                run.reap();
            }
            if run.gone_acknowledged {
                self.remove(poller, &name);
            }
        }
        (Answer::Done, Vec::new())
    }

    fn remove(&mut self, poller: &Poller, name: &RunName) {
        if let Some(run) = self.runs.remove(name)
            && let Some(pidfd) = run.pidfd()
        {
            poller.forget(pidfd);
        }
        self.numbers.retain(|_, run| run != name);
        self.sockets.close_of_run(name, &self.deposit);
        self.sweep(name.clone());
    }

    pub(super) fn sweep(&mut self, run: RunName) {
        match self.forest.clear(&run) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.unswept.push(run),
            Ok(()) | Err(_) => self.forget_record(&run),
        }
    }

    fn forget_record(&mut self, run: &RunName) {
        if self.records.end(run) {
            self.deposit.forget_record(run);
        }
    }

    /// Says whether a process is the main one of a run, and so is not to be reaped by the way.
    pub(super) fn is_main(&self, pid: u32) -> bool {
        let is_child = |run: &Run| {
            matches!(
                run.main,
                MainProcess::Child { .. } | MainProcess::Ended { is_child: true, .. }
            )
        };
        self.runs.values().any(|run| run.pid == pid && is_child(run))
    }
}

enum Unstarted {
    Refused(Refusal),
    Failed(SpawnFailure),
}

fn failed(step: Step) -> impl Fn(io::Error) -> Unstarted {
    move |error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Unstarted::Failed(SpawnFailure { step, errno })
    }
}

pub(super) fn kernel(what: &str, error: &io::Error) -> Refusal {
    Refusal::Kernel { what: what.to_owned(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

pub(super) fn refused(refusal: Refusal) -> Reply {
    (Answer::Refused(refusal), Vec::new())
}
