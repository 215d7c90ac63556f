//! The last words over a bus that this node runs itself: it is stopped when it has read what the node had to say.

use std::time::Duration;

use super::clock;
use super::task::{Agent, Deadline};
use crate::domain::effect::{Act, Operation};

/// How long the bus may take to read the last words.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// Where the last words are.
#[derive(Debug, Default)]
pub(super) enum Farewell {
    /// Not spoken.
    #[default]
    Unspoken,
    /// On their way; these acts wait for them.
    Spoken(Vec<Act>),
    /// Heard, or nobody hears.
    Over,
}

impl Agent {
    /// Keeps back the signal that ends the node's own bus until what was promised to others has gone through it.
    /// Returns the act when it has not to wait.
    pub(super) fn after_farewell(&mut self, act: Act) -> Option<Act> {
        let ends_bus = self.node.head().stopping == Some(false)
            && matches!(&act, Act::Signal { operation: Operation::Stop(id, _) | Operation::StopRest(id, _), .. }
                if Some(&id.service) == self.setup.own_bus());
        if !ends_bus {
            return Some(act);
        }
        if let Farewell::Spoken(waiting) = &mut self.farewell {
            waiting.push(act);
            return None;
        }
        if matches!(self.farewell, Farewell::Over) || !self.voice.is_connected() {
            return Some(act);
        }
        self.tell();
        let now = clock::now();
        let beat = self.sealed_beat(now);
        self.voice.farewell(&beat);
        self.timers.set(Deadline::Farewell, now.mono_ns + HEARD_WITHIN.as_nanos() as u64);
        self.farewell = Farewell::Spoken(vec![act]);
        None
    }

    /// Does what waited for the last words: they were heard, nobody hears them, or their time is over.
    pub(super) fn farewell_is_over(&mut self) {
        self.timers.cancel(&Deadline::Farewell);
        if let Farewell::Spoken(waiting) = std::mem::replace(&mut self.farewell, Farewell::Over) {
            waiting.into_iter().for_each(|act| self.act(act));
        }
    }
}
