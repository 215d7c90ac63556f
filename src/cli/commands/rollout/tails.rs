//! What the nodes themselves add to a rollout: the last lines of what failed there.

use serde_json::{Value, json};

use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::follow::cri;
use crate::cli::time::{instant, now};
use crate::domain::id::{NodeId, ServiceId};
use crate::domain::time::UnixMicros;
use crate::wire::payload::{Ask, Reply};

/// How many last lines of an instance that failed are shown, how many are read to find them, and how long before the
/// start that is known they may be, in milliseconds.
const TAIL_LINES: usize = 10;
const READ_LINES: u32 = 500;
const BEFORE_MS: u64 = 1_000;

/// How far the time of a line may be from those of its process, in milliseconds.
const SLACK_MS: u64 = 50;

/// Adds the last lines of instances that failed, as far as their nodes still have them.
pub(super) async fn add_tails(context: &Context, view: &mut Value) {
    let Some(service) = view["service"].as_str().and_then(|name| name.parse().ok()) else { return };
    let links = view["why"].as_array().into_iter().flatten();
    let ended_at: Vec<(Value, UnixMicros)> = links
        .filter_map(|it| Some((it["event"].clone(), instant(it["at"].as_str()?, now())?)))
        .collect();
    for node in view["nodes"].as_array_mut().into_iter().flatten() {
        let (Some(name), Some(ended)) = (node["node"].as_str(), node["ended_at"].as_str()) else {
            continue;
        };
        let instance = node["failure"]["instance"].as_str().and_then(|it| it.split_once('@'));
        let index = instance.and_then(|(slot, _)| slot.split_once('/')?.1.parse().ok());
        let (Ok(name), Some(until), Some(index)) = (name.parse(), instant(ended, now()), index)
        else {
            continue;
        };
        let ran_ms = node["failure"]["ran_ms"].as_u64().unwrap_or_default();
        // The node's own event says when the process ended; what it says behind that is of another run.
        let exited = ended_at.iter().find(|(event, _)| node["failure"]["event"] == *event);
        let until = exited.map_or(until, |(_, at)| UnixMicros(at.0 + SLACK_MS * 1000));
        let before_ms = if exited.is_some() { SLACK_MS } else { BEFORE_MS };
        let from = UnixMicros(until.0.saturating_sub((ran_ms + 2 * before_ms) * 1000));
        let Some(lines) = lines_of(context, name, &service, index).await else { continue };
        let is_its = |at: &str| instant(at, now()).is_some_and(|at| (from..=until).contains(&at));
        let texts = lines.iter().filter_map(|line| cri(line)).filter(|(at, _)| is_its(at));
        let texts: Vec<&str> = texts.map(|(_, text)| text).collect();
        let last = &texts[texts.len().saturating_sub(TAIL_LINES)..];
        node["failure"]["log_tail"] = json!(last);
    }
}

async fn lines_of(
    context: &Context,
    node: NodeId,
    service: &ServiceId,
    index: u16,
) -> Option<Vec<String>> {
    let mut client = Client::connect(context, &Whom::new(context, [node])).await.ok()?;
    let ask =
        Ask::Logs { service: service.clone(), index: Some(index), lines: READ_LINES, wait: None };
    let mut pending = client.ask(ask).await.ok()?;
    let mut all = Vec::new();
    while let Some(answer) = pending.next().await.ok()? {
        if let Reply::Lines { lines, .. } = answer.reply {
            all.extend(lines);
        }
    }
    Some(all)
}
