//! Holds documents against the schemas of `schemas/openapi.json`: as much of JSON Schema as those use, and no unknown member.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

/// The OpenAPI document as it is published.
pub(crate) static PUBLISHED: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../schemas/openapi.json")).unwrap());

/// Demands that a document which says by `schema` what it is, is that.
pub(crate) fn is_as_published(document: &Value) {
    let mistakes = mistakes(document);
    assert!(mistakes.is_empty(), "{}\n{document:#}", mistakes.join("\n"));
}

/// Says what a document has otherwise than the schema of its name.
pub(crate) fn mistakes(document: &Value) -> Vec<String> {
    let name = &document["schema"];
    let schemas = PUBLISHED["components"]["schemas"].as_object().unwrap();
    let is_it = |schema: &&Value| schema["properties"]["schema"]["const"] == *name;
    match schemas.values().find(is_it) {
        Some(schema) if name.is_string() => differences(schema, document),
        _ => vec![format!("no schema for {name}")],
    }
}

/// Returns the schema of what a route answers.
pub(crate) fn of_answer(method: &str, path: &str, status: &str) -> &'static Value {
    &PUBLISHED["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"]
}

/// Says what a value has otherwise than a schema.
pub(crate) fn differences(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look(schema, value, "", &mut found);
    found
}

fn look(schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let schema = match schema {
        Value::Bool(true) => return,
        Value::Object(schema) => schema,
        other => panic!("{at}: {other} is no schema"),
    };
    let fits = |schema: &Value| differences(schema, value).is_empty();
    for (keyword, rule) in schema {
        let holds = match keyword.as_str() {
            "description" | "title" | "default" => true,
            // Members are looked at below.
            "properties" | "patternProperties" | "additionalProperties" | "required" => true,
            "$ref" => {
                let place = rule.as_str().unwrap().strip_prefix('#').unwrap();
                look(PUBLISHED.pointer(place).expect(place), value, at, found);
                true
            }
            "type" => match rule {
                Value::Array(types) => types.iter().any(|it| is_of(it, value)),
                one => is_of(one, value),
            },
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "oneOf" => rule.as_array().unwrap().iter().filter(|it| fits(it)).count() == 1,
            "anyOf" => rule.as_array().unwrap().iter().any(fits),
            "minimum" => value.as_f64().is_none_or(|it| it >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|it| it <= rule.as_f64().unwrap()),
            "pattern" => value.as_str().is_none_or(|it| matches(rule.as_str().unwrap(), it)),
            "format" => match rule.as_str().unwrap() {
                "date-time" => value.as_str().is_none_or(is_time),
                "uint" | "uint8" | "uint16" | "uint32" | "uint64" | "int32" => true,
                other => panic!("{at}: the format {other} is not known here"),
            },
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    look(rule, item, &format!("{at}/{index}"), found);
                }
                true
            }
            other => panic!("{at}: the keyword {other} is not known here"),
        };
        if !holds {
            found.push(format!("{at}: {value} is not as {keyword} {rule} says"));
        }
    }
    if let Value::Object(members) = value {
        look_at_members(schema, members, at, found);
    }
}

fn look_at_members(
    schema: &Map<String, Value>,
    members: &Map<String, Value>,
    at: &str,
    found: &mut Vec<String>,
) {
    let rules = |keyword: &str| schema.get(keyword).and_then(Value::as_object);
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    let missing = required.filter_map(Value::as_str).filter(|it| !members.contains_key(*it));
    found.extend(missing.map(|it| format!("{at}: `{it}` is missing")));
    // What refers to another schema, or says only that it is an object, names no members itself.
    if rules("properties").is_none() && !schema.contains_key("additionalProperties") {
        return;
    }
    for (name, member) in members {
        let at = format!("{at}/{name}");
        let by_name = rules("properties").and_then(|rules| rules.get(name));
        let mut by_pattern = rules("patternProperties").into_iter().flatten();
        let by_pattern = by_pattern.find(|(pattern, _)| matches(pattern, name));
        let rule = by_name.or(by_pattern.map(|(_, rule)| rule));
        match rule.or(schema.get("additionalProperties")) {
            Some(Value::Bool(false)) | None => found.push(format!("{at} is in no schema")),
            Some(rule) => look(rule, member, &at, found),
        }
    }
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the type {other} is not known here"),
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    Regex::new(pattern).unwrap().is_match(text)
}

fn is_time(text: &str) -> bool {
    matches(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$", text)
}
