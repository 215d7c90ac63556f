//! A fleet of five machines, each with a network of its own, against everything at once; judged by its logs alone.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::Fleet;
use super::judge::{Evidence, judge};
use super::leaders::leader;
use super::machines::{enrol, nodes};
use crate::handover::Load;
use crate::releases::archive;
use crate::support::machine::{Machine, python};
use crate::support::network::{Network, enter};
use crate::support::process::{kill_9, signal};
use crate::support::wait::{eventually, wait_until};

/// How many machines.
const MACHINES: u8 = 5;

/// How long everything is killed at random; `SMGR_CHAOS_SECONDS` says otherwise.
const CHAOS: Duration = Duration::from_secs(20);

/// How long a lease holds here, in milliseconds.
const LEASE_MS: u64 = 3000;

/// Five machines: the first has bus and controllers, the others joined it.
struct Apart {
    fleet: Fleet,
    others: Vec<Machine>,
    spec: String,
    /// Goes last: what the machines end with goes over it.
    network: Network,
}

impl Apart {
    fn of_five() -> Self {
        let network = Network::of(MACHINES);
        let mut fleet = Fleet::new();
        fleet.machine.within(network.path(1));
        let state = fleet.machine.state();
        let listen = SocketAddr::from((Network::address(1), 4222));
        let text = format!(
            r#"{{"v": 1, "nodes": ["n1"], "controllers": ["c1", "c2"], "listen": "{listen}"}}"#
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
        let others = (2..=MACHINES).map(join).collect();
        let spec = spec(&fleet.machine);
        let apart = Self { network, fleet, others, spec };
        apart.all_are_there();
        apart
    }

    fn machine(&self, number: u8) -> &Machine {
        match number {
            1 => &self.fleet.machine,
            _ => &self.others[usize::from(number) - 2],
        }
    }

    fn all_are_there(&self) {
        wait_until("all machines are heard", || {
            let known = nodes(&self.fleet);
            known.len() == usize::from(MACHINES) && known.iter().all(|(_, reachable)| *reachable)
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

    fn all_run(&self, version: &str) {
        for number in 1..=MACHINES {
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

    fn pid_if_any(&self, service: &str) -> Option<u32> {
        let ran = self.fleet.machine.smgr(&["status", service, "-o", "json"]);
        let status: Value = serde_json::from_slice(&ran.stdout).ok()?;
        let pid = status["instances"][0]["pid"].as_u64()?;
        u32::try_from(pid).ok().filter(|pid| *pid > 0)
    }

    /// Ends with all that stood in the streams and buckets, as a server does whose disk was wiped.
    fn wipe_the_bus(&self) {
        let store = self.fleet.machine.state().join("nats");
        self.fleet.machine.smgr(&["stop", "nats"]);
        for entry in fs::read_dir(store).unwrap().flatten() {
            drop(fs::remove_dir_all(entry.path()));
        }
        self.fleet.machine.smgr(&["start", "nats"]);
    }

    /// Two controllers that lead at once: one is stuck for longer than its lease while its orders are out, the lease itself
    /// is lost with the bus, so that it is counted from 1 again, and then the one goes on beside the other.
    fn two_lead(&self) {
        let (first, term) = eventually("one leads", || leader(&self.fleet));
        let stuck = self.fleet.pid(&format!("controller-{first}"));
        signal(stuck, Signal::STOP);
        self.wipe_the_bus();
        eventually("the other one leads", || {
            leader(&self.fleet).filter(|(name, now)| *name != first && *now > term)
        });
        signal(stuck, Signal::CONT);
    }

    /// Does one thing that nobody wants, chosen by a number.
    fn disturb(&self, number: u64) {
        let machine = self.machine(u8::try_from(number / 8 % u64::from(MACHINES)).unwrap() + 1);
        let kill_part = |part| machine.part_if_any(part).into_iter().for_each(kill_9);
        match number % 8 {
            0 => kill_part("agent"),
            1 => kill_part("keeper"),
            2 => kill_part("uplink"),
            3 => ["keeper", "agent", "uplink"].into_iter().for_each(kill_part),
            4 => self.pid_if_any("nats").into_iter().for_each(kill_9),
            5 => self.pid_if_any("controller-c1").into_iter().for_each(kill_9),
            6 => self.pid_if_any("controller-c2").into_iter().for_each(kill_9),
            // For longer than its lease: when it goes on there are two that believe they lead.
            _ => {
                let name = if number % 16 == 7 { "controller-c1" } else { "controller-c2" };
                if let Some(pid) = self.pid_if_any(name) {
                    signal(pid, Signal::STOP);
                    thread::sleep(Duration::from_millis(LEASE_MS + 1000));
                    signal(pid, Signal::CONT);
                }
            }
        }
    }
}

fn spec(machine: &Machine) -> String {
    let path = machine.folder().join("web.toml");
    let text = "user = \"root\"\nexec = [\"${release}/bin/web\"]\n\
        [socket.http]\nlisten = \"tcp:0.0.0.0:8080\"\n\
        [update]\nmethod = \"handover\"\n\
        [ready]\nby = \"notify\"\ntimeout = \"6s\"\n\
        [stop]\ntimeout = \"5s\"\n\
        [rollout]\nmin_healthy_time = \"300ms\"\nhealthy_deadline = \"15s\"\n";
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// The script of a release that serves.
fn serves(version: &str) -> String {
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/handover/server.py");
    format!("export VERSION={version}\nexec {} {} \"$@\"", python(), server.display())
}

fn chaos_time() -> Duration {
    let told = std::env::var("SMGR_CHAOS_SECONDS").ok();
    told.map_or(CHAOS, |seconds| Duration::from_secs(seconds.parse().unwrap()))
}

/// Kills whatever runs while releases are on their way, each of which ends as it may.
fn chaos(apart: &Apart) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let version = format!("6.{round}");
                apart.deploy(&version, &serves(&version), &["--timeout", "20s"]);
            }
        });
        let until = Instant::now() + chaos_time();
        let mut number: u64 = 1;
        while Instant::now() < until {
            // Knuth's MMIX generator: the same acts each time, at times of their own.
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            apart.disturb(number >> 33);
            thread::sleep(Duration::from_millis(700));
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

mod heavy {
    use super::*;

    #[test]
    fn five_machines_serve_on_whatever_happens_and_their_logs_hold_what_must_always_hold() {
        if let Err(why) = Network::may_be_made() {
            assert!(
                std::env::var_os("CI").is_none() || !crate::support::machine::is_root(),
                "{why}"
            );
            return;
        }
        let apart = Apart::of_five();
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
        let rest = ["--set", "rollout.bake_time=\"2s\"", "--detach"];
        apart.deploys(0, "4.0", &serves("4.0"), &rest);
        for number in [4, 5] {
            apart.network.plug(number, false);
        }
        thread::sleep(Duration::from_secs(5));
        for number in [4, 5] {
            apart.network.plug(number, true);
        }
        apart.fleet.machine.exits(0, &["rollout", "watch", &apart.last()]);
        apart.all_run("4.0");

        // The bus forgets everything while a release is on its way.
        apart.deploys(0, "5.0", &serves("5.0"), &rest);
        let rollout = apart.last();
        apart.wipe_the_bus();
        apart.fleet.machine.exits(0, &["rollout", "watch", &rollout]);
        apart.all_run("5.0");

        // Two controllers lead while one is.
        apart.deploys(0, "5.1", &serves("5.1"), &rest);
        let rollout = apart.last();
        apart.two_lead();
        apart.fleet.machine.exits(0, &["rollout", "watch", &rollout]);
        apart.all_run("5.1");

        chaos(&apart);

        apart.all_are_there();
        apart.all_rollouts_ended();
        apart.deploys(0, "9.0", &serves("9.0"), &[]);
        apart.all_run("9.0");
        loads.into_iter().for_each(Load::none_failed);
        for number in (1..=MACHINES).rev() {
            let machine = apart.machine(number);
            machine.exits(0, &["replay"]);
            machine.exits(0, &["down"]);
            machine.exits(0, &["audit", "verify", machine.state().to_str().unwrap()]);
        }
        let mut evidence = Evidence::default();
        for number in 1..=MACHINES {
            evidence.read_node(&format!("n{number}"), apart.machine(number).state());
        }
        for name in ["c1", "c2"] {
            evidence.read_controller(name, &apart.fleet.folder(name));
        }
        assert!(evidence.led.len() > 1 && evidence.nodes.values().all(|facts| facts.len() > 20));
        assert_eq!(judge(&evidence), Vec::<String>::new());
    }
}
