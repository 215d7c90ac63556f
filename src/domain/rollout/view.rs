//! A rollout as people and programs read it, made from its events alone.
//!
//! What only a controller knows (the fleet's name, versions, configuration that differs, how old this is) is left
//! empty for it to fill in.

mod fold;
mod why;

use std::collections::BTreeMap;

use serde::Serialize;

pub use self::fold::kind_of;
use super::event::{RolloutEvent, Why};
use super::plan::WaveKind;
use super::{Amount, HealthCheck, OnFailure};
use crate::domain::document::{AsOf, At, By, ExitView, Sha256};
use crate::domain::event::Detached;
use crate::domain::id::{EventId, FleetId, NodeId, ServiceId};
use crate::domain::origin::Origin;
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

/// A release, with its version where that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseView {
    /// Its id.
    pub digest: Sha256,
    /// As its manifest says; filled in by who has the manifest.
    pub version: Option<String>,
}

/// The object `smgr.rollout.v1`, as far as the events tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RolloutView {
    /// Which document this is.
    #[cfg_attr(test, schemars(extend("const" = Self::SCHEMA)))]
    pub schema: &'static str,
    /// `r-` and the beginning of the wish's id.
    pub rollout: String,
    /// Which fleet; filled in by the controller.
    pub fleet: Option<FleetId>,
    /// Which service.
    pub service: ServiceId,
    /// `deploy`, `remove`, `configure`.
    pub kind: &'static str,
    /// `planned awaiting_approval canary awaiting_promotion rolling paused rolling_back stopping`, and final `succeeded rolled_back
    /// rollback_failed stopped aborted superseded`.
    pub state: &'static str,
    /// Null until final.
    pub exit_code: Option<u8>,
    /// The command that a person is awaited with: `approve`, `promote`, `resume`, `abort`.
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
    /// How fresh it is; filled in by the controller.
    pub as_of: Option<AsOf>,
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
    /// The whole id of the wish.
    pub id: String,
    /// How many facts this is made from: who has seen so many can wait for the next.
    pub facts: usize,
    /// What moves since it succeeded, by its wish that stands; filled in by the controller.
    pub placement: Option<PlacementView>,
}

impl RolloutView {
    /// The word by which the document is known.
    pub const SCHEMA: &'static str = "smgr.rollout.v1";
}

/// What a wish that succeeded moves: nodes that joined, left, or have other labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlacementView {
    /// Nodes that get the service.
    pub gaining: Vec<NodeId>,
    /// Nodes from which it is taken.
    pub losing: Vec<NodeId>,
    /// Nodes whose turn has not come.
    pub waiting: Vec<NodeId>,
    /// Why nothing more moves.
    pub held: Option<String>,
}

/// The rollouts that are remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RolloutsView {
    /// Which document this is.
    #[cfg_attr(test, schemars(extend("const" = Self::SCHEMA)))]
    pub schema: &'static str,
    /// Which fleet.
    pub fleet: FleetId,
    /// How fresh it is.
    pub as_of: AsOf,
    /// Newest first.
    pub rollouts: Vec<RolloutRow>,
}

impl RolloutsView {
    /// The word by which the document is known.
    pub const SCHEMA: &'static str = "smgr.rollouts.v1";
}

/// A rollout in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RolloutRow {
    /// `r-` and the beginning of the wish's id.
    pub rollout: String,
    /// The whole id of the wish.
    pub id: String,
    /// Which service.
    pub service: ServiceId,
    /// `deploy`, `remove`, `configure`.
    pub kind: &'static str,
    /// As the rollout itself says it.
    pub state: &'static str,
    /// 14 while a person is awaited; null while it goes on.
    pub exit_code: Option<u8>,
    /// When it was planned.
    pub asked_at: At,
    /// When it ended.
    pub ended_at: Option<At>,
    /// How many nodes it is about.
    pub targets: usize,
    /// Of the step forward.
    pub generation: u64,
    /// The release of a deploy.
    pub release: Option<Sha256>,
    /// The release to go back to.
    pub back_to: Option<Sha256>,
    /// The same with its version.
    pub from: Option<ReleaseView>,
    /// The release that is wanted.
    pub to: ReleaseView,
    /// Who asked.
    pub by: Option<By>,
}

/// The generations of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AskedView {
    /// Who.
    pub by: Option<By>,
    /// `i-` and the beginning of the wish's id.
    pub intent: String,
    /// When it was planned.
    pub at: At,
    /// Why, in their words.
    pub reason: String,
    /// The ticket it was asked with; filled in by the controller.
    pub ticket: Option<String>,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RollbackView {
    /// Whether there is one.
    pub possible: bool,
    /// Whereto.
    pub to: Option<Sha256>,
    /// What people call that; filled in by the controller.
    pub version: Option<String>,
    /// Why there is none.
    pub reason: Option<String>,
}

/// A wave of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeadlinesView {
    /// When the rollout stands still.
    pub progress_at: Option<At>,
    /// When each node under way has failed.
    pub node_at: BTreeMap<NodeId, At>,
}

/// How far a wave is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeView {
    /// Which node.
    pub node: NodeId,
    /// In which wave; 0 for a node that joined late.
    pub wave: u16,
    /// `not_started starting healthy failed unreachable interrupted rolling_back rolled_back rollback_failed skipped
    /// late_join`.
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

/// A key that has another value elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DifferenceView {
    /// Which key.
    pub key: String,
    /// The value on the node that failed.
    #[cfg_attr(test, schemars(with = "serde_json::Value"))]
    pub here: String,
    /// Where it comes from.
    pub here_origin: Option<Origin>,
    /// The value on the other node.
    #[cfg_attr(test, schemars(with = "serde_json::Value"))]
    pub there: String,
    /// Where it comes from.
    pub there_origin: Option<Origin>,
}

/// One link of the chain of causes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OnView {
    /// Which release.
    pub digest: Sha256,
    /// What people call it; filled in by the controller.
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
