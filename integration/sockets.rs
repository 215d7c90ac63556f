//! Listening sockets that outlive the runs behind them.

use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::support::machine::{Machine, python};
use crate::support::process::kill_9;
use crate::support::wait::eventually;

/// A server of what it was given: says to each caller which process it is and what it knows of its sockets.
const SERVER: &str = r#"
import os, selectors, socket
count = int(os.environ["LISTEN_FDS"])
names = os.environ["LISTEN_FDNAMES"].split(":")
assert os.environ["LISTEN_PID"] == str(os.getpid())
chosen = selectors.DefaultSelector()
for number, name in zip(range(3, 3 + count), names):
    chosen.register(socket.socket(fileno=number), selectors.EVENT_READ, name)
while True:
    for key, _ in chosen.select():
        caller, _ = key.fileobj.accept()
        with caller:
            caller.sendall(f"{os.getpid()} {key.data} {count}".encode())
"#;

fn server(folder: &Path, rest: &str) -> String {
    let script = folder.join("server.py");
    fs::write(&script, SERVER).unwrap();
    format!("exec = [\"{}\", \"{}\"]\n{rest}", python(), script.display())
}

/// Returns a port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Asks the server; whoever answers, it answers.
fn ask(port: u16) -> String {
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn listening(port: u16) -> String {
    format!("[socket.http]\nlisten = \"tcp:127.0.0.1:{port}\"\n")
}

#[test]
fn nobody_is_refused_while_a_service_is_started_again() {
    let machine = Machine::new();
    let port = free_port();
    // Each run takes its time, so that callers do come while there is none.
    let slow = format!("[restart]\ndelay = \"300ms\"\nmax_delay = \"300ms\"\n{}", listening(port));
    machine.service("web", &server(machine.folder(), &slow));
    machine.exits(0, &["up", "-d"]);
    let first = machine.ready("web");
    assert_eq!(ask(port), format!("{first} http 1"));
    let mut before = first;
    for _ in 0..3 {
        kill_9(before);
        let now = machine.ready_but("web", Some(before));
        assert_eq!(ask(port), format!("{now} http 1"));
        before = now;
    }
    // Without waiting for the next run: the caller waits instead.
    kill_9(before);
    let answer = ask(port);
    assert!(answer.ends_with(" http 1") && !answer.starts_with(&format!("{before} ")), "{answer}");
}

#[test]
fn a_socket_outlives_the_parts_that_hold_it_and_not_the_service() {
    let machine = Machine::new();
    let port = free_port();
    machine.service("web", &server(machine.folder(), &listening(port)));
    machine.exits(0, &["up", "-d"]);
    let first = machine.ready("web");
    for parts in [&["keeper"][..], &["agent"], &["keeper", "agent"]] {
        let pids: Vec<u32> = parts.iter().map(|part| machine.part(part)).collect();
        pids.iter().copied().for_each(kill_9);
        eventually("the parts are back", || {
            let back = parts.iter().zip(&pids).all(|(part, pid)| machine.part(part) != *pid);
            back.then_some(())
        });
    }
    assert_eq!(machine.ready("web"), first);
    kill_9(first);
    let second = machine.ready_but("web", Some(first));
    assert_eq!(ask(port), format!("{second} http 1"));
    machine.exits(0, &["stop", "web"]);
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    eventually("nobody waits at a stopped service", || {
        TcpStream::connect(at).is_err().then_some(())
    });
    machine.exits(0, &["start", "web"]);
    let third = machine.ready("web");
    assert_eq!(ask(port), format!("{third} http 1"));
    fs::remove_file(machine.state().join("config/services.d/web.toml")).unwrap();
    machine.exits(0, &["apply"]);
    eventually("the socket is closed", || TcpStream::connect(at).is_err().then_some(()));
}

#[test]
fn a_socket_follows_its_spec() {
    let machine = Machine::new();
    let (first, second) = (free_port(), free_port());
    machine.service("web", &server(machine.folder(), &listening(first)));
    machine.exits(0, &["up", "-d"]);
    let before = machine.ready("web");
    machine.service("web", &server(machine.folder(), &listening(second)));
    machine.exits(0, &["apply"]);
    let after = machine.ready_but("web", Some(before));
    assert_eq!(ask(second), format!("{after} http 1"));
    let old = SocketAddr::from(([127, 0, 0, 1], first));
    eventually("the old address is free", || TcpStream::connect(old).is_err().then_some(()));
    // Another name, the same address.
    machine.service("web", &server(machine.folder(), &listening(second).replace("http", "web")));
    machine.exits(0, &["apply"]);
    let renamed = machine.ready_but("web", Some(after));
    assert_eq!(ask(second), format!("{renamed} web 1"));
    assert_eq!(machine.instance("web")["restarts"], 0);
}

#[test]
fn each_instance_may_have_a_socket_of_its_own_beside_one_that_all_share() {
    let machine = Machine::new();
    let port = free_port();
    let rest = format!(
        "instances = 2\n{}\
         [socket.admin]\nlisten = \"unix:{}/admin-${{instance}}.sock\"\nper_instance = true\nmode = \"0640\"\n",
        listening(port),
        machine.folder().display()
    );
    machine.service("web", &server(machine.folder(), &rest));
    machine.exits(0, &["up", "-d"]);
    let mut pids = Vec::new();
    for index in 0..2 {
        let path = machine.folder().join(format!("admin-{index}.sock"));
        let mut stream = eventually("the socket is there", || UnixStream::connect(&path).ok());
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (pid, rest) = answer.split_once(' ').unwrap();
        assert_eq!(rest, "admin 2");
        pids.push(pid.to_owned());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }
    assert_ne!(pids[0], pids[1]);
    let answer = ask(port);
    assert!(pids.iter().any(|pid| answer == format!("{pid} http 2")), "{answer}");
}

#[test]
fn an_address_that_is_taken_is_said_and_tried_again() {
    let machine = Machine::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    machine.service("web", &server(machine.folder(), &listening(port)));
    machine.smgr(&["up", "-d"]);
    let why = eventually("the start fails", || {
        let events = machine.events();
        let failed = events.iter().find(|event| event["type"] == "instance.start_failed")?;
        Some(failed["summary"].to_string())
    });
    assert!(why.contains("open the sockets") && why.contains("in use"), "{why}");
    drop(other);
    let pid = machine.ready("web");
    assert_eq!(ask(port), format!("{pid} http 1"));
}

#[test]
fn a_socket_that_cannot_be_is_refused_with_its_place() {
    let machine = Machine::new();
    let refused = |socket: &str, wanted: &str| {
        machine.service("web", &format!("exec = [\"/bin/true\"]\n{socket}"));
        let said = machine.exits(8, &["check"]);
        assert!(said.contains(wanted), "{socket}: {said}");
    };
    refused("[socket.http]\nbacklog = 1\n", "needs `listen`");
    refused("[socket.http]\nlisten = \"8080\"\n", "begins with none of tcp:, udp: and unix:");
    refused("[socket.http]\nlisten = \"tcp:localhost:80\"\n", "IP address");
    refused("[socket.http]\nlisten = \"unix:admin.sock\"\n", "no absolute path");
    refused("[socket.\"a:b\"]\nlisten = \"tcp:127.0.0.1:1\"\n", "names are");
    refused("[socket.a]\nlisten = \"unix:${runtime}/a\"\n", "per_instance = true");
    refused(
        "instances = 2\n[socket.a]\nlisten = \"tcp:127.0.0.1:1\"\nper_instance = true\n",
        "cannot each listen at one address",
    );
    refused(
        "[ready]\nby = \"fd\"\nfd = 3\n[socket.a]\nlisten = \"tcp:127.0.0.1:1\"\n",
        "one of the 1 sockets",
    );
}
