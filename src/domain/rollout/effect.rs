//! What should be under way, as values.

use super::Step;
use super::event::Verdict;
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
