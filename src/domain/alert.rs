//! When an alert of a spec is to fire and when it is over: counts, windows, hysteresis. Time is an argument.
//!
//! Lines come in far more often than anything is told, so what is counted here is not folded from events: an agent that
//! begins anew counts anew. That an alert fires is folded, and is given to [`Watch::new`].

use std::collections::VecDeque;

use super::spec::{Alert, AlertOn};

/// Into how many pieces a window is cut: counts of one piece are kept together.
const PIECES: u64 = 64;

/// What somebody is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The alert fires.
    Fires {
        /// How many lines are in the window; 0 for absence.
        lines: u64,
    },
    /// It is over.
    IsOver,
}

/// One alert of one instance.
#[derive(Clone, Debug)]
pub struct Watch {
    rule: Rule,
    /// When lines came and how many, the oldest first, in milliseconds.
    lines: VecDeque<(u64, u64)>,
    /// Since when a line is missed; only for absence, and only while the service is wanted.
    missed_since: Option<u64>,
    phase: Phase,
}

/// What of an alert matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    on: AlertOn,
    lasts_ms: u64,
    keep_ms: u64,
}

impl From<&Alert> for Rule {
    fn from(alert: &Alert) -> Self {
        Self { on: alert.on, lasts_ms: alert.r#for.0, keep_ms: alert.keep_firing_for.0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Quiet,
    Pending { since: u64 },
    Firing { over_since: Option<u64> },
}

impl Watch {
    /// Begins to watch at `now` (in milliseconds of any clock that does not jump).
    pub fn new(rule: &Alert, is_firing: bool, now: u64) -> Self {
        let phase = match is_firing {
            true => Phase::Firing { over_since: Some(now) },
            false => Phase::Quiet,
        };
        Self { rule: rule.into(), lines: VecDeque::new(), missed_since: None, phase }
    }

    /// Says whether it counts as `rule` says.
    pub fn watches(&self, rule: &Alert) -> bool {
        self.rule == rule.into()
    }

    /// Says whether the service is wanted: only then lines can be missing.
    pub fn wanted(&mut self, is_wanted: bool, now: u64) -> Option<Told> {
        if self.rule.on != AlertOn::Absence || self.missed_since.is_some() == is_wanted {
            return None;
        }
        self.missed_since = is_wanted.then_some(now);
        match self.phase {
            // Nobody expects lines any more, so there is nothing to keep firing for.
            Phase::Firing { .. } if !is_wanted => {
                self.phase = Phase::Quiet;
                Some(Told::IsOver)
            }
            Phase::Firing { .. } | Phase::Pending { .. } | Phase::Quiet => None,
        }
    }

    /// Takes lines that matched.
    pub fn matched(&mut self, lines: u64, now: u64) -> Option<Told> {
        match self.rule.on {
            AlertOn::Log { window, .. } => {
                let piece = window.0 / PIECES;
                match self.lines.back_mut() {
                    Some((at, count)) if now.saturating_sub(*at) < piece => *count += lines,
                    _ => self.lines.push_back((now, lines)),
                }
            }
            AlertOn::Absence => {
                self.missed_since = self.missed_since.map(|since| since.max(now));
            }
        }
        self.look(now)
    }

    /// Says what there is to be told at `now`.
    pub fn look(&mut self, now: u64) -> Option<Told> {
        if let AlertOn::Log { window, .. } = self.rule.on {
            while self.lines.front().is_some_and(|(at, _)| at.saturating_add(window.0) <= now) {
                self.lines.pop_front();
            }
        }
        let has_cause = self.cause_ends(now).is_some();
        match (self.phase, has_cause) {
            (Phase::Quiet, true) => {
                self.phase = Phase::Pending { since: now };
                self.look(now)
            }
            (Phase::Pending { since }, true) if now >= self.fires_at(since) => {
                self.phase = Phase::Firing { over_since: None };
                Some(Told::Fires { lines: self.lines.iter().map(|(_, count)| count).sum() })
            }
            (Phase::Pending { .. }, false) => {
                self.phase = Phase::Quiet;
                None
            }
            (Phase::Firing { over_since: Some(_) }, true) => {
                self.phase = Phase::Firing { over_since: None };
                None
            }
            (Phase::Firing { over_since: None }, false) => {
                self.phase = Phase::Firing { over_since: Some(now) };
                self.look(now)
            }
            (Phase::Firing { over_since: Some(since) }, false)
                if now >= since.saturating_add(self.rule.keep_ms) =>
            {
                self.phase = Phase::Quiet;
                Some(Told::IsOver)
            }
            (Phase::Quiet | Phase::Firing { .. }, false)
            | (Phase::Pending { .. } | Phase::Firing { over_since: None }, true) => None,
        }
    }

    /// Returns when to look again although no line comes.
    pub fn due(&self) -> Option<u64> {
        let ends = self.cause_ends(0);
        match self.phase {
            Phase::Quiet => self.missed_since.map(|since| since.saturating_add(self.rule.lasts_ms)),
            Phase::Pending { since } => {
                let fires = self.fires_at(since);
                Some(ends.map_or(fires, |ends| ends.min(fires)))
            }
            Phase::Firing { over_since: None } => ends,
            Phase::Firing { over_since: Some(since) } => {
                Some(since.saturating_add(self.rule.keep_ms))
            }
        }
    }

    /// Returns when an alert fires whose cause is there since then. What misses a line has waited already.
    fn fires_at(&self, since: u64) -> u64 {
        match self.rule.on {
            AlertOn::Log { .. } => since.saturating_add(self.rule.lasts_ms),
            AlertOn::Absence => since,
        }
    }

    /// Returns until when the cause lasts if no line comes; `None` while there is no cause.
    fn cause_ends(&self, now: u64) -> Option<u64> {
        match self.rule.on {
            AlertOn::Log { threshold, window } => {
                let mut count = 0;
                // The oldest piece of the fewest, from the end on, that are enough: when it leaves, they are not.
                self.lines.iter().rev().find_map(|(at, lines)| {
                    count += lines;
                    (count >= u64::from(threshold)).then(|| at.saturating_add(window.0))
                })
            }
            AlertOn::Absence => {
                let since = self.missed_since?;
                (since.saturating_add(self.rule.lasts_ms) <= now).then_some(u64::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::spec::{AlertStream, Millis, Severity};

    fn rule(on: AlertOn, lasts_s: u64, keep_s: u64) -> Alert {
        Alert {
            on,
            r#match: "ERROR".to_owned(),
            exclude: None,
            stream: AlertStream::Any,
            r#for: Millis::from_secs(lasts_s),
            keep_firing_for: Millis::from_secs(keep_s),
            severity: Severity::Warning,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }

    fn lines(threshold: u32, window_s: u64) -> AlertOn {
        AlertOn::Log { threshold, window: Millis::from_secs(window_s) }
    }

    /// Looks whenever something is due, up to `until`, and returns what was told and when, in seconds.
    fn told(watch: &mut Watch, until_s: u64) -> Vec<(u64, Told)> {
        let mut told = Vec::new();
        while let Some(due) = watch.due().filter(|due| *due <= until_s * 1000) {
            told.extend(watch.look(due).map(|what| (due / 1000, what)));
        }
        told
    }

    #[test]
    fn it_fires_at_the_threshold_and_is_over_when_its_window_and_its_rest_have_passed() {
        let mut watch = Watch::new(&rule(lines(3, 60), 0, 300), false, 0);
        assert_eq!(watch.matched(2, 10_000), None);
        assert_eq!(watch.matched(1, 20_000), Some(Told::Fires { lines: 3 }));
        assert_eq!(watch.matched(5, 21_000), None);
        assert_eq!(told(&mut watch, 1000), [(81 + 300, Told::IsOver)]);
        assert_eq!(watch.due(), None);
    }

    #[test]
    fn lines_that_are_too_far_apart_are_no_cause() {
        let mut watch = Watch::new(&rule(lines(2, 60), 0, 0), false, 0);
        for minute in 0..100 {
            assert_eq!(watch.matched(1, minute * 61_000), None);
        }
    }

    #[test]
    fn a_cause_that_returns_while_it_fires_is_not_told_twice() {
        let mut watch = Watch::new(&rule(lines(1, 10), 0, 100), false, 0);
        assert_eq!(watch.matched(1, 0), Some(Told::Fires { lines: 1 }));
        assert_eq!(told(&mut watch, 50), []);
        assert_eq!(watch.matched(1, 60_000), None);
        assert_eq!(told(&mut watch, 169), []);
        assert_eq!(told(&mut watch, 1000), [(170, Told::IsOver)]);
    }

    #[test]
    fn a_cause_that_does_not_last_fires_nothing() {
        let mut watch = Watch::new(&rule(lines(1, 10), 30, 0), false, 0);
        assert_eq!(watch.matched(1, 0), None);
        assert_eq!(told(&mut watch, 100), []);
        assert_eq!(watch.due(), None);
        for second in (100..=130).step_by(5) {
            let fires = (second == 130).then_some(Told::Fires { lines: 2 });
            assert_eq!(watch.matched(1, second * 1000), fires, "{second}");
        }
    }

    #[test]
    fn absence_fires_while_the_service_is_wanted_and_ends_with_a_line_or_with_the_wish() {
        let mut watch = Watch::new(&rule(AlertOn::Absence, 600, 0), false, 0);
        assert_eq!(told(&mut watch, 10_000), []);
        assert_eq!(watch.wanted(true, 0), None);
        assert_eq!(watch.matched(1, 500_000), None);
        assert_eq!(told(&mut watch, 1099), []);
        assert_eq!(told(&mut watch, 2000), [(1100, Told::Fires { lines: 0 })]);
        assert_eq!(watch.matched(1, 2_000_000), Some(Told::IsOver));
        assert_eq!(told(&mut watch, 2600), [(2600, Told::Fires { lines: 0 })]);
        assert_eq!(watch.wanted(false, 2_700_000), Some(Told::IsOver));
        assert_eq!((watch.wanted(false, 2_700_000), watch.due()), (None, None));
    }

    #[test]
    fn what_fired_before_the_agent_died_is_over_after_its_rest_from_the_start_on() {
        let mut watch = Watch::new(&rule(lines(1, 60), 0, 300), true, 7_000);
        assert_eq!(told(&mut watch, 1000), [(307, Told::IsOver)]);
    }

    #[test]
    fn a_flood_takes_no_more_memory_than_a_trickle() {
        let mut watch = Watch::new(&rule(lines(u32::MAX, 64), 0, 0), false, 0);
        for ms in 0..1_000_000 {
            watch.matched(1, ms);
        }
        assert!(watch.lines.len() <= PIECES as usize + 1, "{}", watch.lines.len());
        assert_eq!(watch.lines.iter().map(|(_, count)| count).sum::<u64>().div_ceil(1000), 64);
    }
}
