//! docker-compose.yml, without an engine: its command lines are ours, and what they start becomes a fleet.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use smgr::cli::args::{self, Parsed};

use crate::support::machine::{Machine, is_root};
use crate::support::nats::NatsServer;
use crate::support::wait::{eventually, wait_until};

/// Returns what each container of our image runs, in the order of the file. A list in brackets is JSON as well.
fn command_lines() -> Vec<(String, Vec<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker-compose.yml");
    let text = fs::read_to_string(path).unwrap();
    let services = text.split_once("\nservices:\n").unwrap().1;
    let mut name = String::new();
    let mut found = Vec::new();
    for line in services.lines().take_while(|line| line.is_empty() || line.starts_with(' ')) {
        match (line.strip_prefix("    command: "), line.strip_prefix("  ")) {
            (Some(list), _) => found.push((name.clone(), serde_json::from_str(list).unwrap())),
            (None, Some(head)) if !head.starts_with(' ') => {
                name = head.trim_end_matches(':').to_owned();
            }
            _ => {}
        }
    }
    found.retain(|(name, _)| name != "nats");
    found
}

#[test]
fn every_command_line_of_the_compose_file_is_one_of_ours() {
    let lines = command_lines();
    let names: Vec<&str> = lines.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["set-up", "c1", "n1", "n2", "n3"]);
    for (name, line) in &lines {
        let words = std::iter::once("smgr".to_owned()).chain(line.iter().cloned());
        let parsed = args::parse(words.map(Into::into));
        assert!(matches!(parsed, Ok(Parsed::Command(_))), "{name}: {parsed:?}");
    }
}

#[test]
fn the_compose_file_is_yaml_that_says_the_same() {
    let script = "import sys, json\ntry:\n    import yaml\nexcept ImportError:\n    sys.exit(9)\n\
                  print(json.dumps(yaml.safe_load(open('docker-compose.yml'))))";
    let ran = Command::new("python3")
        .args(["-c", script])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    if ran.status.code() == Some(9) {
        println!("skipped: python3 has no module yaml here");
        return;
    }
    let compose: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let services = compose["services"].as_object().unwrap();
    for (name, line) in command_lines() {
        assert_eq!(services[&name]["command"], serde_json::to_value(line).unwrap(), "{name}");
    }
    let volumes = compose["volumes"].as_object().unwrap();
    for (name, service) in services {
        let is_ours = name != "nats";
        assert_eq!(service["image"] == "smgr", is_ours, "{name}: one image for all of ours");
        for volume in service["volumes"].as_array().unwrap() {
            let (volume, _) = volume.as_str().unwrap().split_once(':').unwrap();
            assert!(volumes.contains_key(volume), "{name}: {volume}");
        }
        if is_ours && name != "set-up" {
            assert!(
                service["depends_on"]["set-up"]["condition"] == "service_completed_successfully"
            );
        }
    }
}

/// What was started, and ends with this.
struct Started(Vec<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill()); // It may have ended by itself.
            drop(child.wait());
        }
    }
}

#[test]
fn what_the_compose_file_starts_becomes_one_fleet() {
    let bus = NatsServer::start();
    let machine = Machine::new();
    let state = machine.state().display().to_string();
    let fits = |word: &str| {
        let word = word.replace("/var/lib/smgr", &state);
        word.replace("nats://nats:4222", &bus.url())
    };
    let mut started = Started(Vec::new());
    for (name, line) in command_lines() {
        let line: Vec<String> = line.iter().map(|word| fits(word)).collect();
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        if name == "set-up" {
            machine.exits(0, &line);
            // Brought up again, it finds what it made.
            machine.exits(0, &line);
            let folder = machine.state().join("fleet/n2/config/services.d");
            fs::create_dir_all(&folder).unwrap();
            let user = if is_root() { "user = \"root\"\n" } else { "" };
            fs::write(folder.join("web.toml"), format!("{user}exec = [\"sleep\", \"1000\"]\n"))
                .unwrap();
            continue;
        }
        let mut command = machine.command(&line);
        started.0.push(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }
    wait_until("all of it is one fleet", || {
        let ran = machine.smgr(&["status", "-o", "json"]);
        let status: Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
        status["as_of"]["source"] == "c1"
            && status["summary"]["nodes_ok"] == 3
            && status["controllers"]["leader"] == "c1"
    });
    eventually("a node takes what its files say", || {
        let applied = machine.smgr(&["apply", "--node", "n2"]);
        applied.status.success().then_some(())
    });
    machine.exits(0, &["restart", "web@n2"]);
    for node in ["n3", "n2"] {
        let folder = machine.state().join("fleet").join(node);
        machine.exits(0, &["down", "--state", folder.to_str().unwrap()]);
    }
}
