//! `data` of the facts of rollouts.

use serde_json::{Value, json};

use super::{digest, time};
use crate::cli::screen::words::name_of;
use crate::domain::document::{ExitView, Sha256};
use crate::domain::rollout::{Failure, RolloutEvent, RolloutFact, Why};

/// Returns what a fact says beside its head.
pub(super) fn data(fact: &RolloutFact) -> Value {
    let mut data = own(&fact.event);
    let why = match fact.event.cause() {
        // Counted within the rollout, from 0; what lies outside it is the `cause` of the head.
        Why::Fact(number) => json!(number),
        Why::Intent(_) | Why::Report(_) | Why::Time => Value::Null,
    };
    if let Value::Object(data) = &mut data {
        data.insert("follows".to_owned(), why);
    }
    data
}

fn own(event: &RolloutEvent) -> Value {
    match event {
        RolloutEvent::Planned(it) => json!({
            "from": it.plan.back_to.map(Sha256), "to": Sha256(it.plan.release),
            "plan": digest(&it.digest), "generation": it.plan.generation.0, "reason": it.reason,
            "waves": it.waves.iter().map(|wave| json!({
                "kind": name_of(&wave.kind), "nodes": wave.nodes,
            })).collect::<Vec<_>>(),
            "controller": it.controller, "term": it.term,
        }),
        RolloutEvent::Approved(_) | RolloutEvent::Promoted(_) | RolloutEvent::Started(_) => {
            json!({})
        }
        RolloutEvent::TakenOver(it) => json!({
            "controller": it.controller, "term": it.term, "grace_until": time(Some(it.grace_until)),
        }),
        RolloutEvent::WaveStarted(it) => json!({
            "wave": it.wave, "step": name_of(&it.step), "kind": name_of(&it.kind),
            "nodes": it.nodes, "until": time(Some(it.until)),
        }),
        RolloutEvent::NodeStarted(it) => json!({"node": it.node, "until": time(Some(it.until))}),
        RolloutEvent::NodeHealthy(it) => json!({
            "node": it.node, "running": it.running.as_ref().map(digest), "ready_ms": it.ready_ms,
            "held_ms": it.held_ms, "until": time(Some(it.until)),
        }),
        RolloutEvent::NodeFailed(it) => json!({
            "node": it.node, "counted": it.counted, "failure": failure(&it.failure),
        }),
        RolloutEvent::NodeUnreachable(it) => {
            json!({"node": it.node, "until": time(Some(it.until))})
        }
        RolloutEvent::NodeSeen(it) => json!({"node": it.node, "until": time(Some(it.grace_until))}),
        RolloutEvent::NodeLost(it) => json!({"node": it.node, "counted": it.counted}),
        RolloutEvent::NodeReturned(it) => json!({
            "node": it.node, "to": it.to.map(Sha256), "took_ms": it.took_ms,
            "kept_serving": it.kept_serving,
        }),
        RolloutEvent::ReturnFailed(it) => {
            json!({"node": it.node, "failure": failure(&it.failure)})
        }
        RolloutEvent::LateJoined(it) => json!({"node": it.node}),
        RolloutEvent::WaveSettled(it) => json!({
            "wave": it.wave, "bake_until": time(Some(it.bake_until)), "until": time(Some(it.until)),
            "checks": it.checks.keys().collect::<Vec<_>>(),
        }),
        RolloutEvent::CheckMeasured(it) => json!({
            "check": it.check, "wave": it.wave, "number": it.number,
            "measure": name_of(&it.measure), "value": it.value,
        }),
        RolloutEvent::CheckEnded(it) => {
            json!({"check": it.check, "wave": it.wave, "result": name_of(&it.result)})
        }
        RolloutEvent::WavePassed(it) => json!({"wave": it.wave}),
        RolloutEvent::PromotionAwaited(it) => json!({"wave": it.wave}),
        RolloutEvent::BudgetExceeded(it) => json!({
            "breach": it.breach, "failed": it.failed, "unreachable": it.unreachable,
            "allowed": it.allowed, "origin": it.origin,
        }),
        RolloutEvent::Paused(it) => {
            json!({"progress_left_ms": it.progress_left_ms, "origin": it.origin})
        }
        RolloutEvent::Resumed(it) => json!({"until": time(Some(it.until))}),
        RolloutEvent::RollbackStarted(it) => json!({
            "to": Sha256(it.to), "waves": it.waves, "then": it.then.as_str(), "origin": it.origin,
        }),
        RolloutEvent::Stopping(it) => json!({
            "then": it.then.as_str(), "no_way_back": it.no_way_back, "until": time(Some(it.until)),
            "origin": it.origin,
        }),
        RolloutEvent::Part(it) => json!({
            "whole": it.whole, "digest": digest(&it.digest), "part": it.part, "parts": it.parts,
        }),
        RolloutEvent::Ended(it) => json!({
            "state": it.state.as_str(), "exit_code": it.exit_code, "changed": it.changed,
            "superseded_by": it.superseded_by.map(|intent| intent.to_string()),
        }),
    }
}

fn failure(it: &Failure) -> Value {
    json!({
        "instance": it.instance.as_ref().map(ToString::to_string), "result": it.result, "why": it.why,
        "exit": it.exit.map(|it| ExitView::of(it, false)), "ran_ms": it.ran_ms, "phase": it.phase,
        "tail_bytes": it.tail.as_ref().map(|tail| tail.bytes),
    })
}
