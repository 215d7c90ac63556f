//! What happened to controllers, in words.

use super::units::span;
use crate::domain::event::Event;
use crate::domain::release::Step;
use crate::domain::rollout::view::rollout_name;

/// Says what an event tells of a controller, without where; nothing when it tells of something else.
pub(super) fn clause(event: &Event) -> String {
    match event {
        Event::ControllerLed(it) => format!("leads, term {}", it.term),
        Event::ControllerSteppedDown(it) => format!("leads no more, term {}: {}", it.term, it.why),
        Event::NodeUnreachable(it) => {
            format!("hears nothing of {}; what runs there is not known", it.node)
        }
        Event::NodeSeen(it) => format!("hears {} again after {}", it.node, span(it.away_ms)),
        Event::PlacementOrdered(it) => {
            let what = if it.step == Step::Leave { "loses" } else { "gets" };
            format!("{} {what} it: {} ({})", it.node, it.why, rollout_name(it.rollout))
        }
        Event::PlacementHeld(it) => {
            format!("moves no further: {} ({})", it.why, rollout_name(it.rollout))
        }
        Event::LogForked(it) => {
            format!(
                "the log of {} is not the one that was here up to {}: {}",
                it.origin, it.seq, it.why
            )
        }
        _ => String::new(),
    }
}

/// Says how bad it is.
pub(super) fn severity(event: &Event) -> &'static str {
    match event {
        Event::NodeUnreachable(_) | Event::ControllerSteppedDown(_) | Event::PlacementHeld(_) => {
            "warning"
        }
        Event::LogForked(_) => "error",
        _ => "info",
    }
}
