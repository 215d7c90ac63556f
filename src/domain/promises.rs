//! What waits for the disk: kept in order by every shell around a node, the simulated one too.

use std::collections::VecDeque;

use super::effect::Act;
use super::id::Seq;

/// A promise of a shell, which may be one of the core's or one of its own.
pub trait Promised {
    /// Returns what the core wants done, if it is that.
    fn act(&self) -> Option<&Act>;
}

/// Promises, each with the number of the last event that has to be durable before it is kept.
#[derive(Clone, Debug)]
pub struct Promises<P>(VecDeque<(Seq, P)>);

impl<P> Default for Promises<P> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<P: Promised> Promises<P> {
    /// Keeps a promise back until `last` is durable. Numbers never go down.
    pub fn make(&mut self, last: Seq, promise: P) {
        self.0.push_back((last, promise));
    }

    /// Returns what may be kept once everything up to `durable` is on disk, in the order in which it was promised.
    pub fn due(&mut self, durable: Seq) -> Vec<P> {
        let due = self.0.iter().take_while(|(last, _)| *last <= durable).count();
        self.0.drain(..due).map(|(_, promise)| promise).collect()
    }

    /// Says whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Agent and keeper meet anew. A start that still waits was asked for before anybody knew what that keeper runs:
    /// the meeting asks again for each one that is due, and for no other.
    pub fn meet(&mut self) {
        self.0.retain(|(_, promise)| !matches!(promise.act(), Some(Act::Spawn { .. })));
    }
}

impl Promised for Act {
    fn act(&self) -> Option<&Act> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{Digest, InstanceId, RunId};

    #[test]
    fn promises_are_kept_in_order_and_a_meeting_drops_the_starts() {
        let instance = InstanceId { service: "web".parse().unwrap(), index: 0 };
        let (run, spec) = (RunId(1), Digest([1; 32]));
        let kill = Act::KillTree { instance: instance.clone(), run };
        let acknowledge = Act::Acknowledge { instance: instance.clone(), run };
        let mut promises = Promises::default();
        promises.make(Seq(3), kill.clone());
        promises.make(Seq(4), Act::Spawn { instance, run, spec });
        promises.make(Seq(5), acknowledge.clone());
        assert!(promises.due(Seq(2)).is_empty());
        assert_eq!(promises.due(Seq(3)), [kill]);
        promises.meet();
        assert_eq!(promises.due(Seq(9)), [acknowledge]);
        assert!(promises.is_empty());
    }
}
