//! What is set of one node by a signed wish, from another one.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::Fleet;
use crate::support::wait::eventually;

impl Fleet {
    fn said(&self, code: i32, line: &str) -> String {
        self.machine.exits(code, &line.split(' ').collect::<Vec<_>>())
    }

    /// Returns the effective value of a key of a service; null while its node does not answer.
    fn key(&self, service: &str, key: &str) -> Value {
        let ran = self.machine.smgr(&["config", "show", service, key, "-o", "json"]);
        let shown = serde_json::from_slice::<Value>(&ran.stdout).unwrap_or_default();
        shown["keys"][0].clone()
    }

    fn overridden(&self, service: &str) -> Value {
        self.machine.instance(service)["overridden_keys"].clone()
    }

    /// Waits until the process of a service has a value in its environment.
    fn runs_with(&self, service: &str, value: &str) -> u32 {
        eventually(&format!("{service} runs with {value}"), || {
            let pid = self.machine.instance(service)["pid"].as_u64()?;
            let has = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let is_so = has.split(|byte| *byte == 0).any(|one| one == value.as_bytes());
            is_so.then(|| u32::try_from(pid).unwrap())
        })
    }
}

#[test]
fn what_is_set_of_a_node_from_another_holds_there_until_it_is_taken_back() {
    let fleet = Fleet::new();
    let text = "exec = [\"sleep\", \"1000\"]\n[env]\nMODE = \"fast\"\n";
    fleet.service("n2", "web", text);
    fleet.service("n1", "job", text);
    fleet.up(2);
    fleet.runs_with("web@n2", "MODE=fast");

    let said = fleet.said(0, "config set web@n2 env.MODE=slow stop.timeout=4s");
    assert!(said.contains("configured web on n2") && !said.contains("note:"), "{said}");
    let pid = fleet.runs_with("web@n2", "MODE=slow");
    let timeout = fleet.key("web@n2", "stop.timeout");
    let origin = &timeout["origin"];
    assert_eq!((&timeout["value"], &origin["layer"]), (&json!("4s"), &json!("node")), "{timeout}");
    let event = origin["event"].as_str().unwrap();
    assert!(event.starts_with("i-") && event.ends_with(" by operator"), "{timeout}");
    assert!(origin["file"].is_null(), "{timeout}");
    assert_eq!(fleet.overridden("web@n2"), json!(["env.MODE", "stop.timeout"]));
    let events = fleet.said(0, "events --node n2 -o json");
    let changed = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let changed: Vec<Value> = changed.filter(|it| it["type"] == "config.changed").collect();
    assert_eq!(changed.len(), 1, "{events}");
    assert_eq!(changed[0]["data"]["layer"], 7);
    assert!(!events.contains("slow"), "values are in no event: {events}");

    // It is in the log: neither an agent that dies nor a service that starts anew loses it.
    fleet.signal_agent("n2", Signal::KILL);
    eventually("n2 says the same again", || {
        (fleet.key("web@n2", "stop.timeout") == timeout).then_some(())
    });
    assert_eq!(fleet.machine.instance("web@n2")["pid"], pid);
    fleet.said(0, "restart web@n2");
    assert_ne!(fleet.runs_with("web@n2", "MODE=slow"), pid);

    // What would be no valid spec there is refused whole.
    let bad = "config set web@n2 stop.timeout=9s depends_on.nosuch.condition=ready";
    assert!(fleet.said(8, bad).contains("nosuch"));
    assert_eq!(fleet.key("web@n2", "stop.timeout"), timeout);
    assert_eq!(fleet.overridden("web@n2"), json!(["env.MODE", "stop.timeout"]));

    // Its own file is the last word of a machine.
    let file = fleet.folder("n2").join("config/override.d/web.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "[stop]\ntimeout = \"1s\"\n").unwrap();
    let said = fleet.said(0, "config set --node n2 web stop.timeout=5s");
    let line = format!("{}:2 (7)", file.display());
    assert!(said.contains(&format!("note: on n2 stop.timeout stays as {line} says")), "{said}");
    let shown = fleet.said(0, "config show web@n2 stop.timeout --origin --hidden");
    assert!(shown.contains(&line) && shown.contains("\"5s\"  i-"), "{shown}");

    // What is taken back is what the wish set, and not what the file says.
    assert!(fleet.said(0, "config unset web@n2 stop.timeout env.MODE").contains("configured web"));
    fleet.runs_with("web@n2", "MODE=fast");
    let timeout = fleet.key("web@n2", "stop.timeout");
    assert_eq!((&timeout["value"], &timeout["origin"]["line"]), (&json!("1s"), &json!(2)));
    assert!(!timeout["hides"].to_string().contains("i-"), "{timeout}");
    assert_eq!(fleet.overridden("web@n2"), json!(["stop.timeout"]));
    let said = fleet.said(0, "config unset web@n2 stop.timeout");
    assert!(said.contains("nothing to do"), "{said}");
    fleet.said(2, "config unset web@n2 stop.timeuot");
    let said = fleet.said(2, "config unset web stop.timeout --node n1 --node n2");
    assert!(said.contains("--temporary"), "{said}");

    // Whoever names a node means the same wherever it is typed: no file of this machine is written.
    fleet.said(0, "config set job@n1 env.MODE=slow");
    fleet.runs_with("job@n1", "MODE=slow");
    assert!(!fleet.folder("n1").join("config/override.d/job.toml").exists());
    // It is beside what is set for a time, which is above it and taken back by itself.
    fleet.said(0, "config set job@n1 env.MODE=off --for 1h");
    fleet.said(0, "config unset job env.MODE --temporary");
    fleet.runs_with("job@n1", "MODE=slow");
    fleet.said(0, "config unset job env.MODE");
    fleet.runs_with("job@n1", "MODE=fast");
}
