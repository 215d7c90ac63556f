//! What follows by itself: from deadlines that passed, budgets that are exceeded, waves that are complete.

use std::collections::BTreeMap;

use super::command::Turn;
use crate::domain::id::{CheckName, NodeId};
use crate::domain::rollout::Step;
use crate::domain::rollout::event::{
    Breach, BudgetExceeded, CheckEnded, CheckResult, NodeFailed, NodeLost, PromotionAwaited,
    ReturnFailed, RolloutEvent, Started, Verdict, WavePassed, WaveSettled, WaveStarted, Why,
};
use crate::domain::rollout::input::Failure;
use crate::domain::rollout::members::Member;
use crate::domain::rollout::parameters::{
    Check, HealthCheck, OnFailure, OnInconclusive, OnUnreachable, Skip,
};
use crate::domain::rollout::plan::WaveKind;
use crate::domain::rollout::state::{At, CheckRun, NodeState, Owed, Phase, Rollout, number};
use crate::domain::time::UnixMicros;

use super::VERDICT_SLACK_MS;

impl Rollout {
    /// Returns the next fact that follows without any further input, if there is one.
    pub(super) fn advance(&self, now: UnixMicros) -> Option<RolloutEvent> {
        match &self.phase {
            Phase::Ended(_) | Phase::AwaitingApproval => None,
            Phase::Ready { .. } if self.hold.is_some() => None,
            Phase::Ready { runs_already: true } => {
                Some(self.end(self.because(self.last()), Verdict::Succeeded, None))
            }
            Phase::Ready { runs_already: false } => {
                Some(RolloutEvent::Started(Started { cause: self.last() }))
            }
            Phase::Stopping { then, until, since } => match self.overdue(now) {
                Some(event) => Some(event),
                None if now < *until && self.members.tally().under_way > 0 => None,
                None => Some(self.end(self.because(Why::Fact(*since)), *then, None)),
            },
            Phase::Forward(at) => self
                .owed(now)
                .or_else(|| self.overdue(now))
                .or_else(|| self.breach(now))
                .or_else(|| self.go_on(now, at)),
            Phase::Back { at, then, since, .. } => {
                self.overdue(now).or_else(|| self.go_back(now, at, *then, *since))
            }
        }
    }

    /// Names the cause of what nobody commanded.
    fn because(&self, cause: Why) -> Turn<'static> {
        Turn { cause, by: None, origin: None }
    }

    /// Returns what follows a fact that was written before its consequence.
    fn owed(&self, now: UnixMicros) -> Option<RolloutEvent> {
        let (owed, fact) = self.owed.as_ref()?;
        let cause = Why::Fact(*fact);
        let turn = |key| Turn { cause: cause.clone(), by: None, origin: self.origin(key) };
        Some(match (owed, self.plan.parameters.on_failure) {
            (Owed::Inconclusive, _) => self.pause(now, turn("on_inconclusive")),
            (Owed::Failure(_), OnFailure::Rollback) => {
                self.turn_back(now, turn("on_failure"), Verdict::RolledBack)
            }
            (Owed::Failure(_), OnFailure::Pause) => self.pause(now, turn("on_failure")),
            (Owed::Failure(_), OnFailure::Stop) => {
                self.stop(now, turn("on_failure"), Verdict::Stopped, None)
            }
        })
    }

    /// Returns what follows the first deadline of a node that passed.
    fn overdue(&self, now: UnixMicros) -> Option<RolloutEvent> {
        let (until, node) = self.members.next_deadline(self.baking())?;
        if now < *until {
            return None;
        }
        let member = self.members.get(node).expect("a deadline is that of a target");
        Some(match (member.away, member.state) {
            (Some(_), _) => self.lost(node, member),
            (None, NodeState::Returning { .. }) => {
                let (cause, node) = (Why::Time, node.clone());
                let failure = Failure::of("deadline");
                RolloutEvent::ReturnFailed(ReturnFailed { cause, node, failure })
            }
            (None, _) => self.fails(Why::Time, node, member, Failure::of("deadline")),
        })
    }

    fn fails(&self, cause: Why, node: &NodeId, member: &Member, failure: Failure) -> RolloutEvent {
        let (node, counted) = (node.clone(), member.counts);
        RolloutEvent::NodeFailed(NodeFailed { cause, node, counted, failure })
    }

    fn lost(&self, node: &NodeId, member: &Member) -> RolloutEvent {
        let forward = matches!(self.phase, Phase::Forward(_));
        match self.plan.parameters.on_unreachable {
            OnUnreachable::Fail if forward => {
                self.fails(self.last(), node, member, Failure::of("unreachable"))
            }
            on_unreachable => {
                let counted = on_unreachable == OnUnreachable::Wait;
                RolloutEvent::NodeLost(NodeLost { cause: Why::Time, node: node.clone(), counted })
            }
        }
    }

    /// Says what went wrong more often than it may, if it was not told yet.
    fn breach(&self, now: UnixMicros) -> Option<RolloutEvent> {
        let parameters = &self.plan.parameters;
        let targets = self.members.len();
        let tally = self.members.tally();
        let may_fail = parameters.max_failures.of(targets);
        let may_be_away = parameters.max_unreachable.of(targets);
        let stands_still = self.stands_still_at.is_some_and(|at| now >= at);
        let (breach, allowed, key) = if self.canary_is_broken() && !self.forgiven.canary {
            (Breach::Canary, 0, "canary")
        } else if tally.failed_counted > may_fail.max(self.forgiven.failed) {
            (Breach::Failures, may_fail, "max_failures")
        } else if tally.lost_counted > may_be_away.max(self.forgiven.unreachable) {
            (Breach::Unreachable, may_be_away, "max_unreachable")
        } else if let Some(name) = self.failed_check() {
            (Breach::Check(name), 0, "check")
        } else if stands_still {
            (Breach::Progress, 0, "progress_deadline")
        } else {
            return None;
        };
        let cause = if breach == Breach::Progress { Why::Time } else { self.last() };
        // One failed canary exceeds the default budget too; that is what people set and look for.
        let (breach, allowed, key) = match breach {
            Breach::Canary if tally.failed_counted > may_fail => {
                (Breach::Failures, may_fail, "max_failures")
            }
            other => (other, allowed, key),
        };
        Some(self.exceeded(cause, breach, allowed, key))
    }

    fn exceeded(&self, cause: Why, breach: Breach, allowed: usize, key: &str) -> RolloutEvent {
        let named = |test: fn(&NodeState) -> bool| -> Vec<NodeId> {
            let found = self.members.iter().filter(|(_, member)| test(&member.state));
            found.map(|(node, _)| node.clone()).collect()
        };
        RolloutEvent::BudgetExceeded(BudgetExceeded {
            cause,
            breach,
            failed: named(|state| matches!(state, NodeState::Failed { counted: true, .. })),
            unreachable: named(|state| matches!(state, NodeState::Lost { counted: true })),
            allowed: u32::try_from(allowed).unwrap_or(u32::MAX),
            origin: self.origin(key),
        })
    }

    /// Says whether no node has proved the release, and those of the wave with this index would not take it unproved.
    fn lacks_proof(&self, next: usize) -> bool {
        let before = self.waves.iter().take(next).map(|wave| wave.nodes.len()).sum::<usize>();
        self.plan.proofs().is_empty()
            && self.proved_in.is_none()
            && before >= self.plan.unproved_max()
    }

    /// Says whether a canary has a bad verdict, or none and is away.
    pub(in crate::domain::rollout) fn canary_is_broken(&self) -> bool {
        let Phase::Forward(At::Open(wave) | At::Settled { wave, .. }) = self.phase else {
            return false;
        };
        let is_canary = self.waves.get(wave).is_some_and(|wave| wave.kind == WaveKind::Canary);
        let tally = self.members.tally_of((Step::Apply, number(wave)));
        is_canary && tally.failed + tally.lost > 0
    }

    fn failed_check(&self) -> Option<CheckName> {
        let At::Settled { wave, checks, .. } = self.at()? else { return None };
        let rules = &self.plan.parameters.checks;
        let is_bad = |name: &CheckName, run: &CheckRun| {
            let fails = rules.get(name).is_some_and(|check| {
                !check.dry_run
                    && match run.result {
                        Some(CheckResult::Failed) => true,
                        Some(CheckResult::Inconclusive) => {
                            check.on_inconclusive == OnInconclusive::Fail
                        }
                        Some(CheckResult::Success) | None => false,
                    }
            });
            fails && !self.forgiven.checks.contains(&(*wave, name.clone()))
        };
        checks.iter().find(|(name, run)| is_bad(name, run)).map(|(name, _)| name.clone())
    }

    /// Says whether a result of this check makes the rollout wait for a person.
    pub(in crate::domain::rollout) fn pauses(
        &self,
        check: &CheckName,
        result: CheckResult,
    ) -> bool {
        self.plan.parameters.checks.get(check).is_some_and(|check| {
            result == CheckResult::Inconclusive
                && !check.dry_run
                && check.on_inconclusive == OnInconclusive::Pause
        })
    }

    /// Returns the next fact on the way forward.
    fn go_on(&self, now: UnixMicros, at: &At) -> Option<RolloutEvent> {
        match at {
            At::Promotion(_) => None,
            At::Before(_) if self.hold.is_some() => None,
            At::Before(next) => match self.waves.get(*next) {
                _ if self.needs_promotion(*next) => {
                    let (cause, wave) = (self.last(), number(next - 1));
                    Some(RolloutEvent::PromotionAwaited(PromotionAwaited { cause, wave }))
                }
                Some(_) if self.lacks_proof(*next) => {
                    Some(self.exceeded(self.last(), Breach::Canary, 0, "canary"))
                }
                Some(wave) => Some(RolloutEvent::WaveStarted(WaveStarted {
                    cause: self.last(),
                    wave: number(*next),
                    step: Step::Apply,
                    kind: wave.kind,
                    nodes: wave.nodes.clone(),
                    until: now.plus_ms(self.plan.parameters.progress_deadline_ms),
                })),
                // Nodes that were lost and came back late reach their verdict first.
                None if self.members.tally().under_way > 0 => None,
                None => Some(self.end(self.because(self.last()), self.outcome(), None)),
            },
            At::Open(wave) => self.settled(now, *wave, self.plan.parameters.bake_ms, true),
            At::Settled { wave, bake_until, checks } => {
                if self.canary_has_failed() {
                    return None;
                }
                self.passed(now, *wave, *bake_until, checks)
            }
        }
    }

    /// Says whether a person has to let it go on before the wave with this index.
    fn needs_promotion(&self, next: usize) -> bool {
        let parameters = &self.plan.parameters;
        let Some(before) = next.checked_sub(1).and_then(|before| self.waves.get(before)) else {
            return false;
        };
        let asks = (before.kind == WaveKind::Canary && !parameters.auto_promote)
            || (before.kind != WaveKind::Emergency
                && parameters.health_check == HealthCheck::Manual);
        asks && self.promoted < next
    }

    /// Returns how a rollout ends that went through all its waves.
    fn outcome(&self) -> Verdict {
        let tally = self.members.tally();
        let may_fail = self.plan.parameters.max_failures.of(self.members.len());
        // Failures that do not count in the budget still leave the fleet mixed; and silence is no success.
        match tally.healthy > 0 && tally.failed <= may_fail {
            true => Verdict::Succeeded,
            false => Verdict::Stopped,
        }
    }

    fn settled(
        &self,
        now: UnixMicros,
        wave: usize,
        bake_ms: u64,
        checks: bool,
    ) -> Option<RolloutEvent> {
        let way = if matches!(self.phase, Phase::Back { .. }) { Step::Return } else { Step::Apply };
        if self.members.tally_of((way, number(wave))).under_way > 0 {
            return None;
        }
        let emergency = self.waves.first().is_some_and(|wave| wave.kind == WaveKind::Emergency);
        let (bake_ms, checks) = if emergency { (0, false) } else { (bake_ms, checks) };
        let rules: BTreeMap<&CheckName, &Check> = match checks {
            true => self.plan.parameters.checks.iter().collect(),
            false => BTreeMap::new(),
        };
        let longest_ms =
            rules.values().map(|check| check.interval_ms * u64::from(check.count)).max();
        let quiet_ms = bake_ms.max(longest_ms.unwrap_or(0));
        Some(RolloutEvent::WaveSettled(WaveSettled {
            cause: self.last(),
            wave: number(wave),
            bake_until: now.plus_ms(bake_ms),
            checks: rules.keys().map(|name| ((*name).clone(), now)).collect(),
            until: now.plus_ms(quiet_ms + self.plan.parameters.progress_deadline_ms),
        }))
    }

    fn passed(
        &self,
        now: UnixMicros,
        wave: usize,
        bake_until: UnixMicros,
        checks: &BTreeMap<CheckName, CheckRun>,
    ) -> Option<RolloutEvent> {
        let cause = self.last();
        let ended =
            checks.iter().filter(|(_, run)| run.result.is_none()).find_map(|(name, run)| {
                let result = judge(self.plan.parameters.checks.get(name)?, run)?;
                let (check, wave) = (name.clone(), number(wave));
                Some(CheckEnded { cause: cause.clone(), check, wave, result })
            });
        if let Some(ended) = ended {
            return Some(RolloutEvent::CheckEnded(ended));
        }
        let all_judged = checks.values().all(|run| run.result.is_some());
        let passed = WavePassed { cause, wave: number(wave) };
        (all_judged && now >= bake_until).then_some(RolloutEvent::WavePassed(passed))
    }

    /// Returns the next fact on the way back.
    fn go_back(&self, now: UnixMicros, at: &At, then: Verdict, since: u32) -> Option<RolloutEvent> {
        let rules = &self.plan.parameters.rollback;
        let wave = match at {
            At::Promotion(_) => return None,
            At::Before(_) if self.hold.is_some() => return None,
            At::Before(next) => *next,
            At::Open(wave) => {
                let bakes = !rules.skip.contains(&Skip::Bake);
                let bake_ms = if bakes { self.plan.parameters.bake_ms } else { 0 };
                // The way back is judged by the health of the nodes alone: a check still sees what the release did.
                return self.settled(now, *wave, bake_ms, false);
            }
            At::Settled { wave, bake_until, checks } => {
                return self.passed(now, *wave, *bake_until, checks);
            }
        };
        let nodes = match self.nodes_of(wave) {
            // Nodes that an earlier leader had ordered, and that this log heard of only now.
            [] => self.strays(),
            nodes => nodes.to_vec(),
        };
        if nodes.is_empty() {
            return Some(self.end(self.because(Why::Fact(since)), self.outcome_back(then), None));
        }
        Some(RolloutEvent::WaveStarted(WaveStarted {
            cause: Why::Fact(since),
            wave: number(wave),
            step: Step::Return,
            kind: WaveKind::Batch,
            nodes,
            until: now.plus_ms(self.plan.parameters.healthy_deadline_ms + VERDICT_SLACK_MS),
        }))
    }

    /// Returns the nodes that are on the way forward, or there, while all others go back.
    fn strays(&self) -> Vec<NodeId> {
        let astray = |state: NodeState| {
            matches!(state, NodeState::Ordered | NodeState::Started { .. } | NodeState::Healthy)
                || matches!(state, NodeState::Failed { returned: false, .. })
        };
        let found = self.members.iter().filter(|(_, member)| astray(member.state));
        found.map(|(node, _)| node.clone()).collect()
    }

    fn outcome_back(&self, then: Verdict) -> Verdict {
        let any = |test: fn(NodeState) -> bool| self.members.values().any(|m| test(m.state));
        if any(|state| state == NodeState::ReturnFailed) {
            Verdict::RollbackFailed
        } else if then == Verdict::RolledBack
            && any(|state| matches!(state, NodeState::Lost { .. }))
        {
            // What runs on a node that is away is not known: never success by silence.
            Verdict::Stopped
        } else {
            then
        }
    }
}

/// Returns the result of a check, once its measurements say one.
fn judge(rules: &Check, run: &CheckRun) -> Option<CheckResult> {
    if run.bad > rules.failure_limit {
        Some(CheckResult::Failed)
    } else if run.inconclusive > 0 || run.errors_in_a_row > rules.consecutive_error_limit {
        Some(CheckResult::Inconclusive)
    } else {
        (run.good + run.bad >= rules.count).then_some(CheckResult::Success)
    }
}
