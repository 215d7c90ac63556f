//! A node as far as a rollout sees it: it takes orders, changes, and writes down what came of it.

use super::super::tests::{EXE, failed, healthy};
use super::{GENERATION, NEW, NodeReport, OLD, Step, Switches};
use crate::domain::id::Generation;
use crate::domain::rollout::Failure;
use crate::domain::sim::rng::Rng;
use crate::domain::time::UnixMicros;

/// What becomes of a release on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Good,
    Bad,
    /// It never has a verdict.
    Hangs,
    /// It fails, and cannot go back either.
    Stuck,
}

impl Fate {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        match rng.below(20) {
            0..15 => Self::Good,
            15..18 => Self::Bad,
            18 => Self::Hangs,
            _ => Self::Stuck,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) step: Step,
    pub(super) term: u64,
    /// Whether it carries the signed results of the canary.
    pub(super) proven: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Old,
    Changing { until: UnixMicros },
    New,
    Returning { until: UnixMicros },
    Broken,
}

pub(super) struct Agent {
    fate: Fate,
    runs: Runs,
    term: u64,
    told: usize,
    went_back: bool,
    pub(super) away: bool,
    /// Whether the service was never here.
    pub(super) has_nothing: bool,
    pub(super) log: Vec<NodeReport>,
    pub(super) applied: u32,
    pub(super) returns: u32,
    pub(super) applied_after_return: bool,
}

impl Agent {
    pub(super) fn new(fate: Fate, has_nothing: bool) -> Self {
        Self {
            fate,
            runs: Runs::Old,
            term: 0,
            told: 0,
            went_back: false,
            away: false,
            has_nothing,
            log: Vec::new(),
            applied: 0,
            returns: 0,
            applied_after_return: false,
        }
    }

    pub(super) fn take(&mut self, now: UnixMicros, order: &Order, switches: Switches) {
        if order.term < self.term {
            return;
        }
        self.term = order.term;
        match order.step {
            Step::Apply => {
                let known = switches.dedup && self.applied > 0;
                let over = switches.return_wins && self.went_back;
                let unproven = switches.canary_proofs && !order.proven;
                if known || over || unproven {
                    return;
                }
                self.applied += 1;
                self.has_nothing = false;
                self.applied_after_return |= self.went_back;
                self.runs = Runs::Changing { until: now.plus_ms(12_000) };
                self.log.push(NodeReport::Applied { generation: GENERATION });
            }
            Step::Return if switches.dedup && self.went_back => {}
            // No rollout orders it: see `placement`.
            Step::Leave => {}
            Step::Return => {
                self.returns += 1;
                self.went_back = true;
                self.runs = Runs::Returning { until: now.plus_ms(2_000) };
            }
        }
    }

    /// Returns what it has to say by now.
    pub(super) fn live(&mut self, now: UnixMicros) -> Vec<NodeReport> {
        match self.runs {
            Runs::Changing { until } if now >= until => match self.fate {
                Fate::Good => {
                    self.runs = Runs::New;
                    self.log.push(healthy());
                }
                Fate::Bad => {
                    self.log.push(failed());
                    self.log.push(back(GENERATION));
                    self.runs = Runs::Old;
                }
                Fate::Stuck => {
                    self.log.push(failed());
                    self.runs = Runs::Broken;
                }
                Fate::Hangs => {}
            },
            Runs::Returning { until } if now >= until => {
                let generation = Generation(GENERATION.0 + 1);
                let stuck = self.fate == Fate::Stuck && self.applied > 0;
                self.runs = if stuck { Runs::Broken } else { Runs::Old };
                let failure = Failure::of("exit_code");
                self.log.push(match stuck {
                    true => NodeReport::Failed { generation, failure },
                    false => back(generation),
                });
            }
            _ => {}
        }
        let fresh = self.log[self.told..].to_vec();
        self.told = self.log.len();
        fresh
    }

    pub(super) fn was_healthy(&self) -> bool {
        self.log.iter().any(|report| match report {
            NodeReport::Healthy { release, running, .. } => {
                *release == NEW && *running == Some(EXE)
            }
            _ => false,
        })
    }

    pub(super) fn has_failed(&self) -> bool {
        self.log.iter().any(|report| matches!(report, NodeReport::Failed { .. }))
    }

    pub(super) fn is_changing(&self) -> bool {
        matches!(self.runs, Runs::Changing { .. })
    }

    pub(super) fn runs_new(&self) -> bool {
        matches!(self.runs, Runs::New | Runs::Changing { .. })
    }
}

fn back(generation: Generation) -> NodeReport {
    NodeReport::Returned { generation, to: Some(OLD), took_ms: 2_000, kept_serving: false }
}
