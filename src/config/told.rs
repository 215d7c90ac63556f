//! The effective configuration of a service as its node tells it to others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::merge::Effective;
use crate::domain::id::Digest;

/// The longest a node tells, in bytes: some 8,000 values that hide one each.
pub const TOLD_BYTES_MAX: usize = 2 << 20;

/// The effective configuration of a service on a node. Values of the environment may be secrets: of them only the
/// places are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The digest, in hex, of the spec that its files, its release and what was set make together.
    pub spec: String,
    /// Each effective value, by key.
    pub keys: BTreeMap<String, Effective>,
}

impl Told {
    /// Returns what may be told of effective values.
    pub fn new(spec: Digest, mut keys: BTreeMap<String, Effective>) -> Self {
        for (_, it) in keys.iter_mut().filter(|(key, _)| key.starts_with("env.")) {
            it.value.clear();
            it.hides.iter_mut().for_each(|(value, _)| value.clear());
        }
        Self { spec: spec.to_string(), keys }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::origin::{Layer, Origin};

    #[test]
    fn of_the_environment_only_the_places_are_told() {
        let at = |line| Origin::line(Layer::Host, "web.toml".to_owned(), line);
        let value = Effective {
            value: "\"secret\"".to_owned(),
            origin: at(3),
            hides: vec![("\"older\"".to_owned(), at(2))],
        };
        let keys = ["env.TOKEN", "owner"].map(|key| (key.to_owned(), value.clone()));
        let told = Told::new(Digest([1; 32]), keys.into_iter().collect());
        let token = &told.keys["env.TOKEN"];
        assert_eq!(token.json(), serde_json::Value::Null);
        assert_eq!(token.hides, [(String::new(), at(2))]);
        assert_eq!(token.origin, at(3));
        assert_eq!(told.keys["owner"], value);
    }
}
