//! Machines that reach each other by cables of their own: network namespaces and a switch, all of which end with the test.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::wait::wait_until;

/// A namespace, held by a process that does nothing else.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "3600"]).spawn().unwrap();
        let namespace = Self { holder };
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        wait_until("it has a network of its own", || {
            fs::read_link(namespace.path()).is_ok_and(|it| it != own)
        });
        namespace.ip("link set lo up");
        namespace
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    fn ip(&self, line: &str) {
        let ran = Command::new("nsenter")
            .arg(format!("--net={}", self.path().display()))
            .arg("ip")
            .args(line.split(' '))
            .output()
            .unwrap();
        assert!(ran.status.success(), "ip {line}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// Machines at one switch, numbered from 1.
pub(crate) struct Network {
    switch: Namespace,
    machines: Vec<Namespace>,
}

impl Network {
    /// Says whether this user may make one, and why not.
    pub(crate) fn may_be_made() -> Result<(), &'static str> {
        let ran =
            Command::new("unshare").args(["--net", "ip", "link", "add", "type", "veth"]).output();
        match ran {
            Ok(ran) if ran.status.success() => Ok(()),
            Ok(_) => Err("this user may make no network namespace"),
            Err(_) => Err("unshare or ip is not installed"),
        }
    }

    pub(crate) fn of(machines: u8) -> Self {
        let switch = Namespace::new();
        switch.ip("link add switch type bridge");
        switch.ip("link set switch up");
        let plug = |number: u8| {
            let machine = Namespace::new();
            let pid = machine.holder.id();
            switch.ip(&format!("link add port{number} type veth peer name eth0 netns {pid}"));
            switch.ip(&format!("link set port{number} master switch up"));
            machine.ip(&format!("addr add {}/24 dev eth0", Self::address(number)));
            machine.ip("link set eth0 up");
            machine
        };
        let machines = (1..=machines).map(plug).collect();
        Self { switch, machines }
    }

    pub(crate) fn address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, number)
    }

    /// Returns the namespace of a machine.
    pub(crate) fn path(&self, number: u8) -> PathBuf {
        self.machines[usize::from(number) - 1].path()
    }

    /// Pulls the cable of a machine, or plugs it in again.
    pub(crate) fn plug(&self, number: u8, is_in: bool) {
        self.switch.ip(&format!("link set port{number} {}", if is_in { "up" } else { "down" }));
    }
}

/// Lets the calling thread see the network of a machine from here on, and no other thread.
pub(crate) fn enter(network: &PathBuf) {
    use std::os::fd::AsFd as _;
    let file = fs::File::open(network).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}
