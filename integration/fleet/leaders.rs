//! Two controllers: one leads, and the other does when the one does not.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Fleet;
use crate::support::process::{kill_9, signal};
use crate::support::wait::{eventually, wait_until};

/// How long a lease holds in these tests.
const LEASE: Duration = Duration::from_secs(3);

pub(super) fn fleet_of_two_controllers() -> Fleet {
    let fleet = Fleet::new();
    let state = fleet.machine.state();
    let text = r#"{"v": 1, "nodes": ["n1", "n2"], "controllers": ["c1", "c2"]}"#;
    fs::write(state.join("fleet.json"), text).unwrap();
    for name in ["c1", "c2"] {
        let folder = fleet.folder(name);
        fs::create_dir_all(&folder).unwrap();
        let setup = format!(
            r#"{{"v": 1, "fleet": "local", "controller": "{name}", "urls": [], "lease_ms": {}}}"#,
            LEASE.as_millis()
        );
        fs::write(folder.join("controller.json"), setup).unwrap();
    }
    fleet.machine.exits(0, &["up", "-d"]);
    fleet
}

/// Returns who leads, by the word of the first controller that answers, and in which term.
pub(super) fn leader(fleet: &Fleet) -> Option<(String, u64)> {
    let ran = fleet.machine.smgr(&["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&ran.stdout).ok()?;
    let leads = &status["controllers"];
    Some((leads["leader"].as_str()?.to_owned(), leads["term"].as_u64()?))
}

#[test]
fn one_of_two_controllers_leads_and_when_it_is_stuck_the_other_does_in_a_higher_term() {
    let fleet = fleet_of_two_controllers();
    let (first, term) = eventually("one leads", || leader(&fleet));
    let other = if first == "c1" { "c2" } else { "c1" };
    let stuck = fleet.pid(&format!("controller-{first}"));
    signal(stuck, Signal::STOP);
    let began = Instant::now();
    let (_, higher) = eventually("the other leads", || {
        leader(&fleet).filter(|(name, now)| name == other && *now > term)
    });
    let took = began.elapsed();
    // Each look costs up to the time that an answer of the stuck one is waited for.
    assert!(took < LEASE * 2 + Duration::from_secs(8), "{took:?}");
    signal(stuck, Signal::CONT);
    wait_until("the first one follows", || {
        let events = fleet.machine.exits(0, &["events", "--fleet"]);
        events.contains("leads no more") && leader(&fleet) == Some((other.to_owned(), higher))
    });
}

#[test]
fn a_controller_that_never_heard_of_the_leader_leads_in_a_higher_term() {
    let fleet = fleet_of_two_controllers();
    let (first, term) = eventually("one leads", || leader(&fleet));
    let other = if first == "c1" { "c2" } else { "c1" };
    let service = format!("controller-{other}");
    fleet.machine.exits(0, &["stop", &service, "--node", "n1"]);
    for log in ["log", "arrivals"] {
        fs::remove_dir_all(fleet.folder(other).join(log)).unwrap();
    }
    let stuck = fleet.pid(&format!("controller-{first}"));
    signal(stuck, Signal::STOP);
    fleet.machine.exits(0, &["start", &service, "--node", "n1"]);
    eventually("the other leads", || {
        leader(&fleet).filter(|(name, now)| name == other && *now > term)
    });
    signal(stuck, Signal::CONT);
}

#[test]
fn a_controller_that_is_killed_comes_back_and_no_term_is_led_twice() {
    let fleet = fleet_of_two_controllers();
    for _ in 0..3 {
        let (name, term) = eventually("one leads", || leader(&fleet));
        kill_9(fleet.pid(&format!("controller-{name}")));
        eventually("one leads in a higher term", || leader(&fleet).filter(|(_, now)| *now > term));
    }
    let events = fleet.machine.exits(0, &["events", "--fleet"]);
    let leads = events.lines().filter_map(|line| line.split_once("leads, term "));
    let mut terms: Vec<u64> = leads.map(|(_, term)| term.trim().parse().unwrap()).collect();
    let count = terms.len();
    terms.sort_unstable();
    terms.dedup();
    assert_eq!(terms.len(), count, "{events}");
    assert!(count >= 4, "{events}");
}

#[test]
fn a_rollout_that_a_leader_hears_of_only_later_is_led_to_its_end() {
    let fleet = fleet_of_two_controllers();
    let (first, term) = eventually("one leads", || leader(&fleet));
    let other = if first == "c1" { "c2" } else { "c1" };
    let service = format!("controller-{other}");
    fleet.machine.exits(0, &["stop", &service, "--node", "n1"]);
    let spec = fleet.machine.folder().join("web.toml");
    let text = "user = \"root\"\nexec = [\"sleep\", \"1000\"]\n[rollout]\nmin_healthy_time = \"100ms\"\nbake_time = \"5s\"\n";
    fs::write(&spec, text).unwrap();
    let spec = spec.display().to_string();
    let line = ["deploy", "web", "-f", &spec, "--release-version", "1", "--select", "*"];
    fleet.machine.exits(0, &[&line[..], &["--detach"]].concat());
    // All that it took in: it knows of no rollout, and cannot ask whoever does.
    fs::remove_dir_all(fleet.folder(other).join("arrivals")).unwrap();
    let stuck = fleet.pid(&format!("controller-{first}"));
    signal(stuck, Signal::STOP);
    fleet.machine.exits(0, &["start", &service, "--node", "n1"]);
    eventually("the other leads", || {
        leader(&fleet).filter(|(name, now)| name == other && *now > term)
    });
    signal(stuck, Signal::CONT);
    let state = || {
        let ran = fleet.machine.smgr(&["rollout", "list", "-o", "json"]);
        let list: serde_json::Value = serde_json::from_slice(&ran.stdout).ok()?;
        list["rollouts"][0]["state"].as_str().map(str::to_owned)
    };
    wait_until("the rollout ends well", || state().is_some_and(|state| state == "succeeded"));
    // Whoever led it to its end still says so in its next life, with nobody else to ask.
    fleet.machine.exits(0, &["stop", &format!("controller-{first}"), "--node", "n1"]);
    kill_9(fleet.pid(&service));
    assert_eq!(eventually("it answers again", state), "succeeded");
}
