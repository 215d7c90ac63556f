//! `smgr up` and what a person types after it, with the built binary in a state folder of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use smgr::ipc::hello::Part;
use smgr::ipc::place::Place;

use crate::support::process::{kill_9, process_parent};
use crate::support::sweep::sweep;
use crate::support::wait::eventually;

/// A machine of one's own: everything it starts ends with it.
struct Machine {
    temp: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { temp: tempfile::tempdir().unwrap() }
    }

    fn state(&self) -> PathBuf {
        self.temp.path().join("state")
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smgr"));
        command
            .args(line)
            .current_dir(self.temp.path())
            .env("SMGR_STATE", self.state())
            .env("SMGR_NATS_SERVER", "off");
        command
    }

    fn smgr(&self, line: &[&str]) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs a command and demands its exit code; returns stdout.
    fn exits(&self, code: i32, line: &[&str]) -> String {
        let ran = self.smgr(line);
        let (out, err) =
            (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert_eq!(ran.status.code(), Some(code), "smgr {line:?}\n{out}{err}");
        out.into_owned()
    }

    fn json(&self, line: &[&str]) -> Value {
        serde_json::from_str(&self.exits(0, line)).unwrap()
    }

    fn pid_of(&self, service: &str) -> Option<u32> {
        let status = self.json(&["status", "-o", "json"]);
        let instances = status["instances"].as_array().unwrap();
        let pid = instances.iter().find(|it| it["service"] == service)?["pid"].as_u64()?;
        Some(u32::try_from(pid).unwrap())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let down = self.smgr(&["down"]);
        sweep(&self.state());
        if !down.status.success() && !std::thread::panicking() {
            panic!("down: {}", String::from_utf8_lossy(&down.stderr));
        }
    }
}

#[test]
fn the_first_minute() {
    let machine = Machine::new();
    let screen = machine.exits(0, &["up", "-d"]);
    assert!(screen.contains("services  none yet") && screen.contains("bus       off"), "{screen}");
    machine.exits(6, &["up", "-d"]);

    let ran = machine.exits(0, &["run", "hello", "--", "sleep", "1000"]);
    assert!(ran.starts_with("hello is running, pid "), "{ran}");
    machine.exits(6, &["run", "hello", "--", "sleep", "1000"]);

    let first = machine.pid_of("hello").unwrap();
    kill_9(first);
    let second =
        eventually("hello comes back", || machine.pid_of("hello").filter(|pid| *pid != first));
    machine.exits(0, &["restart", "hello"]);
    assert_ne!(machine.pid_of("hello"), Some(second));
    machine.exits(0, &["stop", "hello"]);
    assert_eq!(machine.pid_of("hello"), None);
    assert!(machine.exits(0, &["stop", "hello"]).contains("nothing to do"));
    machine.exits(0, &["start", "hello"]);

    let history = machine.exits(0, &["history", "hello"]);
    assert!(history.contains("signal KILL"), "{history}");
    machine.exits(0, &["audit", "verify"]);
    assert_eq!(machine.json(&["replay", "-o", "json"])["live"]["equal"], true);
    machine.exits(0, &["remove", "hello"]);
    machine.exits(4, &["restart", "hello"]);
    machine.exits(0, &["down"]);
    machine.exits(5, &["status"]);
    machine.exits(0, &["audit", "verify"]);
}

#[test]
fn events_resume_exactly_after_a_cursor() {
    let machine = Machine::new();
    machine.exits(0, &["up", "-d"]);
    machine.exits(0, &["run", "hello", "--", "sleep", "1000"]);
    let all = machine.exits(0, &["events", "-o", "json"]);
    let all: Vec<&str> = all.lines().collect();
    for cut in [0, 1, all.len() / 2, all.len() - 1] {
        let event: Value = serde_json::from_str(all[cut]).unwrap();
        let cursor = event["cursor"].as_str().unwrap();
        let rest = machine.exits(0, &["events", "-o", "json", "--since", cursor]);
        assert_eq!(rest.lines().collect::<Vec<_>>(), all[cut + 1..], "after {cursor}");
    }
}

#[test]
fn the_logs_of_a_service_are_those_of_all_its_instances() {
    let machine = Machine::new();
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let text = format!(
        "[service.web]\ninstances = 3\n{user}\
         exec = [\"/bin/sh\", \"-c\", \"echo I am $$SMGR_INSTANCE; exec sleep 1000\"]\n"
    );
    fs::write(machine.temp.path().join("smgr.toml"), text).unwrap();
    machine.exits(0, &["up", "-d"]);
    eventually("the lines of all are there", || {
        let said = machine.exits(0, &["logs", "web"]);
        let all = (0..3).all(|index| {
            said.lines().any(|line| {
                line.starts_with(&format!("web/{index} | "))
                    && line.ends_with(&format!("I am {index}"))
            })
        });
        all.then_some(())
    });
    let one = machine.exits(0, &["logs", "web/2"]);
    assert!(one.contains("I am 2") && !one.contains("I am 0"), "{one}");
}

/// A project with one service that says which file it was started from.
fn project(machine: &Machine, word: &str) {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let text = format!(
        "[service.web]\nexec = [\"/bin/sh\", \"-c\", \"echo {word} >> started; echo {word}; exec sleep 1000\"]\n{user}"
    );
    fs::write(machine.temp.path().join("smgr.toml"), text).unwrap();
}

fn started(machine: &Machine, lines: usize) -> String {
    let path = machine.temp.path().join("started");
    eventually("it was started", || {
        fs::read_to_string(&path).ok().filter(|text| text.lines().count() >= lines)
    })
}

#[test]
fn a_project_that_was_changed_is_applied_before_anything_of_it_is_started() {
    let machine = Machine::new();
    project(&machine, "old");
    machine.exits(0, &["up", "-d"]);
    assert_eq!(started(&machine, 1), "old\n");
    machine.exits(0, &["down"]);
    project(&machine, "new");
    machine.exits(0, &["up", "-d"]);
    assert_eq!(started(&machine, 2), "old\nnew\n");
    let history = machine.exits(0, &["history", "web"]);
    let last = history.lines().rev().find(|line| line.contains("  started ")).unwrap();
    assert!(history.contains("  config applied  ") && last.ends_with(" (up)"), "{history}");
    machine.exits(0, &["down"]);
    // What is as the files say needs no wish.
    let before = machine.exits(0, &["events"]).matches("apply accepted").count();
    machine.exits(0, &["up", "-d"]);
    assert_eq!(machine.exits(0, &["events"]).matches("apply accepted").count(), before);
}

#[test]
fn what_happened_is_read_from_the_files_where_no_agent_lives() {
    let machine = Machine::new();
    machine.exits(5, &["history"]);
    machine.exits(0, &["up", "-d"]);
    machine.exits(0, &["run", "hello", "--", "sleep", "1000"]);
    let live = machine.exits(0, &["events", "-o", "json"]);
    let at = serde_json::from_str::<Value>(live.lines().last().unwrap()).unwrap();
    machine.exits(0, &["down"]);
    let said = machine.smgr(&["events", "-o", "json"]);
    let files = String::from_utf8(said.stdout).unwrap();
    assert!(files.starts_with(&live) && files.len() > live.len());
    let note = "smgr is not up here: this is what its files say\n";
    assert_eq!(String::from_utf8(said.stderr).unwrap(), note);
    let cursor = at["cursor"].as_str().unwrap();
    let rest = machine.exits(0, &["events", "-o", "json", "--since", cursor]);
    assert_eq!(rest, files[live.len()..]);
    assert!(machine.exits(0, &["history", "hello"]).contains("  stopped  "));
    machine.exits(4, &["history", "nobody"]);
    let then = machine.json(&["status", "--at", cursor, "-o", "json"]);
    assert_eq!(
        (&then["instances"][0]["state"], &then["instances"][0]["last_event"]),
        (&"running".into(), &Value::Null)
    );
    machine.exits(5, &["status"]);
    machine.exits(5, &["events", "--follow"]);
}

#[test]
fn whatever_part_is_killed_the_history_says_so_and_services_are_adopted() {
    let machine = Machine::new();
    machine.exits(0, &["up", "-d"]);
    machine.exits(0, &["run", "hello", "--", "sleep", "1000"]);
    let hello = machine.pid_of("hello").unwrap();
    let part = |name: &str| -> u32 {
        let pid = fs::read_to_string(machine.state().join("run").join(name).join("pid")).unwrap();
        pid.trim().parse().unwrap()
    };
    for name in ["agent", "keeper"] {
        kill_9(part(name));
        let told = format!("adopted  pid {hello}");
        let by = format!("{name} killed, back after ");
        eventually("the history tells it", || {
            let history = machine.smgr(&["history", "hello"]).stdout;
            let history = String::from_utf8(history).unwrap();
            history.lines().any(|line| line.contains(&told) && line.contains(&by)).then_some(())
        });
    }
    let status = machine.json(&["status", "-o", "json"]);
    let instance = &status["instances"][0];
    assert_eq!(instance["conditions"]["Adopted"]["status"], "true");
    assert!(instance["last_event"].as_str().is_some());
    assert_eq!(machine.json(&["replay", "-o", "json"])["live"]["equal"], true);

    let lock = fs::read_to_string(machine.state().join("run/up.lock")).unwrap();
    let launcher = lock.split_whitespace().last().unwrap().parse().unwrap();
    // Each before the one that it would start again.
    for pid in [launcher, part("keeper"), part("agent")] {
        kill_9(pid);
        let is_over = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            // What it had open is closed with the last of its threads.
            let is_alone = status.contains("Threads:\t1\n");
            (status.is_empty() || status.contains("State:\tZ") && is_alone).then_some(())
        };
        eventually("it is over", is_over);
    }
    let screen = machine.exits(0, &["up", "-d"]);
    assert!(screen.contains("  found 1 running service, adopted, none restarted\n"), "{screen}");
    assert_eq!(machine.pid_of("hello"), Some(hello));
}

#[test]
fn a_wait_in_jsonl_tells_the_events_and_then_one_result() {
    let machine = Machine::new();
    machine.exits(0, &["up", "-d"]);
    machine.exits(0, &["run", "hello", "--", "sleep", "1000"]);
    let told = machine.exits(0, &["restart", "hello", "-o", "jsonl"]);
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (result, events) = lines.split_last().unwrap();
    assert_eq!((&result["schema"], &result["state"]), (&"smgr.result.v1".into(), &"done".into()));
    assert!(events.iter().all(|event| event["schema"] == "smgr.event.v1"));
    let types: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    for kind in ["intent.accepted", "instance.stopping", "instance.started", "intent.executed"] {
        assert!(types.contains(&kind), "{types:?}");
    }
    let one = machine.exits(0, &["restart", "hello", "-o", "json"]);
    assert_eq!(one.lines().count(), 1);
}

#[test]
fn a_live_node_is_verified_against_what_was_pinned() {
    let machine = Machine::new();
    machine.exits(0, &["up", "-d"]);
    let node = machine.json(&["status", "-o", "json"])["nodes"][0]["node"].clone();
    let line = ["audit", "verify", "--node", node.as_str().unwrap()];
    assert!(machine.exits(0, &line).contains("without a pin a cut tail cannot be seen"));
    machine.exits(0, &["audit", "pin"]);
    assert!(machine.exits(0, &line).contains("nothing that was pinned is missing"));
    let told = machine.json(&[&line[..], &["-o", "json"]].concat());
    assert_eq!((&told["sound"], &told["pinned"]), (&true.into(), &true.into()));
}

#[test]
fn the_foreground_shows_what_the_project_writes_and_ends_as_the_contract_says() {
    let machine = Machine::new();
    project(&machine, "hi");
    let mut up = machine.command(&["up"]);
    let up = up.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let up = up.spawn().unwrap();
    started(&machine, 1);
    let mut follow = machine.command(&["logs", "web", "-f"]);
    let mut follow = follow.stdout(std::process::Stdio::piped()).spawn().unwrap();
    eventually("web runs", || machine.pid_of("web"));
    assert!(Command::new("kill").args(["-INT", &up.id().to_string()]).status().unwrap().success());
    let ended = up.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{said}");
    assert!(said.contains("\nweb/0 | hi\n"), "{said}");
    let last: Vec<&str> = said.lines().rev().take(2).collect();
    assert!(last[1].starts_with("stopping web (TERM) … stopped in "), "{said}");
    assert!(
        last[0].starts_with("history closed at ")
            && last[0].ends_with(", verified. Start again with: smgr up"),
        "{said}"
    );
    // Whoever followed the log is told by its end.
    assert!(follow.wait().unwrap().success());
}

#[test]
fn down_does_not_pass_over_what_a_killed_smgr_has_left_running() {
    let machine = Machine::new();
    machine.exits(0, &["up", "-d"]);
    machine.exits(0, &["run", "hello", "--", "sleep", "1000"]);
    let hello = machine.pid_of("hello").unwrap();
    let place = Place::of(&machine.state());
    let parts = [Part::Keeper, Part::Agent].map(|part| place.pid(part).unwrap());
    let launcher = process_parent(parts[0]);
    [launcher].into_iter().chain(parts).for_each(kill_9);
    eventually("the kernel has let go of smgr", || {
        let ran = machine.smgr(&["down"]);
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(5), "{said}");
        said.contains("what it ran goes on: hello.0.1").then_some(())
    });
    machine.exits(0, &["up", "-d"]);
    assert_eq!(machine.pid_of("hello"), Some(hello));
    machine.exits(0, &["down"]);
    assert!(machine.exits(0, &["down"]).contains("not up here"));
}

#[test]
fn of_two_that_come_up_at_once_one_does_and_the_other_says_why_not() {
    for _ in 0..3 {
        let machine = Machine::new();
        let begin = || {
            let mut command = machine.command(&["up", "-d"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let both = [begin(), begin(), begin()].map(|child| child.wait_with_output().unwrap());
        let mut codes = both.each_ref().map(|ran| ran.status.code());
        codes.sort_unstable();
        assert_eq!(codes, [Some(0), Some(6), Some(6)], "{both:?}");
        for ran in both.iter().filter(|ran| !ran.status.success()) {
            let said = String::from_utf8_lossy(&ran.stderr);
            assert_eq!(said.matches("error:").count(), 1, "{said}");
            assert!(said.contains("already up (pid ") || said.contains("just beginning"), "{said}");
            assert!(!said.contains("pid 0"), "{said}");
        }
    }
}

#[test]
fn as_many_lines_are_shown_as_were_asked_for() {
    let machine = Machine::new();
    let line = "x".repeat(200);
    let script = format!("for i in $(seq 1000); do echo {line} $i; done; sleep 1000");
    machine.exits(0, &["up", "-d"]);
    machine.exits(0, &["run", "web", "--", "/bin/sh", "-c", &script]);
    let shown = eventually("all lines are shown", || {
        let said = machine.exits(0, &["logs", "web", "-n", "1000"]);
        (said.lines().count() >= 1000).then_some(said)
    });
    assert!(shown.lines().next().unwrap().ends_with(" 1") && shown.trim_end().ends_with(" 1000"));
}

#[test]
fn a_service_that_was_probably_meant_is_named() {
    let machine = Machine::new();
    machine.exits(0, &["up", "-d"]);
    machine.exits(0, &["run", "billing", "--", "sleep", "1000"]);
    for line in [&["stop", "biling"][..], &["status", "biling"], &["logs", "biling"]] {
        let ran = machine.smgr(line);
        assert_eq!(ran.status.code(), Some(4), "{line:?}: {ran:?}");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(said.contains("did you mean `billing`?"), "{line:?}: {said}");
    }
}

#[test]
fn a_run_prints_one_result() {
    let machine = Machine::new();
    machine.exits(0, &["up", "-d"]);
    let ran = machine.smgr(&["run", "one", "-o", "json", "--", "sleep", "1000"]);
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    let result: Value = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}"));
    assert_eq!((result["exit_code"].as_u64(), ran.status.code()), (Some(0), Some(0)), "{text}");
}

#[test]
fn a_program_that_is_not_there_and_a_log_without_a_line_are_told_as_such() {
    let machine = Machine::new();
    machine.exits(0, &["up", "-d"]);
    let said = |exit, line: &[&str]| {
        let ran = machine.smgr(line);
        assert_eq!(ran.status.code(), Some(exit), "{line:?}");
        String::from_utf8_lossy(&ran.stderr).into_owned()
    };
    let none = said(8, &["run", "x", "--", "/no/such"]);
    assert!(none.contains("`/no/such` is not a program here"), "{none}");
    said(0, &["run", "quiet", "--", "sleep", "1000"]);
    assert_eq!(said(0, &["logs", "quiet"]), "quiet has written nothing yet\n");
    let cursor = said(2, &["events", "--since", "n1/x"]);
    assert!(cursor.contains("`n1/x` is not a cursor"), "{cursor}");
    assert_eq!(machine.json(&["status", "-o", "json"])["services"][0]["restarts_1h"], 0);
}

#[test]
fn what_init_writes_passes_the_check_whoever_asked_for_it() {
    let machine = Machine::new();
    machine.exits(0, &["init"]);
    assert_eq!(machine.exits(0, &["check"]), "web checked, nothing is wrong\n");
    let said = machine.exits(0, &["init"]);
    assert!(said.contains("wrote ./smgr.toml"), "the same text is no file in the way: {said}");
}

#[test]
fn a_mistake_in_a_spec_starts_nothing() {
    let machine = Machine::new();
    fs::write(machine.temp.path().join("smgr.toml"), "[service.web]\nexce = [\"x\"]\n").unwrap();
    let ran = machine.smgr(&["up", "-d"]);
    assert_eq!(ran.status.code(), Some(8));
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(said.contains("./smgr.toml:2:1") && said.contains("did you mean `exec`?"), "{said}");
    assert!(!machine.state().join("trust.smgr").exists());
    machine.exits(5, &["status"]);
}

#[test]
fn what_was_not_understood_exits_with_2_and_one_error() {
    let machine = Machine::new();
    for line in [
        &["statsu"][..],
        &["deploy", "web"],
        &["up", "--nodes", "0"],
        &["status", "Web"],
        &["stop"],
        &["run", "hello"],
        &["explain", "E0999"],
        &["signal", "-s", "NOPE", "web"],
    ] {
        let ran = machine.smgr(&[line, &["-o", "json"]].concat());
        assert_eq!(ran.status.code(), Some(2), "{line:?}");
        assert!(ran.stdout.is_empty(), "{line:?}");
        let said = String::from_utf8(ran.stderr).unwrap();
        let error: Value = serde_json::from_str(said.trim()).unwrap();
        assert_eq!((&error["schema"], &error["exit_code"]), (&"smgr.error.v1".into(), &2.into()));
    }
}
