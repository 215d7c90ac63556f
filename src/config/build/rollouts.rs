//! What a service says about the fleet: `[placement]`, `[rollout]`, `[rollout.check.NAME]`, `[rollback]`.

use std::collections::{BTreeMap, BTreeSet};

use super::Builder;
use crate::config::merge::Merged;
use crate::domain::code::Code;
use crate::domain::id::CheckName;
use crate::domain::origin::{Layer, Origin};
use crate::domain::rollout::{
    Amount, Check, CheckProbe, HealthCheck, Parameters, Placement, Rollback, Rollouts, Skip,
};
use crate::domain::selector::is_word;

/// How many checks a rollout may have: each is measured after each wave.
const CHECKS_MAX: usize = 16;

/// Which keys go with which kind of check: the first of them it cannot do without.
const KEYS: &[(&str, &[&str])] = &[
    ("http", &["url"]),
    ("exec", &["exec"]),
    ("prometheus", &["query", "url", "min", "max"]),
    ("log_alert", &["alert"]),
];

pub(super) fn rollouts(builder: &mut Builder<'_>) -> Rollouts {
    let merged = builder.merged;
    let at = |key: &'static str| ["rollout", key];
    let parameters = Parameters {
        canary: amount(merged, &at("canary")),
        auto_promote: merged.bool(&at("auto_promote")),
        max_parallel: batches(builder, &at("max_parallel")),
        spread_by: spread_by(builder),
        order: merged.choice(&at("order")),
        health_check: health_check(merged),
        min_healthy_ms: merged.millis(&at("min_healthy_time")).0,
        healthy_deadline_ms: merged.millis(&at("healthy_deadline")).0,
        progress_deadline_ms: merged.millis(&at("progress_deadline")).0,
        bake_ms: merged.millis(&at("bake_time")).0,
        max_failures: amount(merged, &at("max_failures")),
        on_failure: merged.choice(&at("on_failure")),
        on_unreachable: merged.choice(&at("on_unreachable")),
        unreachable_deadline_ms: merged.millis(&at("unreachable_deadline")).0,
        max_unreachable: amount(merged, &at("max_unreachable")),
        require_approval: merged.bool(&at("require_approval")),
        on_conflict: merged.choice(&at("on_conflict")),
        checks: checks(builder),
        rollback: Rollback {
            max_parallel: batches(builder, &["rollback", "max_parallel"]),
            skip: skip(builder),
        },
        may_roll_back: merged.text(&["release", "rollback"]).as_deref() != Some("forbid"),
        origins: origins(merged),
    };
    times(builder, &parameters);
    Rollouts { parameters, placement: placement(builder) }
}

fn amount(merged: &Merged, path: &[&str]) -> Amount {
    let text = merged.text(path).unwrap_or_default();
    text.parse().expect("invariant: read as an amount")
}

pub(super) fn batches(builder: &mut Builder<'_>, path: &[&str]) -> Vec<Amount> {
    let texts = builder.merged.texts(path).unwrap_or_default();
    let parsed = |text: &String| text.parse().expect("invariant: read as an amount");
    let list: Vec<Amount> = texts.iter().map(parsed).collect();
    if list.is_empty() || list.iter().any(|amount| amount.is_zero()) {
        let mistake = builder.place(path).mistake(Code::OUT_OF_RANGE, "a batch of no node");
        builder.mistakes.push(mistake.hint("every entry is at least 1 or \"1%\""));
    }
    list
}

fn spread_by(builder: &mut Builder<'_>) -> Option<String> {
    let path = ["rollout", "spread_by"];
    let label = builder.merged.text(&path)?;
    if !is_word(&label) {
        let mistake = builder.place(&path).mistake(Code::BAD_NAME, "not the name of a label");
        builder.mistakes.push(mistake.hint("such as \"zone\""));
    }
    Some(label)
}

/// Health is that of the checks where there is one, else that of the process.
fn health_check(merged: &Merged) -> HealthCheck {
    match merged.is_set(&["rollout", "health_check"]) || !merged.names(&["health"]).is_empty() {
        true => merged.choice(&["rollout", "health_check"]),
        false => HealthCheck::Process,
    }
}

/// Each time that has to be shorter than another one is.
fn times(builder: &mut Builder<'_>, parameters: &Parameters) {
    let stop = |key| builder.merged.millis(&["stop", key]).0;
    let stop_ms = stop("drain").saturating_add(stop("timeout"));
    let rules = [
        (
            parameters.healthy_deadline_ms >= parameters.progress_deadline_ms,
            ["rollout", "healthy_deadline"],
            "`healthy_deadline` is not shorter than `progress_deadline`",
            "the rollout would give up before its first node may",
        ),
        (
            stop_ms > parameters.healthy_deadline_ms,
            ["rollout", "healthy_deadline"],
            "`healthy_deadline` is shorter than stop.drain and stop.timeout together",
            "a node has to stop the old release in that time as well",
        ),
    ];
    for (_, path, label, hint) in rules.into_iter().filter(|(is_broken, ..)| *is_broken) {
        builder.contradiction(&path, label.to_owned(), hint);
    }
}

fn checks(builder: &mut Builder<'_>) -> BTreeMap<CheckName, Check> {
    let names = builder.merged.names(&["rollout", "check"]);
    if names.len() > CHECKS_MAX {
        let label = format!("more than {CHECKS_MAX} checks");
        let mistake = builder.place(&["rollout", "check"]).mistake(Code::TOO_MANY, label);
        builder.mistakes.push(mistake.hint("a query can look at several things"));
        return BTreeMap::new();
    }
    let checks = names.into_iter().filter_map(|name| {
        let check = check(builder, &name)?;
        Some((name.parse().ok()?, check))
    });
    checks.collect()
}

fn check(builder: &mut Builder<'_>, name: &str) -> Option<Check> {
    let merged = builder.merged;
    let block = ["rollout", "check", name];
    let at = |key: &'static str| ["rollout", "check", name, key];
    let Some(kind) = merged.text(&at("kind")) else {
        builder.missing(&block, "kind", "\"http\"");
        return None;
    };
    let (_, mine) = KEYS.iter().find(|(known, _)| *known == kind)?;
    for (other, keys) in KEYS {
        for key in keys.iter().filter(|key| !mine.contains(key) && merged.is_set(&at(key))) {
            let label = format!("`{key}` does not go with kind = \"{kind}\"");
            let hint = format!("kind = \"{other}\", or take `{key}` out");
            builder.contradiction(&at(key), label, &hint);
        }
    }
    let probe = probe(builder, name, &kind)?;
    Some(Check {
        probe,
        interval_ms: builder.positive(&at("interval")).0,
        count: merged.integer(&at("count")),
        failure_limit: merged.integer(&at("failure_limit")),
        consecutive_error_limit: merged.integer(&at("consecutive_error_limit")),
        on_inconclusive: merged.choice(&at("on_inconclusive")),
        dry_run: merged.bool(&at("dry_run")),
    })
}

fn probe(builder: &mut Builder<'_>, name: &str, kind: &str) -> Option<CheckProbe> {
    let merged = builder.merged;
    let block = ["rollout", "check", name];
    let at = |key: &'static str| ["rollout", "check", name, key];
    let mut needed = |key: &'static str, example: &str| {
        let value = merged.text(&at(key));
        if value.is_none() {
            builder.missing(&block, key, example);
        }
        value
    };
    Some(match kind {
        "http" => CheckProbe::Http { url: needed("url", "\"http://127.0.0.1:8080/ok\"")? },
        "exec" => match merged.texts(&at("exec")) {
            Some(argv) => CheckProbe::Exec { argv },
            None => {
                builder.missing(&block, "exec", "[\"/usr/bin/judge\", \"--release\"]");
                return None;
            }
        },
        "prometheus" => {
            let query = needed("query", "'sum(rate(http_5xx[1m])) or vector(0)'");
            let url = needed("url", "\"http://prom.internal:9090\"")?;
            let (min, max) = (merged.text(&at("min")), merged.text(&at("max")));
            if min.is_none() && max.is_none() {
                needed("max", "0.5")?;
            }
            let number = |bound: &Option<String>| bound.as_ref()?.parse::<f64>().ok();
            if let (Some(low), Some(high)) = (number(&min), number(&max))
                && low > high
            {
                let label = "`min` is greater than `max`".to_owned();
                builder.contradiction(&at("min"), label, "no value would be good");
            }
            CheckProbe::Prometheus { url, query: query?, min, max }
        }
        _ => {
            let alert = needed("alert", "\"db-errors\"")?;
            if !merged.names(&["alert"]).contains(&alert) {
                let label = format!("this service has no alert `{alert}`");
                builder.contradiction(&at("alert"), label, "name one of its [alert.NAME] blocks");
            }
            CheckProbe::LogAlert { alert: alert.parse().ok()? }
        }
    })
}

fn skip(builder: &mut Builder<'_>) -> BTreeSet<Skip> {
    let path = ["rollback", "skip"];
    let names = builder.merged.texts(&path).unwrap_or_default();
    let mut all = BTreeSet::new();
    for name in names {
        match Skip::WORDS.iter().find(|(word, _)| *word == name) {
            Some((_, skip)) => drop(all.insert(*skip)),
            None => {
                let label = format!("nothing that can be left out is called `{name}`");
                let mistake = builder.place(&path).mistake(Code::UNKNOWN_VALUE, label);
                builder.mistakes.push(mistake.hint("any of \"canary\", \"bake\", \"checks\""));
            }
        }
    }
    all
}

fn placement(builder: &mut Builder<'_>) -> Placement {
    let path = ["placement", "select"];
    let select = builder.merged.text(&path).and_then(|text| match text.parse() {
        Ok(select) => Some(select),
        Err(why) => {
            let why: crate::domain::selector::InvalidSelector = why;
            let mistake = builder.place(&path).mistake(Code::UNKNOWN_VALUE, why.to_string());
            builder.mistakes.push(mistake.hint("such as \"env=prod,role=web|api\""));
            None
        }
    });
    Placement { select, on_leave: builder.merged.choice(&["placement", "on_leave"]) }
}

/// Returns where each value of `[rollout]` was set, by its key.
fn origins(merged: &Merged) -> BTreeMap<String, Origin> {
    let set = merged.effective().into_iter().filter_map(|(path, value)| {
        let key = path.strip_prefix("rollout.")?;
        (value.origin.layer != Layer::BuiltIn && !key.contains('.'))
            .then(|| (key.to_owned(), value.origin))
    });
    set.collect()
}

#[cfg(test)]
mod tests;
