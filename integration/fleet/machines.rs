//! Nodes on other machines: taken in by two messages, and let go.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;

use serde_json::{Value, json};
use smgr::domain::id::Digest;
use smgr::domain::policy::{KeyClass, Kind};
use smgr::head::folder::StateFolder;
use smgr::head::keyfile::{KeyName, load_key, load_trust};
use smgr::wire::codec;
use smgr::wire::envelope::{ENVELOPE_BYTES_MAX, seal};
use smgr::wire::key::Signer;
use smgr::wire::payload::{Enrolled, TrustedKey};

use super::Fleet;
use crate::releases::{archive, good, spec};
use crate::support::machine::Machine;
use crate::support::wait::{eventually, wait_until};

/// Gives a command something to read and demands its exit code; returns its stdout and its stderr.
pub(super) fn tell(machine: &Machine, code: i32, line: &[&str], input: &str) -> (String, String) {
    let mut command = machine.command(line);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ran = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&ran.stdout), text(&ran.stderr));
    assert_eq!(ran.status.code(), Some(code), "smgr {line:?}\n{out}{err}");
    (out, err)
}

/// A fleet of one node whose bus others reach.
pub(super) fn open_fleet() -> Fleet {
    let fleet = Fleet::new();
    open(&fleet);
    fleet
}

/// Brings a fleet of one node up whose bus others reach.
pub(super) fn open(fleet: &Fleet) {
    fleet.machine.exits(0, &["up", "--nodes", "1", "--listen", &free_address(), "-d"]);
}

/// Returns an address of this machine at which nobody listens.
pub(super) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Takes a machine in under a name, without starting it.
pub(super) fn enrol(fleet: &Fleet, machine: &Machine, name: &str, labels: &[&str]) {
    let (request, _) = tell(machine, 0, &["node", "request", "--name", name], "");
    let labels: Vec<_> = labels.iter().flat_map(|label| ["--label", label]).collect();
    let line = [&["node", "admit"][..], &labels].concat();
    let (welcome, _) = tell(&fleet.machine, 0, &line, &request);
    let (_, said) = tell(machine, 0, &["node", "join"], &welcome);
    assert!(said.contains(&format!("{name} belongs to the fleet")), "{said}");
}

pub(super) fn nodes(fleet: &Fleet) -> Vec<(String, bool)> {
    let status = fleet.status();
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let of = |node: &Value| {
        let name = node["name"].as_str().or(node["node"].as_str())?.to_owned();
        Some((name, node["reachable"] == true || node["state"] == "ok"))
    };
    nodes.iter().filter_map(of).collect()
}

#[test]
fn a_fleet_of_a_thousand_nodes_hears_of_who_joins_and_who_is_removed() {
    let fleet = open_fleet();
    let web = Machine::new();
    enrol(&fleet, &web, "web-1", &["env=prod"]);
    web.exits(0, &["up", "-d"]);
    wait_until("the controller knows it", || nodes(&fleet).contains(&("web-1".to_owned(), true)));
    // As many others, none of which is there.
    let folder = StateFolder::new(fleet.machine.state());
    let (mut trust, _) = load_trust(&folder).unwrap();
    let root = load_key(&KeyName::Root.path(&folder)).unwrap();
    for n in 0..1_000_u32 {
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        let key = Signer::from_seed(&seed).public();
        let name = format!("shop-{n}");
        trust.keys.push(TrustedKey {
            key: Digest(key.to_bytes()),
            name: name.parse().unwrap(),
            class: KeyClass::Node,
            grants: Vec::new(),
            until: None,
        });
        let labels = [("env".to_owned(), "shop".to_owned())].into();
        trust.nodes.push(Enrolled { node: name.parse().unwrap(), kid: key.kid(), labels });
    }
    trust.version += 1;
    let sealed = seal(Kind::Trust, &codec::encode(&trust), &root);
    assert!(sealed.len() > ENVELOPE_BYTES_MAX, "{} bytes", sealed.len());
    fs::write(folder.trust(), sealed).unwrap();
    let version = |machine: &Machine| {
        let events = machine.events();
        let changed = events.iter().filter(|event| event["type"] == "trust.changed");
        changed.filter_map(|event| event["data"]["version"].as_u64()).max()
    };
    let comes = |version_min: u64| {
        for machine in [&fleet.machine, &web] {
            eventually("both judge by it", || {
                version(machine).filter(|version| *version >= version_min)
            });
        }
    };
    let late = Machine::new();
    enrol(&fleet, &late, "web-2", &["env=prod"]);
    comes(trust.version + 1);
    fleet.machine.exits(0, &["node", "remove", "web-2"]);
    comes(trust.version + 2);
    let pongs = fleet.machine.exits(0, &["ping", "--node", "web-1"]);
    assert!(pongs.contains("web-1"), "{pongs}");
}

#[test]
fn a_machine_joins_by_two_messages_is_deployed_to_and_is_let_go() {
    let fleet = open_fleet();
    let web = Machine::new();
    enrol(&fleet, &web, "web-1", &["env=prod"]);
    let said = web.exits(0, &["up", "-d"]);
    assert!(said.contains("node web-1 of the fleet local"), "{said}");
    wait_until("the controller knows it", || nodes(&fleet).contains(&("web-1".to_owned(), true)));
    let pongs = fleet.machine.exits(0, &["ping"]);
    assert!(pongs.contains("web-1") && pongs.contains("n1"), "{pongs}");

    let (spec, release) = (spec(&fleet.machine, ""), archive(&fleet.machine, "1.0", &good("1")));
    let release = release.display().to_string();
    let deploy = ["deploy", "web", "-f", &spec, "--artifact", &release, "--release-version", "1.0"];
    let said = fleet.machine.exits(0, &[&deploy[..], &["--select", "env=prod"]].concat());
    assert!(said.contains("1.0 on 1 of 1 nodes"), "{said}");
    assert_eq!(web.instance("web")["release"]["version"], "1.0");

    // One that comes later is trusted by those who were there: the controllers bring them the trust.
    let late = Machine::new();
    enrol(&fleet, &late, "web-2", &["env=prod"]);
    late.exits(0, &["up", "-d"]);
    let version = |machine: &Machine| {
        let events = machine.events();
        let changed = events.iter().filter(|event| event["type"] == "trust.changed");
        changed.filter_map(|event| event["data"]["version"].as_u64()).max()
    };
    eventually("the first machine judges by the trust of the second", || {
        let (first, second) = (version(&web)?, version(&late)?);
        (first == second && second >= 3).then_some(())
    });
    web.exits(0, &["replay"]);
    wait_until("the controller knows both", || {
        nodes(&fleet).iter().filter(|(_, reachable)| *reachable).count() == 3
    });
    let next = archive(&fleet.machine, "2.0", &good("2")).display().to_string();
    let deploy = ["deploy", "web", "-f", &spec, "--artifact", &next, "--release-version", "2.0"];
    let said = fleet.machine.exits(0, &[&deploy[..], &["--select", "env=prod"]].concat());
    assert!(said.contains("2.0 on 2 of 2 nodes"), "{said}");

    fleet.machine.exits(0, &["node", "remove", "web-1"]);
    wait_until("the fleet is without it", || {
        let known = nodes(&fleet);
        known.len() == 2 && known.iter().all(|(name, reachable)| name != "web-1" && *reachable)
    });
    // What runs there goes on: only its own machine ends it.
    assert_eq!(web.instance("web")["state"], "running");
    for (machine, folder) in [(&fleet.machine, "c1"), (&web, ""), (&late, "")] {
        machine.exits(0, &["down"]);
        let log = match folder {
            "" => machine.state().to_owned(),
            member => fleet.folder(member),
        };
        machine.exits(0, &["audit", "verify", log.to_str().unwrap()]);
    }
}

fn key_of_bus(request: &str) -> String {
    let request: Value = serde_json::from_str(request).unwrap();
    request["keys"]["bus"].as_str().unwrap().to_owned()
}

#[test]
fn machines_that_are_taken_in_at_once_are_all_there_and_one_that_was_let_go_may_come_back() {
    let fleet = open_fleet();
    let machines: Vec<Machine> = (0..3).map(|_| Machine::new()).collect();
    let ask = |(machine, n): (&Machine, u8)| {
        tell(machine, 0, &["node", "request", "--name", &format!("m{n}")], "").0
    };
    let requests: Vec<String> = machines.iter().zip(1..).map(ask).collect();
    let admit = |request: &String| tell(&fleet.machine, 0, &["node", "admit"], request).0;
    let welcomes: Vec<String> = thread::scope(|scope| {
        let admitting: Vec<_> = requests.iter().map(|it| scope.spawn(|| admit(it))).collect();
        admitting.into_iter().map(|it| it.join().unwrap()).collect()
    });
    for (machine, welcome) in machines.iter().zip(&welcomes) {
        tell(machine, 0, &["node", "join"], welcome);
    }
    fleet.machine.exits(0, &["node", "remove", "m1"]);
    let again = admit(&requests[0]);
    tell(&machines[0], 0, &["node", "join"], &again);
    for machine in &machines {
        machine.exits(0, &["up", "-d"]);
    }
    wait_until("all are heard", || {
        nodes(&fleet).iter().filter(|(_, reachable)| *reachable).count() == 4
    });
    for machine in machines.iter().chain([&fleet.machine]) {
        machine.exits(0, &["down"]);
    }
}

#[test]
fn what_is_no_request_and_no_welcome_changes_nothing() {
    let fleet = open_fleet();
    let web = Machine::new();
    let (request, _) = tell(&web, 0, &["node", "request", "--name", "web-1"], "");
    let again = tell(&web, 0, &["node", "request", "--name", "web-1"], "").0;
    assert_eq!(request, again, "keys are made once");
    let folder = || std::fs::read(fleet.machine.state().join("fleet.json")).unwrap();
    let before = folder();
    let key = |name: &str| {
        let request: Value = serde_json::from_str(&request).unwrap();
        request["keys"][name].as_str().unwrap().to_owned()
    };
    let twice = request.replace(&key("local"), &key("node"));
    let admit = ["node", "admit"];
    for (code, what, input) in [
        (7, "nothing came", String::new()),
        (7, "not a request", "{}".to_owned()),
        (7, "not a request", "hello".to_owned()),
        (7, "does not hold the keys", request.replace("\"bus\":\"U", "\"bus\":\"X")),
        (7, "not a request", request.replace("web-1", "../web")),
        (6, "is the name of somebody", request.replace("web-1", "n1")),
        (6, "is the name of somebody", request.replace("web-1", "root")),
        (7, "does not hold the keys", twice),
    ] {
        let (out, err) = tell(&fleet.machine, code, &admit, &input);
        assert!(err.contains(what) && out.is_empty(), "{input}: {err}");
    }
    assert_eq!(folder(), before);

    let (welcome, _) = tell(&fleet.machine, 0, &admit, &request);
    // The same again is the same; other keys under the name are another machine.
    tell(&fleet.machine, 0, &admit, &request);
    let other = Machine::new();
    let (foreign, _) = tell(&other, 0, &["node", "request", "--name", "web-1"], "");
    let (_, err) = tell(&fleet.machine, 6, &admit, &foreign);
    assert!(err.contains("admitted with other keys"), "{err}");
    let (_, err) = tell(&fleet.machine, 6, &admit, &request.replace("web-1", "web-9"));
    assert!(err.contains("another node's"), "{err}");

    let (_, err) = tell(&other, 7, &["node", "join"], &welcome);
    assert!(err.contains("for another machine"), "{err}");
    let (_, err) =
        tell(&web, 7, &["node", "join"], &welcome.replace("\"trust\":\"", "\"trust\":\"AA"));
    assert!(err.contains("trust"), "{err}");
    assert!(!web.state().join("node.json").exists() && !web.state().join("root.pub").exists());
    tell(&web, 0, &["node", "join"], &welcome);
    let (_, err) = tell(&web, 6, &["node", "request", "--name", "web-2"], "");
    assert!(err.contains("that of web-1"), "{err}");
    assert_eq!(tell(&web, 0, &["node", "request"], "").0, request, "it may ask again");
    // Labels are a later version of the trust, behind which nothing goes back.
    let (later, _) = tell(&fleet.machine, 0, &["node", "admit", "--label", "env=prod"], &request);
    tell(&web, 0, &["node", "join"], &later);
    let (_, err) = tell(&web, 7, &["node", "join"], &welcome);
    assert!(err.contains("follows version"), "{err}");
    // A key of the bus is one user's.
    let bus = fs::read_to_string(fleet.machine.state().join("nats.conf")).unwrap();
    let first = bus.split("nkey: ").nth(1).unwrap().split(',').next().unwrap();
    let third = foreign.replace("web-1", "web-3").replace(&key_of_bus(&foreign), first);
    let (_, err) = tell(&fleet.machine, 6, &admit, &third);
    assert!(err.contains("another node's"), "{err}");
    let (_, err) = tell(&fleet.machine, 2, &["node", "admit", "--url", "bla"], &request);
    assert!(err.contains("not the address of a bus"), "{err}");

    let alone = Machine::new();
    let (_, err) = tell(&alone, 4, &admit, &request);
    assert!(err.contains("no fleet on this machine"), "{err}");
    let (_, err) = tell(&fleet.machine, 4, &["node", "remove", "web-7"], "");
    assert!(err.contains("there are: web-1"), "{err}");
}

/// Returns the message with each of its members left out, doubled and replaced by what it does not take, and cut short.
fn mutilated(message: &str) -> Vec<String> {
    let whole: Value = serde_json::from_str(message).unwrap();
    let mut places = vec![String::new()];
    let mut next = 0;
    while let Some(place) = places.get(next).cloned() {
        let members = whole.pointer(&place).and_then(Value::as_object);
        let inside = members.into_iter().flatten().map(|(name, _)| format!("{place}/{name}"));
        places.extend(inside.collect::<Vec<_>>());
        next += 1;
    }
    let deep = (0..200).fold(json!("x"), |inner, _| json!([inner]));
    let wrong = [json!(null), json!(7), json!(""), json!([]), json!([7]), json!({"x": 1}), deep];
    let mut all = Vec::new();
    for place in places.iter().filter(|place| !place.is_empty()) {
        for wrong in &wrong {
            let mut other = whole.clone();
            *other.pointer_mut(place).unwrap() = wrong.clone();
            all.push(other.to_string());
        }
        let (block, name) = place.rsplit_once('/').unwrap();
        let mut without = whole.clone();
        let members = without.pointer_mut(block).unwrap().as_object_mut().unwrap();
        let member = members.remove(name).unwrap();
        all.push(without.to_string());
        let members = without.pointer_mut(block).unwrap().as_object_mut().unwrap();
        members.insert(format!("{name}s"), member);
        all.push(without.to_string());
    }
    let lengths = (1..12).map(|part| message.trim().len() * part / 12);
    all.extend(lengths.map(|length| message[..length].to_owned()));
    let twice = message.trim();
    all.extend([format!("{twice}{twice}"), format!("[{twice}]"), "[".repeat(10_000)]);
    all
}

#[test]
fn a_request_or_a_welcome_in_pieces_is_one_clear_error_and_changes_nothing() {
    let fleet = open_fleet();
    let web = Machine::new();
    let (request, _) = tell(&web, 0, &["node", "request", "--name", "web-1"], "");
    let refused = |machine: &Machine, line: &[&str], input: &str| {
        let (out, err) = tell(machine, 7, line, input);
        let errors = err.lines().filter(|line| line.starts_with("error: ")).count();
        assert!(out.is_empty() && errors == 1 && err.len() < 2_000, "{input}: {out}{err}");
    };
    let folder = StateFolder::new(fleet.machine.state());
    let files = || {
        [folder.trust(), folder.root().join("fleet.json"), folder.root().join("nats.conf")]
            .map(|path| fs::read(path).unwrap())
    };
    let before = files();
    for message in mutilated(&request) {
        refused(&fleet.machine, &["node", "admit"], &message);
    }
    assert!(files() == before, "nobody was admitted");
    let (welcome, _) = tell(&fleet.machine, 0, &["node", "admit"], &request);
    for message in mutilated(&welcome) {
        refused(&web, &["node", "join"], &message);
        let joined = ["node.json", "trust.smgr", "root.pub"].map(|it| web.state().join(it));
        assert!(joined.iter().all(|path| !path.exists()), "{message}");
    }
    tell(&web, 0, &["node", "join"], &welcome);
}
