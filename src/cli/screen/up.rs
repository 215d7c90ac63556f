//! What `smgr up` says when it begins, and when it ends.

use super::table::{cut, wrapped};
use super::units::{count, span};
use crate::domain::id::{EventId, FleetId, NodeId, ServiceId};
use crate::domain::signal::Signal;
use crate::domain::text::printable;

/// What `smgr up` found and made.
#[derive(Clone, Debug)]
pub struct Banner<'a> {
    /// The program's version.
    pub version: &'a str,
    /// The state folder.
    pub state: &'a str,
    /// Where the keys come from.
    pub keys: Keys,
    /// How the machine stands to a bus.
    pub bus: Bus<'a>,
    /// The node and the fleet, where it belongs to one on other machines.
    pub member: Option<(&'a NodeId, &'a FleetId)>,
    /// How a service is stopped whole.
    pub trees: Trees,
    /// The services and how many instances each has.
    pub services: &'a [(ServiceId, u16)],
    /// How many running services of an earlier `up` were found.
    pub adopted: u64,
    /// From the call to readiness, in milliseconds.
    pub took_ms: u64,
    /// Whether it stays in the foreground.
    pub is_foreground: bool,
}

/// Where the keys come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// They were made just now.
    Made,
    /// They were there.
    Found,
}

/// How the machine stands to a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus<'a> {
    /// No server was found or named.
    Off,
    /// A nats-server runs as a service of ours.
    Ours {
        /// Its version.
        version: &'a str,
        /// Where it listens.
        address: &'a str,
    },
    /// A server that was named.
    Named {
        /// Its address.
        url: &'a str,
        /// Why it is not connected, if it is not.
        away: Option<&'a str>,
    },
}

/// How a service is stopped whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trees {
    /// By a cgroup of its own.
    Cgroup,
    /// By process group.
    ProcessGroup,
}

/// Returns the lines of `smgr up` when it is ready.
pub fn banner_text(banner: &Banner<'_>, width: Option<u16>) -> String {
    let machine = match banner.member {
        Some((node, fleet)) => format!("node {node} of the fleet {fleet}"),
        None => "this machine only".to_owned(),
    };
    let head = [format!("smgr {}", banner.version), machine, format!("state: {}", banner.state)];
    let mut text = wrapped(&head, "   ", 2, width);
    let mut line = |line: &str| {
        text.push_str(&cut(&printable(line), width.map_or(usize::MAX, usize::from)));
        text.push('\n');
    };
    line(&format!("  keys      {}", keys_words(banner.keys)));
    line(&format!("  bus       {}", bus_words(banner.bus)));
    match banner.trees {
        Trees::Cgroup => line("  trees     stopped whole, by cgroup"),
        Trees::ProcessGroup => {
            line("  trees     stopped by process group, and limits are off: no cgroup of our own");
            line("            cure: systemd-run --user --scope -p Delegate=yes smgr up");
        }
    }
    line(&format!("  services  {}", services_words(banner.services)));
    if banner.adopted > 0 {
        line(&format!(
            "  found {}, adopted, none restarted",
            count(banner.adopted, "running service")
        ));
    }
    line(&format!("ready in {}. In another terminal:", span(banner.took_ms)));
    let commands: &[(&str, &str)] = if banner.services.is_empty() {
        &[
            ("smgr run hello -- python3 -m http.server 8000", "supervise any command"),
            ("smgr status", "what runs, what not, why"),
            ("smgr init", "a commented smgr.toml here"),
        ]
    } else {
        &[
            ("smgr status", "what runs, what not, why"),
            ("smgr events --follow", "everything that happens"),
            ("smgr history", "what happened, and on whose authority"),
        ]
    };
    for (command, what) in commands {
        line(&format!("  {command:<49} {what}"));
    }
    line(if banner.is_foreground {
        "Ctrl-C stops all of it.   In the background: smgr up -d, then smgr down"
    } else {
        "It goes on in the background.   See it: smgr attach   End it: smgr down"
    });
    text
}

fn keys_words(keys: Keys) -> &'static str {
    match keys {
        Keys::Made => "made; back them up with: smgr backup",
        Keys::Found => "found",
    }
}

fn bus_words(bus: Bus<'_>) -> String {
    match bus {
        Bus::Off => "off; one machine needs none (smgr help bus)".to_owned(),
        Bus::Ours { version, address } => format!("nats-server {version} on {address}"),
        Bus::Named { url, away: None } => url.to_owned(),
        Bus::Named { url, away: Some(why) } => {
            format!("{url}, not connected: {why}; services do not need it")
        }
    }
}

fn services_words(services: &[(ServiceId, u16)]) -> String {
    if services.is_empty() {
        return "none yet".to_owned();
    }
    let words: Vec<String> = services
        .iter()
        .map(|(service, instances)| match instances {
            1 => service.to_string(),
            many => format!("{service} ({many})"),
        })
        .collect();
    words.join(", ")
}

/// Returns what stands on the line while an instance is being stopped, without an end: [`stopped_words`] follows.
pub fn stopping_words(name: &str, signal: Signal) -> String {
    printable(&format!("stopping {name} ({signal}) … ")).into_owned()
}

/// Returns the rest of the line. `is_killed` says that the whole tree had to be killed.
pub fn stopped_words(took_ms: u64, is_killed: bool) -> String {
    let killed = if is_killed { " (killed: it did not end by itself)" } else { "" };
    format!("stopped in {}{killed}", span(took_ms))
}

/// Returns the last line. `is_verified` says that the log was verified to its head.
pub fn closed_text(head: &EventId, is_verified: bool) -> String {
    let verified = if is_verified { ", verified" } else { ", not verified" };
    format!(
        "history closed at {}/…/{}{verified}. Start again with: smgr up\n",
        head.origin, head.seq
    )
}

/// Returns what a second `smgr up` says.
pub fn already_up_text(pid: u32) -> String {
    format!("already up (pid {pid}): smgr attach, smgr down\n")
}

/// Returns what a fleet on one machine says when it is up; one without any service, what there is to try.
pub fn fleet_text(
    (controllers, nodes): (&[NodeId], &[NodeId]),
    bus: Bus<'_>,
    took_ms: u64,
    is_foreground: bool,
    is_empty: bool,
) -> String {
    let list = |names: &[NodeId]| names.iter().map(NodeId::as_str).collect::<Vec<_>>().join(" ");
    let first = format!(
        "fleet of {} on this machine: {} {}, nodes {}, {}",
        nodes.len(),
        if controllers.len() == 1 { "controller" } else { "controllers" },
        list(controllers),
        list(nodes),
        bus_words(bus)
    );
    let end = if is_foreground { "stop: Ctrl-C" } else { "stop: smgr down" };
    let ready = format!("ready in {}      {end}      look: smgr status", span(took_ms));
    let demo = if is_empty { "try: smgr demo shop\n" } else { "" };
    format!("{}\n{ready}\n{demo}", printable(&first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;
    use crate::domain::text::columns;

    fn banner() -> Banner<'static> {
        Banner {
            version: "0.1.0",
            state: "/home/ana/.local/state/smgr",
            keys: Keys::Made,
            bus: Bus::Off,
            member: None,
            trees: Trees::ProcessGroup,
            services: &[],
            adopted: 0,
            took_ms: 300,
            is_foreground: true,
        }
    }

    #[test]
    fn the_first_start_is_the_one_of_the_contract() {
        let text = banner_text(&banner(), Some(80));
        assert_eq!(
            text,
            "\
smgr 0.1.0   this machine only   state: /home/ana/.local/state/smgr
  keys      made; back them up with: smgr backup
  bus       off; one machine needs none (smgr help bus)
  trees     stopped by process group, and limits are off: no cgroup of our own
            cure: systemd-run --user --scope -p Delegate=yes smgr up
  services  none yet
ready in 0.3s. In another terminal:
  smgr run hello -- python3 -m http.server 8000     supervise any command
  smgr status                                       what runs, what not, why
  smgr init                                         a commented smgr.toml here
Ctrl-C stops all of it.   In the background: smgr up -d, then smgr down
"
        );
        assert!(text.lines().count() <= 24 && text.lines().all(|line| columns(line) <= 80));
    }

    #[test]
    fn a_later_start_says_what_it_found() {
        let services = [("hello".parse().unwrap(), 1), ("web".parse().unwrap(), 2)];
        let text = banner_text(
            &Banner {
                keys: Keys::Found,
                bus: Bus::Ours { version: "2.14.6", address: "127.0.0.1:4222" },
                trees: Trees::Cgroup,
                services: &services,
                adopted: 1,
                is_foreground: false,
                ..banner()
            },
            None,
        );
        assert!(text.contains("  bus       nats-server 2.14.6 on 127.0.0.1:4222\n"), "{text}");
        assert!(text.contains("  services  hello, web (2)\n"), "{text}");
        assert!(text.contains("  found 1 running service, adopted, none restarted\n"), "{text}");
        assert!(text.ends_with("End it: smgr down\n"), "{text}");
    }

    #[test]
    fn the_end_is_the_one_of_the_contract() {
        let line = stopping_words("hello", Signal::TERM) + &stopped_words(20, false);
        assert_eq!(line, "stopping hello (TERM) … stopped in 0.02s");
        assert_eq!(
            closed_text(&sample::event_id(34), true),
            "history closed at n1/…/34, verified. Start again with: smgr up\n"
        );
        assert_eq!(already_up_text(4100), "already up (pid 4100): smgr attach, smgr down\n");
    }
}
