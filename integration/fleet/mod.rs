//! A fleet of several nodes on this machine, with its controllers, against everything that may happen to it.

mod alone;
mod apart;
mod artifacts;
mod checks;
mod ci;
mod demo;
mod hostile;
mod http;
mod intake;
mod judge;
mod leaders;
mod machines;
mod placement;
mod rollouts;
mod selection;
mod set_back;
mod setting;
mod tls;
mod told;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::machine::{Machine, is_root};
use crate::support::nats;
use crate::support::process::{kill_9, process_state, processes_with, signal};
use crate::support::wait::{eventually, wait_until};

/// A fleet in a folder of its own; everything it starts ends with it.
struct Fleet {
    machine: Machine,
}

impl Fleet {
    /// Makes the folders; nothing runs yet.
    fn new() -> Self {
        let mut machine = Machine::new();
        machine.env("SMGR_NATS_SERVER", &nats::program());
        Self { machine }
    }

    fn of(nodes: u16) -> Self {
        let fleet = Self::new();
        fleet.up(nodes);
        fleet
    }

    fn up(&self, nodes: u16) {
        let screen = self.machine.exits(0, &["up", "--nodes", &nodes.to_string(), "-d"]);
        assert!(screen.contains("ready in") && !screen.contains("not ready"), "{screen}");
    }

    /// Starts what was killed: what a node ran until then belongs to nobody else.
    fn up_again(&self) {
        self.machine.exits(0, &["up", "-d"]);
    }

    /// Returns the folder of a member.
    fn folder(&self, member: &str) -> PathBuf {
        match member {
            "n1" => self.machine.state().to_owned(),
            _ => self.machine.state().join("fleet").join(member),
        }
    }

    /// Writes a service of one node, before the fleet is up.
    fn service(&self, node: &str, name: &str, text: &str) {
        let folder = self.folder(node).join("config/services.d");
        fs::create_dir_all(&folder).unwrap();
        let user = if is_root() { "user = \"root\"\n" } else { "" };
        fs::write(folder.join(format!("{name}.toml")), format!("{user}{text}")).unwrap();
    }

    fn status(&self) -> Value {
        self.machine.json(&["status"])
    }

    /// Returns the process of a service of the first node: its bus, a controller.
    fn pid(&self, service: &str) -> u32 {
        self.machine.ready(service)
    }

    /// Kills all processes of a node at once, services left out: they are not its parts.
    fn kill_node(&self, node: &str) {
        let folder = self.folder(node).display().to_string();
        let parts = || {
            let all = processes_with(&folder).into_iter();
            all.filter(|(_, line)| line.contains(" agent ")).map(|(pid, _)| pid)
        };
        let mut killed = Vec::new();
        wait_until("they are gone", || {
            killed.extend(parts().inspect(|pid| kill_9(*pid)));
            // The command line of a process goes before its locks do.
            let is_over = |pid: &u32| matches!(process_state(*pid), None | Some('Z'));
            killed.iter().all(is_over) && parts().next().is_none()
        });
    }

    /// Sends a signal to the agent of a node.
    fn signal_agent(&self, node: &str, to_send: Signal) {
        let folder = self.folder(node).display().to_string();
        let agents = processes_with(&folder).into_iter();
        let mut agents = agents.filter(|(_, line)| line.contains(" --part agent "));
        let (pid, _) = agents.next().expect("its agent runs");
        signal(pid, to_send);
    }

    /// Returns the ids of all events in the order in which they reached the controller, log by log.
    fn arrivals(&self) -> BTreeMap<String, Vec<String>> {
        by_log(self.ids(&["events", "--fleet"]))
    }

    fn ids(&self, line: &[&str]) -> Vec<String> {
        self.ids_if_any(line).unwrap_or_else(|| panic!("{line:?} is not answered"))
    }

    /// The same; nothing while nobody answers.
    fn ids_if_any(&self, line: &[&str]) -> Option<Vec<String>> {
        let ran = self.machine.smgr(&[line, &["-o", "json"]].concat());
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        ran.status.success().then(|| ids_in(&text))
    }

    /// Waits until the controller has all that each node has, and nothing twice.
    fn all_arrives(&self, nodes: &[&str]) {
        eventually("the controller has every event", || {
            let arrived = by_log(self.ids_if_any(&["events", "--fleet"])?);
            for node in nodes {
                let log = self.ids_if_any(&["events", "--node", node])?;
                let copy = arrived.get(*node).cloned().unwrap_or_default();
                if difference(&log, &copy).is_some() {
                    return None;
                }
            }
            Some(())
        });
    }
}

fn ids_in(text: &str) -> Vec<String> {
    let events = text.lines().filter(|line| line.contains("smgr.event.v1"));
    let events = events.map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

fn by_log(ids: Vec<String>) -> BTreeMap<String, Vec<String>> {
    let mut logs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for id in ids {
        let origin = id.split('/').next().unwrap().to_owned();
        logs.entry(origin).or_default().push(id);
    }
    logs
}

/// Says where a copy is not the log: the first place at which they part.
fn difference(log: &[String], copy: &[String]) -> Option<usize> {
    let longest = log.len().max(copy.len());
    (0..longest).find(|place| log.get(*place) != copy.get(*place))
}

#[test]
fn a_copy_that_lacks_or_repeats_an_event_is_found() {
    let log: Vec<String> = (1..=9).map(|seq| format!("n1/e/{seq}")).collect();
    assert_eq!(difference(&log, &log), None);
    let (mut lacking, mut repeating) = (log.clone(), log.clone());
    lacking.remove(4);
    repeating.insert(4, log[3].clone());
    assert_eq!(difference(&log, &lacking), Some(4));
    assert_eq!(difference(&log, &repeating), Some(4));
    assert_eq!(difference(&log, &log[..8]), Some(8));
}

#[test]
fn a_fleet_comes_up_as_one_is_seen_as_one_and_ends_as_one() {
    let fleet = Fleet::new();
    fleet.service("n2", "web", "exec = [\"sleep\", \"1000\"]\n");
    fleet.up(3);
    let pongs = fleet.machine.exits(0, &["ping"]);
    assert!(["n1", "n2", "n3"].iter().all(|node| pongs.contains(node)), "{pongs}");
    wait_until("the controller knows the whole fleet", || {
        let status = fleet.status();
        status["as_of"]["source"] == "c1"
            && status["as_of"]["complete"] == true
            && status["controllers"]["leader"] == "c1"
            && status["instances"].as_array().unwrap().iter().any(|it| it["service"] == "web")
    });
    let screen = fleet.machine.exits(0, &["status"]);
    assert!(screen.starts_with("fleet local   3 nodes: 3 ok   leader c1"), "{screen}");
    assert!(screen.lines().any(|line| line.starts_with("web")), "{screen}");
    // A name leads to the node itself.
    let one = fleet.machine.exits(0, &["status", "web@n2"]);
    assert!(one.contains("web/0@n2") || one.contains("web"), "{one}");
    fleet.machine.exits(0, &["restart", "web@n2"]);
    let again = fleet.machine.exits(6, &["up", "--nodes", "3", "-d"]);
    assert!(again.contains("already up"), "{again}");
    fleet.machine.exits(0, &["down"]);
    wait_until("nothing of it is left", || {
        let state = fleet.machine.state().display().to_string();
        processes_with(&state).iter().all(|(_, line)| line.contains("integration"))
    });
    for node in ["n1", "n2", "n3", "c1"] {
        fleet.machine.exits(0, &["audit", "verify", fleet.folder(node).to_str().unwrap()]);
    }
}

#[test]
fn a_service_is_found_on_the_node_that_has_it_and_a_node_that_is_not_there_is_one_error() {
    let fleet = Fleet::new();
    let text = "exec = [\"sleep\", \"1000\"]\n";
    for (node, name) in [("n2", "web"), ("n2", "job"), ("n3", "job")] {
        fleet.service(node, name, text);
    }
    fleet.up(3);
    let said = |exit, line: &str| fleet.machine.exits(exit, &line.split(' ').collect::<Vec<_>>());
    for (line, told) in [
        ("restart web", "on n2"),
        ("history web", "web@n2"),
        ("logs web", "nothing yet"),
        ("status @n2", "web@n2"),
        ("history @n2", "web@n2"),
        ("events --node n3", "agent@n3"),
    ] {
        let said = said(0, line);
        assert!(said.contains(told), "{line}: {said}");
    }
    let several = said(4, "restart job");
    assert!(several.contains("on n2, n3") && several.contains("job@n2"), "{several}");
    for line in [
        "status --node n9",
        "logs web@n9",
        "restart web@n9",
        "history @n9",
        "run x --node n9 -- true",
    ] {
        let said = said(4, line);
        assert!(said.contains("no such node: n9") && said.contains("n1, n2, n3"), "{line}: {said}");
    }
    let taken = said(6, "run nats -- true");
    assert!(!taken.contains("smgr remove"), "{taken}");
    assert!(said(6, "remove nats").contains("part of smgr itself"));
}

#[test]
fn what_smgr_needs_for_itself_is_started_by_up_whatever_was_said_of_it_before() {
    let fleet = Fleet::of(2);
    fleet.machine.exits(0, &["stop", "controller-c1", "--node", "n1"]);
    fleet.machine.exits(0, &["stop", "nats", "--node", "n1"]);
    fleet.machine.exits(0, &["down"]);
    fleet.up(2);
    wait_until("the nodes are on the bus, and a controller leads", || {
        fleet.status()["controllers"]["leader"] == "c1"
    });
    let pongs = fleet.machine.exits(0, &["ping"]);
    assert!(["n1", "n2"].iter().all(|node| pongs.contains(node)), "{pongs}");
}

#[test]
fn what_a_fleet_on_one_machine_cannot_be_is_refused_and_changes_nothing() {
    let fleet = Fleet::new();
    for (nodes, why) in [("0", "1 to 64"), ("65", "1 to 64")] {
        let said = fleet.machine.exits(2, &["up", "--nodes", nodes, "-d"]);
        assert!(said.contains(why), "{said}");
    }
    let mut without = Machine::new();
    without.env("SMGR_NATS_SERVER", std::path::Path::new("off"));
    let said = without.exits(5, &["up", "--nodes", "2", "-d"]);
    assert!(said.contains("needs a bus"), "{said}");
    assert!(!fleet.machine.state().join("fleet.json").exists());
    assert!(!without.state().join("trust.smgr").exists());
}
