//! `schemas/openapi.json` is made from the table of routes and the types; `UPDATE_SCHEMAS=1` writes it anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::asked::Deploy;
use super::routes::{ROUTES, Route, Sent};
use super::wishes::{ENVELOPE, Wish};

fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let place = paths.entry(route.path).or_insert_with(|| json!({}));
        place[route.method] = operation(route);
    }
    let mut schemas = Map::new();
    schemas.extend(schema_of::<Wish>("Wish"));
    schemas.extend(schema_of::<Deploy>("Deploy"));
    schemas.insert("Problem".to_owned(), problem());
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

/// Returns the schema of a type under its name, and those that it refers to.
fn schema_of<T: schemars::JsonSchema>(name: &str) -> Map<String, Value> {
    let settings = schemars::generate::SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    let mut parts = schema.as_object_mut().map(std::mem::take).unwrap_or_default();
    parts.remove("$schema");
    // They lie where they are referred to.
    let mut beside = parts.remove("components").unwrap_or_default();
    let mut schemas = match beside["schemas"].take() {
        Value::Object(definitions) => definitions,
        _ => Map::new(),
    };
    schemas.insert(name.to_owned(), Value::Object(parts));
    schemas
}

fn operation(route: &Route) -> Value {
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
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (kind, schema) in route.answers {
        kinds.entry(kind).or_default().push(schema);
    }
    let content: Map<String, Value> = kinds
        .into_iter()
        .map(|(kind, schemas)| {
            let name = match schemas[..] {
                [""] => return (kind.to_owned(), json!({})),
                [schema] => json!({"const": schema}),
                _ => json!({"enum": schemas}),
            };
            let schema =
                json!({"type": "object", "properties": {"schema": name}, "required": ["schema"]});
            (kind.to_owned(), json!({"schema": schema}))
        })
        .collect();
    let mut responses = json!({
        "default": {
            "description": "A problem; nothing changed.",
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        },
    });
    if !content.is_empty() {
        responses["200"] = json!({"description": "As asked.", "content": content});
    }
    if route.answers.iter().any(|(_, schema)| *schema == "smgr.result.v1") {
        responses["202"] = json!({
            "description": "Still running, or some nodes did not answer: ask again at `Location`.",
            "content": content,
        });
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

fn problem() -> Value {
    let text = |what: &str| json!({"type": "string", "description": what});
    let or_null = |what: &str| json!({"type": ["string", "null"], "description": what});
    json!({
        "type": "object",
        "description": "RFC 9457, with the members of smgr.error.v1.",
        "properties": {
            "type": text("urn:smgr:error:CODE."),
            "title": text("What the code means."),
            "status": {"type": "integer"},
            "detail": text("What happened."),
            "schema": {"const": "smgr.error.v1"},
            "code": {"type": "string", "pattern": "^E[0-9]{4}$"},
            "exit_code": {"type": "integer", "description": "How the command line would end."},
            "what": text("As `detail`."),
            "where": or_null("Which node, which file."),
            "because": {"type": "array", "items": {"type": "string"}},
            "hint": or_null("What can be done."),
            "next": text("The command to type next."),
        },
        "required": ["type", "title", "status", "detail", "schema", "code", "exit_code", "what"],
    })
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
