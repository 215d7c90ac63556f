//! How long to wait before something that failed is tried again: ever longer, up to a bound, and never all at once.
//!
//! When a service is started again is decided elsewhere, in [`crate::domain::backoff`]: that is recorded and replayed.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Returns the wait after `failures` failures before the one at hand: `first`, doubled by each, and `longest` at most.
pub(crate) fn doubled(first: Duration, longest: Duration, failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest)
}

/// Draws a wait from a range, so that what failed together does not come back as one.
pub(crate) fn drawn(range: RangeInclusive<Duration>) -> Duration {
    // Without randomness waits are merely not spread.
    within(&range, getrandom::u32().unwrap_or(u32::MAX / 2))
}

/// Returns the place in a range that `random` stands for: 0 is its start, the largest number its end.
fn within(range: &RangeInclusive<Duration>, random: u32) -> Duration {
    let width = range.end().saturating_sub(*range.start());
    let share = f64::from(random) / f64::from(u32::MAX);
    range.start().saturating_add(width.mul_f64(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(10);

    #[test]
    fn waits_double_up_to_the_longest_however_many_failures_there_were() {
        let waits = [0, 1, 2, 7, 8, 31, 32, u32::MAX].map(|n| doubled(FIRST, LONGEST, n));
        assert_eq!(waits[..4], [50, 100, 200, 6400].map(Duration::from_millis));
        assert_eq!(waits[4..], [LONGEST; 4]);
    }

    #[test]
    fn a_first_wait_beyond_the_longest_is_the_longest() {
        assert_eq!(doubled(LONGEST, FIRST, 0), FIRST);
    }

    #[test]
    fn a_drawn_wait_can_be_any_of_its_range_and_no_other() {
        let range = FIRST..=LONGEST;
        assert_eq!(within(&range, 0), FIRST);
        assert_eq!(within(&range, u32::MAX), LONGEST);
        let middle = within(&range, u32::MAX / 2).as_millis();
        assert!((5024..=5025).contains(&middle), "{middle}");
        assert!((0..100).all(|_| range.contains(&drawn(range.clone()))));
    }

    #[test]
    fn waits_are_spread() {
        let range = Duration::ZERO..=LONGEST;
        let first = drawn(range.clone());
        assert!((0..50).any(|_| drawn(range.clone()) != first));
    }
}
