//! A node that lost what it knew: its disk was set back, or its log is gone.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use smgr::bus::Connection;
use smgr::domain::intent::Action;
use smgr::domain::policy::Kind;
use smgr::head::folder::StateFolder;
use smgr::wire::envelope;
use smgr::wire::payload::Answer;

use super::Fleet;
use super::hostile::{a_persons_access, n2, once_on_n2};
use super::intake::copy;
use super::rollouts::Shop;
use crate::releases::good;
use crate::support::block_on;
use crate::support::wait::{eventually, wait_until};

/// How old the log of a node has to be before a controller is believed that it was set back.
const BELIEVED_AFTER: Duration = Duration::from_secs(10);

/// Returns a wish for n2 that may run once, for minutes.
fn mark(n1: &StateFolder) -> Vec<u8> {
    let mark = Action::Run {
        service: "web".parse().unwrap(),
        action: "mark".parse().unwrap(),
        params: Default::default(),
        confirmed: false,
    };
    once_on_n2(n1, mark)
}

#[test]
fn a_wish_from_before_a_disk_was_set_back_runs_once_however_early_it_is_sent_again() {
    let fleet = Fleet::new();
    let marks = fleet.machine.folder().join("marks");
    let action = format!(
        "exec = [\"sleep\", \"1000\"]\n[action.mark]\nexec = [\"/bin/sh\", \"-c\", \"echo ran >> {}\"]\n",
        marks.display()
    );
    fleet.service("n2", "web", &action);
    fleet.up(2);
    let began = Instant::now();
    fleet.all_arrives(&["n1", "n2"]);
    let (log, backup) = (fleet.folder("n2").join("log"), fleet.machine.folder().join("backup"));
    fleet.kill_node("n2");
    copy(&log, &backup);
    fleet.up_again();
    let n1 = StateFolder::new(fleet.folder("n1"));
    let (wish, options) = (mark(&n1), a_persons_access(&n1));
    block_on(async {
        let bus = Connection::dial(&options).await.unwrap();
        let within = Duration::from_secs(30);
        let mut answers = bus.request(&n2(), wish.clone(), within).await.unwrap();
        while let Some(answer) = answers.next().await.unwrap() {
            let answer: Answer = envelope::read_kept(&answer, Kind::Answer).unwrap();
            if answer.last {
                return;
            }
        }
        panic!("it was not done");
    });
    let ran = || fs::read_to_string(&marks).unwrap_or_default().lines().count();
    assert_eq!(ran(), 1);
    fleet.all_arrives(&["n1", "n2"]);
    fleet.kill_node("n2");
    fs::remove_dir_all(&log).unwrap();
    copy(&backup, &log);
    wait_until("its log is old enough", || began.elapsed() > BELIEVED_AFTER);

    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            block_on(async {
                let bus = Connection::dial(&options).await.unwrap();
                // Some of them are heard between the first word of the node and the answer to it.
                let mut often = tokio::time::interval(Duration::from_millis(2));
                while !is_over.load(Ordering::Relaxed) {
                    often.tick().await;
                    bus.publish(&n2(), wish.clone()).await.unwrap();
                }
            });
        });
        fleet.up_again();
        eventually("it begins anew", || {
            let events = fleet.machine.smgr(&["events", "--node", "n2", "-o", "json"]);
            let text = String::from_utf8_lossy(&events.stdout).into_owned();
            text.contains("witness_ahead").then_some(())
        });
        is_over.store(true, Ordering::Relaxed);
    });
    fleet.machine.exits(0, &["restart", "web", "--node", "n2"]);
    assert_eq!(ran(), 1, "a wish runs once");
}

#[test]
fn a_node_takes_wishes_soon_after_its_start_when_every_controller_is_down() {
    let fleet = Fleet::new();
    fleet.service("n2", "web", "exec = [\"sleep\", \"1000\"]\n");
    fleet.up(2);
    fleet.machine.exits(0, &["stop", "controller-c1", "--node", "n1"]);
    fleet.kill_node("n2");
    fleet.up_again();
    fleet.machine.exits(0, &["restart", "web", "--node", "n2"]);
    fleet.machine.exits(0, &["start", "controller-c1", "--node", "n1"]);
}

#[test]
fn a_node_whose_log_is_gone_is_known_by_its_new_one_and_gets_again_what_it_had() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let fleet = &shop.fleet;
    fleet.all_arrives(&["n1", "n2", "n3"]);
    fleet.kill_node("n3");
    fs::remove_dir_all(fleet.folder("n3").join("log")).unwrap();
    fleet.up_again();
    eventually("it runs what all nodes were to run", || {
        let there = fleet.machine.smgr(&["status", "web@n3"]).status.code() != Some(4);
        (there && shop.runs("n3") == "1.0").then_some(())
    });
    wait_until("the controller knows it as it is", || {
        let status = fleet.status();
        let logs = status["intake"]["logs"].as_array().cloned().unwrap_or_default();
        let own = logs.into_iter().find(|log| log["origin"] == "n3");
        own.is_some_and(|log| log["doubt"] == Value::Null)
    });
}
