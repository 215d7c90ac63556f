//! What should be under way, as values.

use super::Step;
use super::event::{RolloutEvent, Verdict};
use crate::domain::id::{CheckName, NodeId};
use crate::domain::time::UnixMicros;

/// One thing that should be under way. The same for any controller that holds the events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// This node has this order until it answers. Its identity is (intent, plan, node, step): a repeat is harmless.
    Order {
        /// Which node.
        node: NodeId,
        /// Which way.
        step: Step,
        /// The wave's number as orders carry it; on the way back that of the way forward.
        wave: u16,
    },
    /// This check is measured once, not before `at`.
    RunCheck {
        /// Which check.
        check: CheckName,
        /// After which wave.
        wave: u16,
        /// The number of the measurement.
        number: u32,
        /// When.
        at: UnixMicros,
    },
    /// The next deadline: give it a `Tick` then.
    WakeAt(UnixMicros),
    /// It is over.
    Ended {
        /// How.
        state: Verdict,
        /// The exit code of whoever waits for it.
        exit_code: u8,
    },
}

/// Whose orders a fact may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concerns<'a> {
    /// Theirs, or nobody's.
    Nodes(&'a [NodeId]),
    /// Those of all targets.
    All,
}

impl RolloutEvent {
    /// Says whose orders it may change: those of all others are after it what they were before.
    pub fn concerns(&self) -> Concerns<'_> {
        Concerns::Nodes(match self {
            Self::NodeStarted(body) => std::slice::from_ref(&body.node),
            Self::NodeHealthy(body) => std::slice::from_ref(&body.node),
            Self::NodeFailed(body) => std::slice::from_ref(&body.node),
            Self::NodeUnreachable(body) => std::slice::from_ref(&body.node),
            Self::NodeSeen(body) => std::slice::from_ref(&body.node),
            Self::NodeLost(body) => std::slice::from_ref(&body.node),
            Self::NodeReturned(body) => std::slice::from_ref(&body.node),
            Self::ReturnFailed(body) => std::slice::from_ref(&body.node),
            Self::WaveStarted(body) => &body.nodes,
            // Another way, or none any more.
            Self::Planned(_) | Self::RollbackStarted(_) | Self::Stopping(_) | Self::Ended(_) => {
                return Concerns::All;
            }
            Self::Approved(_)
            | Self::Started(_)
            | Self::TakenOver(_)
            | Self::LateJoined(_)
            | Self::WaveSettled(_)
            | Self::CheckMeasured(_)
            | Self::CheckEnded(_)
            | Self::WavePassed(_)
            | Self::PromotionAwaited(_)
            | Self::Promoted(_)
            | Self::BudgetExceeded(_)
            | Self::Paused(_)
            | Self::Resumed(_)
            | Self::Part(_) => &[],
        })
    }
}
