//! The descriptors that come from the keeper: pidfds and channels. Each is put to use, and a duplicate is kept for the
//! next keeper.

use std::os::fd::OwnedFd;

use tracing::error;

use super::asked::{Again, Asked};
use super::execute::{report, told};
use super::hands::{Held, HeldRun, Spawning};
use super::names::{self, Memo};
use super::signs;
use super::task::Agent;
use crate::domain::id::{InstanceId, RunId, ServiceId};
use crate::domain::instance::{Instance, State};
use crate::ipc::keeper::{Channel, RunName, SlotName, Verb};

impl Agent {
    /// Keeps what came with a process: its pidfd, and the channels that were not there yet.
    pub(super) fn hold(
        &mut self,
        spawning: Spawning,
        pid: u32,
        channels: &[Channel],
        descriptors: Vec<OwnedFd>,
    ) {
        let Spawning { run, slot, memo } = spawning;
        let mut fds = descriptors.into_iter();
        let number = match Memo::decode(&memo) {
            Some(Memo::Run { run, .. }) => Some(run),
            Some(Memo::Hook { .. } | Memo::Check { .. } | Memo::Action { .. }) | None => None,
        };
        if let Some(pidfd) = fds.next() {
            let held = self.hands.held.entry(slot.clone()).or_default();
            self.errands.began(&run, &memo);
            held.runs.insert(run, HeldRun { pid, memo, pidfd });
        }
        // It may have been asked for and given up in the meantime.
        self.kill_useless_errands();
        let Some(instance) = names::instance_of(&slot) else { return };
        let taken = channels.iter().copied().zip(fds).collect();
        self.open_channels(&instance, number, taken);
    }

    /// Keeps what belongs to a slot whose runs were there before this agent.
    pub(super) fn take_slot(
        &mut self,
        slot: &SlotName,
        channels: &[Channel],
        runs: Vec<RunName>,
        descriptors: Vec<OwnedFd>,
    ) {
        let Some(instance) = names::instance_of(slot) else { return };
        let mut fds = descriptors.into_iter();
        let taken: Vec<_> = channels.iter().copied().zip(fds.by_ref()).collect();
        self.hands.take_runs(slot, runs.into_iter().zip(fds));
        // The readiness pipe that comes along is that of the newest run.
        let newest = self.node.instance(&instance).and_then(|known| known.runs().max());
        let run = newest.filter(|run| {
            let state = self.node.instance(&instance).and_then(|known| known.of_run(*run));
            state.is_some_and(|state| state.main().is_some())
        });
        self.open_channels(&instance, run, taken);
        self.await_adopted(&instance);
        self.close_slot_of(&instance);
    }

    /// Lets go of a slot that belongs to nothing any more: its pipes, its socket, and what was kept of it.
    pub(super) fn close_slot_of(&mut self, instance: &InstanceId) {
        let slot = names::slot(instance);
        let is_at_rest = self.hands.held.get(&slot).is_some_and(|held| held.runs.is_empty());
        // Without a keeper to tell it to, it stays until there is one.
        if !is_at_rest || self.node.instance(instance).is_some() || !self.hands.met() {
            return;
        }
        told(self.logs.handle().detach(instance.clone()));
        self.launchers.forget_slot(instance);
        self.hands.held.remove(&slot);
        // Otherwise it would be made anew.
        self.settled(&Asked::Descriptors(slot.clone()));
        self.hands.ask(Asked::CloseSlot(slot.clone()), Verb::CloseSlot { slot });
    }

    /// Closes the sockets of an instance that is at rest and to stay so: whoever connects is refused, and does not wait for
    /// a run that does not come.
    pub(super) fn close_sockets_of(&mut self, instance: &InstanceId) {
        let Some(service) = self.node.services().get(&instance.service) else { return };
        let is_at_rest = self.node.instance(instance).is_none_or(Instance::at_rest);
        let has_sockets = self
            .services
            .spec_of(&instance.service)
            .is_some_and(|(spec, _)| !spec.socket.is_empty());
        if has_sockets && is_at_rest && !service.wants(instance.index) && self.hands.met() {
            let slot = names::slot(instance);
            self.hands.ask(Asked::CloseSockets(slot.clone()), Verb::CloseSockets { slot });
        }
    }

    /// Lets go of all slots that belong to nothing any more.
    pub(super) fn close_slots(&mut self) {
        let all: Vec<InstanceId> = self.hands.held.keys().filter_map(names::instance_of).collect();
        for instance in &all {
            self.close_slot_of(instance);
            self.close_sockets_of(instance);
        }
    }

    /// Waits on for the line by which an adopted run says that it is ready; it may be in the file already.
    fn await_adopted(&self, instance: &InstanceId) {
        let state = self.node.instance(instance).map(|known| &known.state);
        if let Some(State::Starting { main, .. }) = state
            && let Some((spec, _)) = self.services.spec_of(&instance.service)
        {
            self.prepare_logs(instance, main.run, &spec.ready.by, Some(main.started_at));
        }
    }

    /// Puts channels to use: pipes to the log thread, sockets to their listeners. Duplicates are kept for a new keeper.
    fn open_channels(
        &mut self,
        instance: &InstanceId,
        run: Option<RunId>,
        taken: Vec<(Channel, OwnedFd)>,
    ) {
        let slot = names::slot(instance);
        let mut pipes = (None, None);
        for (channel, fd) in taken {
            let held = self.hands.held.entry(slot.clone()).or_default();
            match channel {
                Channel::Stdout => pipes.0 = Some(fd),
                Channel::Stderr => pipes.1 = Some(fd),
                Channel::Notify if held.ear.is_none() || !held.knows(channel, &fd) => {
                    let opened = fd.try_clone().and_then(|duplicate| {
                        let (ear, there) =
                            signs::Ear::open(instance.clone(), fd, self.waker.clone())?;
                        held.channels.insert(channel, duplicate);
                        held.ear = Some(ear);
                        Ok(there)
                    });
                    match opened {
                        Ok(there) => there.into_iter().for_each(|sign| {
                            self.was_notified(instance, sign, run.is_some());
                        }),
                        Err(why) => report(Err(why)),
                    }
                }
                Channel::Notify => {}
                Channel::Ready => {
                    if let Some(run) = run {
                        let waker = self.waker.clone();
                        report(signs::hear_ready_fd(instance.clone(), run, fd, waker).map(drop));
                    }
                }
            }
        }
        if let (Some(stdout), Some(stderr)) = pipes
            && let Err(why) = self.read_output(instance, stdout, stderr)
        {
            error!(%instance, %why, "its output is not read");
        }
        if !self.hears_all(instance) {
            self.later(Again::Descriptors(slot), "not all channels came");
        }
    }

    /// Has the output of a service kept as its spec says from here on; nothing of it is started anew for that.
    pub(super) fn configure_logs(&self, service: &ServiceId) {
        let Some((spec, _)) = self.services.spec_of(service) else { return };
        for index in 0..spec.instances {
            let instance = InstanceId { service: service.clone(), index };
            if !self.hands.held.contains_key(&names::slot(&instance)) {
                continue;
            }
            match self.launchers.log_setup(&spec, &instance) {
                Ok(setup) => told(self.logs.handle().configure(instance, setup)),
                Err(why) => error!(%instance, %why, "its output is kept as before"),
            }
        }
    }

    /// Has the log thread read the output of a slot, where it does not do so yet.
    fn read_output(
        &mut self,
        instance: &InstanceId,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<(), String> {
        let held = self.hands.held.entry(names::slot(instance)).or_default();
        if held.knows(Channel::Stdout, &stdout) && held.knows(Channel::Stderr, &stderr) {
            return Ok(());
        }
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|error| error.to_string());
        let kept = [(Channel::Stdout, copy(&stdout)?), (Channel::Stderr, copy(&stderr)?)];
        // Without a spec it is on its way out, and nobody says where its last lines would go.
        if let Some((spec, _)) = self.services.spec_of(&instance.service) {
            let setup = self.launchers.log_setup(&spec, instance)?;
            let attached = self.logs.handle().attach(instance.clone(), setup, stdout, stderr);
            attached.map_err(|error| error.to_string())?;
        }
        held.channels.extend(kept);
        Ok(())
    }
}

impl Held {
    /// Says whether a descriptor is of the channel that is here already.
    fn knows(&self, channel: Channel, other: &OwnedFd) -> bool {
        let inode = |fd| rustix::fs::fstat(fd).ok().map(|about| about.st_ino);
        self.channels.get(&channel).is_some_and(|known| inode(known) == inode(other))
    }
}
