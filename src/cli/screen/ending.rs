//! The end of smgr as one watches it: one line for each instance that is stopped.

use std::collections::BTreeMap;

use super::event::known;
use super::names::Names;
use super::up::{stopped_words, stopping_words};
use crate::domain::event::{Event, StopPhase};
use crate::domain::id::{InstanceId, ServiceId};
use crate::domain::signal::Signal;
use crate::wire::payload::EventRecord;

/// Turns events into text: a line begins when a stop does and is ended with it.
///
/// Of several stops at once one has the line, and the others are told when it has ended.
#[derive(Debug, Default)]
pub struct Ending {
    names: Names,
    /// The signals that are not TERM.
    signals: BTreeMap<ServiceId, Signal>,
    /// Whose line is begun and not ended.
    open: Option<InstanceId>,
    /// What is being stopped: how it is told, and whether it had to be killed.
    begun: BTreeMap<InstanceId, (String, bool)>,
    /// What was stopped while another had the line.
    waiting: String,
}

impl Ending {
    /// Returns one that names things so, and knows which signals stop what.
    pub fn new(names: Names, signals: BTreeMap<ServiceId, Signal>) -> Self {
        Self { names, signals, ..Self::default() }
    }

    /// Takes in one event; returns what is to be printed, as it is.
    pub fn push(&mut self, record: &EventRecord) -> String {
        let Some(instance) = record.context().instance_id() else { return String::new() };
        match known(record) {
            Some(Event::InstanceStopping(it)) => {
                let is_killed = it.phase == StopPhase::Kill;
                let signal = self.signals.get(&instance.service).copied().unwrap_or(Signal::TERM);
                let words = stopping_words(&self.names.place(record), signal);
                self.begun.entry(instance).or_insert((words, false)).1 |= is_killed;
                self.begin()
            }
            Some(Event::InstanceStopped(it)) => {
                // What waited or was between two runs had no process to stop.
                let Some((words, is_killed)) = self.begun.remove(&instance) else {
                    return String::new();
                };
                let rest = stopped_words(it.took_ms, is_killed) + "\n";
                if self.open.as_ref() == Some(&instance) {
                    self.open = None;
                    return rest + &std::mem::take(&mut self.waiting) + &self.begin();
                }
                match self.open {
                    Some(_) => {
                        self.waiting += &(words + &rest);
                        String::new()
                    }
                    None => words + &rest,
                }
            }
            _ => String::new(),
        }
    }

    /// Makes room for a line of somebody else; returns the end of the one that is begun.
    pub fn step_aside(&mut self) -> String {
        match self.open.take() {
            Some(_) => "\n".to_owned() + &std::mem::take(&mut self.waiting),
            None => String::new(),
        }
    }

    fn begin(&mut self) -> String {
        if self.open.is_some() {
            return String::new();
        }
        let Some((instance, (words, _))) = self.begun.first_key_value() else {
            return String::new();
        };
        self.open = Some(instance.clone());
        words.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;
    use crate::domain::event::{InstanceStopped, InstanceStopping, Next, StateName, StopReason};
    use crate::domain::time::UnixMicros;

    fn stopping(service: &str, phase: StopPhase) -> EventRecord {
        let body = InstanceStopping {
            from: StateName::Running,
            phase,
            until: UnixMicros(0),
            then_start: false,
            reason: StopReason::Wish,
        };
        sample::record(30, "09:01:00.000", (service, 0, 1), &Event::InstanceStopping(body))
    }

    fn stopped(service: &str, took_ms: u64) -> EventRecord {
        let body = InstanceStopped { next: Next::Inactive, took_ms, fresh: false };
        sample::record(31, "09:01:00.020", (service, 0, 1), &Event::InstanceStopped(body))
    }

    fn told(events: &[EventRecord]) -> String {
        let signals = BTreeMap::from([("db".parse().unwrap(), Signal::INT)]);
        let mut ending = Ending::new(Names::of_one_machine(), signals);
        events.iter().map(|record| ending.push(record)).collect()
    }

    #[test]
    fn the_end_is_told_as_the_contract_shows_it() {
        let events = [stopping("hello", StopPhase::Term), stopped("hello", 20)];
        assert_eq!(told(&events), "stopping hello (TERM) … stopped in 0.02s\n");
    }

    #[test]
    fn of_several_stops_at_once_each_has_a_line_of_its_own() {
        let events = [
            stopping("db", StopPhase::Term),
            stopping("web", StopPhase::Term),
            stopping("api", StopPhase::Term),
            stopped("web", 20),
            stopping("db", StopPhase::Kill),
            stopped("db", 30_000),
            stopped("api", 30_100),
        ];
        assert_eq!(
            told(&events),
            "stopping db (INT) … stopped in 30s (killed: it did not end by itself)\n\
             stopping web (TERM) … stopped in 0.02s\n\
             stopping api (TERM) … stopped in 30.1s\n"
        );
    }

    #[test]
    fn a_line_of_somebody_else_is_not_written_into_one_that_is_begun() {
        let mut ending = Ending::new(Names::of_one_machine(), BTreeMap::new());
        assert_eq!(ending.push(&stopping("web", StopPhase::Term)), "stopping web (TERM) … ");
        assert_eq!(ending.step_aside(), "\n");
        assert_eq!(ending.step_aside(), "");
        let rest = ending.push(&stopped("web", 20));
        assert_eq!(rest, "stopping web (TERM) … stopped in 0.02s\n");
    }
}
