//! The bytes of every kind of envelope and every type of event, as files that never change.
//!
//! Whoever writes another implementation compares with `integration/golden/wire-v1`; a difference there means that
//! old logs, other nodes and old signatures are not understood any more. Fixed keys and times make Ed25519 and
//! MessagePack give the same bytes each time. `UPDATE_GOLDEN=1` writes the files, and the fuzzers' seeds, anew.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use super::samples;
use crate::domain::event::Event;
use crate::domain::policy::{Holder, KeyClass, Kind};
use crate::domain::rollout::RolloutEvent;
use crate::domain::rollout::samples::of_a_log;
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::key::{Keyring, Signer};
use crate::wire::payload::{Answer, Beat, Body, EventRecord, Intent, Order, Query, Receipt, Trust};

/// One envelope and what is in it.
struct Vector {
    envelope: Vec<u8>,
    payload: Vec<u8>,
    body: Option<Vec<u8>>,
}

fn vectors() -> BTreeMap<String, Vector> {
    let sealed = |kind, payload: Vec<u8>, signer: &Signer| Vector {
        envelope: envelope::seal(kind, &payload, signer),
        payload,
        body: None,
    };
    let (alice, node, root) = (samples::alice(), samples::node_key(), samples::root());
    let mut vectors = BTreeMap::from([
        ("intent".to_owned(), sealed(Kind::Intent, codec::encode(&samples::intent()), &alice)),
        ("query".to_owned(), sealed(Kind::Query, codec::encode(&samples::query()), &alice)),
        ("answer".to_owned(), sealed(Kind::Answer, codec::encode(&samples::answer()), &node)),
        ("beat".to_owned(), sealed(Kind::Beat, codec::encode(&samples::beat()), &node)),
        ("trust".to_owned(), sealed(Kind::Trust, codec::encode(&samples::trust()), &root)),
        (
            "trust-roster".to_owned(),
            sealed(Kind::Trust, codec::encode(&samples::trust_with_roster()), &root),
        ),
        (
            "intent-deploy".to_owned(),
            sealed(Kind::Intent, codec::encode(&samples::deploy()), &alice),
        ),
        (
            "order".to_owned(),
            sealed(Kind::Order, codec::encode(&samples::order()), &samples::controller()),
        ),
        (
            "receipt".to_owned(),
            sealed(Kind::Receipt, codec::encode(&samples::receipt()), &samples::controller()),
        ),
    ]);
    for (context, event) in samples::events() {
        let record = samples::record(&context, &event);
        let vector = Vector {
            body: Some(record.body.to_vec()),
            ..sealed(Kind::Event, codec::encode(&record), &node)
        };
        vectors.insert(format!("event.{}", event.kind()), vector);
    }
    vectors
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/golden/wire-v1")
}

#[test]
fn every_envelope_is_byte_for_byte_what_it_was() {
    let vectors = vectors();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        write(&vectors);
    }
    for (name, vector) in &vectors {
        let path = folder().join(format!("{name}.json"));
        let there = fs::read_to_string(&path).unwrap_or_default();
        let hint = "UPDATE_GOLDEN=1 rewrites it, which breaks every log that exists";
        assert!(there == text(vector), "{} is not what is written today: {hint}", path.display());
    }
    for file in fs::read_dir(folder()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let known = name.strip_suffix(".json").is_some_and(|name| vectors.contains_key(name));
        assert!(known, "{name} belongs to nothing");
    }
}

#[test]
fn every_golden_envelope_opens_to_the_value_it_was_made_of() {
    assert_eq!(open::<Intent>("intent", Kind::Intent), samples::intent());
    assert_eq!(open::<Query>("query", Kind::Query), samples::query());
    assert_eq!(open::<Answer>("answer", Kind::Answer), samples::answer());
    assert_eq!(open::<Beat>("beat", Kind::Beat), samples::beat());
    assert_eq!(open::<Trust>("trust", Kind::Trust), samples::trust());
    assert_eq!(open::<Trust>("trust-roster", Kind::Trust), samples::trust_with_roster());
    assert_eq!(open::<Intent>("intent-deploy", Kind::Intent), samples::deploy());
    assert_eq!(open::<Order>("order", Kind::Order), samples::order());
    assert_eq!(open::<Receipt>("receipt", Kind::Receipt), samples::receipt());
    for (context, event) in samples::events() {
        let record: EventRecord = open(&format!("event.{}", event.kind()), Kind::Event);
        assert_eq!(record, samples::record(&context, &event));
        assert_eq!(record.context(), context);
        assert_eq!(record.event().unwrap(), Body::Known(event));
    }
}

fn open<T: DeserializeOwned>(name: &str, kind: Kind) -> T {
    let text = fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let bytes = unhex(file["envelope"].as_str().unwrap());
    let ring = ring();
    let opened = envelope::read(&bytes, ENVELOPE_BYTES_MAX).unwrap().open(&ring).unwrap();
    assert_eq!(opened.kind, kind);
    codec::decode(opened.payload).unwrap()
}

fn ring() -> Keyring {
    let mut ring = Keyring::default();
    let keys = [
        (samples::alice(), KeyClass::Human),
        (samples::node_key(), KeyClass::Node),
        (samples::root(), KeyClass::Root),
        (samples::controller(), KeyClass::Controller),
    ];
    for (signer, class) in keys {
        let holder =
            Holder { name: "somebody".parse().unwrap(), class, grants: Vec::new(), until: None };
        ring.insert(signer.public(), holder);
    }
    ring
}

/// Returns the file of a vector: the bytes, and for people what they say, with every `bin` in hex.
fn text(vector: &Vector) -> String {
    let mut file = json!({
        "envelope": hex(&vector.envelope),
        "payload": shown(&vector.payload),
    });
    if let Some(body) = &vector.body {
        file["body"] = shown(body);
    }
    serde_json::to_string_pretty(&file).unwrap() + "\n"
}

fn write(vectors: &BTreeMap<String, Vector>) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for dir in [folder(), seeds.join("envelope"), seeds.join("payload"), seeds.join("event_body")] {
        fs::create_dir_all(dir).unwrap();
    }
    for (name, vector) in vectors {
        fs::write(folder().join(format!("{name}.json")), text(vector)).unwrap();
        fs::write(seeds.join("envelope").join(name), &vector.envelope).unwrap();
        // The first byte tells the fuzzer's target what the rest is.
        let kind = PAYLOADS.iter().position(|kind| name.starts_with(kind)).unwrap();
        fs::write(seeds.join("payload").join(name), prefixed(kind, &vector.payload)).unwrap();
        if let Some(body) = &vector.body {
            write_body(&seeds, name.strip_prefix("event.").unwrap(), body);
        }
    }
    // It travels inside a wish.
    let manifest = codec::encode(&samples::manifest());
    let kind = PAYLOADS.iter().position(|kind| *kind == "manifest").unwrap();
    fs::write(seeds.join("payload/manifest"), prefixed(kind, &manifest)).unwrap();
    for fact in of_a_log() {
        let event = Event::Rollout(Box::new(fact));
        write_body(&seeds, event.kind(), &codec::encode_body(&event));
    }
}

/// What the fuzzer's target of payloads reads, in its order.
const PAYLOADS: &[&str] =
    &["intent", "query", "answer", "event", "beat", "trust", "order", "receipt", "manifest"];

fn write_body(seeds: &Path, kind: &str, body: &[u8]) {
    let mut kinds = Event::KINDS.iter().chain(RolloutEvent::KINDS);
    let place = kinds.position(|(known, _)| *known == kind).unwrap();
    let file = seeds.join("event_body").join(format!("event.{kind}"));
    fs::write(file, prefixed(place, body)).unwrap();
}

fn prefixed(first: usize, rest: &[u8]) -> Vec<u8> {
    [&[u8::try_from(first).unwrap()], rest].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

fn shown(bytes: &[u8]) -> Value {
    codec::decode::<Shown>(bytes).unwrap().0
}

/// Any MessagePack as JSON, to be read by people.
struct Shown(Value);

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Shown;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("MessagePack")
            }

            fn visit_unit<E>(self) -> Result<Shown, E> {
                Ok(Shown(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Shown, E> {
                Ok(Shown(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Shown, E> {
                Ok(Shown(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Shown, E> {
                Ok(Shown(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Shown, E> {
                Ok(Shown(value.into()))
            }

            fn visit_bytes<E>(self, value: &[u8]) -> Result<Shown, E> {
                Ok(Shown(hex(value).into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Shown, A::Error> {
                let mut list = Vec::new();
                while let Some(Shown(part)) = parts.next_element()? {
                    list.push(part);
                }
                Ok(Shown(list.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Shown, A::Error> {
                let mut map = Map::new();
                while let Some((name, Shown(value))) = entries.next_entry::<String, Shown>()? {
                    map.insert(name, value);
                }
                Ok(Shown(map.into()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
