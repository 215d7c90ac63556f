//! What the nodes themselves add to a rollout: the last lines of what failed there, and what is different there.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::follow::cri;
use crate::cli::time::{instant, now};
use crate::config::Effective;
use crate::domain::id::{NodeId, ServiceId};
use crate::domain::origin::{Layer, Origin};
use crate::domain::time::UnixMicros;
use crate::wire::payload::{Ask, Reply};

/// How many last lines of an instance that failed are shown, how many are read to find them, and how long before the
/// start that is known they may be, in milliseconds.
const TAIL_LINES: usize = 10;
const READ_LINES: u32 = 500;
const BEFORE_MS: u64 = 1_000;

/// Nodes that are asked for their configuration.
const ASKED_MAX: usize = 8;

/// How far the time of a line may be from those of its process, in milliseconds.
const SLACK_MS: u64 = 50;

/// Adds the last lines of instances that failed, as far as their nodes still have them.
pub(super) async fn add_tails(context: &Context, view: &mut Value) {
    let Some(service) = view["service"].as_str().and_then(|name| name.parse().ok()) else { return };
    let links = view["why"].as_array().into_iter().flatten();
    let ended_at: Vec<(Value, UnixMicros)> = links
        .filter_map(|it| Some((it["event"].clone(), instant(it["at"].as_str()?, now())?)))
        .collect();
    let nodes = view["nodes"].as_array_mut().into_iter().flatten();
    // A controller has them already, unless the node could not be asked in time.
    let is_told =
        |node: &Value| node["failure"]["log_tail"].as_array().is_some_and(|it| !it.is_empty());
    for node in nodes.filter(|node| !is_told(node)) {
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

/// Adds what differs in the configuration of nodes that failed: against one on which the release became healthy, else
/// against another one.
pub(super) async fn add_differences(context: &Context, view: &mut Value) {
    let Some(service) = view["service"].as_str().and_then(|name| name.parse().ok()) else { return };
    let nodes = view["nodes"].as_array().cloned().unwrap_or_default();
    let name = |node: &Value| node["node"].as_str().and_then(|name| name.parse::<NodeId>().ok());
    let well = nodes.iter().filter(|it| it["failure"].is_null());
    let (tried, others): (Vec<_>, Vec<_>) = well.partition(|it| !it["healthy_at"].is_null());
    let mut there = None;
    for node in tried.into_iter().chain(others).take(ASKED_MAX).filter_map(name) {
        if let Ok(told) = Client::configuration(context, &node, &service).await {
            there = Some((node, told.keys));
            break;
        }
    }
    let Some((other, there)) = there else { return };
    let failed = view["nodes"].as_array_mut().into_iter().flatten();
    for node in failed.filter(|node| !node["failure"].is_null()).take(ASKED_MAX) {
        let Some(failed) = name(node) else { continue };
        let Ok(here) = Client::configuration(context, &failed, &service).await else { continue };
        node["failure"]["differs_from"] = json!(other);
        node["failure"]["differences"] = json!(differences(&here.keys, &there));
    }
}

/// Effective values by key.
type Keys = BTreeMap<String, Effective>;

/// Returns the keys that are not set alike. What only their releases say differs when they run different ones.
fn differences(here: &Keys, there: &Keys) -> Vec<Value> {
    let none = Effective { value: String::new(), origin: Origin::built_in(), hides: Vec::new() };
    let keys: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
    let is_of_release = |it: &Effective| matches!(it.origin.layer, Layer::Release | Layer::BuiltIn);
    let pairs = keys
        .into_iter()
        .map(|key| (key, here.get(key).unwrap_or(&none), there.get(key).unwrap_or(&none)));
    let differs = pairs.filter(|(_, here, there)| {
        // A value that is not told is another one where it was set elsewhere.
        let hidden = here.value.is_empty() && there.value.is_empty();
        let is_another = here.json() != there.json() || hidden && here.origin != there.origin;
        is_another && !(is_of_release(here) && is_of_release(there))
    });
    let told = differs.map(|(key, here, there)| {
        json!({
            "key": key, "here": here.json(), "here_origin": here.origin,
            "there": there.json(), "there_origin": there.origin,
        })
    });
    told.collect()
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
