//! What a deploy would do, for people.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::effective::keys_table;
use super::rollout::{change, plan_waves};
use crate::cli::plan::KeyChange;
use crate::domain::id::NodeId;

/// A release that nodes run, and what a deploy changes of its configuration.
#[derive(Debug)]
pub struct Against {
    /// On which nodes.
    pub nodes: Vec<NodeId>,
    /// How people call it.
    pub version: String,
    /// Which keys change; `None` where its spec is not remembered.
    pub keys: Option<Vec<KeyChange>>,
}

/// Returns the screen: the change and its way back, the waves, what else is known of the nodes, and the keys that change.
pub fn ahead_text(
    view: &Value,
    from: &[Against],
    overridden: &BTreeMap<String, BTreeSet<NodeId>>,
    width: Option<u16>,
) -> String {
    let mut text = change(view);
    if view["state"] == "succeeded" {
        text.push_str("  nothing changes: all of them run it already\n");
        return text;
    }
    text.push_str("\nWAVES\n");
    text.push_str(&plan_waves(view));
    let held = view["plan"]["parameters"]["min_healthy_time_ms"].as_u64().unwrap_or_default();
    let failed = &view["plan"]["parameters"]["on_failure"];
    let health = match view["plan"]["parameters"]["health_check"].as_str() {
        Some("process") => "its processes are ready and stay up, no check counts",
        Some("manual") => "a person says so",
        _ => "its checks pass",
    };
    text.push_str(&format!(
        "  healthy: {health} for {}; too many failures: {}\n",
        super::units::span(held),
        failed.as_str().unwrap_or_default()
    ));
    for it in from {
        let names: Vec<&str> = it.nodes.iter().map(NodeId::as_str).collect();
        text.push_str(&format!("\nCHANGES against {} on {}\n", it.version, names.join(" ")));
        match it.keys.as_deref() {
            None => text.push_str("  the spec of that release is not remembered here\n"),
            Some([]) => text.push_str("  no key of the spec\n"),
            Some(keys) => text.push_str(&keys_table(keys, width)),
        }
    }
    for (key, nodes) in overridden {
        let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
        text.push_str(&format!("  {key} stays as {} set it for itself\n", names.join(" ")));
    }
    text
}
