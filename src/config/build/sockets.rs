//! The sockets of a service: what one key alone cannot say about them.

use std::collections::BTreeMap;

use super::Builder;
use crate::config::merge::wrong_kind;
use crate::config::read::Typed;
use crate::domain::code::Code;
use crate::domain::spec::{Address, ReadyBy, SOCKETS_MAX, Socket};
use crate::domain::template::{Piece, Template};

/// The first descriptor of a socket in the process.
const FIRST: u16 = 3;

pub(super) fn sockets(builder: &mut Builder<'_>) -> BTreeMap<String, Socket> {
    let mut all = BTreeMap::new();
    let names = builder.merged.names(&["socket"]);
    if names.len() > SOCKETS_MAX {
        let label = format!("more than {SOCKETS_MAX} sockets");
        let mistake = builder.place(&["socket"]).mistake(Code::TOO_MANY, label);
        builder.mistakes.push(mistake.hint("one socket takes any number of connections"));
        return all;
    }
    for name in names {
        if let Some(socket) = socket(builder, &name) {
            all.insert(name, socket);
        }
    }
    all
}

fn socket(builder: &mut Builder<'_>, name: &str) -> Option<Socket> {
    let merged = builder.merged;
    let at = |key: &'static str| ["socket", name, key];
    let Some(listen) = merged.text(&at("listen")) else {
        builder.missing(&["socket", name], "listen", "\"tcp:127.0.0.1:8080\"");
        return None;
    };
    let Some(Typed::Mode(mode)) = merged.value(&at("mode")) else { wrong_kind(&at("mode"), None) };
    let backlog = merged.integer(&at("backlog"));
    let listen = Template::new(listen);
    // With the shortest values that the names can have: a port may hold one of them.
    let sample = listen.expand(|name| {
        Some(if name == "runtime" { "/runtime".to_owned() } else { "0".to_owned() })
    });
    if let Ok(sample) = sample
        && let Err(why) = sample.parse::<Address>()
    {
        let label = format!("`{}` {why}", listen.as_str());
        let mistake = builder.place(&at("listen")).mistake(Code::BAD_ADDRESS, label);
        builder
            .mistakes
            .push(mistake.hint("tcp:127.0.0.1:8080, udp:[::]:53 or unix:/run/app/http.sock"));
    }
    let pieces = listen.pieces().unwrap_or_default();
    let names = |wanted| pieces.iter().any(|(_, piece)| *piece == Piece::Name(wanted));
    let of_one = ["instance", "run", "runtime"].into_iter().find(|name| names(name));
    let instances: u16 = merged.integer(&["instances"]);
    let per_instance = merged.bool(&at("per_instance"));
    match of_one {
        Some(of_one) if !per_instance => builder.contradiction(
            &at("listen"),
            format!("all instances share this socket, and ${{{of_one}}} differs between them"),
            "per_instance = true",
        ),
        None if per_instance && instances > 1 => builder.contradiction(
            &at("per_instance"),
            format!("{instances} instances cannot each listen at one address"),
            "put ${instance} or ${runtime} into `listen`, or take `per_instance` out",
        ),
        Some(_) | None => {}
    }
    Some(Socket { listen, backlog, per_instance, mode })
}

/// Refuses a readiness descriptor that is the place of a socket.
pub(super) fn refuse_overlap(builder: &mut Builder<'_>, count: usize, ready: &ReadyBy) {
    let end = usize::from(FIRST) + count;
    if let ReadyBy::Fd(number) = ready
        && usize::from(*number) < end
    {
        builder.contradiction(
            &["ready", "fd"],
            format!("descriptor {number} is one of the {count} sockets of the service"),
            &format!("sockets begin at {FIRST}: fd = {end}, or higher"),
        );
    }
}
