//! What happened to controllers, as `data` of an event.

use serde_json::{Value, json};

use super::time;
use crate::domain::event::Event;
use crate::domain::rollout::view::rollout_name;

/// Returns the data of an event about a controller; null when it is about something else.
pub(super) fn data(event: &Event) -> Value {
    match event {
        Event::ControllerLed(it) => json!({ "term": it.term }),
        Event::ControllerSteppedDown(it) => json!({ "term": it.term, "why": it.why }),
        Event::NodeUnreachable(it) => json!({
            "node": it.node.as_str(), "last_seen_at": time(Some(it.last_seen)),
        }),
        Event::NodeSeen(it) => json!({ "node": it.node.as_str(), "away_ms": it.away_ms }),
        Event::PlacementOrdered(it) => json!({
            "rollout": rollout_name(it.rollout), "node": it.node.as_str(), "step": it.step,
            "why": it.why,
        }),
        Event::PlacementHeld(it) => {
            json!({ "rollout": rollout_name(it.rollout), "why": it.why })
        }
        Event::LogForked(it) => json!({
            "origin": it.origin.as_str(), "epoch": it.epoch.token(), "seq": it.seq.0, "why": it.why,
        }),
        _ => Value::Null,
    }
}
