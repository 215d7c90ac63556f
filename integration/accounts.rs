//! Started by root, each part of a node has an account of its own.
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::machine::{Machine, is_root};
use crate::support::mounts;
use crate::support::nats;
use crate::support::process::kill_9;
use crate::support::wait::eventually;

const AGENT: u32 = 61_001;
const UPLINK: u32 = 61_002;
const STRANGER: u32 = 61_003;

#[test]
fn each_part_has_its_own_account_and_dies_alone() {
    if !is_root() {
        eprintln!("skipped: only root can become others");
        return;
    }
    if !mounts::has_own() {
        return mounts::again_with_own(
            module_path!(),
            "each_part_has_its_own_account_and_dies_alone",
        );
    }
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    add_accounts(temp.path());
    let state = temp.path().join("state");
    let machine = Machine::at(temp, state);
    machine.file("services.d/web.toml", "user = \"nobody\"\nexec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    let web = machine.ready("web");

    let status = machine.json(&["status"]);
    assert_eq!(status["nodes"][0]["isolation"], "accounts", "{status}");
    // Without a bus there is no uplink; its folder waits for it.
    let parts = [("keeper", 0), ("agent", AGENT)];
    assert_eq!(fs::metadata(machine.state().join("run/uplink")).unwrap().uid(), UPLINK);
    for (part, uid) in parts {
        eventually(part, || (uid_of(machine.part_if_any(part)?) == Some(uid)).then_some(()));
    }
    assert_eq!(uid_of(web), Some(65_534), "the service is nobody");

    let about = |path: &str| {
        let about = fs::metadata(machine.state().join(path)).unwrap();
        (about.uid(), about.mode() & 0o777)
    };
    assert_eq!(about("log"), (AGENT, 0o700));
    assert_eq!(about("keys/node.key"), (AGENT, 0o600));
    assert_eq!(about("keys/local.key"), (0, 0o600));
    assert_eq!(about("keys"), (0, 0o710), "the agent makes no key");
    assert!(!may_list(STRANGER, &machine.state().join("log")), "the log is not for others");
    assert!(!may_list(UPLINK, &machine.state().join("log")), "nor for the uplink");
    assert!(may_list(AGENT, &machine.state().join("log")));

    for (part, uid) in parts {
        let before = machine.part(part);
        kill_9(before);
        eventually(part, || {
            let after = machine.part_if_any(part)?;
            (after != before && uid_of(after) == Some(uid)).then_some(())
        });
        assert_eq!(machine.ready("web"), web, "the service does not notice that the {part} died");
    }
    machine.exits(0, &["restart", "web"]);
    let again = machine.ready_but("web", Some(web));
    assert_eq!(uid_of(again), Some(65_534));
    assert!(machine.events().iter().any(|event| event["type"] == "keeper.started"));
    machine.exits(0, &["audit", "verify"]);
}

#[test]
fn the_bus_of_a_machine_has_the_account_of_the_uplink_and_carries_commands() {
    if !is_root() {
        eprintln!("skipped: only root can become others");
        return;
    }
    if !mounts::has_own() {
        return mounts::again_with_own(
            module_path!(),
            "the_bus_of_a_machine_has_the_account_of_the_uplink_and_carries_commands",
        );
    }
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    add_accounts(temp.path());
    // Where it lies need not be open to others.
    let program = temp.path().join("nats-server");
    fs::copy(nats::program(), &program).unwrap();
    let state = temp.path().join("state");
    let mut machine = Machine::at(temp, state);
    machine.env("SMGR_NATS_SERVER", &program);
    machine.file("services.d/web.toml", "user = \"nobody\"\nexec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    let url = connected(&machine);
    let uplink = || uid_of(machine.part_if_any("uplink")?);
    eventually("the uplink has its account", || (uplink()? == UPLINK).then_some(()));
    let nats = machine.ready("nats");
    assert_eq!(uid_of(nats), Some(UPLINK), "not root, and not who decides");
    assert!(!may_read(STRANGER, &machine.state().join("nats.conf")));
    assert!(!may_list(STRANGER, &machine.state().join("nats")));
    assert!(!may_read(UPLINK, &machine.state().join("keys/node.key")), "the bus signs nothing");
    assert!(!may_read(UPLINK, &machine.state().join("keys/operator.key")));

    let web = machine.ready("web");
    let node = machine.json(&["status"])["nodes"][0]["node"].as_str().unwrap().to_owned();
    machine.exits(0, &["restart", "web", "--bus", &url, "--node", &node]);
    let web = machine.ready_but("web", Some(web));
    for part in [machine.part("uplink"), nats] {
        kill_9(part);
        eventually("the bus carries commands again", || {
            let signal = ["signal", "-s", "CONT", "web", "--bus", &url, "--node", &node];
            machine.smgr(&signal).status.success().then_some(())
        });
    }
    assert_eq!(uid_of(machine.ready_but("nats", Some(nats))), Some(UPLINK));
    assert_eq!(machine.ready("web"), web);

    machine.exits(0, &["down"]);
    machine.exits(0, &["up", "-d"]);
    connected(&machine);
    machine.exits(0, &["audit", "verify"]);
}

#[test]
fn the_key_of_an_encrypted_bus_is_for_its_account_and_that_of_its_authority_for_root_alone() {
    if !is_root() {
        eprintln!("skipped: only root can become others");
        return;
    }
    if !mounts::has_own() {
        return mounts::again_with_own(
            module_path!(),
            "the_key_of_an_encrypted_bus_is_for_its_account_and_that_of_its_authority_for_root_alone",
        );
    }
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    add_accounts(temp.path());
    let program = temp.path().join("nats-server");
    fs::copy(nats::program(), &program).unwrap();
    let state = temp.path().join("state");
    let mut machine = Machine::at(temp, state);
    machine.env("SMGR_NATS_SERVER", &program);
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    // The second node has its parts, with the same accounts, in a folder of its own.
    machine.exits(0, &["up", "--nodes", "2", "--listen", &listen, "-d"]);
    assert_eq!(uid_of(machine.ready("nats")), Some(UPLINK));
    let said = machine.exits(0, &["ping", "--via", "bus"]);
    assert!(said.contains("n1") && said.contains("n2"), "{said}");
    let may = |file: &str| {
        [AGENT, UPLINK, STRANGER].map(|uid| may_read(uid, &machine.state().join(file)))
    };
    assert_eq!(may("keys/bus-ca.key"), [false, false, false]);
    assert_eq!(may("nats.pem"), [false, true, false]);
    assert_eq!(may("bus-ca.pem"), [true, true, true]);
    machine.exits(0, &["down"]);
}

/// Waits until the node is on its bus; returns its address.
fn connected(machine: &Machine) -> String {
    eventually("the node is on its bus", || {
        let bus = machine.json(&["status"])["nodes"][0]["bus"].clone();
        (bus["state"] == "connected").then_some(())
    });
    let setup = fs::read_to_string(machine.state().join("node.json")).unwrap();
    let setup: serde_json::Value = serde_json::from_str(&setup).unwrap();
    setup["bus"]["urls"][0].as_str().unwrap().to_owned()
}

/// Lets this process and what it starts see a machine with two accounts more.
fn add_accounts(folder: &Path) {
    for (file, lines) in [
        (
            "/etc/passwd",
            "smgr:x:61001:61001::/:/bin/false\nsmgr-uplink:x:61002:61002::/:/bin/false\n",
        ),
        ("/etc/group", "smgr:x:61001:\nsmgr-uplink:x:61002:\n"),
    ] {
        let copy = folder.join(Path::new(file).file_name().unwrap());
        let text = fs::read_to_string(file).unwrap();
        let others = text.lines().filter(|line| !line.starts_with("smgr"));
        let text: String =
            others.map(|line| format!("{line}\n")).chain([lines.to_owned()]).collect();
        fs::write(&copy, text).unwrap();
        let mut mount = Command::new("mount");
        assert!(mount.arg("--bind").arg(&copy).arg(file).status().unwrap().success());
    }
}

fn uid_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap());
    let first = numbers.next()?;
    numbers.all(|number: u32| number == first).then_some(first)
}

fn may_read(uid: u32, file: &Path) -> bool {
    assert!(file.exists(), "{}", file.display());
    let mut cat = Command::new("/bin/cat");
    cat.arg(file).uid(uid).gid(uid).stdout(Stdio::null()).stderr(Stdio::null());
    cat.status().unwrap().success()
}

fn may_list(uid: u32, folder: &Path) -> bool {
    let mut list = Command::new("/bin/ls");
    list.arg(folder).uid(uid).gid(uid).stdout(Stdio::null()).stderr(Stdio::null());
    list.status().unwrap().success()
}
