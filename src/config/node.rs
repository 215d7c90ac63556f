//! The node's own file, `/etc/smgr/smgr.toml`.

use std::collections::BTreeMap;
use std::path::Path;

use super::keys::NODE;
use super::load::read_text;
use super::merge::Merged;
use super::mistake::Mistake;
use super::owner;
use super::read;
use super::source::Source;
use crate::domain::code::Code;
use crate::domain::id::{NodeId, map_to_token};
use crate::domain::origin::Layer;
use crate::domain::spec::{Bytes, Millis};
use crate::domain::template::Template;

/// The names that `${name}` may use in the node's own file.
const NAMES: &[&str] = &["hostname"];

/// The least size of a log: two segments.
const HISTORY_BYTES_MIN: u64 = 128 << 20;

/// The settings of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name in the fleet.
    pub id: NodeId,
    /// Where the event log lies, absolute.
    pub history_dir: String,
    /// How long segments are kept.
    pub history_retain: Millis,
    /// How much is kept; at least two segments are.
    pub history_max_size: Bytes,
    /// How much is preallocated for a full disk.
    pub history_reserve: Bytes,
    /// How many services there may be.
    pub services_max: u32,
    /// For keeper, agent and uplink; reset in every service.
    pub oom_score_adjust: i16,
    /// NATS servers; empty is no bus.
    pub bus_urls: Vec<String>,
}

/// What holds on this machine when the file says nothing.
#[derive(Clone, Debug)]
pub struct NodeDefaults {
    /// The host name, as the kernel tells it.
    pub hostname: String,
    /// Where the event log lies.
    pub history_dir: String,
}

impl NodeDefaults {
    /// Returns the documented defaults of a machine with this host name.
    pub fn system(hostname: impl Into<String>) -> Self {
        Self { hostname: hostname.into(), history_dir: "/var/lib/smgr/log".to_owned() }
    }
}

/// Reads the node's own file; without it, everything is as by default.
///
/// With `writer`, it has to be writable by root and by this user id only.
pub fn load_node(
    path: &Path,
    defaults: &NodeDefaults,
    writer: Option<u32>,
) -> Result<NodeConfig, Vec<Mistake>> {
    if !path.exists() {
        return parse_node(&path.display().to_string(), "", defaults);
    }
    if let Some(uid) = writer {
        owner::check(path, uid).map_err(|mistake| vec![mistake])?;
    }
    let text = read_text(path).map_err(|mistake| vec![mistake])?;
    parse_node(&path.display().to_string(), &text, defaults)
}

/// Reads the text of the node's own file, or says all that is wrong with it.
pub fn parse_node(
    shown: &str,
    text: &str,
    defaults: &NodeDefaults,
) -> Result<NodeConfig, Vec<Mistake>> {
    let source = Source::new(shown, Layer::Host, text);
    let document = read::parse(&source).map_err(|mistake| vec![mistake])?;
    let mut mistakes = Vec::new();
    let settings = read::read(&source, NODE, NAMES, document.as_table(), &[], &mut mistakes);
    let quoted = toml_edit::Value::from(defaults.history_dir.replace('$', "$$")).to_string();
    let built_in = BTreeMap::from([("history.dir", quoted)]);
    let merged = Merged::new(NODE, vec![(Layer::Host, settings)], built_in);
    let whole = source.whole();
    let place = |path: &[&str]| merged.place(path).unwrap_or(&whole);

    let expand = |path: &[&str]| {
        let text = merged.text(path).unwrap_or_default();
        let label = first_label(&defaults.hostname);
        Template::new(text).expand(|name| (name == "hostname").then(|| label.clone()))
    };
    // What cannot be expanded was refused when it was read.
    let id = expand(&["node", "id"]).unwrap_or_default();
    let id = id.parse::<NodeId>().map_err(|_| {
        let hint = match map_to_token(&id) {
            mapped if mapped.is_empty() => "write id = \"n1\" in [node]".to_owned(),
            mapped => format!("`{mapped}` would do"),
        };
        let label = "names are 1 to 63 of a-z, 0-9 and `-`";
        mistakes.push(place(&["node", "id"]).mistake(Code::BAD_NAME, label).hint(hint));
    });
    let history_dir = expand(&["history", "dir"]).unwrap_or_default();
    if !history_dir.starts_with('/') {
        let mistake = place(&["history", "dir"]).mistake(Code::BAD_PATH, "not an absolute path");
        mistakes.push(mistake.hint("start it with `/`"));
    }
    let history_max_size = merged.bytes(&["history", "max_size"]);
    if history_max_size.0 < HISTORY_BYTES_MIN {
        let label = "two segments of 64 MiB are always kept";
        let mistake = place(&["history", "max_size"]).mistake(Code::OUT_OF_RANGE, label);
        mistakes.push(mistake.hint("max_size = \"128MiB\" or more"));
    }
    let history_reserve = merged.bytes(&["history", "reserve"]);
    if history_reserve > history_max_size {
        let label = "`reserve` is more than `max_size`";
        let mistake = place(&["history", "reserve"]).mistake(Code::CONTRADICTION, label);
        mistakes.push(mistake.hint("reserve = \"32MiB\""));
    }
    let bus_urls = merged.texts(&["bus", "urls"]).unwrap_or_default();
    for url in &bus_urls {
        let rest = url.strip_prefix("nats://").or_else(|| url.strip_prefix("tls://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.contains(char::is_whitespace)) {
            let label = "not the URL of a NATS server";
            let mistake = place(&["bus", "urls"]).mistake(Code::BAD_PATH, label);
            mistakes.push(mistake.hint("urls = [\"nats://127.0.0.1:4222\"], or tls://"));
        }
    }
    match id {
        Ok(id) if mistakes.is_empty() => Ok(NodeConfig {
            id,
            history_dir,
            history_retain: merged.millis(&["history", "retain"]),
            history_max_size,
            history_reserve,
            services_max: merged.integer(&["agent", "services_max"]),
            oom_score_adjust: merged.integer(&["agent", "oom_score_adjust"]),
            bus_urls,
        }),
        _ => Err(mistakes),
    }
}

/// Returns the first label of a host name as a name of ours.
fn first_label(hostname: &str) -> String {
    map_to_token(hostname.split('.').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{json, render};

    fn parse(text: &str) -> Result<NodeConfig, Vec<Mistake>> {
        parse_node("/etc/smgr/smgr.toml", text, &NodeDefaults::system("Web_01.example.com"))
    }

    #[test]
    fn an_empty_file_is_the_documented_defaults() {
        let node = parse("").unwrap();
        assert_eq!(node.id.as_str(), "web-01");
        assert_eq!(node.history_dir, "/var/lib/smgr/log");
        assert_eq!(node.history_retain, Millis::from_secs(90 * 24 * 3600));
        assert_eq!(
            (node.history_max_size, node.history_reserve),
            (Bytes(1 << 30), Bytes(32 << 20))
        );
        assert_eq!((node.services_max, node.oom_score_adjust), (5000, -900));
        assert!(node.bus_urls.is_empty());
        let spelt_out = "[node]\nid = \"${hostname}\"\n[history]\ndir = \"/var/lib/smgr/log\"\n\
                         retain = \"90d\"\nmax_size = \"1GiB\"\nreserve = \"32MiB\"\n\
                         on_full = \"supervise\"\n[agent]\nservices_max = 5000\n\
                         oom_score_adjust = -900\n[bus]\nurls = []\n";
        assert_eq!(parse(spelt_out), Ok(node));
    }

    #[test]
    fn its_mistakes_have_the_same_screen() {
        let mistakes = parse(
            "[node]\nid = \"N1.example\"\n[histroy]\n[history]\nmax_size = \"64MiB\"\n\
             on_full = \"hold\"\n[metrics]\nlisten = \"\"\n[bus]\nurls = [\"http://x\"]\n",
        )
        .unwrap_err();
        let codes: Vec<Code> = mistakes.iter().map(|mistake| mistake.code).collect();
        for code in [Code::BAD_NAME, Code::UNKNOWN_KEY, Code::OUT_OF_RANGE, Code::RESERVED_KEY] {
            assert!(codes.contains(&code), "{codes:?}");
        }
        let screen = render(&mistakes, "nothing was started", None);
        assert!(screen.contains("did you mean `history`?"), "{screen}");
        assert_eq!(json(&mistakes)["exit_code"], 8);
    }

    #[test]
    fn a_host_without_a_usable_name_has_to_be_named() {
        let error = parse_node("x", "", &NodeDefaults::system("...")).unwrap_err();
        assert_eq!(error[0].code, Code::BAD_NAME);
        assert!(parse_node("x", "[node]\nid = \"n1\"", &NodeDefaults::system("")).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,80}", hostname in ".*") {
            drop(parse_node("x", &text, &NodeDefaults::system(hostname)));
        }
    }
}
