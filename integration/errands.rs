//! What runs beside a service, commands before a stop, reloads and actions, and what is held for one: none of it outlives
//! its purpose.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::support::machine::Machine;
use crate::support::nats::program;
use crate::support::process::{kill_9, processes_with};
use crate::support::wait::eventually;

/// A service with a command before its stop, a reload and two actions. Each leaves a process behind that has its name
/// in its command line; those that are late never end by themselves.
fn service(folder: &Path) -> String {
    let linger = |name: &str, rest: &str| {
        format!("[\"/bin/sh\", \"-c\", \"tail -f {} & {rest}\"]", folder.join(name).display())
    };
    format!(
        "exec = [\"/bin/sleep\", \"1000\"]\n\
         [stop]\npre = {}\npre_timeout = \"500ms\"\n\
         [reload]\nby = \"exec\"\nexec = {}\ntimeout = \"500ms\"\n\
         [action.brief]\nexec = {}\n\
         [action.long]\nexec = {}\n",
        linger("before-stop", "wait"),
        linger("reload", "wait"),
        linger("brief", "exit 0"),
        linger("long", "wait"),
    )
}

fn up() -> Machine {
    up_on(Machine::new())
}

fn up_on(machine: Machine) -> Machine {
    for name in ["before-stop", "reload", "brief", "long"] {
        fs::write(machine.folder().join(name), "").unwrap();
    }
    machine.service("web", &service(machine.folder()));
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    machine
}

fn remains(machine: &Machine, name: &str) -> Vec<(u32, String)> {
    processes_with(&machine.folder().join(name).display().to_string())
}

fn is_gone(machine: &Machine, name: &str) {
    let mut left = Vec::new();
    eventually(&format!("nothing of {name} is left"), || {
        left = remains(machine, name);
        left.is_empty().then_some(())
    });
}

#[test]
fn a_command_before_a_stop_is_killed_at_its_deadline_with_all_that_it_began() {
    let machine = up();
    machine.exits(0, &["stop", "web"]);
    is_gone(&machine, "before-stop");
}

#[test]
fn a_reload_is_killed_at_its_deadline_with_all_that_it_began() {
    let machine = up();
    machine.smgr(&["reload", "web"]);
    is_gone(&machine, "reload");
    machine.ready("web");
}

#[test]
fn what_an_action_leaves_in_the_background_ends_with_it() {
    let machine = up();
    machine.exits(0, &["action", "run", "web", "brief"]);
    is_gone(&machine, "brief");
    machine.ready("web");
}

/// Returns the process of a part; the launcher is the parent of the keeper.
fn pid_of(machine: &Machine, part: &str) -> u32 {
    if part != "launcher" {
        return machine.part(part);
    }
    let stat = fs::read_to_string(format!("/proc/{}/stat", machine.part("keeper"))).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Begins the action that never ends by itself, with somebody who waits for it.
fn ask(machine: &Machine, via: &str) -> Child {
    eventually("the node is heard", || {
        machine.smgr(&["status", "web", "--via", via]).status.success().then_some(())
    });
    let asking = Command::new(env!("CARGO_BIN_EXE_smgr"))
        .args(["action", "run", "web", "long", "--via", via])
        .env("SMGR_STATE", machine.state())
        .spawn()
        .unwrap();
    eventually("the action runs", || (!remains(machine, "long").is_empty()).then_some(()));
    asking
}

/// Waits for the one who asks; returns the exit code and how long it took.
fn ended(mut asking: Child) -> (Option<i32>, Duration) {
    let since = Instant::now();
    let code = asking.wait().unwrap().code();
    (code, since.elapsed())
}

/// That the action was killed is told before the node is gone.
fn is_told_before_the_end(machine: &Machine, via: &str) {
    let asking = ask(machine, via);
    machine.exits(0, &["down"]);
    assert_eq!(remains(machine, "long"), []);
    let (code, took) = ended(asking);
    assert!(code == Some(15) && took < Duration::from_secs(2), "{code:?} after {took:?}");
}

#[test]
fn a_node_that_is_down_has_no_action_left() {
    is_told_before_the_end(&up(), "local");
}

#[test]
fn a_node_that_goes_down_answers_over_its_own_bus_as_well() {
    let mut machine = Machine::new();
    machine.env("SMGR_NATS_SERVER", &program());
    let machine = up_on(machine);
    machine.ready("nats");
    is_told_before_the_end(&machine, "bus");
}

#[test]
fn whoever_waits_for_a_node_that_was_killed_whole_is_told_within_seconds() {
    for via in ["local", "bus"] {
        let mut machine = Machine::new();
        machine.env("SMGR_NATS_SERVER", &program());
        let machine = up_on(machine);
        machine.ready("nats");
        let server = machine.ready("nats");
        let asking = ask(&machine, via);
        let parts = ["launcher", "keeper", "agent", "uplink"].map(|part| pid_of(&machine, part));
        parts.into_iter().chain([server]).for_each(kill_9);
        let (code, took) = ended(asking);
        assert!(code == Some(16) && took < Duration::from_secs(15), "{code:?} after {took:?}");
        machine.exits(0, &["up", "-d"]);
    }
}

#[test]
fn a_service_that_was_removed_leaves_nothing_open() {
    let machine = Machine::new();
    machine.service("web", "exec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    let open = || {
        ["launcher", "keeper", "agent"].map(|part| {
            fs::read_dir(format!("/proc/{}/fd", pid_of(&machine, part))).unwrap().count()
        })
    };
    let round = |name: &str| {
        machine.exits(0, &["run", name, "--", "sleep", "1000"]);
        machine.ready(name);
        machine.exits(0, &["remove", name]);
    };
    round("first");
    let before = open();
    let mut after = before;
    for name in ["second", "third", "fourth", "fifth"] {
        round(name);
    }
    eventually(&format!("as many descriptors as before, {before:?}"), || {
        after = open();
        after.iter().zip(before).all(|(after, before)| *after <= before).then_some(())
    });
}
