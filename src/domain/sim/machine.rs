//! A machine and its keeper: processes, ends that nobody acknowledged, and operations that were carried out.

use std::collections::{BTreeMap, VecDeque};

use crate::domain::effect::{Act, Operation};
use crate::domain::event::{Exit, Usage};
use crate::domain::id::{BootId, Digest, InstanceId, IntentId, RunId};
use crate::domain::input::{ActionEnd, Delivery, Ended, Input, Kept, KeptAction, KeptRun};

use super::super::event::PartStarted;

pub(super) struct Machine {
    pub(super) boot: u8,
    pub(super) incarnation: u64,
    pub(super) keeper_up: bool,
    next_pid: u32,
    /// Alive, or ended and not acknowledged. Survives the keeper, not the power.
    pub(super) processes: BTreeMap<(InstanceId, RunId), Process>,
    pub(super) actions: BTreeMap<IntentId, Option<Exit>>,
    /// What this keeper did: dies with it.
    done: BTreeMap<Operation, Input>,
    /// How often what a wish asks for was felt, for ever.
    pub(super) felt: BTreeMap<(IntentId, Option<InstanceId>), u32>,
}

#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) spec: Digest,
    /// Whether the agent has its pidfd.
    pub(super) held: bool,
    pub(super) asked_to_end: bool,
    pub(super) ended: Option<Exit>,
    /// Whether something that it started is still there.
    pub(super) has_child: bool,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            boot: 1,
            incarnation: 1,
            keeper_up: true,
            next_pid: 100,
            processes: BTreeMap::new(),
            actions: BTreeMap::new(),
            done: BTreeMap::new(),
            felt: BTreeMap::new(),
        }
    }

    /// Carries out a request and returns what the keeper says about it.
    pub(super) fn serve(&mut self, act: &Act, luck: u64) -> Option<Input> {
        match act {
            Act::Spawn { instance, run, spec } => {
                let operation = Operation::Spawn(instance.clone(), *run);
                if let Some(said) = self.done.get(&operation) {
                    return Some(said.clone());
                }
                let said = if luck.is_multiple_of(16) {
                    Input::StartFailed {
                        instance: instance.clone(),
                        run: *run,
                        step: "exec".to_owned(),
                        errno: 2,
                        why: "no such file".to_owned(),
                    }
                } else {
                    self.next_pid += 1;
                    let process = Process {
                        pid: self.next_pid,
                        spec: *spec,
                        held: false,
                        asked_to_end: false,
                        ended: None,
                        has_child: luck.is_multiple_of(5),
                    };
                    self.processes.insert((instance.clone(), *run), process);
                    Input::Started {
                        instance: instance.clone(),
                        run: *run,
                        pid: self.next_pid,
                        pidfd_inode: u64::from(self.next_pid),
                        spec: *spec,
                    }
                };
                self.done.insert(operation, said.clone());
                Some(said)
            }
            Act::Signal { instance, run, operation, .. } => self.signal(instance, *run, operation),
            Act::KillTree { instance, run } => {
                let process = self.processes.get_mut(&(instance.clone(), *run))?;
                process.has_child = false;
                if process.ended.is_none() {
                    return self.end(
                        instance,
                        *run,
                        Exit::Signal { signal: 9, core_dumped: false },
                    );
                }
                Some(Input::TreeGone { instance: instance.clone(), run: *run })
            }
            Act::Acknowledge { instance, run } => {
                self.processes.remove(&(instance.clone(), *run));
                None
            }
            Act::StartAction { intent, .. } => {
                let operation = Operation::Action(*intent);
                if let Some(said) = self.done.get(&operation) {
                    return Some(said.clone());
                }
                *self.felt.entry((*intent, None)).or_default() += 1;
                self.actions.insert(*intent, None);
                let said = Input::ActionStarted { intent: *intent };
                self.done.insert(operation, said.clone());
                Some(said)
            }
            Act::KillAction { intent } => {
                self.end_action(*intent, Exit::Signal { signal: 9, core_dumped: false })
            }
            Act::AcknowledgeAction { intent } => {
                self.actions.remove(intent);
                None
            }
            Act::RunHook { .. }
            | Act::SetTimer { .. }
            | Act::CancelTimer { .. }
            | Act::KeepReady { .. }
            | Act::LoadSpecs { .. }
            | Act::Stage { .. }
            | Act::ProveRelease { .. }
            | Act::PruneReleases { .. }
            | Act::Answer { .. }
            | Act::StopAgent { .. } => None,
        }
    }

    fn signal(&mut self, id: &InstanceId, run: RunId, operation: &Operation) -> Option<Input> {
        if let Some(said) = self.done.get(operation) {
            return Some(said.clone());
        }
        let alive =
            self.processes.get_mut(&(id.clone(), run)).filter(|process| process.ended.is_none());
        let delivery = if alive.is_some() { Delivery::Delivered } else { Delivery::Gone };
        let Operation::Wish(intent, _) = operation else {
            if let Some(process) = alive {
                process.asked_to_end = true;
            }
            return None;
        };
        if alive.is_some() {
            *self.felt.entry((*intent, Some(id.clone()))).or_default() += 1;
        }
        let said = Input::SignalDelivered { intent: *intent, instance: id.clone(), delivery };
        self.done.insert(operation.clone(), said.clone());
        Some(said)
    }

    /// Ends a main process; `None` when it is not alive.
    pub(super) fn end(&mut self, id: &InstanceId, run: RunId, exit: Exit) -> Option<Input> {
        let process =
            self.processes.get_mut(&(id.clone(), run)).filter(|process| process.ended.is_none())?;
        process.ended = Some(exit);
        let (pid, tree_empty) = (process.pid, !process.has_child);
        Some(Input::Exited { instance: id.clone(), run, pid, ended: told(exit, tree_empty) })
    }

    pub(super) fn end_action(&mut self, intent: IntentId, exit: Exit) -> Option<Input> {
        let ended = self.actions.get_mut(&intent).filter(|ended| ended.is_none())?;
        *ended = Some(exit);
        Some(Input::ActionEnded { intent, end: ActionEnd::Exited { exit, ran_ms: 5 } })
    }

    /// The keeper dies. What ended is known on only through the agent's descriptors.
    pub(super) fn lose_keeper(&mut self, agent_up: bool) {
        self.keeper_up = false;
        self.forget_unseen(agent_up);
    }

    /// Without keeper and agent nobody saw how it ended; that it was there stands in the keeper's records.
    pub(super) fn forget_unseen(&mut self, agent_up: bool) {
        if self.keeper_up {
            return;
        }
        for process in self.processes.values_mut() {
            if process.ended.is_some() && !(agent_up && process.held) {
                process.ended = Some(Exit::Unknown);
            }
        }
        for ended in self.actions.values_mut().flatten() {
            *ended = Exit::Unknown;
        }
    }

    pub(super) fn start_keeper(&mut self) {
        if !self.keeper_up {
            self.keeper_up = true;
            self.incarnation += 1;
        }
    }

    pub(super) fn cut_power(&mut self) {
        self.boot += 1;
        self.keeper_up = false;
        self.done.clear();
        self.processes.clear();
        self.actions.clear();
    }

    pub(super) fn list(&self, agent_is_new: bool) -> Kept {
        let run = |((instance, run), process): (&(InstanceId, RunId), &Process)| KeptRun {
            instance: instance.clone(),
            run: *run,
            pid: process.pid,
            pidfd_inode: u64::from(process.pid),
            spec: process.spec,
            ended: process.ended.map(|exit| told(exit, !process.has_child)),
        };
        let action = |(intent, ended): (&IntentId, &Option<Exit>)| KeptAction {
            intent: *intent,
            ended: ended.map(|exit| (exit, 5)),
        };
        Kept {
            keeper: PartStarted {
                version: "0".to_owned(),
                pid: 1,
                uid: 0,
                boot: BootId([self.boot; 16]),
                after: None,
                away_ms: 0,
                incarnation: self.incarnation,
            },
            agent_is_new,
            away_ms: 1,
            runs: self.processes.iter().map(run).collect(),
            actions: self.actions.iter().map(action).collect(),
        }
    }
}

fn told(exit: Exit, tree_empty: bool) -> Ended {
    Ended { exit, usage: Usage::default(), oom_killed: false, ran_ms: 50, tree_empty, tail: None }
}

/// What travels between agent and keeper, in both directions, in order.
#[derive(Default)]
pub(super) struct Socket {
    pub(super) requests: VecDeque<Act>,
    pub(super) facts: VecDeque<Input>,
}
