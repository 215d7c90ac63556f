//! Nothing that a node recorded is missed by the controller, whoever dies meanwhile, and nothing is taken twice.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::leaders::fleet_of_two_controllers;
use super::{Fleet, ids_in};
use crate::support::process::kill_9;
use crate::support::wait::{eventually, wait_until};

const SLEEP: &str = "exec = [\"sleep\", \"1000\"]\n";

#[test]
fn nothing_is_missed_and_nothing_taken_twice_when_controller_bus_and_nodes_are_killed() {
    let fleet = Fleet::new();
    for node in ["n1", "n2", "n3"] {
        fleet.service(node, "web", SLEEP);
    }
    fleet.up(3);
    for round in 0..4 {
        for node in ["n1", "n2", "n3"] {
            fleet.machine.smgr(&["restart", &format!("web@{node}")]);
        }
        match round {
            0 => kill_9(fleet.pid("controller-c1")),
            1 => kill_9(fleet.pid("nats")),
            2 => {
                // While the bus is away nodes go on; what they record then is fetched.
                kill_9(fleet.pid("nats"));
                kill_9(fleet.pid("controller-c1"));
            }
            _ => {
                fleet.kill_node("n2");
                fleet.machine.exits(0, &["up", "-d"]);
            }
        }
        eventually("the controller answers again", || {
            let status = fleet.machine.smgr(&["status", "-o", "json"]);
            let text = String::from_utf8_lossy(&status.stdout).into_owned();
            text.contains("\"source\": \"c1\"").then_some(())
        });
    }
    fleet.all_arrives(&["n1", "n2", "n3"]);
    let status = fleet.status();
    let logs = status["intake"]["logs"].as_array().unwrap();
    assert!(logs.iter().all(|log| log["doubt"].is_null()), "{logs:?}");
    assert_eq!(status["intake"]["forked"], 0, "{status}");
}

#[test]
fn events_of_while_the_bus_was_away_are_fetched() {
    let fleet = Fleet::new();
    fleet.service("n1", "web", SLEEP);
    fleet.up(2);
    fleet.machine.ready("web");
    let before = fleet.status()["intake"]["fetched"].as_u64().unwrap();
    // The agent restarts it over its own socket: no bus is needed.
    fleet.machine.exits(0, &["stop", "nats", "--node", "n1"]);
    for _ in 0..3 {
        fleet.machine.exits(0, &["restart", "web", "--node", "n1"]);
    }
    fleet.machine.exits(0, &["start", "nats", "--node", "n1"]);
    fleet.all_arrives(&["n1", "n2"]);
    let after = fleet.status()["intake"]["fetched"].as_u64().unwrap();
    assert!(after > before, "{before} then {after}");
}

#[test]
fn a_stream_of_the_fleet_resumes_exactly_after_any_of_its_cursors() {
    let fleet = Fleet::of(2);
    fleet.all_arrives(&["n1", "n2"]);
    let all = fleet.machine.exits(0, &["events", "--fleet", "-o", "json"]);
    let all: Vec<serde_json::Value> = all
        .lines()
        .filter(|line| line.contains("smgr.event.v1"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (place, event) in all.iter().enumerate() {
        let cursor = event["cursor"].as_str().unwrap();
        assert!(cursor.starts_with("c1/"), "{cursor}");
        let rest = fleet.ids(&["events", "--since", cursor]);
        let wanted: Vec<_> = all[place + 1..].iter().map(|it| it["id"].as_str().unwrap()).collect();
        assert_eq!(rest[..wanted.len()], wanted[..], "after {cursor}");
        if place > 6 {
            break; // Each is a process.
        }
    }
}

#[test]
fn a_cursor_survives_its_controller_nothing_is_missed_and_what_is_sent_twice_is_marked() {
    let fleet = fleet_of_two_controllers();
    fleet.service("n1", "web", SLEEP);
    fleet.machine.exits(0, &["apply"]);
    // More than one page, so that the mark has to hold beyond the first.
    for _ in 0..40 {
        fleet.machine.exits(0, &["restart", "web@n1"]);
    }
    fleet.all_arrives(&["n1", "n2"]);
    let told = fleet.machine.exits(0, &["events", "--fleet", "-o", "json"]);
    let cursor = told.lines().rev().find_map(|line| {
        let event: Value = serde_json::from_str(line).unwrap();
        (event["schema"] == "smgr.event.v1").then(|| event["cursor"].as_str().unwrap().to_owned())
    });
    let cursor = cursor.expect("events have cursors");
    let (first, other) = if cursor.starts_with("c1/") { ("c1", "c2") } else { ("c2", "c1") };
    fleet.machine.exits(0, &["stop", &format!("controller-{first}"), "--node", "n1"]);
    fleet.machine.exits(0, &["restart", "web@n1", "--node", "n1"]);
    let (after, said) = eventually("the other one has the last restart", || {
        let ran = fleet.machine.smgr(&["events", "--since", &cursor, "-o", "json"]);
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        let log = fleet.ids(&["events", "--node", "n1"]);
        let has = ids_in(&text);
        let is_whole = ran.status.success() && log.iter().all(|id| has.contains(id));
        is_whole.then(|| (text, String::from_utf8_lossy(&ran.stderr).into_owned()))
    });
    let lines: Vec<Value> = after.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let place = |cursor: &str| {
        let (origin, seq) = cursor.rsplit_once('/').unwrap();
        assert!(origin.starts_with(other), "{cursor}");
        seq.parse::<u64>().unwrap()
    };
    let (_, until) = said.split_once("events up to ").expect("it is marked");
    let until = place(until.split(' ').next().unwrap());
    let ids = |is_again: bool| -> BTreeSet<String> {
        let events = lines.iter().filter(|line| line["schema"] == "smgr.event.v1");
        let events =
            events.filter(|it| (place(it["cursor"].as_str().unwrap()) <= until) == is_again);
        events.map(|event| event["id"].as_str().unwrap().to_owned()).collect()
    };
    assert!(until > 200 && ids(true).len() as u64 == until, "{until}, {}", ids(true).len());
    let before: BTreeSet<String> = ids_in(&told).into_iter().collect();
    assert!(before.is_disjoint(&ids(false)), "all that was told before is marked");
    assert!(before.iter().all(|id| ids(true).contains(id)), "and the whole of it is there");
}

#[test]
fn a_node_that_is_silent_is_told_to_be_unreachable_and_named_by_ping() {
    let fleet = Fleet::of(3);
    fleet.all_arrives(&["n1", "n2", "n3"]);
    fleet.kill_node("n3");
    let silent = fleet.machine.exits(16, &["ping"]);
    assert!(silent.contains("no answer from n3"), "{silent}");
    wait_until("the screen says that n3 is unreachable", || {
        let screen = fleet.machine.exits(0, &["status"]);
        screen.contains("1 unreachable") && screen.contains("what runs there is not known")
    });
    let as_of = fleet.status()["as_of"].clone();
    assert_eq!(
        (&as_of["source"], &as_of["missing_nodes"]),
        (&"c1".into(), &serde_json::json!(["n3"]))
    );
    wait_until("it is an event", || {
        fleet.machine.exits(0, &["events", "--fleet"]).contains("hears nothing of n3")
    });
    fleet.machine.exits(0, &["up", "-d"]);
    wait_until("it is heard again", || fleet.status()["as_of"]["complete"] == true);
    fleet.all_arrives(&["n1", "n2", "n3"]);
}

/// Copies a folder as a backup does.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let place = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &place),
            false => drop(fs::copy(entry.path(), place).unwrap()),
        }
    }
}

#[test]
fn a_node_whose_disk_was_set_back_hears_it_from_a_controller_and_begins_anew() {
    let fleet = Fleet::new();
    fleet.service("n2", "web", SLEEP);
    fleet.up(2);
    fleet.all_arrives(&["n1", "n2"]);
    let (log, backup) = (fleet.folder("n2").join("log"), fleet.machine.folder().join("backup"));
    fleet.kill_node("n2");
    copy(&log, &backup);
    fleet.up_again();
    for _ in 0..3 {
        fleet.machine.exits(0, &["restart", "web@n2"]);
    }
    fleet.all_arrives(&["n1", "n2"]);
    fleet.kill_node("n2");
    fs::remove_dir_all(&log).unwrap();
    copy(&backup, &log);
    fleet.up_again();
    let epochs = || -> Option<Vec<serde_json::Value>> {
        let ran = fleet.machine.smgr(&["events", "--node", "n2", "-o", "json"]);
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        let events = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let opened = |event: &serde_json::Value| event["type"] == "log.opened";
        Some(events.filter(opened).collect())
    };
    eventually("it begins anew", || {
        let last = epochs()?.pop()?;
        (last["data"]["reason"] == "witness_ahead").then_some(())
    });
    // It goes on from there, and the controller with it.
    eventually("it takes wishes", || {
        fleet.machine.smgr(&["restart", "web@n2"]).status.success().then_some(())
    });
    let new = || -> Option<String> {
        let last = epochs()?.pop()?;
        last["id"].as_str().map(str::to_owned)
    };
    let new = new().unwrap();
    eventually("the controller has the new epoch", || {
        fleet.ids_if_any(&["events", "--fleet"])?.contains(&new).then_some(())
    });
    assert_eq!(epochs().unwrap().len(), 1, "no epoch after another");
    let said = fleet.machine.exits(0, &["events", "--fleet"]);
    assert!(said.contains("the log of n2 is not the one that was here"), "{said}");
}
