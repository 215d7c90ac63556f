//! Where the values of the specs in force were set: a text beside the log for each service, for people and screens.
//!
//! Nothing is decided by it, so it is not synced and no event names it. A lost one is made again by the next apply.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::{self, Effective};
use crate::domain::id::{Digest, ServiceId};
use crate::domain::spec::Spec;

/// The values that somebody set, by key; all others are built in.
pub type Set = BTreeMap<String, Effective>;

/// Larger than the origins of any service; more is not read.
const BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Of the spec that this is about, in hex.
    digest: String,
    set: Set,
}

/// Reads the spec in force of a service, and where its values were set as far as that is known.
///
/// `specs` is the folder of texts of a state folder. `None` without the text, or where this user may not read it.
pub fn in_force(specs: &Path, service: &ServiceId, digest: Digest) -> Option<(Spec, Option<Set>)> {
    let text = config::read_regular(&specs.join(format!("{digest}.json")), BYTES_MAX).ok()?;
    let spec = serde_json::from_slice(&text).ok()?;
    Some((spec, read(specs, service, digest)))
}

/// Reads where the values of the spec of a service were set.
pub(super) fn read(specs: &Path, service: &ServiceId, digest: Digest) -> Option<Set> {
    let text = config::read_regular(&path(specs, service), BYTES_MAX).ok()?;
    let kept: Kept = serde_json::from_slice(&text).ok()?;
    (kept.digest == digest.to_string()).then_some(kept.set)
}

/// Keeps where the values of a spec were set, unless that is known already.
pub(super) fn keep(specs: &Path, service: &ServiceId, digest: Digest, set: Set) {
    let text = serde_json::to_vec(&Kept { digest: digest.to_string(), set });
    let text = text.expect("invariant: a map of texts is JSON");
    let path = path(specs, service);
    if fs::read(&path).is_ok_and(|known| known == text) {
        return;
    }
    if let Err(why) = write(&path, &text) {
        warn!(%service, %why, "where its values were set is not kept");
    }
}

/// Forgets the origins of a service that is gone.
pub(super) fn forget(specs: &Path, service: &ServiceId) {
    drop(fs::remove_file(path(specs, service)));
}

/// Returns the keys that layers above the release set.
pub(super) fn overridden(set: &Set) -> Vec<String> {
    let keys = set.iter().filter(|(_, it)| it.is_overridden());
    keys.map(|(key, _)| key.clone()).collect()
}

fn path(specs: &Path, service: &ServiceId) -> PathBuf {
    specs.join(format!("{service}.origins"))
}

/// Readers see the old or the new text. It may hold values of the environment.
fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let staged = path.with_extension("origins.new");
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
        let web: ServiceId = "web".parse().unwrap();
        let (new, old) = (Digest([1; 32]), Digest([2; 32]));
        let set = |layer| {
            let origin = Origin::line(layer, "web.toml".to_owned(), 3);
            let value = Effective { value: "2".to_owned(), origin, hides: Vec::new() };
            Set::from([("instances".to_owned(), value)])
        };
        keep(folder.path(), &web, new, set(Layer::Node));
        assert_eq!(read(folder.path(), &web, new), Some(set(Layer::Node)));
        assert_eq!(read(folder.path(), &web, old), None);
        assert_eq!(overridden(&set(Layer::Node)), ["instances"]);
        assert_eq!(overridden(&set(Layer::Host)), [""; 0]);
        forget(folder.path(), &web);
        assert_eq!(read(folder.path(), &web, new), None);
    }
}
