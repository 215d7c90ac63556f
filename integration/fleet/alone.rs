//! A machine that is cut off and loses its power meanwhile does what it has to do by itself, and tells all of it afterwards.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::apart::Apart;
use crate::releases::{archive, good};
use crate::support::machine::Machine;
use crate::support::process::{kill_9, process_state, processes_with};
use crate::support::sweep::sweep;
use crate::support::wait::{eventually, wait_until};

/// How long a release may take to be healthy here: so long that the power goes while one is on trial.
const DEADLINE: Duration = Duration::from_secs(12);

/// Ends everything that a machine runs, at once, as a loss of power does: parts, services, and what lies in memory.
fn power_off(machine: &Machine) {
    let state = machine.state().display().to_string();
    // The launcher first, or it brings back what is killed behind it.
    let parts = || {
        let all = processes_with(&state).into_iter();
        all.filter(|(_, line)| line.contains(" agent ")).map(|(pid, _)| pid)
    };
    let mut killed: Vec<u32> = Vec::new();
    wait_until("its parts are gone", || {
        killed.extend(parts().inspect(|pid| kill_9(*pid)));
        killed.iter().all(|pid| matches!(process_state(*pid), None | Some('Z')))
            && parts().next().is_none()
    });
    sweep(machine.state());
}

fn spec(machine: &Machine, service: &str, more: &str) -> String {
    let path = machine.folder().join(format!("{service}.toml"));
    let text = format!(
        "user = \"root\"\nexec = [\"${{release}}/bin/web\"]\n{more}\n[stop]\ntimeout = \"2s\"\n\
         [rollout]\nmin_healthy_time = \"300ms\"\nhealthy_deadline = \"{}s\"\n\
         on_unreachable = \"skip\"\nmax_unreachable = 1\n",
        DEADLINE.as_secs()
    );
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn of_kind<'a>(events: &'a [Value], kind: &str, service: &str) -> Vec<&'a Value> {
    let is_it = |event: &&Value| event["type"] == kind && event["service"] == service;
    events.iter().filter(is_it).collect()
}

#[test]
fn a_machine_that_loses_bus_and_power_brings_back_all_that_is_wanted_and_tells_it_when_the_bus_is_back()
 {
    if !Apart::may_be_made() {
        return;
    }
    let apart = Apart::of(2);
    let (fleet, far) = (&apart.fleet.machine, apart.machine(2));
    far.service("store", "exec = [\"sleep\", \"1000\"]\n");
    far.service(
        "flaky",
        "exec = [\"/bin/sh\", \"-c\", \"exit 3\"]\n\
         [restart]\ndelay = \"50ms\"\nmax_delay = \"400ms\"\njitter = \"0%\"\nlimit = 3\n",
    );
    far.service("idle", "exec = [\"sleep\", \"1000\"]\n");
    far.exits(0, &["apply"]);
    far.exits(0, &["stop", "idle"]);
    let deploy = |service: &str, version: &str, script: &str, on: &str, more: &[&str]| {
        let packed = archive(fleet, &format!("{service}-{version}"), script).display().to_string();
        let spec = fleet.folder().join(format!("{service}.toml")).display().to_string();
        let line = ["deploy", service, "-f", &spec, "--artifact", &packed];
        let named = ["--release-version", version, "--select", on];
        fleet.exits(0, &[&line[..], &named[..], more].concat())
    };
    spec(fleet, "old", "");
    spec(fleet, "web", "[ready]\nby = \"log\"\nmatch = \"^version\"\ntimeout = \"60s\"\n");
    deploy("old", "1.0", &good("1"), "*", &[]);
    deploy("web", "1.0", "echo version 1; exec sleep 1000", "name=n2", &[]);
    far.ready("store");

    // A release that never says that it is ready is on trial when the cable is pulled and the power goes.
    deploy("web", "2.0", "exec sleep 1000", "name=n2", &["--detach"]);
    wait_until("it is on trial", || {
        let events = far.events();
        of_kind(&events, "release.applied", "web").len() == 2
            && of_kind(&events, "instance.started", "web").len() >= 2
    });
    apart.network.plug(2, false);
    power_off(far);

    // Nobody is there to be asked: what the machine knows by itself is what it goes by.
    far.exits(0, &["up", "-d"]);
    for service in ["store", "old"] {
        far.ready(service);
    }
    let version = || far.instance("web")["release"]["version"].clone();
    wait_until("it leaves the release on trial", || {
        version() == "1.0" && far.instance("web")["state"] == "running"
    });
    assert_eq!(far.instance("idle")["state"], "inactive", "what was stopped stays so");
    let life = |events: &[Value]| {
        let began = events.iter().rposition(|event| event["type"] == "agent.started").unwrap();
        events[began..].to_vec()
    };
    wait_until("the rules of the one that crashes are followed", || {
        let life = life(&far.events());
        let ends = of_kind(&life, "instance.exited", "flaky");
        // They go on where they stood: at the longest delay.
        ends.iter().filter(|it| it["data"]["delay_ms"] == 400).count() >= 3
    });
    let before = far.events();
    let alerts = of_kind(&before, "alert.fired", "flaky");
    assert!(alerts.iter().any(|it| it["data"]["alert"] == "flaky/restart-limit"), "{alerts:?}");
    let lives = before.iter().filter(|event| event["type"] == "agent.started").count();
    assert_eq!(lives, 2);
    let after = life(&before);
    for (kind, service) in [
        ("instance.started", "store"),
        ("instance.started", "old"),
        ("instance.started", "web"),
        ("release.failed", "web"),
        ("release.returned", "web"),
    ] {
        assert!(!of_kind(&after, kind, service).is_empty(), "{kind} of {service}: {after:#?}");
    }

    let said = fleet.exits(16, &["remove", "old", "--select", "*"]);
    assert!(said.contains("gone from 1 of 2 nodes; no answer from n2"), "{said}");
    assert_eq!(far.instance("old")["state"], "running", "it has heard of nothing");
    apart.network.plug(2, true);
    eventually("what was taken from the fleet meanwhile stops", || {
        (far.smgr(&["status", "old"]).status.code() == Some(4)).then_some(())
    });
    apart.all_are_there();
    far.exits(0, &["stop", "flaky"]);
    apart.fleet.all_arrives(&["n1", "n2"]);
    apart.is_sound(&apart.end());
}
