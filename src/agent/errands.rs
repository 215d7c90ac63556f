//! The processes beside the runs of services: hooks, checks and actions. Each is killed, with all that it began, as soon as
//! nothing needs it; and the node does not end before the last of them is gone.

use std::collections::BTreeMap;

use tracing::{info, warn};

use super::asked::Asked;
use super::names::{HookName, Memo};
use super::probes::Probes;
use super::task::Agent;
use crate::domain::event::StopPhase;
use crate::domain::instance::State;
use crate::domain::node::Node;
use crate::ipc::keeper::{RunName, ShutdownMode, Verb};

/// The hooks, checks and actions of which the keeper has processes.
#[derive(Debug, Default)]
pub(super) struct Errands {
    alive: BTreeMap<RunName, Errand>,
    /// The node ends when none is left.
    is_leaving: bool,
}

#[derive(Debug)]
struct Errand {
    memo: Memo,
    /// Whether the keeper was told to kill it.
    is_doomed: bool,
}

impl Errands {
    /// Takes in a process that the keeper has, if it is beside a run.
    pub(super) fn began(&mut self, run: &RunName, memo: &[u8]) {
        match Memo::decode(memo) {
            Some(memo @ (Memo::Hook { .. } | Memo::Check { .. } | Memo::Action { .. })) => {
                self.alive.insert(run.clone(), Errand { memo, is_doomed: false });
            }
            Some(Memo::Run { .. }) | None => {}
        }
    }

    /// Forgets all: another keeper lists what there is.
    pub(super) fn forget(&mut self) {
        self.alive.clear();
    }

    /// Takes in that nothing is left of a run.
    pub(super) fn gone(&mut self, run: &RunName) {
        self.alive.remove(run);
    }

    /// Returns those that nothing needs, each once.
    fn condemn(&mut self, node: &Node, probes: &Probes) -> Vec<RunName> {
        let is_leaving = self.is_leaving;
        let useless = self.alive.iter_mut().filter(|(name, errand)| {
            let is_needed = || match &errand.memo {
                Memo::Check { instance, run, check } => probes.awaits(instance, *run, check, name),
                memo => is_needed(memo, node),
            };
            !errand.is_doomed && (is_leaving || !is_needed())
        });
        useless
            .map(|(run, errand)| {
                errand.is_doomed = true;
                run.clone()
            })
            .collect()
    }
}

/// Says whether the state of the node still has a use for an errand.
fn is_needed(memo: &Memo, node: &Node) -> bool {
    match memo {
        Memo::Run { .. } | Memo::Check { .. } => true,
        Memo::Action { intent, .. } => node.awaits_action(intent),
        Memo::Hook { instance, run, hook } => {
            let state = node.instance(instance).and_then(|known| known.of_run(*run));
            match (hook, state) {
                (
                    HookName::PreStop,
                    Some(State::Stopping { run: ours, phase: StopPhase::PreStop, .. }),
                ) => ours == run,
                (HookName::Reload, Some(State::Reloading { main, .. })) => main.run == *run,
                (HookName::PreStop | HookName::Reload, _) => false,
            }
        }
    }
}

impl Agent {
    /// Kills the errands that nothing needs any more: past their deadline, after their own end or that of their run.
    pub(super) fn kill_useless_errands(&mut self) {
        // Most of the time there is none.
        if self.errands.alive.is_empty() || !self.hands.met() {
            return;
        }
        for run in self.errands.condemn(&self.node, &self.probes) {
            info!(%run, "an errand that nothing needs is killed");
            self.hands.ask(Asked::KillTree(run.clone()), Verb::KillTree { run });
        }
    }

    /// Ends the node's parts. Without services errands are of no use: they go first.
    pub(super) fn stop_agent(&mut self, leave_running: bool) {
        if leave_running {
            return self.shut_down(ShutdownMode::Leave);
        }
        self.errands.is_leaving = true;
        self.kill_useless_errands();
        if self.hands.met() && !self.is_without_errands() {
            let left: Vec<&str> = self.errands.alive.keys().map(RunName::as_str).collect();
            return warn!(?left, "the node ends when these are gone");
        }
        self.shut_down(ShutdownMode::Drain);
    }

    /// Goes on with an end that waited for errands.
    pub(super) fn leave_without_errands(&mut self) {
        if self.errands.is_leaving && self.hands.met() && self.is_without_errands() {
            self.shut_down(ShutdownMode::Drain);
        }
    }

    fn is_without_errands(&self) -> bool {
        self.errands.alive.is_empty() && !self.hands.pending.has_errand()
    }

    fn shut_down(&mut self, mode: ShutdownMode) {
        if self.hands.pending.is_ending() {
            return;
        }
        info!(?mode, "the node's parts end");
        self.hands.ask(Asked::Shutdown, Verb::Shutdown(mode));
        // With a keeper, it has to know first: it would start an agent that ends too early again.
        if !self.hands.met() {
            self.end();
        }
    }
}
