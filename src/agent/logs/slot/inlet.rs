//! One of the two pipes of a slot, and the unfinished line in it.

use std::time::{Duration, Instant};

use super::Step;

/// How long an unfinished line may stay in its pipe without growing; then it is written as a part.
const UNFINISHED_MAX: Duration = Duration::from_secs(1);

/// When a pipe with an unfinished line is looked at again, first and at most.
///
/// The kernel wakes nobody when a write blocks on a pipe that was not empty before it, so as long
/// as something stays in a pipe, its edges cannot be trusted.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(250);

/// How often a writer that was blocked by a full pipe is given way before a timer is set for it.
pub(super) const GIVE_WAY: u8 = 8;

/// One of the two pipes.
#[derive(Debug, Default)]
pub(in crate::agent::logs) struct Inlet {
    /// Whether it stands in the queue of pipes that want work.
    pub(in crate::agent::logs) queued: bool,
    pub(super) held: Option<Instant>,
    pub(super) within_line: bool,
    /// The parts of the line that is being written in parts.
    pub(super) parts: Vec<u8>,
    pub(super) unfinished: Option<Unfinished>,
    pub(super) give_way: u8,
}

/// A line that stays in its pipe until it ends.
#[derive(Debug)]
pub(super) struct Unfinished {
    bytes: usize,
    since: Instant,
    delay: Duration,
    pub(super) look_at: Instant,
}

impl Inlet {
    /// Says whether an unfinished line of this length has been there for long enough.
    pub(super) fn has_waited(&mut self, bytes: usize, now: Instant) -> bool {
        let fresh = Unfinished { bytes, since: now, delay: LOOK_FIRST, look_at: now };
        let unfinished = self.unfinished.get_or_insert(fresh);
        if unfinished.bytes != bytes {
            (unfinished.bytes, unfinished.since, unfinished.delay) = (bytes, now, LOOK_FIRST);
        }
        now.saturating_duration_since(unfinished.since) >= UNFINISHED_MAX
    }

    /// Has the pipe looked at again before the unfinished line in it grows.
    pub(super) fn look_again(&mut self, now: Instant) -> Step {
        if self.give_way > 0 {
            self.give_way -= 1;
            std::thread::yield_now();
            return Step::More;
        }
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.look_at = now + unfinished.delay;
            unfinished.delay = LOOK_MAX.min(unfinished.delay * 2);
        }
        Step::Idle
    }

    /// Says whether its work has to wait.
    pub(in crate::agent::logs) fn is_held(&self, now: Instant) -> bool {
        self.held.is_some_and(|until| now < until)
    }
}
