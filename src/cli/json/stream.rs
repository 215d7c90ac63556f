//! `smgr.stream.v1`: what a followed stream says of itself, so that silence and gaps cannot be mistaken for peace.

use serde_json::{Value, json};

use crate::domain::document::rfc3339;
use crate::domain::id::{EventId, NodeId};
use crate::domain::time::UnixMicros;

/// Something that a stream says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Everything up to here was sent; what follows is live.
    CaughtUp {
        /// The last event sent, if there is one.
        cursor: Option<EventId>,
    },
    /// An origin is not heard.
    Silent {
        /// Who.
        origin: NodeId,
        /// When it was heard last.
        last_seen: Option<UnixMicros>,
    },
    /// Events are missing between two.
    Gap {
        /// The last event before the gap, if there is one.
        after: Option<EventId>,
        /// The first event after it.
        before: EventId,
        /// `fetching`, or why they cannot be had.
        reason: String,
    },
    /// The cursor was another controller's: what follows up to `until` may have been told before.
    Again {
        /// The last event of which this holds.
        until: EventId,
    },
    /// Nothing happened.
    Beat {
        /// The last event sent, if there is one.
        cursor: Option<EventId>,
    },
}

/// Returns the control line, said at `at`.
pub fn control_json(control: &Control, at: UnixMicros) -> Value {
    let id = |id: &Option<EventId>| id.as_ref().map(ToString::to_string);
    let (kind, rest) = match control {
        Control::CaughtUp { cursor } => ("stream.caught_up", json!({"cursor": id(cursor)})),
        Control::Silent { origin, last_seen } => (
            "stream.silent",
            json!({"origin": origin.as_str(), "last_seen": last_seen.map(rfc3339)}),
        ),
        Control::Gap { after, before, reason } => (
            "stream.gap",
            json!({
                "origin": before.origin.as_str(),
                "after": id(after),
                "before": before.to_string(),
                "reason": reason,
            }),
        ),
        Control::Again { until } => ("stream.again", json!({"until": until.to_string()})),
        Control::Beat { cursor } => ("stream.beat", json!({"cursor": id(cursor)})),
    };
    let mut line = json!({"schema": "smgr.stream.v1", "type": kind, "at": rfc3339(at)});
    if let (Value::Object(line), Value::Object(rest)) = (&mut line, rest) {
        line.extend(rest);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{json, sample};

    #[test]
    fn control_lines_are_those_of_the_contract() {
        let at = sample::at("14:07:40.000");
        let token = sample::epoch().token();
        let line = |control| json::line(&control_json(&control, at));
        assert_eq!(
            line(Control::CaughtUp { cursor: Some(sample::event_id(9)) }),
            format!(
                r#"{{"schema":"smgr.stream.v1","type":"stream.caught_up","at":"2026-11-22T14:07:40.000Z","cursor":"n1/{token}/9"}}"#
            )
        );
        let gap = Control::Gap {
            after: Some(sample::event_id(9)),
            before: sample::event_id(12),
            reason: "fetching".to_owned(),
        };
        assert!(line(Control::Again { until: sample::event_id(9) }).ends_with(&format!(
            r#""type":"stream.again","at":"2026-11-22T14:07:40.000Z","until":"n1/{token}/9"}}"#
        )));
        let gap: Value = serde_json::from_str(&line(gap)).unwrap();
        assert_eq!(gap["origin"], "n1");
        assert_eq!(gap["before"], format!("n1/{token}/12"));
        let silent = Control::Silent { origin: "n6".parse().unwrap(), last_seen: None };
        assert!(line(silent).ends_with(r#""origin":"n6","last_seen":null}"#));
    }
}
