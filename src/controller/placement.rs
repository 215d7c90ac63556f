//! Where services are to be by the wishes that stand: nodes that join, come back or have other labels get them or lose
//! them, some at a time. What has to move follows from the logs alone.

use std::collections::{BTreeMap, BTreeSet};

use tracing::warn;

use super::rollouts::Driven;
use super::task::Controller;
use crate::domain::controller::{PlacementHeld, PlacementOrdered};
use crate::domain::event::{Context, Event};
use crate::domain::id::{IntentId, NodeId, ServiceId};
use crate::domain::release::Step;
use crate::domain::rollout::view::PlacementView;
use crate::domain::rollout::{Held, Known, Moves, Place, Verdict, Wished};
use crate::head::clock;

/// How many ticks lie between two looks at a rollout that is over and has nothing to order.
const LOOK_TICKS: u64 = 5;

/// How many ticks lie between an order that a node refused and the next one: a grant or an artifact may be there by then.
const REFUSED_TICKS: u64 = 120;

/// What this controller knows of placement beside the logs. Another one finds the same again.
#[derive(Debug, Default)]
pub(super) struct Placements {
    /// What moves, by the wish that it follows from.
    last: BTreeMap<IntentId, Moves>,
    /// Orders that nodes refused, with their words, and at which tick.
    refused: BTreeMap<(IntentId, NodeId), (String, u64)>,
    /// Rollouts that are over and had nothing to order when they were looked at last.
    at_rest: BTreeSet<IntentId>,
}

impl Placements {
    /// Forgets what was found in an earlier term.
    pub(super) fn begin_anew(&mut self) {
        *self = Self::default();
    }

    /// Forgets a rollout that is remembered no more.
    pub(super) fn forget(&mut self, intent: IntentId) {
        self.last.remove(&intent);
        self.at_rest.remove(&intent);
    }

    /// Takes in whether a rollout that is over has something to order.
    pub(super) fn looked_at(&mut self, intent: IntentId, has_orders: bool) {
        match has_orders {
            true => self.at_rest.remove(&intent),
            false => self.at_rest.insert(intent),
        };
    }

    /// Says whether it is time to look at a rollout that is over: each look is one at all nodes.
    pub(super) fn is_due(&self, intent: IntentId, tick: u64) -> bool {
        tick.is_multiple_of(LOOK_TICKS) || !self.at_rest.contains(&intent)
    }

    /// A node does not take the order of a rollout that is over.
    pub(super) fn refuse(&mut self, (intent, node): (IntentId, NodeId), why: String, tick: u64) {
        self.refused.insert((intent, node), (why, tick));
    }

    /// Lets nodes be asked again that refused long enough ago.
    pub(super) fn forgive(&mut self, tick: u64) {
        self.refused.retain(|_, (_, at)| at.saturating_add(REFUSED_TICKS) > tick);
    }

    /// Says whether a node did not take the order of a rollout that is over.
    pub(super) fn is_refused(&self, intent: IntentId, node: &NodeId) -> bool {
        self.refused.contains_key(&(intent, node.clone()))
    }

    /// Returns what moves by a wish, for whoever looks at its rollout.
    pub(super) fn view(&self, intent: IntentId) -> Option<PlacementView> {
        let moves = self.last.get(&intent).filter(|it| **it != Moves::default())?;
        Some(PlacementView {
            gaining: moves.gain.clone(),
            losing: moves.lose.clone(),
            waiting: moves.waiting.clone(),
            held: moves.held.as_ref().map(|held| self.words(intent, held)),
        })
    }

    fn words(&self, intent: IntentId, held: &Held) -> String {
        let list = |nodes: &[NodeId]| {
            nodes.iter().map(NodeId::as_str).take(16).collect::<Vec<_>>().join(", ")
        };
        match held {
            Held::NothingMatches => {
                "its selection matches no node, so it is taken from nowhere".to_owned()
            }
            Held::Failed(nodes) => {
                let refused = nodes.iter().find_map(|node| {
                    let (why, _) = self.refused.get(&(intent, node.clone()))?;
                    Some(format!("; {node}: {why}"))
                });
                let refused = refused.unwrap_or_default();
                format!("it did not become healthy on {}{refused}", list(nodes))
            }
            Held::Away(nodes) => format!(
                "{} are to have it and are away: before that it is taken from nowhere",
                list(nodes)
            ),
        }
    }
}

impl Controller {
    /// Returns the orders by which a service gets to where a wish that succeeded wants it.
    pub(super) fn placed(&mut self, intent: IntentId) -> BTreeMap<(NodeId, Step), u16> {
        let Some((service, moves)) = self.moves(intent) else {
            self.placements.last.remove(&intent);
            return BTreeMap::new();
        };
        self.tell_moves(intent, &service, &moves);
        // Never the first to try something.
        let orders = moves.orders().map(|(node, step)| ((node.clone(), step), 2)).collect();
        self.placements.last.insert(intent, moves);
        orders
    }

    /// Says what moves; nothing while another rollout of the service is under way, or a wish is not known.
    fn moves(&mut self, intent: IntentId) -> Option<(ServiceId, Moves)> {
        let state = self.rollouts.all.get(&intent).and_then(Driven::on_disk)?;
        let (service, parameters) = (state.plan().service.clone(), state.plan().parameters.clone());
        let mut stand = Vec::new();
        for (other, state) in self.rollouts.of_service(&service) {
            if state.verdict()? == Verdict::Succeeded && !state.plan().configures {
                stand.push(other);
            }
        }
        let wishes: Option<Vec<Wished>> = stand.iter().map(|it| self.wished(*it)).collect();
        let chain = Wished::chain(wishes?);
        let of = chain.iter().position(|wish| wish.intent == intent)?;
        let state = self.rollouts.all.get(&intent).and_then(Driven::on_disk)?;
        let nodes = self.authority.enrolled().map(|(node, labels)| {
            let folded = self.projection.node(node);
            let known = Known {
                labels,
                releases: folded.and_then(|it| it.releases().get(&service)),
                is_there: folded.is_some_and(|it| it.services().contains_key(&service)),
                is_away: self.projection.is_lost(node),
                is_read: folded.is_some_and(|it| it.head().trust.is_some()) && self.is_read(node),
                target: state.node(node),
            };
            (node, known)
        });
        let mut places = Wished::places(&chain, of, nodes);
        for (of, node) in self.placements.refused.keys() {
            if let Some(place) = places.get_mut(node).filter(|_| *of == intent) {
                *place = Place::Failed;
            }
        }
        Some((service, Moves::of(&places, &parameters)))
    }

    /// Returns what the wish behind a rollout says of nodes.
    fn wished(&mut self, intent: IntentId) -> Option<Wished> {
        let driven = self.rollouts.all.get_mut(&intent)?;
        let wished = driven.wished(intent, &self.wishes).cloned();
        if wished.is_none() {
            self.ask_for_wish(intent);
        }
        wished
    }

    /// Writes down what begins to move, and why nothing does.
    fn tell_moves(&mut self, rollout: IntentId, service: &ServiceId, moves: &Moves) {
        let before = self.placements.last.get(&rollout).cloned().unwrap_or_default();
        let select = self.rollouts.all.get(&rollout).and_then(|it| it.wished.as_ref());
        let select = select.map(|wish| wish.select.to_string()).unwrap_or_default();
        let mut events = Vec::new();
        for (node, step) in moves.orders() {
            let known = self.projection.node(node).and_then(|it| it.releases().get(service));
            let is_begun = known.is_some_and(|known| match step {
                Step::Leave => known.left == Some(rollout),
                Step::Apply | Step::Return => {
                    known.trial.as_ref().is_some_and(|trial| trial.intent == rollout)
                }
            });
            let was_told = before.orders().any(|it| it == (node, step));
            if is_begun || was_told {
                continue;
            }
            let why = match step {
                Step::Leave => format!("`{select}` does not mean it any more"),
                Step::Apply | Step::Return => format!("`{select}` means it"),
            };
            let body = PlacementOrdered { rollout, node: node.clone(), step, why };
            events.push(Event::PlacementOrdered(body));
        }
        if let Some(held) = moves.held.as_ref().filter(|held| before.held.as_ref() != Some(held)) {
            let why = self.placements.words(rollout, held);
            warn!(%service, why, "nothing more moves");
            events.push(Event::PlacementHeld(PlacementHeld { rollout, why }));
        }
        if !events.is_empty() {
            let context = Context::service(service);
            let facts = events.into_iter().map(|event| (context.clone(), event)).collect();
            self.recorder.record(clock::now(), facts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_and_has_nothing_to_order_is_not_looked_at_each_second() {
        let intent = IntentId([7; 16]);
        let mut placements = Placements::default();
        let looks = |placements: &Placements| {
            (0..60).filter(|tick| placements.is_due(intent, *tick)).count()
        };
        assert_eq!(looks(&placements), 60);
        placements.looked_at(intent, false);
        assert_eq!(looks(&placements), 12);
        placements.looked_at(intent, true);
        assert_eq!(looks(&placements), 60);
    }
}
