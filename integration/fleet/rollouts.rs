//! Releases over a fleet: wave by wave, taken back where they fail, whoever leads.

use serde_json::Value;

use super::Fleet;
use crate::releases::{archive, good, spec};

/// A fleet of three nodes, and what is deployed on it.
struct Shop {
    fleet: Fleet,
    spec: String,
}

impl Shop {
    fn open(more: &str) -> Self {
        let fleet = Fleet::of(3);
        let spec = spec(&fleet.machine, more);
        Self { fleet, spec }
    }

    fn pack(&self, name: &str, script: &str) -> String {
        archive(&self.fleet.machine, name, script).display().to_string()
    }

    /// Deploys a release on all nodes and demands the exit code.
    fn deploy(&self, code: i32, version: &str, script: &str) -> String {
        let artifact = self.pack(version, script);
        let line = [
            "deploy",
            "web",
            "-f",
            &self.spec,
            "--artifact",
            &artifact,
            "--release-version",
            version,
        ];
        self.fleet.machine.exits(code, &line)
    }

    fn list(&self) -> Vec<Value> {
        let document = self.fleet.machine.json(&["rollout", "list"]);
        document["rollouts"].as_array().unwrap().clone()
    }

    /// Returns the rollout that was asked for last.
    fn last(&self) -> Value {
        let name = self.list()[0]["rollout"].as_str().unwrap().to_owned();
        self.fleet.machine.json(&["rollout", "show", &name])
    }

    /// Returns the version that a node runs, by its own word.
    fn runs(&self, node: &str) -> Value {
        let status = self.fleet.machine.json(&["status", &format!("web@{node}")]);
        status["instances"][0]["release"]["version"].clone()
    }

    fn events(&self, node: &str) -> Vec<Value> {
        let text = self.fleet.machine.exits(0, &["events", "--node", node, "-o", "json"]);
        let lines = text.lines().filter(|line| line.contains("smgr.event.v1"));
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn states(view: &Value) -> Vec<(String, String)> {
    let nodes = view["nodes"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    nodes.map(|node| (text(&node["node"]), text(&node["state"]))).collect()
}

#[test]
fn a_release_goes_over_the_fleet_with_the_canary_first_and_back_again() {
    let shop = Shop::open("");
    let said = shop.deploy(0, "1.0", &good("1"));
    assert!(said.contains("succeeded") && said.contains("1.0 on 3 of 3 nodes"), "{said}");
    let said = shop.deploy(0, "2.0", &good("2"));
    assert!(said.contains("1 canary") && said.contains("2.0 on 3 of 3 nodes"), "{said}");
    let view = shop.last();
    assert_eq!(view["state"], "succeeded", "{view}");
    assert_eq!((&view["exit_code"], &view["changed"]), (&0.into(), &true.into()));
    assert_eq!(view["plan"]["waves"][0]["kind"], "canary");
    assert!(states(&view).iter().all(|(_, state)| state == "healthy"), "{view}");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shop.runs(node), "2.0");
    }
    // What runs everywhere is not touched again.
    let said = shop.deploy(0, "2.0", &good("2"));
    assert!(said.contains("nothing to change"), "{said}");
    let said = shop.fleet.machine.exits(0, &["rollback", "web"]);
    assert!(said.contains("1.0 on 3 of 3 nodes"), "{said}");
    let screen =
        shop.fleet.machine.exits(0, &["rollout", "show", shop.last()["rollout"].as_str().unwrap()]);
    assert!(screen.contains("WAVES") && screen.contains("healthy"), "{screen}");
}
