//! The live lines of `smgr up`: what a person watches, with what belongs together in one line.

use std::collections::BTreeMap;

use super::event::{Stamp, clause, ended_words, event_line, known, line, part_words, place};
use super::names::Names;
use super::units::{count, span};
use crate::domain::event::{Event, InstanceExited, Next, PartStarted, StateName, StopPhase};
use crate::domain::id::InstanceId;
use crate::domain::time::UnixMicros;
use crate::wire::payload::EventRecord;

/// An exit waits at most this long for the start that follows it at once, by the times of the events.
const HOLD_MS: u64 = 1000;

/// Turns events into lines, one after the other.
///
/// An exit that is followed by a start at once, and a part that adopts what ran on, are held back until they are
/// whole: call [`Feed::flush`] when nothing came for a fifth of a second or so.
#[derive(Debug, Default)]
pub struct Feed {
    names: Names,
    /// At most one an instance.
    exits: BTreeMap<InstanceId, (EventRecord, InstanceExited)>,
    part: Option<Part>,
    /// What a new keeper found: its own event comes last.
    found: Vec<EventRecord>,
}

#[derive(Debug)]
struct Part {
    record: EventRecord,
    started: PartStarted,
    place: String,
    adopted: u64,
}

impl Feed {
    /// Returns a feed that names things as `names` says, and learns more names on the way.
    pub fn new(names: Names) -> Self {
        Self { names, ..Self::default() }
    }

    /// Takes in one event; returns the lines that are whole, without their ends.
    pub fn push(&mut self, record: &EventRecord) -> Vec<String> {
        let event = known(record);
        self.names.learn(record, event.as_ref());
        let mut lines = self.overdue(record.at);
        match event {
            Some(Event::InstanceAdopted(_)) if self.part.is_some() => {
                if let Some(part) = &mut self.part {
                    part.adopted += 1;
                }
                return lines;
            }
            Some(Event::InstanceAdopted(it)) if it.away == "keeper" => {
                self.found.push(record.clone());
                return lines;
            }
            Some(Event::InstanceStarted(_) | Event::InstanceExited(_)) => {
                lines.extend(self.part_line(false));
            }
            _ => {}
        }
        lines.extend(self.take(record, event));
        lines
    }

    /// Says whether lines are held back.
    pub fn holds(&self) -> bool {
        self.part.is_some() || !self.exits.is_empty() || !self.found.is_empty()
    }

    /// Returns the lines that were held back.
    pub fn flush(&mut self) -> Vec<String> {
        let mut lines = self.overdue(UnixMicros(u64::MAX));
        lines.extend(self.part_line(true));
        let found = std::mem::take(&mut self.found);
        lines.extend(found.iter().map(|record| event_line(record, &self.names, Stamp::Time)));
        lines
    }

    fn take(&mut self, record: &EventRecord, event: Option<Event>) -> Option<String> {
        match (record.context().instance_id(), event) {
            (Some(instance), Some(Event::InstanceExited(exited)))
                if exited.next == Next::AtOnce =>
            {
                let before = self.exits.insert(instance, (record.clone(), exited));
                before.map(|(record, _)| event_line(&record, &self.names, Stamp::Time))
            }
            (Some(instance), Some(Event::InstanceStarted(started))) => {
                let Some((exit, exited)) = self.exits.remove(&instance) else {
                    return Some(event_line(record, &self.names, Stamp::Time));
                };
                let later = span(record.at.ms_since(exit.at));
                let ended = ended_words(&exited);
                let words = format!("{ended}; started again {later} later, pid {}", started.pid);
                Some(line(&exit, Stamp::Time, &self.names.place(&exit), &words))
            }
            (_, Some(Event::AgentStarted(started) | Event::KeeperStarted(started)))
                if started.after.is_some() =>
            {
                let before = self.part_line(false);
                let place = place(record, known(record).as_ref(), &self.names);
                let adopted = std::mem::take(&mut self.found).len() as u64;
                self.part = Some(Part { record: record.clone(), started, place, adopted });
                before
            }
            (_, event) if is_worth_a_line(event.as_ref()) => {
                let words = clause(record, event.as_ref());
                let place = place(record, event.as_ref(), &self.names);
                Some(line(record, Stamp::Time, &place, &words))
            }
            _ => None,
        }
    }

    fn overdue(&mut self, now: UnixMicros) -> Vec<String> {
        let is_due = |record: &EventRecord| now.ms_since(record.at) > HOLD_MS;
        let due = self.exits.extract_if(.., |_, (record, _)| is_due(record));
        let mut records: Vec<EventRecord> = due.map(|(_, (record, _))| record).collect();
        records.sort_by_key(|record| record.at);
        records.iter().map(|record| event_line(record, &self.names, Stamp::Time)).collect()
    }

    /// `is_quiet` says that nothing was started since, so that it can be told.
    fn part_line(&mut self, is_quiet: bool) -> Option<String> {
        let part = self.part.take()?;
        let mut words = part_words(&part.started);
        if part.adopted > 0 {
            words.push_str(&format!("; {} adopted", count(part.adopted, "service")));
            words.push_str(if is_quiet { ", none restarted" } else { "" });
        }
        Some(line(&part.record, Stamp::Time, &part.place, &words))
    }
}

/// Bookkeeping is not worth a line: `smgr events` has it all.
fn is_worth_a_line(event: Option<&Event>) -> bool {
    match event {
        None => true,
        Some(event) => match event {
            Event::LogOpened(it) => it.predecessor.is_some(),
            Event::InstanceStopping(it) => it.phase == StopPhase::Kill,
            // The end of the stop tells it.
            Event::InstanceExited(it) => it.from != StateName::Stopping,
            Event::IntentExecuted(it) => {
                !matches!(it.outcome, crate::domain::event::Outcome::Done { .. })
            }
            Event::AgentStarted(it) | Event::KeeperStarted(it) => it.after.is_some(),
            Event::Baseline(_)
            | Event::AgentStopping(_)
            | Event::AgentStopped(_)
            | Event::InstanceStarting(_)
            | Event::TrustChanged(_)
            | Event::ServiceAdded(_)
            | Event::DesiredChanged(_)
            | Event::InstanceReloading(_)
            | Event::IntentAccepted(_)
            | Event::ActionStarted(_)
            | Event::LogRetired(_)
            | Event::OrderAccepted(_)
            | Event::ReleaseStaged(_)
            | Event::ControllerStarted(_) => false,
            Event::Rollout(it) => !it.event.is_detail(),
            Event::LogUnavailable(_)
            | Event::LogRecovered(_)
            | Event::ServiceRemoved(_)
            | Event::InstanceWaiting(_)
            | Event::InstanceSignalled(_)
            | Event::InstanceStarted(_)
            | Event::InstanceStartFailed(_)
            | Event::InstanceReady(_)
            | Event::InstanceHandedOver(_)
            | Event::InstanceHealthy(_)
            | Event::InstanceUnhealthy(_)
            | Event::InstanceStopped(_)
            | Event::InstanceReloaded(_)
            | Event::InstanceAdopted(_)
            | Event::IntentRefused(_)
            | Event::ActionEnded(_)
            | Event::AlertFired(_)
            | Event::AlertResolved(_)
            | Event::LinesDropped(_)
            | Event::ReleaseApplied(_)
            | Event::ReleaseHealthy(_)
            | Event::ReleaseFailed(_)
            | Event::ReleaseReturned(_)
            | Event::ConfigChanged(_)
            | Event::ConfigExpired(_)
            | Event::ReleaseRemoved(_)
            | Event::ReleaseRefused(_)
            | Event::ControllerLed(_)
            | Event::ControllerSteppedDown(_)
            | Event::NodeUnreachable(_)
            | Event::PlacementOrdered(_)
            | Event::PlacementHeld(_)
            | Event::NodeSeen(_)
            | Event::LogForked(_)
            | Event::Summarized(_) => true,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    #[test]
    fn the_first_minute_is_told_as_the_contract_shows_it() {
        let mut feed = Feed::default();
        let mut lines = Vec::new();
        for record in sample::first_minute() {
            lines.extend(feed.push(&record));
        }
        lines.extend(feed.flush());
        assert_eq!(
            lines,
            [
                "09:00:09.412Z  hello  started, pid 4711",
                "09:00:22.004Z  hello  exited: signal KILL after 12.6s; started again 3 ms later, pid 4730",
                "09:00:35.310Z  agent  was killed (signal KILL), back after 0.09s; 1 service adopted, none \
                 restarted",
            ]
        );
    }

    #[test]
    fn what_a_new_keeper_finds_is_told_with_it() {
        let mut feed = Feed::default();
        let adopted = Event::InstanceAdopted(crate::domain::event::InstanceAdopted {
            pid: 9,
            away: "keeper".to_owned(),
            away_ms: 120,
        });
        let found = sample::record(40, "09:01:00.100", ("web", 0, 1), &adopted);
        assert!(feed.push(&found).is_empty() && feed.holds());
        let started = PartStarted {
            version: "0.1.0".to_owned(),
            pid: 7,
            uid: 0,
            boot: found.boot,
            after: Some(crate::domain::event::Exit::Signal { signal: 9, core_dumped: false }),
            away_ms: 100,
            incarnation: 1,
        };
        let mut keeper =
            sample::record(41, "09:01:00.100", ("web", 0, 1), &Event::KeeperStarted(started));
        (keeper.service, keeper.index, keeper.run) = (None, None, None);
        assert!(feed.push(&keeper).is_empty());
        assert_eq!(
            feed.flush(),
            [
                "09:01:00.100Z  keeper  was killed (signal KILL), back after 0.1s; 1 service adopted, none restarted"
            ]
        );
        feed.push(&found);
        assert_eq!(feed.flush().len(), 1);
    }

    #[test]
    fn an_exit_whose_start_does_not_come_is_told_alone() {
        let mut feed = Feed::default();
        assert!(feed.push(&sample::hello_exited()).is_empty());
        let told = "09:00:22.004Z  hello  exited: signal KILL after 12.6s; starts again at once";
        assert_eq!(feed.flush(), [told]);
        assert!(feed.flush().is_empty());
        feed.push(&sample::hello_exited());
        let later = sample::record(30, "09:00:24.000", ("web", 0, 1), &sample::adopted(9));
        assert_eq!(feed.push(&later)[0], told);
    }
}
