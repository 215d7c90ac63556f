//! Services that need others: the order of starts and stops, and whose restarts are followed.

use std::fs;

use serde_json::Value;

use crate::support::machine::Machine;
use crate::support::process::kill_9;
use crate::support::wait::eventually;

const SLEEP: &str = "exec = [\"/bin/sleep\", \"1000\"]\n";

/// Ready a moment after it was started.
const LATE: &str = "exec = [\"/bin/sh\", \"-c\", \"sleep 0.3; echo up; exec sleep 1000\"]\n\
                    [ready]\nby = \"log\"\nmatch = '^up$'\n";

fn seq(events: &[Value], kind: &str, service: &str) -> u64 {
    let is_it = |event: &&Value| event["type"] == kind && event["service"] == service;
    let found = events.iter().find(is_it);
    found.unwrap_or_else(|| panic!("{kind} of {service}"))["seq"].as_u64().unwrap()
}

#[test]
fn a_service_starts_when_what_it_needs_is_ready_and_ends_before_it() {
    let machine = Machine::new();
    machine.service("a-app", &format!("{SLEEP}[depends_on.b-cache]\n[depends_on.c-db]\n"));
    machine.service("b-cache", &format!("{SLEEP}[depends_on.c-db]\ncondition = \"started\"\n"));
    machine.service("c-db", LATE);
    machine.exits(0, &["up", "-d"]);
    machine.ready("a-app");
    // A reading may be ahead of the disk.
    let events = eventually("the last start is in the log", || {
        let events = machine.events();
        let is_last = |it: &Value| it["type"] == "instance.started" && it["service"] == "a-app";
        events.iter().any(is_last).then_some(events)
    });
    let started = |service| seq(&events, "instance.started", service);
    assert!(started("c-db") < started("b-cache") && started("b-cache") < started("a-app"));
    let db_is_ready = seq(&events, "instance.ready", "c-db");
    assert!(started("b-cache") < db_is_ready && db_is_ready < started("a-app"));
    machine.exits(0, &["down"]);
    machine.exits(0, &["audit", "verify"]);
    // The log is read by the next life of the node.
    machine.exits(0, &["up", "-d"]);
    let events = machine.events();
    let stopped = |service| seq(&events, "instance.stopped", service);
    let stopping = |service| seq(&events, "instance.stopping", service);
    assert!(stopped("a-app") < stopping("b-cache") && stopped("b-cache") < stopping("c-db"));
}

#[test]
fn a_restart_is_followed_by_those_that_say_so_and_by_no_other() {
    let machine = Machine::new();
    machine.service("db", LATE);
    machine.service("follows", &format!("{SLEEP}[depends_on.db]\nrestart = true\n"));
    machine.service("waits", &format!("{SLEEP}[depends_on.db]\n"));
    machine.exits(0, &["up", "-d"]);
    let (db, follows, waits) =
        (machine.ready("db"), machine.ready("follows"), machine.ready("waits"));
    // Somebody asks for it.
    machine.exits(0, &["restart", "db"]);
    let second = machine.ready_but("follows", Some(follows));
    let db = machine.ready_but("db", Some(db));
    // It crashes.
    kill_9(db);
    machine.ready_but("db", Some(db));
    let third = machine.ready_but("follows", Some(second));
    assert_eq!(machine.ready("waits"), waits);
    // The other way round nothing follows.
    let db = machine.ready("db");
    kill_9(third);
    machine.ready_but("follows", Some(third));
    assert_eq!(machine.ready("db"), db);
    assert_eq!(machine.json(&["replay"])["live"]["equal"], true);
}

#[test]
fn a_restart_that_was_seen_by_nobody_is_followed_too_and_by_a_new_agent() {
    let machine = Machine::new();
    machine.service("db", SLEEP);
    machine.service("follows", &format!("{SLEEP}[depends_on.db]\nrestart = true\n"));
    machine.exits(0, &["up", "-d"]);
    let (db, follows) = (machine.ready("db"), machine.ready("follows"));
    kill_9(db);
    kill_9(machine.part("agent"));
    machine.ready_but("db", Some(db));
    machine.ready_but("follows", Some(follows));
}

#[test]
fn services_that_wait_for_each_other_are_refused_where_it_is_written() {
    let machine = Machine::new();
    machine.service("a", &format!("{SLEEP}[depends_on.b]\n"));
    machine.service("b", &format!("{SLEEP}[depends_on.c]\n"));
    machine.service("c", &format!("{SLEEP}\n[depends_on.a]\n"));
    let said = machine.exits(8, &["up", "-d"]);
    assert!(said.contains("these wait for each other: a → b → c → a"), "{said}");
    let file = machine.state().join("config/services.d/c.toml");
    let text = fs::read_to_string(&file).unwrap();
    let line = 1 + text.lines().position(|line| line == "[depends_on.a]").unwrap();
    assert!(said.contains(&format!("c.toml:{line}:")), "{said}");
    machine.exits(5, &["status"]);
}

#[test]
fn what_is_not_required_is_not_waited_for_when_it_does_not_come() {
    let machine = Machine::new();
    machine.service("off", &format!("enabled = false\n{SLEEP}"));
    machine.service("wants", &format!("{SLEEP}[depends_on.off]\nrequired = false\n"));
    machine.service("needs", &format!("{SLEEP}[depends_on.off]\n"));
    machine.exits(0, &["up", "-d"]);
    machine.ready("wants");
    let needs = eventually("it waits", || {
        let needs = machine.instance("needs");
        (needs["state"] == "waiting").then_some(needs)
    });
    assert_eq!(needs["conditions"]["DependenciesMet"]["status"], "false");
    machine.exits(0, &["start", "off"]);
    machine.ready("needs");
}
