//! Facts of rollouts in words, without who and where.

use super::Step;
use super::event::{Breach, BudgetExceeded, CheckEnded, CheckResult, RolloutEvent, Verdict};
use super::input::{Failure, Measure};
use crate::domain::event::Exit;
use crate::domain::id::NodeId;

impl RolloutEvent {
    /// Returns what happened, in a line: `1 failed node > max_failures 0`.
    pub fn text(&self) -> String {
        match self {
            Self::Planned(body) => {
                let waves = number(body.waves.len(), "wave");
                format!("planned on {} in {waves}", number(body.plan.size(), "node"))
            }
            Self::Approved(_) => "approved".to_owned(),
            Self::Started(_) => "started".to_owned(),
            Self::TakenOver(body) => format!("led by {} in term {}", body.controller, body.term),
            Self::WaveStarted(body) => {
                let way = match body.step {
                    Step::Apply => "wave",
                    Step::Return | Step::Leave => "back: wave",
                };
                format!("{way} {}: {}", body.wave, names(&body.nodes))
            }
            Self::NodeStarted(body) => format!("{} changes", body.node),
            Self::NodeHealthy(body) => {
                let [ready, held] = [body.ready_ms, body.held_ms].map(seconds);
                format!("{} is healthy (ready {ready}, held {held})", body.node)
            }
            Self::NodeFailed(body) => {
                let free = if body.counted { "" } else { "; it was not healthy before" };
                format!("node {} failed: {}{free}", body.node, body.failure.text())
            }
            Self::NodeUnreachable(body) => format!("node {} is away", body.node),
            Self::NodeSeen(body) => format!("node {} is back", body.node),
            Self::NodeLost(body) => {
                format!("node {} stayed away, and is not waited for", body.node)
            }
            Self::NodeReturned(body) => {
                format!("{} is back on the earlier release in {}", body.node, seconds(body.took_ms))
            }
            Self::ReturnFailed(body) => {
                format!("node {} could not go back: {}", body.node, body.failure.text())
            }
            Self::LateJoined(body) => format!("node {} joined late", body.node),
            Self::WaveSettled(body) => format!("wave {} has its verdicts", body.wave),
            Self::CheckMeasured(body) => {
                let measure = match body.measure {
                    Measure::Good => "good",
                    Measure::Bad => "bad",
                    Measure::Inconclusive => "inconclusive",
                    Measure::Error => "not measured",
                };
                format!("check {} number {}: {measure} {}", body.check, body.number, body.value)
            }
            Self::CheckEnded(body) => body.text(),
            Self::WavePassed(body) => format!("wave {} passed", body.wave),
            Self::PromotionAwaited(body) => format!("waits for promotion after wave {}", body.wave),
            Self::Promoted(_) => "promoted".to_owned(),
            Self::BudgetExceeded(body) => body.text(),
            Self::Paused(_) => "paused".to_owned(),
            Self::Resumed(_) => "resumed".to_owned(),
            Self::RollbackStarted(body) => {
                let nodes: Vec<NodeId> = body.waves.iter().flatten().cloned().collect();
                format!("back to {}: {}", body.to.short(), names(&nodes))
            }
            Self::Stopping(body) => match &body.no_way_back {
                Some(why) => format!("stopped, for there is no way back: {why}"),
                None => "stopped: no new node".to_owned(),
            },
            Self::Ended(body) => {
                format!("{}, exit code {}", body.state.as_str(), body.exit_code)
            }
            Self::Part(body) => {
                format!("part {} of {} of `{}`", body.part + 1, body.parts, body.whole)
            }
        }
    }

    /// Returns `info`, `warning` or `error`.
    pub fn severity(&self) -> &'static str {
        match self {
            Self::NodeFailed(_) | Self::ReturnFailed(_) | Self::BudgetExceeded(_) => "error",
            Self::CheckEnded(body) if body.result == CheckResult::Failed => "error",
            Self::Ended(body) if body.state == Verdict::Succeeded => "info",
            Self::Ended(body) if body.by.is_none() => "error",
            Self::NodeUnreachable(_)
            | Self::NodeLost(_)
            | Self::RollbackStarted(_)
            | Self::Stopping(_)
            | Self::Paused(_)
            | Self::Ended(_) => "warning",
            Self::CheckEnded(body) if body.result == CheckResult::Inconclusive => "warning",
            _ => "info",
        }
    }

    /// Says whether it is a step on the way, which people ask for only when they look closely.
    pub fn is_detail(&self) -> bool {
        matches!(
            self,
            Self::NodeStarted(_)
                | Self::WaveSettled(_)
                | Self::CheckMeasured(_)
                | Self::WavePassed(_)
                | Self::NodeSeen(_)
                | Self::TakenOver(_)
                | Self::Started(_)
        )
    }
}

impl Failure {
    /// Returns `exited with code 1, 0.31s after start, before it was ready`.
    pub fn text(&self) -> String {
        let ran = self.ran_ms.map(|ms| format!(", {} after start", seconds(ms)));
        let ran = ran.unwrap_or_default();
        let phase = match self.phase.as_str() {
            "" => "",
            "staging" => ", before it was started",
            "starting" => ", before it was ready",
            "ready" | "holding" => ", before it counted as healthy",
            _ => ", after it was healthy",
        };
        match self.exit {
            Some(Exit::Code(code)) => format!("exited with code {code}{ran}{phase}"),
            Some(Exit::Signal { signal, .. }) => {
                format!("was ended by signal {signal}{ran}{phase}")
            }
            Some(Exit::Unknown) => format!("ended, nobody saw how{ran}{phase}"),
            None => match self.result.as_str() {
                "deadline" => "gave no verdict in time".to_owned(),
                "unreachable" => "is away".to_owned(),
                "wrong_program" => "runs another program than the release has".to_owned(),
                "returned" => "went back by itself".to_owned(),
                _ if !self.why.is_empty() => self.why.clone(),
                other => format!("{other}{ran}{phase}"),
            },
        }
    }
}

impl CheckEnded {
    /// Returns `check rate failed after wave 1`.
    pub fn text(&self) -> String {
        let what = match self.result {
            CheckResult::Success => "passed",
            CheckResult::Failed => "failed",
            CheckResult::Inconclusive => "could not be judged",
        };
        format!("check {} {what} after wave {}", self.check, self.wave)
    }
}

impl BudgetExceeded {
    /// Returns `1 failed node > max_failures 0`.
    pub fn text(&self) -> String {
        match &self.breach {
            Breach::Failures => {
                let failed = number(self.failed.len(), "failed node");
                format!("{failed} > max_failures {}", self.allowed)
            }
            Breach::Unreachable => {
                let away = number(self.unreachable.len(), "unreachable node");
                format!("{away} > max_unreachable {}", self.allowed)
            }
            Breach::Canary => "those that go first are not healthy".to_owned(),
            Breach::Check(name) => format!("check {name} does not pass"),
            Breach::Progress => "no node became healthy within progress_deadline".to_owned(),
        }
    }
}

fn number(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Names at most eight nodes: a line is a line.
fn names(nodes: &[NodeId]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<&str> = nodes.iter().take(SHOWN).map(NodeId::as_str).collect();
    match nodes.len().saturating_sub(SHOWN) {
        0 => shown.join(" "),
        more => format!("{} and {more} more", shown.join(" ")),
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02}s", ms / 1000, ms % 1000 / 10)
}
