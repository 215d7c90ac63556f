//! The keys of the node's own file.

use super::Default::{None, Required, Toml};
use super::Kind::{Duration, Integer, Other, Path, Size, Template, Text, Texts};
use super::{Choice, Default, Key, Kind, Status};

const fn served(path: &'static str, kind: Kind, default: Default, doc: &'static str) -> Key {
    Key { path, kind, default, doc, status: Status::Served }
}

const fn reserved(path: &'static str, kind: Kind, default: Default, doc: &'static str) -> Key {
    Key { path, kind, default, doc, status: Status::Reserved }
}

/// Every key of `/etc/smgr/smgr.toml`, in the order of the documentation.
pub const NODE: &[Key] = &[
    served(
        "node.id",
        Template,
        Toml("\"${hostname}\""),
        "Its name, unique in the fleet; ${hostname} is the first label in lower case",
    ),
    served("history.dir", Path, Toml("\"/var/lib/smgr/log\""), "Where the event log lies"),
    served(
        "history.retain",
        Duration,
        Toml("\"90d\""),
        "How long; whole sealed segments, oldest first",
    ),
    served("history.max_size", Size, Toml("\"1GiB\""), "How much; at least two segments are kept"),
    served(
        "history.reserve",
        Size,
        Toml("\"32MiB\""),
        "Preallocated, and released on a full disk so that transitions still fit",
    ),
    served(
        "history.on_full",
        Kind::Choice(&[
            Choice { name: "supervise", status: Status::Served },
            Choice { name: "hold", status: Status::Reserved },
        ]),
        Toml("\"supervise\""),
        "On a full disk restarts and stops go on and are marked late",
    ),
    reserved(
        "history.unsent_max",
        Size,
        Toml("\"512MiB\""),
        "How much may wait for the controller's receipt",
    ),
    served(
        "agent.services_max",
        Integer(1, 100_000),
        Toml("5000"),
        "How many services there may be",
    ),
    reserved("agent.memory_max", Size, Toml("\"64MiB\""), "How much memory the agent may use"),
    served(
        "agent.oom_score_adjust",
        Integer(-1000, 1000),
        Toml("-900"),
        "For smgr's own parts; reset in every service",
    ),
    served("bus.urls", Texts, Toml("[]"), "NATS servers; empty is no bus: this machine only"),
    reserved("metrics.listen", Text, Toml("\"\""), "Where metrics are served"),
    reserved(
        "receiver.*.kind",
        Other("alertmanager, webhook, exec"),
        Required,
        "How alerts are sent",
    ),
    reserved("receiver.*.url", Text, None, "Where alerts are sent"),
    reserved("receiver.*.exec", Kind::Argv, None, "What alerts are given to"),
    reserved("receiver.*.enabled", Kind::Bool, Toml("true"), "False switches it off"),
];
