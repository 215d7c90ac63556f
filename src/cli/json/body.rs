//! `data` of `smgr.event.v1`, by type.

use serde_json::{Value, json};

use super::event::Beside;
use super::{controller, digest, release, rollout, time};
use crate::cli::screen::event::after;
use crate::cli::screen::words::{full_intent, name_of, signal_name};
use crate::domain::document::ExitView;
use crate::domain::event::{
    Event, InstanceExited, Next, Outcome, PartStarted, RunResult, StateName, Usage,
};
use crate::domain::intent::Action;
use crate::domain::origin::Layer;

/// Returns what an event says beside its head.
pub(super) fn data(event: &Event, beside: &Beside<'_>) -> Value {
    match event {
        Event::LogOpened(it) => json!({
            "reason": name_of(&it.reason),
            "version": it.version,
            "predecessor": it.predecessor.as_ref().map(|before| json!({
                "epoch": before.epoch.token(), "size": before.size, "root": digest(&before.root),
            })),
        }),
        Event::Baseline(it) => json!({
            "part": it.part, "parts": it.parts, "fold": it.fold, "state_hash": digest(&it.state_hash),
            "state_bytes": it.state.len(),
        }),
        Event::LogRetired(it) => json!({
            "epoch": it.epoch.token(), "first": it.first.0, "last": it.last.0, "root": digest(&it.root),
        }),
        Event::LogUnavailable(it) => json!({"kind": it.kind, "why": it.why}),
        Event::LogRecovered(it) => json!({
            "unavailable_ms": it.unavailable_ms, "late": it.late, "summarized": it.summarized,
            "dropped": it.dropped,
        }),
        Event::AgentStarted(it) | Event::KeeperStarted(it) | Event::ControllerStarted(it) => {
            part_started(it)
        }
        Event::AgentStopping(it) => json!({"leave_running": it.leave_running}),
        Event::AgentStopped(it) => json!({"services_left_running": it.services_left_running}),
        Event::TrustChanged(it) => json!({"version": it.version, "digest": digest(&it.digest)}),
        Event::ServiceAdded(it) => json!({
            "spec": digest(&it.digest), "origin": it.origin, "instances": it.instances,
            "desired": name_of(&it.desired), "keys": it.keys,
        }),
        Event::ServiceRemoved(it) => json!({"spec": digest(&it.digest)}),
        Event::DesiredChanged(it) => json!({
            "desired": name_of(&it.desired), "generation": it.generation.0,
        }),
        Event::IntentAccepted(it) => json!({
            "intent": full_intent(it.intent), "digest": digest(&it.digest),
            "action": action(&it.action), "expires_at": time(Some(it.expires_at)),
            "instances": it.awaited().map(|instance| instance.to_string()).collect::<Vec<_>>(),
            "release": it.release.map(|it| digest(&it.0)),
        }),
        Event::IntentRefused(it) => json!({
            "intent": it.intent.map(full_intent), "code": it.code, "why": it.why, "count": it.count,
        }),
        Event::IntentExecuted(it) => json!({
            "intent": full_intent(it.intent), "outcome": outcome(&it.outcome),
        }),
        Event::ActionStarted(it) => json!({
            "intent": full_intent(it.intent), "action": it.action.as_str(),
            "until": time(Some(it.until)),
        }),
        Event::ActionEnded(it) => json!({
            "intent": full_intent(it.intent), "action": it.action.as_str(),
            "exit": ExitView::of(it.exit, false), "timed_out": it.timed_out, "ran_ms": it.ran_ms,
        }),
        Event::AlertFired(it) => json!({
            "alert": it.alert, "severity": it.severity, "summary": it.summary,
            "labels": it.labels, "annotations": it.annotations,
            "log": it.line.as_ref().map(|_| log(beside)),
        }),
        Event::AlertResolved(it) => json!({"alert": it.alert}),
        Event::LinesDropped(it) => json!({"lines": it.lines, "bytes": it.bytes, "why": it.why}),
        Event::Summarized(it) => json!({
            "starts": it.starts, "exits": it.exits, "first_at": time(Some(it.first_at)),
            "last_at": time(Some(it.last_at)),
            "live": it.live.map(|(run, pid)| json!({"run": run.0, "pid": pid})),
        }),
        Event::InstanceWaiting(it) => {
            let on: Vec<&str> = it.on.iter().map(|service| service.as_str()).collect();
            let missing: Vec<&str> = it.missing.iter().map(|service| service.as_str()).collect();
            let rest = json!({"on": on, "missing": missing});
            transition(Some(it.from), Some(StateName::Waiting), rest)
        }
        Event::InstanceStarting(it) => {
            transition(Some(it.from), Some(StateName::Starting), json!({"fresh": it.fresh}))
        }
        Event::InstanceSignalled(it) => {
            let rest = json!({
                "intent": full_intent(it.intent), "signal": signal_name(it.signal), "failed": it.failed,
            });
            transition(None, None, rest)
        }
        Event::InstanceStarted(it) => {
            let rest = json!({
                "pid": it.pid, "pidfd_inode": it.pidfd_inode, "spec": digest(&it.spec),
                "restarts": it.restarts,
            });
            transition(Some(it.from), Some(it.to), rest)
        }
        Event::InstanceStartFailed(it) => {
            let rest = json!({
                "result": name_of(&RunResult::Resources), "step": it.step, "errno": it.errno,
                "why": it.why, "restarts": it.restarts, "next_attempt_at": time(it.next_attempt_at),
            });
            transition(Some(it.from), Some(it.to), rest)
        }
        Event::InstanceReady(it) => {
            let rest = json!({"how": it.how, "ready_ms": it.ready_ms});
            transition(Some(StateName::Starting), Some(StateName::Running), rest)
        }
        Event::InstanceHealthy(it) => {
            transition(None, None, json!({"check": it.check.as_str(), "in_a_row": it.in_a_row}))
        }
        Event::InstanceUnhealthy(it) => {
            let rest = json!({
                "check": it.check.as_str(), "in_a_row": it.in_a_row,
                "on_failure": name_of(&it.on_failure), "message": it.message,
            });
            transition(None, None, rest)
        }
        Event::InstanceExited(it) => {
            transition(Some(it.from), Some(after(it.next)), exited(it, beside))
        }
        Event::InstanceStopping(it) => {
            let rest = json!({
                "phase": name_of(&it.phase), "until": time(Some(it.until)), "then_start": it.then_start,
                "reason": name_of(&it.reason),
            });
            transition(Some(it.from), Some(StateName::Stopping), rest)
        }
        Event::InstanceStopped(it) => {
            let rest = json!({"next": next(it.next), "took_ms": it.took_ms});
            transition(Some(StateName::Stopping), Some(after(it.next)), rest)
        }
        Event::InstanceHandedOver(it) => {
            let rest =
                json!({"from_run": it.from.0, "is_ready": it.is_ready, "took_ms": it.took_ms});
            transition(None, None, rest)
        }
        Event::InstanceReloading(it) => {
            let rest = json!({"until": time(Some(it.until))});
            transition(Some(StateName::Running), Some(StateName::Reloading), rest)
        }
        Event::InstanceReloaded(it) => {
            let rest = json!({"failed": it.failed, "took_ms": it.took_ms});
            transition(Some(StateName::Reloading), Some(StateName::Running), rest)
        }
        Event::InstanceAdopted(it) => {
            transition(None, None, json!({"pid": it.pid, "away": it.away, "away_ms": it.away_ms}))
        }
        Event::OrderAccepted(_)
        | Event::ReleaseStaged(_)
        | Event::ReleaseApplied(_)
        | Event::ReleaseHealthy(_)
        | Event::ReleaseFailed(_)
        | Event::ReleaseReturned(_)
        | Event::ConfigChanged(_)
        | Event::ConfigExpired(_)
        | Event::ReleaseRemoved(_)
        | Event::ReleaseRefused(_) => release::data(event),
        Event::ControllerLed(_)
        | Event::ControllerSteppedDown(_)
        | Event::NodeUnreachable(_)
        | Event::PlacementOrdered(_)
        | Event::PlacementHeld(_)
        | Event::NodeSeen(_)
        | Event::LogForked(_) => controller::data(event),
        Event::Rollout(it) => rollout::data(it),
    }
}

/// The six members that every transition has, with those of its type.
fn transition(from: Option<StateName>, to: Option<StateName>, rest: Value) -> Value {
    let name = |state: Option<StateName>| state.as_ref().map(name_of);
    let mut data = json!({
        "from": name(from), "to": name(to), "result": null, "exit": null, "usage": null, "log": null,
    });
    if let (Value::Object(data), Value::Object(rest)) = (&mut data, rest) {
        data.extend(rest);
    }
    data
}

/// Says what is left of the lines that lie beside the log.
fn log(beside: &Beside<'_>) -> Value {
    json!({
        "cursor": beside.log_cursor,
        "tail": beside.tail.unwrap_or_default(),
        "tail_redacted": 0,
        "tail_dropped": beside.tail.is_none(),
    })
}

fn exited(it: &InstanceExited, beside: &Beside<'_>) -> Value {
    let next_attempt_at = match it.then.unwrap_or(it.next) {
        Next::At(at) => Some(at),
        Next::AtOnce | Next::Stopping | Next::Completed | Next::Failed | Next::Inactive => None,
    };
    let log = it.tail.as_ref().map(|_| log(beside));
    json!({
        "result": name_of(&it.result), "exit": ExitView::of(it.exit, it.oom_killed), "usage": usage(&it.usage),
        "log": log, "pid": it.pid, "ran_ms": it.ran_ms, "restarts": it.restarts,
        "next": next(it.next), "then": it.then.map(next), "next_attempt_at": time(next_attempt_at), "delay_ms": it.delay_ms,
    })
}

fn usage(usage: &Usage) -> Value {
    json!({
        "cpu_user_ms": usage.cpu_user_ms,
        "cpu_system_ms": usage.cpu_system_ms,
        "memory_peak_bytes": usage.memory_peak_bytes,
    })
}

fn next(next: Next) -> &'static str {
    match next {
        Next::AtOnce => "at_once",
        Next::At(_) => "at",
        Next::Stopping => "stopping",
        Next::Completed => "completed",
        Next::Failed => "failed",
        Next::Inactive => "inactive",
    }
}

fn part_started(it: &PartStarted) -> Value {
    json!({
        "version": it.version, "pid": it.pid, "uid": it.uid, "boot": it.boot.to_string(),
        "after": it.after.map(|after| ExitView::of(after, false)), "away_ms": it.away_ms,
    })
}

fn action(action: &Action) -> Value {
    let mut object = json!({
        "verb": name_of(&action.verb()),
        "service": action.service().map(|service| service.as_str()),
    });
    let more = match action {
        Action::Signal { signal, .. } => json!({"signal": signal_name(*signal)}),
        Action::Run { action, params, .. } => json!({"action": action.as_str(), "params": params}),
        Action::Apply { services } => {
            json!({"services": services.iter().map(|it| it.as_str()).collect::<Vec<_>>()})
        }
        Action::Shutdown { leave_running } => json!({"leave_running": leave_running}),
        Action::Deploy { generation, back_to, emergency, retry, on_conflict, rollback, .. } => {
            json!({
                "generation": generation.0, "back_to": back_to.map(|it| digest(&it.0)),
                "emergency": emergency, "retry": retry.map(|it| it.to_string()),
                "on_conflict": on_conflict, "rollback": rollback,
            })
        }
        Action::Rollout { rollout, command, .. } => json!({
            "rollout": rollout.to_string(), "command": command,
        }),
        Action::Remove { generation, .. } => json!({"generation": generation.0}),
        Action::Configure { generation, set, unset, until, .. } => json!({
            "layer": action.layer().map(Layer::number), "generation": generation.map(|it| it.0),
            "set": set.keys().collect::<Vec<_>>(), "unset": unset, "until": time(*until),
        }),
        Action::Start { .. }
        | Action::Stop { .. }
        | Action::Restart { .. }
        | Action::Reload { .. } => {
            json!({})
        }
    };
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

pub(super) fn outcome(outcome: &Outcome) -> Value {
    let (state, changed, code, why, ended) = match outcome {
        Outcome::Done { changed } => ("done", Some(*changed), None, None, None),
        Outcome::Failed { code, why, exit } => ("failed", None, Some(code), Some(why), *exit),
        Outcome::Unknown { why } => ("unknown", None, None, Some(why), None),
    };
    json!({
        "state": state, "changed": changed, "code": code, "why": why,
        "exit": ended.map(|ended| ExitView::of(ended, false)),
    })
}
