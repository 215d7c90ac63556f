//! One of each fact about what was set, for tests.

use super::*;
use crate::domain::event::Event;

/// Returns one event of each type, in the order of the table.
pub(crate) fn events() -> Vec<Event> {
    let key = || "limits.memory".to_owned();
    vec![
        Event::ConfigChanged(ConfigChanged {
            intent: IntentId([0x11; 16]),
            layer: Layer::Fleet,
            generation: Some(Generation(42)),
            set: [key()].into(),
            unset: ["env.DEBUG".to_owned()].into(),
            text: Digest([0x44; 32]),
            until: None,
        }),
        Event::ConfigExpired(ConfigExpired { until: UnixMicros(1), keys: [key()].into() }),
    ]
}
