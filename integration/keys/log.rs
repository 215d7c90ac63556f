//! The output of services: compressed, forwarded, kept.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use crate::support::machine::Machine;
use crate::support::nats;
use crate::support::wait::{PATIENCE, eventually};

#[test]
fn rotated_files_are_compressed_with_zstd_and_read_again() {
    let machine = Machine::new();
    machine.service(
        "web",
        "exec = [\"/bin/sh\", \"-c\", \"seq -f 'line %.0f' 3000; exec sleep 1000\"]\n\
         [log]\nmax_size = \"20KiB\"\nmax_files = 4\ncompress = \"zstd\"\n",
    );
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    let path = machine.instance("web")["log_path"].as_str().unwrap().to_owned();
    let dir = std::path::Path::new(&path).parent().unwrap().to_owned();
    let packed = eventually("three files are compressed", || {
        let files = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let past: Vec<_> = files.filter(|path| !path.ends_with("current")).collect();
        let is_packed = |path: &std::path::PathBuf| path.extension().is_some_and(|x| x == "zst");
        (past.len() == 3 && past.iter().all(is_packed)).then_some(past)
    });
    assert!(packed.iter().all(|path| fs::metadata(path).unwrap().len() < 10 << 10));
    // What the format's own program makes of it, where there is one.
    if let Ok(read) = Command::new("zstd").args(["-dc".as_ref(), packed[0].as_os_str()]).output() {
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        assert!(String::from_utf8_lossy(&read.stdout).contains(" stdout F line "));
    }
    let lines = machine.exits(0, &["logs", "web", "-n", "800"]);
    assert_eq!(lines.lines().count(), 800, "{lines}");
    assert!(lines.lines().last().unwrap().ends_with("line 3000"), "{lines}");
    assert!(lines.lines().next().unwrap().ends_with("line 2201"), "{lines}");
}

#[test]
fn forwarded_lines_reach_the_standard_output_of_the_agent_and_the_file() {
    let machine = Machine::new();
    machine.service(
        "web",
        "exec = [\"/bin/sh\", \"-c\", \"echo to be seen; echo password=secret >&2; exec sleep 1000\"]\n\
         [log]\nforward = \"stdout\"\nredact = ['password=\\S+']\n",
    );
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    // In the background this is the file that the parts write to.
    let said = machine.state().join("run/smgr.log");
    eventually("the lines are forwarded", || {
        let text = fs::read_to_string(&said).unwrap_or_default();
        assert!(!text.contains("secret"), "{text}");
        (text.contains("web/0 | to be seen\n") && text.contains("web/0 | [redacted]\n"))
            .then_some(())
    });
    let path = machine.instance("web")["log_path"].as_str().unwrap().to_owned();
    assert_eq!(fs::read_to_string(path).unwrap().lines().count(), 2);
}

#[test]
fn what_the_journal_does_not_take_is_counted_and_holds_nothing_up() {
    if std::path::Path::new("/run/systemd/journal/socket").exists() {
        return; // It would be taken.
    }
    let machine = Machine::new();
    machine.service(
        "web",
        "exec = [\"/bin/sh\", \"-c\", \"while :; do echo on; sleep 0.1; done\"]\n\
         [log]\nforward = \"journald\"\n",
    );
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    eventually("the loss is told", || {
        let events = machine.events();
        let dropped = events.iter().find(|event| event["type"] == "lines.dropped")?;
        assert_eq!(dropped["data"]["why"], "forward", "{dropped}");
        Some(())
    });
    let path = machine.instance("web")["log_path"].as_str().unwrap().to_owned();
    assert!(fs::read_to_string(path).unwrap().lines().count() > 1);
}

#[test]
fn a_log_is_followed_over_the_bus_as_it_is_written() {
    let mut machine = Machine::new();
    machine.env("SMGR_NATS_SERVER", &nats::program());
    machine.service(
        "web",
        "exec = [\"/bin/sh\", \"-c\", \"trap 'echo called' USR1; echo up; while :; do sleep 0.05; done\"]\n",
    );
    machine.exits(0, &["up", "-d"]);
    eventually("the node is on its bus", || {
        let status = machine.json(&["status"]);
        (status["nodes"][0]["bus"]["state"] == "connected").then_some(())
    });
    let setup = fs::read_to_string(machine.state().join("node.json")).unwrap();
    let setup: serde_json::Value = serde_json::from_str(&setup).unwrap();
    let (url, node) = (&setup["bus"]["urls"][0], &setup["node"]);
    let via = ["--bus", url.as_str().unwrap(), "--node", node.as_str().unwrap()];
    eventually("it has begun", || {
        machine.exits(0, &["logs", "web"]).contains("stdout F up").then_some(())
    });
    let mut follow = machine.command(&[&["logs", "web", "-f"][..], &via].concat());
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let (told, lines) = mpsc::channel();
    let out = BufReader::new(follow.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        for line in out.lines() {
            drop(told.send(line.unwrap()));
        }
    });
    assert!(lines.recv_timeout(PATIENCE).unwrap().ends_with("stdout F up"));
    for _ in 0..3 {
        machine.exits(0, &["signal", "-s", "USR1", "web"]);
        assert!(lines.recv_timeout(PATIENCE).unwrap().ends_with("stdout F called"));
    }
    follow.kill().unwrap();
    follow.wait().unwrap();
    reader.join().unwrap();
    assert_eq!(lines.try_iter().count(), 0, "each line once");
}
