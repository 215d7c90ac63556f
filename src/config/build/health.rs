//! The health checks of a service: what one key alone cannot say about them.

use std::collections::BTreeMap;

use super::Builder;
use crate::domain::code::Code;
use crate::domain::id::CheckName;
use crate::domain::spec::{Health, Millis, OnFailure, Probe, Target};
use crate::domain::template::{Piece, Template};

/// How many checks a service may have: each is a part of the folded state of each instance.
const CHECKS_MAX: usize = 16;

/// The shortest interval and timeout.
const SHORTEST: Millis = Millis(10);

/// The longest timeout: a check that takes longer says nothing in time.
const TIMEOUT_MAX: Millis = Millis::from_secs(60);

/// Why a connection alone is no check of such a socket.
const HELD: &str = "smgr holds this socket open, so a connection alone says nothing of a run";

pub(super) fn checks(builder: &mut Builder<'_>) -> BTreeMap<CheckName, Health> {
    let merged = builder.merged;
    let names = merged.names(&["health"]);
    if names.len() > CHECKS_MAX {
        let label = format!("more than {CHECKS_MAX} checks");
        let mistake = builder.place(&["health"]).mistake(Code::TOO_MANY, label);
        builder.mistakes.push(mistake.hint("let the service look at its parts, and ask it once"));
        return BTreeMap::new();
    }
    let mut all = BTreeMap::new();
    for name in &names {
        if let (Some(health), Ok(name)) = (check(builder, name), name.parse()) {
            all.insert(name, health);
        }
    }
    let makes_ready =
        |name: &String| merged.text(&["health", name, "on_failure"]).as_deref() != Some("report");
    if merged.text(&["ready", "by"]).as_deref() == Some("health")
        && !names.iter().any(makes_ready)
        && !merged.was_refused(&[], "health")
    {
        let label = "no check says when it is ready".to_owned();
        let hint = "add [health.app] with kind = \"tcp\" and address = \"127.0.0.1:8080\"";
        builder.contradiction(&["ready", "by"], label, hint);
    }
    all
}

fn check(builder: &mut Builder<'_>, name: &str) -> Option<Health> {
    let merged = builder.merged;
    let at = |key: &'static str| ["health", name, key];
    if !merged.is_set(&at("kind")) {
        builder.missing(&["health", name], "kind", "\"http\"");
    }
    let kind = merged.text(&at("kind"))?;
    let strangers: &[_] = match kind.as_str() {
        "http" => &[("exec", "exec")],
        "exec" => &[
            ("socket", "http"),
            ("address", "tcp"),
            ("url", "http"),
            ("path", "http"),
            ("expect_status", "http"),
        ],
        _ => &[("url", "http"), ("path", "http"), ("expect_status", "http"), ("exec", "exec")],
    };
    for (key, of) in strangers.iter().filter(|(key, _)| merged.is_set(&at(key))) {
        let label = match *key {
            "address" => format!("a program is not asked at an address, and kind is \"{kind}\""),
            _ => format!("`{key}` is only for kind = \"{of}\", and kind is \"{kind}\""),
        };
        let hint = format!("kind = \"{of}\", or take `{key}` out");
        builder.contradiction(&at(key), label, &hint);
    }
    if !["http", "exec"].contains(&kind.as_str()) && merged.is_set(&at("socket")) {
        builder.contradiction(&at("socket"), HELD.to_owned(), "kind = \"http\"");
        return None;
    }
    let probe = match kind.as_str() {
        "http" => http(builder, name)?,
        "exec" => match merged.templates(&at("exec")) {
            Some(exec) => Probe::Exec { exec },
            None => {
                builder.missing(&["health", name], "exec", "[\"/usr/bin/pg_isready\"]");
                return None;
            }
        },
        _ => {
            if !merged.is_set(&at("address")) {
                let example =
                    if kind == "unix" { "\"/run/web.sock\"" } else { "\"127.0.0.1:8080\"" };
                builder.missing(&["health", name], "address", example);
            }
            let address = merged.text(&at("address"))?;
            let is_path = address.starts_with('/') || address.starts_with("${runtime}");
            match (kind.as_str(), is_path) {
                ("unix", true) => Probe::Unix { path: Template::new(address) },
                ("unix", false) => {
                    let mistake = builder.place(&at("address"));
                    let mistake = mistake.mistake(Code::BAD_PATH, "not an absolute path");
                    builder.mistakes.push(mistake.hint("start it with `/` or `${runtime}`"));
                    return None;
                }
                (_, true) => {
                    let label = "a path is an address for kind = \"unix\" or \"http\"".to_owned();
                    builder.contradiction(&at("address"), label, "kind = \"unix\"");
                    return None;
                }
                (_, false) => Probe::Tcp { address: Template::new(address) },
            }
        }
    };
    // Where a socket listens is checked there.
    if let Some(place) = probe.address().filter(|_| !merged.is_set(&at("socket"))) {
        let key = if merged.is_set(&at("address")) { "address" } else { "url" };
        address(builder, &at(key), place);
        if kind != "http" && is_held(builder, place.as_str()) {
            builder.contradiction(&at(key), HELD.to_owned(), "kind = \"http\"");
        }
    }
    let (interval, timeout) = (merged.millis(&at("interval")), merged.millis(&at("timeout")));
    let mut min_interval = merged.millis(&at("min_interval"));
    if !merged.is_set(&at("min_interval")) {
        min_interval = min_interval.min(interval);
    } else if min_interval > interval {
        let label = "`min_interval` is longer than `interval`".to_owned();
        let hint = "the interval goes from `min_interval` up to `interval` and back";
        builder.contradiction(&at("min_interval"), label, hint);
    }
    for (key, length) in
        [("interval", interval), ("min_interval", min_interval), ("timeout", timeout)]
    {
        if merged.is_set(&at(key)) && length < SHORTEST {
            out_of_range(builder, &at(key), format!("`{key}` is at least {}ms", SHORTEST.0));
        }
    }
    if timeout > TIMEOUT_MAX {
        let label = format!("`timeout` is at most {}s", TIMEOUT_MAX.0 / 1000);
        out_of_range(builder, &at("timeout"), label);
    }
    Some(Health {
        probe,
        interval,
        min_interval,
        timeout,
        failures: merged.integer(&at("failures")),
        successes: merged.integer(&at("successes")),
        on_failure: merged.choice::<OnFailure>(&at("on_failure")),
    })
}

fn out_of_range(builder: &mut Builder<'_>, path: &[&str], label: String) {
    let mistake = builder.place(path).mistake(Code::OUT_OF_RANGE, label);
    builder.mistakes.push(mistake.hint("write a length of time such as \"1s\""));
}

fn http(builder: &mut Builder<'_>, name: &str) -> Option<Probe> {
    let merged = builder.merged;
    let at = |key: &'static str| ["health", name, key];
    let socket = match merged.text(&at("socket")) {
        Some(socket) => Some(of_socket(builder, name, &socket)?),
        None => None,
    };
    if let (Some(_), Some(key)) =
        (&socket, ["address", "url"].into_iter().find(|key| merged.is_set(&at(key))))
    {
        let label = "`socket` says already where it is asked".to_owned();
        builder.contradiction(&at(key), label, "take one of the two out");
        return None;
    }
    let (address, url) = (socket.or(merged.text(&at("address"))), merged.text(&at("url")));
    let (address, path) = match (address, url) {
        (Some(_), Some(_)) => {
            let label = "`address` says already where it is asked".to_owned();
            builder.contradiction(&at("url"), label, "take one of the two out");
            return None;
        }
        (None, None) => {
            builder.missing(&["health", name], "url", "\"http://127.0.0.1:8080/readyz\"");
            return None;
        }
        (Some(address), None) => (address, merged.text(&at("path")).unwrap_or_default()),
        (None, Some(url)) => {
            if merged.is_set(&at("path")) {
                let label = "`url` has a path already".to_owned();
                builder.contradiction(&at("path"), label, "take it out, or write `address`");
            }
            let Some(rest) = url.strip_prefix("http://") else {
                let label = match url.starts_with("https://") {
                    true => "https is known, not in this version",
                    false => "it does not begin with `http://`",
                };
                let hint = "http://127.0.0.1:8080/readyz";
                builder.contradiction(&at("url"), label.to_owned(), hint);
                return None;
            };
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
            let port = if has_port { "" } else { ":80" };
            let path = if path.is_empty() { "/" } else { path };
            (format!("{host}{port}"), path.to_owned())
        }
    };
    let key = if merged.is_set(&at("url")) { "url" } else { "path" };
    if !path.starts_with('/') || path.chars().any(|c| !c.is_ascii_graphic()) {
        let label = "a path begins with `/` and has no blanks".to_owned();
        builder.contradiction(&at(key), label, "path = \"/readyz\"");
    }
    if path.contains('$') {
        let label = "names stand for nothing in a path".to_owned();
        builder.contradiction(&at(key), label, "${instance} can be a part of HOST:PORT");
    }
    let range = merged.text(&at("expect_status")).unwrap_or_default();
    let (low, high) = range.split_once('-').unwrap_or((&range, &range));
    let status = |text: &str| match text.parse() {
        Ok(status @ 100..=599) if text.len() == 3 => Some(status),
        _ => None,
    };
    let (Some(status_min), Some(status_max)) = (status(low), status(high)) else {
        let label = "not a status or a range of them".to_owned();
        builder.contradiction(&at("expect_status"), label, "expect_status = \"200-299\"");
        return None;
    };
    if status_min > status_max {
        let label = "the range ends before it begins".to_owned();
        builder.contradiction(&at("expect_status"), label, "expect_status = \"200-299\"");
    }
    Some(Probe::Http { address: Template::new(address), path, status_min, status_max })
}

/// Returns where a socket of the service is reached.
fn of_socket(builder: &mut Builder<'_>, name: &str, socket: &str) -> Option<String> {
    let merged = builder.merged;
    let at = ["health", name, "socket"];
    let Some(listen) = merged.text(&["socket", socket, "listen"]) else {
        let label = format!("there is no [socket.{socket}]");
        builder.contradiction(&at, label, "name a socket of this service, or give an address");
        return None;
    };
    let instances: u16 = merged.integer(&["instances"]);
    if instances > 1 && !merged.bool(&["socket", socket, "per_instance"]) {
        let label = format!("{instances} instances share [socket.{socket}]");
        let hint = "an answer has to be of one instance: a socket with per_instance = true";
        builder.contradiction(&at, label, hint);
    }
    let reached = reached(&listen);
    if reached.is_none() {
        let label = format!("nobody can be asked at `{listen}`");
        builder.contradiction(&at, label, "a socket of kind tcp: or unix:");
    }
    reached
}

/// Returns the address at which one connects to a socket that listens at `listen`.
fn reached(listen: &str) -> Option<String> {
    match listen.split_once(':')? {
        ("unix", path) => Some(path.to_owned()),
        ("tcp", address) => Some(match address.rsplit_once(':')? {
            ("[::]", port) => format!("[::1]:{port}"),
            ("0.0.0.0", port) => format!("127.0.0.1:{port}"),
            _ => address.to_owned(),
        }),
        _ => None,
    }
}

/// Says whether `address` is that of a socket which is held for the service.
fn is_held(builder: &Builder<'_>, address: &str) -> bool {
    let merged = builder.merged;
    let sockets = merged.names(&["socket"]).into_iter();
    let mut held = sockets.filter_map(|name| merged.text(&["socket", &name, "listen"]));
    // A wildcard takes what comes to any address of this machine.
    let port = |text: &str| text.rsplit_once(':').map(|(_, port)| port.to_owned());
    held.any(|listen| {
        let is_wild = listen.starts_with("tcp:[::]:") || listen.starts_with("tcp:0.0.0.0:");
        reached(&listen).is_some_and(|at| {
            at == address || (is_wild && !address.starts_with('/') && port(&at) == port(address))
        })
    })
}

/// Checks where a probe connects to, as far as it is known before a start.
fn address(builder: &mut Builder<'_>, path: &[&str], address: &Template) {
    let pieces = address.pieces().unwrap_or_default();
    let names: Vec<&str> = pieces
        .iter()
        .filter_map(|(_, piece)| match piece {
            Piece::Name(name) => Some(*name),
            Piece::Text(_) => None,
        })
        .collect();
    // Whatever the names stand for, it is a path or a number.
    let expanded = address.expand(|name| match name {
        "runtime" => Some("/run".to_owned()),
        _ => Some("1".to_owned()),
    });
    if let Err(why) = expanded.map_or(Ok(()), |text| Target::parse(&text).map(drop)) {
        let hint = "127.0.0.1:8080, [::1]:8080, localhost:8080, or the path of a Unix socket";
        builder.contradiction(path, why, hint);
    }
    let instances: u16 = builder.merged.integer(&["instances"]);
    if instances > 1 && !names.iter().any(|name| ["instance", "run", "runtime"].contains(name)) {
        let label = format!("{instances} instances would be asked at one place");
        let hint = "an answer has to be of one instance: use ${instance} or ${runtime}";
        builder.contradiction(path, label, hint);
    }
}
