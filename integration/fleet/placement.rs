//! Where services are to be: nodes that begin or cease to match, and services that are taken from a fleet.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use super::rollouts::Shop;
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
