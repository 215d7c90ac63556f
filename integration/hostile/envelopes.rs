//! The table of envelopes that are not obeyed: each has its code, on the bus and at the local socket alike, and none of
//! them changes anything. A stranger on the bus is not even answered, or it could make nodes shout at others.

use std::collections::BTreeMap;

use serde::Serialize;
use smgr::domain::event::Outcome;
use smgr::domain::id::{EventId, Seq};
use smgr::domain::intent::Action;
use smgr::domain::policy::Kind;
use smgr::wire::codec;
use smgr::wire::envelope::seal;
use smgr::wire::key::Signer;
use smgr::wire::payload::{Ask, Audience, Intent, Mode};

use super::node::{Came, Node, count, now, random_id};
use crate::support::block_on;

/// A message, the code that it meets, and whether a trusted key signed it.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    code: &'static str,
    by: By,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Nobody,
    Operator,
    Job,
}

#[test]
fn each_envelope_that_is_not_obeyed_has_its_code_and_changes_nothing() {
    let node = Node::up();
    block_on(async {
        let alice = node.dial(&node.owner.operator).await;
        let job = node.dial(&"job".parse().unwrap()).await;
        let taken = node.intent(count());
        assert!(is_done(&node.over_the_bus(&alice, &node.signed(&taken)).await));
        let mut cases = strangers(&node);
        cases.extend(known(&node, &taken));

        let before = node.state();
        for Case { name, bytes, code, by } in &cases {
            match by {
                By::Nobody => node.meets_silence(&alice, bytes).await,
                By::Operator => refused(&node.over_the_bus(&alice, bytes).await, code, name),
                By::Job => refused(&node.over_the_bus(&job, bytes).await, code, name),
            }
            refused(&node.over_the_socket(bytes).await, code, name);
        }
        assert_eq!(node.counted(), 1);
        let after = node.state();
        assert_eq!(after.hash, before.hash, "nothing that counts was changed");
        let mut rows: BTreeMap<String, u32> = BTreeMap::new();
        for event in node.events_after(&before) {
            assert_eq!(event["type"], "intent.refused", "{event}");
            *rows.entry(event["data"]["code"].to_string()).or_default() += 1;
        }
        // A second one only if the test took longer than a minute.
        assert!(rows.values().all(|rows| *rows <= 2), "{rows:?}");
    });
}

#[test]
fn a_cursor_beyond_the_head_is_refused_however_long_one_would_wait() {
    let node = Node::up();
    block_on(async {
        let head: EventId = node.state().head.parse().unwrap();
        let beyond = EventId { seq: Seq(head.seq.0 + 1_000_000), ..head };
        for wait_ms in [0, 30_000] {
            let ask = Ask::Range { after: Some(beyond.clone()), events_max: 10, wait_ms };
            let query = seal(Kind::Query, &codec::encode(&node.query(ask)), &node.operator);
            refused(&node.over_the_socket(&query).await, "E0104", "a cursor beyond the head");
        }
        let said = node.machine.exits(2, &["events", "--follow", "--since", &beyond.to_string()]);
        assert!(said.contains("beyond the last event"), "{said}");
    });
}

#[test]
fn a_wish_that_is_repeated_runs_once_and_has_one_outcome() {
    let node = Node::up();
    block_on(async {
        let alice = node.dial(&node.owner.operator).await;
        let bytes = node.signed(&node.intent(count()));
        let first = node.over_the_bus(&alice, &bytes).await;
        assert!(is_done(&first), "{first:?}");
        for _ in 0..3 {
            assert_eq!(node.over_the_bus(&alice, &bytes).await, first);
            assert_eq!(node.over_the_socket(&bytes).await, first);
        }
        // Five at the same time, none of which has an outcome yet.
        let bytes = node.signed(&node.intent(count()));
        let (one, two, three, four, five) = tokio::join!(
            node.over_the_bus(&alice, &bytes),
            node.over_the_socket(&bytes),
            node.over_the_bus(&alice, &bytes),
            node.over_the_socket(&bytes),
            node.over_the_bus(&alice, &bytes),
        );
        assert!(is_done(&one), "{one:?}");
        assert_eq!([&two, &three, &four, &five], [&one; 4]);
        assert_eq!(node.counted(), 2);

        // The agent that comes after this one knows as well.
        crate::support::process::kill_9(node.machine.part("agent"));
        node.machine.ready("counter");
        assert_eq!(node.over_the_socket(&bytes).await, one);
        assert_eq!(node.counted(), 2);
    });
}

/// What no trusted key signed.
fn strangers(node: &Node) -> Vec<Case> {
    let good = node.signed(&node.intent(count()));
    let altered = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let deep = [vec![0x91; 5000], vec![0xc0]].concat();
    let payload = codec::encode(&node.intent(count()));
    let sealed = |kind, signer: &Signer| seal(kind, &payload, signer);
    let case = |name, code, bytes| Case { name, bytes, code, by: By::Nobody };
    vec![
        case("a request of another protocol", "E0302", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        case("zeros", "E0302", vec![0; 1000]),
        case("an array in an array, 5000 deep", "E0302", deep),
        case("a cut envelope", "E0302", good[..good.len() - 1].to_vec()),
        case("bytes behind an envelope", "E0302", [good.clone(), vec![0]].concat()),
        case("an altered payload", "E0310", altered(good.len() / 2)),
        case("an altered signature", "E0310", altered(good.len() - 2)),
        case("signed by a stranger", "E0304", sealed(Kind::Intent, &Signer::from_seed(&[9; 32]))),
        case("signed by a key that was taken back", "E0305", sealed(Kind::Intent, &node.former)),
        case("signed by the node itself", "E0307", sealed(Kind::Intent, &node.node)),
        case("an order signed by a person", "E0307", sealed(Kind::Order, &node.operator)),
        case("an event as a wish", "E0303", sealed(Kind::Event, &node.node)),
        case("an answer as a wish", "E0303", sealed(Kind::Answer, &node.node)),
        case("a beat as a wish", "E0303", sealed(Kind::Beat, &node.node)),
        case("a trust document of a person", "E0304", sealed(Kind::Trust, &node.operator)),
        case("larger than any envelope", "E0301", vec![0x95; 200_000]),
        case(
            "a signed payload larger than any envelope",
            "E0301",
            seal(Kind::Intent, &[0; 70_000], &node.operator),
        ),
    ]
}

/// What a trusted key signed and is refused all the same.
fn known(node: &Node, taken: &Intent) -> Vec<Case> {
    let intent = || node.intent(count());
    let case = |name, code, intent: Intent| Case {
        name,
        bytes: node.signed(&intent),
        code,
        by: By::Operator,
    };
    let raw = |name, code, payload: Vec<u8>| Case {
        name,
        bytes: seal(Kind::Intent, &payload, &node.operator),
        code,
        by: By::Operator,
    };
    let service = |name: &str| name.parse().unwrap();
    let (past, future) = (now().0 - 3_600_000_000, now().0 + 3_600_000_000);
    let at = |micros| smgr::domain::time::UnixMicros(micros);
    let jobs = Intent { iss: node.job.kid(), ..intent() };
    let param = [("zone".to_owned(), "img".to_owned())];
    let more = |name: &str| {
        codec::encode(&More { base: intent(), more: [(name.to_owned(), true)].into() })
    };
    vec![
        // The first of its code is the one that is recorded, and has to be read ever after.
        raw("an unknown field with a long name", "E0311", more(&"x".repeat(60_000))),
        raw("not a map", "E0311", b"restart everything".to_vec()),
        raw("an unknown field", "E0311", more("sudo")),
        raw("an unknown action", "E0311", codec::encode(&Foreign::of(intent()))),
        case("a version to come", "E0311", Intent { v: 9, ..intent() }),
        case("a note of a whole page", "E0311", Intent { note: "x".repeat(5000), ..intent() }),
        case("in the name of another key", "E0312", Intent { iss: node.job.kid(), ..intent() }),
        case("for another fleet", "E0313", Intent { fleet: "prod".parse().unwrap(), ..intent() }),
        case(
            "for another node",
            "E0313",
            Intent { audience: Audience::Nodes(vec!["n2".parse().unwrap()]), ..intent() },
        ),
        case("for no node", "E0313", Intent { audience: Audience::Nodes(vec![]), ..intent() }),
        case("for everybody", "E0313", Intent { audience: Audience::All, ..intent() }),
        case("expired", "E0314", Intent { iat: at(past), exp: at(past + 60_000_000), ..intent() }),
        case(
            "from the future",
            "E0315",
            Intent { iat: at(future), exp: at(future + 60_000_000), ..intent() },
        ),
        case("valid for an hour", "E0316", Intent { exp: at(future), ..intent() }),
        case("to be kept for ever", "E0107", Intent { mode: Mode::Desired, ..intent() }),
        case(
            "an id that was used for something else",
            "E0318",
            Intent { id: taken.id, ..node.intent(Action::Restart { service: service("counter") }) },
        ),
        case(
            "of a service that is not there",
            "E0601",
            node.intent(Action::Restart { service: service("nobody") }),
        ),
        case(
            "an action that is not declared",
            "E0605",
            node.intent(Action::Run {
                service: service("counter"),
                action: "erase".parse().unwrap(),
                params: BTreeMap::new(),
                confirmed: false,
            }),
        ),
        case(
            "a parameter that is not declared",
            "E0606",
            node.intent(Action::Run {
                service: service("counter"),
                action: "count".parse().unwrap(),
                params: param.into(),
                confirmed: false,
            }),
        ),
        case(
            "a reload of what cannot reload",
            "E0608",
            node.intent(Action::Reload { service: service("counter") }),
        ),
        Case {
            name: "not granted",
            bytes: seal(Kind::Intent, &codec::encode(&jobs), &node.job),
            code: "E0323",
            by: By::Job,
        },
    ]
}

/// An intent with a field that nobody knows.
#[derive(Serialize)]
struct More {
    #[serde(flatten)]
    base: Intent,
    #[serde(flatten)]
    more: BTreeMap<String, bool>,
}

/// An intent with an action that nobody knows.
#[derive(Serialize)]
struct Foreign {
    v: u8,
    id: smgr::domain::id::IntentId,
    iss: smgr::domain::id::Kid,
    iat: smgr::domain::time::UnixMicros,
    exp: smgr::domain::time::UnixMicros,
    fleet: smgr::domain::id::FleetId,
    mode: Mode,
    action: BTreeMap<&'static str, BTreeMap<&'static str, &'static str>>,
    audience: Audience,
}

impl Foreign {
    fn of(intent: Intent) -> Self {
        let Intent { v, iss, iat, exp, fleet, mode, audience, .. } = intent;
        let action = [("obliterate", [("service", "counter")].into())].into();
        Self { v, id: random_id(), iss, iat, exp, fleet, mode, action, audience }
    }
}

fn is_done(came: &Came) -> bool {
    matches!(came, Came::Outcome(Outcome::Done { .. }))
}

#[track_caller]
pub(super) fn refused(came: &Came, code: &str, name: &str) {
    assert_eq!(*came, Came::Refused(code.to_owned()), "{name}");
}
