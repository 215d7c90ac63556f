//! What nodes report.

use super::VERDICT_SLACK_MS;
use crate::domain::id::{Generation, NodeId};
use crate::domain::rollout::event::{
    LateJoined, NodeFailed, NodeHealthy, NodeReturned, NodeStarted, NodeUnreachable, ReturnFailed,
    RolloutEvent, Why,
};
use crate::domain::rollout::input::{Failure, NodeReport};
use crate::domain::rollout::members::Member;
use crate::domain::rollout::parameters::OnUnreachable;
use crate::domain::rollout::state::{NodeState, Phase, Rollout};
use crate::domain::time::UnixMicros;

/// Which step of this rollout a report is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Apply,
    Return,
    Other,
}

impl Rollout {
    /// Says what a report leads to. Reports come in any order and any number of times.
    pub(super) fn report(
        &self,
        now: UnixMicros,
        cause: Why,
        node: &NodeId,
        report: &NodeReport,
    ) -> Vec<RolloutEvent> {
        let Some(member) = self.members.get(node) else {
            let is_news = *report == NodeReport::Seen && !self.late.contains(node);
            let joined = LateJoined { cause, node: node.clone() };
            return is_news.then_some(RolloutEvent::LateJoined(joined)).into_iter().collect();
        };
        let heard = |event: Option<RolloutEvent>| {
            let seen = member.away.is_some().then(|| self.seen(now, cause.clone(), node));
            event.or(seen).into_iter().collect()
        };
        match report {
            NodeReport::Unreachable => self.unreachable(now, cause, node, member),
            NodeReport::Seen | NodeReport::Staged { .. } => heard(None),
            NodeReport::Applied { generation } => {
                heard(self.applied(now, cause.clone(), node, member, *generation))
            }
            NodeReport::Healthy { .. } => {
                heard(self.healthy(now, cause.clone(), node, member, report))
            }
            NodeReport::Failed { generation, failure } => {
                let about = self.about(*generation);
                heard(self.failed(cause.clone(), node, member, about, failure))
            }
            NodeReport::Returned { generation, to, took_ms, kept_serving } => {
                if self.about(*generation) == About::Other {
                    return heard(None);
                }
                let returned = NodeReturned {
                    cause: cause.clone(),
                    node: node.clone(),
                    to: *to,
                    took_ms: *took_ms,
                    kept_serving: *kept_serving,
                };
                heard(self.returned(cause.clone(), member, returned))
            }
        }
    }

    fn about(&self, generation: Generation) -> About {
        let (apply, of) = (self.plan.generation.0, generation.0);
        if of == apply {
            About::Apply
        } else if of == apply.saturating_add(1) {
            About::Return
        } else {
            About::Other
        }
    }

    fn unreachable(
        &self,
        now: UnixMicros,
        cause: Why,
        node: &NodeId,
        member: &Member,
    ) -> Vec<RolloutEvent> {
        if member.away.is_some() {
            return Vec::new();
        }
        let parameters = &self.plan.parameters;
        let wait_ms = match parameters.on_unreachable {
            OnUnreachable::Wait => parameters.unreachable_deadline_ms,
            OnUnreachable::Skip | OnUnreachable::Fail => 0,
        };
        let (node, until) = (node.clone(), now.plus_ms(wait_ms));
        vec![RolloutEvent::NodeUnreachable(NodeUnreachable { cause, node, until })]
    }

    fn applied(
        &self,
        now: UnixMicros,
        cause: Why,
        node: &NodeId,
        member: &Member,
        generation: Generation,
    ) -> Option<RolloutEvent> {
        let waits = matches!(
            member.state,
            NodeState::NotStarted | NodeState::Ordered | NodeState::Lost { .. }
        );
        if !waits || self.about(generation) != About::Apply {
            return None;
        }
        let until = now.plus_ms(self.plan.parameters.healthy_deadline_ms + VERDICT_SLACK_MS);
        Some(RolloutEvent::NodeStarted(NodeStarted { cause, node: node.clone(), until }))
    }

    fn healthy(
        &self,
        now: UnixMicros,
        cause: Why,
        node: &NodeId,
        member: &Member,
        report: &NodeReport,
    ) -> Option<RolloutEvent> {
        let NodeReport::Healthy { generation, release, running, ready_ms, held_ms } = report else {
            return None;
        };
        let about = self.about(*generation);
        if about == About::Return && Some(*release) == self.plan.back_to {
            let to = self.plan.back_to;
            let (node, took_ms) = (node.clone(), ready_ms + held_ms);
            let back =
                NodeReturned { cause: cause.clone(), node, to, took_ms, kept_serving: false };
            return self.returned(cause, member, back);
        }
        let awaited = matches!(
            member.state,
            NodeState::NotStarted
                | NodeState::Ordered
                | NodeState::Started { .. }
                | NodeState::Lost { .. }
        );
        if !awaited || about != About::Apply {
            return None;
        }
        // Success is what runs, not what was installed. Whether the process runs a program of the release, its node has
        // judged before it said so: it has the files.
        if *release != self.plan.release {
            let failure = Failure::of("wrong_program");
            return self.failed(cause, node, member, About::Apply, &failure);
        }
        Some(RolloutEvent::NodeHealthy(NodeHealthy {
            cause,
            node: node.clone(),
            running: *running,
            ready_ms: *ready_ms,
            held_ms: *held_ms,
            until: now.plus_ms(self.plan.parameters.progress_deadline_ms),
        }))
    }

    fn failed(
        &self,
        cause: Why,
        node: &NodeId,
        member: &Member,
        about: About,
        failure: &Failure,
    ) -> Option<RolloutEvent> {
        let (node, failure) = (node.clone(), failure.clone());
        match (about, member.state) {
            (About::Return, NodeState::Returning { .. } | NodeState::Lost { .. })
                if matches!(self.phase, Phase::Back { .. } | Phase::Stopping { .. }) =>
            {
                Some(RolloutEvent::ReturnFailed(ReturnFailed { cause, node, failure }))
            }
            (
                About::Apply,
                NodeState::NotStarted
                | NodeState::Ordered
                | NodeState::Started { .. }
                | NodeState::Healthy
                | NodeState::Lost { .. },
            ) => {
                let counted = member.counts;
                Some(RolloutEvent::NodeFailed(NodeFailed { cause, node, counted, failure }))
            }
            _ => None,
        }
    }

    fn returned(
        &self,
        cause: Why,
        member: &Member,
        returned: NodeReturned,
    ) -> Option<RolloutEvent> {
        let back = matches!(self.phase, Phase::Back { .. });
        match member.state {
            NodeState::Returning { .. } | NodeState::Failed { returned: false, .. } => {
                Some(RolloutEvent::NodeReturned(returned))
            }
            NodeState::Lost { .. } if back => Some(RolloutEvent::NodeReturned(returned)),
            NodeState::Returned | NodeState::ReturnFailed | NodeState::Failed { .. } => None,
            // It went back although nobody asked: it takes no step forward of this wish any more.
            NodeState::NotStarted
            | NodeState::Ordered
            | NodeState::Started { .. }
            | NodeState::Healthy
            | NodeState::Lost { .. } => {
                let (node, counted) = (returned.node, member.counts);
                let failure = Failure::of("returned");
                Some(RolloutEvent::NodeFailed(NodeFailed { cause, node, counted, failure }))
            }
        }
    }
}
