//! A node whose log is damaged, or whose keepers of the pipes have all died: services go on, and so does the history.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use smgr::store::LogReader;

use crate::support::machine::Machine;
use crate::support::process::kill_9;
use crate::support::wait::eventually;

/// Returns the segment that is written to, of the newest epoch.
fn active_segment(machine: &Machine) -> PathBuf {
    let newest = |dir: &Path| {
        let mut inside: Vec<_> = fs::read_dir(dir).unwrap().map(|it| it.unwrap().path()).collect();
        inside.retain(|path| path.is_dir() || path.extension().is_some_and(|ext| ext == "redb"));
        inside.sort();
        inside.pop().unwrap()
    };
    newest(&newest(&machine.state().join("log")))
}

/// Turns one bit in each place of a file where `needle` stands. Returns how many there were.
fn damage(path: &Path, needle: &[u8]) -> usize {
    let bytes = fs::read(path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let found = bytes.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
    let places: Vec<_> = found.map(|(at, _)| at).collect();
    for at in &places {
        file.write_all_at(&[bytes[*at] ^ 1], *at as u64).unwrap();
    }
    places.len()
}

fn parent_of(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    parent.trim().parse().unwrap()
}

#[test]
fn a_log_that_is_damaged_under_the_agent_is_set_aside_and_the_processes_are_kept() {
    let machine = Machine::new();
    machine.service("web", "instances = 2\nexec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    machine.exits(0, &["signal", "--signal", "CONT", "web"]);
    let pids = |machine: &Machine| -> Vec<u64> {
        let status = machine.json(&["status", "web"]);
        status["instances"].as_array().unwrap().iter().filter_map(|it| it["pid"].as_u64()).collect()
    };
    let before = pids(&machine);
    assert_eq!(before.len(), 2);
    let epoch = machine.events().last().unwrap()["epoch"].clone();
    let segment = active_segment(&machine);
    // The last thing that happened: what stands before it is still good.
    assert!(damage(&segment, b"instance.signalled") > 0);
    kill_9(machine.part("agent"));
    let begun = eventually("a new epoch begins", || {
        let ran = machine.smgr(&["events", "-o", "json"]);
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        let mut events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.find(|event| event["type"] == "log.opened" && event["epoch"] != epoch)
    });
    assert_eq!(begun["data"]["reason"], "integrity", "{begun}");
    assert_eq!(begun["data"]["predecessor"]["epoch"], epoch, "{begun}");
    eventually("both are supervised", || (pids(&machine) == before).then_some(()));
    let aside = fs::read_dir(segment.parent().unwrap()).unwrap();
    let aside = aside
        .filter(|it| it.as_ref().unwrap().file_name().to_string_lossy().contains(".quarantined"));
    assert_eq!(aside.count(), 1);
    // It goes on as ever: commands, crashes, proofs.
    kill_9(u32::try_from(before[0]).unwrap());
    eventually("it is started again", || {
        let after = pids(&machine);
        (after.len() == 2 && after[0] != before[0]).then_some(())
    });
    machine.exits(0, &["restart", "web"]);
    assert_eq!(machine.json(&["replay"])["live"]["equal"], true);
    kill_9(machine.part("agent"));
    machine.ready("web");
    assert_eq!(machine.json(&["replay"])["live"]["equal"], true);
}

#[test]
fn a_history_that_was_damaged_at_its_end_does_not_end_the_next_life() {
    let machine = Machine::new();
    machine.service("web", "exec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    machine.exits(0, &["down"]);
    // The outcome of the wish to end: what it was for is still open.
    let mut last = Vec::new();
    LogReader::new(machine.state().join("log"))
        .rows(None, |_, row| {
            last = row.to_vec();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(damage(&active_segment(&machine), &last[100..]) > 0);

    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    // What was signed and is lost stays a fault.
    machine.exits(9, &["audit", "verify"]);
    assert_eq!(machine.json(&["replay"])["live"]["equal"], true);
}

#[test]
fn a_log_is_verified_and_read_while_it_is_written_hard() {
    let machine = Machine::new();
    for n in 0..8 {
        machine.service(
            &format!("busy-{n}"),
            "exec = [\"/bin/sleep\", \"0.02\"]\n\
             [restart]\ndelay = \"1ms\"\nmax_delay = \"1ms\"\nlimit = 1000000\n",
        );
    }
    machine.exits(0, &["up", "-d"]);
    let head = || machine.events().last().unwrap()["seq"].as_u64().unwrap();
    let first = head();
    for _ in 0..10 {
        machine.exits(0, &["audit", "verify"]);
        let events = machine.events();
        for pair in events.windows(2) {
            assert_eq!(pair[0]["seq"].as_u64().unwrap() + 1, pair[1]["seq"].as_u64().unwrap());
        }
        let cursor = events[events.len() / 2]["cursor"].as_str().unwrap();
        let rest = machine.exits(0, &["events", "-o", "json", "--since", cursor]);
        let next: Value = serde_json::from_str(rest.lines().next().unwrap()).unwrap();
        assert_eq!(next["seq"], events[events.len() / 2 + 1]["seq"]);
    }
    assert!(head() > first + 100, "the writer was busy: {first} to {}", head());
}

#[test]
fn lines_are_kept_when_all_who_held_the_pipes_died_together() {
    let machine = Machine::new();
    let service = "exec = [\"/bin/sh\", \"-c\", \"n=0; while :; do n=$$((n+1)); echo line $$n; sleep 0.02; done\"]\n";
    machine.service("web", service);
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("web");
    let path = machine.instance("web")["log_path"].as_str().unwrap().to_owned();
    let numbers = || -> BTreeSet<u64> {
        let text = fs::read_to_string(&path).unwrap();
        text.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    };
    eventually("it writes", || (numbers().len() > 20).then_some(()));
    // The launcher first, or it would start what dies after it.
    let (keeper, agent) = (machine.part("keeper"), machine.part("agent"));
    for pid in [parent_of(keeper), keeper, agent] {
        kill_9(pid);
    }
    let at_the_death = numbers().len() as u64;
    eventually("another launcher finds the locks free", || {
        machine.smgr(&["up", "-d"]).status.success().then_some(())
    });
    assert_eq!(machine.ready("web"), pid, "it was adopted");
    eventually("its lines are written again", || {
        numbers().last().is_some_and(|last| *last > at_the_death + 50).then_some(())
    });
    let numbers = numbers();
    let last = *numbers.last().unwrap();
    assert_eq!(numbers, (1..=last).collect::<BTreeSet<_>>(), "no line is missing");
}
