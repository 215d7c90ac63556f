//! When a run that ended is started again: the delay, the count, and the limit.
//!
//! Everything is computed once, when the end is decided on, and written into its event; folding only copies it.

use serde::{Deserialize, Serialize};

use super::spec::Restart;
use super::time::UnixMicros;

/// How often, how soon and since when an instance was restarted by policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// Restarts since the last operator act or stable run.
    pub restarts: u32,
    /// The last delay before jitter, in milliseconds; 0 when there was none.
    pub base_ms: u64,
    /// When the window of the limit began.
    pub window_since: UnixMicros,
    /// Restarts in that window.
    pub window_restarts: u32,
    /// Whether the alert `SERVICE/restart-limit` fires because of this instance.
    pub alerting: bool,
}

/// What follows an end that is to be followed by a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The drawn delay, in milliseconds; 0 is at once.
    pub delay_ms: u64,
    /// The delay before jitter, in milliseconds.
    pub base_ms: u64,
    /// Restarts since the last operator act or stable run, the coming one included.
    pub restarts: u32,
    /// When the window of the limit began.
    pub window_since: UnixMicros,
    /// Restarts in that window, the coming one included.
    pub window_restarts: u32,
    /// Whether the coming one is beyond the limit.
    pub over_limit: bool,
}

impl Backoff {
    /// Returns how long a run has to last to count as stable, in milliseconds.
    pub fn stable_ms(&self, rules: &Restart) -> u64 {
        rules.stable_after.0.max(self.base_ms.saturating_mul(2))
    }

    /// Returns the restarts that still count for a run that has lasted `ran_ms` so far.
    pub fn restarts_after(&self, ran_ms: u64, rules: &Restart) -> u32 {
        if ran_ms >= self.stable_ms(rules) { 0 } else { self.restarts }
    }

    /// Returns when to start again after a run of `ran_ms` that ended at `now`.
    ///
    /// The window is one that begins with a restart and ends `limit_window` later, so that its state is
    /// two numbers whatever the limit. A stable run resets it with the delay.
    pub fn retry(&self, rules: &Restart, ran_ms: u64, now: UnixMicros, entropy: u64) -> Retry {
        let stable = ran_ms >= self.stable_ms(rules);
        let window_ms = rules.limit_window.0;
        let in_window = !stable
            && self.window_restarts > 0
            && now >= self.window_since
            && now.ms_since(self.window_since) < window_ms;
        let (window_since, window_restarts) = match in_window {
            true => (self.window_since, self.window_restarts.saturating_add(1)),
            false => (now, 1),
        };
        let over_limit = window_restarts > rules.limit;
        let base_ms = match (over_limit, stable, self.base_ms) {
            (true, _, _) => rules.max_delay.0,
            (false, true, _) => 0,
            (false, false, 0) => rules.delay.0.min(rules.max_delay.0),
            (false, false, last) => {
                let factor = u64::from(rules.factor.0.max(1000));
                (last.saturating_mul(factor) / 1000).min(rules.max_delay.0)
            }
        };
        Retry {
            delay_ms: jittered(base_ms, rules.jitter.0, entropy).min(rules.max_delay.0),
            base_ms,
            restarts: if stable { 1 } else { self.restarts.saturating_add(1) },
            window_since,
            window_restarts,
            over_limit,
        }
    }

    /// Begins anew after an act of somebody; an alert that fires goes on until a run is stable.
    pub fn reset(&mut self) {
        *self = Self { alerting: self.alerting, ..Self::default() };
    }
}

/// Varies `base_ms` by up to `percent` in both directions.
fn jittered(base_ms: u64, percent: u8, entropy: u64) -> u64 {
    let span = u128::from(base_ms) * u128::from(percent.min(100)) / 100;
    // The upper half of `entropy` as a fraction of the whole range from -span to +span.
    let offset = 2 * span * u128::from(entropy >> 32) / u128::from(u32::MAX);
    let varied = u128::from(base_ms) - span + offset;
    u64::try_from(varied).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::spec::{Millis, Percent};

    const MIDDLE: u64 = (u32::MAX as u64 / 2) << 32;

    fn rules() -> Restart {
        Restart { jitter: Percent(0), ..Restart::default() }
    }

    fn delays(rules: &Restart, ran_ms: &[u64]) -> Vec<u64> {
        let mut backoff = Backoff::default();
        let mut now = UnixMicros(1_000_000_000);
        ran_ms
            .iter()
            .map(|ran_ms| {
                now = now.plus_ms(*ran_ms);
                let retry = backoff.retry(rules, *ran_ms, now, MIDDLE);
                backoff = Backoff {
                    restarts: retry.restarts,
                    base_ms: retry.base_ms,
                    window_since: retry.window_since,
                    window_restarts: retry.window_restarts,
                    alerting: false,
                };
                now = now.plus_ms(retry.delay_ms);
                retry.delay_ms
            })
            .collect()
    }

    #[test]
    fn the_first_restart_after_a_stable_run_is_immediate_and_the_next_ones_double() {
        assert_eq!(delays(&rules(), &[12_000, 5, 5, 5]), [0, 100, 200, 400]);
    }

    #[test]
    fn a_run_that_never_was_stable_is_not_restarted_at_once() {
        assert_eq!(delays(&rules(), &[5, 5]), [100, 200]);
    }

    #[test]
    fn a_run_of_less_than_twice_the_last_delay_is_not_stable() {
        let rules = Restart { delay: Millis(8_000), ..rules() };
        assert_eq!(delays(&rules, &[5, 15_000, 32_000]), [8_000, 16_000, 0]);
    }

    #[test]
    fn beyond_the_limit_it_is_tried_at_the_longest_delay() {
        let rules = Restart { limit: 3, ..rules() };
        assert_eq!(delays(&rules, &[5; 5]), [100, 200, 400, 60_000, 60_000]);
    }

    #[test]
    fn a_window_that_is_over_counts_no_more() {
        let rules = Restart { limit: 1, limit_window: Millis(1_000), ..rules() };
        assert_eq!(delays(&rules, &[5_000, 5_000, 5_000]), [100, 200, 400]);
    }

    #[test]
    fn a_stable_run_begins_the_window_anew() {
        let rules = Restart { limit: 2, ..rules() };
        assert_eq!(delays(&rules, &[5, 5, 20_000, 5, 5]), [100, 200, 0, 100, 60_000]);
    }

    #[test]
    fn jitter_stays_within_its_share_and_below_the_longest_delay() {
        for entropy in [0, 1 << 40, MIDDLE, u64::MAX] {
            assert!((750..=1250).contains(&jittered(1000, 25, entropy)));
        }
        assert_eq!(jittered(1000, 25, 0), 750);
        assert_eq!(jittered(1000, 25, u64::MAX), 1250);
        let at_cap = Backoff { base_ms: 60_000, ..Backoff::default() };
        let retry = at_cap.retry(&Restart::default(), 5, UnixMicros(0), u64::MAX);
        assert_eq!(retry.delay_ms, 60_000);
    }

    #[test]
    fn no_number_overflows() {
        let wild = Backoff {
            restarts: u32::MAX,
            base_ms: u64::MAX,
            window_since: UnixMicros(u64::MAX),
            window_restarts: u32::MAX,
            alerting: true,
        };
        let rules = Restart { max_delay: Millis(u64::MAX), jitter: Percent(255), ..rules() };
        let _ = wild.retry(&rules, u64::MAX, UnixMicros(u64::MAX), u64::MAX);
        let _ = wild.retry(&rules, 0, UnixMicros(0), 0);
    }
}
