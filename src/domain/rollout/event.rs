//! Facts of a rollout. Each holds all that folding it needs: nodes, deadlines as points in time, and its cause.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::input::{Failure, Measure, Observed};
use super::plan::{Plan, Wave, WaveKind};
use super::{ReleaseId, Step};
use crate::domain::event::{Actor, events};
use crate::domain::id::{CheckName, Digest, EventId, IntentId, NodeId};
use crate::domain::origin::Origin;
use crate::domain::time::UnixMicros;

events! {
    /// Every fact of a rollout that this version can write and fold.
    pub enum RolloutEvent;

    /// A wish became a plan.
    "rollout.planned" critical Planned(Box<Planned>),
    /// A second person agreed.
    "rollout.approved" critical Approved(Answered),
    /// The first order may go out.
    "rollout.started" critical Started(Started),
    /// Another controller leads, or the same one after a time in which nobody led.
    "rollout.taken_over" critical TakenOver(TakenOver),
    /// Some nodes are given their orders.
    "rollout.wave_started" critical WaveStarted(WaveStarted),
    /// A node began to change.
    "rollout.node_started" critical NodeStarted(NodeStarted),
    /// A node is healthy on the release.
    "rollout.node_healthy" critical NodeHealthy(NodeHealthy),
    /// A node did not become healthy, or is not any more.
    "rollout.node_failed" critical NodeFailed(NodeFailed),
    /// A node is away.
    "rollout.node_unreachable" critical NodeUnreachable(NodeUnreachable),
    /// A node that was away is back.
    "rollout.node_seen" critical NodeSeen(NodeSeen),
    /// The rollout goes on without a node that is away.
    "rollout.node_lost" critical NodeLost(NodeLost),
    /// A node is back on the earlier release.
    "rollout.node_returned" critical NodeReturned(NodeReturned),
    /// A node could not go back.
    "rollout.return_failed" critical ReturnFailed(ReturnFailed),
    /// A node joined that the plan does not know.
    "rollout.late_joined" optional LateJoined(LateJoined),
    /// Every node of a wave has its verdict; the wait and the checks begin.
    "rollout.wave_settled" critical WaveSettled(WaveSettled),
    /// A check measured once.
    "rollout.check_measured" critical CheckMeasured(CheckMeasured),
    /// A check has its result.
    "rollout.check_ended" critical CheckEnded(CheckEnded),
    /// A wave is behind.
    "rollout.wave_passed" critical WavePassed(WavePassed),
    /// The rollout waits for a person.
    "rollout.promotion_awaited" critical PromotionAwaited(PromotionAwaited),
    /// A person let it go on.
    "rollout.promoted" critical Promoted(Answered),
    /// More went wrong than may.
    "rollout.budget_exceeded" critical BudgetExceeded(BudgetExceeded),
    /// No new node gets an order until somebody decides.
    "rollout.paused" critical Paused(Paused),
    /// It goes on.
    "rollout.resumed" critical Resumed(Resumed),
    /// Everything touched goes back.
    "rollout.rollback_started" critical RollbackStarted(RollbackStarted),
    /// No new node gets an order any more; those under way reach their verdict.
    "rollout.stopping" critical Stopping(Stopping),
    /// It is over.
    "rollout.ended" critical Ended(Ended),
    /// A piece of a fact that is longer than one event may be.
    "rollout.part" critical Part(RolloutPart),
}

/// What led to a fact of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The signed wish that opened it, or a signed command.
    Intent(IntentId),
    /// What a node reported.
    Report(EventId),
    /// An earlier fact of the same rollout, counted from 0.
    Fact(u32),
    /// A deadline passed, or what was awaited is complete.
    Time,
}

/// Body of `rollout.planned`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Planned {
    /// The wish.
    pub cause: Why,
    /// The plan, whole.
    pub plan: Plan,
    /// Its digest, as orders name it.
    pub digest: Digest,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
    /// Why, in the words of whoever asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Where the values of the parameters come from, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub origins: BTreeMap<String, Origin>,
    /// The waves as they will run: those of the plan, with nodes that are not healthy drawn forward behind the canary.
    pub waves: Vec<Wave>,
    /// What ran where before.
    pub before: BTreeMap<NodeId, Observed>,
    /// Whether every target runs the release already, and nothing is to be done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub runs_already: bool,
    /// Who leads.
    pub controller: NodeId,
    /// In which term.
    pub term: u64,
}

/// Body of `rollout.part`: the pieces of a fact stand one behind the other, and are that fact where the last one stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RolloutPart {
    /// What led to the whole.
    pub cause: Why,
    /// The type of the whole.
    pub whole: String,
    /// SHA-256 over the body of the whole.
    pub digest: Digest,
    /// The number of this piece, from 0.
    pub part: u16,
    /// How many there are.
    pub parts: u16,
    /// A piece of the body of the whole.
    #[serde(with = "serde_bytes")]
    #[cfg_attr(test, schemars(with = "String", extend("contentEncoding" = "base64")))]
    pub bytes: Vec<u8>,
}

/// Body of `rollout.approved` and `rollout.promoted`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Answered {
    /// The command.
    pub cause: Why,
    /// Whose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
}

/// Body of `rollout.started`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Started {
    /// The plan, or the approval of it.
    pub cause: Why,
}

/// Body of `rollout.taken_over`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TakenOver {
    /// Nothing of the rollout itself.
    pub cause: Why,
    /// Who leads.
    pub controller: NodeId,
    /// In which term.
    pub term: u64,
    /// How many facts of the rollout it had: what an earlier leader wrote beyond them is not in force.
    pub after: u32,
    /// No deadline is earlier than this: a time without a leader fails no node.
    pub grace_until: UnixMicros,
}

/// Body of `rollout.wave_started`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WaveStarted {
    /// The end of the wave before.
    pub cause: Why,
    /// Its number, from 1; the way back counts anew.
    pub wave: u16,
    /// Which way.
    pub step: Step,
    /// What it is for.
    pub kind: WaveKind,
    /// Which nodes.
    pub nodes: Vec<NodeId>,
    /// When the rollout stands still; on the way back when a node has failed to return.
    pub until: UnixMicros,
}

/// Body of `rollout.node_started`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeStarted {
    /// The node's report.
    pub cause: Why,
    /// Which node.
    pub node: NodeId,
    /// When it has failed for want of a verdict.
    pub until: UnixMicros,
}

/// Body of `rollout.node_healthy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeHealthy {
    /// The node's report.
    pub cause: Why,
    /// Which node.
    pub node: NodeId,
    /// The digest of the program that runs, where the node could read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Digest>,
    /// From its start until it was ready, in milliseconds.
    pub ready_ms: u64,
    /// How long it stayed healthy before this verdict, in milliseconds.
    pub held_ms: u64,
    /// When the rollout stands still.
    pub until: UnixMicros,
}

/// Body of `rollout.node_failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeFailed {
    /// The node's report, or a deadline.
    pub cause: Why,
    /// Which node.
    pub node: NodeId,
    /// Whether it counts against `max_failures`: not when it was not healthy before.
    pub counted: bool,
    /// What went wrong.
    pub failure: Failure,
}

/// Body of `rollout.node_unreachable`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeUnreachable {
    /// The silence, or a report of it.
    pub cause: Why,
    /// Which node.
    pub node: NodeId,
    /// When the rollout goes on without it.
    pub until: UnixMicros,
}

/// Body of `rollout.node_seen`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeSeen {
    /// What was heard of it.
    pub cause: Why,
    /// Which node.
    pub node: NodeId,
    /// No deadline of it is earlier than this.
    pub grace_until: UnixMicros,
}

/// Body of `rollout.node_lost`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeLost {
    /// The fact that it is away, or its deadline.
    pub cause: Why,
    /// Which node.
    pub node: NodeId,
    /// Whether it counts against `max_unreachable`.
    pub counted: bool,
}

/// Body of `rollout.node_returned`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeReturned {
    /// The node's report.
    pub cause: Why,
    /// Which node.
    pub node: NodeId,
    /// The release that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<ReleaseId>,
    /// How long the way back took, in milliseconds.
    pub took_ms: u64,
    /// Whether the earlier release never stopped serving.
    #[serde(default)]
    pub kept_serving: bool,
}

/// Body of `rollout.return_failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReturnFailed {
    /// The node's report, or a deadline.
    pub cause: Why,
    /// Which node.
    pub node: NodeId,
    /// What went wrong.
    pub failure: Failure,
}

/// Body of `rollout.late_joined`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LateJoined {
    /// What was heard of it.
    pub cause: Why,
    /// Which node.
    pub node: NodeId,
}

/// Body of `rollout.wave_settled`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WaveSettled {
    /// The last verdict.
    pub cause: Why,
    /// Which wave.
    pub wave: u16,
    /// When the wait is over.
    pub bake_until: UnixMicros,
    /// The checks that run, each with its first measurement.
    pub checks: BTreeMap<CheckName, UnixMicros>,
    /// When the rollout stands still.
    pub until: UnixMicros,
}

/// Body of `rollout.check_measured`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheckMeasured {
    /// Time.
    pub cause: Why,
    /// Which check.
    pub check: CheckName,
    /// After which wave.
    pub wave: u16,
    /// Its number, from 1.
    pub number: u32,
    /// What it was.
    pub measure: Measure,
    /// The value, or why there is none, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// When the next one is due.
    pub next_at: UnixMicros,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CheckResult {
    /// Good.
    Success,
    /// Bad.
    Failed,
    /// It could not be judged.
    Inconclusive,
}

/// Body of `rollout.check_ended`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheckEnded {
    /// Its last measurement.
    pub cause: Why,
    /// Which check.
    pub check: CheckName,
    /// After which wave.
    pub wave: u16,
    /// Its result.
    pub result: CheckResult,
}

/// Body of `rollout.wave_passed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WavePassed {
    /// The last verdict, wait or check.
    pub cause: Why,
    /// Which wave.
    pub wave: u16,
}

/// Body of `rollout.promotion_awaited`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PromotionAwaited {
    /// The end of the wave.
    pub cause: Why,
    /// After which wave.
    pub wave: u16,
}

/// What went wrong more often than it may.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Breach {
    /// Nodes failed.
    Failures,
    /// Nodes are away.
    Unreachable,
    /// A canary is not healthy, or without one none of the nodes that go first: no budget allows that.
    Canary,
    /// A check failed.
    Check(CheckName),
    /// No node became healthy for too long.
    Progress,
}

/// Body of `rollout.budget_exceeded`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BudgetExceeded {
    /// The fact that was one too many.
    pub cause: Why,
    /// What of.
    pub breach: Breach,
    /// The nodes that failed and count.
    pub failed: Vec<NodeId>,
    /// The nodes that are away and count.
    pub unreachable: Vec<NodeId>,
    /// How many may.
    pub allowed: u32,
    /// Where that was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Body of `rollout.paused`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Paused {
    /// The command, or what went wrong.
    pub cause: Why,
    /// Whose command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
    /// What is left of the time in which a node has to become healthy, in milliseconds.
    pub progress_left_ms: u64,
    /// Where it was set that this follows, when it was no command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Body of `rollout.resumed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Resumed {
    /// The command.
    pub cause: Why,
    /// Whose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
    /// When the rollout stands still.
    pub until: UnixMicros,
}

/// Body of `rollout.rollback_started`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RollbackStarted {
    /// What went wrong, or the command.
    pub cause: Why,
    /// Whose command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
    /// The release that it leads to: the last one that succeeded.
    pub to: ReleaseId,
    /// Every touched node that can be reached, failing ones first.
    pub waves: Vec<Vec<NodeId>>,
    /// What the end is called when all of them went back.
    pub then: Verdict,
    /// Where it was set that this follows, when it was no command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Body of `rollout.stopping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stopping {
    /// What went wrong, or the command.
    pub cause: Why,
    /// Whose command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
    /// What the end is called.
    pub then: Verdict,
    /// Why nothing goes back, when it should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_way_back: Option<String>,
    /// When it ends even without the last verdict.
    pub until: UnixMicros,
    /// Where it was set that this follows, when it was no command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// How a rollout ended. Final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The release runs, healthy, wherever it was wanted, but for what the budgets allow.
    Succeeded,
    /// Everything touched runs the earlier release.
    RolledBack,
    /// A node could not go back: a person is needed.
    RollbackFailed,
    /// Some nodes run the one release, some the other.
    Stopped,
    /// A person ended it.
    Aborted,
    /// A newer wish ended it.
    Superseded,
}

impl Verdict {
    /// Returns the exit code of whoever waited for it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::RolledBack => 10,
            Self::Stopped => 11,
            Self::RollbackFailed => 12,
            Self::Aborted | Self::Superseded => 13,
        }
    }

    /// Returns the name as it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::RolledBack => "rolled_back",
            Self::RollbackFailed => "rollback_failed",
            Self::Stopped => "stopped",
            Self::Aborted => "aborted",
            Self::Superseded => "superseded",
        }
    }
}

/// Body of `rollout.ended`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Ended {
    /// The last fact that it waited for, or the command.
    pub cause: Why,
    /// Whose command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
    /// How.
    pub state: Verdict,
    /// The exit code of whoever waited for it.
    pub exit_code: u8,
    /// Whether any node runs something else than before.
    pub changed: bool,
    /// The wish that took its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<IntentId>,
}

impl RolloutEvent {
    /// Returns what led to it.
    pub fn cause(&self) -> &Why {
        match self {
            Self::Planned(body) => &body.cause,
            Self::Approved(body) | Self::Promoted(body) => &body.cause,
            Self::Started(body) => &body.cause,
            Self::TakenOver(body) => &body.cause,
            Self::WaveStarted(body) => &body.cause,
            Self::NodeStarted(body) => &body.cause,
            Self::NodeHealthy(body) => &body.cause,
            Self::NodeFailed(body) => &body.cause,
            Self::NodeUnreachable(body) => &body.cause,
            Self::NodeSeen(body) => &body.cause,
            Self::NodeLost(body) => &body.cause,
            Self::NodeReturned(body) => &body.cause,
            Self::ReturnFailed(body) => &body.cause,
            Self::LateJoined(body) => &body.cause,
            Self::WaveSettled(body) => &body.cause,
            Self::CheckMeasured(body) => &body.cause,
            Self::CheckEnded(body) => &body.cause,
            Self::WavePassed(body) => &body.cause,
            Self::PromotionAwaited(body) => &body.cause,
            Self::BudgetExceeded(body) => &body.cause,
            Self::Paused(body) => &body.cause,
            Self::Resumed(body) => &body.cause,
            Self::RollbackStarted(body) => &body.cause,
            Self::Stopping(body) => &body.cause,
            Self::Ended(body) => &body.cause,
            Self::Part(body) => &body.cause,
        }
    }

    /// Returns on whose authority, where somebody commanded it.
    pub fn by(&self) -> Option<&Actor> {
        match self {
            Self::Planned(body) => body.by.as_ref(),
            Self::Approved(body) | Self::Promoted(body) => body.by.as_ref(),
            Self::Paused(body) => body.by.as_ref(),
            Self::Resumed(body) => body.by.as_ref(),
            Self::RollbackStarted(body) => body.by.as_ref(),
            Self::Stopping(body) => body.by.as_ref(),
            Self::Ended(body) => body.by.as_ref(),
            _ => None,
        }
    }
}
