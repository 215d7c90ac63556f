//! The targets of a rollout, and what is asked of all of them after each fact: how many are how far, and whose deadline
//! is the next one.
//!
//! Both follow the change of a single target, so a fact about a node costs the same in a fleet of three and of ten
//! thousand. Nothing here is more than what the targets say: two that are equal in those are equal.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use super::Step;
use super::state::NodeState;
use crate::domain::id::NodeId;
use crate::domain::time::UnixMicros;

/// One target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The wave's number on the way forward, from 1.
    pub(super) wave: u16,
    /// With whom it is waited for: the way that it went last, and the wave's number on that way.
    pub(super) with: Turn,
    pub(super) state: NodeState,
    /// When the rollout goes on without it; present while it is away.
    pub(super) away: Option<UnixMicros>,
    /// Whether its failure counts: not when it was not healthy before.
    pub(super) counts: bool,
}

/// A wave of the way forward or of the way back, by its number.
pub(super) type Turn = (Step, u16);

/// How many of some targets are how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Those with an order and without a verdict.
    pub(super) under_way: usize,
    pub(super) healthy: usize,
    pub(super) failed: usize,
    /// Those of the failed that count against `max_failures`.
    pub(super) failed_counted: usize,
    pub(super) lost: usize,
    /// Those of the lost that count against `max_unreachable`.
    pub(super) lost_counted: usize,
}

/// Whose deadlines are looked at together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Awaited {
    /// Those under way, whatever else happens.
    UnderWay,
    /// Those that are healthy and away, as long as their wave is not behind.
    Baking(u16),
}

/// All targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    all: BTreeMap<NodeId, Member>,
    whole: Tally,
    turns: BTreeMap<Turn, Tally>,
    deadlines: BTreeMap<Awaited, BTreeSet<(UnixMicros, NodeId)>>,
}

impl Deref for Members {
    type Target = BTreeMap<NodeId, Member>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl FromIterator<(NodeId, Member)> for Members {
    fn from_iter<T: IntoIterator<Item = (NodeId, Member)>>(members: T) -> Self {
        let mut all = Self::default();
        for (node, member) in members {
            all.count(&node, &member, true);
            if let Some(before) = all.all.insert(node.clone(), member) {
                all.count(&node, &before, false);
            }
        }
        all
    }
}

impl Members {
    /// Changes what is known of a target; `None` when it is none.
    pub(super) fn change(&mut self, node: &NodeId, change: impl FnOnce(&mut Member)) -> Option<()> {
        let member = self.all.get_mut(node)?;
        let before = member.clone();
        change(member);
        let after = member.clone();
        if before != after {
            self.count(node, &before, false);
            self.count(node, &after, true);
        }
        Some(())
    }

    /// Puts off every deadline that is earlier than `grace_until`.
    pub(super) fn put_off(&mut self, grace_until: UnixMicros) {
        let mut all = std::mem::take(&mut self.all);
        all.values_mut().for_each(|member| member.put_off(grace_until));
        *self = all.into_iter().collect();
    }

    /// Counts all targets.
    pub(super) fn tally(&self) -> Tally {
        self.whole
    }

    /// Counts those that are waited for together.
    pub(super) fn tally_of(&self, turn: Turn) -> Tally {
        self.turns.get(&turn).copied().unwrap_or_default()
    }

    /// Returns the next deadline and whose it is, of those under way and those that are healthy in the wave `baking`.
    pub(super) fn next_deadline(&self, baking: Option<u16>) -> Option<&(UnixMicros, NodeId)> {
        let first = |awaited| self.deadlines.get(&awaited).and_then(BTreeSet::first);
        let baking = baking.and_then(|wave| first(Awaited::Baking(wave)));
        first(Awaited::UnderWay).into_iter().chain(baking).min()
    }

    /// Counts a target in, or out.
    fn count(&mut self, node: &NodeId, member: &Member, is_in: bool) {
        self.whole.count(member.state, is_in);
        let turn = self.turns.entry(member.with).or_default();
        turn.count(member.state, is_in);
        if *turn == Tally::default() {
            self.turns.remove(&member.with);
        }
        let Some((awaited, until)) = member.deadline() else { return };
        let deadlines = self.deadlines.entry(awaited).or_default();
        match is_in {
            true => deadlines.insert((until, node.clone())),
            false => deadlines.remove(&(until, node.clone())),
        };
        if deadlines.is_empty() {
            self.deadlines.remove(&awaited);
        }
    }
}

impl Tally {
    fn count(&mut self, state: NodeState, is_in: bool) {
        let add = |count: &mut usize| *count = if is_in { *count + 1 } else { *count - 1 };
        match state {
            NodeState::Ordered | NodeState::Started { .. } | NodeState::Returning { .. } => {
                add(&mut self.under_way);
            }
            NodeState::Healthy => add(&mut self.healthy),
            NodeState::Failed { counted, .. } => {
                add(&mut self.failed);
                if counted {
                    add(&mut self.failed_counted);
                }
            }
            NodeState::Lost { counted } => {
                add(&mut self.lost);
                if counted {
                    add(&mut self.lost_counted);
                }
            }
            NodeState::NotStarted | NodeState::Returned | NodeState::ReturnFailed => {}
        }
    }
}

impl Member {
    /// Returns when the rollout goes on without it, or takes it as failed.
    fn deadline(&self) -> Option<(Awaited, UnixMicros)> {
        match (self.away, self.state) {
            (Some(until), state) if state.is_under_way() => Some((Awaited::UnderWay, until)),
            (Some(until), NodeState::Healthy) => Some((Awaited::Baking(self.wave), until)),
            (None, NodeState::Started { until } | NodeState::Returning { until }) => {
                Some((Awaited::UnderWay, until))
            }
            _ => None,
        }
    }

    /// Puts off its deadlines, where they are earlier than `grace_until`.
    pub(super) fn put_off(&mut self, grace_until: UnixMicros) {
        self.away = self.away.map(|until| until.max(grace_until));
        if let NodeState::Started { until } | NodeState::Returning { until } = &mut self.state {
            *until = (*until).max(grace_until);
        }
    }
}
