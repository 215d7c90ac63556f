//! A rollout as one watches it, held against the contract.

use serde_json::json;

use super::*;

/// A rollout of so many nodes, each in a wave of its own, or all in the first.
fn view(kind: &str, nodes: Value) -> Value {
    let back = (kind != "first").then_some("1.0");
    let waves = match kind {
        "first" => json!([{ "wave": 1, "kind": "first", "nodes": ["n1", "n2", "n3"] }]),
        _ => json!([
            { "wave": 1, "kind": "canary", "nodes": ["n1"] },
            { "wave": 2, "kind": "batch", "nodes": ["n2"] },
            { "wave": 3, "kind": "batch", "nodes": ["n3"] },
        ]),
    };
    json!({
        "rollout": "r-1c02", "service": "web", "kind": "deploy", "state": "rolling",
        "from": back.map(|version| json!({ "version": version })), "to": { "version": "1.1" },
        "plan": {
            "targets": 3, "waves": waves, "parameters": { "min_healthy_time_ms": 3000 },
            "rollback": { "possible": back.is_some(), "version": back, "reason": "none succeeded" },
        },
        "nodes": nodes, "ended_at": null,
    })
}

fn node(name: &str, wave: u64, state: &str) -> Value {
    let ready_ms = (state == "healthy").then_some(400);
    json!({ "node": name, "wave": wave, "state": state, "ready_ms": ready_ms, "started_at": "then" })
}

fn ended(mut view: Value, state: &str, ms: u64, version: &str) -> Value {
    (view["state"], view["ended_at"], view["changed"]) = (json!(state), json!("then"), json!(true));
    view["duration_ms"] = json!(ms);
    view["on"] = json!([{ "version": version, "nodes": ["n1", "n2", "n3"] }]);
    view
}

#[test]
fn the_first_release_is_the_one_of_the_contract() {
    let mut progress = Progress::default();
    let of = |states: [&str; 3]| {
        let nodes = ["n1", "n2", "n3"].iter().zip(states);
        view("first", nodes.map(|(name, state)| node(name, 1, state)).collect())
    };
    let first =
        "r-1c02  web  new → 1.1 on 3 nodes   first release: no canary, nothing to go back to\n";
    assert_eq!(progress.news(&of(["starting"; 3])), first);
    assert_eq!(progress.news(&of(["healthy", "starting", "healthy"])), "", "its wave is under way");
    assert_eq!(progress.news(&of(["healthy"; 3])), "  n1 n2 n3   ready 0.4s, held 3s\n");
    let last = ended(of(["healthy"; 3]), "succeeded", 3500, "1.1");
    assert_eq!(progress.news(&last), "succeeded in 3.5s: 1.1 on 3 of 3 nodes\n");
}

#[test]
fn a_good_release_is_the_one_of_the_contract() {
    let mut progress = Progress::default();
    let nodes =
        json!([node("n1", 1, "healthy"), node("n2", 2, "healthy"), node("n3", 3, "healthy")]);
    let text = progress.news(&ended(view("waves", nodes), "succeeded", 10_300, "1.1"));
    assert_eq!(
        text,
        "\
r-1c02  web  1.0 → 1.1 on 3 nodes   back to 1.0 if it fails
  1 canary   n1   ready 0.4s, held 3s
  2          n2   ready 0.4s, held 3s
  3          n3   ready 0.4s, held 3s
succeeded in 10.3s: 1.1 on 3 of 3 nodes                  undo: smgr rollback web
"
    );
    assert!(text.lines().all(|line| columns(line) <= COLUMNS));
}

/// A canary that ended, with what is known of its last lines.
fn bad(tail: &[&str]) -> Value {
    let mut node = node("n1", 1, "failed");
    node["failure"] = json!({
        "instance": "web/0@n1", "exit": { "code": 1, "signal": null }, "ran_ms": 100,
        "why": "it ended before it was ready", "log_tail": tail,
    });
    (node["running"], node["old_kept_serving"]) = (json!("sha256:4f1c"), json!(true));
    let untouched =
        |name: &str| json!({ "node": name, "state": "not_started", "started_at": null });
    view("waves", json!([node, untouched("n2"), untouched("n3")]))
}

#[test]
fn a_bad_release_is_the_one_of_the_contract() {
    let mut progress = Progress::default();
    progress.news(&view("waves", json!([])));
    let mut turning = bad(&[]);
    turning["state"] = json!("rolling_back");
    assert_eq!(progress.news(&turning), "", "its last line may come with the next picture");
    let said = ["  starting", "missing DATABASE_URL", ""];
    assert_eq!(
        progress.news(&ended(bad(&said), "rolled_back", 200, "1.0")),
        "  1 canary   n1   exited with code 1 after 0.1s: missing DATABASE_URL
rolled_back in 0.2s: 1.0 on 3 of 3 nodes, the old instance never stopped serving
"
    );
}

#[test]
fn a_failure_is_told_without_a_last_line_where_there_is_none_and_with_one_that_is_safe_to_print() {
    let told = |tail: &[&str]| {
        let mut progress = Progress::default();
        progress.news(&view("waves", json!([])));
        progress.news(&bad(tail)) + &progress.news(&bad(tail))
    };
    let ended = "  1 canary   n1   exited with code 1 after 0.1s: ";
    assert_eq!(told(&[]), format!("{ended}it ended before it was ready\n"));
    assert_eq!(told(&["\u{1b}[31mred"]), format!("{ended}\u{fffd}[31mred\n"));
    assert!(told(&[&"x".repeat(4096)]).len() < 256, "one line of a terminal or two");
}

#[test]
fn complaint_13_who_waits_is_told_how_far_it_is_though_nothing_happens() {
    let nodes = |last: &str| {
        json!([node("n1", 1, "healthy"), node("n2", 2, "starting"), node("n3", 2, last)])
    };
    assert_eq!(
        under_way(&view("canary", nodes("unreachable"))),
        "rolling: 1 of 3 nodes healthy, n2 starting, n3 unreachable"
    );
    let many: Vec<Value> = (1..=10).map(|it| node(&format!("n{it}"), 1, "starting")).collect();
    assert_eq!(
        under_way(&view("first", many.into())),
        "rolling: 0 of 10 nodes healthy, n1 n2 n3 n4 n5 n6 n7 n8 and 2 more starting"
    );
}
