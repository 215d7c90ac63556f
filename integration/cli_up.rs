//! `smgr up` and what a person types after it, with the built binary in a state folder of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// A machine of one's own: everything it starts ends with it.
struct Machine {
    temp: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { temp: tempfile::tempdir().unwrap() }
    }

    fn state(&self) -> PathBuf {
        self.temp.path().join("state")
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smgr"));
        command
            .args(line)
            .current_dir(self.temp.path())
            .env("SMGR_STATE", self.state())
            .env("SMGR_NATS_SERVER", "off");
        command
    }

    fn smgr(&self, line: &[&str]) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs a command and demands its exit code; returns stdout.
    fn exits(&self, code: i32, line: &[&str]) -> String {
        let ran = self.smgr(line);
        let (out, err) =
            (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert_eq!(ran.status.code(), Some(code), "smgr {line:?}\n{out}{err}");
        out.into_owned()
    }

    fn json(&self, line: &[&str]) -> Value {
        serde_json::from_str(&self.exits(0, line)).unwrap()
    }

    fn pid_of(&self, service: &str) -> Option<u64> {
        let status = self.json(&["status", "-o", "json"]);
        let instances = status["instances"].as_array().unwrap();
        instances.iter().find(|it| it["service"] == service)?["pid"].as_u64()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let down = self.smgr(&["down"]);
        if !down.status.success() && !std::thread::panicking() {
            panic!("down: {}", String::from_utf8_lossy(&down.stderr));
        }
    }
}

fn kill(pid: u64) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

#[test]
fn the_first_minute() {
    let machine = Machine::new();
    let screen = machine.exits(0, &["up", "-d"]);
    assert!(screen.contains("services  none yet") && screen.contains("bus       off"), "{screen}");
    machine.exits(6, &["up", "-d"]);

    let ran = machine.exits(0, &["run", "hello", "--", "sleep", "1000"]);
    assert!(ran.starts_with("hello is running, pid "), "{ran}");
    machine.exits(6, &["run", "hello", "--", "sleep", "1000"]);

    let first = machine.pid_of("hello").unwrap();
    kill(first);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let second = loop {
        match machine.pid_of("hello") {
            Some(pid) if pid != first => break pid,
            _ => assert!(std::time::Instant::now() < deadline, "hello did not come back"),
        }
    };
    machine.exits(0, &["restart", "hello"]);
    assert_ne!(machine.pid_of("hello"), Some(second));
    machine.exits(0, &["stop", "hello"]);
    assert_eq!(machine.pid_of("hello"), None);
    assert!(machine.exits(0, &["stop", "hello"]).contains("nothing to do"));
    machine.exits(0, &["start", "hello"]);

    let history = machine.exits(0, &["history", "hello"]);
    assert!(history.contains("signal KILL"), "{history}");
    machine.exits(0, &["audit", "verify"]);
    assert_eq!(machine.json(&["replay", "-o", "json"])["live"]["equal"], true);
    machine.exits(0, &["remove", "hello"]);
    machine.exits(4, &["restart", "hello"]);
    machine.exits(0, &["down"]);
    machine.exits(5, &["status"]);
    machine.exits(0, &["audit", "verify"]);
}

#[test]
fn events_resume_exactly_after_a_cursor() {
    let machine = Machine::new();
    machine.exits(0, &["up", "-d"]);
    machine.exits(0, &["run", "hello", "--", "sleep", "1000"]);
    let all = machine.exits(0, &["events", "-o", "json"]);
    let all: Vec<&str> = all.lines().collect();
    for cut in [0, 1, all.len() / 2, all.len() - 1] {
        let event: Value = serde_json::from_str(all[cut]).unwrap();
        let cursor = event["cursor"].as_str().unwrap();
        let rest = machine.exits(0, &["events", "-o", "json", "--since", cursor]);
        assert_eq!(rest.lines().collect::<Vec<_>>(), all[cut + 1..], "after {cursor}");
    }
}

#[test]
fn a_mistake_in_a_spec_starts_nothing() {
    let machine = Machine::new();
    fs::write(machine.temp.path().join("smgr.toml"), "[service.web]\nexce = [\"x\"]\n").unwrap();
    let ran = machine.smgr(&["up", "-d"]);
    assert_eq!(ran.status.code(), Some(8));
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(said.contains("./smgr.toml:2:1") && said.contains("did you mean `exec`?"), "{said}");
    assert!(!machine.state().join("trust.smgr").exists());
    machine.exits(5, &["status"]);
}

#[test]
fn what_was_not_understood_exits_with_2_and_one_error() {
    let machine = Machine::new();
    for line in [
        &["statsu"][..],
        &["deploy", "web"],
        &["up", "--nodes", "3"],
        &["status", "Web"],
        &["stop"],
        &["run", "hello"],
        &["explain", "E0999"],
        &["signal", "-s", "NOPE", "web"],
    ] {
        let ran = machine.smgr(&[line, &["-o", "json"]].concat());
        assert_eq!(ran.status.code(), Some(2), "{line:?}");
        assert!(ran.stdout.is_empty(), "{line:?}");
        let said = String::from_utf8(ran.stderr).unwrap();
        let error: Value = serde_json::from_str(said.trim()).unwrap();
        assert_eq!((&error["schema"], &error["exit_code"]), (&"smgr.error.v1".into(), &2.into()));
    }
}
