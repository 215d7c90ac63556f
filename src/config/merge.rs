//! Layers of settings laid over each other: tables merge, scalars and lists replace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::de::IntoDeserializer as _;
use serde::de::value::{Error as NoError, StrDeserializer};
use serde::{Deserialize, Serialize};

use super::keys::{self, Default, Found, Key, NODE, SERVICE, Status};
use super::read::{Setting, Settings, Typed};
use super::source::Place;
use crate::domain::origin::{Layer, Origin};
use crate::domain::spec::{Bytes, Millis};
use crate::domain::template::Template;

/// The keys without free names, by path. Thousands of services ask for each of them.
static PLAIN: LazyLock<BTreeMap<&str, &Key>> = LazyLock::new(|| {
    let all = SERVICE.iter().chain(NODE);
    all.filter(|key| !key.path.contains('*')).map(|key| (key.path, key)).collect()
});

/// The built-in values, by the path of their key.
static DEFAULTS: LazyLock<BTreeMap<&str, Typed>> = LazyLock::new(|| {
    let served = SERVICE.iter().chain(NODE).filter(|key| key.status == Status::Served);
    let with_value = served.filter_map(|key| match key.default {
        Default::Toml(value) => Some((key.path, parsed(key, value))),
        Default::Required | Default::None | Default::Words(_) => None,
    });
    with_value.collect()
});

fn parsed(key: &Key, value: &str) -> Typed {
    let value = value.parse().expect("invariant: built-in values are TOML");
    super::read::built_in(key.kind, &value)
}

/// An effective value, where it comes from, and what it hides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effective {
    /// The value, as TOML; empty where it is not told.
    pub value: String,
    /// Where it was set.
    pub origin: Origin,
    /// What lower layers say, the highest of them first.
    pub hides: Vec<(String, Origin)>,
}

impl Effective {
    fn built_in(value: String) -> Self {
        Self { value, origin: Origin::built_in(), hides: Vec::new() }
    }

    /// Returns the value for programs.
    pub fn json(&self) -> serde_json::Value {
        super::write::json_value(&self.value)
    }

    /// Returns where it was set, and where whatever it hides was, the highest layer first.
    pub fn origins(&self) -> impl Iterator<Item = &Origin> {
        std::iter::once(&self.origin).chain(self.hides.iter().map(|(_, origin)| origin))
    }

    /// Says whether somebody set it in a layer above the release: for a part of the fleet, this node, or a time.
    pub fn is_overridden(&self) -> bool {
        self.origin.layer > Layer::Release
    }
}

/// What all layers say together.
pub(super) struct Merged {
    table: &'static [Key],
    /// By path: what the layers say, the lowest first.
    settings: BTreeMap<Vec<String>, Vec<Setting>>,
    /// What was meant to be set, but was refused.
    refused: BTreeSet<Vec<String>>,
    /// Built-in values that depend on the place, instead of those of the table.
    built_in: BTreeMap<&'static str, String>,
}

impl Merged {
    /// Lays `layers` over each other, the lowest first.
    pub(super) fn new(
        table: &'static [Key],
        mut layers: Vec<(Layer, Settings)>,
        built_in: BTreeMap<&'static str, String>,
    ) -> Self {
        layers.sort_by_key(|(layer, _)| *layer);
        let mut settings: BTreeMap<Vec<String>, Vec<Setting>> = BTreeMap::new();
        let mut refused = BTreeSet::new();
        for (path, setting) in layers.into_iter().flat_map(|(_, settings)| settings) {
            if setting.value == Typed::Refused {
                refused.insert(path);
            } else {
                settings.entry(path).or_default().push(setting);
            }
        }
        Self { table, settings, refused, built_in }
    }

    /// Returns where a key was set, or where its block was begun.
    pub(super) fn place(&self, path: &[&str]) -> Option<&Place> {
        self.setting(path).map(|setting| &setting.place)
    }

    pub(super) fn is_set(&self, path: &[&str]) -> bool {
        self.setting(path).is_some()
    }

    pub(super) fn is_refused(&self, path: &[&str]) -> bool {
        self.refused.iter().any(|refused| refused.iter().eq(path))
    }

    /// Says whether a key was refused, or anything in its block if that is one with a free name.
    pub(super) fn was_refused(&self, block: &[&str], key: &str) -> bool {
        self.refused.iter().any(|path| {
            let mut names = path.iter().map(String::as_str);
            let inside = block.iter().all(|name| names.next() == Some(name));
            inside && (block.len() > 1 || names.next() == Some(key))
        })
    }

    /// Returns the names in a keyed block that are not switched off.
    pub(super) fn names(&self, block: &[&str]) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for path in self.settings.keys().filter(|path| path.len() > block.len()) {
            let inside = path.iter().zip(block).all(|(a, b)| a == b);
            let name = &path[block.len()];
            if inside && names.last() != Some(name) {
                let entry: Vec<&str> = block.iter().copied().chain([&**name]).collect();
                if !self.is_off(&entry) {
                    names.push(name.clone());
                }
            }
        }
        names
    }

    /// Says whether an entry of a keyed block is switched off.
    fn is_off(&self, entry: &[&str]) -> bool {
        let switch: Vec<&str> = entry.iter().copied().chain(["enabled"]).collect();
        self.setting(&switch).is_some_and(|switch| switch.value == Typed::Bool(false))
    }

    /// Returns every effective value for `config show --origin --hidden`, by key. Of a block that is switched off only
    /// the switch has an effect.
    pub(super) fn effective(&self) -> BTreeMap<String, Effective> {
        let mut all: BTreeMap<String, Effective> = BTreeMap::new();
        for (path, stack) in &self.settings {
            let mut stack = stack.iter().rev().filter(|s| s.value != Typed::Block);
            let Some(top) = stack.next() else { continue };
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let off = (2..path.len()).find(|len| self.is_off(&path[..*len]));
            if off.is_some_and(|len| path[len..] != ["enabled"]) {
                continue;
            }
            let lower = stack.map(|s| (s.toml.clone(), s.key.origin()));
            let built_in = self.built_in(&path).map(|value| (value, Origin::built_in()));
            let effective = Effective {
                value: top.toml.clone(),
                origin: top.key.origin(),
                hides: lower.chain(built_in).collect(),
            };
            all.insert(path.join("."), effective);
        }
        for key in self.table.iter().filter(|key| key.status == Status::Served) {
            for path in self.expanded(key) {
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                if let Some(value) = self.built_in(&path) {
                    all.entry(path.join(".")).or_insert_with(|| Effective::built_in(value));
                }
            }
        }
        all
    }

    /// Returns the paths of a key with a built-in value: one for each entry of the keyed block that it stands in.
    fn expanded(&self, key: &Key) -> Vec<Vec<String>> {
        if !matches!(key.default, Default::Toml(_)) && !self.built_in.contains_key(key.path) {
            return Vec::new();
        }
        key.path.split('.').fold(vec![Vec::new()], |paths: Vec<Vec<String>>, part| {
            let longer = |path: Vec<String>| -> Vec<Vec<String>> {
                let block: Vec<&str> = path.iter().map(String::as_str).collect();
                let names = match part {
                    "*" => self.names(&block),
                    name => vec![name.to_owned()],
                };
                names.into_iter().map(|name| [&path[..], &[name]].concat()).collect()
            };
            paths.into_iter().flat_map(longer).collect()
        })
    }

    fn setting(&self, path: &[&str]) -> Option<&Setting> {
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        self.settings.get(&path).and_then(|stack| stack.last())
    }

    fn built_in(&self, path: &[&str]) -> Option<String> {
        let name = path.join(".");
        match (self.built_in.get(name.as_str()), self.key(&name, path)?.default) {
            (Some(value), _) => Some(value.clone()),
            (None, Default::Toml(value)) => Some(value.to_owned()),
            (None, Default::Required | Default::None | Default::Words(_)) => None,
        }
    }

    fn key(&self, name: &str, path: &[&str]) -> Option<&'static Key> {
        if let Some(key) = PLAIN.get(name) {
            return Some(key);
        }
        match keys::find(self.table, path) {
            Found::Key(key) => Some(key),
            Found::Block(_) | Found::Nothing => None,
        }
    }

    /// Returns the value of a key: what was set, or what is built in.
    pub(super) fn value(&self, path: &[&str]) -> Option<Typed> {
        if let Some(setting) = self.setting(path) {
            return Some(setting.value.clone());
        }
        let name = path.join(".");
        let key = self.key(&name, path)?;
        match self.built_in.get(name.as_str()) {
            Some(value) => Some(parsed(key, value)),
            None => DEFAULTS.get(key.path).cloned(),
        }
    }

    pub(super) fn text(&self, path: &[&str]) -> Option<String> {
        match self.value(path) {
            Some(Typed::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn texts(&self, path: &[&str]) -> Option<Vec<String>> {
        match self.value(path) {
            Some(Typed::Texts(texts)) => Some(texts),
            _ => None,
        }
    }

    pub(super) fn templates(&self, path: &[&str]) -> Option<Vec<Template>> {
        self.texts(path).map(|texts| texts.into_iter().map(Template::new).collect())
    }

    pub(super) fn bool(&self, path: &[&str]) -> bool {
        match self.value(path) {
            Some(Typed::Bool(flag)) => flag,
            other => wrong_kind(path, other),
        }
    }

    pub(super) fn millis(&self, path: &[&str]) -> Millis {
        match self.value(path) {
            Some(Typed::Millis(ms)) => Millis(ms),
            other => wrong_kind(path, other),
        }
    }

    pub(super) fn bytes(&self, path: &[&str]) -> Bytes {
        match self.value(path) {
            Some(Typed::Bytes(bytes)) => Bytes(bytes),
            other => wrong_kind(path, other),
        }
    }

    /// Returns a whole number; the key's range makes it fit `T`.
    pub(super) fn integer<T: TryFrom<i64>>(&self, path: &[&str]) -> T {
        match self.value(path) {
            Some(Typed::Integer(number)) => {
                T::try_from(number).ok().expect("invariant: the key's range fits its field")
            }
            other => wrong_kind(path, other),
        }
    }

    pub(super) fn codes(&self, path: &[&str]) -> Vec<u8> {
        match self.value(path) {
            Some(Typed::Codes(codes)) => codes,
            other => wrong_kind(path, other),
        }
    }

    /// Returns a value of an enumeration whose names in serde are those of the table.
    pub(super) fn choice<T: serde::de::DeserializeOwned>(&self, path: &[&str]) -> T {
        let name = self.text(path).unwrap_or_default();
        let deserializer: StrDeserializer<'_, NoError> = name.as_str().into_deserializer();
        T::deserialize(deserializer).expect("invariant: the table names the variants")
    }
}

pub(super) fn wrong_kind<T>(path: &[&str], found: Option<Typed>) -> T {
    unreachable!("invariant: the table says what {path:?} takes, found {found:?}")
}
