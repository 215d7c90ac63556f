//! What is set for a part of the fleet: how far each node is with it, and those that come to it later.
//!
//! A node that has taken it says so in its log, and a service that starts anew by it has to be up again before the next
//! node's turn comes. All of it is read from the fold of the log.

use std::collections::BTreeMap;

use super::reports::word_of;
use super::rollouts::Driven;
use super::task::Controller;
use crate::domain::event::Outcome;
use crate::domain::id::{InstanceId, IntentId, NodeId, ServiceId};
use crate::domain::instance::State;
use crate::domain::release::Step;
use crate::domain::rollout::{Amount, Failure, Input, NodeReport, NodeState, Plan};
use crate::domain::seen::Progress;
use crate::domain::time::{Now, UnixMicros};

impl Controller {
    /// Lets rollouts of what was set take in how far their nodes are.
    pub(super) fn look_at_configured(&mut self, now: Now) {
        if self.leads().is_none() {
            return;
        }
        for intent in self.rollouts.open() {
            let state = self.rollouts.all.get(&intent).and_then(|it| it.story.state());
            let Some(state) = state.filter(|state| state.plan().configures) else { continue };
            let plan = state.plan();
            let news = plan.targets().filter_map(|node| {
                let reports = self.configured(plan, node, state.node(node)?);
                (!reports.is_empty()).then(|| (node.clone(), reports))
            });
            for (node, reports) in news.collect::<Vec<_>>() {
                for report in reports {
                    let input = Input::Node { node: node.clone(), event: None, report };
                    self.drive_on(now, intent, &input);
                }
            }
        }
    }

    /// Says what the log of a node tells of a wish that sets something.
    fn configured(&self, plan: &Plan, node: &NodeId, known: NodeState) -> Vec<NodeReport> {
        let generation = plan.generation;
        let is_begun = matches!(known, NodeState::Started { .. });
        // It is looked at each second, and most nodes are through or wait for their turn.
        if !known.is_under_way() && !matches!(known, NodeState::Lost { .. }) {
            return Vec::new();
        }
        let record = self.projection.node(node).and_then(|it| it.seen().get(&plan.intent));
        match record.map(|record| &record.progress) {
            Some(Progress::Executed { outcome: Outcome::Done { .. }, at })
                if let Some(failure) = self.broken(node, &plan.service, *at) =>
            {
                vec![NodeReport::Failed { generation, failure }]
            }
            Some(Progress::Executed { outcome: Outcome::Done { .. }, .. }) => {
                let begun = (!is_begun).then_some(NodeReport::Applied { generation });
                let healthy = NodeReport::Healthy {
                    generation,
                    release: plan.release,
                    running: None,
                    ready_ms: 0,
                    held_ms: 0,
                };
                let healthy = self.is_settled(node, &plan.service).then_some(healthy);
                begun.into_iter().chain(healthy).collect()
            }
            Some(Progress::Executed { outcome: Outcome::Failed { code, why, .. }, .. }) => {
                let failure = Failure { why: format!("[{code}] {why}"), ..Failure::of("refused") };
                vec![NodeReport::Failed { generation, failure }]
            }
            Some(Progress::Executed { outcome: Outcome::Unknown { why }, .. }) => {
                let failure = Failure { why: why.clone(), ..Failure::of("unknown") };
                vec![NodeReport::Failed { generation, failure }]
            }
            Some(Progress::Open(_)) | None => Vec::new(),
        }
    }

    /// Returns how a run ended that should be up, where one did since then.
    fn broken(&self, node: &NodeId, service: &ServiceId, since: UnixMicros) -> Option<Failure> {
        let known = self.projection.node(node).and_then(|it| it.services().get(service))?;
        let wanted = known.slots().filter(|(index, _)| known.wants(*index));
        let mut down =
            wanted.filter(|(_, it)| matches!(it.state, State::Backoff { .. } | State::Failed));
        down.find_map(|(index, slot)| {
            let last = slot.last.as_ref().filter(|last| last.at >= since)?;
            let process = last.process.as_ref();
            Some(Failure {
                instance: Some(InstanceId { service: service.clone(), index }),
                why: "it ended after the change".to_owned(),
                exit: process.map(|process| process.exit),
                ran_ms: process.map(|process| process.ran_ms),
                phase: "starting".to_owned(),
                ..Failure::of(&word_of(last.result))
            })
        })
    }

    /// Says whether whatever is wanted of a service is up, by the spec that is in force.
    fn is_settled(&self, node: &NodeId, service: &ServiceId) -> bool {
        let known = self.projection.node(node).and_then(|it| it.services().get(service));
        known.is_none_or(|known| {
            known.slots().filter(|(index, _)| known.wants(*index)).all(|(_, slot)| {
                let by_it = slot.state.main().is_none_or(|main| main.spec == known.digest);
                by_it && (slot.is_ready() || slot.at_rest())
            })
        })
    }

    /// Returns the orders for nodes that a wish means which succeeded, and that have not heeded it: they were away, or
    /// match since.
    pub(super) fn unheeded(&mut self, intent: IntentId) -> BTreeMap<(NodeId, Step), u16> {
        let Some(state) = self.rollouts.all.get(&intent).and_then(Driven::on_disk) else {
            return BTreeMap::new();
        };
        let plan = state.plan();
        let (service, generation) = (plan.service.clone(), plan.generation);
        let size = plan.parameters.max_parallel.last().copied().unwrap_or(Amount::Count(1));
        let size = size.batch_of(plan.size());
        let Some(driven) = self.rollouts.all.get_mut(&intent) else { return BTreeMap::new() };
        let configured = driven.configured(intent, &self.wishes).cloned();
        let Some((select, keys)) = configured else { return BTreeMap::new() };
        let means = self.authority.enrolled().filter(|(node, labels)| select.matches(node, labels));
        let behind = means.map(|(node, _)| node).filter(|node| {
            let folded = self.projection.node(node);
            let has_it = folded.is_some_and(|it| it.services().contains_key(&service));
            let known = folded.and_then(|it| it.overrides().get(&service));
            let has_heeded = known.is_some_and(|it| it.has_heeded(generation, &keys));
            let is_there = !self.projection.is_lost(node);
            has_it && !has_heeded && is_there && !self.placements.is_refused(intent, node)
        });
        behind.take(size).map(|node| ((node.clone(), Step::Apply), 2)).collect()
    }
}
