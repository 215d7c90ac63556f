//! What the agent holds of the keeper: operations under way, descriptors to give back, and the meeting with a keeper
//! before which nothing is started or stopped.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

use serde_bytes::ByteBuf;
use tracing::{error, warn};

pub(super) use super::asked::Asked;
use super::asked::Pending;
use super::keeper_link::Outlet;
use super::signs::Ear;
use super::{clock, names};
use crate::domain::id::InstanceId;
use crate::ipc::frame::Packet;
use crate::ipc::hello::{Hello, Incarnation};
use crate::ipc::keeper::{
    Answer, Channel, Claim, Fact, FactNumber, Isolation, OperationNumber, Refusal, RunName,
    RunState, SlotName, ToKeeper, Trees, Verb,
};

/// The channels of a slot, and the pidfds of its runs.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) channels: BTreeMap<Channel, OwnedFd>,
    /// What listens to its notify socket, where it has one.
    pub(super) ear: Option<Ear>,
    pub(super) runs: BTreeMap<RunName, HeldRun>,
}

impl Held {
    /// Says whether its output is read.
    pub(super) fn has_pipes(&self) -> bool {
        [Channel::Stdout, Channel::Stderr].iter().all(|pipe| self.channels.contains_key(pipe))
    }
}

/// A run's identity, to be claimed at a new keeper.
#[derive(Debug)]
pub(super) struct HeldRun {
    pub(super) pid: u32,
    pub(super) memo: ByteBuf,
    pub(super) pidfd: OwnedFd,
}

/// The start of a process that was asked for.
#[derive(Debug)]
pub(super) struct Spawning {
    pub(super) run: RunName,
    pub(super) slot: SlotName,
    pub(super) memo: ByteBuf,
}

/// A meeting that is under way: what the keeper has told so far.
#[derive(Debug, Default)]
pub(super) struct Meeting {
    pub(super) runs: Vec<RunState>,
    pub(super) facts: Vec<Fact>,
}

/// How agent and keeper stand.
#[derive(Debug)]
pub(super) enum Standing {
    /// There is no keeper.
    Apart,
    /// It is being asked what it has.
    Meeting(Meeting),
    /// Both know the same.
    Met,
}

/// The agent's side of the keeper.
#[derive(Debug)]
pub(super) struct Hands {
    outlet: Option<Outlet>,
    keeper: Option<Incarnation>,
    number: u64,
    pub(super) pending: Pending,
    /// Operations that no message can hold; to be taken as refused.
    pub(super) unsent: VecDeque<(Asked, Refusal)>,
    pub(super) standing: Standing,
    pub(super) held: BTreeMap<SlotName, Held>,
    /// Main process and memo of each run that the keeper listed.
    pub(super) listed: BTreeMap<RunName, (u32, ByteBuf)>,
    pub(super) trees: Option<Trees>,
    pub(super) isolation: Option<Isolation>,
}

impl Hands {
    pub(super) fn new() -> Self {
        Self {
            outlet: None,
            keeper: None,
            number: 0,
            pending: Pending::default(),
            unsent: VecDeque::new(),
            standing: Standing::Apart,
            held: BTreeMap::new(),
            listed: BTreeMap::new(),
            trees: None,
            isolation: None,
        }
    }

    /// Says whether things may be started and stopped.
    pub(super) fn met(&self) -> bool {
        matches!(self.standing, Standing::Met)
    }

    /// Takes a keeper into service: gives it back what an earlier one made, then asks what it has.
    pub(super) fn connected(
        &mut self,
        hello: &Hello,
        trees: Trees,
        isolation: Isolation,
        outlet: Outlet,
    ) {
        let is_new = self.keeper.replace(hello.incarnation) != Some(hello.incarnation);
        self.outlet = Some(outlet);
        (self.trees, self.isolation) = (Some(trees), Some(isolation));
        self.standing = Standing::Meeting(Meeting::default());
        self.pending = Pending::default();
        if is_new {
            let slots: Vec<SlotName> = self.held.keys().cloned().collect();
            for slot in slots {
                self.give_back(&slot);
            }
        }
        self.ask(Asked::List, Verb::List { after: None });
    }

    /// The keeper is gone; what was asked of it is asked again when there is one.
    pub(super) fn disconnected(&mut self) {
        self.outlet = None;
        self.standing = Standing::Apart;
        self.pending.quieten();
    }

    /// Gives up the connection, so that a meeting follows in which everything is asked again.
    pub(super) fn cut(&mut self) {
        self.disconnected();
    }

    /// Returns what listens to the notify socket of a slot.
    pub(super) fn ear(&mut self, instance: &InstanceId) -> Option<&mut Ear> {
        self.held.get_mut(&names::slot(instance))?.ear.as_mut()
    }

    /// Asks for an operation. Without a keeper nothing is sent: the core asks again after the next meeting.
    pub(super) fn ask(&mut self, asked: Asked, verb: Verb) {
        self.ask_with(asked, verb, Vec::new());
    }

    /// Returns which keeper there is.
    pub(super) fn keeper(&self) -> Option<Incarnation> {
        self.keeper
    }

    /// Says whether the channels of a slot and the pidfd of a run of it are here.
    pub(super) fn holds(&self, slot: &SlotName, run: &RunName) -> bool {
        let held = self.held.get(slot);
        held.is_some_and(|held| !held.channels.is_empty() && held.runs.contains_key(run))
    }

    /// Tells a keeper up to which fact everything is durable. Another keeper's facts have other numbers.
    pub(super) fn acknowledge(&mut self, keeper: Incarnation, through: FactNumber) {
        if self.keeper != Some(keeper) {
            return;
        }
        self.ask(Asked::Acknowledge, Verb::Acknowledge { through });
    }

    /// Returns what an answer is the answer to.
    pub(super) fn answered(
        &mut self,
        number: OperationNumber,
        answer: &Answer,
        now_ns: u64,
    ) -> Option<(Asked, Option<Spawning>)> {
        let (taken, passed_over) = self.pending.take(number, answer, now_ns);
        if passed_over && self.outlet.is_some() {
            warn!("an answer of the keeper is lost");
            self.cut();
        }
        taken
    }

    /// A fact about a run came.
    pub(super) fn told_of(&mut self, run: &RunName) {
        self.pending.told_of(run);
    }

    /// Says whether the keeper was told to end and has not answered.
    pub(super) fn asked_to_shut_down(&self) -> bool {
        self.pending.has(&Asked::Shutdown)
    }

    fn ask_with(&mut self, asked: Asked, verb: Verb, descriptors: Vec<OwnedFd>) {
        let Some(outlet) = &self.outlet else { return };
        self.number += 1;
        let number = OperationNumber(self.number);
        let spawning = match &verb {
            Verb::Spawn(spawn) => Some(Spawning {
                run: spawn.run.clone(),
                slot: spawn.slot.clone(),
                memo: spawn.memo.clone(),
            }),
            _ => None,
        };
        let message = ToKeeper::Operate { number, verb };
        let packet = match Packet::with_descriptors(&message, descriptors) {
            Ok(packet) => packet,
            Err(error) => {
                error!(%error, ?asked, "an operation does not fit a message");
                return self.unsent.push_back((asked, Refusal::Invalid(error.to_string())));
            }
        };
        match outlet.send(packet) {
            Ok(()) => self.pending.enter(number, asked, spawning, clock::now().mono_ns),
            Err(_) => {
                warn!(?asked, "the keeper does not keep up; everything is asked again");
                self.cut();
            }
        }
    }

    pub(super) fn give_back(&mut self, slot: &SlotName) {
        let Some(held) = self.held.get(slot) else { return };
        let mut descriptors = Vec::new();
        let mut channels = Vec::new();
        let mut runs = Vec::new();
        for (channel, fd) in &held.channels {
            if let Ok(fd) = fd.try_clone() {
                channels.push(*channel);
                descriptors.push(fd);
            }
        }
        for (run, known) in &held.runs {
            if let Ok(fd) = known.pidfd.try_clone() {
                runs.push(Claim { run: run.clone(), pid: known.pid, memo: known.memo.clone() });
                descriptors.push(fd);
            }
        }
        let verb = Verb::GiveDescriptors { slot: slot.clone(), channels, runs };
        self.ask_with(Asked::GiveBack(slot.clone()), verb, descriptors);
    }
}
