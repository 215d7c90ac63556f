//! The JSON Schemas in `schemas/` are those of the types; `UPDATE_SCHEMAS=1` writes them anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::domain::event::Event;
use crate::domain::id::IntentId;
use crate::domain::release::Manifest;
use crate::domain::rollout::RolloutEvent;
use crate::wire::payload::{Answer, Beat, EventRecord, Intent, Order, Query, Trust};

/// Written by the tests of `config` and `http`.
const OF_OTHERS: &[&str] = &["node.v1.json", "openapi.json", "project.v1.json", "spec.v1.json"];

const RULE: &str = "This describes the JSON form of a MessagePack map. A MessagePack `bin` of fixed length (an id, \
                    a key, a digest) is lower-case hex in JSON, which its `pattern` shows; any other `bin` is \
                    base64 (RFC 4648, padded), which `contentEncoding` shows.";

fn schemas() -> BTreeMap<String, Value> {
    let payloads = [
        ("intent", schemars::schema_for!(Intent)),
        ("query", schemars::schema_for!(Query)),
        ("answer", schemars::schema_for!(Answer)),
        ("event", schemars::schema_for!(EventRecord)),
        ("beat", schemars::schema_for!(Beat)),
        ("trust", schemars::schema_for!(Trust)),
        ("order", schemars::schema_for!(Order)),
        ("manifest", schemars::schema_for!(Manifest)),
    ];
    let payloads = payloads.into_iter().map(|(name, schema)| (name.to_owned(), schema));
    let bodies =
        Event::schemas().into_iter().map(|(kind, schema)| (format!("event.{kind}"), schema));
    let facts = RolloutEvent::schemas().into_iter();
    let facts = facts.map(|(kind, schema)| (format!("event.{kind}"), in_a_rollout(schema)));
    payloads
        .chain(bodies)
        .chain(facts)
        .map(|(name, schema)| (format!("{name}.v1.json"), told(schema)))
        .collect()
}

/// Returns the schema of the body around a fact: `{rollout, fact}`.
fn in_a_rollout(fact: schemars::Schema) -> schemars::Schema {
    let mut fact = fact.to_value();
    let definitions = fact.as_object_mut().and_then(|fact| fact.remove("$defs"));
    let mut rollout = schemars::schema_for!(IntentId).to_value();
    for part in [&mut fact, &mut rollout] {
        part.as_object_mut().map(|part| part.remove("$schema"));
    }
    schemars::json_schema!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": { "rollout": rollout, "fact": fact },
        "required": ["rollout", "fact"],
        "$defs": definitions.unwrap_or_default(),
    })
}

fn told(schema: schemars::Schema) -> Value {
    let mut schema = schema.to_value();
    schema["$comment"] = Value::String(RULE.to_owned());
    schema
}

#[test]
fn the_schemas_are_those_of_the_types() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let schemas = schemas();
    for (name, schema) in &schemas {
        let text = serde_json::to_string_pretty(schema).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            fs::write(dir.join(name), &text).unwrap();
        }
        let there = fs::read_to_string(dir.join(name)).unwrap_or_default();
        let hint = "UPDATE_SCHEMAS=1 rewrites it";
        assert!(there == text, "schemas/{name} is not what the types say: {hint}");
    }
    for file in fs::read_dir(&dir).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let known = schemas.contains_key(&name) || OF_OTHERS.contains(&name.as_str());
        assert!(known, "schemas/{name} belongs to no type");
    }
}
