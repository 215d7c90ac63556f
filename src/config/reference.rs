//! What the tables of keys become for readers: `smgr help spec`, `docs/spec.md`, JSON Schemas.

use serde_json::{Map, Value, json};

use super::keys::{Default, Key, Kind, NODE, SERVICE, Status};

/// What a block is for, in a line.
const BLOCKS: &[(&str, &str)] = &[
    ("", "The service itself"),
    ("env", "Its environment, which is otherwise clean"),
    ("credential.*", "A secret, as a file in $CREDENTIALS_DIRECTORY"),
    ("depends_on.*", "What has to be there before it starts"),
    ("socket.*", "A socket that outlives its processes"),
    ("ready", "When a start counts as done"),
    ("health.*", "A probe"),
    ("restart", "What follows an exit"),
    ("stop", "How it is stopped"),
    ("reload", "How it reads its configuration anew"),
    ("update", "From release to release on one node"),
    ("limits", "Its share of the machine"),
    ("sandbox", "What it is kept from"),
    ("log", "What becomes of its output"),
    ("release", "What is kept of releases"),
    ("placement", "On which nodes it runs"),
    ("rollout", "From release to release in the fleet"),
    ("rollout.check.*", "How a release is judged"),
    ("rollback", "The way back"),
    ("action.*", "What it can be asked to do"),
    ("action.*.params.*", "A parameter of an action"),
    ("alert.*", "When somebody is told"),
    ("alert.*.labels", "Added to an alert"),
    ("alert.*.annotations", "Added to an alert"),
    ("node", "Who this node is"),
    ("history", "The event log"),
    ("agent", "smgr's own parts"),
    ("bus", "Connection to others"),
    ("metrics", "Figures for Prometheus"),
    ("receiver.*", "Where alerts go"),
];

const RULES: &str = "\
One service is one body: `services.d/NAME.toml` is it, and a project's `./smgr.toml` holds the
same bodies under `[service.NAME]`. Keys that smgr does not know are refused; a key or value
marked *later* is known and refused until its version. Durations and sizes have units: \"250ms\",
\"1h30m\", \"512MiB\", \"10MB\". Programs are lists of arguments; there is no shell. `${name}` stands
for service, instance, run, node, fleet, runtime (a folder of its own for each run) or release
(the folder of what was deployed: what the archive holds, or one file by the name of the service),
and in an action for its parameters; in a check of a rollout for service and nodes (`n1|n2`: those
that run the release, as a regular expression) alone; `$$` is a dollar sign; environment variables
are not expanded. Tables of several layers merge, everything else replaces, and `enabled = false`
switches a block with a name of its own off.
A stop sends `stop.signal` to the main process. Once that has ended, what it left behind is sent
the signal too, and what is left of its tree at `stop.timeout` is killed.
";

/// Splits a path into its block and its last name.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// Returns the blocks of a table in its order, each with its keys.
fn blocks(table: &'static [Key]) -> Vec<(&'static str, Vec<&'static Key>)> {
    let mut blocks: Vec<(&str, Vec<&Key>)> = Vec::new();
    for key in table {
        let (block, _) = split(key.path);
        match blocks.iter_mut().find(|(known, _)| *known == block) {
            Some((_, keys)) => keys.push(key),
            None => blocks.push((block, vec![key])),
        }
    }
    blocks
}

fn about(block: &str) -> &'static str {
    BLOCKS.iter().find(|(known, _)| *known == block).map_or("", |(_, about)| about)
}

/// Writes a path as it stands in a file.
fn shown(path: &str) -> String {
    path.replace('*', "NAME")
}

fn default_words(default: Default) -> &'static str {
    match default {
        Default::Required => "required",
        Default::None => "none",
        Default::Toml(text) | Default::Words(text) => text,
    }
}

/// Returns the values of a key, with those that come later marked.
fn takes(key: &Key) -> String {
    let (Kind::Choice(choices), Status::Served) = (key.kind, key.status) else {
        return key.kind.words();
    };
    let words = choices.iter().map(|choice| match choice.status {
        Status::Served => choice.name.to_owned(),
        Status::Reserved => format!("{} (later)", choice.name),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Returns the text of `smgr help spec`.
pub fn spec_help() -> String {
    let mut text = RULES.replace(['`', '*'], "");
    for (block, keys) in blocks(SERVICE) {
        let later = keys.iter().all(|key| key.status == Status::Reserved);
        let head =
            if block.is_empty() { "(top)".to_owned() } else { format!("[{}]", shown(block)) };
        let mark = if later { "  (later)" } else { "" };
        text.push_str(&format!("\n{head}  {}{mark}\n", about(block)));
        for key in keys {
            let (_, name) = split(key.path);
            let mark = if key.status == Status::Reserved && !later { "  (later)" } else { "" };
            let takes = takes(key);
            let default = match key.default {
                Default::Required => "; required".to_owned(),
                Default::None => String::new(),
                Default::Toml(text) | Default::Words(text) => format!("; default: {text}"),
            };
            text.push_str(&format!("  {:<24}{}{mark}\n", shown(name), key.doc));
            text.push_str(&format!("  {:<24}  {takes}{default}\n", ""));
        }
    }
    text
}

/// Returns the page `docs/spec.md`.
pub fn spec_markdown() -> String {
    let mut page = format!(
        "# The spec file\n\nMade from `src/config/keys/`; `smgr help spec` prints the same.\n\n{RULES}"
    );
    tables(&mut page, SERVICE);
    page.push_str("\n# The node's own file\n\n`/etc/smgr/smgr.toml`; every key is optional.\n");
    tables(&mut page, NODE);
    page
}

fn tables(page: &mut String, table: &'static [Key]) {
    for (block, keys) in blocks(table) {
        let head =
            if block.is_empty() { "Top".to_owned() } else { format!("`[{}]`", shown(block)) };
        page.push_str(&format!("\n## {head}\n\n{}.\n\n", about(block)));
        page.push_str("| key | takes | default | meaning |\n|---|---|---|---|\n");
        for key in keys {
            let (_, name) = split(key.path);
            let later = if key.status == Status::Reserved { " *later*" } else { "" };
            let words = default_words(key.default);
            let is_value = matches!(key.default, Default::Toml(_));
            let default = if is_value { format!("`{words}`") } else { words.to_owned() };
            let (name, takes) = (shown(name), takes(key));
            page.push_str(&format!("| `{name}`{later} | {takes} | {default} | {} |\n", key.doc));
        }
    }
}

/// Returns the JSON Schema of the body of a service.
pub fn service_schema() -> Value {
    let mut schema = object(SERVICE, "");
    schema["required"] = json!(["exec"]);
    titled(schema, "A service of smgr: services.d/NAME.toml")
}

/// Returns the JSON Schema of a project's `smgr.toml`.
pub fn project_schema() -> Value {
    let mut service = object(SERVICE, "");
    service["required"] = json!(["exec"]);
    let schema = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "spec": { "const": 1, "default": 1 },
            "service": {
                "type": "object",
                "propertyNames": { "pattern": NAME_PATTERN },
                "additionalProperties": service,
            },
        },
    });
    titled(schema, "The services of a project: smgr.toml")
}

/// Returns the JSON Schema of the node's own file.
pub fn node_schema() -> Value {
    titled(object(NODE, ""), "A node of smgr: /etc/smgr/smgr.toml")
}

const NAME_PATTERN: &str = "^[a-z0-9-]{1,63}$";

fn titled(schema: Value, title: &str) -> Value {
    let mut whole = Map::new();
    whole.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    whole.insert("title".to_owned(), json!(title));
    if let Value::Object(schema) = schema {
        whole.extend(schema);
    }
    Value::Object(whole)
}

/// Returns the schema of a block: of all keys below `prefix`, which is empty or ends with a dot.
fn object(table: &'static [Key], prefix: &str) -> Value {
    let mut properties = Map::new();
    let mut any = None;
    for key in table {
        let Some(rest) = key.path.strip_prefix(prefix) else { continue };
        let (name, deeper) = match rest.split_once('.') {
            Some((name, _)) => (name, true),
            None => (rest, false),
        };
        if name != "*" && properties.contains_key(name) || name == "*" && any.is_some() {
            continue;
        }
        let schema = if deeper { object(table, &format!("{prefix}{name}.")) } else { value(key) };
        match name {
            "*" => any = Some(schema),
            _ => drop(properties.insert(name.to_owned(), schema)),
        }
    }
    match any {
        Some(schema) => {
            let pattern = if prefix == "env." { "^[A-Za-z_][A-Za-z0-9_]*$" } else { NAME_PATTERN };
            json!({
                "type": "object",
                "propertyNames": { "pattern": pattern },
                "additionalProperties": schema,
            })
        }
        // What a block requires may stand in another layer, so a file is complete without it.
        None => json!({
            "type": "object",
            "additionalProperties": false,
            "properties": properties,
        }),
    }
}

fn value(key: &Key) -> Value {
    let list = |items: Value| json!({ "type": "array", "items": items });
    let text = json!({ "type": "string" });
    let mut schema = match key.kind {
        Kind::Version => json!({ "const": 1 }),
        Kind::Text | Kind::Template | Kind::Regex | Kind::Signal | Kind::EnvName | Kind::User => {
            text
        }
        Kind::Path => json!({ "type": "string", "minLength": 1 }),
        Kind::Paths | Kind::Texts | Kind::Names | Kind::Regexes => list(text),
        Kind::Argv => json!({ "type": "array", "items": text, "minItems": 1 }),
        Kind::Name => json!({ "type": "string", "pattern": NAME_PATTERN }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Integer(min, max) => {
            let mut schema = json!({ "type": "integer" });
            if min != i64::MIN {
                schema["minimum"] = json!(min);
            }
            if max != i64::MAX {
                schema["maximum"] = json!(max);
            }
            schema
        }
        Kind::Number(min, max) => {
            let [min, max] = [min, max].map(|n| f64::from(n) / 1000.0);
            json!({ "type": "number", "minimum": min, "maximum": max })
        }
        Kind::Duration => json!({ "type": "string", "pattern": "^([0-9]+(ms|s|m|h|d|w))+$" }),
        Kind::Size => {
            json!({ "type": "string", "pattern": "^(0|[0-9]+(KiB|MiB|GiB|kB|MB|GB))$" })
        }
        Kind::Percent => json!({ "type": "string", "pattern": "^[0-9]{1,3}%$" }),
        Kind::Amount => amount_schema(),
        Kind::Amounts => json!({ "anyOf": [amount_schema(), list(amount_schema())] }),
        Kind::Figure => json!({ "type": "number" }),
        Kind::Rate => json!({ "type": "string", "pattern": "^[0-9]+/s$" }),
        Kind::Mode => json!({ "type": "string", "pattern": "^0?[0-7]{3}$" }),
        Kind::Choice(choices) => {
            json!({ "enum": choices.iter().map(|choice| choice.name).collect::<Vec<_>>() })
        }
        Kind::ExitCodes => list(json!({ "type": "integer", "minimum": 0, "maximum": 255 })),
        Kind::Source => json!({ "type": "string", "pattern": "^(file|sealed|systemd):" }),
        Kind::Scalar => json!({ "type": ["string", "integer", "boolean"] }),
        Kind::Other(_) => json!({}),
    };
    let later = if key.status == Status::Reserved { " (later)" } else { "" };
    schema["description"] = json!(format!("{}{later}", key.doc));
    if let Default::Toml(text) = key.default
        && let Ok(default) = text.parse::<toml_edit::Value>()
    {
        schema["default"] = as_json(&default);
    }
    schema
}

fn amount_schema() -> Value {
    json!({ "anyOf": [
        { "type": "integer", "minimum": 0 },
        { "type": "string", "pattern": "^[0-9]{1,3}%$" },
    ] })
}

fn as_json(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => json!(text.value()),
        toml_edit::Value::Integer(number) => json!(number.value()),
        toml_edit::Value::Float(number) => json!(number.value()),
        toml_edit::Value::Boolean(flag) => json!(flag.value()),
        toml_edit::Value::Array(list) => list.iter().map(as_json).collect(),
        toml_edit::Value::Datetime(_) | toml_edit::Value::InlineTable(_) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::domain::code;

    /// Compares a generated file with what is checked in, or writes it under `UPDATE_SCHEMAS=1`.
    fn is_current(path: &str, text: &str) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, text).unwrap();
        }
        let there = fs::read_to_string(&file).unwrap_or_default();
        assert!(there == text, "{path} is not what the code says: UPDATE_SCHEMAS=1 rewrites it");
    }

    #[test]
    fn the_pages_and_schemas_are_those_of_the_tables() {
        is_current("docs/errors.md", &code::markdown());
        is_current("docs/spec.md", &spec_markdown());
        let schemas =
            [("spec", service_schema()), ("project", project_schema()), ("node", node_schema())];
        for (name, schema) in schemas {
            let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
            is_current(&format!("schemas/{name}.v1.json"), &text);
        }
    }

    #[test]
    fn every_block_is_described_and_every_key_is_in_the_help() {
        for (block, _) in blocks(SERVICE).into_iter().chain(blocks(NODE)) {
            assert!(!about(block).is_empty(), "{block}");
        }
        let help = spec_help();
        for key in SERVICE {
            assert!(help.contains(key.doc), "{}", key.path);
        }
        assert!(help.lines().all(|line| line.len() <= 100 || line.contains("later")), "{help}");
    }

    #[test]
    fn the_schema_takes_what_the_parser_takes() {
        let schema = service_schema();
        assert_eq!(schema["properties"]["stop"]["properties"]["timeout"]["default"], "30s");
        let action = &schema["properties"]["action"]["additionalProperties"]["properties"];
        assert_eq!(action["exec"]["type"], "array");
        let param = &action["params"]["additionalProperties"]["properties"];
        assert_eq!(param["type"]["enum"][0], "string");
        assert_eq!(schema["properties"]["env"]["additionalProperties"]["type"], "string");
    }
}
