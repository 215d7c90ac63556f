//! What the agent holds of the keeper: operations under way, descriptors to give back, and the meeting with a keeper
//! before which nothing is started or stopped.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

use serde_bytes::ByteBuf;
use tracing::{debug, error, warn};

use super::asked::{Asked, Pending};
use super::outlet::{Outlet, Unsent};
use super::signs::Ear;
use super::{clock, names};
use crate::domain::id::InstanceId;
use crate::ipc::frame::{DESCRIPTORS_MAX, Packet};
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

    /// Gives up the connection, or takes note that it is gone. A meeting follows when there is another, in which
    /// everything is asked again.
    pub(super) fn disconnect(&mut self) {
        self.outlet = None;
        self.standing = Standing::Apart;
        self.pending.quieten();
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
            self.disconnect();
        }
        taken
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
            Err(Unsent::Full) => {
                warn!(?asked, "the keeper does not keep up; everything is asked again");
                self.disconnect();
            }
            Err(Unsent::Gone) => debug!(?asked, "the keeper is gone"),
        }
    }

    /// Keeps the pidfds of runs that the keeper listed. One whose end was told meanwhile is not kept: nobody would
    /// ever let go of it.
    pub(super) fn take_runs(
        &mut self,
        slot: &SlotName,
        runs: impl IntoIterator<Item = (RunName, OwnedFd)>,
    ) {
        let held = self.held.entry(slot.clone()).or_default();
        for (run, pidfd) in runs {
            if let Some((pid, memo)) = self.listed.get(&run).cloned() {
                held.runs.entry(run).or_insert(HeldRun { pid, memo, pidfd });
            }
        }
    }

    /// Lets go of a run of which nothing is left.
    pub(super) fn forget_run(&mut self, slot: &SlotName, run: &RunName) {
        self.listed.remove(run);
        if let Some(held) = self.held.get_mut(slot) {
            held.runs.remove(run);
        }
    }

    pub(super) fn give_back(&mut self, slot: &SlotName) {
        let Some(held) = self.held.get(slot) else { return };
        for (verb, descriptors) in held.gifts(slot) {
            self.ask_with(Asked::GiveBack(slot.clone()), verb, descriptors);
        }
    }
}

impl Held {
    /// Lays out what a new keeper is given of a slot, in messages of as many descriptors as one may have: the
    /// channels come first, since with them the slot is complete.
    fn gifts(&self, slot: &SlotName) -> Vec<(Verb, Vec<OwnedFd>)> {
        let copy = |fd: &OwnedFd| fd.try_clone().ok();
        let channels = self
            .channels
            .iter()
            .filter_map(|(channel, fd)| Some((Gift::Channel(*channel), copy(fd)?)));
        let runs = self.runs.iter().filter_map(|(run, known)| {
            let claim = Claim { run: run.clone(), pid: known.pid, memo: known.memo.clone() };
            Some((Gift::Run(claim), copy(&known.pidfd)?))
        });
        let mut all = channels.chain(runs).peekable();
        let mut messages = Vec::new();
        while all.peek().is_some() {
            let (mut channels, mut runs, mut descriptors) = (Vec::new(), Vec::new(), Vec::new());
            for (gift, fd) in all.by_ref().take(DESCRIPTORS_MAX) {
                descriptors.push(fd);
                match gift {
                    Gift::Channel(channel) => channels.push(channel),
                    Gift::Run(claim) => runs.push(claim),
                }
            }
            let verb = Verb::GiveDescriptors { slot: slot.clone(), channels, runs };
            messages.push((verb, descriptors));
        }
        messages
    }
}

/// What a descriptor is.
enum Gift {
    Channel(Channel),
    Run(Claim),
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::ipc::{channel, socket};

    fn fd() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn run(number: u32) -> RunName {
        format!("web.0.{number}").parse().unwrap()
    }

    #[test]
    fn a_slot_with_more_runs_than_fit_a_message_is_given_in_several() {
        let mut held = Held::default();
        for channel in [Channel::Stdout, Channel::Stderr, Channel::Notify] {
            held.channels.insert(channel, fd());
        }
        for number in 0..40 {
            let known = HeldRun { pid: number, memo: ByteBuf::new(), pidfd: fd() };
            held.runs.insert(run(number), known);
        }
        let (mut given, mut claimed) = (Vec::new(), Vec::new());
        for (place, (verb, descriptors)) in
            held.gifts(&"web.0".parse().unwrap()).into_iter().enumerate()
        {
            let Verb::GiveDescriptors { channels, runs, .. } = verb else { panic!("{verb:?}") };
            assert_eq!(channels.len() + runs.len(), descriptors.len());
            assert!(descriptors.len() <= DESCRIPTORS_MAX);
            assert!(place == 0 || channels.is_empty(), "the channels complete the slot");
            given.extend(channels);
            claimed.extend(runs.into_iter().map(|claim| claim.pid));
        }
        assert_eq!(given.len(), 3);
        claimed.sort_unstable();
        assert_eq!(claimed, (0..40).collect::<Vec<u32>>());
    }

    #[test]
    fn a_run_whose_end_was_told_is_not_held_when_its_descriptor_comes_late() {
        let mut hands = Hands::new();
        let slot: SlotName = "web.0".parse().unwrap();
        for number in [1, 2] {
            hands.listed.insert(run(number), (number, ByteBuf::new()));
        }
        hands.forget_run(&slot, &run(1));
        hands.take_runs(&slot, [(run(1), fd()), (run(2), fd())]);
        assert_eq!(hands.held[&slot].runs.keys().collect::<Vec<_>>(), [&run(2)]);
        hands.forget_run(&slot, &run(2));
        assert!(hands.held[&slot].runs.is_empty());
    }

    /// Hands that have met a keeper which reads nothing, and the keeper's end.
    fn met(waiting_max: usize) -> (Hands, OwnedFd, impl Future) {
        let (ours, theirs) = socket::pair().unwrap();
        let (sender, _) = channel::split(ours).unwrap();
        let (outlet, sending) = Outlet::new(sender, waiting_max);
        let mut hands = Hands::new();
        hands.outlet = Some(outlet);
        hands.standing = Standing::Met;
        (hands, theirs, sending)
    }

    #[tokio::test]
    async fn a_keeper_that_does_not_keep_up_is_met_anew() {
        let (mut hands, _keeper, _sending) = met(1);
        let mut asked = 0;
        while hands.met() {
            asked += 1;
            assert!(asked < 100_000, "its socket has room for ever");
            let verb = Verb::KillTree { run: run(asked) };
            hands.ask(Asked::KillTree(run(asked)), verb);
        }
        assert!(hands.outlet.is_none(), "whoever holds the connection sees that and dials again");
    }

    #[tokio::test]
    async fn an_operation_that_no_message_can_hold_is_refused_and_not_forgotten() {
        let (mut hands, _keeper, _sending) = met(1);
        let slot: SlotName = "web.0".parse().unwrap();
        let verb = Verb::TakeDescriptors { slot: slot.clone() };
        let many = (0..=DESCRIPTORS_MAX).map(|_| fd()).collect();
        hands.ask_with(Asked::Descriptors(slot.clone()), verb, many);
        let (asked, refusal) = hands.unsent.pop_front().unwrap();
        assert_eq!(asked, Asked::Descriptors(slot));
        assert!(matches!(refusal, Refusal::Invalid(_)));
    }
}
