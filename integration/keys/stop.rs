//! How a run is stopped, reloaded, and what it can be asked to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::machine::{Machine, is_root, python};
use crate::support::wait::eventually;

fn wrote(machine: &Machine) -> PathBuf {
    machine.folder().join("wrote")
}

fn words(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// A service that writes a word for each signal in `traps`.
fn trapping(machine: &Machine, traps: &[(&str, &str)], keys: &str) {
    let wrote = wrote(machine);
    let traps: String = traps
        .iter()
        .map(|(signal, then)| {
            format!("trap 'echo {signal} >> {}; {then}' {signal}; ", wrote.display())
        })
        .collect();
    let script = format!("{traps}echo up; while :; do sleep 0.05; done");
    machine.service("web", &format!("exec = [\"/bin/sh\", \"-c\", \"{script}\"]\n{keys}"));
}

const UP: &str = "[ready]\nby = \"log\"\nmatch = '^up$'\n";

#[test]
fn a_stop_runs_its_command_drains_and_then_signals() {
    let machine = Machine::new();
    let wrote = wrote(&machine);
    let pre = format!("[\"/bin/sh\", \"-c\", \"echo pre >> {}\"]", wrote.display());
    trapping(
        &machine,
        &[("QUIT", "exit 0")],
        &format!("{UP}[stop]\npre = {pre}\ndrain = \"500ms\"\nsignal = \"QUIT\"\n"),
    );
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    let began = Instant::now();
    machine.exits(0, &["stop", "web"]);
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    assert_eq!(words(&wrote), ["pre", "QUIT"]);
    let events = machine.events();
    let phases: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "instance.stopping")
        .map(|event| event["data"]["phase"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(phases, ["pre_stop", "drain", "term"]);
}

#[test]
fn what_does_not_end_in_its_time_is_killed_with_all_that_it_started() {
    let machine = Machine::new();
    let mark = "31415926";
    machine.service(
        "web",
        &format!(
            "exec = [\"/bin/sh\", \"-c\", \"trap '' TERM; sleep {mark} & echo up; wait; sleep {mark}\"]\n\
             {UP}[stop]\ntimeout = \"300ms\"\n"
        ),
    );
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    machine.exits(0, &["stop", "web"]);
    let left = crate::support::process::processes_with(&format!("sleep {mark}"));
    assert!(left.is_empty(), "{left:?}");
}

/// A shell that ends at its signal, and leaves processes behind that end at theirs. By `seconds` they are told from those of
/// other tests.
fn leaves_rest(machine: &Machine, seconds: u32) {
    let script = machine.folder().join("rest.sh");
    let wrote = wrote(machine);
    let rest = format!(
        "trap 'echo rest >> {}; exit 0' TERM; echo up; while :; do sleep 0.05; done",
        wrote.display()
    );
    fs::write(&script, rest).unwrap();
    let exec = format!("sh {} & sleep {seconds}", script.display());
    machine.service("web", &format!("exec = [\"/bin/sh\", \"-c\", \"{exec}\"]\n{UP}"));
}

/// Stops the service; what its main process left behind was asked to end, and nobody waited for the timeout of 30 s.
fn stops_at_once(machine: &Machine, seconds: u32) {
    machine.ready("web");
    let began = Instant::now();
    machine.exits(0, &["stop", "web"]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(words(&wrote(machine)).last().map(String::as_str), Some("rest"));
    let left = crate::support::process::processes_with(&format!("sleep {seconds}"));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_a_main_process_leaves_behind_in_a_stop_is_asked_to_end() {
    let machine = Machine::new();
    leaves_rest(&machine, 27_182_818);
    machine.exits(0, &["up", "-d"]);
    stops_at_once(&machine, 27_182_818);
}

#[test]
fn what_a_main_process_leaves_behind_is_asked_to_end_without_cgroups_too() {
    let machine = Machine::new();
    leaves_rest(&machine, 27_182_819);
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    machine.exits(0, &["down"]);
    fs::remove_file(wrote(&machine)).unwrap();
    let mut launcher = Command::new(env!("CARGO_BIN_EXE_smgr"))
        .args(["agent", "--no-cgroups", "--state"])
        .arg(machine.state())
        .spawn()
        .unwrap();
    eventually("it answers", || machine.smgr(&["ping"]).status.success().then_some(()));
    stops_at_once(&machine, 27_182_819);
    machine.exits(0, &["down"]);
    launcher.wait().unwrap();
}

#[test]
fn a_reload_by_signal_reaches_the_process_and_a_service_without_one_refuses() {
    let machine = Machine::new();
    trapping(
        &machine,
        &[("USR2", "true")],
        &format!("{UP}[reload]\nby = \"signal\"\nsignal = \"USR2\"\n"),
    );
    machine.service("deaf", "exec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("web");
    machine.exits(0, &["reload", "web"]);
    eventually("it was told", || (words(&wrote(&machine)) == ["USR2"]).then_some(()));
    assert_eq!(machine.ready("web"), pid);
    machine.exits(6, &["reload", "deaf"]);
}

#[test]
fn a_reload_by_a_command_succeeds_or_fails_with_it_and_the_run_goes_on() {
    let machine = Machine::new();
    let code = machine.folder().join("code");
    fs::write(&code, "0").unwrap();
    let exec = format!("[\"/bin/sh\", \"-c\", \"exit $$(cat {})\"]", code.display());
    machine.service(
        "web",
        &format!("exec = [\"/bin/sleep\", \"1000\"]\n[reload]\nby = \"exec\"\nexec = {exec}\n"),
    );
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("web");
    machine.exits(0, &["reload", "web"]);
    fs::write(&code, "7").unwrap();
    let ran = machine.smgr(&["reload", "web"]);
    assert!(!ran.status.success());
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(said.contains("exited with code 7"), "{said}");
    assert_eq!(machine.ready("web"), pid);
}

#[test]
fn a_reload_by_notify_is_done_when_the_process_says_so() {
    let machine = Machine::new();
    let program = machine.folder().join("notifies.py");
    fs::write(
        &program,
        "import os, signal, socket, time\n\
         s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         say = lambda text: s.sendto(text, os.environ['NOTIFY_SOCKET'].replace('@', chr(0), 1))\n\
         def reload(*_):\n    say(b'RELOADING=1'); time.sleep(0.4); say(b'READY=1')\n\
         signal.signal(signal.SIGHUP, reload)\n\
         say(b'READY=1')\n\
         while True: time.sleep(1000)\n",
    )
    .unwrap();
    machine.service(
        "web",
        &format!(
            "exec = [\"{}\", \"{}\"]\n[ready]\nby = \"notify\"\n[reload]\nby = \"notify\"\n",
            python(),
            program.display()
        ),
    );
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("web");
    let began = Instant::now();
    machine.exits(0, &["reload", "web"]);
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    assert_eq!(machine.ready("web"), pid);
}

#[test]
fn an_action_takes_what_it_declares_and_nothing_else() {
    let machine = Machine::new();
    let wrote = wrote(&machine);
    let user = if is_root() { "user = \"nobody\"\n" } else { "" };
    fs::write(&wrote, "").unwrap();
    for (path, mode) in [(machine.folder(), 0o755), (wrote.as_path(), 0o666)] {
        rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(mode)).unwrap();
    }
    machine.service(
        "web",
        &format!(
            "exec = [\"/bin/sleep\", \"1000\"]\n\
             [action.clear]\nexec = [\"/bin/sh\", \"-c\", 'echo \"$$(id -un) $$1 $$2\" >> {}', \"sh\", \"${{zone}}\", \"${{depth}}\"]\n{user}\
             params.zone = {{ type = \"string\", pattern = \"^[a-z]+$\", default = \"all\" }}\n\
             params.depth = {{ type = \"integer\", min = 0, max = 9 }}\n\
             [action.fails]\nexec = [\"/bin/sh\", \"-c\", \"exit 3\"]\n\
             [action.hangs]\nexec = [\"/bin/sleep\", \"1000\"]\ntimeout = \"300ms\"\n",
            wrote.display()
        ),
    );
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    machine.exits(0, &["action", "run", "web", "clear", "depth=3"]);
    machine.exits(0, &["action", "run", "web", "clear", "zone=img", "depth=0"]);
    let account = if is_root() { "nobody".to_owned() } else { whoami() };
    assert_eq!(words(&wrote), [format!("{account} all 3"), format!("{account} img 0")]);
    for refused in [&["depth=10"][..], &["depth=3", "zone=$(id)"], &[], &["depth=3", "other=1"]] {
        let line = [&["action", "run", "web", "clear"], refused].concat();
        assert!(!machine.smgr(&line).status.success(), "{refused:?}");
    }
    assert_eq!(words(&wrote).len(), 2);
    machine.exits(15, &["action", "run", "web", "fails"]);
    let began = Instant::now();
    machine.exits(15, &["action", "run", "web", "hangs"]);
    assert!(began.elapsed() < Duration::from_secs(20));
}

fn whoami() -> String {
    let ran = std::process::Command::new("id").arg("-un").output().unwrap();
    String::from_utf8_lossy(&ran.stdout).trim().to_owned()
}
