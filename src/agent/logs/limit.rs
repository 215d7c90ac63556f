//! What limits lines and notices. Time is an argument; no timer runs while nothing happens.

use std::time::{Duration, Instant};

/// How long a writer that is held back waits at least, so that it is not woken for every line.
const REFILL: Duration = Duration::from_millis(20);

/// A second's worth of lines may come at once; after that as many as `rate` says.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: u64,
    tokens: u64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(rate: u32, now: Instant) -> Self {
        let rate = u64::from(rate.max(1));
        Self { rate, tokens: rate, at: now }
    }

    /// Takes one line's worth, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.tokens == 0 {
            self.refill(now);
        }
        let granted = self.tokens > 0;
        self.tokens -= u64::from(granted);
        granted
    }

    /// Returns when it is worth to ask again.
    pub(super) fn next(&self, now: Instant) -> Instant {
        now + REFILL.max(Duration::from_nanos(1_000_000_000 / self.rate))
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).min(Duration::from_secs(1));
        let nanos = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        let earned = u128::from(nanos) * u128::from(self.rate) / 1_000_000_000;
        if earned > 0 {
            self.tokens = u64::try_from(earned).unwrap_or(u64::MAX).min(self.rate);
            self.at = now;
        }
    }
}

/// Collects what is to be told and lets it go at most once in `period`.
#[derive(Debug)]
pub(super) struct Paced<T> {
    period: Duration,
    waiting: Option<T>,
    quiet_until: Option<Instant>,
}

impl<T> Paced<T> {
    pub(super) fn new(period: Duration) -> Self {
        Self { period, waiting: None, quiet_until: None }
    }

    /// Adds to what waits.
    pub(super) fn add(&mut self, merge: impl FnOnce(Option<T>) -> T) {
        self.waiting = Some(merge(self.waiting.take()));
    }

    /// Returns what may be told.
    pub(super) fn release(&mut self, now: Instant) -> Option<T> {
        if self.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        let released = self.waiting.take()?;
        self.quiet_until = Some(now + self.period);
        Some(released)
    }

    /// Returns when something that waits may be told.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.as_ref().and(self.quiet_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_lines_comes_at_once_and_then_as_many_as_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, start);
        let taken = |bucket: &mut Bucket, now| (0..1000).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, start), 100);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(500)), 50);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(60)), 100);
    }

    #[test]
    fn a_slow_rate_is_not_lost_to_rounding() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1, start);
        assert!(bucket.take(start));
        let at = |ms| start + Duration::from_millis(ms);
        assert!((1..10).all(|tenth| !bucket.take(at(tenth * 100))));
        assert!(bucket.take(at(1000)));
    }

    #[test]
    fn the_first_is_told_at_once_and_the_others_together_after_the_period() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut paced = Paced::new(Duration::from_secs(60));
        let count = |paced: &mut Paced<u32>| paced.add(|sum| sum.unwrap_or(0) + 1);
        count(&mut paced);
        assert_eq!(paced.release(start), Some(1));
        count(&mut paced);
        count(&mut paced);
        assert_eq!((paced.release(at(59)), paced.due()), (None, Some(at(60))));
        assert_eq!((paced.release(at(60)), paced.due()), (Some(2), None));
    }
}
