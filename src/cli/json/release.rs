//! What happened to releases, as `data` of an event.

use serde_json::{Value, json};

use super::{digest, time};
use crate::cli::screen::words::{full_intent, name_of};
use crate::domain::document::{ExitView, Sha256};
use crate::domain::event::Event;

/// Returns the data of an event about a release; null when it is about something else.
pub(super) fn data(event: &Event) -> Value {
    match event {
        Event::OrderAccepted(it) => json!({
            "intent": full_intent(it.intent), "generation": it.generation.0,
            "release": it.release.map(Sha256), "step": name_of(&it.step), "plan": digest(&it.plan),
            "term": it.term, "controller": it.controller.as_str(),
            "verified_at": time(Some(it.verified_at)), "wave": it.wave,
        }),
        Event::ReleaseStaged(it) => json!({
            "generation": it.generation.0, "release": Sha256(it.release), "version": it.version,
            "artifact": it.artifact.as_ref().map(digest), "tree": it.tree.as_ref().map(digest),
            "bytes": it.bytes, "took_ms": it.took_ms,
        }),
        Event::ReleaseApplied(it) => json!({
            "generation": it.generation.0, "release": Sha256(it.release), "step": name_of(&it.step),
            "now": it.now.map(Sha256), "version": it.version, "spec": digest(&it.spec),
            "min_healthy_ms": it.min_healthy_ms, "healthy_by": time(Some(it.healthy_by)),
            "checks": it.checks.iter().map(|check| check.as_str()).collect::<Vec<_>>(),
            "by_process": it.by_process,
            "after": it.after.iter().map(|action| action.as_str()).collect::<Vec<_>>(),
            "keep": it.keep, "plan": it.plan.as_ref().map(digest), "term": it.term,
        }),
        Event::ReleaseHealthy(it) => json!({
            "generation": it.generation.0, "release": Sha256(it.release),
            "running": it.running.as_ref().map(digest), "ready_ms": it.ready_ms,
            "held_ms": it.held_ms,
        }),
        Event::ReleaseFailed(it) => json!({
            "generation": it.generation.0, "release": Sha256(it.release), "step": name_of(&it.step),
            "phase": name_of(&it.phase), "code": it.code, "why": it.why,
            "instance": it.instance.as_ref().map(ToString::to_string),
            "result": it.result.as_ref().map(name_of), "exit": it.exit.map(|it| ExitView::of(it, false)),
            "ran_ms": it.ran_ms, "returns": it.returns,
        }),
        Event::ReleaseReturned(it) => json!({
            "generation": it.generation.0, "release": Sha256(it.release), "to": it.to.map(Sha256),
            "took_ms": it.took_ms, "kept_serving": it.kept_serving,
        }),
        Event::ConfigChanged(it) => json!({
            "intent": full_intent(it.intent), "layer": it.layer.number(),
            "generation": it.generation.map(|it| it.0), "set": it.set, "unset": it.unset,
            "until": super::time(it.until),
        }),
        Event::ConfigExpired(it) => {
            json!({ "keys": it.keys, "until": super::time(Some(it.until)) })
        }
        Event::ReleaseRemoved(it) => json!({ "generation": it.generation.0 }),
        Event::ReleaseRefused(it) => json!({
            "intent": it.intent.map(full_intent), "generation": it.generation.map(|it| it.0),
            "release": it.release.map(Sha256), "step": name_of(&it.step), "term": it.term,
            "code": it.code, "why": it.why, "count": it.count,
        }),
        _ => Value::Null,
    }
}
