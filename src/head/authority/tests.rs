//! Bad input at the gate: each gets exactly one code, and nothing changes.

use serde::Serialize;

use super::*;
use crate::domain::id::ServiceId;
use crate::domain::intent::Action;
use crate::domain::policy::{Grant, Names};
use crate::wire::codec::encode;
use crate::wire::envelope::seal;
use crate::wire::key::Signer;

pub(super) const NOW: UnixMicros = UnixMicros(1_795_356_130_000_000);

const KINDS: [Kind; 7] =
    [Kind::Intent, Kind::Order, Kind::Query, Kind::Answer, Kind::Event, Kind::Beat, Kind::Trust];

const CLASSES: [KeyClass; 6] = [
    KeyClass::Root,
    KeyClass::Human,
    KeyClass::Ci,
    KeyClass::Node,
    KeyClass::Local,
    KeyClass::Controller,
];

/// The key of each class is made of its place in [`CLASSES`].
pub(super) fn key_of(class: KeyClass) -> Signer {
    let at = CLASSES.iter().position(|known| *known == class).unwrap();
    Signer::from_seed(&[u8::try_from(at).unwrap() + 1; 32])
}

pub(super) fn alice() -> Signer {
    key_of(KeyClass::Human)
}

fn mallory() -> Signer {
    Signer::from_seed(&[99; 32])
}

fn revoked() -> Signer {
    Signer::from_seed(&[77; 32])
}

fn web() -> ServiceId {
    "web".parse().unwrap()
}

/// A gate where every class may do everything with `web` on `n1`, except to stop it.
pub(super) fn gate() -> Authority {
    let mut ring = Keyring::default();
    let verbs = vec![Verb::Start, Verb::Restart, Verb::Run, Verb::Status, Verb::Logs, Verb::Events];
    let grants = [Names::Only(vec![web()]), Names::All].map(|services| Grant {
        verbs: Names::Only(match services {
            Names::All => vec![Verb::Status, Verb::Events],
            Names::Only(_) => verbs.clone(),
        }),
        services,
        nodes: Names::Only(vec!["n1".parse().unwrap()]),
    });
    for class in CLASSES {
        let holder = Holder {
            name: "somebody".parse().unwrap(),
            class,
            grants: grants.to_vec(),
            until: None,
        };
        ring.insert(key_of(class).public(), holder);
    }
    let name = "eve".parse().unwrap();
    let holder = Holder { name, class: KeyClass::Human, grants: grants.to_vec(), until: None };
    ring.insert(revoked().public(), holder);
    let revoked = vec![revoked().kid()];
    Authority::new("acme".parse().unwrap(), "n1".parse().unwrap(), ring, revoked)
}

pub(super) fn wish() -> Intent {
    Intent {
        v: PAYLOAD_VERSION,
        id: IntentId([7; 16]),
        iss: alice().kid(),
        iat: NOW,
        exp: NOW.plus_ms(60_000),
        fleet: "acme".parse().unwrap(),
        mode: Mode::Once,
        action: Action::Restart { service: web() },
        audience: Audience::Nodes(vec!["n1".parse().unwrap()]),
        note: String::new(),
    }
}

fn reading() -> Query {
    Query {
        v: PAYLOAD_VERSION,
        id: IntentId([8; 16]),
        iss: alice().kid(),
        iat: NOW,
        exp: NOW.plus_ms(60_000),
        fleet: "acme".parse().unwrap(),
        audience: Audience::All,
        ask: Ask::Status,
    }
}

fn signed<T: Serialize>(kind: Kind, payload: &T) -> Vec<u8> {
    seal(kind, &encode(payload), &alice())
}

/// The code with which a wish is refused, at once or as the objection to one that reads well.
fn intent_code(gate: &mut Authority, bytes: &[u8], way: Way) -> Option<Code> {
    match gate.intent(bytes, way, NOW) {
        Ok(verified) => verified.objection.map(|refusal| refusal.code),
        Err(refusal) => Some(refusal.code),
    }
}

fn query_code(gate: &mut Authority, bytes: &[u8]) -> Option<Code> {
    gate.query(bytes, Way::Bus, NOW).err().map(|refusal| refusal.code)
}

/// All of a gate but the counters of its rates.
fn state(gate: &Authority) -> impl PartialEq + std::fmt::Debug + use<> {
    let Authority { fleet, node, ring, revoked, floor, .. } = gate;
    (fleet.clone(), node.clone(), ring.clone(), revoked.clone(), *floor)
}

/// Sends each message by both ways and demands its code, and a gate that is as before.
fn each_is_refused(cases: Vec<(&str, Vec<u8>, Code)>) {
    for (what, bytes, code) in cases {
        for way in [Way::Bus, Way::Local] {
            let mut gate = gate();
            let before = state(&gate);
            assert_eq!(intent_code(&mut gate, &bytes, way), Some(code), "{what}, {way:?}");
            assert!(state(&gate) == before, "{what} changed the gate");
            assert_eq!(intent_code(&mut gate, &signed(Kind::Intent, &wish()), way), None, "{what}");
        }
    }
}

#[test]
fn a_good_wish_and_a_good_reading_pass() {
    let mut gate = gate();
    assert_eq!(intent_code(&mut gate, &signed(Kind::Intent, &wish()), Way::Bus), None);
    assert_eq!(query_code(&mut gate, &signed(Kind::Query, &reading())), None);
}

#[test]
fn what_a_sender_chose_is_quoted_in_part() {
    let mut more = encode(&wish());
    more[0] += 1;
    more.extend([encode(&"ü".repeat(30_000)), encode(&true)].concat());
    let sealed = seal(Kind::Intent, &more, &alice());
    let refusal = gate().intent(&sealed, Way::Bus, NOW).unwrap_err();
    assert_eq!(refusal.code, Code::BAD_PAYLOAD);
    assert!(refusal.signed.is_some());
    assert!((400..=text::WHY_BYTES_MAX).contains(&refusal.why.len()), "{}", refusal.why.len());
}

#[test]
fn an_intent_that_fits_no_event_is_refused() {
    let services = (0..800).map(|n| format!("{n:060}").parse().unwrap()).collect();
    let large = Intent { action: Action::Apply { services }, ..wish() };
    let bytes = signed(Kind::Intent, &large);
    assert!(bytes.len() <= ENVELOPE_BYTES_MAX);
    assert_eq!(intent_code(&mut gate(), &bytes, Way::Bus), Some(Code::TOO_LARGE));
}

#[test]
fn what_is_no_envelope_gets_its_code() {
    let good = signed(Kind::Intent, &wish());
    let mut unknown_type = good.clone();
    let at = good.windows(9).position(|part| part == b"intent.v1").unwrap();
    unknown_type[at..at + 9].copy_from_slice(b"intent.v9");
    each_is_refused(vec![
        ("oversize", vec![0x95; ENVELOPE_BYTES_MAX + 1], Code::TOO_LARGE),
        ("nothing", Vec::new(), Code::BAD_SHAPE),
        ("garbage", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Code::BAD_SHAPE),
        ("never used marker", vec![0xc1; 100], Code::BAD_SHAPE),
        ("deep nesting", vec![0x91; ENVELOPE_BYTES_MAX], Code::BAD_SHAPE),
        ("a length of 4 GiB", vec![0x95, 1, 0xdb, 0xff, 0xff, 0xff, 0xff], Code::BAD_SHAPE),
        ("a wish without envelope", encode(&wish()), Code::BAD_SHAPE),
        ("cut", good[..good.len() - 1].to_vec(), Code::BAD_SHAPE),
        ("trailing bytes", [&good[..], &[0]].concat(), Code::BAD_SHAPE),
        ("another version", [&[0x95, 2], &good[2..]].concat(), Code::BAD_SHAPE),
        ("an unknown type", unknown_type, Code::UNKNOWN_TYPE),
        ("a query as a wish", signed(Kind::Query, &reading()), Code::UNKNOWN_TYPE),
    ]);
}

#[test]
fn what_no_trusted_key_signed_gets_its_code() {
    let payload = encode(&wish());
    let mut broken = seal(Kind::Intent, &payload, &alice());
    // The last byte is the empty chain; the signature ends before it.
    let at = broken.len() - 2;
    broken[at] ^= 1;
    let mut edited = seal(Kind::Intent, &payload, &alice());
    let at = edited.windows(3).position(|part| part == b"web").unwrap();
    edited[at..at + 3].copy_from_slice(b"shp");
    each_is_refused(vec![
        ("a stranger", seal(Kind::Intent, &payload, &mallory()), Code::UNKNOWN_SIGNER),
        ("a revoked key", seal(Kind::Intent, &payload, &revoked()), Code::KEY_REVOKED),
        (
            "a node's key",
            seal(Kind::Intent, &payload, &key_of(KeyClass::Node)),
            Code::CLASS_MAY_NOT_SIGN,
        ),
        ("a broken signature", broken, Code::BAD_SIGNATURE),
        ("an edited payload", edited, Code::BAD_SIGNATURE),
    ]);
}

#[test]
fn a_signed_payload_that_is_no_wish_gets_its_code() {
    let mut more = encode(&wish());
    more[0] += 1;
    more.extend([encode("force"), encode(&true)].concat());
    let mut long = encode(&wish());
    long[0] += 1;
    long.extend([encode(&"f".repeat(60_000)), encode(&true)].concat());
    let trailing = [encode(&wish()), vec![0xc0]].concat();
    let sealed = |payload: &[u8]| seal(Kind::Intent, payload, &alice());
    each_is_refused(vec![
        ("an empty payload", sealed(&[]), Code::BAD_PAYLOAD),
        ("a query in a wish's envelope", sealed(&encode(&reading())), Code::BAD_PAYLOAD),
        ("an unknown field", sealed(&more), Code::BAD_PAYLOAD),
        ("an unknown field of 60 kB", sealed(&long), Code::BAD_PAYLOAD),
        ("a payload that is too large", sealed(&vec![0; ENVELOPE_BYTES_MAX]), Code::TOO_LARGE),
        ("trailing bytes", sealed(&trailing), Code::BAD_PAYLOAD),
        ("another version", signed(Kind::Intent, &Intent { v: 2, ..wish() }), Code::BAD_PAYLOAD),
        (
            "a long note",
            signed(Kind::Intent, &Intent { note: "x".repeat(NOTE_BYTES_MAX + 1), ..wish() }),
            Code::BAD_PAYLOAD,
        ),
    ]);
}

#[test]
fn a_wish_that_is_not_for_this_node_and_moment_gets_its_code() {
    let nodes =
        |names: &[&str]| Audience::Nodes(names.iter().map(|n| n.parse().unwrap()).collect());
    let many: Vec<String> = (0..=NODES_MAX).map(|n| format!("n{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let ago = |ms: u64| UnixMicros(NOW.0 - ms * 1000);
    let cases = [
        ("another issuer", Intent { iss: mallory().kid(), ..wish() }, Code::WRONG_ISSUER),
        (
            "another fleet",
            Intent { fleet: "globex".parse().unwrap(), ..wish() },
            Code::WRONG_AUDIENCE,
        ),
        ("another node", Intent { audience: nodes(&["n2"]), ..wish() }, Code::WRONG_AUDIENCE),
        ("no node", Intent { audience: nodes(&[]), ..wish() }, Code::WRONG_AUDIENCE),
        ("too many nodes", Intent { audience: nodes(&many), ..wish() }, Code::WRONG_AUDIENCE),
        ("`all`", Intent { audience: Audience::All, ..wish() }, Code::WRONG_AUDIENCE),
        ("`desired`", Intent { mode: Mode::Desired, ..wish() }, Code::NOT_YET),
        (
            "too long a life",
            Intent { exp: NOW.plus_ms(LIFE_MS_MAX + 1), ..wish() },
            Code::LIFETIME_TOO_LONG,
        ),
        ("expired", Intent { iat: ago(120_000), exp: ago(SKEW_MS + 1), ..wish() }, Code::EXPIRED),
        (
            "from the future",
            Intent { iat: NOW.plus_ms(SKEW_MS + 1), exp: NOW.plus_ms(90_000), ..wish() },
            Code::NOT_YET_VALID,
        ),
        (
            "a verb that is not granted",
            Intent { action: Action::Stop { service: web() }, ..wish() },
            Code::NOT_GRANTED,
        ),
        (
            "a service that is not granted",
            Intent { action: Action::Restart { service: "web-api".parse().unwrap() }, ..wish() },
            Code::NOT_GRANTED,
        ),
        (
            "the whole node",
            Intent { action: Action::Shutdown { leave_running: true }, ..wish() },
            Code::NOT_GRANTED,
        ),
    ];
    let sealed = cases.map(|(what, wish, code)| (what, signed(Kind::Intent, &wish), code));
    each_is_refused(sealed.into());
}

#[test]
fn a_reading_is_judged_by_the_same_rules() {
    let ago = |ms: u64| UnixMicros(NOW.0 - ms * 1000);
    let cases = [
        ("another issuer", Query { iss: mallory().kid(), ..reading() }, Code::WRONG_ISSUER),
        (
            "another fleet",
            Query { fleet: "globex".parse().unwrap(), ..reading() },
            Code::WRONG_AUDIENCE,
        ),
        ("another version", Query { v: 2, ..reading() }, Code::BAD_PAYLOAD),
        ("expired", Query { iat: ago(120_000), exp: ago(60_000), ..reading() }, Code::EXPIRED),
        (
            "too long a life",
            Query { exp: NOW.plus_ms(LIFE_MS_MAX + 1), ..reading() },
            Code::LIFETIME_TOO_LONG,
        ),
        (
            "a log that is not granted",
            Query {
                ask: Ask::Logs {
                    service: "db".parse().unwrap(),
                    index: None,
                    lines: 1,
                    wait: None,
                },
                ..reading()
            },
            Code::NOT_GRANTED,
        ),
    ];
    for (what, query, code) in cases {
        let mut gate = gate();
        let before = state(&gate);
        assert_eq!(query_code(&mut gate, &signed(Kind::Query, &query)), Some(code), "{what}");
        assert!(state(&gate) == before, "{what} changed the gate");
    }
    assert_eq!(query_code(&mut gate(), &signed(Kind::Intent, &wish())), Some(Code::UNKNOWN_TYPE));
}

#[test]
fn the_tolerance_of_30_s_holds_on_both_sides() {
    let ago = |ms: u64| UnixMicros(NOW.0 - ms * 1000);
    let late = Intent { iat: ago(120_000), exp: ago(SKEW_MS), ..wish() };
    let early = Intent { iat: NOW.plus_ms(SKEW_MS), exp: NOW.plus_ms(90_000), ..wish() };
    let longest = Intent { exp: NOW.plus_ms(LIFE_MS_MAX), ..wish() };
    for wish in [late, early, longest] {
        let bytes = signed(Kind::Intent, &wish);
        assert_eq!(intent_code(&mut gate(), &bytes, Way::Bus), None, "{wish:?}");
    }
}

#[test]
fn a_clock_below_the_log_judges_no_age_but_local_root_is_heard() {
    let mut gate = gate();
    gate.raise_floor(NOW.plus_ms(SKEW_MS + 1));
    let by = |class| {
        let key = key_of(class);
        seal(Kind::Intent, &encode(&Intent { iss: key.kid(), ..wish() }), &key)
    };
    for (class, way, code) in [
        (KeyClass::Human, Way::Bus, Some(Code::CLOCK_UNSURE)),
        (KeyClass::Human, Way::Local, Some(Code::CLOCK_UNSURE)),
        (KeyClass::Local, Way::Bus, Some(Code::CLOCK_UNSURE)),
        (KeyClass::Local, Way::Local, None),
    ] {
        assert_eq!(intent_code(&mut gate, &by(class), way), code, "{class:?} {way:?}");
    }
}

#[test]
fn a_wish_that_had_to_wait_is_judged_by_what_is_trusted_then() {
    type Change = fn(&mut Authority);
    let bytes = signed(Kind::Intent, &wish());
    let changes: [(Change, Option<Code>); 5] = [
        (|_| (), None),
        (|gate| gate.revoked.push(alice().kid()), Some(Code::KEY_REVOKED)),
        (|gate| gate.ring = Keyring::default().into(), Some(Code::UNKNOWN_SIGNER)),
        (|gate| hold(gate, None, Vec::new()), Some(Code::NOT_GRANTED)),
        (|gate| hold(gate, Some(UnixMicros(1)), Vec::new()), Some(Code::KEY_OUT_OF_TIME)),
    ];
    for (change, code) in changes {
        let mut gate = gate();
        let waits = gate.intent(&bytes, Way::Bus, NOW).unwrap();
        change(&mut gate);
        let refusal = gate.judge_again(&waits, Way::Bus, NOW).err();
        assert_eq!(refusal.map(|it| it.code), code);
    }
}

/// Lets a key be held on other terms.
fn hold(gate: &mut Authority, until: Option<UnixMicros>, grants: Vec<Grant>) {
    let mut ring = Keyring::default();
    let name = "somebody".parse().unwrap();
    ring.insert(alice().public(), Holder { name, class: KeyClass::Human, grants, until });
    gate.ring = ring.into();
}

/// Wishes of one class's key, no two the same.
fn wishes_of(class: KeyClass) -> impl Iterator<Item = Vec<u8>> {
    let key = key_of(class);
    (0_u128..).map(move |number| {
        let id = IntentId(number.to_be_bytes());
        seal(Kind::Intent, &encode(&Intent { id, iss: key.kid(), ..wish() }), &key)
    })
}

#[test]
fn a_flood_by_one_key_is_cut_off_and_disturbs_nobody_else() {
    let mut gate = gate();
    let limited = wishes_of(KeyClass::Ci)
        .take(100_000)
        .any(|bytes| intent_code(&mut gate, &bytes, Way::Bus) == Some(Code::RATE_LIMITED));
    assert!(limited);
    assert_eq!(intent_code(&mut gate, &signed(Kind::Intent, &wish()), Way::Bus), None);
    let first = wishes_of(KeyClass::Ci).next().unwrap();
    assert_eq!(intent_code(&mut gate, &first, Way::Local), None);
}

#[test]
fn what_a_stranger_makes_or_repeats_in_the_name_of_a_key_does_not_keep_that_key_from_being_heard() {
    let mut forged = signed(Kind::Intent, &wish());
    let at = forged.len() - 2;
    forged[at] ^= 1;
    let seen = signed(Kind::Intent, &wish());
    let floods: [(&[u8], &[Option<Code>]); 2] =
        [(&forged, &[Some(Code::BAD_SIGNATURE)]), (&seen, &[None, Some(Code::RATE_LIMITED)])];
    for (flood, codes) in floods {
        let mut gate = gate();
        for _ in 0..2 * BURST as usize {
            let code = intent_code(&mut gate, flood, Way::Bus);
            assert!(codes.contains(&code), "{code:?}");
        }
        let fresh = signed(Kind::Intent, &Intent { id: IntentId([9; 16]), ..wish() });
        assert_eq!(intent_code(&mut gate, &fresh, Way::Bus), None);
    }
}

#[test]
fn a_key_is_charged_wherever_it_stands_among_the_signatures() {
    let mut gate = gate();
    let limited = wishes_of(KeyClass::Human).take(100_000).any(|bytes| {
        let bytes = behind_a_stranger(&bytes);
        intent_code(&mut gate, &bytes, Way::Bus) == Some(Code::RATE_LIMITED)
    });
    assert!(limited);
}

#[test]
fn a_stranger_before_a_known_key_changes_nothing_about_it() {
    let good = behind_a_stranger(&signed(Kind::Intent, &wish()));
    assert_eq!(intent_code(&mut gate(), &good, Way::Bus), None);
    let unknown = behind_a_stranger(&seal(Kind::Intent, &encode(&wish()), &mallory_too()));
    assert_eq!(intent_code(&mut gate(), &unknown, Way::Bus), Some(Code::UNKNOWN_SIGNER));
    let mut broken = good;
    let at = broken.len() - 2;
    broken[at] ^= 1;
    assert_eq!(intent_code(&mut gate(), &broken, Way::Bus), Some(Code::BAD_SIGNATURE));
    let revoked = behind_a_stranger(&seal(Kind::Intent, &encode(&wish()), &revoked()));
    assert_eq!(intent_code(&mut gate(), &revoked, Way::Bus), Some(Code::KEY_REVOKED));
}

fn mallory_too() -> Signer {
    Signer::from_seed(&[98; 32])
}

/// Puts the signature of a key that nobody knows before the one of an envelope.
fn behind_a_stranger(sealed: &[u8]) -> Vec<u8> {
    let other = seal(Kind::Intent, b"", &mallory());
    // `[[kid, signature]]`: an array of one pair, and behind it the empty chain.
    let pair = &other[other.len() - 86..other.len() - 1];
    let at = sealed.len() - 87;
    assert_eq!((sealed[at], pair[0]), (0x91, 0x92));
    [&sealed[..at], &[0x92], pair, &sealed[at + 1..]].concat()
}

#[test]
fn strangers_take_no_memory() {
    let mut gate = gate();
    for seed in 100..200 {
        let stranger = Signer::from_seed(&[seed; 32]);
        let bytes = seal(Kind::Intent, b"x", &stranger);
        assert_eq!(intent_code(&mut gate, &bytes, Way::Bus), Some(Code::UNKNOWN_SIGNER));
    }
    assert!(gate.buckets.is_empty());
}

/// Every class signs every kind: only wishes of those who may wish come as far as their payload.
#[test]
fn each_class_is_heard_only_with_its_own_kinds() {
    for class in CLASSES {
        let key = key_of(class);
        for kind in KINDS {
            let intent = encode(&Intent { iss: key.kid(), ..wish() });
            let query = encode(&Query { iss: key.kid(), ..reading() });
            let payload = if kind == Kind::Query { query } else { intent };
            let sealed = seal(kind, &payload, &key);
            let as_wish = intent_code(&mut gate(), &sealed, Way::Bus);
            let as_reading = query_code(&mut gate(), &sealed);
            let other = Some(Code::UNKNOWN_TYPE);
            let (wish, reading) = match (kind, class) {
                (Kind::Intent, KeyClass::Human | KeyClass::Ci | KeyClass::Local) => (None, other),
                (Kind::Intent, _) => (Some(Code::CLASS_MAY_NOT_SIGN), other),
                (
                    Kind::Query,
                    KeyClass::Human | KeyClass::Ci | KeyClass::Local | KeyClass::Controller,
                ) => (other, None),
                (Kind::Query, _) => (other, Some(Code::CLASS_MAY_NOT_SIGN)),
                _ => (other, other),
            };
            assert_eq!((as_wish, as_reading), (wish, reading), "{class:?} {kind:?}");
        }
    }
}

#[test]
fn a_key_that_has_ended_asks_for_nothing_any_more() {
    let ends = |until: UnixMicros| {
        let mut gate = gate();
        let ring = std::sync::Arc::make_mut(&mut gate.ring);
        let (key, holder) = ring.get(alice().kid()).map(|(key, it)| (*key, it.clone())).unwrap();
        ring.insert(key, Holder { until: Some(until), ..holder });
        gate
    };
    let wish = signed(Kind::Intent, &wish());
    let reading = signed(Kind::Query, &reading());
    for (until, code) in [
        (NOW.plus_ms(1), None),
        (UnixMicros(NOW.0 - 1), Some(Code::KEY_OUT_OF_TIME)),
        (UnixMicros(1), Some(Code::KEY_OUT_OF_TIME)),
    ] {
        assert_eq!(intent_code(&mut ends(until), &wish, Way::Bus), code, "{until:?}");
        assert_eq!(intent_code(&mut ends(until), &wish, Way::Local), code, "{until:?}");
        assert_eq!(query_code(&mut ends(until), &reading), code, "{until:?}");
        let brought = ends(until).brought(&wish, NOW).unwrap();
        assert_eq!(brought.objection.map(|refusal| refusal.code), code, "{until:?}");
    }
}
