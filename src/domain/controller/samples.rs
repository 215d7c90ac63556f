//! One of each fact of a controller, for tests.

use super::*;
use crate::domain::event::{Event, PartStarted};
use crate::domain::id::BootId;

/// Returns one event of each type, in the order of the table.
pub(crate) fn events() -> Vec<Event> {
    let node: NodeId = "n6".parse().expect("a name");
    let started = PartStarted {
        version: "0.1.0".to_owned(),
        incarnation: 0,
        pid: 4100,
        uid: 1000,
        boot: BootId([7; 16]),
        after: None,
        away_ms: 0,
    };
    let why = "the lease was not renewed in time".to_owned();
    let forked = LogForked {
        origin: node.clone(),
        epoch: EpochId(1 << 16),
        seq: Seq(41),
        why: "its root over the same events is another".to_owned(),
    };
    vec![
        Event::ControllerStarted(started),
        Event::ControllerLed(ControllerLed { term: 4 }),
        Event::ControllerSteppedDown(ControllerSteppedDown { term: 4, why }),
        Event::NodeUnreachable(NodeUnreachable { node: node.clone(), last_seen: UnixMicros(1) }),
        Event::NodeSeen(NodeSeen { node, away_ms: 69_000 }),
        Event::LogForked(forked),
        Event::PlacementOrdered(PlacementOrdered {
            rollout: IntentId([9; 16]),
            node: "n4".parse().expect("a name"),
            step: Step::Leave,
            why: "`role=web` does not mean it any more".to_owned(),
        }),
        Event::PlacementHeld(PlacementHeld {
            rollout: IntentId([9; 16]),
            why: "it did not become healthy on n4".to_owned(),
        }),
    ]
}
