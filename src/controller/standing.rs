//! Which rollouts are remembered: the last ones, and those whose wishes stand, to which nodes converge that were away or join
//! later.

use std::collections::{BTreeMap, BTreeSet};

use super::rollouts::{Driven, Rollouts};
use super::task::Controller;
use super::wishes::Wishes;
use crate::domain::id::{IntentId, ServiceId};
use crate::domain::rollout::{Rollout, Verdict, Wished};
use crate::domain::time::UnixMicros;

/// Rollouts that have ended and are remembered whole, for `smgr rollout show`.
const ENDED_MAX: usize = 64;

/// Wishes for one service that stand beside each other, each for other nodes: what is older is forgotten as it ages.
const STANDING_MAX: usize = 64;

/// How many ticks lie between two looks at what may be forgotten: each sorts all rollouts.
const FORGET_TICKS: u64 = 60;

/// What is known of the wishes for one service while those are looked for that stand.
#[derive(Debug, Default)]
struct Standing {
    all: BTreeSet<IntentId>,
    meant: BTreeSet<String>,
    /// One says where the service is at all: what is older does not count.
    is_whole: bool,
}

impl Controller {
    /// Forgets rollouts that nobody needs, whether this controller leads or not.
    pub(super) fn forget_rollouts(&mut self) {
        if !self.ticks.is_multiple_of(FORGET_TICKS) {
            return;
        }
        for intent in self.rollouts.forget(&self.wishes) {
            self.placements.forget(intent);
            self.orders.forget(intent);
        }
    }
}

impl Rollouts {
    /// Forgets the oldest that have ended, but for those whose wishes stand. Returns which.
    fn forget(&mut self, wishes: &Wishes) -> Vec<IntentId> {
        let ended = self.all.iter().filter(|(_, it)| it.is_over());
        let at = |it: &Driven| it.story.records().last().map(|record| record.at);
        let mut ended: Vec<_> = ended.map(|(intent, it)| (at(it), *intent)).collect();
        let mut over = self.without_beginning();
        let excess = ended.len().saturating_sub(ENDED_MAX);
        if excess > 0 {
            let stand = self.standing(wishes);
            ended.sort();
            let ended = ended.into_iter().map(|(_, intent)| intent);
            over.extend(ended.filter(|it| !stand.contains(it)).take(excess));
        }
        over.iter().for_each(|intent| drop(self.all.remove(intent)));
        over
    }

    /// Returns those of which nothing is known but late facts, as of one that was forgotten. The last of them that a
    /// beginning would complete are kept: it may be on its way in another controller's log.
    fn without_beginning(&self) -> Vec<IntentId> {
        let all = self.all.iter().filter(|(_, it)| it.story.state().is_none());
        let mut all: Vec<_> = all.map(|(intent, it)| (it.story.last_told(), *intent)).collect();
        all.sort();
        let excess = all.len().saturating_sub(ENDED_MAX);
        let is_over = |(at, (told, _)): &(usize, (Option<UnixMicros>, IntentId))| {
            told.is_none() || *at < excess
        };
        all.into_iter().enumerate().filter(is_over).map(|(_, (_, intent))| intent).collect()
    }

    /// Returns those to which nodes converge that were away or join later: the last of each service, and of those before it
    /// that succeeded the last for each selection, back to one that says where the service is at all.
    fn standing(&mut self, wishes: &Wishes) -> BTreeSet<IntentId> {
        let mut newest: Vec<_> = self
            .all
            .iter_mut()
            .filter_map(|(intent, driven)| {
                let plan = driven.story.state()?.plan();
                let of = (plan.service.clone(), plan.configures);
                let generation = plan.generation;
                Some((std::cmp::Reverse(generation), of, *intent, driven))
            })
            .collect();
        newest.sort_by_key(|(generation, _, intent, _)| (*generation, *intent));
        let mut stand: BTreeMap<(ServiceId, bool), Standing> = BTreeMap::new();
        for (_, of, intent, driven) in newest {
            let known = stand.entry(of.clone()).or_default();
            let is_last = known.all.is_empty();
            let verdict = driven.on_disk().and_then(Rollout::verdict);
            let has_succeeded = verdict == Some(Verdict::Succeeded);
            let counts = has_succeeded && !known.is_whole && known.all.len() < STANDING_MAX;
            let is_new = counts && known.meant.insert(driven.means(intent, of.1, wishes));
            known.is_whole |= has_succeeded && driven.wished.as_ref().is_some_and(Wished::is_whole);
            if is_last || is_new {
                known.all.insert(intent);
            }
        }
        stand.into_values().flat_map(|known| known.all).collect()
    }
}

impl Driven {
    /// Returns which nodes, and which keys there, the wish behind it is about, as text; a text of its own where it is not here.
    fn means(&mut self, intent: IntentId, configures: bool, wishes: &Wishes) -> String {
        let text = match configures {
            true => {
                let configured = self.configured(intent, wishes);
                configured.map(|(select, keys)| format!("{select} {keys:?}"))
            }
            false => self.wished(intent, wishes).map(|wished| wished.select.to_string()),
        };
        text.unwrap_or_else(|| intent.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::{Context, Event};
    use crate::domain::id::{BootId, Digest, EpochId, EventId, Generation, NodeId, Seq};
    use crate::domain::rollout::view::Record;
    use crate::domain::rollout::{
        Command, Input, Opening, Parameters, Plan, PlanRequest, ReleaseId, RolloutEvent,
        RolloutFact, Story, TakenOver, Why,
    };
    use crate::domain::selector::Roster;
    use crate::domain::time::Now;
    use crate::head::folder::StateFolder;
    use crate::wire::parts;
    use crate::wire::payload::{Body, EventRecord};

    fn leader() -> NodeId {
        "c2".parse().unwrap()
    }

    /// Returns the facts of a rollout that gave way to the next one.
    fn superseded(number: u8) -> Vec<RolloutEvent> {
        let roster: Roster = [("n1".parse().unwrap(), BTreeMap::new())].into();
        let plan = Plan::new(&PlanRequest {
            intent: IntentId([number; 16]),
            service: "web".parse().unwrap(),
            generation: Generation(2 * u64::from(number)),
            release: ReleaseId(Digest([number; 32])),
            back_to: None,
            emergency: None,
            retry: None,
            targets: &roster.keys().cloned().collect(),
            roster: &roster,
            roster_digest: Digest([0; 32]),
            away: &BTreeSet::new(),
            is_new: false,
            parameters: &Parameters::default(),
        });
        let opening = Opening {
            plan: plan.unwrap(),
            by: None,
            reason: String::new(),
            origins: BTreeMap::new(),
            before: BTreeMap::new(),
            controller: leader(),
            term: 1,
        };
        let mut facts = Rollout::open(opening, UnixMicros(1));
        let mut story = Story::default();
        let id = |seq: usize| EventId {
            origin: leader(),
            epoch: EpochId::new(1, 1),
            seq: Seq(seq as u64),
        };
        for (seq, event) in facts.iter().enumerate() {
            story.take(Record { id: id(seq), at: UnixMicros(1), event: event.clone() });
        }
        let with = IntentId([number + 1; 16]);
        let input = Input::Command { intent: with, by: None, command: Command::Supersede { with } };
        let end = |event: &RolloutEvent| {
            facts.push(event.clone());
            Some(id(facts.len()))
        };
        story.decide(UnixMicros(2), &input, end).unwrap();
        facts
    }

    /// Takes facts of a rollout in, as they come from the log of its leader.
    fn take(rollouts: &mut Rollouts, seq: &mut u64, number: u8, facts: Vec<RolloutEvent>) {
        for event in facts {
            let rollout = IntentId([number; 16]);
            for part in parts::cut(RolloutFact { rollout, event }).unwrap() {
                *seq += 1;
                let id = EventId { origin: leader(), epoch: EpochId::new(1, 1), seq: Seq(*seq) };
                let now = Now { at: UnixMicros(*seq), mono_ns: 1 };
                let event = Event::Rollout(Box::new(part));
                let context = Context::default();
                let record = EventRecord::of(id, now, BootId([1; 16]), &context, &event);
                rollouts.fact(&"c1".parse().unwrap(), &record, Body::Known(event));
            }
        }
    }

    #[test]
    fn late_facts_of_what_was_forgotten_are_forgotten_and_those_without_a_beginning_are_bounded() {
        let temp = tempfile::tempdir().unwrap();
        let wishes = Wishes::of(&StateFolder::new(temp.path())).unwrap();
        let mut rollouts = Rollouts::default();
        let mut seq = 0;
        let end = superseded(1).pop().unwrap();
        take(&mut rollouts, &mut seq, 1, vec![end]);
        assert_eq!(rollouts.all.len(), 1);
        assert_eq!(rollouts.forget(&wishes), [IntentId([1; 16])]);

        let over = |number: u8| TakenOver {
            cause: Why::Intent(IntentId([number; 16])),
            controller: leader(),
            term: 2,
            after: 5,
            grace_until: UnixMicros(1),
        };
        for number in 2..=70 {
            take(&mut rollouts, &mut seq, number, vec![RolloutEvent::TakenOver(over(number))]);
        }
        let oldest: Vec<_> = (2..=6).map(|number| IntentId([number; 16])).collect();
        assert_eq!(rollouts.forget(&wishes), oldest);
        assert_eq!(rollouts.all.len(), ENDED_MAX, "what they lack may be on its way");
    }

    #[test]
    fn one_that_only_stands_by_remembers_no_more_rollouts_than_the_one_that_led_them() {
        let temp = tempfile::tempdir().unwrap();
        let wishes = Wishes::of(&StateFolder::new(temp.path())).unwrap();
        let mut rollouts = Rollouts::default();
        let mut seq = 0;
        for number in 1..=70 {
            take(&mut rollouts, &mut seq, number, superseded(number));
        }
        assert_eq!(rollouts.all.len(), 70);
        let forgotten = rollouts.forget(&wishes);
        let oldest: Vec<_> = (1..=6).map(|number| IntentId([number; 16])).collect();
        assert_eq!(forgotten, oldest);
        assert_eq!(rollouts.all.len(), ENDED_MAX);
    }
}
