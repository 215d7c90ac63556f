//! What is done to, and read of, a service on several nodes at once.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::Fleet;
use crate::support::process::signal;
use crate::support::wait::wait_until;

/// A service that says something, with an action.
fn web(says: &str, action: &str) -> String {
    format!(
        "exec = [\"sh\", \"-c\", \"echo {says}; exec sleep 1000\"]\n\
         [action.cache-clear]\nexec = [\"{action}\", \"${{zone}}\"]\n\
         params.zone = {{ type = \"string\", pattern = \"^[a-z]+$\", default = \"all\" }}\n"
    )
}

/// A fleet of which three nodes have `web`; the action fails on one of them.
fn fleet(fails_on: &str) -> Fleet {
    let fleet = Fleet::new();
    for node in ["n1", "n2", "n3"] {
        let action = if node == fails_on { "false" } else { "true" };
        fleet.service(node, "web", &web(&format!("hello from {node}"), action));
    }
    fleet.service("n2", "job", "exec = [\"sleep\", \"1000\"]\n");
    fleet.up(4);
    wait_until("the controller knows who has it", || {
        let status = fleet.status();
        let instances = status["instances"].as_array().into_iter().flatten();
        instances.filter(|it| it["service"] == "web" && it["state"] == "running").count() == 3
    });
    fleet
}

impl Fleet {
    /// Returns how often something happened to `web` on a node.
    fn count(&self, node: &str, kind: &str) -> usize {
        let text = self.machine.exits(0, &["events", "--node", node, "-o", "json"]);
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|it| it["type"] == kind && it["service"] == "web").count()
    }
}

fn states(result: &Value) -> Vec<(&str, &str)> {
    let nodes = result["nodes"].as_object().unwrap().iter();
    nodes.map(|(node, verdict)| (node.as_str(), verdict["state"].as_str().unwrap())).collect()
}

#[test]
fn an_action_runs_once_on_each_selected_node_that_has_the_service_and_who_is_away_is_named() {
    let fleet = fleet("");
    let clear = ["action", "run", "web", "cache-clear", "zone=img", "--select"];
    let run = |select: &str, more: &[&str]| {
        let line = [&clear[..], &[select], more, &["-o", "json"]].concat();
        let ran = fleet.machine.smgr(&line);
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        (ran.status.code(), serde_json::from_str::<Value>(&text).unwrap_or_default())
    };
    let (code, result) = run("*", &[]);
    assert_eq!((code, &result["exit_code"]), (Some(0), &json!(0)), "{result}");
    assert_eq!(states(&result), [("n1", "done"), ("n2", "done"), ("n3", "done")]);
    for (node, count) in [("n1", 1), ("n2", 1), ("n3", 1), ("n4", 0)] {
        assert_eq!(fleet.count(node, "action.ended"), count, "{node}");
    }
    let said = fleet.machine.exits(0, &[&clear[..], &["name=n1|n4"]].concat());
    assert!(said.contains("done on 1 of 1 nodes"), "{said}");

    // Who is away is named and holds up nobody.
    fleet.kill_node("n2");
    let (code, result) = run("*", &["--max-parallel", "1"]);
    assert_eq!((code, &result["missing"]), (Some(16), &json!(["n2"])), "{result}");
    assert_eq!(states(&result), [("n1", "done"), ("n2", "refused"), ("n3", "done")]);
    let said = fleet.machine.exits(5, &[&clear[..], &["name=n2"]].concat());
    assert!(said.contains("no answer from n2"), "{said}");

    for (code, error, line) in [
        (4, "E0604", "restart web --select env=nowhere"),
        (4, "E0603", "restart web --select name=n9"),
        (4, "no node of `*`", "restart nosuch --select *"),
        (2, "say one of them", "restart web@n1 --select *"),
        (2, "say one of them", "restart web --node n1 --select *"),
        (2, "never end", "restart web --select * --max-parallel 0"),
        (2, "--select", "restart web --max-parallel 1"),
    ] {
        let said = fleet.machine.exits(code, &line.split(' ').collect::<Vec<_>>());
        assert!(said.contains(error), "{line}: {said}");
    }
    fleet.up_again();
}

#[test]
fn what_fails_on_the_first_node_is_not_done_to_the_others() {
    let fleet = fleet("n1");
    let line = "action run web cache-clear --select * --max-parallel 1 -o json";
    let ran = fleet.machine.smgr(&line.split(' ').collect::<Vec<_>>());
    let result: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(ran.status.code(), Some(15), "{result}");
    let expected = [("n1", "failed"), ("n2", "not_started"), ("n3", "not_started")];
    assert_eq!(states(&result), expected);
    assert_eq!(result["not_started"], json!(["n2", "n3"]));
    assert_eq!(fleet.count("n2", "intent.accepted") + fleet.count("n3", "intent.accepted"), 0);

    // The same way leads to a restart: one node, then more of them.
    let said = fleet.machine.exits(0, &["restart", "web", "--select", "*"]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("restarted web on n1 in"), "{said}");
    assert!(said.contains("restart web: done on 3 of 3 nodes"), "{said}");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(fleet.count(node, "instance.started"), 2, "{node}");
    }
}

#[test]
fn the_logs_of_several_nodes_are_one_in_the_order_of_time() {
    let fleet = fleet("");
    let read = |line: &str| fleet.machine.exits(0, &line.split(' ').collect::<Vec<_>>());
    let said = read("logs web --select *");
    for node in ["n1", "n2", "n3"] {
        assert!(said.contains(&format!("web@{node} | ")), "{said}");
        assert!(said.contains(&format!("hello from {node}")), "{said}");
    }
    let times: Vec<&str> = said.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert!(times.is_sorted() && times.len() == 3, "{said}");
    assert_eq!(read("logs web --select * -n 2").lines().count(), 2);
    assert_eq!(read("logs web --node n1 --node n3").lines().count(), 2);

    // What is written from here on comes as well, of whichever node, and of one that was away.
    let mut follow = fleet.machine.command(&["logs", "web", "--select", "*", "-f", "-o", "json"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    let first: BTreeSet<String> = (0..3).map(|_| next()["node"].to_string()).collect();
    assert_eq!(first.len(), 3);
    fleet.machine.exits(0, &["restart", "web@n3"]);
    assert_eq!(next()["node"], "n3");
    fleet.machine.exits(0, &["restart", "web@n1"]);
    assert_eq!(next()["node"], "n1");
    signal(follow.id(), Signal::INT);
    assert_eq!(follow.wait().unwrap().code(), Some(0));

    fleet.kill_node("n2");
    let said = fleet.machine.exits(16, &["logs", "web", "--select", "*"]);
    assert!(said.contains("no answer from n2") && said.contains("hello from n3"), "{said}");
    fleet.up_again();
}

#[test]
fn what_a_node_wrote_between_two_looks_and_nobody_can_show_is_told_as_missing() {
    let fleet = Fleet::new();
    let bursts = "trap 'seq 3000' USR1; echo up; while :; do sleep 0.1; done";
    for node in ["n1", "n2"] {
        fleet.service(node, "web", &format!("exec = [\"sh\", \"-c\", \"{bursts}\"]\n"));
    }
    fleet.up(2);
    wait_until("both have written", || {
        let ran = fleet.machine.smgr(&["logs", "web", "--select", "*"]);
        String::from_utf8_lossy(&ran.stdout).lines().count() == 2
    });
    let noted = fleet.machine.folder().join("noted");
    let mut follow = fleet.machine.command(&["logs", "web", "--select", "*", "-f"]);
    let mut follow = follow
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&noted).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.by_ref().take(2).all(|line| line.ends_with(" up")));
    fleet.machine.exits(0, &["signal", "web@n2", "--signal", "USR1"]);
    // It goes on with the last ones, which are as many as are looked at.
    assert!(lines.any(|line| line.starts_with("web@n2 | ") && line.ends_with(" 3000")));
    let noted = std::fs::read_to_string(noted).unwrap();
    let told = "web/0@n2 wrote more than can be shown: lines are missing here";
    assert!(noted.contains(told) && !noted.contains("@n1"), "{noted}");
    signal(follow.id(), Signal::INT);
    assert_eq!(follow.wait().unwrap().code(), Some(0));
}

#[test]
fn without_a_selection_logs_are_those_of_all_nodes_and_a_verb_is_for_this_one_which_it_says() {
    let fleet = fleet("");
    let said = fleet.machine.exits(0, &["restart", "web"]);
    assert!(said.contains("this is n1 alone; web is on n2 n3 too"), "{said}");
    assert!(said.contains("all of them: smgr restart web --select '*'"), "{said}");
    assert_eq!(["n1", "n2"].map(|node| fleet.count(node, "instance.started")), [2, 1]);
    let said = fleet.machine.exits(0, &["history", "nats"]);
    assert!(!said.contains("alone"), "{said}");
    let lines = fleet.machine.exits(0, &["logs", "web"]);
    assert!(["n1", "n2", "n3"].iter().all(|it| lines.contains(&format!("hello from {it}"))));
}

#[test]
fn what_is_wrong_in_fleet_json_keeps_nobody_from_ending_the_fleet() {
    let fleet = Fleet::new();
    let labels = ["--label", "env=prod", "--label", "n2:zone=b"];
    fleet.machine.exits(0, &[&["up", "--nodes", "2", "-d"][..], &labels].concat());
    let status = fleet.status();
    assert_eq!(status["nodes"][1]["labels"], json!({"env": "prod", "zone": "b"}), "{status}");
    let path = fleet.machine.state().join("fleet.json");
    let mut wrong: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    wrong["jobs"] =
        json!({"ci": [{"verbs": {"only": ["explode"]}, "services": "all", "nodes": "all"}]});
    std::fs::write(&path, wrong.to_string()).unwrap();
    assert!(fleet.machine.exits(0, &["token", "list"]).contains("there is no token"));
    fleet.machine.exits(0, &["down"]);
}
