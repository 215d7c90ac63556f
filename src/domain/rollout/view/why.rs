//! The chain of causes: from where a rollout stands back to what began it.

use super::{Record, WhyView, written};
use crate::domain::document::At;
use crate::domain::id::NodeId;
use crate::domain::origin::Origin;
use crate::domain::rollout::event::{Ended, RolloutEvent, Verdict, Why};
use crate::domain::rollout::state::Rollout;

/// How many links are told: a chain that long has long left what people ask for.
const LINKS_MAX: usize = 16;

/// Returns the chain that ends in the last turn of a rollout, causes first. Empty while nothing went wrong and nobody
/// did anything.
pub(super) fn chain(rollout: &Rollout, records: &[&Record]) -> Vec<WhyView> {
    let is_turn = |record: &&&Record| {
        matches!(
            record.event,
            RolloutEvent::Paused(_)
                | RolloutEvent::BudgetExceeded(_)
                | RolloutEvent::RollbackStarted(_)
                | RolloutEvent::Stopping(_)
                | RolloutEvent::Ended(_)
        )
    };
    let succeeded = rollout.verdict() == Some(Verdict::Succeeded);
    let mut next = records.iter().rev().find(is_turn).filter(|_| !succeeded).copied();
    let mut links = Vec::new();
    while let Some(record) = next.take().filter(|_| links.len() < LINKS_MAX) {
        let Some((kind, r#where, text, origin)) = told(record, rollout, records) else { break };
        let cause = record.event.cause();
        links.push(WhyView {
            at: Some(At(record.at)),
            kind,
            r#where,
            text,
            event: record.id.to_string(),
            cause: written(cause, records),
            origin,
        });
        match cause {
            Why::Fact(number) => next = fact(*number, records),
            Why::Report(event) => {
                links.extend(report(record).map(|(kind, r#where, text)| WhyView {
                    at: None,
                    kind,
                    r#where: Some(r#where),
                    text,
                    event: event.to_string(),
                    cause: None,
                    origin: None,
                }));
            }
            Why::Intent(_) | Why::Time => {}
        }
    }
    links.reverse();
    links
}

fn fact<'r>(number: u32, records: &[&'r Record]) -> Option<&'r Record> {
    usize::try_from(number).ok().and_then(|at| records.get(at)).copied()
}

/// Returns the fact that led to another.
fn follows<'r>(cause: &Why, records: &[&'r Record]) -> Option<&'r RolloutEvent> {
    match cause {
        Why::Fact(number) => fact(*number, records).map(|record| &record.event),
        Why::Intent(_) | Why::Report(_) | Why::Time => None,
    }
}

/// Returns what the node itself said, where its report led to a fact.
fn report(record: &Record) -> Option<(&'static str, String, String)> {
    let (node, failure) = match &record.event {
        RolloutEvent::NodeFailed(body) => (&body.node, &body.failure),
        RolloutEvent::ReturnFailed(body) => (&body.node, &body.failure),
        _ => return None,
    };
    let instance = failure.instance.as_ref();
    let r#where = instance.map_or(node.to_string(), |instance| format!("{instance}@{node}"));
    let kind = match failure.exit {
        _ if failure.result == "action_failed" => "action_failed",
        Some(_) => "instance_exited",
        None => "release_failed",
    };
    Some((kind, r#where, failure.text()))
}

type Told = (&'static str, Option<String>, String, Option<Origin>);

fn told(record: &Record, rollout: &Rollout, records: &[&Record]) -> Option<Told> {
    let on = |node: &NodeId| Some(node.to_string());
    Some(match &record.event {
        RolloutEvent::NodeFailed(body) => {
            let why = match body.cause {
                Why::Report(_) => String::new(),
                Why::Intent(_) | Why::Fact(_) | Why::Time => {
                    format!(": it {}", body.failure.text())
                }
            };
            let free =
                if body.counted { "" } else { "; it was not healthy before, so it does not count" };
            ("node_failed", on(&body.node), format!("node {} failed{why}{free}", body.node), None)
        }
        RolloutEvent::ReturnFailed(body) => {
            ("return_failed", on(&body.node), format!("node {} could not go back", body.node), None)
        }
        RolloutEvent::NodeUnreachable(body) => {
            ("node_unreachable", on(&body.node), format!("node {} is away", body.node), None)
        }
        RolloutEvent::NodeLost(body) => {
            let text = format!("node {} stayed away beyond its deadline", body.node);
            ("node_lost", on(&body.node), text, None)
        }
        RolloutEvent::CheckEnded(body) => ("check_ended", None, body.text(), None),
        RolloutEvent::CheckMeasured(_) => ("check_measured", None, record.event.text(), None),
        RolloutEvent::BudgetExceeded(body) => {
            ("budget_exceeded", None, body.text(), body.origin.clone())
        }
        RolloutEvent::Paused(body) => {
            let text = match &body.by {
                Some(by) => format!("paused by {}", by.name),
                None => {
                    let key = match follows(&body.cause, records) {
                        Some(RolloutEvent::CheckEnded(_)) => "on_inconclusive",
                        _ => "on_failure",
                    };
                    format!("{key} = \"pause\": nothing new begins until somebody decides")
                }
            };
            ("paused", None, text, body.origin.clone())
        }
        RolloutEvent::RollbackStarted(body) => {
            let text = match &body.by {
                Some(by) => format!("aborted by {}: back to the last good release", by.name),
                None => "on_failure = \"rollback\": back to the last good release".to_owned(),
            };
            ("rollback_chosen", None, text, body.origin.clone())
        }
        RolloutEvent::Stopping(body) => {
            let text = match (&body.no_way_back, &body.by) {
                (Some(why), _) => format!("stopped, for there is no way back: {why}"),
                (None, Some(by)) => format!("aborted by {}, everything left as it is", by.name),
                (None, None) => "on_failure = \"stop\": no new node".to_owned(),
            };
            ("stopped", None, text, body.origin.clone())
        }
        RolloutEvent::Ended(body) => ("ended", None, end_text(body, rollout, records), None),
        _ => return None,
    })
}

fn end_text(body: &Ended, rollout: &Rollout, records: &[&Record]) -> String {
    let back = records.iter().rev().find_map(|record| match &record.event {
        RolloutEvent::RollbackStarted(body) => Some((record.at, body)),
        _ => None,
    });
    let ended_at = records.last().map(|record| record.at).unwrap_or_default();
    match (body.state, back) {
        (Verdict::RolledBack | Verdict::Aborted, Some((since, back))) => {
            let nodes: Vec<&str> = back.waves.iter().flatten().map(NodeId::as_str).collect();
            let ms = ended_at.ms_since(since);
            format!("rolled back {} in {}.{}s", nodes.join(" "), ms / 1000, ms % 1000 / 100)
        }
        (Verdict::RollbackFailed, _) => "a node could not go back: a person is needed".to_owned(),
        (Verdict::Stopped, _) => "stopped: the fleet is mixed".to_owned(),
        (Verdict::Superseded, _) => "a newer deploy took its place".to_owned(),
        (Verdict::Aborted, None) => match &body.by {
            Some(by) => format!("aborted by {}", by.name),
            None => "aborted, everything left as it is".to_owned(),
        },
        (Verdict::RolledBack | Verdict::Succeeded, _) => rollout.state().to_owned(),
    }
}
