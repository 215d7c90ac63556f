//! Taking in what happened. Every event holds all that is needed; nothing is decided here.

use super::Step;
use super::event::{Breach, CheckMeasured, Paused, RolloutEvent, WaveStarted, Why};
use super::input::Measure;
use super::state::{At, CheckRun, Hold, IllegalEvent, NodeState, Owed, Phase, Rollout, number};
use crate::domain::id::NodeId;
use crate::domain::time::UnixMicros;

impl Rollout {
    /// Folds events in their order. `None` when there is none.
    ///
    /// # Errors
    ///
    /// The first event is no plan, or one cannot follow the ones before it.
    pub fn replay<'a>(
        events: impl IntoIterator<Item = &'a RolloutEvent>,
    ) -> Result<Option<Self>, IllegalEvent> {
        let mut events = events.into_iter();
        let mut rollout = match events.next() {
            None => return Ok(None),
            Some(RolloutEvent::Planned(planned)) => Self::new(planned),
            Some(event) => return Err(IllegalEvent { state: "absent", event: event.kind() }),
        };
        events.try_for_each(|event| rollout.evolve(event))?;
        Ok(Some(rollout))
    }

    /// Folds one fact. On an error nothing has changed.
    ///
    /// # Errors
    ///
    /// The event cannot follow the state: the log is not one of this rollout, or not whole.
    pub fn evolve(&mut self, event: &RolloutEvent) -> Result<(), IllegalEvent> {
        self.fold(event).ok_or(IllegalEvent { state: self.state(), event: event.kind() })?;
        self.facts += 1;
        Ok(())
    }

    fn fold(&mut self, event: &RolloutEvent) -> Option<()> {
        if matches!(self.phase, Phase::Ended(_)) {
            return None;
        }
        let fact = self.facts;
        match event {
            RolloutEvent::Planned(_) | RolloutEvent::Part(_) => return None,
            RolloutEvent::Approved(_) => {
                self.phase = match self.phase {
                    Phase::AwaitingApproval => Phase::Ready { runs_already: false },
                    _ => return None,
                };
            }
            RolloutEvent::Started(_) => {
                self.phase = match self.phase {
                    Phase::Ready { runs_already: false } => Phase::Forward(At::Before(0)),
                    _ => return None,
                };
            }
            RolloutEvent::TakenOver(body) => {
                (self.controller, self.term) = (body.controller.clone(), body.term);
                self.put_off(body.grace_until);
            }
            RolloutEvent::WaveStarted(body) => return self.open_wave(body),
            RolloutEvent::NodeStarted(body) => {
                let state = NodeState::Started { until: body.until };
                self.members.change(&body.node, |it| (it.state, it.away) = (state, None))?;
            }
            RolloutEvent::NodeHealthy(body) => {
                let state = NodeState::Healthy;
                self.members.change(&body.node, |it| (it.state, it.away) = (state, None))?;
                self.proved_in = self.proved_in.or(match &self.phase {
                    Phase::Forward(At::Before(next)) => Some(number(*next).saturating_sub(1)),
                    Phase::Forward(At::Open(wave) | At::Settled { wave, .. }) => {
                        Some(number(*wave))
                    }
                    _ => None,
                });
                let full = self.plan.parameters.progress_deadline_ms;
                match (&mut self.hold, &self.phase) {
                    (Some(hold), _) => hold.progress_left_ms = full,
                    // Where a person is awaited, one that was away and is back starts no deadline.
                    (None, Phase::Forward(At::Open(_) | At::Settled { .. })) => {
                        self.stands_still_at = Some(body.until);
                    }
                    (None, _) => {}
                }
            }
            RolloutEvent::NodeFailed(body) => {
                let counted = body.counted;
                self.set(&body.node, NodeState::Failed { counted, returned: false })?;
            }
            RolloutEvent::NodeUnreachable(body) => {
                self.members.change(&body.node, |it| it.away = Some(body.until))?;
            }
            RolloutEvent::NodeSeen(body) => {
                self.members.change(&body.node, |it| {
                    it.away = None;
                    it.put_off(body.grace_until);
                })?;
            }
            RolloutEvent::NodeLost(body) => {
                let counted = body.counted;
                self.set(&body.node, NodeState::Lost { counted })?;
            }
            RolloutEvent::NodeReturned(body) => {
                self.members.change(&body.node, |it| {
                    it.away = None;
                    it.state = match it.state {
                        NodeState::Failed { counted, .. } => {
                            NodeState::Failed { counted, returned: true }
                        }
                        _ => NodeState::Returned,
                    };
                })?;
            }
            RolloutEvent::ReturnFailed(body) => {
                self.set(&body.node, NodeState::ReturnFailed)?;
            }
            RolloutEvent::LateJoined(body) => {
                self.late.insert(body.node.clone());
            }
            RolloutEvent::WaveSettled(body) => {
                let at = self.at_mut()?;
                let At::Open(wave) = *at else { return None };
                let checks = body.checks.iter();
                let checks = checks.map(|(name, at)| (name.clone(), CheckRun::new(*at))).collect();
                *at = At::Settled { wave, bake_until: body.bake_until, checks };
                let forward = matches!(self.phase, Phase::Forward(_));
                match &mut self.hold {
                    Some(hold) => hold.progress_left_ms = self.plan.parameters.progress_deadline_ms,
                    None => self.stands_still_at = forward.then_some(body.until),
                }
            }
            RolloutEvent::CheckMeasured(body) => return self.measured(body),
            RolloutEvent::CheckEnded(body) => {
                let pauses = self.pauses(&body.check, body.result);
                let At::Settled { checks, .. } = self.at_mut()? else { return None };
                checks.get_mut(&body.check)?.result = Some(body.result);
                if pauses {
                    self.owed = Some((Owed::Inconclusive, fact));
                }
            }
            RolloutEvent::WavePassed(_) => {
                let at = self.at_mut()?;
                let At::Settled { wave, .. } = *at else { return None };
                *at = At::Before(wave + 1);
            }
            RolloutEvent::PromotionAwaited(_) => {
                let Phase::Forward(at) = &mut self.phase else { return None };
                let At::Before(next) = *at else { return None };
                *at = At::Promotion(next);
                self.stands_still_at = None;
            }
            RolloutEvent::Promoted(_) => {
                let Phase::Forward(at) = &mut self.phase else { return None };
                let At::Promotion(next) = *at else { return None };
                (*at, self.promoted) = (At::Before(next), next);
            }
            RolloutEvent::BudgetExceeded(body) => {
                self.forgiven.failed = self.forgiven.failed.max(body.failed.len());
                self.forgiven.unreachable = self.forgiven.unreachable.max(body.unreachable.len());
                self.forgiven.canary |= self.canary_is_broken();
                match (&body.breach, self.at()) {
                    (Breach::Check(name), Some(At::Settled { wave, .. })) => {
                        self.forgiven.checks.insert((*wave, name.clone()));
                    }
                    (Breach::Progress, _) => self.stands_still_at = None,
                    _ => {}
                }
                self.owed = Some((Owed::Failure(body.breach.clone()), fact));
            }
            RolloutEvent::Paused(body) => self.hold(body),
            RolloutEvent::Resumed(body) => {
                self.hold.take()?;
                let runs = matches!(self.phase, Phase::Forward(At::Open(_) | At::Settled { .. }));
                self.stands_still_at = runs.then_some(body.until);
            }
            RolloutEvent::RollbackStarted(body) => {
                (self.owed, self.hold, self.stands_still_at) = (None, None, None);
                let (waves, then) = (body.waves.clone(), body.then);
                self.phase = Phase::Back { waves, at: At::Before(0), then, since: fact };
            }
            RolloutEvent::Stopping(body) => {
                (self.owed, self.hold, self.stands_still_at) = (None, None, None);
                let (then, until) = (body.then, body.until);
                self.phase = Phase::Stopping { then, until, since: fact };
            }
            RolloutEvent::Ended(body) => {
                (self.owed, self.hold, self.stands_still_at) = (None, None, None);
                self.phase = Phase::Ended(body.state);
            }
        }
        Some(())
    }

    fn at_mut(&mut self) -> Option<&mut At> {
        match &mut self.phase {
            Phase::Forward(at) | Phase::Back { at, .. } => Some(at),
            _ => None,
        }
    }

    fn set(&mut self, node: &NodeId, state: NodeState) -> Option<()> {
        self.members.change(node, |it| it.state = state)
    }

    fn open_wave(&mut self, body: &WaveStarted) -> Option<()> {
        if !body.nodes.iter().all(|node| self.members.contains_key(node)) {
            return None;
        }
        match (&mut self.phase, body.step) {
            (Phase::Forward(at @ At::Before(_)), Step::Apply) => {
                let At::Before(wave) = *at else { return None };
                if number(wave) != body.wave {
                    return None;
                }
                *at = At::Open(wave);
                self.stands_still_at = Some(body.until);
            }
            (Phase::Back { waves, at: at @ At::Before(_), .. }, Step::Return) => {
                let At::Before(wave) = *at else { return None };
                if wave == waves.len() {
                    waves.push(body.nodes.clone());
                }
                *at = At::Open(wave);
            }
            _ => return None,
        }
        for node in &body.nodes {
            self.members.change(node, |it| {
                it.with = (body.step, body.wave);
                it.state = match (body.step, it.state) {
                    (Step::Apply, NodeState::NotStarted) => NodeState::Ordered,
                    // It was heard of before its turn: an earlier leader had got further than the log says.
                    (Step::Apply, state) => state,
                    (Step::Return | Step::Leave, _) => NodeState::Returning { until: body.until },
                };
            })?;
        }
        Some(())
    }

    fn measured(&mut self, body: &CheckMeasured) -> Option<()> {
        let At::Settled { checks, .. } = self.at_mut()? else { return None };
        let run = checks.get_mut(&body.check)?;
        if body.number != run.taken + 1 {
            return None;
        }
        run.taken += 1;
        run.next_at = body.next_at;
        run.errors_in_a_row = match body.measure {
            Measure::Error => run.errors_in_a_row + 1,
            Measure::Good | Measure::Bad | Measure::Inconclusive => 0,
        };
        match body.measure {
            Measure::Good => run.good += 1,
            Measure::Bad => run.bad += 1,
            Measure::Inconclusive => run.inconclusive += 1,
            Measure::Error => {}
        }
        Some(())
    }

    fn hold(&mut self, body: &Paused) {
        self.owed = None;
        let commanded = matches!(body.cause, Why::Intent(_));
        self.hold = Some(Hold { commanded, progress_left_ms: body.progress_left_ms });
        self.stands_still_at = None;
    }

    /// Puts off every deadline that is earlier than `grace_until`.
    fn put_off(&mut self, grace_until: UnixMicros) {
        self.members.put_off(grace_until);
        self.stands_still_at = self.stands_still_at.map(|at| at.max(grace_until));
        if let Phase::Stopping { until, .. } = &mut self.phase {
            *until = (*until).max(grace_until);
        }
    }
}
