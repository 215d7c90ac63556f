//! Command lines and spec files that are not understood, on a node that runs: an exit code, one error, and no change.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::machine::Machine;

#[test]
fn a_command_line_that_is_not_understood_changes_nothing() {
    let machine = Machine::new();
    machine.service("web", "exec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("web");
    let before = machine.events().len();
    for (code, line) in [
        (2, &["restrat", "web"][..]),
        (2, &["restart"]),
        (2, &["restart", "--force", "web"]),
        (2, &["restart", "WEB"]),
        (2, &["restart", "web;reboot"]),
        (2, &["restart", "../web"]),
        (2, &["restart", "web@"]),
        (2, &["restart", "--timeout", "soon", "web"]),
        (2, &["restart", "--wait", "--detach", "web"]),
        (2, &["signal", "-s", "BOO", "web"]),
        (2, &["signal", "-s", "65", "web"]),
        (2, &["status", "-o", "yaml"]),
        (2, &["status", "--at", "yesterweek"]),
        (2, &["events", "--since", "n1/zz/x"]),
        (2, &["logs", "-n", "0", "web"]),
        (2, &["logs", "-n", "99999999999999999999", "web"]),
        (2, &["action", "run", "web"]),
        (2, &["action", "run", "web", "clear", "zone"]),
        (2, &["run", "x"]),
        (2, &["explain", "E9999"]),
        (2, &["--state", "", "status"]),
        (4, &["restart", "nobody"]),
        (4, &["logs", "nobody"]),
        (4, &["status", "nobody"]),
        (4, &["action", "run", "web", "clear"]),
        (6, &["reload", "web"]),
        (6, &["up", "-d"]),
        (6, &["run", "web", "--", "sleep", "1"]),
    ] {
        let ran = machine.smgr(&[line, &["-o", "json"]].concat());
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(code), "{line:?}\n{said}");
        if code == 2 {
            let error: Value = serde_json::from_str(said.trim()).unwrap_or_else(|why| {
                panic!("{line:?} is to end with one error as JSON: {why}\n{said}")
            });
            assert_eq!(error["exit_code"], 2, "{line:?}");
        }
    }
    assert_eq!(machine.ready("web"), pid);
    // What reached the node and was refused costs at most a row for each code and minute.
    let events = machine.events();
    assert!(events[before..].iter().all(|event| event["type"] == "intent.refused"));
    assert_eq!(machine.json(&["replay"])["live"]["equal"], true);
}

#[test]
fn a_spec_file_with_a_mistake_is_refused_whole_and_what_runs_runs_on() {
    let machine = Machine::new();
    machine.service("web", "exec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("web");
    let before = machine.events().len();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/specs/invalid");
    let mut tried = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.extension().is_none_or(|end| end != "toml") || name.starts_with("project") {
            continue;
        }
        let file = machine.state().join("config/services.d/bad.toml");
        fs::copy(&path, &file).unwrap();
        let said = machine.exits(8, &["apply"]);
        assert!(said.contains("error") && said.contains("[E04"), "{name}:\n{said}");
        let said = machine.exits(8, &["check", file.to_str().unwrap()]);
        assert!(said.contains("bad.toml"), "{name}:\n{said}");
        tried += 1;
    }
    assert!(tried > 20, "{tried}");
    assert_eq!(machine.ready("web"), pid);
    assert_eq!(machine.events().len(), before, "a refused file leaves no event");
}
