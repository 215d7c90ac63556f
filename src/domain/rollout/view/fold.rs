//! From the events to the view.

use std::collections::BTreeMap;

use super::{
    AskedView, BudgetView, DeadlinesView, FailureView, GenerationView, NodeView, OnView,
    ParametersView, PlanView, PlannedWaveView, Record, ReleaseView, RollbackView, RolloutView,
    WaveView, rollout_name, written,
};
use crate::domain::document::{At, By, ExitView, Sha256};
use crate::domain::id::NodeId;
use crate::domain::rollout::event::{Planned, RolloutEvent, Why};
use crate::domain::rollout::input::Failure;
use crate::domain::rollout::state::{IllegalEvent, NodeState, Phase, Rollout};
use crate::domain::rollout::{Plan, Step};

impl RolloutView {
    /// Makes the view from the events of one rollout, in their order. `None` when there is none.
    ///
    /// # Errors
    ///
    /// See [`Rollout::replay`].
    pub fn of<'a>(
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<Option<Self>, IllegalEvent> {
        let records: Vec<&Record> = records.into_iter().collect();
        let rollout = Rollout::replay(records.iter().map(|record| &record.event))?;
        Ok(rollout.and_then(|rollout| Self::at(&rollout, &records)))
    }

    /// Makes the view from a state and the events that it is the fold of. `None` when there are none.
    pub fn at(rollout: &Rollout, records: &[&Record]) -> Option<Self> {
        let RolloutEvent::Planned(planned) = &records.first()?.event else { return None };
        let mut fold = Fold::new(planned);
        for record in records {
            fold.take(record);
        }
        Some(fold.view(rollout, planned, records))
    }
}

/// What only the events tell, not the state.
struct Fold {
    waves: Vec<WaveView>,
    nodes: BTreeMap<NodeId, NodeView>,
    led_by: Vec<NodeId>,
    started_at: Option<At>,
    ended_at: Option<At>,
    changed: Option<bool>,
    /// Whether it turned round.
    back: bool,
}

impl Fold {
    fn new(planned: &Planned) -> Self {
        let mut nodes = BTreeMap::new();
        let mut waves = Vec::new();
        for (wave, of) in (1..).zip(&planned.waves) {
            waves.push(WaveView { wave, state: "not_started", started_at: None, ended_at: None });
            for node in &of.nodes {
                let from = planned.before.get(node).and_then(|before| before.release).map(Sha256);
                nodes.insert(node.clone(), NodeView::new(node, wave, from));
            }
        }
        Self {
            waves,
            nodes,
            led_by: vec![planned.controller.clone()],
            started_at: None,
            ended_at: None,
            changed: None,
            back: false,
        }
    }

    fn take(&mut self, record: &Record) {
        let at = Some(At(record.at));
        match &record.event {
            RolloutEvent::Started(_) => self.started_at = at,
            RolloutEvent::TakenOver(body) if self.led_by.last() != Some(&body.controller) => {
                self.led_by.push(body.controller.clone());
            }
            RolloutEvent::WaveStarted(body) if body.step == Step::Apply => {
                if let Some(wave) = self.wave(body.wave) {
                    (wave.state, wave.started_at) = ("rolling", at);
                }
                for node in &body.nodes {
                    if let Some(node) = self.nodes.get_mut(node) {
                        node.started_at = node.started_at.or(at);
                    }
                }
            }
            RolloutEvent::WaveSettled(body) if !self.back => {
                if let Some(wave) = self.wave(body.wave) {
                    (wave.state, wave.ended_at) = ("baking", at);
                }
            }
            RolloutEvent::WavePassed(body) if !self.back => {
                if let Some(wave) = self.wave(body.wave) {
                    wave.state = "healthy";
                }
            }
            RolloutEvent::NodeHealthy(body) => {
                if let Some(node) = self.nodes.get_mut(&body.node) {
                    (node.healthy_at, node.ready_ms) = (at, Some(body.ready_ms));
                    node.old_kept_serving = Some(false);
                }
            }
            RolloutEvent::NodeFailed(body) => {
                if let Some(node) = self.nodes.get_mut(&body.node) {
                    node.ended_at = at;
                    node.failure = Some(FailureView::new(&body.node, &body.failure, &body.cause));
                }
            }
            RolloutEvent::ReturnFailed(body) => {
                if let Some(node) = self.nodes.get_mut(&body.node) {
                    node.ended_at = at;
                    node.failure = Some(FailureView::new(&body.node, &body.failure, &body.cause));
                }
            }
            RolloutEvent::NodeReturned(body) => {
                if let Some(node) = self.nodes.get_mut(&body.node) {
                    node.ended_at = at;
                    node.rollback_ms = Some(body.took_ms);
                    node.old_kept_serving = Some(body.kept_serving);
                    node.returned_to = body.to.map(Sha256);
                }
            }
            RolloutEvent::LateJoined(body) => {
                self.nodes.insert(body.node.clone(), NodeView::new(&body.node, 0, None));
            }
            RolloutEvent::RollbackStarted(_) => {
                self.back = true;
                for wave in self.waves.iter_mut().filter(|wave| wave.started_at.is_some()) {
                    wave.ended_at = wave.ended_at.or(at);
                }
            }
            RolloutEvent::Ended(body) => (self.ended_at, self.changed) = (at, Some(body.changed)),
            _ => {}
        }
    }

    fn wave(&mut self, number: u16) -> Option<&mut WaveView> {
        self.waves.get_mut(usize::from(number).checked_sub(1)?)
    }

    fn view(mut self, rollout: &Rollout, planned: &Planned, records: &[&Record]) -> RolloutView {
        let plan = rollout.plan();
        self.settle_states(rollout);
        let on = self.on();
        let nodes = self.in_order(planned);
        let count = |test: fn(NodeState) -> bool| {
            nodes.iter().filter_map(|node| rollout.node(&node.node)).filter(|s| test(*s)).count()
        };
        let size = plan.size();
        let parameters = &plan.parameters;
        let budget = BudgetView {
            failed: count(|state| matches!(state, NodeState::Failed { counted: true, .. })),
            max_failures: parameters.max_failures.of(size),
            unreachable: count(|state| matches!(state, NodeState::Lost { counted: true })),
            max_unreachable: parameters.max_unreachable.of(size),
        };
        let release = |digest| ReleaseView { digest: Sha256(digest), version: None };
        let verdict = rollout.verdict();
        let asked = plan.generation.0;
        RolloutView {
            schema: RolloutView::SCHEMA,
            rollout: rollout_name(plan.intent),
            fleet: None,
            service: plan.service.clone(),
            kind: kind_of(rollout.plan()),
            state: rollout.state(),
            exit_code: verdict.map(|verdict| verdict.exit_code()),
            waits_for: rollout.waits_for(),
            changed: self.changed,
            from: plan.back_to.map(release),
            to: release(plan.release),
            generation: GenerationView {
                before: None,
                asked,
                now: if self.back { asked.saturating_add(1) } else { asked },
            },
            asked: AskedView {
                by: planned.by.as_ref().map(By::from),
                intent: written(&planned.cause, records).unwrap_or_default(),
                at: At(records[0].at),
                reason: planned.reason.clone(),
                ticket: None,
            },
            started_at: self.started_at,
            ended_at: self.ended_at,
            duration_ms: self.started_at.zip(self.ended_at).map(|(from, to)| to.0.ms_since(from.0)),
            led_by: self.led_by,
            as_of: None,
            plan: plan_view(rollout, planned),
            budget,
            deadlines: deadlines(rollout),
            waves: self.waves,
            why: super::why::chain(rollout, records),
            unreachable: away(rollout),
            on_at_end: verdict.is_some().then(|| on.clone()),
            on,
            nodes,
            id: plan.intent.to_string(),
            facts: records.len(),
            placement: None,
        }
    }

    /// Says what each node and each wave is called in the end.
    fn settle_states(&mut self, rollout: &Rollout) {
        for (name, node) in &mut self.nodes {
            let Some(state) = rollout.node(name) else {
                node.state = "late_join";
                continue;
            };
            let (was_healthy, back) = (node.healthy_at.is_some(), node.returned_to);
            let new = match kind_of(rollout.plan()) {
                "deploy" => Some(Sha256(rollout.plan().release)),
                "remove" => None,
                _ => node.from,
            };
            (node.state, node.running) = match state {
                NodeState::NotStarted => ("not_started", node.from),
                NodeState::Ordered | NodeState::Started { .. } => ("starting", None),
                NodeState::Healthy => ("healthy", new),
                NodeState::Failed { returned: true, .. } => ("failed", back),
                NodeState::Failed { returned: false, .. } => ("failed", None),
                NodeState::Lost { counted: true } => ("unreachable", None),
                NodeState::Lost { counted: false } => ("skipped", None),
                NodeState::Returning { .. } => ("rolling_back", None),
                NodeState::Returned if node.failure.is_some() => ("failed", back),
                NodeState::Returned if was_healthy => ("rolled_back", back),
                NodeState::Returned => ("interrupted", back),
                NodeState::ReturnFailed => ("rollback_failed", None),
            };
            if rollout.is_away(name) {
                node.running = None;
            }
        }
        for wave in self.waves.iter_mut().filter(|wave| wave.started_at.is_some()) {
            let mut of = self.nodes.values().filter(|node| node.wave == wave.wave);
            if of.clone().any(|node| matches!(node.state, "failed" | "rollback_failed")) {
                wave.state = "failed";
            } else if of.all(|node| matches!(node.state, "rolled_back" | "interrupted")) {
                wave.state = "rolled_back";
            }
        }
    }

    fn on(&self) -> Vec<OnView> {
        let mut on: BTreeMap<Sha256, Vec<NodeId>> = BTreeMap::new();
        for node in self.nodes.values() {
            if let Some(running) = node.running {
                on.entry(running).or_default().push(node.node.clone());
            }
        }
        on.into_iter().map(|(digest, nodes)| OnView { digest, version: None, nodes }).collect()
    }

    fn in_order(&mut self, planned: &Planned) -> Vec<NodeView> {
        let targets = planned.waves.iter().flat_map(|wave| &wave.nodes);
        let mut nodes: Vec<NodeView> = targets.filter_map(|node| self.nodes.remove(node)).collect();
        nodes.extend(std::mem::take(&mut self.nodes).into_values());
        nodes
    }
}

impl NodeView {
    fn new(node: &NodeId, wave: u16, from: Option<Sha256>) -> Self {
        Self {
            node: node.clone(),
            wave,
            state: "not_started",
            from,
            running: from,
            started_at: None,
            ready_ms: None,
            healthy_at: None,
            ended_at: None,
            old_kept_serving: None,
            returned_to: None,
            rollback_ms: None,
            failure: None,
        }
    }
}

impl FailureView {
    fn new(node: &NodeId, failure: &Failure, cause: &Why) -> Self {
        Self {
            instance: failure.instance.as_ref().map(|instance| format!("{instance}@{node}")),
            result: failure.result.clone(),
            why: failure.why.clone(),
            exit: failure.exit.map(|exit| ExitView::of(exit, failure.result == "oom_kill")),
            ran_ms: failure.ran_ms,
            phase: failure.phase.clone(),
            event: match cause {
                Why::Report(event) => Some(event.to_string()),
                Why::Intent(_) | Why::Fact(_) | Why::Time => None,
            },
            log_tail: Vec::new(),
            tail: failure.tail.clone(),
            differs_from: None,
            differences: Vec::new(),
        }
    }
}

/// Returns what a rollout is called: `deploy`, `remove`, `configure`.
pub fn kind_of(plan: &Plan) -> &'static str {
    match (plan.configures, plan.removes()) {
        (true, _) => "configure",
        (false, true) => "remove",
        (false, false) => "deploy",
    }
}

fn plan_view(rollout: &Rollout, planned: &Planned) -> PlanView {
    let (plan, parameters) = (rollout.plan(), &rollout.plan().parameters);
    let way_back = plan.way_back();
    let wave = |(wave, of): (u16, &crate::domain::rollout::Wave)| PlannedWaveView {
        wave,
        kind: of.kind,
        nodes: of.nodes.clone(),
    };
    PlanView {
        plan: format!("p-{}", &planned.digest.to_string()[..8]),
        seed: plan.seed.clone(),
        targets: plan.size(),
        rollback: RollbackView {
            possible: way_back.is_ok(),
            to: way_back.ok().map(Sha256),
            version: None,
            reason: way_back.err().map(str::to_owned),
        },
        waves: (1..).zip(&planned.waves).map(wave).collect(),
        parameters: ParametersView {
            max_failures: parameters.max_failures.of(plan.size()),
            max_unreachable: parameters.max_unreachable.of(plan.size()),
            max_parallel: parameters.max_parallel.clone(),
            min_healthy_time_ms: parameters.min_healthy_ms,
            healthy_deadline_ms: parameters.healthy_deadline_ms,
            progress_deadline_ms: parameters.progress_deadline_ms,
            bake_time_ms: parameters.bake_ms,
            health_check: parameters.health_check,
            on_failure: parameters.on_failure,
        },
    }
}

fn deadlines(rollout: &Rollout) -> DeadlinesView {
    let node_at = rollout.members.iter().filter_map(|(node, member)| match member.state {
        NodeState::Started { until } | NodeState::Returning { until } => {
            Some((node.clone(), At(until)))
        }
        _ => None,
    });
    match rollout.phase() {
        Phase::Ended(_) => DeadlinesView { progress_at: None, node_at: BTreeMap::new() },
        _ => DeadlinesView {
            progress_at: rollout.stands_still_at.map(At),
            node_at: node_at.collect(),
        },
    }
}

fn away(rollout: &Rollout) -> Vec<NodeId> {
    let nodes = rollout.members.keys().filter(|node| rollout.is_away(node));
    nodes.cloned().collect()
}

impl Rollout {
    /// Says whether nothing is heard of a target.
    pub fn is_away(&self, node: &NodeId) -> bool {
        self.members.get(node).is_some_and(|member| {
            member.away.is_some() || matches!(member.state, NodeState::Lost { .. })
        })
    }
}
