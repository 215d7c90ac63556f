//! How often services were started again by policy within the last hour.
//!
//! Counted from events beside the folded state: it is no part of a baseline and of no state hash, so whoever begins on a
//! baseline knows it only when it has watched for an hour.

use std::collections::{BTreeMap, VecDeque};

use super::event::{Context, EpochReason, Event, Next};
use super::id::ServiceId;
use super::time::UnixMicros;

/// What is counted, in microseconds.
const HOUR: u64 = 60 * MINUTE;

/// How finely, in microseconds: a service has at most 61 counters, whatever it does.
const MINUTE: u64 = 60_000_000;

/// The restarts of the last hour, minute by minute.
#[derive(Clone, Debug, Default)]
pub struct Restarts {
    /// Since when every restart was seen; absent before the first event.
    since: Option<UnixMicros>,
    services: BTreeMap<ServiceId, VecDeque<(u64, u64)>>,
}

impl Restarts {
    /// Takes in an event of the log, in its order.
    pub fn note(&mut self, at: UnixMicros, context: &Context, event: &Event) {
        if self.since.is_none() {
            let begins =
                matches!(event, Event::LogOpened(it) if it.reason == EpochReason::FirstStart);
            self.since = Some(if begins { UnixMicros(0) } else { at });
        }
        let Some(service) = &context.service else { return };
        let count = match event {
            Event::InstanceExited(it) => {
                u64::from([Some(it.next), it.then].into_iter().flatten().any(starts))
            }
            Event::InstanceStartFailed(it) => u64::from(it.next_attempt_at.is_some()),
            Event::Summarized(it) => it.starts,
            Event::ServiceRemoved(_) => {
                self.services.remove(service);
                0
            }
            _ => 0,
        };
        if count == 0 {
            return;
        }
        if !self.services.contains_key(service) {
            self.services.insert(service.clone(), VecDeque::new());
        }
        let minute = at.0 / MINUTE;
        if let Some(minutes) = self.services.get_mut(service) {
            while minutes.front().is_some_and(|(first, _)| first + HOUR / MINUTE < minute) {
                minutes.pop_front();
            }
            match minutes.back_mut() {
                // A clock that went back counts where it was.
                Some((last, known)) if *last >= minute => *known = known.saturating_add(count),
                _ => minutes.push_back((minute, count)),
            }
        }
    }

    /// Returns how often a service was started again in the hour before `now`; `None` when not all of it was seen.
    pub fn of(&self, service: &ServiceId, now: UnixMicros) -> Option<u64> {
        let from = UnixMicros(now.0.saturating_sub(HOUR));
        self.since.filter(|since| *since <= from)?;
        let minutes = self.services.get(service).into_iter().flatten();
        Some(minutes.filter(|(minute, _)| *minute > from.0 / MINUTE).map(|(_, count)| count).sum())
    }
}

fn starts(next: Next) -> bool {
    matches!(next, Next::AtOnce | Next::At(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::{LogOpened, Summarized};

    fn at(minute: u64) -> UnixMicros {
        UnixMicros(minute * MINUTE)
    }

    fn opened(reason: EpochReason) -> Event {
        Event::LogOpened(LogOpened { reason, predecessor: None, version: "0".to_owned() })
    }

    fn starts(starts: u64) -> Event {
        let (first_at, last_at) = (at(0), at(0));
        Event::Summarized(Summarized { starts, exits: 0, first_at, last_at, live: None })
    }

    #[test]
    fn what_is_older_than_an_hour_counts_no_longer_and_takes_no_room() {
        let web: ServiceId = "web".parse().unwrap();
        let mut restarts = Restarts::default();
        assert_eq!(restarts.of(&web, at(100)), None);
        restarts.note(at(100), &Context::default(), &opened(EpochReason::FirstStart));
        assert_eq!(restarts.of(&web, at(100)), Some(0));
        for minute in 100..1000 {
            restarts.note(at(minute), &Context::service(&web), &starts(2));
        }
        assert_eq!(restarts.of(&web, at(999)), Some(120));
        assert_eq!(restarts.of(&web, at(1029)), Some(60));
        assert_eq!(restarts.of(&web, at(1100)), Some(0));
        assert!(restarts.services[&web].len() <= 61);
    }

    #[test]
    fn who_has_not_watched_for_an_hour_does_not_know() {
        let web: ServiceId = "web".parse().unwrap();
        let mut restarts = Restarts::default();
        restarts.note(at(100), &Context::default(), &opened(EpochReason::Integrity));
        restarts.note(at(101), &Context::service(&web), &starts(1));
        assert_eq!((restarts.of(&web, at(159)), restarts.of(&web, at(160))), (None, Some(1)));
    }
}
