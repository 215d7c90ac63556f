//! Where the values of the specs in force were set: a text beside the log, for people and screens.
//!
//! Nothing is decided by it, so it is not synced and no event names it. A lost one is made again by the next apply.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::{self, Effective};
use crate::domain::id::{Digest, ServiceId};

/// The values that somebody set, by key; all others are built in.
pub type Set = BTreeMap<String, Effective>;

/// Larger than the origins of a node; more is not read.
const BYTES_MAX: u64 = 64 << 20;

/// Where the values of all specs in force were set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Origins {
    services: BTreeMap<ServiceId, Kept>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// Of the spec that this is about, in hex.
    digest: String,
    set: Set,
}

impl Origins {
    /// Reads what lies in the folder of texts of a state folder.
    pub fn read(specs: &Path) -> Self {
        let text = config::read_regular(&path(specs), BYTES_MAX).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Returns where the values of the spec of a service were set.
    pub fn of(&self, service: &ServiceId, digest: Digest) -> Option<&Set> {
        let kept = self.services.get(service)?;
        (kept.digest == digest.to_string()).then_some(&kept.set)
    }

    /// Keeps where the values of a spec were set.
    pub(super) fn set(&mut self, service: ServiceId, digest: Digest, set: Set) {
        self.services.insert(service, Kept { digest: digest.to_string(), set });
    }

    /// Forgets a service that is gone.
    pub(super) fn forget(&mut self, service: &ServiceId) {
        self.services.remove(service);
    }
}

/// Changes what lies in the folder.
pub(super) fn change(specs: &Path, change: impl FnOnce(&mut Origins)) {
    let known = Origins::read(specs);
    let mut new = known.clone();
    change(&mut new);
    if new == known {
        return;
    }
    let text = serde_json::to_vec(&new).expect("invariant: a map of texts is JSON");
    if let Err(why) = write(&path(specs), &text) {
        warn!(%why, "where values were set is not kept");
    }
}

/// Returns the keys that layers above the release set.
pub(super) fn overridden(set: &Set) -> Vec<String> {
    let keys = set.iter().filter(|(_, it)| it.is_overridden());
    keys.map(|(key, _)| key.clone()).collect()
}

/// So many keys are named of those that an apply changes.
const KEYS_NAMED_MAX: usize = 64;

/// Returns the keys that are not set alike.
pub(super) fn differ(before: &Set, after: &Set) -> Vec<String> {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let value = |set: &Set, key: &String| set.get(key).map(|it| it.value.clone());
    let differs = keys.into_iter().filter(|key| value(before, key) != value(after, key));
    differs.take(KEYS_NAMED_MAX).cloned().collect()
}

fn path(specs: &Path) -> PathBuf {
    specs.join("origins")
}

/// Readers see the old or the new text. It may hold values of the environment.
fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let staged = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all(text)?;
    fs::rename(staged, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::origin::{Layer, Origin};

    #[test]
    fn origins_are_those_of_one_spec_and_go_with_the_service() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let web: ServiceId = "web".parse().unwrap();
        let (new, old) = (Digest([1; 32]), Digest([2; 32]));
        let set = |layer| {
            let origin = Origin::line(layer, "web.toml".to_owned(), 3);
            let value = Effective { value: "2".to_owned(), origin, hides: Vec::new() };
            Set::from([("instances".to_owned(), value)])
        };
        change(folder, |origins| origins.set(web.clone(), new, set(Layer::Node)));
        let origins = Origins::read(folder);
        assert_eq!(origins.of(&web, new), Some(&set(Layer::Node)));
        assert_eq!(origins.of(&web, old), None);
        assert_eq!(overridden(&set(Layer::Node)), ["instances"]);
        assert_eq!(overridden(&set(Layer::Host)), [""; 0]);
        change(folder, |origins| origins.forget(&web));
        assert_eq!(Origins::read(folder), Origins::default());
    }
}
