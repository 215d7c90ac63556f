//! What runs beside a service, commands before a stop, reloads and actions, and what is held for one: none of it outlives
//! its purpose.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::machine::Machine;
use crate::support::process::processes_with;
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
    let machine = Machine::new();
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

#[test]
fn a_node_that_is_down_has_no_action_left() {
    let machine = up();
    let mut asking = Command::new(env!("CARGO_BIN_EXE_smgr"))
        .args(["action", "run", "web", "long"])
        .env("SMGR_STATE", machine.state())
        .spawn()
        .unwrap();
    eventually("the action runs", || (!remains(&machine, "long").is_empty()).then_some(()));
    machine.exits(0, &["down"]);
    assert_eq!(remains(&machine, "long"), []);
    asking.wait().unwrap();
}

#[test]
fn a_service_that_was_removed_leaves_nothing_open() {
    let machine = Machine::new();
    machine.service("web", "exec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    let keeper = machine.part("keeper");
    let stat = fs::read_to_string(format!("/proc/{keeper}/stat")).unwrap();
    let launcher = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().to_owned();
    let open = || {
        [launcher.clone(), keeper.to_string(), machine.part("agent").to_string()]
            .map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
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
