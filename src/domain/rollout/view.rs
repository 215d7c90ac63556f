//! A rollout as people and programs read it, made from its events alone.
//!
//! What only a controller knows (the fleet's name, versions, configuration that differs, how old this is) is left
//! empty for it to fill in.

mod fold;
mod why;

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

pub use self::fold::kind_of;
use super::event::{RolloutEvent, Why};
use super::plan::WaveKind;
use super::{Amount, HealthCheck, OnFailure, ReleaseId};
use crate::domain::event::{Actor, Detached, Exit};
use crate::domain::id::{EventId, NodeId, ServiceId};
use crate::domain::origin::Origin;
use crate::domain::signal::Signal;
use crate::domain::time::UnixMicros;

/// A fact of a rollout with its place in the log and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the log.
    pub id: EventId,
    /// When it happened.
    pub at: UnixMicros,
    /// What happened.
    pub event: RolloutEvent,
}

/// A point in time, written as JSON has it: `2026-11-22T14:02:10.114Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At(pub UnixMicros);

impl Serialize for At {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(self.0))
    }
}

/// Returns a time as RFC 3339 has it, UTC, to the millisecond.
pub fn rfc3339(at: UnixMicros) -> String {
    let (seconds, ms) = (at.millis() / 1000, at.millis() % 1000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, so that the leap day is the last of its year.
    let day = days + 719_468;
    let era = day / 146_097;
    let of_era = day % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, leap) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let year = year + era * 400 + leap;
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// A digest, written as JSON has it: `sha256:` and hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sha256(pub ReleaseId);

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("sha256:{}", self.0))
    }
}

/// A release, with its version where that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReleaseView {
    /// Its id.
    pub digest: Sha256,
    /// As its manifest says; filled in by who has the manifest.
    pub version: Option<String>,
}

/// The object `smgr.rollout.v1`, as far as the events tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RolloutView {
    /// `smgr.rollout.v1`.
    pub schema: &'static str,
    /// `r-` and the beginning of the wish's id.
    pub rollout: String,
    /// Filled in by the controller.
    pub fleet: Option<String>,
    /// Which service.
    pub service: ServiceId,
    /// `deploy`, `remove`, `configure`.
    pub kind: &'static str,
    /// See [`super::Rollout::state`].
    pub state: &'static str,
    /// Null until final.
    pub exit_code: Option<u8>,
    /// See [`super::Rollout::waits_for`].
    pub waits_for: Option<&'static str>,
    /// Null until final.
    pub changed: Option<bool>,
    /// The release before.
    pub from: Option<ReleaseView>,
    /// The release that is wanted.
    pub to: ReleaseView,
    /// The generations.
    pub generation: GenerationView,
    /// Who asked for it.
    pub asked: AskedView,
    /// When its first order went out.
    pub started_at: Option<At>,
    /// When it ended.
    pub ended_at: Option<At>,
    /// From the one to the other.
    pub duration_ms: Option<u64>,
    /// The controllers that led it, in their order.
    pub led_by: Vec<NodeId>,
    /// Filled in by the controller.
    pub as_of: Option<AsOfView>,
    /// What was to be done.
    pub plan: PlanView,
    /// How much of the budgets is used.
    pub budget: BudgetView,
    /// The deadlines that run.
    pub deadlines: DeadlinesView,
    /// The waves, in their order.
    pub waves: Vec<WaveView>,
    /// The targets, in the order of the waves; late joiners last.
    pub nodes: Vec<NodeView>,
    /// What led to its end, or to where it stands: causes first.
    pub why: Vec<WhyView>,
    /// What the nodes run now, as far as the rollout knows.
    pub on: Vec<OnView>,
    /// The nodes that are away.
    pub unreachable: Vec<NodeId>,
    /// What they ran at its end.
    pub on_at_end: Option<Vec<OnView>>,
}

/// The generations of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GenerationView {
    /// Before it; filled in by the controller.
    pub before: Option<u64>,
    /// Of the step forward.
    pub asked: u64,
    /// In force: that of the way back once it began.
    pub now: u64,
}

/// Who asked for a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AskedView {
    /// Who.
    pub by: Option<Actor>,
    /// `i-` and the beginning of the wish's id.
    pub intent: String,
    /// When it was planned.
    pub at: At,
    /// Why, in their words.
    pub reason: String,
    /// Filled in by the controller.
    pub ticket: Option<String>,
}

/// How fresh a view is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AsOfView {
    /// When.
    pub at: At,
    /// Whose.
    pub source: NodeId,
    /// The place in its stream.
    pub cursor: String,
    /// How far it may lie behind.
    pub behind_ms: u64,
    /// Whether all nodes were heard.
    pub complete: bool,
    /// Those that were not.
    pub missing_nodes: Vec<NodeId>,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanView {
    /// `p-` and the beginning of its digest.
    pub plan: String,
    /// What the order was made from.
    pub seed: String,
    /// How many targets.
    pub targets: usize,
    /// Whether and whereto there is a way back.
    pub rollback: RollbackView,
    /// The waves as they run.
    pub waves: Vec<PlannedWaveView>,
    /// The parameters that decide its end.
    pub parameters: ParametersView,
}

/// The way back, as it was known beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RollbackView {
    /// Whether there is one.
    pub possible: bool,
    /// Whereto.
    pub to: Option<Sha256>,
    /// Filled in by the controller.
    pub version: Option<String>,
    /// Why there is none.
    pub reason: Option<String>,
}

/// A wave of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedWaveView {
    /// Its number.
    pub wave: u16,
    /// What it is for.
    pub kind: WaveKind,
    /// Which nodes.
    pub nodes: Vec<NodeId>,
}

/// The parameters that decide how a rollout ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParametersView {
    /// How many nodes may fail.
    pub max_failures: usize,
    /// How many may be away.
    pub max_unreachable: usize,
    /// As they were written.
    pub max_parallel: Vec<Amount>,
    /// How long a node must stay healthy.
    pub min_healthy_time_ms: u64,
    /// How long a node may take.
    pub healthy_deadline_ms: u64,
    /// How long no node may become healthy.
    pub progress_deadline_ms: u64,
    /// The wait after each wave.
    pub bake_time_ms: u64,
    /// What a node has to show: `checks`, `process`, `manual`.
    pub health_check: HealthCheck,
    /// What follows too many failures.
    pub on_failure: OnFailure,
}

/// How much of the budgets is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BudgetView {
    /// Nodes that failed and count.
    pub failed: usize,
    /// How many may.
    pub max_failures: usize,
    /// Nodes that are away and count.
    pub unreachable: usize,
    /// How many may.
    pub max_unreachable: usize,
}

/// The deadlines that run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadlinesView {
    /// When the rollout stands still.
    pub progress_at: Option<At>,
    /// When each node under way has failed.
    pub node_at: BTreeMap<NodeId, At>,
}

/// How far a wave is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaveView {
    /// Its number.
    pub wave: u16,
    /// `not_started rolling baking healthy failed rolled_back`.
    pub state: &'static str,
    /// When its orders went out.
    pub started_at: Option<At>,
    /// When its last node had a verdict, or was interrupted.
    pub ended_at: Option<At>,
}

/// How far a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeView {
    /// Which node.
    pub node: NodeId,
    /// In which wave; 0 for a node that joined late.
    pub wave: u16,
    /// One of the node states of the contract.
    pub state: &'static str,
    /// The release before.
    pub from: Option<Sha256>,
    /// The release that runs; null while that is not known.
    pub running: Option<Sha256>,
    /// When its order went out.
    pub started_at: Option<At>,
    /// From its start until it was ready.
    pub ready_ms: Option<u64>,
    /// When it was healthy.
    pub healthy_at: Option<At>,
    /// When it had its last verdict.
    pub ended_at: Option<At>,
    /// Whether the earlier release never stopped serving.
    pub old_kept_serving: Option<bool>,
    /// What it went back to, which is what was good there before: not the same on each node where they differed.
    #[serde(skip)]
    pub(super) returned_to: Option<Sha256>,
    /// How long its way back took.
    pub rollback_ms: Option<u64>,
    /// Why it failed.
    pub failure: Option<FailureView>,
}

/// Why a node failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureView {
    /// `web/0@n3`.
    pub instance: Option<String>,
    /// In systemd's terms, or `deadline`, `unreachable`, `wrong_program`, `returned`.
    pub result: String,
    /// In the words of the node.
    pub why: String,
    /// How the process ended.
    pub exit: Option<ExitView>,
    /// How long it ran.
    pub ran_ms: Option<u64>,
    /// How far it had come.
    pub phase: String,
    /// The event of the node's log.
    pub event: Option<String>,
    /// Its last lines; filled in by the controller.
    pub log_tail: Vec<String>,
    /// What stands for them in the event.
    #[serde(skip)]
    pub tail: Option<Detached>,
    /// The node it is compared with; filled in by the controller.
    pub differs_from: Option<NodeId>,
    /// What its configuration has different; filled in by the controller.
    pub differences: Vec<DifferenceView>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExitView {
    /// Whether anybody saw it.
    pub known: bool,
    /// The exit code.
    pub code: Option<i32>,
    /// The signal: `KILL`.
    pub signal: Option<String>,
    /// Whether a core was written.
    pub core_dumped: bool,
    /// Whether it was killed for want of memory.
    pub oom_killed: bool,
}

impl ExitView {
    /// Returns it as events tell it.
    pub fn of(exit: Exit, oom_killed: bool) -> Self {
        let none = Self { known: true, code: None, signal: None, core_dumped: false, oom_killed };
        match exit {
            Exit::Code(code) => Self { code: Some(code), ..none },
            Exit::Signal { signal, core_dumped } => {
                let name = Signal::from_number(signal)
                    .map_or_else(|| signal.to_string(), |signal| signal.to_string());
                Self { signal: Some(name), core_dumped, ..none }
            }
            Exit::Unknown => Self { known: false, ..none },
        }
    }
}

/// A key that has another value elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DifferenceView {
    /// Which key.
    pub key: String,
    /// The value on the node that failed, as TOML.
    pub here: String,
    /// Where it comes from.
    pub here_origin: Option<Origin>,
    /// The value on the other node.
    pub there: String,
    /// Where it comes from.
    pub there_origin: Option<Origin>,
}

/// One link of the chain of causes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WhyView {
    /// When; null for a node's own event, which the node's log dates.
    pub at: Option<At>,
    /// `node_failed`, `budget_exceeded`, `rollback_chosen`, `ended`, …
    pub kind: &'static str,
    /// `n3`, where it is about one node.
    pub r#where: Option<String>,
    /// For people.
    pub text: String,
    /// The place in a log.
    pub event: String,
    /// What led to it.
    pub cause: Option<String>,
    /// Where it was set that it follows.
    pub origin: Option<Origin>,
}

/// Which nodes run a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OnView {
    /// Which release.
    pub digest: Sha256,
    /// Filled in by the controller.
    pub version: Option<String>,
    /// Which nodes.
    pub nodes: Vec<NodeId>,
}

/// Returns how a rollout is named: `r-9d2c4f01`.
pub fn rollout_name(intent: crate::domain::id::IntentId) -> String {
    format!("r-{}", &intent.to_string()[..8])
}

/// Returns how a cause is written.
fn written(why: &Why, records: &[&Record]) -> Option<String> {
    match why {
        Why::Intent(intent) => Some(format!("i-{intent}")),
        Why::Report(event) => Some(event.to_string()),
        Why::Fact(number) => {
            records.get(usize::try_from(*number).ok()?).map(|record| record.id.to_string())
        }
        Why::Time => None,
    }
}

#[cfg(test)]
mod tests;
