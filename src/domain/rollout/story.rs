//! The facts of one rollout, as the controllers that led it wrote them, each into its own log.
//!
//! Logs arrive in any order. What counts is the same everywhere all the same: each leader names the number of facts that
//! it had when it took over, and what an earlier one wrote beyond them, while nobody could tell it that it led no more,
//! is not in force.

use std::collections::BTreeMap;

use super::event::{Planned, RolloutEvent};
use super::input::{Input, Rejection};
use super::state::Rollout;
use super::view::Record;
use crate::domain::id::{EventId, NodeId};
use crate::domain::time::UnixMicros;

/// One rollout, folded from several logs.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// What each leader wrote, by its term.
    parts: BTreeMap<u64, Part>,
    /// The facts in force, in their order.
    records: Vec<Record>,
    state: Option<Rollout>,
    /// How often facts that had been in force were not any more.
    turns: u32,
}

#[derive(Clone, Debug)]
struct Part {
    controller: NodeId,
    after: usize,
    records: Vec<Record>,
}

impl Story {
    /// Returns its first fact, and when it was told: what was planned, and who asked.
    pub fn planned(&self) -> Option<(UnixMicros, &Planned)> {
        let first = self.records.first()?;
        let RolloutEvent::Planned(planned) = &first.event else { return None };
        Some((first.at, planned))
    }

    /// Takes in the next fact of one controller's log.
    pub fn take(&mut self, record: Record) {
        let origin = record.id.origin.clone();
        let begins = match &record.event {
            RolloutEvent::Planned(body) => Some((body.term, 0)),
            RolloutEvent::TakenOver(body) => Some((body.term, body.after)),
            _ => None,
        };
        let last = self.parts.keys().next_back().copied();
        let term = match begins {
            Some((term, after)) => {
                let after = usize::try_from(after).unwrap_or(usize::MAX);
                let part = Part { controller: origin.clone(), after, records: Vec::new() };
                self.parts.entry(term).or_insert(part);
                term
            }
            None => {
                let own = |(_, part): &(&u64, &Part)| part.controller == origin;
                // Facts of a part whose beginning did not arrive are of no use.
                let Some((term, _)) = self.parts.iter().rev().find(own) else { return };
                *term
            }
        };
        let Some(part) = self.parts.get_mut(&term).filter(|part| part.controller == origin) else {
            return;
        };
        part.records.push(record.clone());
        let goes_on = match begins {
            None => last == Some(term),
            Some((_, after)) => {
                last.is_none_or(|last| last < term) && after as usize == self.records.len()
            }
        };
        if !goes_on || !self.go_on(record) {
            self.fold_anew();
        }
    }

    /// Lets the rollout take in an input: each fact that follows is written down by `write`, which names it, and is in
    /// force before the next one is decided. Says how many there were; none where there is no state. What cannot be
    /// written down ends it: nothing follows from a fact that no log has.
    ///
    /// # Errors
    /// See [`Rollout::follows`].
    pub fn decide(
        &mut self,
        now: UnixMicros,
        input: &Input,
        mut write: impl FnMut(&RolloutEvent) -> Option<EventId>,
    ) -> Result<usize, Rejection> {
        let Some(state) = &self.state else { return Ok(0) };
        let mut follows = state.follows(now, input)?;
        let mut count = 0;
        while let Some(event) = self.state.as_ref().and_then(|state| follows.next(state)) {
            let Some(id) = write(&event) else { break };
            self.take(Record { id, at: now, event });
            count += 1;
        }
        Ok(count)
    }

    /// Adds a fact behind all others; says whether it follows.
    fn go_on(&mut self, record: Record) -> bool {
        match (&mut self.state, &record.event) {
            (state @ None, RolloutEvent::Planned(planned)) if self.records.is_empty() => {
                *state = Some(Rollout::new(planned));
            }
            (Some(state), event) => {
                if state.evolve(event).is_err() {
                    return false;
                }
            }
            (None, _) => return false,
        }
        self.records.push(record);
        true
    }

    fn fold_anew(&mut self) {
        self.turns += 1;
        self.state = None;
        self.records.clear();
        for part in self.parts.values() {
            if self.records.len() < part.after {
                return; // What it went on from has not arrived.
            }
            self.records.truncate(part.after);
            self.records.extend(part.records.iter().cloned());
        }
        let events = self.records.iter().map(|record| &record.event);
        self.state = Rollout::replay(events).ok().flatten();
    }

    /// Returns the state; `None` while facts are missing, or do not follow.
    pub fn state(&self) -> Option<&Rollout> {
        self.state.as_ref()
    }

    /// Returns when the last fact was told, in force or not; `None` where none is of use.
    pub fn last_told(&self) -> Option<UnixMicros> {
        let last = self.parts.values().filter_map(|part| part.records.last());
        last.map(|record| record.at).max()
    }

    /// Returns the facts in force.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Counts how often facts were taken out of force: what was derived from them has to be derived anew.
    pub fn turns(&self) -> u32 {
        self.turns
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Run, by_name, make, node};
    use super::super::{Input, NodeReport};
    use super::*;
    use crate::domain::id::{EpochId, EventId, Seq};
    use crate::domain::time::UnixMicros;

    fn records(origin: &str, events: &[RolloutEvent]) -> Vec<Record> {
        let id = |seq| EventId { origin: node(origin), epoch: EpochId::new(1, 1), seq: Seq(seq) };
        let records = (1..).zip(events);
        records
            .map(|(seq, event)| Record { id: id(seq), at: UnixMicros(seq), event: event.clone() })
            .collect()
    }

    /// Two leaders of one rollout, the first of which wrote on for a while after the second had begun.
    fn told() -> (Vec<Record>, Vec<Record>, Run) {
        let mut first = Run::of(make(3, None, None, None, by_name()));
        let begun = first.facts.len();
        let mut second = first.clone();
        first.report("n1", NodeReport::Unreachable);
        assert!(first.facts.len() > begun);
        let lead = Input::TakenOver { controller: node("c2"), term: 2, grace_ms: 0 };
        second.input(&lead).unwrap();
        second.healthy("n1");
        let (c1, c2) = (records("c1", &first.facts), records("c2", &second.facts[begun..]));
        (c1, c2, second)
    }

    #[test]
    fn the_same_is_in_force_in_whatever_order_the_logs_arrive() {
        let (c1, c2, truth) = told();
        let orders = [
            c1.iter().chain(&c2).cloned().collect::<Vec<_>>(),
            c2.iter().chain(&c1).cloned().collect(),
            c1[..2].iter().chain(&c2).chain(&c1[2..]).cloned().collect(),
        ];
        for records in orders {
            let mut story = Story::default();
            records.into_iter().for_each(|record| story.take(record));
            assert_eq!(story.state(), Some(&truth.rollout));
            assert_eq!(story.records().len(), truth.facts.len());
        }
    }

    #[test]
    fn what_went_on_from_facts_that_are_not_here_is_no_state_yet() {
        let (c1, c2, _) = told();
        let mut story = Story::default();
        c2.into_iter().for_each(|record| story.take(record));
        assert_eq!(story.state(), None);
        story.take(c1[0].clone());
        assert_eq!(story.state(), None);
    }
}
