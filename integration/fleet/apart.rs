//! A fleet of five machines, each with a network of its own, against everything at once; judged by its logs alone.

#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

mod faults;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Fleet;
use super::judge::{Evidence, judge};
use super::machines::{enrol, nodes};
use crate::handover::Load;
use crate::releases::archive;
use crate::support::machine::{Machine, is_root, python};
use crate::support::network::{Network, enter};
use crate::support::wait::{eventually, wait_until};

/// How many machines the long test has.
const MACHINES: u8 = 5;

/// How long a lease holds here, in milliseconds.
const LEASE_MS: u64 = 3000;

/// Machines at one switch: the first has bus and controllers, the others joined it.
pub(super) struct Apart {
    pub(super) fleet: Fleet,
    others: Vec<Machine>,
    spec: String,
    /// Goes last: what the machines end with goes over it.
    pub(super) network: Network,
}

impl Apart {
    pub(super) fn of(machines: u8) -> Self {
        let network = Network::of(machines);
        let mut fleet = Fleet::new();
        fleet.machine.within(network.path(1));
        let state = fleet.machine.state();
        let listen = SocketAddr::from((Network::address(1), 4222));
        let text = format!(
            r#"{{"v": 1, "nodes": ["n1"], "controllers": ["c1", "c2"], "listen": "{listen}", "tls": true}}"#
        );
        fs::write(state.join("fleet.json"), text).unwrap();
        for name in ["c1", "c2"] {
            fs::create_dir_all(fleet.folder(name)).unwrap();
            let setup = format!(
                r#"{{"v": 1, "fleet": "local", "controller": "{name}", "urls": [], "lease_ms": {LEASE_MS}}}"#
            );
            fs::write(fleet.folder(name).join("controller.json"), setup).unwrap();
        }
        fleet.machine.exits(0, &["up", "-d"]);
        let join = |number: u8| {
            let mut machine = Machine::new();
            machine.within(network.path(number));
            enrol(&fleet, &machine, &format!("n{number}"), &[]);
            machine.exits(0, &["up", "-d"]);
            machine
        };
        let others = (2..=machines).map(join).collect();
        let spec = spec(&fleet.machine);
        let apart = Self { network, fleet, others, spec };
        apart.all_are_there();
        apart
    }

    /// Says aloud why nothing is tested, where this user may make no network; under CI root may.
    pub(super) fn may_be_made() -> bool {
        let Err(why) = Network::may_be_made() else { return true };
        let is_owed = std::env::var_os("CI").is_some() && is_root();
        assert!(!is_owed, "{why}");
        eprintln!("skipped: {why}");
        false
    }

    fn count(&self) -> u8 {
        u8::try_from(self.others.len()).unwrap() + 1
    }

    pub(super) fn machine(&self, number: u8) -> &Machine {
        match number {
            1 => &self.fleet.machine,
            _ => &self.others[usize::from(number) - 2],
        }
    }

    pub(super) fn all_are_there(&self) {
        wait_until("all machines are heard", || {
            let known = nodes(&self.fleet);
            known.len() == usize::from(self.count())
                && known.iter().all(|(_, reachable)| *reachable)
        });
    }

    /// Asks for a release on all nodes; returns the exit code and what was said.
    fn deploy(&self, version: &str, script: &str, more: &[&str]) -> (Option<i32>, String) {
        let folder = self.fleet.machine.folder();
        let packed = folder.join(format!("{version}.tar.gz"));
        if !packed.exists() {
            archive(&self.fleet.machine, version, script);
        }
        let packed = packed.display().to_string();
        let line = ["deploy", "web", "-f", &self.spec, "--artifact", &packed];
        let named = ["--release-version", version, "--select", "*"];
        let ran = self.fleet.machine.smgr(&[&line[..], &named[..], more].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (ran.status.code(), text(&ran.stdout) + &text(&ran.stderr))
    }

    fn deploys(&self, code: i32, version: &str, script: &str, more: &[&str]) -> String {
        let (ended, said) = self.deploy(version, script, more);
        assert_eq!(ended, Some(code), "{version}: {said}");
        said
    }

    /// Begins a rollout and waits for no more than its name.
    fn begins(&self, version: &str, more: &[&str]) -> String {
        let said = self.deploys(0, version, &serves(version), &[more, &["--detach"]].concat());
        let mut words = said.split(|c: char| c.is_whitespace() || c == ':' || c == ',');
        let name = words.find(|word| word.starts_with("r-"));
        name.unwrap_or_else(|| panic!("no rollout is named: {said}")).to_owned()
    }

    fn all_run(&self, version: &str) {
        for number in 1..=self.count() {
            let release = self.machine(number).instance("web")["release"].clone();
            assert_eq!(release["version"], version, "n{number}");
        }
    }

    /// Waits until the last rollout says why it went as it went: the lines of the node are asked for when it is shown.
    fn is_told(&self, words: &[&str]) {
        let last = self.last();
        wait_until("the rollout says why", || {
            let why = self.fleet.machine.exits(0, &["rollout", "show", &last]);
            words.iter().all(|word| why.contains(word))
        });
    }

    /// Returns the name of the rollout that was asked for last.
    fn last(&self) -> String {
        eventually("a controller answers", || {
            let ran = self.fleet.machine.smgr(&["rollout", "list", "-o", "json"]);
            let list: Value = serde_json::from_slice(&ran.stdout).ok()?;
            Some(list["rollouts"][0]["rollout"].as_str()?.to_owned())
        })
    }

    /// Waits until every rollout has ended, each as it may; returns who did not and how it stands.
    fn all_rollouts_ended(&self) {
        let (patience, mut last) = (Instant::now() + Duration::from_secs(90), String::new());
        while Instant::now() < patience {
            let ran = self.fleet.machine.smgr(&["rollout", "list", "-o", "json"]);
            let list = serde_json::from_slice::<Value>(&ran.stdout).unwrap_or_default();
            let all = list["rollouts"].as_array().cloned().unwrap_or_default();
            let open = all.iter().find(|it| it["ended_at"].is_null());
            match open.and_then(|it| it["rollout"].as_str()) {
                None if !all.is_empty() => return,
                None => last = String::from_utf8_lossy(&ran.stderr).into_owned(),
                Some(name) => {
                    let ran = self.fleet.machine.smgr(&["rollout", "show", name]);
                    last = String::from_utf8_lossy(&ran.stdout).into_owned();
                }
            }
        }
        let events = self.fleet.machine.smgr(&["events", "--fleet"]).stdout;
        let events = String::from_utf8_lossy(&events).into_owned();
        let about = |line: &&str| line.contains("  lead") || line.contains(" r-");
        let last_of = |lines: Vec<&str>| lines[lines.len().saturating_sub(60)..].join("\n");
        let events = last_of(events.lines().filter(about).collect());
        let said = ["controller-c1", "controller-c2"].map(|service| {
            let said = self.fleet.machine.smgr(&["logs", service, "--node", "n1"]).stdout;
            last_of(String::from_utf8_lossy(&said).lines().collect())
        });
        panic!("a rollout does not end:\n{last}\n{events}\n{}", said.join("\n\n"));
    }

    /// The negative control of the two that read logs for the test: of another machine's log the state is not that of this
    /// one, and in a log of which one byte was changed that is found.
    fn what_is_wrong_is_found(&self) {
        let copy = self.fleet.machine.folder().join("damaged");
        let mut cp = Command::new("cp");
        cp.arg("-r").arg(self.machine(2).state()).arg(&copy);
        assert!(cp.status().unwrap().success());
        let epoch = fs::read_dir(copy.join("log")).unwrap().flatten().find(|it| it.path().is_dir());
        let segment = fs::read_dir(epoch.unwrap().path()).unwrap().flatten().map(|it| it.path());
        let segment = segment.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
        let mut bytes = fs::read(&segment).unwrap();
        // A row, not the empty place between two of them.
        let at = bytes.windows(12).position(|it| it == b"intent.accep").unwrap();
        bytes[at] ^= 1;
        fs::write(&segment, bytes).unwrap();
        let ran = self.machine(2).smgr(&["audit", "verify", copy.to_str().unwrap()]);
        assert!(!ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
    }

    /// Demands that the logs hold what must always hold; keeps them where they do not.
    pub(super) fn is_sound(&self, evidence: &Evidence) {
        let faults = judge(evidence);
        if !faults.is_empty() {
            let folder = tempfile::tempdir().unwrap().keep();
            for number in 1..=self.count() {
                let mut copy = Command::new("cp");
                copy.arg("-r").arg(self.machine(number).state());
                drop(copy.arg(folder.join(format!("n{number}"))).status());
            }
            eprintln!("the state folders are kept in {}", folder.display());
        }
        assert_eq!(faults, Vec::<String>::new());
    }

    /// Ends all machines, has each prove its log, and returns what the logs say.
    pub(super) fn end(&self) -> Evidence {
        for number in (1..=self.count()).rev() {
            let machine = self.machine(number);
            machine.exits(0, &["replay"]);
            if number == 2 {
                let other = self.machine(1).state().join("log");
                let (own, aside) = (machine.state().join("log"), machine.state().join("log.aside"));
                fs::rename(&own, &aside).unwrap();
                assert!(
                    Command::new("cp").arg("-r").args([&other, &own]).status().unwrap().success()
                );
                assert!(!machine.smgr(&["replay"]).status.success());
                fs::remove_dir_all(&own).unwrap();
                fs::rename(&aside, &own).unwrap();
            }
            machine.exits(0, &["down"]);
            machine.exits(0, &["audit", "verify", machine.state().to_str().unwrap()]);
        }
        self.what_is_wrong_is_found();
        let mut evidence = Evidence::default();
        for number in 1..=self.count() {
            evidence.read_node(&format!("n{number}"), self.machine(number).state());
        }
        for name in ["c1", "c2"] {
            evidence.read_controller(name, &self.fleet.folder(name));
        }
        for name in ["c1", "c2"] {
            evidence.read_copies(name, &self.fleet.folder(name));
        }
        evidence
    }

    fn pid_if_any(&self, service: &str) -> Option<u32> {
        let ran = self.fleet.machine.smgr(&["status", service, "-o", "json"]);
        let status: Value = serde_json::from_slice(&ran.stdout).ok()?;
        let pid = status["instances"][0]["pid"].as_u64()?;
        u32::try_from(pid).ok().filter(|pid| *pid > 0)
    }
}

/// Where the action of all machines says that it ran, in a line for each time.
fn marks(machine: &Machine) -> PathBuf {
    machine.folder().join("marks")
}

fn spec(machine: &Machine) -> String {
    let path = machine.folder().join("web.toml");
    let marks = marks(machine);
    let action = format!(
        "[action.mark]\nexec = [\"/bin/sh\", \"-c\", \"echo $$1 >> {}\", \"mark\", \"${{id}}\"]\n\
         params.id = {{ type = \"string\", pattern = \"^[0-9]+$\" }}\n",
        marks.display()
    );
    let text = "user = \"root\"\nexec = [\"${release}/bin/web\"]\n\
        [socket.http]\nlisten = \"tcp:0.0.0.0:8080\"\n\
        [update]\nmethod = \"handover\"\n\
        [ready]\nby = \"notify\"\ntimeout = \"6s\"\n\
        [stop]\ntimeout = \"5s\"\n\
        [rollout]\nmin_healthy_time = \"300ms\"\nhealthy_deadline = \"15s\"\n";
    fs::write(&path, text.to_owned() + &action).unwrap();
    path.display().to_string()
}

/// The script of a release that serves.
fn serves(version: &str) -> String {
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/handover/server.py");
    format!("export VERSION={version}\nexec {} {} \"$@\"", python(), server.display())
}

mod heavy {
    use super::faults::chaos;
    use super::*;

    #[test]
    fn five_machines_serve_on_whatever_happens_and_their_logs_hold_what_must_always_hold() {
        if !Apart::may_be_made() {
            return;
        }
        let apart = Apart::of(MACHINES);
        apart.deploys(0, "1.0", &serves("1.0"), &[]);
        apart.all_run("1.0");
        let loads: Vec<Load> = (1..=MACHINES)
            .map(|number| {
                let network = apart.network.path(number);
                let at = SocketAddr::from(([127, 0, 0, 1], 8080));
                Load::at(at, 1, move || enter(&network))
            })
            .collect();

        apart.deploys(0, "2.0", &serves("2.0"), &[]);
        apart.all_run("2.0");

        // A bad program and a bad configuration go no further than the canary, and why is told.
        let said = apart.deploys(10, "3.0", "echo no such table >&2; exit 3", &[]);
        assert!(said.contains("rolled_back"), "{said}");
        apart.is_told(&["no such table", "3"]);
        let flag = "exec=[\"${release}/bin/web\", \"--no-such-flag\"]";
        apart.deploys(10, "3.1", &serves("3.1"), &["--set", flag]);
        apart.is_told(&["no-such-flag"]);
        apart.all_run("2.0");

        // Two machines cannot be reached for a while in the middle of it.
        let rest = ["--set", "rollout.bake_time=\"2s\""];
        let cut_off = apart.cuts_two_off(&rest);

        let rest = ["--set", "rollout.bake_time=\"2s\""];
        // The bus forgets everything while a release is on its way.
        let rollout = apart.begins("5.0", &rest);
        apart.wipe_the_bus();
        apart.fleet.machine.exits(0, &["rollout", "watch", &rollout]);
        apart.all_run("5.0");

        // The same, while the server runs and more is asked for.
        apart.loses_no_wish_with_its_streams(&rest);

        // Two controllers lead while one is.
        let rollout = apart.begins("5.1", &rest);
        apart.two_lead();
        apart.fleet.machine.exits(0, &["rollout", "watch", &rollout]);
        apart.all_run("5.1");

        chaos(&apart);

        apart.all_are_there();
        apart.all_rollouts_ended();
        apart.deploys(0, "9.0", &serves("9.0"), &[]);
        apart.all_run("9.0");
        loads.into_iter().for_each(Load::none_failed);
        let evidence = apart.end();
        let (rollout, nodes) = cut_off;
        assert!(
            nodes.iter().any(|node| evidence.missed_halfway(&rollout, node)),
            "{nodes:?} were missed in {rollout}, and not in its middle"
        );
        assert_ne!(evidence.reigns_at_once(), [], "no two led at once");
        let (facts, turns) = evidence.extent();
        assert!(facts > 20 && turns > 20, "{facts} facts, {turns} turns");
        apart.is_sound(&evidence);
    }
}
