//! `schemas/openapi.json` is made from the table of routes and the types; `UPDATE_SCHEMAS=1` writes it anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::asked::{AskedDocument, Deploy};
use super::events::EventsDocument;
use super::problem::ProblemDocument;
use super::routes::{ROUTES, Route, Sent};
use super::wishes::{ENVELOPE, Wish};
use crate::cli::json::error::ResultDocument;
use crate::cli::json::history::HistoryDocument;
use crate::cli::json::status::StatusDocument;
use crate::domain::rollout::view::{RolloutView, RolloutsView};

fn document() -> Value {
    let schemas = schemas();
    let mut paths = Map::new();
    for route in ROUTES {
        let place = paths.entry(route.path).or_insert_with(|| json!({}));
        place[route.method] = operation(route, &schemas);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "smgr controller",
            "version": "1",
            "description": "A fleet over HTTP. The documents are those of `smgr -o json`; within v1 members are added, \
                            never removed, renamed or re-typed.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}

/// Returns the schemas of everything that is sent or answered, and of what that consists of, by name.
fn schemas() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut sent = settings.clone().for_deserialize().into_generator();
    sent.subschema_for::<Wish>();
    sent.subschema_for::<Deploy>();
    let mut answered = settings.for_serialize().into_generator();
    answered.subschema_for::<AskedDocument>();
    answered.subschema_for::<EventsDocument>();
    answered.subschema_for::<HistoryDocument>();
    answered.subschema_for::<ProblemDocument>();
    answered.subschema_for::<ResultDocument>();
    answered.subschema_for::<RolloutView>();
    answered.subschema_for::<RolloutsView>();
    answered.subschema_for::<StatusDocument>();
    let mut schemas = sent.take_definitions(true);
    for (name, schema) in answered.take_definitions(true) {
        let known = schemas.insert(name.clone(), schema.clone());
        assert!(known.is_none_or(|known| known == schema), "two types are called {name}");
    }
    schemas.sort_keys();
    schemas
}

/// Returns where the schema of a document stands, which is known by its `schema` member.
fn place_of(document: &str, schemas: &Map<String, Value>) -> Value {
    let is_it = |schema: &Value| schema["properties"]["schema"]["const"] == document;
    let found = schemas.iter().find(|(_, schema)| is_it(schema));
    let (name, _) = found.unwrap_or_else(|| panic!("no type makes {document}"));
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// Returns what answers of one status hold, by their kinds.
fn content(answers: &[(&str, &str)], schemas: &Map<String, Value>) -> Map<String, Value> {
    let mut kinds: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (kind, document) in answers {
        let places = kinds.entry(kind).or_default();
        if !document.is_empty() {
            places.push(place_of(document, schemas));
        }
    }
    let content = |mut places: Vec<Value>| match places.len() {
        0 => json!({}),
        1 => json!({"schema": places.remove(0)}),
        _ => json!({"schema": {"oneOf": places}}),
    };
    kinds.into_iter().map(|(kind, places)| (kind.to_owned(), content(places))).collect()
}

fn operation(route: &Route, schemas: &Map<String, Value>) -> Value {
    let parameter = |place: &str, name: &str, what: &str| {
        json!({
            "name": name, "in": place, "required": place == "path", "description": what,
            "schema": {"type": "string"},
        })
    };
    let named = route.path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let parameters: Vec<Value> = named
        .map(|name| parameter("path", name, ""))
        .chain(route.query.iter().map(|(name, what)| parameter("query", name, what)))
        .chain(route.headers.iter().map(|(name, what)| parameter("header", name, what)))
        .collect();
    let mut responses = json!({
        "default": {
            "description": "A problem; nothing changed.",
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        },
    });
    let answers = route.answers.iter().copied();
    // A wish for the controllers is answered when it is durable; a result, also while some of it goes on.
    let (taken, told): (Vec<_>, Vec<_>) = answers.partition(|(_, it)| *it == AskedDocument::SCHEMA);
    let results = told.iter().copied().filter(|(_, it)| *it == ResultDocument::SCHEMA);
    let later: Vec<_> = results.chain(taken).collect();
    let (at_once, goes_on) =
        ("As asked.", "It goes on, or some nodes did not answer: see `Location`.");
    for (status, what, answers) in [("200", at_once, told), ("202", goes_on, later)] {
        if !answers.is_empty() {
            let content = content(&answers, schemas);
            responses[status] = json!({"description": what, "content": content});
        }
    }
    let mut operation = json!({
        "summary": route.what, "parameters": parameters, "responses": responses,
        "security": if route.by_token { json!([{"token": []}]) } else { json!([]) },
    });
    match route.body {
        Sent::Nothing => {}
        Sent::Wish => {
            operation["requestBody"] = json!({
                "required": true,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Wish"}}},
            });
        }
        Sent::Deploy => {
            operation["requestBody"] = json!({
                "required": true,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Deploy"}}},
            });
        }
        Sent::Envelope => {
            operation["requestBody"] = json!({
                "required": true,
                "content": {ENVELOPE: {"schema": {"type": "string", "format": "binary"}}},
            });
        }
    }
    operation
}

#[test]
fn the_openapi_document_is_that_of_the_routes_and_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/openapi.json");
    let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == text,
        "schemas/openapi.json is not what the routes say: UPDATE_SCHEMAS=1 rewrites it"
    );
}

#[test]
fn whatever_the_document_refers_to_is_in_it() {
    let document = document();
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let place = reference.split('"').next().unwrap();
        assert!(document.pointer(place).is_some(), "{place}");
    }
}
