//! The descriptors that come from the keeper: pidfds and channels. Each is put to use, and a duplicate is kept for the
//! next keeper.

use std::os::fd::OwnedFd;

use tracing::error;

use super::execute::{report, told};
use super::hands::{HeldRun, Spawning};
use super::names::{self, Memo};
use super::signs;
use super::task::Agent;
use crate::domain::id::{InstanceId, RunId, ServiceId};
use crate::domain::instance::State;
use crate::ipc::keeper::{Channel, RunName, SlotName};

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
            Some(Memo::Hook { .. } | Memo::Action { .. }) | None => None,
        };
        if let Some(pidfd) = fds.next() {
            let held = self.hands.held.entry(slot.clone()).or_default();
            held.runs.insert(run, HeldRun { pid, memo, pidfd });
        }
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
        let main = self.node.instance(&instance).and_then(|known| known.state.main());
        let run = main.map(|main| main.run);
        self.open_channels(&instance, run, taken);
        self.await_adopted(&instance);
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
        let mut pipes = (None, None);
        for (channel, fd) in taken {
            if channel == Channel::Ready {
                if let Some(run) = run {
                    let waker = self.waker.clone();
                    report(signs::hear_ready_fd(instance.clone(), run, fd, waker).map(drop));
                }
                continue;
            }
            let Ok(duplicate) = fd.try_clone() else {
                error!(%instance, "no descriptor is left");
                continue;
            };
            let held = self.hands.held.entry(names::slot(instance)).or_default();
            if held.channels.insert(channel, duplicate).is_some() {
                continue;
            }
            match channel {
                Channel::Stdout => pipes.0 = Some(fd),
                Channel::Stderr => pipes.1 = Some(fd),
                Channel::Notify => {
                    let waker = self.waker.clone();
                    report(signs::hear_notify(instance.clone(), fd, waker).map(drop));
                }
                Channel::Ready => {}
            }
        }
        let (Some(stdout), Some(stderr)) = pipes else { return };
        let Some((spec, _)) = self.services.spec_of(&instance.service) else { return };
        match self.launchers.log_setup(&spec, instance) {
            Ok(setup) => told(self.logs.handle().attach(instance.clone(), setup, stdout, stderr)),
            Err(why) => error!(%instance, %why, "its output is not written"),
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
}
