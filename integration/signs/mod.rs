//! What services say and write reaches the node, whichever part of it was away when they did.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal};
use serde_json::Value;

use crate::support::machine::Machine;
use crate::support::process::{as_pid, kill_9, signal};
use crate::support::wait::eventually;

/// Builds the program that says READY=1.
fn says(machine: &Machine) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/signs/says.c");
    let program = machine.folder().join("says");
    let built = Command::new("cc").args(["-Wall", "-o"]).arg(&program).arg(source).status();
    assert!(built.unwrap().success(), "the program does not compile");
    program
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("s{number:02}")).collect()
}

/// Asks for all instances at once: one command for each would take longer than what is waited for.
fn all(machine: &Machine) -> Vec<Value> {
    machine.json(&["status"])["instances"].as_array().unwrap().clone()
}

fn all_ready(machine: &Machine, count: usize) -> Vec<u64> {
    eventually("all are ready", || {
        let found = all(machine);
        let ready = found.iter().filter(|one| one["conditions"]["Ready"]["status"] == "true");
        let pids: Vec<u64> = ready.filter_map(|one| one["pid"].as_u64()).collect();
        (pids.len() == count).then_some(pids)
    })
}

fn late(machine: &Machine) -> Vec<Value> {
    let mut events = machine.events();
    events.retain(|event| {
        event["type"] == "instance.stopping" && event["data"]["reason"] == "ready_timeout"
    });
    events
}

mod heavy {
    use super::*;

    #[test]
    fn a_service_that_is_ready_before_its_start_is_told_is_ready() {
        let machine = Machine::new();
        let program = says(&machine);
        let notify = format!("exec = [\"{}\"]\n[ready]\nby = \"notify\"\n", program.display());
        let shell = |line: &str| {
            format!("exec = [\"/bin/sh\", \"-c\", \"{line}; exec sleep 1000\"]\n[ready]\n")
        };
        let log = shell("echo up") + "by = \"log\"\nmatch = \"up\"\n";
        let fd = shell("echo up >&9") + "by = \"fd\"\nfd = 9\n";
        let names = names(48);
        for (name, text) in names.iter().zip([notify, log, fd].iter().cycle()) {
            machine.service(name, &format!("{text}timeout = \"8s\"\n"));
        }
        machine.exits(0, &["up", "-d"]);
        for _ in 0..2 {
            for pid in all_ready(&machine, names.len()) {
                kill_9(u32::try_from(pid).unwrap());
            }
        }
        all_ready(&machine, names.len());
        assert_eq!(late(&machine), Vec::<Value>::new());
    }

    #[test]
    fn a_word_that_was_said_while_nobody_listened_counts() {
        let machine = Machine::new();
        let program = says(&machine);
        let names = names(20);
        machine.exits(0, &["up", "-d"]);
        let text = format!(
            "exec = [\"{}\", \"4000\"]\n[ready]\nby = \"notify\"\ntimeout = \"6s\"\n",
            program.display()
        );
        names.iter().for_each(|name| machine.service(name, &text));
        machine.exits(0, &["apply", "--detach"]);
        eventually("all are started", || {
            let started = all(&machine).iter().filter(|one| one["pid"].is_u64()).count();
            (started == names.len()).then_some(())
        });
        // Nobody listens when they say it, nor until their time is over: that it passes is what is tested.
        let agent = machine.part("agent");
        signal(agent, Signal::STOP);
        thread::sleep(Duration::from_secs(8));
        kill_9(agent);
        all_ready(&machine, names.len());
        assert_eq!(late(&machine), Vec::<Value>::new());
        assert!(all(&machine).iter().all(|one| one["restarts"] == 0), "{:#?}", all(&machine));
    }

    #[test]
    fn output_is_read_after_a_keeper_that_had_no_descriptors_left_has_some_again() {
        let machine = Machine::new();
        let names = names(40);
        for name in &names {
            machine.service(
                name,
                "exec = [\"/bin/sh\", \"-c\", \"while :; do echo line; sleep 0.5; done\"]\n",
            );
        }
        machine.exits(0, &["up", "-d"]);
        all_ready(&machine, names.len());
        let keeper = machine.part("keeper");
        let used = fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().count() as u64;
        let may_open = |current: u64| {
            let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
            let limit = Rlimit { current: Some(current), maximum };
            rustix::process::prlimit(Some(as_pid(keeper)), Resource::Nofile, limit).unwrap();
        };
        may_open(used + 8);
        let agent = machine.part("agent");
        kill_9(agent);
        eventually("another agent lives", || (machine.part("agent") != agent).then_some(()));
        // How many are refused is chance: answers go out, and their descriptors with them, while others are asked for.
        eventually("some are not read", || {
            let status = machine.json(&["status"]).to_string();
            status.contains("its output is not read").then_some(())
        });
        may_open(4096);
        let bytes = || -> Vec<u64> {
            let log = |one: &Value| fs::metadata(one["log_path"].as_str().unwrap()).unwrap().len();
            all(&machine).iter().map(log).collect()
        };
        let first = bytes();
        eventually("all are read", || {
            bytes().iter().zip(&first).all(|(now, first)| now > first).then_some(())
        });
        assert!(!machine.json(&["status"]).to_string().contains("its output is not read"));
    }

    #[test]
    fn a_keeper_that_does_not_answer_is_named_and_asked_again() {
        let machine = Machine::new();
        machine.service("web", "exec = [\"/bin/sleep\", \"1000\"]\n");
        machine.exits(0, &["up", "-d"]);
        let first = machine.ready("web");
        let keeper = machine.part("keeper");
        machine.service("late", "exec = [\"/bin/sleep\", \"1000\"]\n");
        signal(keeper, Signal::STOP);
        machine.smgr(&["apply", "--detach"]);
        eventually("status names the keeper", || {
            let reason = machine.instance("late")["reason"].to_string();
            reason.contains("keeper").then_some(())
        });
        eventually("the agent gives that keeper up", || {
            let reason = machine.instance("late")["reason"].to_string();
            reason.contains("away").then_some(())
        });
        signal(keeper, Signal::CONT);
        machine.ready("late");
        assert_eq!(machine.ready("web"), first);
    }
}
