//! Which fact leads a run from which state to which. A pair that is not here is illegal.

use super::is_restart_limit;
use super::state::{Left, Main, State, Then};
use crate::domain::event::{
    Event, InstanceExited, InstanceStopping, Next, StateName, StopPhase, StopReason, Summarized,
};
use crate::domain::id::{Digest, RunId};
use crate::domain::time::UnixMicros;

impl State {
    /// Returns the state after the event: `None` when it is illegal, `Some(None)` when the state stays.
    #[expect(
        clippy::option_option,
        reason = "illegal and unchanged are different answers, used in one place"
    )]
    pub(super) fn after(
        &self,
        at: UnixMicros,
        run: Option<RunId>,
        last_run: RunId,
        event: &Event,
    ) -> Option<Option<State>> {
        let ours = self.run().is_some() && self.run() == run;
        match (self, event) {
            (
                State::Inactive
                | State::Waiting { .. }
                | State::Spawning { .. }
                | State::Backoff { .. }
                | State::Completed
                | State::Failed,
                Event::InstanceStarting(_),
            ) => match run {
                Some(run) if run > last_run => Some(Some(State::Spawning { run })),
                _ => None,
            },
            (
                State::Inactive
                | State::Waiting { .. }
                | State::Backoff { .. }
                | State::Completed
                | State::Failed,
                Event::InstanceWaiting(body),
            ) => Some(Some(State::Waiting { on: body.on.clone() })),

            (State::Spawning { .. }, Event::InstanceStarted(body)) if ours => {
                let main = Main::new(at, run?, body);
                match body.to {
                    StateName::Running => Some(Some(State::Running { main })),
                    _ => Some(Some(State::Starting { main, ready_by: body.ready_by })),
                }
            }
            (
                State::Stopping { left: Left::Asked, phase, until, began_at, reason, then, .. },
                Event::InstanceStarted(body),
            ) if ours => Some(Some(State::Stopping {
                run: run?,
                left: Left::Alive(Main::new(at, run?, body)),
                phase: *phase,
                until: *until,
                began_at: *began_at,
                reason: *reason,
                then: *then,
            })),
            (
                State::Spawning { .. } | State::Stopping { left: Left::Asked, .. },
                Event::InstanceStartFailed(body),
            ) if ours => match (body.to, body.next_attempt_at) {
                (StateName::Backoff, Some(until)) => Some(Some(State::Backoff { until })),
                (StateName::Failed, None) => Some(Some(State::Failed)),
                (StateName::Inactive, None) => Some(Some(State::Inactive)),
                _ => None,
            },

            (State::Starting { main, .. } | State::Running { main }, Event::InstanceReady(_)) if ours => {
                Some(Some(State::Running { main: main.clone() }))
            }

            (
                State::Starting { .. } | State::Running { .. } | State::Reloading { .. },
                Event::InstanceExited(body),
            ) if ours => self.after_exit(at, last_run, body).map(Some),
            (
                State::Stopping { left: Left::Alive(_), run, phase, until, began_at, reason, then },
                Event::InstanceExited(body),
            ) if ours && body.next == Next::Stopping => Some(Some(State::Stopping {
                run: *run,
                left: Left::Rest,
                phase: *phase,
                until: *until,
                began_at: *began_at,
                reason: *reason,
                then: body.then.and_then(Then::from_next).unwrap_or(*then),
            })),

            (
                State::Spawning { .. }
                | State::Starting { .. }
                | State::Running { .. }
                | State::Reloading { .. }
                | State::Stopping { .. },
                Event::InstanceStopping(body),
            ) if ours => Some(Some(self.after_stopping(at, run?, body))),
            (
                State::Stopping { left: Left::Asked | Left::Rest, .. },
                Event::InstanceStopped(body),
            ) if ours => rest_or_start(last_run, body.next).map(Some),
            (State::Waiting { .. } | State::Backoff { .. }, Event::InstanceStopped(body))
                if body.next == Next::Inactive =>
            {
                Some(Some(State::Inactive))
            }

            (State::Running { main }, Event::InstanceReloading(body)) if ours => {
                Some(Some(State::Reloading { main: main.clone(), until: body.until }))
            }
            (State::Reloading { main, .. }, Event::InstanceReloaded(_)) if ours => {
                Some(Some(State::Running { main: main.clone() }))
            }

            (
                State::Starting { .. }
                | State::Running { .. }
                | State::Reloading { .. }
                | State::Stopping { left: Left::Alive(_), .. },
                Event::InstanceAdopted(_),
            ) if ours => Some(None),
            (
                State::Starting { .. } | State::Running { .. } | State::Reloading { .. },
                Event::InstanceHealthy(_) | Event::InstanceUnhealthy(_),
            ) if ours => Some(None),
            (_, Event::InstanceSignalled(_)) => Some(None),
            (State::Running { main }, Event::AlertResolved(body)) if is_restart_limit(&body.alert) => {
                Some(Some(State::Running { main: Main { stable_at: None, ..main.clone() } }))
            }
            (_, Event::AlertFired(_) | Event::AlertResolved(_) | Event::LinesDropped(_)) => Some(None),
            (_, Event::Summarized(body)) => Some(Some(self.after_summary(body))),

            (
                State::Running { .. }
                | State::Starting { .. }
                | State::Reloading { .. }
                | State::Stopping { .. },
                Event::InstanceStarting(_) | Event::InstanceWaiting(_),
            )
            | (State::Spawning { .. }, Event::InstanceWaiting(_))
            | (
                _,
                Event::InstanceStarted(_)
                | Event::InstanceStartFailed(_)
                | Event::InstanceReady(_)
                | Event::InstanceHealthy(_)
                | Event::InstanceUnhealthy(_)
                | Event::InstanceExited(_)
                | Event::InstanceStopping(_)
                | Event::InstanceStopped(_)
                | Event::InstanceReloading(_)
                | Event::InstanceReloaded(_)
                | Event::InstanceAdopted(_)
                | Event::InstanceHandedOver(_),
            )
            // Facts about something else than an instance.
            | (
                _,
                Event::LogOpened(_)
                | Event::Baseline(_)
                | Event::LogRetired(_)
                | Event::LogUnavailable(_)
                | Event::LogRecovered(_)
                | Event::AgentStarted(_)
                | Event::AgentStopping(_)
                | Event::AgentStopped(_)
                | Event::KeeperStarted(_)
                | Event::TrustChanged(_)
                | Event::ServiceAdded(_)
                | Event::ServiceRemoved(_)
                | Event::DesiredChanged(_)
                | Event::IntentAccepted(_)
                | Event::IntentRefused(_)
                | Event::IntentExecuted(_)
                | Event::ActionStarted(_)
                | Event::ActionEnded(_)
                | Event::OrderAccepted(_)
                | Event::ReleaseStaged(_)
                | Event::ReleaseApplied(_)
                | Event::ReleaseHealthy(_)
                | Event::ReleaseFailed(_)
                | Event::ReleaseReturned(_)
                | Event::ConfigChanged(_)
                | Event::ConfigExpired(_)
                | Event::ReleaseRemoved(_)
                | Event::ReleaseRefused(_)
                | Event::ControllerStarted(_)
                | Event::ControllerLed(_)
                | Event::ControllerSteppedDown(_)
                | Event::NodeUnreachable(_)
                | Event::PlacementOrdered(_)
                | Event::PlacementHeld(_)
                | Event::NodeSeen(_)
                | Event::LogForked(_)
                | Event::Rollout(_),
            ) => None,
        }
    }

    fn after_exit(&self, at: UnixMicros, last_run: RunId, body: &InstanceExited) -> Option<State> {
        match (body.next, body.then) {
            (Next::Stopping, Some(then)) => Some(State::Stopping {
                run: self.run()?,
                left: Left::Rest,
                phase: StopPhase::Kill,
                until: body.until?,
                began_at: at,
                reason: StopReason::Leftover,
                then: Then::from_next(then)?,
            }),
            (Next::Stopping, None) => None,
            (next, _) => rest_or_start(last_run, next),
        }
    }

    fn after_stopping(&self, at: UnixMicros, run: RunId, body: &InstanceStopping) -> State {
        let left = match self {
            State::Stopping { left, .. } => left.clone(),
            state => state.main().map_or(Left::Asked, |main| Left::Alive(main.clone())),
        };
        let began_at = match self {
            State::Stopping { began_at, .. } => *began_at,
            _ => at,
        };
        let then = if body.then_start { Then::Start } else { Then::Inactive };
        let kept = match self {
            // An escalation keeps what was to follow, down to the time of a scheduled start.
            State::Stopping { then: before, .. } if before.starts() == body.then_start => *before,
            _ => then,
        };
        State::Stopping {
            run,
            left,
            phase: body.phase,
            until: body.until,
            began_at,
            reason: body.reason,
            then: kept,
        }
    }

    fn after_summary(&self, body: &Summarized) -> State {
        let spec = self.main().map_or(Digest([0; 32]), |main| main.spec);
        match body.live {
            Some((run, pid)) => State::Running {
                main: Main {
                    run,
                    pid,
                    pidfd_inode: 0,
                    spec,
                    started_at: body.last_at,
                    stable_at: None,
                },
            },
            None => State::Backoff { until: body.last_at },
        }
    }
}

fn rest_or_start(last_run: RunId, next: Next) -> Option<State> {
    match next {
        Next::AtOnce => Some(State::Spawning { run: RunId(last_run.0 + 1) }),
        Next::At(until) => Some(State::Backoff { until }),
        Next::Completed => Some(State::Completed),
        Next::Failed => Some(State::Failed),
        Next::Inactive => Some(State::Inactive),
        Next::Stopping => None,
    }
}
