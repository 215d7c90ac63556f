//! What somebody set of a service by a signed wish: for a part of the fleet, for the node itself, or for a time. What is set
//! lies beside the log, by digest, since it may hold values of the environment; facts name keys.

#[cfg(test)]
pub(crate) mod samples;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::id::{Digest, Generation, IntentId, Principal};
use super::origin::Layer;
use super::time::UnixMicros;

/// More keys than anybody sets at once.
pub const KEYS_MAX: usize = 64;

/// The longest of what one wish sets, keys and values together, in bytes.
pub const SET_BYTES_MAX: usize = 16 * 1024;

/// The longest time for which something is set, in milliseconds.
pub const LIFE_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;

/// What is set, by key: a value as TOML, or else a text.
pub type Settings = BTreeMap<String, String>;

/// Returns the text that is kept of what is set, and its digest.
pub fn text_of(set: &Settings) -> (String, Digest) {
    let mut text = String::new();
    for (key, value) in set {
        // Lengths keep them apart, whatever is in them.
        text.push_str(&format!("{} {} {key}{value}\n", key.len(), value.len()));
    }
    let digest = Digest(Sha256::digest(text.as_bytes()).into());
    (text, digest)
}

/// Reads what [`text_of`] wrote; `None` when it is something else.
pub fn read_text(text: &str) -> Option<Settings> {
    let (mut set, mut rest) = (Settings::new(), text);
    while !rest.is_empty() {
        let (key, after) = rest.split_once(' ')?;
        let (value, after) = after.split_once(' ')?;
        let (key, value): (usize, usize) = (key.parse().ok()?, value.parse().ok()?);
        let name = after.get(..key)?;
        let said = after.get(key..key.checked_add(value)?)?;
        set.insert(name.to_owned(), said.to_owned());
        rest = after.get(key + value..)?.strip_prefix('\n')?;
    }
    Some(set)
}

/// Body of `config.changed`: keys of a service are set or not any more, in one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConfigChanged {
    /// The wish.
    pub intent: IntentId,
    /// `fleet`, `node` or `temporary`.
    pub layer: Layer,
    /// The number of the wish for a part of the fleet: of two that set one key the higher one counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// The keys that are set.
    pub set: BTreeSet<String>,
    /// The keys that are not set any more.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unset: BTreeSet<String>,
    /// What they are set to: the digest of a text beside the log.
    pub text: Digest,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMicros>,
}

/// Body of `config.expired`: the time of keys that were set for a time is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConfigExpired {
    /// Those with an end up to here.
    pub until: UnixMicros,
    /// Which keys those are.
    pub keys: BTreeSet<String>,
}

/// A key that was set, or is not any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The wish.
    pub intent: IntentId,
    /// Whose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Principal>,
    /// The number of the wish, for a part of the fleet.
    pub generation: Generation,
    /// The digest of the text that has the value; absent where it is not set any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Digest>,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMicros>,
}

/// All that was set of one service. It outlives the service: a number is never used twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    /// For a part of the fleet, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fleet: BTreeMap<String, Override>,
    /// For the node itself, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node: BTreeMap<String, Override>,
    /// For a time, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub temporary: BTreeMap<String, Override>,
}

impl Overrides {
    /// Takes in what was set, and says whether that changes anything. Wishes for the fleet come in any order: for each key
    /// the highest number counts. Of all others the last one does.
    pub fn change(&mut self, body: &ConfigChanged, by: Option<&Principal>) -> bool {
        let before = self.clone();
        let generation = body.generation.unwrap_or_default();
        let of = |text| Override {
            intent: body.intent,
            by: by.cloned(),
            generation,
            text,
            until: body.until,
        };
        let set = body.set.iter().map(|key| (key, Some(body.text)));
        let all = set.chain(body.unset.iter().map(|key| (key, None)));
        for (key, text) in all {
            let known = match body.layer {
                Layer::Node => &mut self.node,
                Layer::Temporary => &mut self.temporary,
                _ => {
                    let known = self.fleet.get(key).map(|known| known.generation);
                    if known.is_none_or(|known| known < generation) {
                        self.fleet.insert(key.clone(), of(text));
                    }
                    continue;
                }
            };
            match text {
                Some(_) => drop(known.insert(key.clone(), of(text))),
                None => drop(known.remove(key)),
            }
        }
        *self != before
    }

    /// Takes in that a time is over.
    pub fn expire(&mut self, body: &ConfigExpired) {
        let is_over = |it: &Override| it.until.is_some_and(|until| until <= body.until);
        self.temporary.retain(|key, it| !(body.keys.contains(key) && is_over(it)));
    }

    /// Returns when the first key falls back.
    pub fn next_end(&self) -> Option<UnixMicros> {
        self.temporary.values().filter_map(|it| it.until).min()
    }

    /// Returns the keys that are set, those of the lowest layer first, each with what says so.
    pub fn in_force(&self) -> impl Iterator<Item = (Layer, &String, &Override)> {
        let fleet = self.fleet.iter().map(|(key, it)| (Layer::Fleet, key, it));
        let node = self.node.iter().map(|(key, it)| (Layer::Node, key, it));
        let temporary = self.temporary.iter().map(|(key, it)| (Layer::Temporary, key, it));
        fleet.chain(node).chain(temporary).filter(|(.., it)| it.text.is_some())
    }

    /// Says whether anything was said of a key.
    pub fn knows(&self, key: &str) -> bool {
        [&self.fleet, &self.node, &self.temporary].iter().any(|known| known.contains_key(key))
    }

    /// Takes half of the keys out; `None` when there is nothing to cut between.
    pub fn halve(&mut self) -> Option<Self> {
        let count = self.fleet.len() + self.node.len() + self.temporary.len();
        let mut rest = Self::default();
        let mut missing = count / 2;
        for (from, to) in [
            (&mut self.temporary, &mut rest.temporary),
            (&mut self.node, &mut rest.node),
            (&mut self.fleet, &mut rest.fleet),
        ] {
            let first = from.keys().nth(from.len().saturating_sub(missing)).cloned();
            *to = first.map(|key| from.split_off(&key)).unwrap_or_default();
            missing -= to.len();
        }
        (count > 1).then_some(rest)
    }

    /// Takes in what was cut from it.
    pub fn append(&mut self, mut more: Self) {
        self.fleet.append(&mut more.fleet);
        self.node.append(&mut more.node);
        self.temporary.append(&mut more.temporary);
    }

    /// Says whether a wish for the fleet has been heeded, by this one or a newer one.
    pub fn has_heeded<'k>(
        &self,
        generation: Generation,
        keys: impl IntoIterator<Item = &'k String>,
    ) -> bool {
        let is_newer = |key| self.fleet.get(key).is_some_and(|it| it.generation >= generation);
        keys.into_iter().all(is_newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(layer: Layer, generation: u64, set: &[&str], unset: &[&str]) -> ConfigChanged {
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        ConfigChanged {
            intent: IntentId([u8::try_from(generation).unwrap(); 16]),
            layer,
            generation: (layer == Layer::Fleet).then_some(Generation(generation)),
            set: keys(set),
            unset: keys(unset),
            text: Digest([1; 32]),
            until: (layer == Layer::Temporary).then_some(UnixMicros(generation)),
        }
    }

    fn keys(overrides: &Overrides) -> Vec<(u8, &str)> {
        overrides.in_force().map(|(layer, key, _)| (layer.number(), key.as_str())).collect()
    }

    #[test]
    fn of_each_key_the_highest_number_counts_in_whatever_order_they_come() {
        let wishes = [
            change(Layer::Fleet, 1, &["env.A", "env.B"], &[]),
            change(Layer::Fleet, 3, &["env.C"], &["env.A"]),
            change(Layer::Fleet, 5, &["env.B"], &[]),
        ];
        let mut orders = vec![[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let folded = |order: [usize; 3]| {
            let mut overrides = Overrides::default();
            for at in order {
                overrides.change(&wishes[at], None);
            }
            overrides
        };
        let first = folded(orders.remove(0));
        assert_eq!(keys(&first), [(6, "env.B"), (6, "env.C")]);
        assert!(orders.into_iter().all(|order| folded(order) == first));
        assert!(first.has_heeded(Generation(3), &wishes[1].set));
        assert!(!first.has_heeded(Generation(4), &wishes[1].set));
    }

    #[test]
    fn what_is_set_for_a_time_ends_at_its_time_and_not_with_another() {
        let mut overrides = Overrides::default();
        overrides.change(&change(Layer::Temporary, 7, &["env.A", "env.B"], &[]), None);
        overrides.change(&change(Layer::Temporary, 9, &["env.B"], &[]), None);
        assert_eq!(overrides.next_end(), Some(UnixMicros(7)));
        let all = ["env.A", "env.B"].map(str::to_owned).into();
        overrides.expire(&ConfigExpired { until: UnixMicros(7), keys: all });
        assert_eq!(keys(&overrides), [(8, "env.B")]);
        overrides.change(&change(Layer::Temporary, 9, &[], &["env.B"]), None);
        assert_eq!((overrides.next_end(), keys(&overrides)), (None, vec![]));
    }

    #[test]
    fn of_what_is_set_of_the_node_itself_the_last_word_counts_and_no_other_layer_is_touched() {
        let mut overrides = Overrides::default();
        for layer in [Layer::Fleet, Layer::Node, Layer::Temporary] {
            overrides.change(&change(layer, 4, &["env.A"], &[]), None);
        }
        overrides.change(&change(Layer::Node, 2, &["env.A", "env.B"], &[]), None);
        assert_eq!(overrides.node["env.A"].intent, IntentId([2; 16]));
        let all = [(6, "env.A"), (7, "env.A"), (7, "env.B"), (8, "env.A")];
        assert_eq!(keys(&overrides), all);
        let unset = change(Layer::Node, 3, &[], &["env.A"]);
        assert!(overrides.change(&unset, None));
        assert!(!overrides.change(&unset, None), "that was so");
        assert_eq!(keys(&overrides), [(6, "env.A"), (7, "env.B"), (8, "env.A")]);
        assert_eq!((overrides.knows("env.B"), overrides.knows("env.C")), (true, false));
    }

    #[test]
    fn it_is_cut_in_two_down_to_single_keys_whatever_their_layers_and_joined_again() {
        for (fleet, node, temporary) in [(1, 0, 1), (1, 1, 1), (0, 3, 0), (5, 0, 2), (0, 1, 4)] {
            let mut whole = Overrides::default();
            let counts =
                [(Layer::Fleet, fleet), (Layer::Node, node), (Layer::Temporary, temporary)];
            for (layer, count) in counts {
                let names: Vec<String> =
                    (0..count).map(|number| format!("env.A{number}")).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                whole.change(&change(layer, 1, &names, &[]), None);
            }
            let (mut pieces, mut single) = (vec![whole.clone()], Vec::new());
            while let Some(mut piece) = pieces.pop() {
                match piece.halve() {
                    Some(rest) => pieces.extend([piece, rest]),
                    None => single.push(piece),
                }
            }
            assert_eq!(single.len(), fleet + node + temporary);
            let mut joined = Overrides::default();
            single.into_iter().for_each(|piece| joined.append(piece));
            assert_eq!(joined, whole);
        }
    }

    #[test]
    fn what_is_set_is_read_as_it_was_written() {
        let set = Settings::from([
            ("env.A".to_owned(), "a b\n7 7 x".to_owned()),
            ("limits.memory".to_owned(), String::new()),
        ]);
        let (text, digest) = text_of(&set);
        assert_eq!(read_text(&text), Some(set));
        assert_eq!(text_of(&read_text(&text).unwrap()).1, digest);
        for text in ["x", "1 1 a", "99 1 a", "1 1 ab", "18446744073709551615 1 a\n"] {
            assert_eq!(read_text(text), None, "{text}");
        }
    }
}
