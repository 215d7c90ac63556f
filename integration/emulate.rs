//! `smgr emulate`: nodes of one process answer, and are ordered, as those of machines.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::nats::NatsServer;
use crate::support::web::certificate;

const WITHIN: Duration = Duration::from_secs(60);

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _already_dead = self.0.kill();
        self.0.wait().unwrap();
    }
}

fn smgr(folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smgr"));
    command.env("SMGR_STATE", folder.path().join("state")).stdin(Stdio::null());
    command
}

fn run(folder: &TempDir, words: &[&str]) -> Output {
    smgr(folder).args(words).output().unwrap()
}

#[test]
fn emulated_nodes_answer_by_name_and_are_led_through_a_rollout() {
    let (folder, server) = (tempfile::tempdir().unwrap(), NatsServer::start());
    let words = ["emulate", "--nodes", "12", "--bus", &server.url()];
    let mut fleet = smgr(&folder).args(words).stdout(Stdio::piped()).spawn().map(Running).unwrap();
    let mut line = String::new();
    BufReader::new(fleet.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("12 nodes listen"), "{line}");

    let ping = run(&folder, &["ping"]);
    assert!(ping.status.success(), "{ping:?}");
    assert_eq!(String::from_utf8(ping.stdout).unwrap().lines().count(), 12);

    let state = folder.path().join("state/fleet/c1");
    let mut controller = Command::new(env!("CARGO_BIN_EXE_smgr"));
    controller.arg("controller").arg("--state").arg(state).stdin(Stdio::null());
    let _controller = controller.spawn().map(Running).unwrap();
    let spec = folder.path().join("web.toml");
    let text = "exec = [\"/bin/sleep\", \"9\"]\nuser = \"root\"\n[rollout]\n\
                min_healthy_time = \"100ms\"\nmax_parallel = [\"50%\"]\n";
    std::fs::write(&spec, text).unwrap();
    let words = ["deploy", "web", "--select", "*", "--release-version", "1", "-f"];
    let words: Vec<&str> = words.into_iter().chain(spec.to_str()).collect();
    let began = Instant::now();
    let mut deploy = run(&folder, &words);
    // The controller that was just started has to take the lease first.
    while !deploy.status.success() && began.elapsed() < WITHIN {
        deploy = run(&folder, &words);
    }
    assert!(deploy.status.success(), "{deploy:?}");
    let last = String::from_utf8(deploy.stdout).unwrap();
    assert!(last.contains("on 12 of 12 nodes"), "{last}");
}

#[test]
fn emulated_nodes_find_an_encrypted_bus() {
    let folder = tempfile::tempdir().unwrap();
    let (file, key) = (certificate("server.pem"), certificate("server.key"));
    let server = NatsServer::start_with(&format!(
        "tls {{ cert_file: {file:?}, key_file: {key:?}, handshake_first: true }}"
    ));
    std::fs::create_dir(folder.path().join("state")).unwrap();
    std::fs::copy(certificate("authority.pem"), folder.path().join("state/bus-ca.pem")).unwrap();
    let words = ["emulate", "--nodes", "3", "--bus", &server.url().replace("nats://", "tls://")];
    let mut fleet = smgr(&folder).args(words).stdout(Stdio::piped()).spawn().map(Running).unwrap();
    let mut line = String::new();
    BufReader::new(fleet.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("3 nodes listen"), "{line}");
    let ping = run(&folder, &["ping"]);
    assert!(ping.status.success(), "{ping:?}");
}
