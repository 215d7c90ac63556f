//! Which nodes may take a release that no node has proved.
//!
//! A controller says of each order to which wave it belongs, and could say "the first" to every node. So each node asks
//! here by itself, from what was signed alone: the wish, the spec in it, and the roster. What it cannot know is who was
//! away and who failed, so the bound is as wide as an honest controller may have to go, and no wider:
//!
//! - **With a canary** these are the nodes of the canary: one that fails or is away ends the way forward. Only where
//!   `on_unreachable = "skip"` lets others stand in for those that are away, it is as many more as may be passed over
//!   ([`Plan::new`] passes over no more).
//! - **Without one** (the first release of a service, `canary = 0`) it is the first batch; and since a rollout goes on
//!   past nodes that failed or are away as long as its budgets allow, each batch before which no more than
//!   `max_failures` and `max_unreachable` together lie. Where absence is no obstacle it is every node, since all
//!   before it may have been away.
//!
//! - **The first release of a service** goes to all nodes at once, where its spec writes no waves of its own: nothing
//!   runs that could be lost, and there is nothing to go back to. What was signed says that much ([`newcomers_go_first`]);
//!   that nothing of the service is there, each node looks up in its own log. So a controller that told whoever signed
//!   that there is nothing yet wins no node that has the service.
//!
//! Who comes later, by placement or because it was away, always comes with the word of another.

use super::parameters::{OnUnreachable, Parameters};
use super::plan::{Plan, PlanRequest, Wave, WaveKind, in_order};
use crate::domain::id::NodeId;
use crate::domain::release::ReleaseId;

/// How many nodes that are away a canary may be passed on over, whatever `max_unreachable` says; of a small fleet half.
///
/// Were as many as half of a fleet away, one canary in 65,000 would find nobody.
const PASSED_OVER_MAX: usize = 16;

/// Returns the nodes that may take the release unproved, in the order of the plan.
///
/// What happened meanwhile does not count: neither who is away, nor what an earlier rollout proved.
pub fn may_go_first(request: &PlanRequest<'_>) -> Vec<NodeId> {
    let parameters = request.parameters;
    let has_canary = request.back_to.is_some() && !parameters.canary.is_zero();
    let mut nodes = in_order(request);
    nodes.truncate(bound(parameters, has_canary, nodes.len()));
    nodes
}

/// Says whether each node that has, and had, nothing of the service may take the release unproved, by what was signed.
pub fn newcomers_go_first(back_to: Option<ReleaseId>, parameters: &Parameters) -> bool {
    let is_written = |key| parameters.origins.contains_key(key);
    back_to.is_none() && !is_written("canary") && !is_written("max_parallel")
}

impl Plan {
    /// Returns how many nodes may take the release unproved: the first ones.
    pub fn unproved_max(&self) -> usize {
        let goes_at_once = |wave: &Wave| matches!(wave.kind, WaveKind::Emergency | WaveKind::First);
        match self.waves.iter().any(goes_at_once) {
            true => self.size(),
            false => bound(&self.parameters, !self.canary().is_empty(), self.size()),
        }
    }
}

/// Returns how many of so many targets may go first.
pub(super) fn bound(parameters: &Parameters, has_canary: bool, targets: usize) -> usize {
    let may_be_away = parameters.max_unreachable.of(targets);
    if has_canary {
        let passed_over = match parameters.on_unreachable {
            OnUnreachable::Skip => may_be_away.max(targets.div_ceil(2).min(PASSED_OVER_MAX)),
            OnUnreachable::Wait | OnUnreachable::Fail => 0,
        };
        return parameters.canary.batch_of(targets).saturating_add(passed_over).min(targets);
    }
    let lost = match parameters.on_unreachable {
        OnUnreachable::Skip => return targets,
        OnUnreachable::Wait => may_be_away,
        // Whoever is away has failed.
        OnUnreachable::Fail => 0,
    };
    let without_word = parameters.max_failures.of(targets).saturating_add(lost);
    let last = parameters.max_parallel.last().into_iter().cycle();
    let mut end = 0_usize;
    for size in parameters.max_parallel.iter().chain(last) {
        if end > without_word || end >= targets {
            break;
        }
        end = end.saturating_add(size.batch_of(targets));
    }
    end.min(targets)
}
