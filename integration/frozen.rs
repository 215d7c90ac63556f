//! What was promised while the disk stood still, and who was behind what happened.
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::machine::{Machine, is_root};
use crate::support::mounts;
use crate::support::process::{kill_9, processes_with};
use crate::support::wait::eventually;

/// Part of the command line of the service, and of nothing else.
const NEEDLE: &str = "sleep 31415.926";

mod heavy {
    use super::*;

    #[test]
    fn a_start_that_waited_for_the_disk_is_not_made_when_it_was_stopped_in_the_meantime() {
        if !is_root() {
            eprintln!("skipped: only root can freeze a disk");
            return;
        }
        if !mounts::has_own() {
            return mounts::again_with_own(
                module_path!(),
                "a_start_that_waited_for_the_disk_is_not_made_when_it_was_stopped_in_the_meantime",
            );
        }
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("state/log");
        let Some(disk) = Disk::at(&temp.path().join("image"), &log) else {
            eprintln!("skipped: no disk can be made of a file here");
            return;
        };
        let state = temp.path().join("state");
        let machine = Machine::at(temp, state);
        machine.service(
            "double",
            "enabled = false\nexec = [\"/bin/sleep\", \"31415.926\"]\n[log]\ndir = \"/tmp\"\n",
        );
        machine.exits(0, &["up", "-d"]);
        let keeper = machine.part("keeper");

        let frozen = disk.freeze();
        // Time is all there is to wait for: while the disk stands still nobody is told how far a wish has come.
        let start = begin(&machine, &["start", "double"]);
        thread::sleep(Duration::from_millis(500));
        let stop = begin(&machine, &["stop", "double"]);
        thread::sleep(Duration::from_millis(500));
        kill_9(keeper);
        eventually("there is a keeper again", || {
            machine.part_if_any("keeper").filter(|pid| *pid != keeper)
        });
        thread::sleep(Duration::from_millis(500));
        drop(frozen);
        assert!(ends(stop), "the stop is done");
        ends(start);

        // Time in which the start that was promised would be made after all.
        thread::sleep(Duration::from_secs(1));
        assert_eq!(processes_with(NEEDLE), [], "it was stopped");
        assert_eq!(machine.instance("double")["state"], "inactive");
        machine.exits(0, &["start", "double"]);
        // Time in which a second one would come.
        thread::sleep(Duration::from_secs(1));
        assert_eq!(processes_with(NEEDLE).len(), 1);
    }
}

#[test]
fn history_says_who_restarted_a_service_and_an_answer_names_the_event_that_says_so() {
    let machine = Machine::new();
    machine.service("web", "exec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    let before = machine.ready("web");
    machine.service("web", "exec = [\"/bin/sleep\", \"1001\"]\n");
    machine.exits(0, &["apply"]);
    machine.ready_but("web", Some(before));
    // The state is ahead of the disk, which is all that events tell of.
    let events = eventually("the new run is told", || {
        let events = machine.events();
        let started = events.iter().filter(|event| event["type"] == "instance.started").count();
        (started == 2).then_some(events)
    });
    let last =
        |kind: &str| -> &Value { events.iter().rev().find(|event| event["type"] == kind).unwrap() };
    let applied = &last("service.added")["intent"];
    assert!(applied.is_string(), "{applied}");
    for kind in ["instance.stopping", "instance.exited", "instance.stopped", "instance.started"] {
        let event = last(kind);
        assert_eq!(event["intent"], *applied, "{event}");
        assert_eq!(event["by"], last("service.added")["by"], "{event}");
    }

    let said = machine.exits(0, &["restart", "web", "-o", "json"]);
    let events = machine.events();
    let executed = events.iter().rev().find(|event| event["type"] == "intent.executed").unwrap();
    assert!(said.contains(&executed["id"].to_string()), "{said} {executed}");
}

/// A file with a file system of its own.
struct Disk(PathBuf);

/// A disk that takes nothing until this is dropped.
struct Frozen(PathBuf);

impl Disk {
    fn at(image: &Path, folder: &Path) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        fs::File::create(image).unwrap().set_len(256 << 20).unwrap();
        let runs = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let (image, shown) = (image.to_str().unwrap(), folder.to_str().unwrap());
        (runs("mkfs.ext4", &["-q", image]) && runs("mount", &["-o", "loop", image, shown]))
            .then(|| Self(folder.to_owned()))
    }

    fn freeze(&self) -> Frozen {
        assert!(Command::new("fsfreeze").arg("-f").arg(&self.0).status().unwrap().success());
        Frozen(self.0.clone())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let thawed = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
        assert!(thawed.is_ok_and(|status| status.success()) || thread::panicking());
    }
}

fn begin(machine: &Machine, line: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_smgr"))
        .args(line)
        .env("SMGR_STATE", machine.state())
        .env("SMGR_NATS_SERVER", "off")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn ends(mut child: Child) -> bool {
    child.wait().unwrap().success()
}
