//! Effective values: what they are, where they were set, what they hide, and how they change.

use super::table::{Align, Table};
use crate::cli::plan::{KeyChange, Plan, Step};
use crate::config::{Effective, json_value};
use crate::domain::origin::Origin;

/// Renders effective values; with or without their origins and what they hide.
pub fn effective(
    values: &[(&String, &Effective)],
    origin: bool,
    hidden: bool,
    width: Option<u16>,
) -> String {
    let heads = ["KEY", "VALUE", "FROM (LAYER)", "HIDES"];
    let shown = [true, true, origin, hidden];
    let heads: Vec<_> = heads.into_iter().zip(shown).filter(|(_, shown)| *shown).collect();
    let heads: Vec<_> = heads.into_iter().map(|(head, _)| (head, Align::Left)).collect();
    let mut table = Table::new(&heads);
    let mut row = |cells: [String; 4]| {
        let cells = cells.into_iter().zip(shown).filter(|(_, shown)| *shown);
        table.row(cells.map(|(cell, _)| cell));
    };
    for (key, it) in values {
        let mut hides = it.hides.iter().map(|(value, origin)| format!("{}  {origin}", line(value)));
        let first = hides.next().unwrap_or_default();
        row([(*key).clone(), line(&it.value), numbered(&it.origin), first]);
        for more in hides.filter(|_| hidden) {
            row([String::new(), String::new(), String::new(), more]);
        }
    }
    table.render(width)
}

/// Renders what an apply would do; empty where it would do nothing.
pub fn plan(plan: &Plan, width: Option<u16>) -> String {
    let mut text = String::new();
    for planned in &plan.services {
        let words = match planned.step {
            Step::Start => "new: it is started",
            Step::Keep => "new: its file says enabled = false, so it is not started",
            Step::Restart => "changed: it restarts",
            Step::HandOver => "changed: a new run takes over when it is ready",
            Step::Later => "changed: it is not running, and nothing restarts",
            Step::InPlace => "changed: nothing restarts",
            Step::Unknown => "changed; what in it cannot be read here",
            Step::Stop => "gone: it is stopped and removed",
        };
        text.push_str(&format!("  {}  {words}\n", planned.service));
        text.push_str(&keys_table(&planned.keys, width));
    }
    text
}

/// Renders how effective values change.
pub fn keys_table(keys: &[KeyChange], width: Option<u16>) -> String {
    let mut table = Table::new(&[("", Align::Left); 3]);
    for KeyChange { key, from, to, origin } in keys {
        let value = |value: &Option<String>| value.as_deref().map_or("-".to_owned(), line);
        let origin = origin.as_ref().map(numbered).unwrap_or_default();
        table.row([format!("      {key}"), format!("{} → {}", value(from), value(to)), origin]);
    }
    table.render(width).split_inclusive('\n').skip(1).collect()
}

fn numbered(origin: &Origin) -> String {
    format!("{origin} ({})", origin.layer.number())
}

/// Returns a value in one line.
fn line(toml: &str) -> String {
    match toml {
        "" => "(not told)".to_owned(),
        _ if toml.contains('\n') => plain(&json_value(toml)),
        _ => toml.to_owned(),
    }
}

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Array(values) => {
            format!("[{}]", values.iter().map(plain).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::origin::Layer;

    #[test]
    fn each_value_stands_with_its_origin_and_what_it_hides() {
        let of = |layer, file: &str, line| Origin::line(layer, file.to_owned(), line);
        let key = "env_files".to_owned();
        let over = "/etc/smgr/override.d/web.toml";
        let host = of(Layer::Host, "/etc/smgr/services.d/web.toml", 4);
        let value = Effective {
            value: "[\n  \"/b\", # new\n  \"/c\",\n]".to_owned(),
            origin: of(Layer::Node, over, 3),
            hides: vec![("[\"/a\"]".to_owned(), host), ("[]".to_owned(), Origin::built_in())],
        };
        let screen = effective(&[(&key, &value)], true, true, None);
        let expected = "\
KEY        VALUE         FROM (LAYER)                         HIDES
env_files  [\"/b\", \"/c\"]  /etc/smgr/override.d/web.toml:3 (7)  [\"/a\"]  /etc/smgr/services.d/web.toml:4
                                                              []  built-in
";
        assert_eq!(screen, expected);
        let screen = effective(&[(&key, &value)], false, false, None);
        assert_eq!(screen, "KEY        VALUE\nenv_files  [\"/b\", \"/c\"]\n");
    }
}
