//! The operations that the keeper has not answered: each with its owner, and all with a deadline.
//!
//! The keeper answers in the order of the questions, so an answer that is passed over is lost, and silence is counted
//! from the last answer. Either way the connection is given up and the next meeting tells what became of everything.
//! What the keeper refused and the core relies on is asked for again, ever more rarely.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{debug, warn};

use super::clock;
use super::hands::Spawning;
use super::task::{Agent, Deadline};
use crate::domain::effect::Hook;
use crate::domain::id::{CheckName, InstanceId, IntentId, RunId};
use crate::domain::input::Delivery;
use crate::domain::instance::State;
use crate::ipc::keeper::{Answer, OperationNumber, Refusal, RunName, SlotName, Verb};
use crate::retry;

/// How long the keeper may be silent while something is asked of it. It answers in microseconds; starts of processes on
/// a machine without memory take longer.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What a person is told of: an operation that takes longer than any does.
const SLOW: Duration = Duration::from_secs(2);

/// The pause before something that was refused is asked for again: the first, and the longest.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(10);

/// What an operation under way is for, so that its answer finds its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// The start of a run.
    Spawn(InstanceId, RunId),
    /// The start of a hook.
    Hook(InstanceId, RunId, Hook),
    /// The start of a check.
    Check(InstanceId, RunId, CheckName),
    /// The start of an action.
    Action(IntentId),
    /// A signal that an intent asked for.
    Signal(IntentId, InstanceId),
    /// The signal of a stop, which has a deadline and a next phase of its own.
    Stop(InstanceId, RunId),
    /// The end of all that is left of a run.
    KillTree(RunName),
    /// A page of runs.
    List,
    /// The descriptors of a slot.
    Descriptors(SlotName),
    /// That a new keeper takes back what belongs to a slot.
    GiveBack(SlotName),
    /// That a slot is no more.
    CloseSlot(SlotName),
    /// That nobody is kept waiting at the sockets of a slot.
    CloseSockets(SlotName),
    /// That facts are forgotten; the next acknowledgement says it as well.
    Acknowledge,
    /// The end of the keeper, which this agent is not to outlive.
    Shutdown,
}

/// What is asked for again when it was refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Again {
    /// [`Asked::Descriptors`].
    Descriptors(SlotName),
    /// [`Asked::GiveBack`].
    GiveBack(SlotName),
    /// [`Asked::KillTree`].
    KillTree(RunName),
}

impl Asked {
    fn again(&self) -> Option<Again> {
        match self {
            Self::Descriptors(slot) => Some(Again::Descriptors(slot.clone())),
            Self::GiveBack(slot) => Some(Again::GiveBack(slot.clone())),
            Self::KillTree(run) => Some(Again::KillTree(run.clone())),
            Self::Spawn(..)
            | Self::Hook(..)
            | Self::Check(..)
            | Self::Action(_)
            | Self::Signal(..)
            | Self::Stop(..)
            | Self::List
            | Self::CloseSlot(_)
            | Self::CloseSockets(_)
            | Self::Acknowledge
            | Self::Shutdown => None,
        }
    }
}

/// What is under way at one connection to a keeper.
#[derive(Debug, Default)]
pub(super) struct Pending {
    asked: BTreeMap<OperationNumber, (Asked, Option<Spawning>)>,
    /// Starts that were answered and whose fact has not come, and since when.
    untold: BTreeMap<RunName, u64>,
    /// When the keeper was last heard, or asked after nothing was under way, on the boot-time clock.
    since_ns: u64,
    /// Whether the keeper was told to end and has not answered; known beyond the connection.
    is_ending: bool,
    /// What was refused: how often, and why the last time.
    refused: BTreeMap<Again, (u32, String)>,
}

impl Pending {
    /// Enters an operation that was sent.
    pub(super) fn enter(
        &mut self,
        number: OperationNumber,
        asked: Asked,
        spawning: Option<Spawning>,
        now_ns: u64,
    ) {
        if self.due().is_none() {
            self.since_ns = now_ns;
        }
        self.is_ending |= asked == Asked::Shutdown;
        self.asked.insert(number, (asked, spawning));
    }

    /// Takes an operation that was answered, and says whether one before it was passed over.
    pub(super) fn take(
        &mut self,
        number: OperationNumber,
        answer: &Answer,
        now_ns: u64,
    ) -> (Option<(Asked, Option<Spawning>)>, bool) {
        self.since_ns = now_ns;
        let passed_over = self.asked.first_key_value().is_some_and(|(first, _)| *first < number);
        let taken = self.asked.remove(&number);
        self.is_ending &= !matches!(taken, Some((Asked::Shutdown, _)));
        if let (Some((_, Some(spawning))), Answer::Spawned { .. }) = (&taken, answer) {
            self.untold.insert(spawning.run.clone(), now_ns);
        }
        (taken, passed_over)
    }

    /// A fact about a run came.
    pub(super) fn told_of(&mut self, run: &RunName) {
        self.untold.remove(run);
    }

    /// Returns when the keeper has been silent for too long.
    fn due(&self) -> Option<u64> {
        let untold = self.untold.values().min().copied();
        let asked = (!self.asked.is_empty()).then_some(self.since_ns);
        let since = [untold, asked].into_iter().flatten().min();
        since.map(|since| since.saturating_add(SILENCE_MAX.as_nanos() as u64))
    }

    /// The connection is gone: nothing more is waited for until there is another.
    pub(super) fn quieten(&mut self) {
        *self = Self { is_ending: self.is_ending, ..Self::default() };
    }

    /// Says whether the start of a hook, a check or an action was asked for and not answered.
    pub(super) fn has_errand(&self) -> bool {
        let is_errand =
            |asked: &Asked| matches!(asked, Asked::Hook(..) | Asked::Check(..) | Asked::Action(_));
        self.asked.values().any(|(asked, _)| is_errand(asked))
    }

    /// Says whether the keeper was told to end and has not answered.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending
    }

    /// Counts a refusal and returns how long to wait, before a random part of the same length.
    fn refuse(&mut self, again: Again, why: String) -> Duration {
        let entry = self.refused.entry(again).or_default();
        let wait = retry::doubled(AGAIN_FIRST, AGAIN_MAX, entry.0);
        *entry = (entry.0.saturating_add(1), why);
        wait
    }
}

impl Agent {
    /// Says what it means that the keeper did not do what it was asked for, where no input of the core says it.
    pub(super) fn refused(&mut self, asked: Asked, refusal: Refusal) {
        match (asked.again(), refusal) {
            (Some(again), refusal @ (Refusal::Kernel { .. } | Refusal::Full)) => {
                self.later(again, &refusal.to_string());
            }
            (_, refusal) if asked == Asked::List => {
                warn!(%refusal, "the keeper does not say what it has");
                self.hands.disconnect();
            }
            (_, refusal) => warn!(?asked, %refusal, "the keeper refused"),
        }
    }

    /// Has something asked for again after a while.
    pub(super) fn later(&mut self, again: Again, why: &str) {
        let wait = self.hands.pending.refuse(again.clone(), why.to_owned());
        let wait = retry::drawn(wait..=wait * 2);
        warn!(?again, why, ?wait, "asked again later");
        let due = clock::now().mono_ns + wait.as_nanos() as u64;
        self.timers.set(Deadline::Again(again), due);
    }

    /// What was asked for was done.
    pub(super) fn settled(&mut self, asked: &Asked) {
        if let Some(again) = asked.again() {
            self.hands.pending.refused.remove(&again);
            self.timers.cancel(&Deadline::Again(again));
        }
        debug!(?asked, "the keeper answered");
    }

    /// Asks again, unless a meeting came in between: that has asked already.
    pub(super) fn ask_again(&mut self, again: &Again) {
        if !self.hands.met() || !self.hands.pending.refused.contains_key(again) {
            return;
        }
        match again {
            Again::Descriptors(slot) => {
                let verb = Verb::TakeDescriptors { slot: slot.clone() };
                self.hands.ask(Asked::Descriptors(slot.clone()), verb);
            }
            Again::GiveBack(slot) => self.hands.give_back(slot),
            Again::KillTree(run) => {
                let verb = Verb::KillTree { run: run.clone() };
                self.hands.ask(Asked::KillTree(run.clone()), verb);
            }
        }
    }

    /// Sees to it that a silence of the keeper ends. Set once for many operations: it is looked at when it rings.
    pub(super) fn await_keeper(&mut self) {
        if let Some(due) = self.hands.pending.due()
            && !self.timers.has(&Deadline::Keeper)
        {
            self.timers.set(Deadline::Keeper, due);
        }
    }

    pub(super) fn keeper_is_late(&mut self) {
        if self.hands.pending.due().is_some_and(|due| due <= clock::now().mono_ns) {
            warn!("the keeper has not answered for {} s", SILENCE_MAX.as_secs());
            self.hands.disconnect();
        }
    }

    /// Says in words what an instance waits for of the keeper, when that takes longer than it should.
    pub(super) fn awaits(&self, instance: &InstanceId, state: &State) -> Option<String> {
        let slot = super::names::slot(instance);
        let refused = &self.hands.pending.refused;
        let why = |again: Again| refused.get(&again).map(|(_, why)| why);
        if let Some(why) =
            why(Again::Descriptors(slot.clone())).or_else(|| why(Again::GiveBack(slot)))
        {
            return Some(format!("its output is not read: {why}; asked again"));
        }
        if let Some(run) = state.run()
            && let Some(why) = why(Again::KillTree(super::names::run(instance, run)))
        {
            return Some(format!("its processes could not be killed: {why}; asked again"));
        }
        if !matches!(state, State::Spawning { .. }) {
            return None;
        }
        if !self.hands.met() {
            return Some("waits for the keeper, which is away".to_owned());
        }
        let slow = (SILENCE_MAX - SLOW).as_nanos() as u64;
        let due = self.hands.pending.due()?.saturating_sub(slow);
        (due <= clock::now().mono_ns).then(|| "waits for the keeper's answer".to_owned())
    }
}

/// Says what a signal came to that never left.
pub(super) fn delivery_of(answer: &Answer) -> Delivery {
    match answer {
        Answer::Done => Delivery::Delivered,
        Answer::Refused(Refusal::NoSuchRun) => Delivery::Gone,
        Answer::Refused(Refusal::Kernel { errno, .. }) => Delivery::Refused(*errno),
        _ => Delivery::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE_NS: u64 = SILENCE_MAX.as_nanos() as u64;

    fn run(number: u32) -> RunName {
        format!("web.0.{number}").parse().unwrap()
    }

    fn spawning(number: u32) -> Option<Spawning> {
        let slot = "web.0".parse().unwrap();
        Some(Spawning { run: run(number), slot, memo: Default::default() })
    }

    fn spawned() -> Answer {
        Answer::Spawned { pid: 1, inode: 0, channels: Vec::new() }
    }

    #[test]
    fn silence_is_counted_from_the_last_answer_and_only_while_something_is_asked() {
        let mut pending = Pending::default();
        assert_eq!(pending.due(), None);
        pending.enter(OperationNumber(1), Asked::List, None, 5);
        pending.enter(OperationNumber(2), Asked::Acknowledge, None, 9);
        assert_eq!(pending.due(), Some(5 + SILENCE_NS));
        pending.take(OperationNumber(1), &Answer::Done, 20);
        assert_eq!(pending.due(), Some(20 + SILENCE_NS));
        pending.take(OperationNumber(2), &Answer::Done, 30);
        assert_eq!(pending.due(), None);
    }

    #[test]
    fn a_start_is_under_way_until_its_fact_has_come() {
        let mut pending = Pending::default();
        let asked = Asked::KillTree(run(1));
        pending.enter(OperationNumber(1), asked, spawning(1), 5);
        let (taken, passed_over) = pending.take(OperationNumber(1), &spawned(), 7);
        assert!(taken.is_some() && !passed_over);
        assert_eq!(pending.due(), Some(7 + SILENCE_NS));
        pending.told_of(&run(1));
        assert_eq!(pending.due(), None);
    }

    #[test]
    fn without_a_connection_nothing_is_waited_for() {
        let mut pending = Pending::default();
        pending.enter(OperationNumber(1), Asked::Shutdown, None, 5);
        pending.quieten();
        assert!(pending.is_ending() && pending.due().is_none());
    }

    #[test]
    fn an_answer_that_is_passed_over_is_lost() {
        let mut pending = Pending::default();
        pending.enter(OperationNumber(1), Asked::KillTree(run(1)), None, 5);
        pending.enter(OperationNumber(2), Asked::Acknowledge, None, 5);
        assert!(pending.take(OperationNumber(2), &Answer::Done, 6).1);
    }

    #[test]
    fn what_is_refused_is_asked_for_ever_more_rarely_but_never_given_up() {
        let mut pending = Pending::default();
        let again = Again::Descriptors("web.0".parse().unwrap());
        let waits: Vec<Duration> =
            (0..40).map(|_| pending.refuse(again.clone(), String::new())).collect();
        assert_eq!(waits[..3], [50, 100, 200].map(Duration::from_millis));
        assert_eq!(waits[39], AGAIN_MAX);
    }
}
