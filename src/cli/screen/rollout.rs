//! Rollouts for people, from the object of the contract.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;

use super::units::span;
use crate::domain::text::{brief, columns, printable};

/// How many nodes a line names: of a large wave the others are counted.
const NAMED_MAX: usize = 8;

/// The longest last line of a process that is told with its end, in bytes.
const LAST_LINE_BYTES_MAX: usize = 160;

/// The columns of a terminal that nobody made wider.
const COLUMNS: usize = 80;

/// What was told of a rollout that is watched.
#[derive(Debug, Default)]
pub struct Progress {
    is_begun: bool,
    nodes: BTreeMap<String, String>,
    /// Nodes that failed, whose last lines may come with the next picture.
    awaited: BTreeSet<String>,
    state: String,
}

impl Progress {
    /// Returns what is new in a picture, line by line.
    pub fn news(&mut self, view: &Value) -> String {
        let mut text = String::new();
        if !self.is_begun {
            self.is_begun = true;
            text.push_str(&head(view));
        }
        let awaited = self.awaited.len();
        let going = going_waves(view);
        // Nodes of one wave to which the same happened have one line.
        let mut told: Vec<(u64, Vec<&Value>)> = Vec::new();
        for node in list(&view["nodes"]).iter().filter(|node| self.is_news(view, &going, node)) {
            let wave = wave_of(node);
            match told.last_mut().filter(|(of, nodes)| *of == wave && are_alike(nodes[0], node)) {
                Some((_, nodes)) => nodes.push(node),
                None => told.push((wave, vec![node])),
            }
        }
        for (wave, nodes) in told {
            text.push_str(&wave_line(view, wave, &nodes));
        }
        let state = word(&view["state"]);
        // What follows from a failure is told behind it.
        if state != self.state && self.awaited.len() == awaited {
            let was = std::mem::replace(&mut self.state, state.to_owned());
            match state {
                "paused" if view["waits_for"].is_null() => {
                    let why = last_why(view);
                    line(
                        &mut text,
                        &format!(
                            "{}; it goes on with: {}",
                            why.trim_start_matches(": "),
                            next_commands(view)
                        ),
                    );
                }
                "paused" | "rolling_back" | "stopping" => {
                    let why = last_why(view);
                    line(&mut text, &format!("{}{why}", spoken(state)));
                }
                "awaiting_promotion" | "awaiting_approval" => line(&mut text, &spoken(state)),
                _ if was == "paused" && view["ended_at"].is_null() => line(&mut text, "goes on"),
                _ => {}
            }
        }
        if !view["ended_at"].is_null() {
            text.push_str(&ending(view));
        }
        text
    }

    /// Says whether what became of a node is to be told now, and takes it as told.
    fn is_news(&mut self, view: &Value, going: &BTreeSet<u64>, node: &Value) -> bool {
        let (name, state) = (word(&node["node"]), word(&node["state"]));
        // Whoever waits is told no more where a person has to say how it goes on.
        let goes_on = view["ended_at"].is_null() && view["waits_for"].is_null();
        let is_it = match state {
            // Told with the rest of its wave, as long as that goes forward.
            "healthy" => !going.contains(&wave_of(node)),
            // Its last line says more than all else, and is fetched when it has failed.
            "failed" => {
                let has_ended = node["failure"]["instance"].is_string();
                let is_silent = has_ended && last_line(&node["failure"]).is_none();
                !(goes_on && is_silent && self.awaited.insert(name.to_owned()))
            }
            "unreachable" | "rolled_back" | "rollback_failed" | "skipped" => true,
            _ => false,
        };
        is_it && self.nodes.insert(name.to_owned(), state.to_owned()).as_deref() != Some(state)
    }
}

/// Returns the waves that go forward and have not brought all their nodes through.
fn going_waves(view: &Value) -> BTreeSet<u64> {
    let is_forward = matches!(word(&view["state"]), "canary" | "rolling");
    let waits = |of: &&Value| matches!(word(&of["state"]), "starting" | "not_started");
    list(&view["nodes"]).iter().filter(|_| is_forward).filter(waits).map(wave_of).collect()
}

fn wave_of(node: &Value) -> u64 {
    node["wave"].as_u64().unwrap_or_default()
}

/// Says whether two nodes of a wave are told in one line.
fn are_alike(one: &Value, other: &Value) -> bool {
    one["state"] == other["state"] && one["failure"].is_null() && other["failure"].is_null()
}

/// Returns the line of nodes of one wave to which the same happened.
fn wave_line(view: &Value, wave: u64, nodes: &[&Value]) -> String {
    let names: Vec<&str> = nodes.iter().map(|node| word(&node["node"])).collect();
    let number = match wave_kind(view, wave) {
        // There is no other wave.
        "first" => String::new(),
        "batch" => format!("{wave} {:<8} ", ""),
        kind => format!("{wave} {kind:<8} "),
    };
    let words = progress_words(view, nodes);
    format!("  {number}{}   {words}\n", named(&names))
}

/// Names nodes, as many as fit a line, and counts the others.
fn named(names: &[&str]) -> String {
    let first = names[..names.len().min(NAMED_MAX)].join(" ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Says what became of nodes, in the words of who watches.
fn progress_words(view: &Value, nodes: &[&Value]) -> String {
    let node = nodes[0];
    let slowest = nodes.iter().filter_map(|node| node["ready_ms"].as_u64()).max();
    match (word(&node["state"]), slowest) {
        ("healthy", Some(ready_ms)) if view["kind"] == "deploy" => {
            let held = view["plan"]["parameters"]["min_healthy_time_ms"].as_u64();
            format!("ready {}, held {}", span(ready_ms), span(held.unwrap_or_default()))
        }
        ("failed", _) => ended_words(&node["failure"]),
        _ => node_words(view, node),
    }
}

/// Says how something failed, and the last that it said.
fn ended_words(failure: &Value) -> String {
    let exit = &failure["exit"];
    let ended = match (exit["code"].as_i64(), exit["signal"].as_str()) {
        (Some(code), _) => Some(format!("exited with code {code}")),
        (None, Some(signal)) => Some(format!("ended by signal {}", printable(signal))),
        (None, None) => None,
    };
    let ran = failure["ran_ms"].as_u64().map(|ms| format!(" after {}", span(ms)));
    let ended = ended.map(|ended| format!("{ended}{}", ran.unwrap_or_default()));
    match (ended, last_line(failure)) {
        (Some(ended), Some(line)) => format!("{ended}: {line}"),
        (None, Some(line)) => format!("{}: {line}", failure_words(failure)),
        (Some(ended), None) => match word(&failure["why"]) {
            "" => ended,
            why => format!("{ended}: {}", printable(why)),
        },
        (None, None) => failure_words(failure),
    }
}

/// Returns the last line of what failed that says something.
fn last_line(failure: &Value) -> Option<String> {
    let lines = list(&failure["log_tail"]).iter().rev();
    let mut lines = lines.map(|line| word(line).trim()).filter(|line| !line.is_empty());
    lines.next().map(|line| brief(printable(line).into_owned(), LAST_LINE_BYTES_MAX))
}

/// Says how far a rollout is while nothing new happens: `rolling: 2 of 8 nodes healthy, n3 n5 starting`.
pub fn under_way(view: &Value) -> String {
    let nodes = list(&view["nodes"]);
    let healthy = nodes.iter().filter(|node| node["state"] == "healthy").count();
    let mut text =
        format!("{}: {healthy} of {} nodes healthy", spoken(word(&view["state"])), nodes.len());
    for state in ["starting", "unreachable", "rolling_back"] {
        let names = nodes.iter().filter(|node| node["state"] == state).map(|it| word(&it["node"]));
        let names: Vec<&str> = names.collect();
        if !names.is_empty() {
            text.push_str(&format!(", {} {}", named(&names), spoken(state)));
        }
    }
    text
}

/// Returns what is said of a rollout that nobody waits for.
pub fn detached_text(name: &str) -> String {
    format!("{name} is planned; it goes on without you: smgr rollout watch {name}\n")
}

/// Returns the list of rollouts.
pub fn list_text(document: &Value) -> String {
    let rows = list(&document["rollouts"]);
    if rows.is_empty() {
        return "no rollout is remembered\n".to_owned();
    }
    let mut text =
        format!("{:<11} {:<16} {:<18} {:>5}  ASKED\n", "ROLLOUT", "SERVICE", "STATE", "NODES");
    for row in rows {
        let line = format!(
            "{:<11} {:<16} {:<18} {:>5}  {}\n",
            word(&row["rollout"]),
            word(&row["service"]),
            word(&row["state"]),
            row["targets"],
            word(&row["asked_at"]),
        );
        text.push_str(&line);
    }
    text
}

/// Says which nodes get the service or lose it since, and why no others do.
fn placement(moves: &Value) -> String {
    let mut text = String::new();
    for (what, nodes) in [
        ("get it", &moves["gaining"]),
        ("lose it", &moves["losing"]),
        ("wait for their turn", &moves["waiting"]),
    ] {
        if !list(nodes).is_empty() {
            line(&mut text, &format!("{what}: {}", words(list(nodes))));
        }
    }
    if let Some(held) = moves["held"].as_str() {
        line(&mut text, &format!("nothing more moves: {}", printable(held)));
    }
    match text.is_empty() {
        true => text,
        false => format!("\nPLACEMENT\n{text}"),
    }
}

/// Returns one rollout: what, why, where, and what to type next.
pub fn rollout_text(view: &Value) -> String {
    let mut text = head(view);
    let state = word(&view["state"]);
    let exit = view["exit_code"].as_u64().map(|code| format!(", exit code {code}"));
    line(&mut text, &format!("{state}{}", exit.unwrap_or_default()));
    for on in list(&view["on"]) {
        let release = release(&on["digest"], &on["version"]);
        let nodes = list(&on["nodes"]);
        line(&mut text, &format!("on {release}: {}", words(nodes)));
    }
    let away = list(&view["unreachable"]);
    if !away.is_empty() {
        line(&mut text, &format!("unreachable: {}", words(away)));
    }
    let by = word(&view["asked"]["by"]["name"]);
    let reason = word(&view["asked"]["reason"]);
    let reason = if reason.is_empty() { String::new() } else { format!(", \"{reason}\"") };
    let asked = format!("asked by {by}{reason} at {}", word(&view["asked"]["at"]));
    line(&mut text, &asked);
    let led = words(list(&view["led_by"]));
    let took = view["duration_ms"].as_u64().map(|ms| format!(", {}", span(ms)));
    line(&mut text, &format!("led by {led}{}", took.unwrap_or_default()));
    let why = list(&view["why"]);
    if !why.is_empty() {
        text.push_str("\nWHY\n");
    }
    for link in why {
        let place = link["where"].as_str().map(|place| format!("{place}: ")).unwrap_or_default();
        let origin = &link["origin"];
        let origin = match (origin["file"].as_str(), origin["line"].as_u64()) {
            (Some(file), Some(at)) => format!("  ({file}:{at}, {})", word(&origin["layer"])),
            _ => String::new(),
        };
        let at = link["at"].as_str().and_then(|at| at.get(11..)).unwrap_or("            -");
        let told =
            format!("{at:<13} {place}{}{origin}   {}", word(&link["text"]), word(&link["event"]));
        line(&mut text, &told);
    }
    text.push_str(&different(view));
    text.push_str("\nWAVES\n");
    for wave in list(&view["waves"]) {
        let number = wave["wave"].as_u64().unwrap_or_default();
        let kind = wave_kind(view, number);
        line(&mut text, &format!("{number} {kind}  {}", spoken(word(&wave["state"]))));
        for node in list(&view["nodes"]).iter().filter(|node| node["wave"] == wave["wave"]) {
            line(&mut text, &format!("    {:<6} {}", word(&node["node"]), node_words(view, node)));
            for said in list(&node["failure"]["log_tail"]) {
                line(&mut text, &format!("             | {}", printable(word(said))));
            }
        }
    }
    text.push_str(&placement(&view["placement"]));
    text.push_str("\nNEXT\n");
    line(&mut text, &next_commands(view));
    text
}

/// Returns what can be typed next.
pub fn next_commands(view: &Value) -> String {
    let name = word(&view["rollout"]);
    let said = |verbs: &[&str]| {
        let commands = verbs.iter().map(|verb| format!("smgr rollout {verb} {name}"));
        commands.collect::<Vec<_>>().join("    ")
    };
    match (word(&view["state"]), view["waits_for"].as_str()) {
        ("succeeded", _) => format!("smgr rollback {}", word(&view["service"])),
        (_, Some("abort")) => said(&["abort"]),
        (_, Some(verb)) => said(&[verb, "abort"]),
        ("paused", None) => said(&["resume", "abort"]),
        _ if view["ended_at"].is_null() => said(&["watch", "abort"]),
        _ => said(&["retry"]),
    }
}

/// Returns what is set otherwise where it failed.
fn different(view: &Value) -> String {
    let mut text = String::new();
    for node in list(&view["nodes"]) {
        let differences = list(&node["failure"]["differences"]);
        if differences.is_empty() {
            continue;
        }
        let (here, there) = (word(&node["node"]), word(&node["failure"]["differs_from"]));
        let other = list(&view["nodes"]).iter().find(|it| it["node"] == there);
        let is_proof = other.is_some_and(|it| !it["healthy_at"].is_null());
        let whose = match is_proof {
            true => format!(", where {} became healthy", release_word(&view["to"])),
            false => String::new(),
        };
        writeln!(text, "\nDIFFERENT ON {here}   (against {there}{whose})")
            .expect("writing to a text never fails");
        for it in differences {
            let value = |value: &Value| match value.is_null() {
                true => "-".to_owned(),
                false => printable(&value.to_string()).into_owned(),
            };
            let places = [(here, "here", "here_origin"), (there, "there", "there_origin")];
            for (node, of, origin) in places {
                let key = if of == "here" { word(&it["key"]) } else { "" };
                let (said, origin) = (value(&it[of]), origin_words(&it[origin]));
                line(&mut text, &format!("{key:<16} {node:<6} {said}   {origin}"));
            }
        }
    }
    text
}

fn origin_words(origin: &Value) -> String {
    let release =
        origin["release"].as_str().map(|it| format!("release {it}, ")).unwrap_or_default();
    let place = match (origin["file"].as_str(), origin["line"].as_u64()) {
        (Some(file), Some(at)) => format!("{}:{at}", printable(file)),
        (Some(file), None) => printable(file).into_owned(),
        (None, _) => word(&origin["event"]).to_owned(),
    };
    format!("{release}{place}   layer {}", spoken(word(&origin["layer"])))
}

/// Returns the waves of a plan, by name.
pub fn plan_waves(view: &Value) -> String {
    let mut text = String::new();
    for wave in list(&view["plan"]["waves"]) {
        let number = wave["wave"].as_u64().unwrap_or_default();
        let kind = word(&wave["kind"]);
        line(&mut text, &format!("{number} {kind:<9} {}", words(list(&wave["nodes"]))));
    }
    text
}

fn head(view: &Value) -> String {
    format!("{}  {}", word(&view["rollout"]), change(view))
}

/// Returns what changes where, and whether there is a way back.
pub fn change(view: &Value) -> String {
    let from = match view["from"].is_null() {
        true => "new".to_owned(),
        false => release(&view["from"]["digest"], &view["from"]["version"]),
    };
    let to = release(&view["to"]["digest"], &view["to"]["version"]);
    let count = view["plan"]["targets"].as_u64().unwrap_or_default();
    let nodes = if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    let back = &view["plan"]["rollback"];
    let back = match back["possible"] == true {
        true => format!("back to {} if it fails", release(&back["to"], &back["version"])),
        false if wave_kind(view, 1) == "first" => {
            "first release: no canary, nothing to go back to".to_owned()
        }
        false => format!("no way back: {}", word(&back["reason"])),
    };
    let service = word(&view["service"]);
    let runs_already = view["state"] == "succeeded" && view["changed"] == false;
    match word(&view["kind"]) {
        "deploy" if runs_already => return format!("{service}  {to} already runs on {nodes}\n"),
        "remove" => return format!("{service}  is taken from {nodes}\n"),
        "configure" => return format!("{service}  is configured on {nodes}\n"),
        _ => {}
    }
    format!("{service}  {from} → {to} on {nodes}   {back}\n")
}

fn ending(view: &Value) -> String {
    let took = view["duration_ms"].as_u64().map(|ms| format!(" in {}", span(ms)));
    let total = list(&view["nodes"]).len();
    if view["kind"] != "deploy" {
        let gone = list(&view["nodes"]).iter().filter(|node| node["state"] == "healthy").count();
        let away = list(&view["unreachable"]);
        let away = match away.is_empty() {
            true => String::new(),
            false => format!("; no answer from {}: they follow when they are back", words(away)),
        };
        let (state, took) = (word(&view["state"]), took.unwrap_or_default());
        let what = if view["kind"] == "remove" { "gone from" } else { "in force on" };
        return format!("{state}{took}: {what} {gone} of {total} nodes{away}\n");
    }
    let on = list(&view["on"]).iter().map(|on| {
        let count = list(&on["nodes"]).len();
        format!("{} on {count} of {total} nodes", release(&on["digest"], &on["version"]))
    });
    let on: Vec<String> = on.collect();
    let on = if on.is_empty() { String::new() } else { format!(": {}", on.join(", ")) };
    let more = match word(&view["state"]) {
        "succeeded" if view["changed"] == false => ", nothing to change",
        "rolled_back" => kept_serving(view),
        _ => "",
    };
    let line = format!("{}{}{on}{more}", word(&view["state"]), took.unwrap_or_default());
    match undo(view) {
        Some(undo) => format!("{}\n", at_the_right(&line, &undo)),
        None => format!("{line}\n"),
    }
}

/// Says so where nothing of the old release was down meanwhile.
fn kept_serving(view: &Value) -> &'static str {
    let touched = list(&view["nodes"]).iter().filter(|node| !node["started_at"].is_null());
    let kept: Vec<bool> = touched.map(|node| node["old_kept_serving"] == true).collect();
    match kept[..] {
        [true] => ", the old instance never stopped serving",
        [_, _, ..] if kept.iter().all(|kept| *kept) => ", the old instances never stopped serving",
        _ => "",
    }
}

/// Returns what takes back a rollout that succeeded.
fn undo(view: &Value) -> Option<String> {
    let changed = view["state"] == "succeeded" && view["changed"] == true;
    let possible = changed && view["plan"]["rollback"]["possible"] == true;
    possible.then(|| format!("undo: smgr rollback {}", word(&view["service"])))
}

/// Puts words at the right end of a line, where both fit a terminal; else behind it.
fn at_the_right(line: &str, words: &str) -> String {
    let gap = COLUMNS.saturating_sub(columns(line) + columns(words)).max(3);
    format!("{line}{:gap$}{words}", "")
}

fn node_words(view: &Value, node: &Value) -> String {
    let so = match word(&view["kind"]) {
        "remove" => Some("gone"),
        "configure" => Some("in force"),
        _ => None,
    };
    let state = spoken(word(&node["state"]));
    let failure = &node["failure"];
    if !failure.is_null() {
        let back =
            if word(&node["running"]).is_empty() { "" } else { "; back on the release before" };
        return format!("{state}: {}{back}", failure_words(failure));
    }
    match node["ready_ms"].as_u64() {
        _ if so.is_some() && state == "healthy" => so.unwrap_or_default().to_owned(),
        Some(ms) if word(&node["state"]) == "healthy" => format!("{state}, ready in {}", span(ms)),
        _ => state,
    }
}

fn failure_words(failure: &Value) -> String {
    let exit = &failure["exit"];
    let ended = match (exit["code"].as_i64(), exit["signal"].as_str()) {
        (Some(code), _) => Some(format!("exit code {code}")),
        (None, Some(signal)) => Some(format!("signal {}", printable(signal))),
        (None, None) => None,
    };
    let why = word(&failure["why"]);
    match (ended, why) {
        (Some(ended), "") => ended,
        (Some(ended), why) => format!("{ended}: {}", printable(why)),
        (None, "") => spoken(word(&failure["result"])),
        (None, why) => printable(why).into_owned(),
    }
}

fn last_why(view: &Value) -> String {
    let chain = list(&view["why"]);
    chain.last().map(|link| format!(": {}", word(&link["text"]))).unwrap_or_default()
}

fn wave_kind(view: &Value, wave: u64) -> &str {
    let waves = list(&view["plan"]["waves"]);
    waves.iter().find(|of| of["wave"] == wave).map_or("late", |of| word(&of["kind"]))
}

fn release(digest: &Value, version: &Value) -> String {
    match version.as_str() {
        Some(version) => printable(version).into_owned(),
        None => word(digest).strip_prefix("sha256:").unwrap_or("-").chars().take(8).collect(),
    }
}

/// Returns how people call a release `{digest, version}`.
pub fn release_word(of: &Value) -> String {
    release(&of["digest"], &of["version"])
}

fn spoken(word: &str) -> String {
    word.replace('_', " ")
}

fn line(text: &mut String, what: &str) {
    // Nodes and people are quoted in it.
    text.push_str("  ");
    text.push_str(&printable(what.trim_end()));
    text.push('\n');
}

fn words(list: &[Value]) -> String {
    list.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests;
