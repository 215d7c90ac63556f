//! What is done to the machines: cut off, robbed of their streams, made to be led by two, and killed at random.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use async_nats::{ConnectOptions, jetstream};
use futures_util::TryStreamExt as _;
use rustix::process::Signal;
use serde_json::Value;
use smgr::wire::subject::InboxPrefix;

use super::super::leaders::leader;
use super::{Apart, LEASE_MS, marks, serves};
use crate::support::block_on;
use crate::support::network::{Network, enter};
use crate::support::process::{kill_9, signal};
use crate::support::wait::{eventually, wait_until};

/// How long everything is killed at random; `SMGR_CHAOS_SECONDS` says otherwise.
const CHAOS: Duration = Duration::from_secs(60);

/// Tells another thread that it is over, in a panic as well.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Apart {
    /// Pulls the cables of two machines in the middle of a rollout; returns its name and who they were.
    pub(super) fn cuts_two_off(&self, rest: &[&str]) -> (String, Vec<String>) {
        let rollout = self.begins("4.0", rest);
        let view = || {
            let ran = self.fleet.machine.smgr(&["rollout", "show", &rollout, "-o", "json"]);
            serde_json::from_slice::<Value>(&ran.stdout).unwrap_or_default()
        };
        let waves = |view: &Value| view["waves"].as_array().cloned().unwrap_or_default();
        let halfway = eventually("a wave has passed", || {
            let view = view();
            waves(&view).iter().any(|wave| wave["state"] == "healthy").then_some(view)
        });
        let is_open = |wave: &Value| wave["state"] == "not_started";
        let later = waves(&halfway).into_iter().filter(is_open).map(|wave| wave["wave"].clone());
        let later: Vec<Value> = later.collect();
        let plan = halfway["plan"]["waves"].as_array().unwrap();
        let later = plan.iter().filter(|wave| later.contains(&wave["wave"]));
        let nodes = later.flat_map(|wave| wave["nodes"].as_array().unwrap());
        // The first machine is the one with the bus.
        let nodes = nodes.filter_map(|node| node.as_str()).filter(|node| *node != "n1");
        let nodes: Vec<String> = nodes.take(2).map(str::to_owned).collect();
        assert_eq!(nodes.len(), 2, "it is further than its middle: {halfway}");
        let number = |node: &str| node[1..].parse::<u8>().unwrap();
        for node in &nodes {
            self.network.plug(number(node), false);
        }
        wait_until("the rollout misses one of them", || {
            let missed = view()["unreachable"].as_array().cloned().unwrap_or_default();
            missed.iter().any(|it| nodes.iter().any(|node| it == node.as_str()))
        });
        for node in &nodes {
            let release = self.machine(number(node)).instance("web")["release"].clone();
            assert_eq!(release["version"], "2.0", "{node} was touched while it was cut off");
            self.network.plug(number(node), true);
        }
        self.fleet.machine.exits(0, &["rollout", "watch", &rollout]);
        self.all_run("4.0");
        (rollout, nodes)
    }

    /// Deletes all streams again and again while a release is on its way and wishes come in: none of them is lost, and
    /// none is carried out twice.
    pub(super) fn loses_no_wish_with_its_streams(&self, rest: &[&str]) {
        let rollout = self.begins("5.0.1", rest);
        let is_over = AtomicBool::new(false);
        let asked = thread::scope(|scope| {
            let asking = scope.spawn(|| self.wishes(&is_over));
            let over = Over(&is_over);
            let mut deleted = 0;
            for _ in 0..5 {
                deleted += self.delete_streams();
                thread::sleep(Duration::from_secs(1));
            }
            self.fleet.machine.exits(0, &["rollout", "watch", &rollout]);
            drop(over);
            assert!(deleted >= 4, "only {deleted} streams were there to be deleted");
            asking.join().unwrap()
        });
        self.all_run("5.0.1");
        let text = fs::read_to_string(marks(&self.fleet.machine)).unwrap();
        let mut done: BTreeMap<u64, usize> = BTreeMap::new();
        for line in text.lines() {
            *done.entry(line.parse().unwrap()).or_default() += 1;
        }
        for (number, code) in &asked {
            assert_eq!((done.get(number), code), (Some(&1), &Some(0)), "wish {number}");
        }
        assert!(asked.len() > 10, "only {} wishes", asked.len());
    }

    /// Ends with all that stood in the streams and buckets, as a server does whose disk was wiped.
    pub(super) fn wipe_the_bus(&self) {
        let store = self.fleet.machine.state().join("nats");
        self.fleet.machine.smgr(&["stop", "nats"]);
        for entry in fs::read_dir(store).unwrap().flatten() {
            drop(fs::remove_dir_all(entry.path()));
        }
        self.fleet.machine.smgr(&["start", "nats"]);
    }

    /// Deletes every stream and bucket on the server as it runs, as whoever has the key of a controller may. Says how many.
    fn delete_streams(&self) -> usize {
        let network = self.network.path(1);
        let seed = fs::read_to_string(self.fleet.folder("c1").join("keys/controller.nk")).unwrap();
        let ca = self.fleet.machine.state().join("bus-ca.pem");
        let delete = async || {
            let connect = ConnectOptions::with_nkey(seed.trim().to_owned())
                .tls_first()
                .add_root_certificates(ca.clone())
                .custom_inbox_prefix(InboxPrefix("c1".parse().unwrap()).to_string());
            let url = format!("tls://{}:4222", Network::address(1));
            let jetstream = jetstream::new(connect.connect(url).await.unwrap());
            let names: Vec<String> = jetstream.stream_names().try_collect().await.unwrap();
            for name in &names {
                // That somebody made it anew in between is no failure, and neither is that it is gone.
                drop(jetstream.delete_stream(name).await);
            }
            names
        };
        let names = thread::scope(|scope| {
            let deleting = scope.spawn(|| {
                enter(&network);
                block_on(delete())
            });
            deleting.join().unwrap()
        });
        names.len()
    }

    /// Asks for an action on one machine after the other until it is told to end; returns each number and exit code.
    fn wishes(&self, is_over: &AtomicBool) -> Vec<(u64, Option<i32>)> {
        let mut asked = Vec::new();
        for number in 0.. {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            let (id, node) = (format!("id={number}"), format!("n{}", number % 5 + 1));
            let line = ["action", "run", "web", "mark", &id, "--node", &node, "--via", "bus"];
            asked.push((number, self.fleet.machine.smgr(&line).status.code()));
        }
        asked
    }

    /// Two controllers that lead at once: one is stuck for longer than its lease while its orders are out, the lease itself
    /// is lost with the bus, so that it is counted from 1 again, and then the one goes on beside the other.
    pub(super) fn two_lead(&self) {
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
        let machine = self.machine(u8::try_from(number / 8 % u64::from(self.count())).unwrap() + 1);
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

fn chaos_time() -> Duration {
    let told = std::env::var("SMGR_CHAOS_SECONDS").ok();
    told.map_or(CHAOS, |seconds| Duration::from_secs(seconds.parse().unwrap()))
}

/// Kills whatever runs while releases are on their way, each of which ends as it may.
pub(super) fn chaos(apart: &Apart) {
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
        let _over = Over(&is_over);
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
    });
}
