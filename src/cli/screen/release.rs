//! What happened to releases, in words.

use std::collections::BTreeSet;

use super::units::{size, span};
use super::words::{exit_words, name_of};
use crate::domain::code::Code;
use crate::domain::document::rfc3339;
use crate::domain::event::Event;
use crate::domain::release::{Manifest, Phase, ReleaseFailed, ReleaseId, Step};
use crate::wire::codec;

/// What one line of the history says of a release.
pub(super) struct Told {
    /// In a word or two: `deployed`.
    pub(super) what: &'static str,
    /// What came of it.
    pub(super) result: String,
    /// Whether it is a step on the way, which only `--all` shows.
    pub(super) is_detail: bool,
}

/// Says what an event tells of a release; `None` when it tells of something else.
pub(super) fn told(event: &Event) -> Option<Told> {
    let told = |what, result: String, is_detail| Some(Told { what, result, is_detail });
    match event {
        Event::OrderAccepted(it) => told(
            "ordered",
            format!(
                "{} by {}, term {}, wave {}",
                name_of(&it.step),
                it.controller,
                it.term,
                it.wave
            ),
            true,
        ),
        Event::ReleaseStaged(it) => told(
            "staged",
            format!(
                "{}, {} in {}",
                named(&it.version, it.release),
                size(it.bytes),
                span(it.took_ms)
            ),
            true,
        ),
        Event::ReleaseApplied(it) => match (it.step, it.now) {
            (Step::Apply, now) => {
                told("deploying", named(&it.version, now.unwrap_or(it.release)), false)
            }
            (Step::Return | Step::Leave, Some(now)) => {
                told("returning", format!("to {}", named(&it.version, now)), true)
            }
            (Step::Return | Step::Leave, None) => {
                told("returning", "to its spec files".to_owned(), true)
            }
        },
        Event::ReleaseHealthy(it) => told(
            "deployed",
            format!(
                "{}, ready {}, held {}",
                it.release.short(),
                span(it.ready_ms),
                span(it.held_ms)
            ),
            false,
        ),
        Event::ReleaseFailed(it) => told("deploy failed", failed(it), false),
        Event::ReleaseReturned(it) => {
            let to = it.to.map_or_else(|| "its spec files".to_owned(), |to| to.short());
            told("returned", format!("to {to} in {}", span(it.took_ms)), false)
        }
        Event::ConfigChanged(it) => {
            let list =
                |keys: &BTreeSet<String>| keys.iter().cloned().collect::<Vec<_>>().join(", ");
            let unset = match it.unset.is_empty() {
                true => String::new(),
                false => format!("not any more: {}", list(&it.unset)),
            };
            let until = it.until.map(|until| format!(" until {}", rfc3339(until)));
            let set = format!("{}{}", list(&it.set), until.unwrap_or_default());
            let both: Vec<String> = [set, unset].into_iter().filter(|it| !it.is_empty()).collect();
            told("configured", format!("{} ({})", both.join("; "), it.layer.number()), false)
        }
        Event::ConfigExpired(it) => {
            let keys: Vec<&str> = it.keys.iter().map(String::as_str).collect();
            told("configured", format!("the time of {} is over", keys.join(", ")), false)
        }
        Event::ReleaseRemoved(_) => told("removed", "nothing of it runs".to_owned(), false),
        Event::ReleaseRefused(it) => {
            let times = if it.count > 1 { format!(" ({} times)", it.count) } else { String::new() };
            told("order refused", format!("[{}] {}{times}", it.code, it.why), false)
        }
        _ => None,
    }
}

/// Returns what happened to a release: `deployed: 2.5.0 (e83d10c2)`.
pub(super) fn clause(event: &Event) -> String {
    told(event).map(|told| format!("{}: {}", told.what, told.result)).unwrap_or_default()
}

fn failed(it: &ReleaseFailed) -> String {
    let at = match it.phase {
        _ if it.code == Code::ACTION_FAILED.to_string() => "was healthy, but",
        Phase::Staging => "was not staged",
        Phase::Starting => "did not become ready",
        Phase::Holding => "did not stay healthy",
    };
    let exit = it.exit.map(|exit| format!(", {}", exit_words(exit))).unwrap_or_default();
    let whose = it.instance.as_ref().map(|it| format!("{it}: ")).unwrap_or_default();
    format!("{} {at}: {whose}{}{exit}", it.release.short(), it.why)
}

/// Returns the name of the release with this manifest.
pub(crate) fn of_manifest(bytes: &[u8]) -> String {
    let manifest: Option<Manifest> = codec::decode(bytes).ok();
    let version = manifest.map(|manifest| manifest.version).unwrap_or_default();
    named(&version, ReleaseId::of(bytes))
}

/// Returns `2.5.0 (e83d10c2)`.
pub(crate) fn named(version: &str, release: ReleaseId) -> String {
    match version {
        "" => release.short(),
        version => format!("{version} ({})", release.short()),
    }
}

/// Returns `info`, `warning` or `error` of an event about a release.
pub(super) fn severity(event: &Event) -> &'static str {
    match event {
        Event::ReleaseFailed(_) => "error",
        Event::ReleaseReturned(_) | Event::ReleaseRefused(_) => "warning",
        _ => "info",
    }
}
