//! Actions over a fleet and after a deploy: `[action.NAME] run_on`, `max_parallel`, `after`.

use std::collections::BTreeMap;

use super::Builder;
use crate::config::params::default_text;
use crate::domain::code::Code;
use crate::domain::spec::Param;

/// On how many nodes at a time it runs is for who asks for it, and no part of what a node is told.
pub(super) fn batches(builder: &mut Builder<'_>, name: &str) {
    super::rollouts::batches(builder, &["action", name, "max_parallel"]);
}

/// Says whether an action runs where a release became healthy. Nobody is there to give it values or to say yes to it.
pub(super) fn after_deploy(
    builder: &mut Builder<'_>,
    name: &str,
    params: &BTreeMap<String, Param>,
) -> bool {
    let merged = builder.merged;
    let at = |key: &'static str| ["action", name, key];
    let names = merged.texts(&at("after")).unwrap_or_default();
    for other in names.iter().filter(|name| *name != "deploy") {
        let label = format!("nothing that an action can follow is called `{other}`");
        let mistake = builder.place(&at("after")).mistake(Code::UNKNOWN_VALUE, label);
        builder.mistakes.push(mistake.hint("[] or [\"deploy\"]"));
    }
    if names.is_empty() {
        return false;
    }
    let open = params.iter().find(|(_, param)| default_text(param).is_none());
    if let Some((param, _)) = open {
        let label = format!("after a deploy nobody gives `{param}` a value");
        builder.contradiction(&at("after"), label, "give the parameter a default");
    }
    if merged.bool(&at("confirm")) {
        let label = "after a deploy nobody is asked".to_owned();
        builder.contradiction(&at("after"), label, "take `confirm` or `after` out");
    }
    if merged.text(&at("run_on")).as_deref() == Some("one") {
        let label = "after a deploy it runs on every node that has the release".to_owned();
        builder.contradiction(&at("after"), label, "take `run_on` or `after` out");
    }
    true
}
