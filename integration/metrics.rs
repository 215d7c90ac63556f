//! The figures of one node, by a process beside its agent.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use crate::support::machine::Machine;
use crate::support::process::kill_9;
use crate::support::wait::{eventually, wait_until};

fn scraped(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: n1\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.starts_with("HTTP/1.1 200").then_some(text)
}

#[test]
fn the_figures_of_a_node_are_served_from_one_start_to_the_next_until_nobody_wants_them() {
    let machine = Machine::new();
    machine.service("web", "exec = [\"sleep\", \"1000\"]\n");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    machine.exits(0, &["up", "-d", "--metrics", &port.to_string()]);
    let ready = "service=\"web\"} 1\n";
    let has = |text: &str, name: &str| {
        text.lines().any(|line| line.starts_with(name) && format!("{line}\n").ends_with(ready))
    };
    let text = eventually("web is counted", || {
        scraped(port).filter(|text| has(text, "smgr_instances_ready{"))
    });
    let printed = machine.exits(0, &["metrics"]);
    assert!(has(&printed, "smgr_instances_ready{"), "{printed}");
    let names = |text: &str| {
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&text), names(&printed));

    // Neither end of it is the end of the other.
    let served = machine.ready("metrics");
    kill_9(machine.part("agent"));
    wait_until("the agent is back and asked", || scraped(port).is_some());
    assert_eq!(machine.ready("metrics"), served);
    kill_9(served);
    machine.ready_but("metrics", Some(served));
    wait_until("it is served again", || scraped(port).is_some());

    machine.exits(0, &["down"]);
    assert!(scraped(port).is_none());
    machine.exits(0, &["up", "-d"]);
    wait_until("it is remembered", || scraped(port).is_some());
    machine.exits(0, &["down"]);
    machine.exits(0, &["up", "-d", "--metrics", "off"]);
    machine.exits(4, &["status", "metrics"]);
    assert!(scraped(port).is_none());
    for wrong in ["0", "localhost:1", "70000", "127.0.0.1:0", "on"] {
        let said = machine.exits(2, &["up", "-d", "--metrics", wrong]);
        assert!(said.contains("IP:PORT"), "{said}");
    }
}
