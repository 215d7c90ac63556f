//! Frames that are none, at the sockets of a node: whoever sends them loses the connection, and nobody else notices.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendFlags, send};
use serde::Serialize;
use smgr::ipc::hello::Part;
use smgr::ipc::local::{LocalRequest, RequestId};
use smgr::ipc::place::Place;
use smgr::ipc::uplink::{FromUplink, Ticket};
use smgr::ipc::{frame, socket};

use super::node::{Came, Node, count, hello};
use crate::support::block_on;
use crate::support::machine::Machine;
use crate::support::process::{as_pid, kill_9};
use crate::support::wait::eventually;

#[test]
fn frames_that_are_none_end_their_connection_and_nothing_else() {
    let node = Node::up();
    let parts = ["keeper", "agent", "uplink"];
    let lives = parts.map(|part| node.machine.part(part));
    let before = node.state();
    let place = node.place();
    for path in [place.local_socket(), place.uplink_socket(), place.keeper_socket()] {
        for bytes in frames() {
            let stranger = socket::connect(&path).unwrap();
            say(&stranger, &bytes);
        }
        // One who connects and says nothing, and many at once who leave at once.
        let silent = socket::connect(&path).unwrap();
        for _ in 0..200 {
            drop(socket::connect(&path));
        }
        drop(silent);
    }
    is_cut_off(&place.uplink_socket(), &packed(&FromUplink::Published { ticket: Ticket(1) }));
    is_cut_off(&place.keeper_socket(), &packed(&hello(Part::Uplink)));

    // All is as it was: the same processes, the same state, and every way in is open.
    assert_eq!(parts.map(|part| node.machine.part(part)), lives);
    eventually("the node is on the bus", || {
        let status = node.machine.json(&["status"]);
        (status["nodes"][0]["bus"]["state"] == "connected").then_some(())
    });
    let after = node.state();
    assert_eq!((after.hash, node.events_after(&before)), (before.hash, vec![]));
    block_on(async {
        let alice = node.dial(&node.owner.operator).await;
        for _ in 0..2 {
            let bytes = node.signed(&node.intent(count()));
            assert!(matches!(node.over_the_bus(&alice, &bytes).await, Came::Outcome(_)));
            assert!(matches!(node.over_the_socket(&bytes).await, Came::Outcome(_)));
        }
        assert_eq!(node.counted(), 2);
    });
    let first = node.machine.ready("counter");
    kill_9(first);
    node.machine.ready_but("counter", Some(first));
}

/// What is no first frame of anybody.
#[test]
fn an_agent_that_had_no_descriptor_left_is_spoken_with_again_when_it_has() {
    use rustix::process::{Resource, Rlimit, prlimit};

    let machine = Machine::new();
    machine.service("web", "exec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    let agent = Some(as_pid(machine.part("agent")));
    let limit = |current| Rlimit { current: Some(current), maximum: Some(1024) };
    prlimit(agent, Resource::Nofile, limit(0)).unwrap();
    let path = Place::of(machine.state()).local_socket();
    let unheard = socket::connect(&path).unwrap();
    eventually("it says that it cannot accept", || {
        let said = fs::read_to_string(machine.state().join("run/smgr.log")).unwrap_or_default();
        said.contains("failed to accept").then_some(())
    });
    prlimit(agent, Resource::Nofile, limit(1024)).unwrap();
    machine.ready("web");
    drop(unheard);
}

fn frames() -> Vec<Vec<u8>> {
    vec![
        vec![],
        vec![0],
        vec![0xff; 64],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        [vec![0x91; 5000], vec![0xc0]].concat(),
        vec![0x80; frame::PACKET_BYTES_MAX],
        vec![0x80; frame::PACKET_BYTES_MAX + 1],
        vec![0x80; 150_000],
        packed(&"hello"),
        packed(&hello(Part::Uplink)),
        packed(&LocalRequest::Cancel { id: RequestId(1) }),
        // An array that says it holds four thousand million things.
        vec![0xdd, 0xff, 0xff, 0xff, 0xff],
        vec![0x81, 0xa5, b'h', b'e', b'l', b'l', b'o', 0xdf, 0xff, 0xff, 0xff, 0xff],
    ]
}

fn packed<T: Serialize>(message: &T) -> Vec<u8> {
    frame::encode(message).unwrap()
}

/// The other side may have left already, and the kernel refuses what is larger than the socket takes.
fn say(stranger: &OwnedFd, bytes: &[u8]) {
    if let Err(errno) = send(stranger, bytes, SendFlags::NOSIGNAL) {
        assert!(
            [rustix::io::Errno::PIPE, rustix::io::Errno::MSGSIZE, rustix::io::Errno::CONNRESET]
                .contains(&errno),
            "{errno}"
        );
    }
}

/// Demands that the connection ends after these bytes.
fn is_cut_off(path: &Path, bytes: &[u8]) {
    // The queue of a listener may be full of those who came before.
    let stranger = eventually("the socket is reached", || socket::connect(path).ok());
    say(&stranger, bytes);
    eventually("the connection ends", || {
        socket::wait_readable(std::os::fd::AsFd::as_fd(&stranger), Duration::from_millis(10))
            .unwrap();
        let mut buffer = [0; 4096];
        match rustix::net::recv(&stranger, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => Some(()),
            Ok(_) | Err(_) => None,
        }
    });
}
