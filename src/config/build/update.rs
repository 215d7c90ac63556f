//! How one run follows another: what has to hold for a new run to begin beside the old one.
//!
//! An answer that the old run may have given says nothing of the new one. So whatever tells that a new run is ready has to
//! be its own: a word on its notify socket or descriptor, or the answer at a place that no other run has.

use super::Builder;
use crate::domain::spec::{Kind, ReadyBy, Update, UpdateMethod};
use crate::domain::template::{Piece, Template};

const METHOD: [&str; 2] = ["update", "method"];

pub(super) fn update(builder: &mut Builder<'_>, kind: Kind, ready: &ReadyBy) -> Update {
    let update = Update { method: builder.merged.choice(&METHOD) };
    if update.method == UpdateMethod::Restart {
        return update;
    }
    if kind != Kind::Daemon {
        let label = "only a daemon serves on while its next run begins".to_owned();
        builder.contradiction(&METHOD, label, "kind = \"daemon\", or method = \"restart\"");
    }
    sign_of_its_own(builder, ready);
    for name in builder.merged.names(&["health"]) {
        place_of_its_own(builder, &name);
    }
    for name in builder.merged.names(&["socket"]) {
        socket_for_each_run(builder, &name);
    }
    update
}

fn sign_of_its_own(builder: &mut Builder<'_>, ready: &ReadyBy) {
    let merged = builder.merged;
    let names = merged.names(&["health"]);
    let is_checked = names
        .iter()
        .any(|name| merged.text(&["health", name, "on_failure"]).as_deref() != Some("report"));
    let label = match ready {
        ReadyBy::Notify | ReadyBy::Fd(_) | ReadyBy::Health => return,
        ReadyBy::Started if is_checked => return,
        ReadyBy::Started => "nothing says that a new run is ready to take over",
        ReadyBy::Log(_) => "the lines of both runs come in together, so none says which is ready",
    };
    let hint = "ready.by = \"notify\", \"fd\" or \"health\"";
    if merged.is_set(&["ready", "by"]) {
        builder.contradiction(&["ready", "by"], label.to_owned(), hint);
    } else {
        builder.contradiction(&METHOD, label.to_owned(), hint);
    }
}

fn place_of_its_own(builder: &mut Builder<'_>, name: &str) {
    let merged = builder.merged;
    if let Some(socket) = merged.text(&["health", name, "socket"]) {
        let is_own = merged.bool(&["socket", &socket, "per_instance"]);
        if merged.text(&["socket", &socket, "listen"]).is_some() && !is_own {
            let label = format!("old and new run share [socket.{socket}]: either may answer");
            let hint = "a socket with per_instance = true and ${runtime} in `listen`";
            builder.contradiction(&["health", name, "socket"], label, hint);
        }
        return;
    }
    for key in ["address", "url"] {
        let Some(text) = merged.text(&["health", name, key]) else { continue };
        if !names_run(&Template::new(text)) {
            let label = "old and new run would be asked at one place: either may answer".to_owned();
            let hint = "use ${runtime} or ${run}, or a socket with per_instance = true";
            builder.contradiction(&["health", name, key], label, hint);
        }
    }
}

fn socket_for_each_run(builder: &mut Builder<'_>, name: &str) {
    let merged = builder.merged;
    let Some(listen) = merged.text(&["socket", name, "listen"]) else { return };
    if merged.bool(&["socket", name, "per_instance"]) && !names_run(&Template::new(listen)) {
        let label = "old and new run cannot both listen at one address".to_owned();
        let hint = "put ${runtime} or ${run} into `listen`, or take `per_instance` out";
        builder.contradiction(&["socket", name, "listen"], label, hint);
    }
}

/// Says whether a text is another one for each run.
fn names_run(text: &Template) -> bool {
    let pieces = text.pieces().unwrap_or_default();
    pieces.iter().any(|(_, piece)| [Piece::Name("run"), Piece::Name("runtime")].contains(piece))
}
