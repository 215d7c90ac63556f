//! The facts that the agent has not acknowledged, in order, and the results of its operations.

use std::collections::VecDeque;

use serde_bytes::ByteBuf;

use super::clock;
use crate::ipc::hello::Incarnation;
use crate::ipc::keeper::{Answer, Fact, FactNumber, OperationNumber, RunName, What};

/// The results that are kept for a repeat. An agent has fewer operations than this under way.
const RESULTS_MAX: usize = 4096;

/// Facts, until they are durable elsewhere. Bounded by the runs: each has three at most.
#[derive(Debug, Default)]
pub(super) struct Facts {
    kept: VecDeque<Fact>,
    last: u64,
    /// How many of the kept ones the present agent was sent.
    sent: usize,
}

impl Facts {
    /// Adds a fact.
    pub(super) fn push(&mut self, run: &RunName, memo: &ByteBuf, what: What) -> FactNumber {
        self.last += 1;
        let number = FactNumber(self.last);
        let (run, memo) = (run.clone(), memo.clone());
        self.kept.push_back(Fact { number, run, memo, at: clock::now(), what });
        number
    }

    /// Returns the first fact that the present agent was not sent.
    pub(super) fn next(&self) -> Option<&Fact> {
        self.kept.get(self.sent)
    }

    /// Notes that the fact of [`Facts::next`] was sent.
    pub(super) fn mark_sent(&mut self) {
        self.sent += 1;
    }

    /// Begins again: another agent knows nothing.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
    }

    /// Drops the facts up to `through`, as far as they were sent, and returns them.
    pub(super) fn acknowledge(&mut self, through: FactNumber) -> Vec<Fact> {
        let count = self.kept.iter().take(self.sent).take_while(|f| f.number <= through).count();
        self.sent -= count;
        self.kept.drain(..count).collect()
    }
}

/// The results of the operations of one life of the agent.
#[derive(Debug, Default)]
pub(super) struct Results {
    of: Option<Incarnation>,
    kept: VecDeque<(OperationNumber, Answer)>,
    dropped_through: Option<OperationNumber>,
}

/// What is known about the number of an operation.
#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    /// Nothing: it is the first time.
    First,
    /// Its result.
    Repeat(Box<Answer>),
    /// It may have been executed; its result is not kept any more.
    Forgotten,
}

impl Results {
    /// Begins with a life of the agent; the results of the same life are kept.
    pub(super) fn begin(&mut self, agent: Incarnation) {
        if self.of != Some(agent) {
            *self = Self { of: Some(agent), ..Self::default() };
        }
    }

    /// Looks a number up.
    pub(super) fn seen(&self, number: OperationNumber) -> Seen {
        // Numbers ascend, so nearly every one is above the last.
        let last = self.kept.back().map(|(last, _)| *last).max(self.dropped_through);
        if last < Some(number) {
            return Seen::First;
        }
        match self.kept.iter().rev().find(|(kept, _)| *kept == number) {
            Some((_, answer)) => Seen::Repeat(Box::new(answer.clone())),
            None if self.dropped_through >= Some(number) => Seen::Forgotten,
            None => Seen::First,
        }
    }

    /// Keeps a result. Readings are not kept: repeated, they may as well be read again.
    pub(super) fn keep(&mut self, number: OperationNumber, answer: &Answer) {
        if matches!(answer, Answer::Runs { .. } | Answer::Descriptors { .. }) {
            return;
        }
        if self.kept.len() == RESULTS_MAX
            && let Some((number, _)) = self.kept.pop_front()
        {
            self.dropped_through = self.dropped_through.max(Some(number));
        }
        self.kept.push_back((number, answer.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> RunName {
        "web.0.1".parse().unwrap()
    }

    #[test]
    fn facts_are_sent_again_until_they_are_acknowledged() {
        let mut facts = Facts::default();
        let first = facts.push(&run(), &ByteBuf::new(), What::TreeGone);
        let second = facts.push(&run(), &ByteBuf::new(), What::TreeGone);
        facts.mark_sent();
        facts.mark_sent();
        assert_eq!(facts.next(), None);
        facts.rewind();
        assert_eq!(facts.next().unwrap().number, first);
        facts.mark_sent();
        assert_eq!(facts.acknowledge(first).len(), 1);
        assert_eq!(facts.next().unwrap().number, second);
    }

    #[test]
    fn what_was_not_sent_cannot_be_acknowledged() {
        let mut facts = Facts::default();
        let number = facts.push(&run(), &ByteBuf::new(), What::TreeGone);
        assert!(facts.acknowledge(number).is_empty());
        assert!(facts.next().is_some());
    }

    #[test]
    fn a_repeat_gets_the_first_result_and_a_forgotten_number_is_never_the_first() {
        let mut results = Results::default();
        results.begin(Incarnation(1));
        for number in 1..=RESULTS_MAX as u64 + 1 {
            assert_eq!(results.seen(OperationNumber(number)), Seen::First);
            results.keep(OperationNumber(number), &Answer::Done);
        }
        assert_eq!(results.seen(OperationNumber(2)), Seen::Repeat(Box::new(Answer::Done)));
        assert_eq!(results.seen(OperationNumber(1)), Seen::Forgotten);
        results.begin(Incarnation(2));
        assert_eq!(results.seen(OperationNumber(1)), Seen::First);
    }
}
