use serde_json::{Value, json};

use super::*;
use crate::domain::id::{EpochId, Seq};
use crate::domain::rollout::tests::{Run, by_name, node, plan};
use crate::domain::rollout::{Amount, Command, Parameters};

/// Dates the facts of a run one second apart.
fn view(run: &Run) -> Value {
    let records: Vec<Record> = (1..)
        .zip(&run.facts)
        .map(|(seq, event)| Record {
            id: EventId { origin: node("c1"), epoch: EpochId(1), seq: Seq(seq) },
            at: UnixMicros(1_795_000_000_000_000 + seq * 1_000_000),
            event: event.clone(),
        })
        .collect();
    serde_json::to_value(RolloutView::of(&records).unwrap().unwrap()).unwrap()
}

#[test]
fn a_rollback_tells_why_as_a_chain_from_the_nodes_own_event_to_the_end() {
    let max_parallel = vec![Amount::Count(1), Amount::Count(2)];
    let mut run = Run::of(plan(6, Parameters { max_parallel, ..by_name() }));
    run.healthy("n1");
    run.healthy("n2");
    run.fails("n3");
    for name in ["n3", "n1", "n2", "n4"] {
        run.returned(name);
    }
    let view = view(&run);
    assert_eq!(view["state"], "rolled_back");
    assert_eq!((&view["exit_code"], &view["changed"]), (&json!(10), &json!(false)));
    let why = view["why"].as_array().unwrap();
    let kinds: Vec<_> = why.iter().map(|link| link["kind"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        ["instance_exited", "node_failed", "budget_exceeded", "rollback_chosen", "ended"]
    );
    assert_eq!(why[0]["text"], "exited with code 1, 0.31s after start, before it was ready");
    assert_eq!(why[2]["text"], "1 failed node > max_failures 0");
    for pair in why.windows(2) {
        assert_eq!(pair[1]["cause"], pair[0]["event"], "each link names the one before");
    }
    let states: Vec<_> = view["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["node"].as_str().unwrap(), node["state"].as_str().unwrap()))
        .collect();
    assert_eq!(
        states,
        [
            ("n1", "rolled_back"),
            ("n2", "rolled_back"),
            ("n3", "failed"),
            ("n4", "interrupted"),
            ("n5", "not_started"),
            ("n6", "not_started"),
        ]
    );
    let waves: Vec<_> =
        view["waves"].as_array().unwrap().iter().map(|w| w["state"].clone()).collect();
    assert_eq!(waves, ["rolled_back", "rolled_back", "failed", "not_started"]);
    assert_eq!(view["on"][0]["nodes"].as_array().unwrap().len(), 6);
    assert_eq!(view["generation"]["now"], 43);
}

#[test]
fn every_field_of_the_contract_is_there_from_the_first_moment() {
    let view = view(&Run::of(plan(3, by_name())));
    let keys = [
        "schema",
        "rollout",
        "fleet",
        "service",
        "kind",
        "state",
        "exit_code",
        "waits_for",
        "changed",
        "from",
        "to",
        "generation",
        "asked",
        "started_at",
        "ended_at",
        "duration_ms",
        "led_by",
        "as_of",
        "plan",
        "budget",
        "deadlines",
        "waves",
        "nodes",
        "why",
        "on",
        "unreachable",
        "on_at_end",
        "id",
        "facts",
        "placement",
    ];
    for key in keys {
        assert!(view.get(key).is_some(), "{key}");
    }
    assert_eq!(view.as_object().unwrap().len(), keys.len());
    assert_eq!(view["exit_code"], Value::Null);
    assert!(view["why"].as_array().unwrap().is_empty());
    assert_eq!(view["plan"]["waves"][0]["kind"], "canary");
}

#[test]
fn a_pause_and_an_abort_name_who_did_it() {
    let mut run = Run::of(plan(3, by_name()));
    run.command(Command::Pause).unwrap();
    assert_eq!(view(&run)["why"][0]["text"], "paused by bob");
    run.command(Command::Abort { rollback: true }).unwrap();
    let text = view(&run)["why"][0]["text"].clone();
    assert_eq!(text, "aborted by bob: back to the last good release");
}
