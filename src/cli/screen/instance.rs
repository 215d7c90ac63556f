//! `smgr status SELECTOR`: one instance on a page, or the head of a service with several.

use std::collections::BTreeSet;

use serde_json::Value;

use super::names::Names;
use super::status::as_of;
use super::table::{cut, wrapped};
use super::units::{age, moment, size, span};
use super::words::{actor_words, exit_words, name_of, result_words};
use crate::cli::time::instant;
use crate::cli::view::{Picture, View};
use crate::domain::event::StateName;
use crate::domain::origin::Origin;
use crate::domain::text::printable;
use crate::domain::time::UnixMicros;
use crate::wire::status::{
    BesideStatus, CheckStatus, Condition, ExitStatus, InstanceStatus, NodeStatus, ReleaseStatus,
    ServiceStatus,
};

/// In which order conditions are read; others follow by name.
const CONDITIONS: [&str; 4] = ["Ready", "Healthy", "DependenciesMet", "ConfigCurrent"];

/// The page of one instance. `now` only decides whether a time needs its date.
pub fn instance_text(
    (node, instance): (&NodeStatus, &InstanceStatus),
    known: Option<&Picture>,
    names: &Names,
    now: UnixMicros,
    width: Option<u16>,
) -> String {
    let service = node.services.iter().find(|service| service.service == instance.service);
    let head = format!("{}/{}@{}", instance.service, instance.index, node.node);
    let mut page = Page { text: String::new(), width };
    page.head(head, service);
    page.line("state", &state_words(instance, node.at, now));
    if let Some(service) = service {
        let release = node.releases.iter().find(|it| it.service == instance.service);
        let rollout = release.and_then(|release| rollout_of(release, known?));
        page.line("desired", &desired_words(service, release, rollout, now));
        page.line("spec", &format!("{}  {}", short(service), service.origin));
        page.line("release", &release_words(release, rollout, service, now));
        let is_told = known.is_some_and(|known| !known.set.is_empty());
        if !is_told && !service.overridden_keys.is_empty() {
            page.line("changed", &format!("here: {}", service.overridden_keys.join(", ")));
        }
        for (at, key) in service.overridden_keys.iter().filter(|_| is_told).enumerate() {
            let word = if at == 0 { "changed" } else { "" };
            page.line(word, &changed_words(key, known));
        }
    }
    if let Some(exit) = &instance.exit {
        page.line("result", &exit_line(instance, exit));
    }
    page.line("beside", &instance.beside.as_ref().map(beside_words).unwrap_or_default());
    page.line("conditions", &conditions_words(instance, node.at));
    for (at, check) in instance.health.iter().enumerate() {
        page.line(if at == 0 { "health" } else { "" }, &check_words(check));
    }
    page.line("memory", &memory_words(instance));
    page.log(instance);
    let name = names.instance(&instance.service, instance.index, &node.node);
    let act = match instance.state {
        StateName::Inactive | StateName::Completed | StateName::Failed => "start",
        StateName::Waiting
        | StateName::Starting
        | StateName::Running
        | StateName::Reloading
        | StateName::Stopping
        | StateName::Backoff
        | StateName::Unknown => "stop",
    };
    page.line(
        "next",
        &[
            format!("smgr logs {name} -f"),
            format!("smgr history {name}"),
            format!("smgr {act} {}", names.service(&instance.service, &node.node)),
        ]
        .join("    "),
    );
    page.text
}

/// Returns the lines above the table of a service with several instances, or of several nodes.
pub(super) fn service_head(
    view: &View<'_>,
    instances: &[(&NodeStatus, &InstanceStatus)],
    now: UnixMicros,
    width: Option<u16>,
) -> String {
    let Some(selector) = view.selector else {
        return String::new();
    };
    let mut page = Page { text: String::new(), width };
    let service = view
        .nodes
        .iter()
        .filter(|node| selector.may_be_on(&node.node))
        .flat_map(|node| &node.services)
        .find(|service| service.service == selector.service);
    if instances.is_empty() {
        page.text =
            wrapped(&[format!("nothing matches {selector}"), as_of(view, now)], "   ", 2, width);
        return page.text;
    }
    page.head(selector.to_string(), service);
    if let Some(service) = service {
        let release = view.heard().flat_map(|node| &node.releases);
        let release = release.filter(|it| it.service == service.service);
        let words: BTreeSet<String> = release.filter_map(ReleaseStatus::words).collect();
        match (service.generation.0, words.len()) {
            (0, 1..) => {
                let words = words.into_iter().collect::<Vec<_>>().join(", ");
                page.line("desired", &format!("{}, from {words}", name_of(&service.desired)));
            }
            _ => page.line("desired", &desired_words(service, None, None, now)),
        }
        page.line("spec", &format!("{}  {}", short(service), service.origin));
    }
    page.line("as of", as_of(view, now).trim_start_matches("as of "));
    page.text
}

fn beside_words(it: &BesideStatus) -> String {
    let state = it.substate.clone().unwrap_or_else(|| name_of(&it.state));
    let pid = it.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    let role = if it.takes_over { "takes over when it is ready" } else { "was relieved, and ends" };
    format!("run {}, {state}{pid}: {role}", it.run)
}

struct Page {
    text: String,
    width: Option<u16>,
}

impl Page {
    fn head(&mut self, name: String, service: Option<&ServiceStatus>) {
        let mut parts = vec![name];
        if let Some(service) = service {
            parts.extend([&service.description, &service.owner, &service.docs].map(Clone::clone));
        }
        self.text.push_str(&wrapped(&parts, "   ", 2, self.width));
    }

    fn line(&mut self, word: &str, rest: &str) {
        if !rest.is_empty() {
            self.raw(&format!("  {word:<11} {rest}"));
        }
    }

    fn raw(&mut self, line: &str) {
        let line = printable(line);
        let width = self.width.map_or(usize::MAX, usize::from);
        self.text.push_str(&cut(&line, width));
        self.text.push('\n');
    }

    fn log(&mut self, instance: &InstanceStatus) {
        let Some(path) = &instance.log_path else {
            return;
        };
        let written = match (instance.log_bytes, instance.log_bytes_max) {
            (Some(bytes), Some(max)) => format!("   {} of {}", size(bytes), size(max)),
            (Some(bytes), None) => format!("   {}", size(bytes)),
            (None, _) => String::new(),
        };
        self.line("log", &format!("{path}{written}"));
        for line in &instance.tail {
            self.raw(&format!("      {line}"));
        }
    }
}

fn state_words(instance: &InstanceStatus, at: UnixMicros, now: UnixMicros) -> String {
    let mut words = format!(
        "{} since {} ({})",
        name_of(&instance.state),
        moment(instance.since, now),
        age(at.ms_since(instance.since))
    );
    if let Some(pid) = instance.pid {
        words.push_str(&format!(", pid {pid}"));
    }
    if let Some(step) = &instance.substate {
        words.push_str(&format!(", {step}"));
    }
    if let Some(next) = instance.next_attempt_at {
        words.push_str(&format!("; try {} at {}", instance.restarts + 1, moment(next, now)));
        if let Some(delay) = instance.delay_ms {
            words.push_str(&format!(" (delay {})", span(delay)));
        }
    } else if let Some(reason) = &instance.reason {
        words.push_str(&format!("; {reason}"));
    }
    words
}

/// Returns the last rollout that brought a release, where controllers remember it.
fn rollout_of<'p>(release: &ReleaseStatus, known: &'p Picture) -> Option<&'p Value> {
    let digest = format!("sha256:{}", release.release?);
    let is_it = |row: &&Value| {
        row["service"] == release.service.as_str() && row["to"]["digest"] == digest.as_str()
    };
    known.rollouts.iter().find(is_it)
}

/// Returns `1.9.0 b07e21aa, unchanged for 3d04h`.
fn release_words(
    release: Option<&ReleaseStatus>,
    rollout: Option<&Value>,
    service: &ServiceStatus,
    now: UnixMicros,
) -> String {
    let Some(mut words) = release.and_then(ReleaseStatus::words) else { return String::new() };
    let ended = rollout.and_then(|row| instant(row["ended_at"].as_str()?, now));
    if let Some(at) = ended {
        words.push_str(&format!(", unchanged for {}", age(now.ms_since(at))));
    }
    if !service.overridden_keys.is_empty() {
        words.push_str("; what changed is the configuration:");
    }
    words
}

/// Returns `env.MODE  "b"   i-4f1c9a7b by ana`: what a key is set to here, and where.
fn changed_words(key: &str, known: Option<&Picture>) -> String {
    let Some(set) = known.and_then(|known| known.set.get(key)) else { return key.to_owned() };
    let value = match &set["value"] {
        Value::Null => "(not told)".to_owned(),
        // As TOML writes it.
        value => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    };
    let origin: Option<Origin> = serde_json::from_value(set["origin"].clone()).ok();
    let origin = origin.map(|origin| format!("   {origin}, layer {}", name_of(&origin.layer)));
    format!("{key}  {value}{}", origin.unwrap_or_default())
}

fn desired_words(
    service: &ServiceStatus,
    release: Option<&ReleaseStatus>,
    rollout: Option<&Value>,
    now: UnixMicros,
) -> String {
    let desired = name_of(&service.desired);
    let release = release.filter(|it| it.release.is_some());
    let mut words = match (service.generation.0, release) {
        (0, None) => format!("{desired}, as its file says"),
        (0, Some(release)) => format!("{desired}, generation {}", release.generation),
        (generation, _) => format!("{desired}, generation {generation}"),
    };
    if let Some(row) = rollout.filter(|_| service.generation.0 == 0) {
        let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        let at = row["asked_at"].as_str().and_then(|at| instant(at, now));
        let at = at.map(|at| format!(", {}", moment(at, now))).unwrap_or_default();
        let (by, name) = (text(&row["by"]["name"]), text(&row["rollout"]));
        words.push_str(&format!(", by {by} ({} {name}{at})", text(&row["kind"])));
    }
    if let Some(by) = &service.desired_by {
        words.push_str(&format!(", by {}", actor_words(by)));
    }
    if let Some(at) = service.desired_at {
        words.push_str(&format!(", {}", moment(at, now)));
    }
    words
}

fn short(service: &ServiceStatus) -> String {
    service.spec.to_string()[..8].to_owned()
}

fn exit_line(instance: &InstanceStatus, ended: &ExitStatus) -> String {
    let told = match instance.result {
        Some(result) => result_words(result, ended.exit),
        None => exit_words(ended.exit),
    };
    let same = match instance.same_exits {
        0 | 1 => String::new(),
        runs => format!("; the last {runs} runs ended the same way"),
    };
    format!("{told} after {}{same}", span(ended.ran_ms))
}

fn conditions_words(instance: &InstanceStatus, at: UnixMicros) -> String {
    let known = CONDITIONS.iter().filter_map(|kind| instance.conditions.get_key_value(*kind));
    let others =
        instance.conditions.iter().filter(|(kind, _)| !CONDITIONS.contains(&kind.as_str()));
    let words = known.chain(others).map(|(kind, condition)| condition_words(kind, condition, at));
    words.collect::<Vec<_>>().join("   ")
}

fn condition_words(kind: &str, condition: &Condition, at: UnixMicros) -> String {
    match condition.status {
        None if condition.reason == "NoChecks" => format!("{kind}=unknown (NoChecks)"),
        None => format!("{kind}=unknown"),
        Some(true) => format!("{kind}=true"),
        Some(false) => {
            let since = age(at.ms_since(condition.since));
            format!("{kind}=false ({}, {since})", condition.reason)
        }
    }
}

fn check_words(check: &CheckStatus) -> String {
    let mut words = match check.passing {
        Some(true) => format!("{} passing", check.check),
        Some(false) => format!("{} failing", check.check),
        None => format!("{} unknown", check.check),
    };
    if let Some(interval) = check.interval_ms {
        words.push_str(&format!(", asked every {}", span(interval)));
    }
    match check.failures {
        _ if check.message.is_empty() => {}
        0 | 1 => words.push_str(&format!("; {}", check.message)),
        failures => words.push_str(&format!("; {} ({failures} in a row)", check.message)),
    }
    words
}

fn memory_words(instance: &InstanceStatus) -> String {
    let of = instance.memory_bytes_max.map(|max| format!(" of {}", size(max))).unwrap_or_default();
    match (instance.memory_bytes, &instance.exit) {
        (Some(bytes), _) => format!("{}{of}", size(bytes)),
        (None, Some(ExitStatus { memory_peak_bytes: Some(peak), oom_killed, .. })) => {
            let oom = if *oom_killed { "ended by the OOM killer" } else { "no OOM kill" };
            format!("peak of the last run {}{of}, {oom}", size(*peak))
        }
        (None, _) => String::new(),
    }
}
