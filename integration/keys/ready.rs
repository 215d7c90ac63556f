//! When a run counts as ready, over the death of the agent too.

use std::fs;

use crate::support::machine::{Machine, python};
use crate::support::process::kill_9;
use crate::support::wait::eventually;

/// A service that says that it is ready once a file is there.
fn service(machine: &Machine, sign: &str, ready: &str) {
    let go = machine.folder().join("go");
    machine.service(
        "web",
        &format!(
            "exec = [\"/bin/sh\", \"-c\", \"while ! test -e {}; do sleep 0.05; done; {sign}; exec sleep 1000\"]\n\
             [ready]\n{ready}",
            go.display()
        ),
    );
}

fn go(machine: &Machine) {
    fs::write(machine.folder().join("go"), "").unwrap();
}

fn starting(machine: &Machine) -> u64 {
    eventually("it is starting", || {
        let web = machine.instance("web");
        (web["state"] == "starting").then(|| web["pid"].as_u64()).flatten()
    })
}

/// The sign comes after another agent has taken the run over.
fn is_ready_after_the_death_of_the_agent(sign: &str, ready: &str, how: &str) {
    let machine = Machine::new();
    service(&machine, sign, ready);
    machine.exits(0, &["up", "-d"]);
    let pid = starting(&machine);
    assert_eq!(machine.instance("web")["conditions"]["Ready"]["status"], "false");
    let agent = machine.part("agent");
    kill_9(agent);
    eventually("another agent", || (machine.part("agent") != agent).then_some(()));
    assert_eq!(starting(&machine), pid);
    go(&machine);
    assert_eq!(u64::from(machine.ready("web")), pid);
    let ready = eventually("it is told", || {
        machine.events().into_iter().find(|event| event["type"] == "instance.ready")
    });
    assert_eq!(ready["data"]["how"], how);
    // And one that is killed once more stays as ready as it is.
    kill_9(machine.part("agent"));
    assert_eq!(u64::from(machine.ready("web")), pid);
}

#[test]
fn a_line_of_the_log_makes_ready_whoever_reads_it() {
    is_ready_after_the_death_of_the_agent(
        "echo ready to serve",
        "by = \"log\"\nmatch = '^ready'\n",
        "log",
    );
}

#[test]
fn a_line_that_came_while_there_was_no_agent_makes_ready() {
    let machine = Machine::new();
    service(&machine, "echo ready to serve", "by = \"log\"\nmatch = '^ready'\n");
    machine.exits(0, &["up", "-d"]);
    starting(&machine);
    go(&machine);
    // Killed as soon as it is there: before the line is written, or read, or told.
    let mut before = None;
    for _ in 0..5 {
        let agent = eventually("there is an agent", || {
            Some(machine.part("agent")).filter(|agent| Some(*agent) != before)
        });
        kill_9(agent);
        before = Some(agent);
    }
    machine.ready("web");
}

#[test]
fn a_line_on_a_descriptor_makes_ready_whoever_holds_it() {
    is_ready_after_the_death_of_the_agent("echo >&5", "by = \"fd\"\nfd = 5\n", "fd");
}

#[test]
fn a_word_to_the_notify_socket_makes_ready_whoever_hears_it() {
    let text = format!(
        "exec {} -c \\\"import os,socket,time; \
         socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'].replace('@', chr(0), 1)); \
         time.sleep(1000)\\\"",
        python()
    );
    is_ready_after_the_death_of_the_agent(&text, "by = \"notify\"\n", "notify");
}

#[test]
fn a_run_that_is_not_ready_in_its_time_is_stopped_and_tried_again() {
    let machine = Machine::new();
    service(&machine, "true", "by = \"log\"\nmatch = 'never'\ntimeout = \"300ms\"\n");
    machine.exits(0, &["up", "-d"]);
    eventually("it is stopped for that", || {
        let events = machine.events();
        let stopping = events.iter().any(|event| {
            event["type"] == "instance.stopping" && event["data"]["reason"] == "ready_timeout"
        });
        let starts = events.iter().filter(|event| event["type"] == "instance.started").count();
        (stopping && starts > 1).then_some(())
    });
}
