//! The example that the demo supervises: it must be a service as one would write it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn it_is_ready_when_it_says_so_and_ends_in_good_order() {
    let mut shop = Shop::start();
    assert!(shop.get("/page?zone=img&key=cat").contains("X-Cache: miss"));
    assert!(shop.get("/page?zone=img&key=cat").contains("X-Cache: hit"));
    shop.signal(Signal::TERM);
    assert_eq!(shop.notified(), "STOPPING=1");
    assert_eq!(shop.child.wait().unwrap().code(), Some(0));
}

#[test]
fn its_action_clears_one_zone_and_is_counted_once() {
    let shop = Shop::start();
    shop.get("/page?zone=img&key=cat");
    shop.get("/page?zone=css&key=cat");
    let cleared = shop.cachectl(&["clear", "--zone", "img"]);
    assert!(cleared.status.success(), "{cleared:?}");
    assert!(shop.get("/page?zone=img&key=cat").contains("X-Cache: miss"));
    assert!(shop.get("/page?zone=css&key=cat").contains("X-Cache: hit"));
    assert_eq!(shop.executed("clear"), 1);
    assert_eq!(shop.executed("start"), 1);
}

#[test]
fn it_crashes_with_the_code_that_it_was_asked_for() {
    let mut shop = Shop::start();
    assert!(shop.request("POST", "/crash?code=3").contains("202"));
    assert_eq!(shop.child.wait().unwrap().code(), Some(3));
    assert_eq!(shop.cachectl(&["clear"]).status.code(), Some(1), "nobody is there to be asked");
}

struct Shop {
    child: Child,
    port: u16,
    supervisor: UnixDatagram,
    state: TempDir,
}

impl Shop {
    /// Starts it as a supervisor would, and waits until it is ready.
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        // The name of an abstract socket, as unique as that of the folder.
        let name = state.path().to_str().unwrap();
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let supervisor = UnixDatagram::bind_addr(&address).unwrap();
        supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = free_port();
        let child = Command::new("python3")
            .arg(example().join("server.py"))
            .args(["--port", &port.to_string(), "--state"])
            .arg(state.path())
            .env("NOTIFY_SOCKET", format!("@{name}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let shop = Self { child, port, supervisor, state };
        assert!(shop.notified().starts_with("READY=1"));
        shop
    }

    fn notified(&self) -> String {
        let mut buffer = [0; 256];
        let bytes = self.supervisor.recv(&mut buffer).expect("the shop does not say how it is");
        String::from_utf8(buffer[..bytes].to_vec()).unwrap()
    }

    fn get(&self, path: &str) -> String {
        self.request("GET", path)
    }

    fn request(&self, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        let _reset_by_a_crash = stream.read_to_string(&mut answer);
        answer
    }

    fn cachectl(&self, arguments: &[&str]) -> Output {
        Command::new("python3")
            .arg(example().join("cachectl.py"))
            .args(["--port", &self.port.to_string()])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Returns how often it did something, as it recorded itself.
    fn executed(&self, what: &str) -> usize {
        let record = std::fs::read_to_string(self.state.path().join("executions.jsonl")).unwrap();
        record.lines().filter(|line| line.contains(&format!("\"what\": \"{what}\""))).count()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _already_dead = self.child.kill();
        self.child.wait().unwrap();
    }
}

fn example() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shop"))
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
