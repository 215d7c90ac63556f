//! Alerts on lines: from what a process writes to what people see, over the death of the agent.

use serde_json::Value;

use crate::support::machine::Machine;
use crate::support::process::kill_9;
use crate::support::wait::eventually;

/// A service that writes each line that somebody puts into its queue.
fn echoing(machine: &Machine, alerts: &str) {
    let queue = machine.folder().join("queue");
    rustix::fs::mkfifoat(rustix::fs::CWD, &queue, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let text = format!(
        "exec = [\"/bin/sh\", \"-c\", \"while :; do cat {}; done\"]\n[stop]\ntimeout = \"1s\"\n{alerts}",
        queue.display()
    );
    machine.service("web", &text);
}

fn say(machine: &Machine, lines: &str) {
    std::fs::write(machine.folder().join("queue"), lines).unwrap();
}

fn alerts(machine: &Machine) -> Vec<Value> {
    machine.json(&["status"])["alerts"].as_array().unwrap().clone()
}

fn told(machine: &Machine) -> Vec<Value> {
    let mut events = machine.events();
    events.retain(|event| event["type"].as_str().unwrap().starts_with("alert."));
    events
}

#[test]
fn an_alert_on_lines_fires_at_its_threshold_survives_the_agent_and_is_over_by_itself() {
    let machine = Machine::new();
    echoing(
        &machine,
        "[alert.db-errors]\non = \"log\"\nmatch = 'ERROR .*pool'\nexclude = 'retrying'\n\
         threshold = 3\nwindow = \"10s\"\nkeep_firing_for = \"2s\"\nseverity = \"critical\"\n\
         labels = { team = \"shop\" }\n\
         annotations = { summary = \"${service}/${instance} on ${node} has no database\" }\n",
    );
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    say(&machine, "ERROR no pool\nERROR retrying pool\nERROR no pool\nall is well\n");
    assert_eq!(alerts(&machine), [] as [Value; 0]);
    say(&machine, "ERROR no pool with password\n");
    let alert = eventually("the alert fires", || alerts(&machine).pop());
    assert_eq!(
        (&alert["alert"], &alert["severity"]),
        (&"web/db-errors".into(), &"critical".into())
    );
    assert_eq!(alert["state"], "firing");
    let node = machine.json(&["status"])["nodes"][0]["node"].as_str().unwrap().to_owned();
    assert_eq!(alert["summary"], format!("web/0 on {node} has no database"));
    assert_eq!(alert["where"], format!("web@{node}"));
    let screen = machine.exits(0, &["status"]);
    assert!(screen.contains("1 alert") && screen.contains("web/db-errors  critical"), "{screen}");
    assert!(machine.exits(0, &["history", "web"]).contains("alert fired"));
    // What fired is folded: it is there after the agent's death, and equal to what the log says.
    kill_9(machine.part("agent"));
    machine.ready("web");
    assert_eq!(alerts(&machine).len(), 1);
    assert_eq!(machine.json(&["replay"])["live"]["equal"], true);
    eventually("the alert is over", || alerts(&machine).is_empty().then_some(()));

    let told = told(&machine);
    let kinds: Vec<_> = told.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["alert.fired", "alert.resolved"]);
    let (fired, data) = (&told[0], &told[0]["data"]);
    assert_eq!((&fired["service"], &fired["instance"]), (&"web".into(), &0.into()));
    assert_eq!(
        (&data["labels"]["team"], &data["alert"]),
        (&"shop".into(), &"web/db-errors".into())
    );
    // Lines are beside the log, not in it: they may hold what has to be deleted one day.
    assert!(data["log"]["tail"].is_array(), "{data}");
    assert!(!fired.to_string().contains("password"), "{fired}");
    machine.exits(0, &["audit", "verify"]);
}

#[test]
fn a_flood_of_matching_lines_is_one_alert_and_loses_no_line() {
    let machine = Machine::new();
    machine.service(
        "web",
        "exec = [\"/bin/sh\", \"-c\", \"seq -f 'ERROR %.0f' 200000; exec sleep 1000\"]\n\
         [log]\nrate_limit = \"1000000/s\"\nmax_size = \"100MiB\"\n\
         [alert.errors]\non = \"log\"\nmatch = 'ERROR (\\d+)+$'\n",
    );
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    let path = machine.instance("web")["log_path"].as_str().unwrap().to_owned();
    eventually("all lines are written", || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        (text.lines().count() == 200_000).then_some(())
    });
    eventually("the alert fires", || alerts(&machine).pop());
    assert_eq!(told(&machine).len(), 1);
    assert!(!machine.events().iter().any(|event| event["type"] == "lines.dropped"));
}

#[test]
fn missing_lines_are_an_alert_until_one_comes_and_a_changed_spec_is_followed_without_a_restart() {
    let machine = Machine::new();
    let absence = "[alert.no-orders]\non = \"absence\"\nmatch = 'order accepted'\nfor = \"1s\"\n\
                   keep_firing_for = \"0s\"\n";
    echoing(&machine, absence);
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("web");
    eventually("the alert fires", || alerts(&machine).pop());
    say(&machine, "order accepted\n");
    let over = || told(&machine).iter().any(|event| event["type"] == "alert.resolved");
    eventually("a line ends it", || over().then_some(()));
    // Another pattern, in place: the process stays.
    let file = machine.state().join("config/services.d/web.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let other = "[alert.failures]\non = \"log\"\nmatch = 'FAIL'\nstream = \"stdout\"\n";
    std::fs::write(&file, text.replace(absence, other)).unwrap();
    machine.exits(0, &["apply"]);
    assert_eq!(machine.ready("web"), pid);
    eventually("what is gone from the spec fires no more", || {
        alerts(&machine).is_empty().then_some(())
    });
    say(&machine, "FAIL\n");
    let alert = eventually("the new one fires", || alerts(&machine).pop());
    assert_eq!(alert["alert"], "web/failures");
    assert_eq!(machine.json(&["replay"])["live"]["equal"], true);
}
