//! What a CI job uses: a signed wish that others carry.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::machine::{Machine, is_root};
use crate::support::nats::NatsServer;

/// Its action says how often it ran.
const WEB: &str = r#"
exec = ["sleep", "1000"]
[action.cache-clear]
exec = ["sh", "-c", "echo once >> ran"]
[action.broken]
exec = ["false"]
"#;

/// A machine with a bus, and what carries wishes to it without a key.
struct Carried {
    machine: Machine,
    bus: NatsServer,
    name: String,
}

/// Nodes and people as they like, and a job that may call nodes and hear what they answer it.
fn bus_of(name: &str) -> NatsServer {
    NatsServer::start_with(&format!(
        r#"authorization {{ users: [
            {{ user: all, password: all }}
            {{ user: job, password: secret, permissions: {{
                publish: ["smgr.v1.*.call.*"], subscribe: ["_INBOX.{name}.>"] }} }}
        ] }}
        no_auth_user: all"#
    ))
}

impl Carried {
    fn up() -> Self {
        let machine = Machine::new();
        machine.service("web", &format!("working_dir = \"{}\"\n{WEB}", machine.folder().display()));
        let name = "ana".to_owned();
        let bus = bus_of(&name);
        let mut up = machine.command(&["up", "-d", "--bus", &bus.url()]);
        said(0, &up.env("USER", &name).output().unwrap());
        machine.ready("web");
        Self { machine, bus, name }
    }

    /// Signs into a file.
    fn sign(&self, line: &[&str]) -> String {
        let signed = self.machine.smgr(&[&["sign"], line].concat());
        assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
        let file = self.machine.folder().join("wish");
        fs::write(&file, signed.stdout).unwrap();
        file.display().to_string()
    }

    /// Publishes a file by each client that is here, none of which can read a key or find smgr; returns what each said.
    fn publish(&self, code: i32, file: &str) -> String {
        self.publish_for("30", code, file)
    }

    fn publish_for(&self, seconds: &str, code: i32, file: &str) -> String {
        let server = self.bus.url().replace("//", "//job:secret@");
        let library = std::env::var_os("SMGR_NATS_PY");
        let clients = [Some(Default::default()), library].into_iter().flatten();
        let ran = clients.map(|path| {
            let mut python = Command::new("python3");
            // Without what is installed on this machine, it speaks by a socket of its own.
            python.arg("-S").arg(example("publish.py"));
            python.args(["--as", &self.name, "--server", &server, "--timeout", seconds, file]);
            python.env_clear().env("PATH", "/usr/bin:/bin").env("PYTHONPATH", path);
            said(code, &python.output().unwrap())
        });
        let said: Vec<String> = ran.collect();
        assert!(said.iter().all(|it| *it == said[0]), "{said:?}");
        said[0].clone()
    }

    fn ran(&self) -> usize {
        fs::read_to_string(self.machine.folder().join("ran")).unwrap_or_default().lines().count()
    }
}

fn example(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ci");
    folder.join(name).display().to_string()
}

fn said(code: i32, ran: &Output) -> String {
    let text = String::from_utf8_lossy(&[&ran.stdout[..], &ran.stderr[..]].concat()).into_owned();
    assert_eq!(ran.status.code(), Some(code), "{text}");
    text
}

#[test]
fn a_wish_that_was_signed_elsewhere_is_published_by_a_script_without_a_key_and_done_once() {
    let carried = Carried::up();
    let node = carried.machine.json(&["status"])["nodes"][0]["node"].as_str().unwrap().to_owned();
    let file = carried.sign(&["--for", "10m", "action", "run", "web", "cache-clear"]);
    for _ in 0..2 {
        assert_eq!(carried.publish(0, &file), format!("{node}  done\n"));
    }
    assert_eq!(carried.ran(), 1, "a node answers a repeat with the first outcome");

    let file = carried.sign(&["--base64", "restart", "web"]);
    let before = carried.machine.ready("web");
    assert_eq!(carried.publish(0, &file), format!("{node}  done\n"));
    carried.machine.ready_but("web", Some(before));

    let said = carried.publish(15, &carried.sign(&["action", "run", "web", "broken"]));
    assert!(said.starts_with(&format!("{node}  failed: ")), "{said}");
    let said = carried.publish(6, &carried.sign(&["reload", "web"]));
    assert!(said.contains("E0608"), "{said}");
}

#[test]
fn a_release_that_was_signed_elsewhere_is_taken_as_if_it_had_been_deployed() {
    let carried = Carried::up();
    let spec = carried.machine.folder().join("new.toml");
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    fs::write(&spec, format!("{user}exec = [\"sleep\", \"1001\"]\n")).unwrap();
    let soon = "rollout.min_healthy_time=\"50ms\"";
    let line = ["deploy", "web", "-f", spec.to_str().unwrap(), "--release-version", "2.0"];
    let file = carried.sign(&[&line[..], &["--set", soon]].concat());
    assert!(carried.publish(0, &file).contains("done"));
    assert_eq!(carried.machine.instance("web")["release"]["version"], "2.0");
    carried.machine.exits(2, &[&["sign"], &line[..], &["--detach"]].concat());
}

#[test]
fn a_release_whose_artifact_is_not_what_was_signed_is_not_taken_whatever_it_is_instead() {
    let carried = Carried::up();
    let machine = &carried.machine;
    let before = machine.ready("web");
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    let spec = machine.folder().join("new.toml");
    let soon = "[rollout]\nmin_healthy_time = \"50ms\"\n";
    fs::write(&spec, format!("{user}exec = [\"${{release}}/web\"]\n{soon}")).unwrap();
    let artifact = machine.folder().join("program");
    let of = |seconds: &str| format!("#!/bin/sh\nexec sleep {seconds}\n");
    let at = format!("file:{}", artifact.display());
    let line = ["deploy", "web", "-f", spec.to_str().unwrap(), "--artifact", &at];
    let sign = || {
        fs::write(&artifact, of("1000")).unwrap();
        carried.sign(&[&line[..], &["--release-version", "2.0"]].concat())
    };
    for (other, why) in [
        ("2000", "its SHA-256 is"),
        ("10000", "it is longer than the 26 bytes"),
        ("100", "it ended after 25 of 26 bytes"),
    ] {
        let file = sign();
        fs::write(&artifact, of(other)).unwrap();
        let said = carried.publish(15, &file);
        assert!(said.contains("E0705") && said.contains(why), "{other}: {said}");
        assert_eq!(machine.ready("web"), before, "what ran goes on");
        let left = fs::read_dir(machine.state().join("releases/web")).unwrap().flatten();
        let left: Vec<_> = left.map(|it| it.file_name().into_string().unwrap()).collect();
        assert!(left.iter().all(|name| name.ends_with(".manifest")), "no file of it: {left:?}");
    }
    assert!(carried.publish(0, &sign()).contains("done"));
    machine.ready_but("web", Some(before));
    assert_eq!(machine.instance("web")["release"]["version"], "2.0");
}

#[test]
fn a_script_without_a_key_cannot_change_what_was_signed() {
    let carried = Carried::up();
    let file = carried.sign(&["action", "run", "web", "cache-clear"]);
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(11).position(|it| it == b"cache-clear").unwrap();
    bytes[at..at + 11].copy_from_slice(b"cache-steal");
    fs::write(&file, bytes).unwrap();
    // Nodes answer nobody whom they do not know.
    let said = carried.publish_for("2", 16, &file);
    assert!(said.contains("did not answer"), "{said}");
    fs::write(&file, "no wish").unwrap();
    carried.publish(2, &file);
    assert_eq!(carried.ran(), 0);
    // A bus that nobody is on.
    let file = carried.sign(&["restart", "web"]);
    carried.machine.exits(0, &["down"]);
    assert!(carried.publish(5, &file).contains("nobody listens"));
}

#[test]
fn a_signed_wish_goes_to_a_file_and_never_to_a_terminal_and_lives_no_longer_than_nodes_take_it() {
    let machine = Machine::new();
    machine.service("web", WEB);
    machine.exits(0, &["up", "-d"]);
    let signed = machine.json(&["sign", "--for", "10m", "restart", "web"]);
    assert_eq!(signed["expires_in_ms"], 600_000);
    let line = machine.smgr(&["sign", "--base64", "restart", "web"]);
    let note = String::from_utf8(line.stderr).unwrap();
    assert!(note.contains("not sent: restart web on") && note.contains("within 120s"), "{note}");
    assert!(line.stdout.is_ascii());
    for (code, line) in [
        (2, "sign --for 16m restart web"),
        (2, "sign --for 0s restart web"),
        (2, "sign restart web/0"),
        (4, "sign restart web --node n99"),
        (2, "sign"),
    ] {
        machine.exits(code, &line.split(' ').collect::<Vec<_>>());
    }
    // `script` gives its child a terminal.
    let line = format!("{} sign restart web", env!("CARGO_BIN_EXE_smgr"));
    let ran = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("SMGR_STATE", machine.state())
        .output();
    if let Ok(ran) = ran {
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(ran.status.code() == Some(2) && said.contains("stdout is a terminal"), "{said}");
    }
}
