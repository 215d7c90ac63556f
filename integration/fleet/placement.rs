//! Where services are to be: nodes that begin or cease to match, and services that are taken from a fleet.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use super::rollouts::{Shop, states};
use crate::releases::good;
use crate::support::wait::{eventually, wait_until};

impl Shop {
    /// Labels the nodes anew, as whoever holds the root key does.
    fn label(&self, roles: &[(&str, &str)]) {
        self.fleet.machine.exits(0, &["down"]);
        let path = self.fleet.folder("n1").join("fleet.json");
        let mut fleet: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let labels: BTreeMap<_, _> =
            roles.iter().map(|(node, role)| (*node, json!({ "role": role }))).collect();
        fleet["labels"] = json!(labels);
        fs::write(&path, fleet.to_string()).unwrap();
        self.fleet.up_again();
        eventually("one leads", || self.fleet.status()["controllers"]["leader"].as_str().map(drop));
    }

    /// Returns the nodes on which `web` runs, by their own word.
    fn hosts(&self) -> Vec<&'static str> {
        let has_it = |node: &&str| {
            let ran = self.fleet.machine.smgr(&["status", &format!("web@{node}")]);
            ran.status.code() == Some(0)
        };
        ["n1", "n2", "n3"].into_iter().filter(has_it).collect()
    }

    fn arrives(&self, nodes: &[&str]) {
        wait_until(&format!("web is on {nodes:?}"), || self.hosts() == nodes);
    }
}

#[test]
fn nodes_get_and_lose_a_service_as_their_labels_say() {
    let shop = Shop::of("[placement]\nselect = \"role=web\"\n");
    let said = shop.deploy_with(4, "1.0", &good("1"), &[]);
    assert!(said.contains("no node matches `role=web`"), "{said}");
    shop.label(&[("n1", "web"), ("n2", "web"), ("n3", "db")]);
    let said = shop.deploy(0, "1.0", &good("1"));
    assert!(said.contains("1.0 on 2 of 2 nodes"), "{said}");
    assert_eq!(shop.hosts(), ["n1", "n2"]);

    shop.label(&[("n1", "web"), ("n2", "db"), ("n3", "web")]);
    shop.arrives(&["n1", "n3"]);
    let told = shop.fleet.machine.exits(0, &["events", "--fleet"]);
    let place = |text: &str| told.find(text).unwrap_or_else(|| panic!("{text}: {told}"));
    let (gets, loses) = (place("n3 gets it: `role=web` means it"), place("n2 loses it"));
    assert!(gets < loses, "{told}");
    // Labels that match nothing take the service from nowhere.
    shop.label(&[("n1", "wbe"), ("n2", "db"), ("n3", "wbe")]);
    wait_until("it says so", || {
        let name = shop.list()[0]["rollout"].as_str().unwrap().to_owned();
        let shown = shop.fleet.machine.exits(0, &["rollout", "show", &name]);
        shown.contains("nothing more moves: its selection matches no node")
    });
    assert_eq!(shop.hosts(), ["n1", "n3"]);
    // Who matches again gets it again.
    shop.label(&[("n1", "web"), ("n2", "web"), ("n3", "web")]);
    shop.arrives(&["n1", "n2", "n3"]);
    for (node, count) in [("n1", 1), ("n2", 2), ("n3", 1)] {
        assert_eq!(shop.applied(node, &json!(1)), count, "{node}");
    }
}

#[test]
fn a_service_is_taken_from_a_fleet_and_from_a_node_that_was_away_when_it_is_back() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    shop.fleet.kill_node("n3");
    wait_until("n3 is missed", || {
        shop.fleet.machine.exits(0, &["events", "--fleet"]).contains("hears nothing of n3")
    });
    for (code, error, line) in [
        (4, "E0604", "remove web --select env=nowhere"),
        (4, "no node that is meant has a service called nosuch", "remove nosuch --select name=n1"),
        (2, "--select", "remove web --node n1 --select *"),
    ] {
        let said = shop.fleet.machine.exits(code, &line.split(' ').collect::<Vec<_>>());
        assert!(said.contains(error), "{line}: {said}");
    }
    let said = shop.fleet.machine.exits(16, &["remove", "web", "--select", "*"]);
    assert!(said.contains("gone from 2 of 3 nodes; no answer from n3"), "{said}");
    let view = shop.last();
    assert_eq!((&view["kind"], &view["state"]), (&json!("remove"), &json!("succeeded")), "{view}");
    let waves = view["plan"]["waves"].as_array().unwrap();
    assert!(waves.len() > 1 && view["on"] == json!([]), "some at a time: {view}");
    for node in ["n1", "n2"] {
        let events = shop.events(node);
        assert_eq!(events.iter().filter(|it| it["type"] == "release.removed").count(), 1, "{node}");
    }
    shop.fleet.up_again();
    eventually("n3 has it no more", || {
        let events = shop.fleet.machine.smgr(&["events", "--node", "n3", "-o", "json"]);
        String::from_utf8_lossy(&events.stdout).contains("release.removed").then_some(())
    });
    assert_eq!(shop.hosts(), [""; 0]);

    // It may be wanted back.
    let said = shop.fleet.machine.exits(0, &["rollback", "web"]);
    assert!(said.contains("1.0 on 3 of 3 nodes"), "{said}");
    let detached =
        shop.fleet.machine.exits(0, &["remove", "web", "--select", "name=n1", "--detach"]);
    assert!(detached.contains("is planned"), "{detached}");
    shop.arrives(&["n2", "n3"]);
}

#[test]
fn what_is_set_for_a_part_of_the_fleet_reaches_all_of_it_and_the_node_that_was_away() {
    let shop = Shop::of("[env]\nMODE = \"fast\"\n");
    shop.deploy(0, "1.0", &good("1"));
    let value = |node: &str| {
        let status = shop.fleet.machine.json(&["status", &format!("web@{node}")]);
        status["instances"][0]["overridden_keys"].clone()
    };
    let pid = |node: &str| {
        let status = shop.fleet.machine.json(&["status", &format!("web@{node}")]);
        status["instances"][0]["pid"].clone()
    };
    let set = |code: i32, line: &str| {
        shop.fleet.machine.exits(code, &line.split(' ').collect::<Vec<_>>())
    };
    for (code, error, line) in [
        (8, "did you mean", "config set web evn.MODE=slow --select *"),
        (4, "E0604", "config set web env.MODE=slow --select env=nowhere"),
        (2, "say one of them", "config set web@n1 env.MODE=slow --select *"),
        (4, "nosuch", "config set nosuch env.MODE=slow --select *"),
    ] {
        let said = set(code, line);
        assert!(said.contains(error), "{line}: {said}");
    }
    shop.fleet.kill_node("n3");
    wait_until("n3 is missed", || {
        shop.fleet.machine.exits(0, &["events", "--fleet"]).contains("hears nothing of n3")
    });
    let before = [pid("n1"), pid("n2")];
    let said = set(16, "config set web env.MODE=slow --select *");
    assert!(said.contains("in force on 2 of 3 nodes; no answer from n3"), "{said}");
    assert_eq!((value("n1"), value("n2")), (json!(["env.MODE"]), json!(["env.MODE"])));
    assert_ne!([pid("n1"), pid("n2")], before, "what it was started with has changed");
    let shown = set(0, "config show web env.MODE --origin --hidden");
    assert!(shown.contains("\"slow\"") && shown.contains(" by operator (6)"), "{shown}");
    assert!(shown.contains("release "), "what it hides: {shown}");
    shop.fleet.up_again();
    eventually("n3 follows", || (value("n3") == json!(["env.MODE"])).then_some(()));

    // A release changes nothing of it, and a value for a time is above it.
    let said = shop.deploy(0, "2.0", &good("2"));
    assert!(said.contains("2.0 on 3 of 3 nodes"), "{said}");
    assert_eq!(value("n2"), json!(["env.MODE"]));
    let said = set(0, "config set web env.MODE=off --select name=n1|n2 --for 1h");
    assert!(said.contains("done on 2 of 2 nodes"), "{said}");
    assert!(set(0, "config show web env.MODE").contains("\"off\""));
    set(0, "config unset web env.MODE --select name=n1|n2 --temporary");
    let said = set(0, "config unset web env.MODE --select *");
    assert!(said.contains("in force on 3 of 3 nodes"), "{said}");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(value(node), json!([]), "{node}");
    }
    assert!(set(0, "config show web env.MODE").contains("\"fast\""));
}

#[test]
fn a_value_that_breaks_a_service_stops_at_the_first_node_and_the_exit_code_is_told() {
    let shop = Shop::of("[env]\nMODE = \"fast\"\n");
    let script = good("1").replacen('\n', "\n[ \"$MODE\" = off ] && exit 4\n", 1);
    shop.deploy(0, "1.0", &script);
    let line = ["config", "set", "web", "env.MODE=off", "--select", "*"];
    let said = shop.fleet.machine.exits(11, &line);
    assert!(said.contains("code 4"), "{said}");
    let view = shop.last();
    let failed: Vec<_> = states(&view).into_iter().filter(|(_, state)| state == "failed").collect();
    let [(node, _)] = failed.as_slice() else { panic!("{view}") };
    let nodes = view["nodes"].as_array().unwrap().iter();
    let failure = &nodes.clone().find(|it| it["node"] == node.as_str()).unwrap()["failure"];
    assert_eq!(failure["exit"]["code"], 4, "{view}");
    assert_eq!(failure["instance"], format!("web/0@{node}"), "{view}");
}
