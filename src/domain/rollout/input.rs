//! What can wake a rollout.

use serde::{Deserialize, Serialize};

use super::ReleaseId;
use super::event::Why;
use crate::domain::event::{Actor, Detached, Exit};
use crate::domain::id::{CheckName, Digest, EventId, Generation, InstanceId, IntentId, NodeId};

/// What a controller knows of a node before a rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Observed {
    /// The release that runs there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Whether all instances of it are healthy.
    pub healthy: bool,
}

/// Everything that can happen to a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A node reported, or is away, or is back.
    Node {
        /// Which node.
        node: NodeId,
        /// The event of its log, where there is one.
        event: Option<EventId>,
        /// What.
        report: NodeReport,
    },
    /// A check measured.
    Check {
        /// Which check.
        check: CheckName,
        /// After which wave, as [`super::Effect::RunCheck`] named it.
        wave: u16,
        /// Its number, as [`super::Effect::RunCheck`] named it.
        number: u32,
        /// What it was.
        measure: Measure,
        /// The value, or why there is none.
        value: String,
    },
    /// Somebody wants something of it; verified and granted.
    Command {
        /// The signed wish.
        intent: IntentId,
        /// Whose.
        by: Option<Actor>,
        /// What.
        command: Command,
    },
    /// A controller leads from now on. Comes before all else after a start or a change of the lease.
    TakenOver {
        /// Which controller.
        controller: NodeId,
        /// In which term.
        term: u64,
        /// How long every deadline is put off at least, in milliseconds.
        grace_ms: u64,
    },
    /// Time passed.
    Tick,
}

/// What is heard of a node. Reports of another generation are not about this rollout and change nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeReport {
    /// The release lies ready.
    Staged {
        /// The generation of the order.
        generation: Generation,
    },
    /// The change began.
    Applied {
        /// The generation of the order.
        generation: Generation,
    },
    /// It runs and was healthy for `min_healthy_time`.
    Healthy {
        /// The generation of the order.
        generation: Generation,
        /// The release that runs.
        release: ReleaseId,
        /// The digest of the program that runs, where the node could read it.
        running: Option<Digest>,
        /// From its start until it was ready, in milliseconds.
        ready_ms: u64,
        /// How long it stayed healthy, in milliseconds.
        held_ms: u64,
    },
    /// It did not become healthy, or is not any more; on the way back: it did not go back.
    Failed {
        /// The generation of the order.
        generation: Generation,
        /// What went wrong.
        failure: Failure,
    },
    /// The earlier release serves.
    Returned {
        /// The generation of the order forward, or of the way back.
        generation: Generation,
        /// The release that serves.
        to: Option<ReleaseId>,
        /// How long the way back took, in milliseconds.
        took_ms: u64,
        /// Whether it never stopped serving.
        kept_serving: bool,
    },
    /// Nothing is heard of it.
    Unreachable,
    /// Something is heard of it again; also the first word of a node that the plan does not know.
    Seen,
}

/// Why a node failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Failure {
    /// Which instance, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// In systemd's terms, or `deadline`, `unreachable`, `wrong_program`, `refused`.
    pub result: String,
    /// In the words of the node, or of the gate that refused the order.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// How the process ended, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// How long it ran, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_ms: Option<u64>,
    /// How far it had come: `staging`, `starting`, `ready`, `holding`, `healthy`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Its last log lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Detached>,
}

impl Failure {
    /// A failure that no process had.
    pub fn of(result: &str) -> Self {
        Self {
            instance: None,
            result: result.to_owned(),
            why: String::new(),
            exit: None,
            ran_ms: None,
            phase: String::new(),
            tail: None,
        }
    }
}

/// One measurement of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
    /// It was measured and says neither.
    Inconclusive,
    /// It could not be measured.
    Error,
}

/// What a person or a job may want of a rollout that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// No new node gets an order; those under way finish.
    Pause,
    /// It goes on, in spite of what made it pause.
    Resume,
    /// It goes on behind the canary.
    Promote,
    /// A second person agrees to the plan.
    Approve,
    /// It ends.
    Abort {
        /// Whether everything touched goes back first.
        rollback: bool,
    },
    /// A newer wish takes its place, at once.
    Supersede {
        /// Which wish.
        with: IntentId,
    },
}

/// Why a command is not taken. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It is over.
    #[error("the rollout has ended: it is {0}")]
    Ended(&'static str),
    /// It is not over, so nothing can go on with it.
    #[error("the rollout is still under way")]
    NotEnded,
    /// Every target runs the release.
    #[error("every node is on the release already")]
    NothingLeft,
    /// It is paused already.
    #[error("the rollout is paused already")]
    AlreadyPaused,
    /// It is not paused.
    #[error("the rollout is not paused")]
    NotPaused,
    /// It waits for nobody's word.
    #[error("the rollout waits for no promotion")]
    NoPromotionAwaited,
    /// It waits for nobody's agreement.
    #[error("the rollout waits for no approval")]
    NoApprovalAwaited,
    /// Whoever asked for it cannot be the second person.
    #[error("a second person has to approve: {0} asked for it")]
    SamePerson(String),
    /// A canary is not healthy; only a signed emergency goes on without.
    #[error("the canary is not healthy: abort the rollout, or deploy anew with --emergency")]
    CanaryFailed,
    /// It is on its way to its end.
    #[error("the rollout is ending")]
    Ending,
    /// Another controller leads in this or a later term.
    #[error("term {term} of {controller} is in force")]
    StaleTerm {
        /// The term in force.
        term: u64,
        /// Whose.
        controller: NodeId,
    },
}

impl Input {
    /// Returns what an event that follows from it names as its cause.
    pub(super) fn cause(&self) -> Why {
        match self {
            Self::Node { event: Some(event), .. } => Why::Report(event.clone()),
            Self::Command { intent, .. } => Why::Intent(*intent),
            Self::Node { .. } | Self::Check { .. } | Self::TakenOver { .. } | Self::Tick => {
                Why::Time
            }
        }
    }
}
