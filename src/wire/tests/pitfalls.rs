//! The traps of MessagePack, Ed25519 and additive formats, each as a rule that holds.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::samples;
use crate::domain::event::{
    AlertFired, Context, Desired, Event, InstanceWaiting, IntentAccepted, IntentExecuted,
    LogRecovered, Outcome, ServiceAdded, StateName,
};
use crate::domain::id::{Digest, InstanceId, IntentId, Seq, ServiceId};
use crate::domain::intent::Action;
use crate::domain::node::Node;
use crate::domain::policy::{Holder, KeyClass, Kind};
use crate::domain::rollout::RolloutEvent;
use crate::domain::text;
use crate::wire::codec::{self, decode, encode};
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::fold::{self, Broken, Fold};
use crate::wire::key::{Keyring, PublicKey};
use crate::wire::payload::{Answer, Beat, Body, EventRecord, Intent, Query, Trust};

/// Returns the map with one more entry: what a later version would write.
fn with_more<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = encode(value);
    match bytes[0] {
        0x80..=0x8e => bytes[0] += 1,
        0xde => {
            let len = u16::from_be_bytes([bytes[1], bytes[2]]) + 1;
            bytes[1..3].copy_from_slice(&len.to_be_bytes());
        }
        0x8f => {
            bytes.splice(..1, [0xde, 0, 16]);
        }
        other => panic!("not a map: {other:#x}"),
    }
    bytes.extend(encode("from_a_later_version"));
    bytes.extend(encode(&json!({"a": [1, 2, {"b": null}]})));
    bytes
}

#[test]
fn an_unknown_field_in_a_wish_is_refused() {
    assert!(decode::<Intent>(&with_more(&samples::intent())).is_err());
    assert!(decode::<Query>(&with_more(&samples::query())).is_err());
    assert!(decode::<Trust>(&with_more(&samples::trust())).is_err());
}

#[test]
fn an_unknown_field_inside_a_wish_is_refused() {
    let action = |action: Value| decode::<crate::domain::intent::Action>(&encode(&action));
    assert!(action(json!({"stop": {"service": "web"}})).is_ok());
    assert!(action(json!({"stop": {"service": "web", "force": true}})).is_err());
    assert!(action(json!({"obliterate": {"service": "web"}})).is_err());
    let audience = |value: Value| decode::<crate::wire::payload::Audience>(&encode(&value));
    assert!(audience(json!({"nodes": ["n1"]})).is_ok());
    assert!(audience(json!({"tags": ["n1"]})).is_err());
}

#[test]
fn an_unknown_field_in_a_fact_is_ignored() {
    assert_eq!(decode::<Answer>(&with_more(&samples::answer())).unwrap(), samples::answer());
    assert_eq!(decode::<Beat>(&with_more(&samples::beat())).unwrap(), samples::beat());
    for (context, event) in samples::events() {
        let record = samples::record(&context, &event);
        assert_eq!(decode::<EventRecord>(&with_more(&record)).unwrap(), record);
        let mut body = codec::encode_body(&event);
        if (0x80..0x8f).contains(&body[0]) {
            body[0] += 1;
            body.extend([encode("later"), encode(&7u8)].concat());
            let read = codec::decode_body(event.kind(), &body).unwrap();
            assert_eq!(read, Some(event));
        }
    }
}

#[test]
fn a_field_that_stands_twice_is_refused() {
    let mut beat = encode(&samples::beat());
    beat[0] += 1;
    beat.extend([encode("v"), encode(&2u8)].concat());
    assert!(decode::<Beat>(&beat).is_err());
    let mut intent = encode(&samples::intent());
    intent[0] += 1;
    intent.extend([encode("note"), encode("another")].concat());
    assert!(decode::<Intent>(&intent).is_err());
}

#[test]
fn a_parameter_that_stands_twice_is_refused_on_the_wire() {
    let entry = [encode("scope"), encode("all")].concat();
    let params = |count: u8| [vec![0x80 + count], entry.repeat(usize::from(count))].concat();
    let run = |params: Vec<u8>| {
        let fields = [encode("service"), encode("web"), encode("action"), encode("clear")].concat();
        let run = [vec![0x83], fields, encode("params"), params].concat();
        decode::<crate::domain::intent::Action>(&[vec![0x81], encode("run"), run].concat())
    };
    assert!(run(params(1)).is_ok());
    assert!(run(params(2)).is_err());
}

#[test]
fn one_value_in_two_encodings_is_two_messages() {
    let minimal = encode(&samples::beat());
    let at = minimal.iter().position(|byte| *byte == 1).unwrap();
    // `v: 1` as a uint32: read all the same, since only the bytes that were signed count.
    let long = [&minimal[..at], &[0xce, 0, 0, 0, 1], &minimal[at + 1..]].concat();
    assert_eq!(decode::<Beat>(&long).unwrap(), samples::beat());

    let signer = samples::node_key();
    let mut ring = Keyring::default();
    let name = "n1".parse().unwrap();
    ring.insert(
        signer.public(),
        Holder { name, class: KeyClass::Node, grants: Vec::new(), until: None },
    );
    let digest = |payload: &[u8]| {
        let sealed = envelope::seal(Kind::Beat, payload, &signer);
        envelope::read(&sealed, ENVELOPE_BYTES_MAX).unwrap().open(&ring).unwrap().digest
    };
    assert_ne!(digest(&minimal), digest(&long));
}

#[test]
fn a_map_in_the_form_of_an_array_is_no_message() {
    #[derive(serde::Deserialize, serde::Serialize, PartialEq, Debug)]
    struct Pair {
        a: u8,
        b: u8,
    }
    assert!(decode::<Pair>(&[0x92, 1, 2]).is_err());
    assert_eq!(decode::<Pair>(&encode(&Pair { a: 1, b: 2 })).unwrap(), Pair { a: 1, b: 2 });
}

#[test]
fn keys_signatures_and_bodies_travel_as_bin() {
    let record = encode(&samples::record(&Context::default(), &samples::events()[1].1));
    // `boot` is bin8 of 16 bytes, not an array of numbers, nor text.
    let boot = [&encode("boot")[..], &[0xc4, 16], &[0x55; 16]].concat();
    assert!(record.windows(boot.len()).any(|window| window == boot));
    let text = [&encode("boot")[..], &encode(&"55".repeat(16))].concat();
    assert!(!record.windows(text.len()).any(|window| window == text));
}

#[test]
fn a_claimed_length_of_4_gib_allocates_nothing() {
    for head in [0xc6, 0xdb, 0xdd, 0xdf] {
        let bytes = [head, 0xff, 0xff, 0xff, 0xff, 0];
        assert!(decode::<Intent>(&bytes).is_err());
        assert!(decode::<EventRecord>(&bytes).is_err());
        assert!(envelope::read(&bytes, ENVELOPE_BYTES_MAX).is_err());
        let payload = [&[0x95, 1][..], &encode("t"), &bytes].concat();
        assert!(envelope::read(&payload, ENVELOPE_BYTES_MAX).is_err());
        for (kind, _) in Event::KINDS.iter().chain(RolloutEvent::KINDS) {
            assert!(codec::decode_body(kind, &bytes).is_err(), "{kind}");
        }
    }
}

#[test]
fn nesting_is_limited_in_every_payload() {
    let deep = [[0x81, 0xa1, b'x'].repeat(4_000), vec![0xc0]].concat();
    for (kind, _) in Event::KINDS.iter().chain(RolloutEvent::KINDS) {
        assert!(codec::decode_body(kind, &deep).is_err(), "{kind}");
    }
    // An unknown field is skipped, so it is where depth could hide.
    let mut beat = encode(&samples::beat());
    beat[0] += 1;
    beat.extend(encode("later"));
    beat.extend(&deep);
    assert!(decode::<Beat>(&beat).is_err());
}

#[test]
fn a_weak_key_verifies_nothing_because_it_is_no_key() {
    // The eight points of small order, and two of them written in a second form.
    let orders = [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for text in orders {
        let digest: crate::domain::id::Digest = text.parse().unwrap();
        assert!(PublicKey::from_bytes(&digest.0).is_err(), "{text}");
    }
}

fn row(record: &EventRecord) -> Vec<u8> {
    envelope::seal(Kind::Event, &encode(record), &samples::node_key())
}

fn unknown(critical: bool) -> EventRecord {
    let event =
        Event::LogRecovered(LogRecovered { unavailable_ms: 0, late: 0, summarized: 0, dropped: 0 });
    EventRecord {
        kind: "moon.landed".to_owned(),
        critical,
        ..samples::record(&Context::default(), &event)
    }
}

#[test]
fn an_unknown_type_is_kept_as_it_is() {
    let record: EventRecord = decode(&encode(&unknown(true))).unwrap();
    assert_eq!(record, unknown(true));
    assert_eq!(record.event().unwrap(), Body::Unknown);
}

#[test]
fn an_unknown_type_is_passed_over_and_counted_unless_it_is_critical() {
    let mut node = Node::default();
    let mut fold = Fold::new(&mut node);
    assert!(fold.row(Seq(1), &row(&unknown(false))).is_continue());
    assert_eq!((fold.passed_over, &fold.broken), (1, &None));
    assert_eq!(fold.last_at, samples::AT);
    assert!(fold.row(Seq(2), &row(&unknown(true))).is_break());
    let (seq, broken) = fold.broken.clone().unwrap();
    assert_eq!(seq, Seq(2));
    let Broken::Newer(why) = broken else { panic!("{broken:?}") };
    assert!(why.starts_with("`moon.landed` needs a newer smgr"), "{why}");
    assert_eq!(node, Node::default());
}

fn restore(parts: &[Event]) -> (Option<(Seq, Broken)>, Node) {
    let mut node = Node::default();
    let mut fold = Fold::new(&mut node);
    for (seq, part) in (1..).zip(parts) {
        let row = row(&samples::record(&Context::default(), part));
        assert!(row.len() <= ENVELOPE_BYTES_MAX, "part {seq} has {} bytes", row.len());
        if fold.row(Seq(seq), &row).is_break() {
            break;
        }
    }
    (fold.broken.take(), node)
}

#[test]
fn the_largest_node_fits_the_rows_of_a_baseline_and_comes_back_whole() {
    let service: ServiceId = "s".repeat(63).parse().unwrap();
    let mut node = Node::default();
    let mut fold = |about: &Context, event: &Event| {
        let row = row(&samples::record(about, event));
        assert!(row.len() <= ENVELOPE_BYTES_MAX, "{} has {} bytes", event.kind(), row.len());
        let mut fold = Fold::new(&mut node);
        assert!(fold.row(Seq(1), &row).is_continue(), "{:?}", fold.broken);
    };
    let about = Context::service(&service);
    let added = ServiceAdded {
        digest: Digest([1; 32]),
        origin: "services.d/s.toml".to_owned(),
        instances: 1000,
        desired: Desired::Running,
        keeps: None,
        keys: Vec::new(),
    };
    fold(&about, &Event::ServiceAdded(added));
    for index in 0..1000 {
        let slot = InstanceId { service: service.clone(), index };
        let waiting = InstanceWaiting {
            from: StateName::Inactive,
            on: vec!["d".repeat(63).parse().unwrap()],
            missing: Vec::new(),
        };
        fold(&Context::instance(&slot), &Event::InstanceWaiting(waiting));
    }
    for n in 0..300 {
        let fired = AlertFired {
            alert: format!("{service}/{n:060}"),
            severity: "warning".to_owned(),
            summary: "x".repeat(text::WHY_BYTES_MAX),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            line: None,
        };
        let slot = InstanceId { service: service.clone(), index: 500 };
        fold(&Context::instance(&slot), &Event::AlertFired(fired));
    }
    let slots: Vec<_> =
        (0..1000).map(|index| InstanceId { service: service.clone(), index }).collect();
    let mut accept = |number: u16, action: Action, instances: &[InstanceId]| {
        let mut intent = [0; 16];
        intent[..2].copy_from_slice(&number.to_be_bytes());
        let accepted = IntentAccepted {
            intent: IntentId(intent),
            digest: Digest([2; 32]),
            action,
            expires_at: samples::AT.plus_ms(60_000),
            instances: Vec::new(),
            until: samples::AT.plus_ms(60_000),
            slots: Vec::new(),
            release: None,
        };
        fold(&about, &Event::IntentAccepted(accepted.awaiting(instances)));
    };
    for number in 0..3 {
        accept(number, Action::Restart { service: service.clone() }, &slots);
    }
    for number in 3..600 {
        let params = BTreeMap::from([("what".to_owned(), "x".repeat(4096))]);
        let action = "cache-clear".parse().unwrap();
        accept(
            number,
            Action::Run { service: service.clone(), action, params, confirmed: false },
            &[],
        );
    }
    let parts = fold::baseline(&node);
    let (broken, restored) = restore(&parts);
    assert_eq!(broken, None);
    assert!(restored == node, "the state is another");
    assert_eq!(fold::state_hash(&restored), fold::state_hash(&node));
}

#[test]
fn a_baseline_leads_to_the_state_that_it_was_made_of_or_to_nothing() {
    let mut live = Node::default();
    let mut fold = Fold::new(&mut live);
    let (about, added) = samples::events()
        .into_iter()
        .find(|(_, event)| matches!(event, Event::ServiceAdded(_)))
        .unwrap();
    assert!(fold.row(Seq(1), &row(&samples::record(&about, &added))).is_continue());
    let parts = fold::baseline(&live);
    assert!(parts.len() > 1);

    assert_eq!(restore(&parts), (None, live.clone()));

    let mut forged = parts.clone();
    let Event::Baseline(last) = forged.last_mut().unwrap() else { unreachable!() };
    last.state_hash.0[0] ^= 1;
    let (broken, _) = restore(&forged);
    assert!(matches!(broken, Some((_, Broken::Illegal(_)))), "{broken:?}");

    // By the rules of an older version it may have had another hash.
    let Event::Baseline(last) = forged.last_mut().unwrap() else { unreachable!() };
    last.fold -= 1;
    assert_eq!(restore(&forged), (None, live));
}

#[test]
fn the_fold_knows_which_event_says_how_far_each_wish_is() {
    let (begun, ended) = (IntentId([1; 16]), IntentId([2; 16]));
    let accepted = |intent| {
        Event::IntentAccepted(IntentAccepted {
            intent,
            digest: Digest([7; 32]),
            action: Action::Apply { services: Vec::new() },
            expires_at: samples::AT.plus_ms(60_000),
            instances: Vec::new(),
            until: samples::AT.plus_ms(60_000),
            slots: Vec::new(),
            release: None,
        })
    };
    let outcome = Outcome::Done { changed: true };
    let executed = Event::IntentExecuted(IntentExecuted { intent: ended, outcome });
    let mut node = Node::default();
    let mut fold = Fold::new(&mut node);
    let write = |fold: &mut Fold<'_>, seq, event: &Event| {
        let row = row(&samples::record(&Context::default(), event));
        assert!(fold.row(Seq(seq), &row).is_continue(), "{:?}", fold.broken);
    };
    write(&mut fold, 1, &accepted(begun));
    write(&mut fold, 2, &accepted(ended));
    assert_eq!(fold.told, BTreeMap::from([(begun, Seq(1)), (ended, Seq(2))]));
    write(&mut fold, 3, &executed);
    assert_eq!(fold.told, BTreeMap::from([(begun, Seq(1)), (ended, Seq(3))]));

    // Of what a baseline holds, the baseline says it.
    let parts = fold::baseline(&node);
    let mut restored = Node::default();
    let mut fold = Fold::new(&mut restored);
    for (seq, part) in (10..).zip(&parts) {
        write(&mut fold, seq, part);
    }
    let last = Seq(9 + parts.len() as u64);
    assert_eq!(fold.told, BTreeMap::from([(begun, last), (ended, last)]));
}

#[test]
fn a_row_that_does_not_read_or_follow_ends_the_fold_by_name() {
    let (about, removed) = samples::events()
        .into_iter()
        .find(|(_, event)| matches!(event, Event::ServiceRemoved(_)))
        .unwrap();
    let mut short = samples::record(&about, &removed);
    short.body.pop();
    let trailing = [row(&samples::record(&about, &removed)), vec![0]].concat();
    let cases =
        [vec![], vec![0xc1], trailing, row(&short), row(&samples::record(&about, &removed))];
    for bytes in cases {
        let mut node = Node::default();
        let mut fold = Fold::new(&mut node);
        assert!(fold.row(Seq(7), &bytes).is_break());
        assert!(matches!(fold.broken, Some((Seq(7), Broken::Illegal(_)))), "{:?}", fold.broken);
        assert_eq!(node, Node::default());
    }
}
