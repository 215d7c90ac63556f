//! When a run is probed, when a check passes or fails, and what events say of it. Time is an argument.
//!
//! Probes come in far more often than anything is told, so what is counted here is not folded from events: an agent that
//! begins anew counts anew. Whether a check passes is folded, and is given to [`Watch::new`].

use serde::{Deserialize, Serialize};

use super::id::CheckName;
use super::spec::{Health, OnFailure};
use super::time::UnixMicros;

/// How much is told of a bad answer, in bytes: it is part of the folded state.
pub const MESSAGE_BYTES_MAX: usize = 160;

/// Body of `instance.healthy`: a check of a run passes, and did not before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceHealthy {
    /// The name of the check.
    pub check: CheckName,
    /// How many good answers came in a row; 0 when the spec does not have the check any more.
    pub in_a_row: u32,
}

/// Body of `instance.unhealthy`: a check of a run fails, and did not before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceUnhealthy {
    /// The name of the check.
    pub check: CheckName,
    /// How many bad answers came in a row.
    pub in_a_row: u32,
    /// What follows.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// The last bad answer, in words.
    pub message: String,
}

/// What is folded of one check of the present run. A check of which nothing is known yet is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Since when.
    pub since: UnixMicros,
    /// The bad answer, when it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<Failing>,
}

/// Why a check fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// What follows from it.
    pub on_failure: OnFailure,
    /// In words.
    pub message: String,
}

impl Check {
    /// Says whether the run does not count as ready because of it.
    pub fn is_unready(&self) -> bool {
        self.failing.as_ref().is_some_and(|failing| failing.on_failure == OnFailure::Unready)
    }
}

/// What a probe found: nothing wrong, or this.
pub type Answer = Result<(), String>;

/// What the core is told of a check: it passes or fails, after so many answers in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How many answers in a row say so.
    pub in_a_row: u32,
    /// What is wrong, when it fails.
    pub answer: Answer,
}

/// How far a run is, as far as bad answers are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// It is not ready yet, and bad answers are not told of.
    Starting,
    /// It is younger than the time that its spec gives it to become ready: it is not started anew for a check that
    /// never passed, or a slow start would never come to an end.
    Young,
    /// It is neither.
    Grown,
}

/// One check of one run.
#[derive(Clone, Debug)]
pub struct Watch {
    rule: Health,
    is_passing: Option<bool>,
    /// How many answers of the last kind came in a row.
    in_a_row: u32,
    last: Option<Answer>,
    interval_ms: u64,
}

impl Watch {
    /// Begins to watch; `is_passing` is what is known of this run already.
    pub fn new(rule: &Health, is_passing: Option<bool>) -> Self {
        let interval_ms = rule.min_interval.0;
        Self { rule: rule.clone(), is_passing, in_a_row: 0, last: None, interval_ms }
    }

    /// Says whether it asks and counts as `rule` says.
    pub fn watches(&self, rule: &Health) -> bool {
        self.rule == *rule
    }

    /// Returns what it asks, and how.
    pub fn rule(&self) -> &Health {
        &self.rule
    }

    /// Returns whether the check passes, if that is known.
    pub fn is_passing(&self) -> Option<bool> {
        self.is_passing
    }

    /// Returns how long the next probe is away, in milliseconds.
    pub fn interval_ms(&self) -> u64 {
        self.interval_ms
    }

    /// Returns how many bad answers came last in a row.
    pub fn failures(&self) -> u32 {
        if matches!(self.last, Some(Err(_))) { self.in_a_row } else { 0 }
    }

    /// Returns the last answer if it was a bad one.
    pub fn message(&self) -> Option<&str> {
        self.last.as_ref()?.as_ref().err().map(String::as_str)
    }

    /// Asks quickly again: something about the run has changed.
    pub fn hurry(&mut self) {
        self.interval_ms = self.rule.min_interval.0;
    }

    /// Takes an answer. Returns what there is to tell: only what is not known.
    pub fn answered(&mut self, answer: Answer, age: Age) -> Option<Verdict> {
        let is_good = answer.is_ok();
        let is_same = self.last.as_ref().is_some_and(|last| last.is_ok() == is_good);
        self.in_a_row = if is_same { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(answer.clone());
        let needed = if is_good { self.rule.successes } else { self.rule.failures };
        let is_known = self.is_passing == Some(is_good);
        // Half as long again after each good answer, once the check passes: a check that is well soon costs little.
        self.interval_ms = if is_good && is_known {
            (self.interval_ms + self.interval_ms.div_ceil(2)).min(self.rule.interval.0)
        } else {
            self.rule.min_interval.0
        };
        let has_time = match age {
            Age::Starting => true,
            Age::Young => self.is_passing.is_none() && self.rule.on_failure == OnFailure::Restart,
            Age::Grown => false,
        };
        if is_known || self.in_a_row < needed || (has_time && !is_good) {
            return None;
        }
        self.is_passing = Some(is_good);
        Some(Verdict { in_a_row: self.in_a_row, answer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::spec::{Millis, Probe};
    use crate::domain::template::Template;

    fn watch() -> Watch {
        let rule = Health {
            probe: Probe::Tcp { address: Template::new("127.0.0.1:1") },
            interval: Millis(1000),
            min_interval: Millis(100),
            timeout: Millis(1000),
            failures: 3,
            successes: 2,
            on_failure: OnFailure::Unready,
        };
        Watch::new(&rule, None)
    }

    fn good() -> Answer {
        Ok(())
    }

    fn bad() -> Answer {
        Err("refused".to_owned())
    }

    #[test]
    fn a_check_passes_and_fails_after_as_many_answers_in_a_row_as_its_spec_says_and_is_told_once() {
        let mut watch = watch();
        assert_eq!(watch.answered(good(), Age::Grown), None);
        let passes = watch.answered(good(), Age::Grown).unwrap();
        assert_eq!((passes.in_a_row, passes.answer), (2, good()));
        for answer in [good(), bad(), bad(), good(), bad(), bad()] {
            assert_eq!(watch.answered(answer, Age::Grown), None);
        }
        assert_eq!(watch.is_passing(), Some(true));
        let fails = watch.answered(bad(), Age::Grown).unwrap();
        assert_eq!((fails.in_a_row, fails.answer), (3, bad()));
        assert_eq!(watch.answered(bad(), Age::Grown), None);
        assert_eq!((watch.failures(), watch.message()), (4, Some("refused")));
    }

    #[test]
    fn probes_are_quick_after_a_change_and_slower_with_success_up_to_the_interval() {
        let mut watch = watch();
        let mut intervals = Vec::new();
        for _ in 0..10 {
            watch.answered(good(), Age::Grown);
            intervals.push(watch.interval_ms());
        }
        assert_eq!(intervals, [100, 100, 150, 225, 338, 507, 761, 1000, 1000, 1000]);
        watch.answered(bad(), Age::Grown);
        assert_eq!(watch.interval_ms(), 100, "one bad answer is looked into");
        watch.answered(good(), Age::Grown);
        assert_eq!(watch.interval_ms(), 150);
        watch.hurry();
        assert_eq!(watch.interval_ms(), 100);
    }

    #[test]
    fn bad_answers_of_a_run_that_is_not_ready_yet_are_not_told_until_it_is() {
        let mut watch = watch();
        for _ in 0..10 {
            assert_eq!(watch.answered(bad(), Age::Starting), None);
        }
        assert_eq!(watch.is_passing(), None);
        assert_eq!(watch.answered(bad(), Age::Grown).unwrap().in_a_row, 11);
    }

    #[test]
    fn a_young_run_is_not_started_anew_for_a_check_that_never_passed() {
        let rule = Health { on_failure: OnFailure::Restart, ..watch().rule().clone() };
        let mut watch = Watch::new(&rule, None);
        for _ in 0..10 {
            assert_eq!(watch.answered(bad(), Age::Young), None);
        }
        assert!(watch.clone().answered(bad(), Age::Grown).is_some());
        watch.answered(good(), Age::Young);
        assert!(watch.answered(good(), Age::Young).is_some());
        let told: Vec<_> = (0..3).filter_map(|_| watch.answered(bad(), Age::Young)).collect();
        assert_eq!(told.len(), 1, "what has passed once is held to it");
    }

    #[test]
    fn what_the_log_knows_already_is_not_told_again() {
        let mut watch = Watch::new(watch().rule(), Some(true));
        assert_eq!(watch.answered(good(), Age::Grown), None);
        assert_eq!(watch.answered(good(), Age::Grown), None);
    }
}
