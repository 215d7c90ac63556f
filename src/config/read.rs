//! From the text of one file to typed settings, each at its place.
//!
//! Checks what can be said about a key alone: that it is known and served, and that its value is of
//! its kind. What needs other keys, or other files, is checked when a spec is built.

mod shell;
mod value;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use toml_edit::{Document, Item, TableLike};

pub(super) use value::Typed;

use super::keys::{self, Found, Key, Status};
use super::mistake::Mistake;
use super::source::{Place, Source};
use crate::domain::code::Code;
use crate::domain::id::{ServiceId, map_to_token};
use crate::domain::text::printable;

/// The names that `${name}` may use in what judges a rollout: it is about many nodes at once.
const CHECK_NAMES: &[&str] = &["service", "nodes"];

/// How many entries a block with free names may have.
const ENTRIES_MAX: usize = 1000;

/// The names that smgr gives values to in the environment of a service.
const ENV_RESERVED: &[&str] = &["NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"];
const ENV_RESERVED_PREFIXES: &[&str] = &["SMGR_", "LISTEN_"];

/// A key's value in one file.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) value: Typed,
    /// The value as it was written.
    pub(super) toml: String,
    /// Where the value is.
    pub(super) place: Place,
    /// Where its key is.
    pub(super) key: Place,
}

impl Setting {
    fn at(value: Typed, key: &Place) -> Self {
        Self { value, toml: String::new(), place: key.clone(), key: key.clone() }
    }
}

/// All that one file says, by path.
pub(super) type Settings = BTreeMap<Vec<String>, Setting>;

/// Parses a whole file.
pub(super) fn parse(source: &Arc<Source>) -> Result<Document<String>, Mistake> {
    if source.text.contains('\0') {
        return Err(Mistake::new(
            Code::NOT_TEXT,
            source.shown.clone(),
            None,
            "not text: holds NUL",
        ));
    }
    Document::parse(source.text.to_string()).map_err(|error| {
        let place = Place::new(source, error.span());
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        let message = printable(&message).into_owned();
        let what = format!("not TOML: {message}");
        place.mistake(Code::BAD_TOML, message).what(what).hint("reading stopped here")
    })
}

/// Reads one body: a whole file, or a table in it that stands at `at`.
pub(super) fn read(
    source: &Arc<Source>,
    table: &'static [Key],
    names: &'static [&'static str],
    body: &dyn TableLike,
    at: &[&str],
    mistakes: &mut Vec<Mistake>,
) -> Settings {
    let at = at.iter().map(|name| (*name).to_owned()).collect();
    let mut reader = Reader { source, table, names, at, settings: Settings::new(), mistakes };
    reader.block(&mut Vec::new(), body, false);
    reader.settings
}

struct Reader<'a> {
    source: &'a Arc<Source>,
    table: &'static [Key],
    names: &'static [&'static str],
    at: Vec<String>,
    settings: Settings,
    mistakes: &'a mut Vec<Mistake>,
}

impl Reader<'_> {
    /// Reads a block. In a reserved one only the names are checked, since its head was reported.
    fn block(&mut self, path: &mut Vec<String>, body: &dyn TableLike, reserved: bool) {
        let here: Vec<&str> = path.iter().map(String::as_str).collect();
        let keyed = keys::is_keyed(self.table, &here);
        if keyed && body.iter().count() > ENTRIES_MAX {
            let label = format!("{} has more than {ENTRIES_MAX} entries", self.section(path));
            let place = self.source.whole();
            self.mistakes.push(place.mistake(Code::TOO_MANY, label));
            return;
        }
        for (name, item) in body.iter() {
            let key = self.place(body.key(name).and_then(toml_edit::Key::span));
            path.push(name.to_owned());
            let here: Vec<&str> = path.iter().map(String::as_str).collect();
            let found = keys::find(self.table, &here);
            if keyed && let Some(mistake) = self.bad_name(path, &key) {
                self.mistakes.push(mistake);
            } else {
                self.entry(path, found, item, &key, reserved);
            }
            path.pop();
        }
    }

    fn entry(
        &mut self,
        path: &mut Vec<String>,
        found: Found,
        item: &Item,
        key: &Place,
        reserved: bool,
    ) {
        match found {
            Found::Nothing => {
                let (mistake, meant) = self.unknown(path, key);
                self.mistakes.push(mistake);
                if let Some(meant) = meant {
                    let outside = path[..path.len() - 1].iter().map(String::as_str);
                    self.refuse(outside.chain(meant.split('.')).map(str::to_owned), key);
                }
            }
            Found::Key(_) if reserved => {}
            Found::Key(known) if known.status == Status::Reserved => {
                self.mistakes.push(self.reserved(path, key));
                self.refuse(path.iter().cloned(), key);
            }
            Found::Key(known) => self.leaf(path, known, item, key),
            Found::Block(status) => {
                if status == Status::Reserved && !reserved {
                    self.mistakes.push(self.reserved(path, key));
                }
                let reserved = reserved || status == Status::Reserved;
                match item.as_table_like() {
                    Some(body) => {
                        if !reserved {
                            self.settings.insert(path.clone(), Setting::at(Typed::Block, key));
                        }
                        self.block(path, body, reserved);
                    }
                    None if reserved => {}
                    None => {
                        let mistake = self.not_a_block(path, item, key);
                        self.mistakes.push(mistake);
                    }
                }
            }
        }
    }

    fn leaf(&mut self, path: &[String], known: &'static Key, item: &Item, key: &Place) {
        let place = self.place(item.span());
        let Some(value) = item.as_value() else {
            let label = format!("`{}` takes {}, not a table", last(path), known.kind.object());
            let hint = format!("{} = {}", last(path), known.kind.example());
            self.mistakes.push(key.mistake(Code::WRONG_TYPE, label).hint(hint));
            return self.refuse(path.iter().cloned(), key);
        };
        let names = value::Names {
            known: match known.path.starts_with("rollout.check.") {
                true => CHECK_NAMES,
                false => self.names,
            },
            // The parameters of an action may stand in any layer.
            open: known.path == "action.*.exec",
        };
        match value::typed(known.kind, last(path), value, names) {
            Ok(typed) => {
                let toml = value.clone().decorated("", "").to_string();
                let setting = Setting { value: typed, toml, place, key: key.clone() };
                self.settings.insert(path.to_vec(), setting);
            }
            Err(wrong) => {
                let at = wrong.span.clone().or(value.span());
                let place = self.place(at);
                let what = format!("{}: {}", self.full(path), wrong.what);
                let mut mistake = place.mistake(wrong.code, wrong.what).what(what);
                mistake.hint = wrong.hint;
                self.mistakes.push(mistake);
                self.refuse(path.iter().cloned(), key);
            }
        }
    }

    /// Keeps in mind that something was meant to be set, so that nobody calls it missing.
    fn refuse(&mut self, path: impl Iterator<Item = String>, key: &Place) {
        self.settings.entry(path.collect()).or_insert_with(|| Setting::at(Typed::Refused, key));
    }

    /// Returns the mistake, and the key that was probably meant.
    fn unknown(&self, path: &[String], key: &Place) -> (Mistake, Option<String>) {
        let name = last(path);
        let outside = &path[..path.len() - 1];
        let section = self.section(outside);
        let label = format!("unknown key in {section}");
        let what = format!("unknown key `{}` in {section}", printable(name));
        let mistake = key.mistake(Code::UNKNOWN_KEY, label).what(what);
        let here: Vec<&str> = outside.iter().map(String::as_str).collect();
        if name == "service" && outside.is_empty() {
            let hint = "this file is the body of one service: leave [service.NAME] out";
            return (mistake.hint(hint), None);
        }
        match keys::did_you_mean(self.table, &here, name) {
            Some(meant) => (mistake.hint(format!("did you mean `{meant}`?")), Some(meant)),
            None => (mistake, None),
        }
    }

    fn reserved(&self, path: &[String], key: &Place) -> Mistake {
        let full = self.full(path);
        key.mistake(Code::RESERVED_KEY, "known, not in this version")
            .what(format!("`{full}` is known, not in this version"))
            .hint("take it out for now: what is refused is never silently without effect")
    }

    fn not_a_block(&self, path: &[String], item: &Item, key: &Place) -> Mistake {
        let name = last(path);
        let section = self.section(path);
        let text = item.as_str().map(|text| text.chars().take(40).collect::<String>());
        let hint = match (name, text) {
            ("restart", Some(policy)) => format!("{section} policy = \"{policy}\""),
            ("ready", Some(by)) => format!("{section} by = \"{by}\""),
            ("env", _) => format!("{section} NAME = \"value\""),
            ("depends_on", _) => {
                let first = item.as_array().and_then(|list| list.get(0)).and_then(|v| v.as_str());
                let other = first.or(item.as_str()).unwrap_or("NAME");
                format!("[{}.{other}]", self.full(path))
            }
            _ => format!("write it as a table: {section}"),
        };
        let label = format!("`{name}` is a block, not a value");
        key.mistake(Code::WRONG_TYPE, label).hint(hint)
    }

    /// Says what is wrong with a name that the writer chose.
    fn bad_name(&self, path: &[String], key: &Place) -> Option<Mistake> {
        let name = last(path);
        let shown = printable(name);
        if path.first().is_some_and(|block| block == "env") {
            return env_name_mistake(name)
                .map(|(label, hint)| key.mistake(Code::BAD_ENV_NAME, label).hint(hint));
        }
        if path.get(2).is_some_and(|block| block == "params") && self.names.contains(&name) {
            let label = format!("`${{{shown}}}` already stands for something");
            return Some(key.mistake(Code::BAD_NAME, label).hint("choose another name"));
        }
        // Labels and annotations are not names of things.
        if path.len() > 3 && path.first().is_some_and(|block| block == "alert") {
            return None;
        }
        bad_token(name, key)
    }

    fn place(&self, span: Option<Range<usize>>) -> Place {
        Place::new(self.source, span)
    }

    fn full(&self, path: &[String]) -> String {
        let all: Vec<_> = self.at.iter().chain(path).map(|name| printable(name)).collect();
        all.join(".")
    }

    fn section(&self, path: &[String]) -> String {
        match self.full(path).as_str() {
            "" => "this file".to_owned(),
            full => format!("[{full}]"),
        }
    }
}

/// Says what is wrong with the name of a variable, and what to do.
pub(super) fn env_name_mistake(name: &str) -> Option<(String, &'static str)> {
    let shown: String = printable(name).chars().take(80).collect();
    let first_is_letter = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !first_is_letter || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        let hint = "letters, digits and `_`, not starting with a digit";
        return Some((format!("`{shown}` is not the name of a variable"), hint));
    }
    let ours = ENV_RESERVED.contains(&name)
        || ENV_RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    ours.then(|| (format!("`{shown}` is set by smgr itself"), "choose another name"))
}

/// Reads a value that is built in.
pub(super) fn built_in(kind: keys::Kind, value: &toml_edit::Value) -> Typed {
    let names = value::Names { known: &[], open: true };
    match value::typed(kind, "", value, names) {
        Ok(typed) => typed,
        Err(wrong) => unreachable!("invariant: built-in values are valid, {}", wrong.what),
    }
}

/// Says that nothing is called `${name}` at `place`, and what is.
pub(super) fn unknown_name<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str>,
    place: &Place,
) -> Mistake {
    let wrong = value::unknown_name(name, known);
    let mut mistake = place.mistake(wrong.code, wrong.what);
    mistake.hint = wrong.hint;
    mistake
}

/// Says what is wrong with `name` as the name of a thing, if anything is.
pub(super) fn bad_token(name: &str, key: &Place) -> Option<Mistake> {
    name.parse::<ServiceId>().err().map(|_| bad_token_mistake(name, key))
}

fn bad_token_mistake(name: &str, key: &Place) -> Mistake {
    let shown: String = printable(name).chars().take(80).collect();
    let mistake = key
        .mistake(Code::BAD_NAME, "names are 1 to 63 of a-z, 0-9 and `-`")
        .what(format!("`{shown}` is not a name: names are 1 to 63 of a-z, 0-9 and `-`"));
    match map_to_token(name) {
        mapped if mapped.is_empty() || mapped == name => mistake,
        mapped => mistake.hint(format!("`{mapped}` would do")),
    }
}

fn last(path: &[String]) -> &str {
    path.last().map_or("", String::as_str)
}
