//! The specs of releases, read once for all nodes: each would read the same from the same bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{self, Options, assemble, release_layer};
use crate::domain::code::Code;
use crate::domain::id::{Digest, ServiceId};
use crate::domain::input::StagedRelease;
use crate::domain::release::{Manifest, ReleaseId};
use crate::domain::spec::Spec;

/// Releases that are remembered: a bench has a few.
const RELEASES_MAX: usize = 1024;

/// What was read of a release, or why it is not run.
pub(super) type Read = Result<(StagedRelease, Arc<Spec>), (Code, String)>;

/// The specs of a process, by release.
#[derive(Debug, Default)]
pub struct Specs(Mutex<BTreeMap<ReleaseId, Read>>);

impl Specs {
    /// Returns what a release says, reading it where that was not done.
    pub(super) fn read(&self, service: &ServiceId, release: ReleaseId, bytes: &[u8]) -> Read {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= RELEASES_MAX {
            known.clear();
        }
        let read = || {
            let manifest = crate::head::manifest::check_manifest(service, bytes)
                .map_err(|why| (Code::BAD_MANIFEST, why))?;
            spec_of(service, release, manifest)
        };
        known.entry(release).or_insert_with(read).clone()
    }

    /// Returns a release that was read before.
    pub(super) fn get(&self, release: ReleaseId) -> Read {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || (Code::RELEASE_GONE, format!("the manifest of {release} is not here"));
        known.get(&release).cloned().unwrap_or_else(|| Err(gone()))
    }
}

fn spec_of(service: &ServiceId, release: ReleaseId, manifest: Manifest) -> Read {
    let version = manifest.version.clone();
    if manifest.artifact.is_some() {
        let why = "an emulated node has no files: give the release without an artifact";
        return Err((Code::NOT_YET, why.to_owned()));
    }
    let layers = vec![release_layer(release, manifest)];
    let mut loaded = assemble(layers, &Options::default()).map_err(|mistakes| {
        let code = mistakes.first().map_or(Code::BAD_MANIFEST, |mistake| mistake.code);
        let told = mistakes.iter().map(|it: &config::Mistake| it.what.as_str());
        (code, told.collect::<Vec<_>>().join("; "))
    })?;
    let none = || (Code::BAD_MANIFEST, "its spec describes no service".to_owned());
    let found = loaded.services.remove(service).ok_or_else(none)?;
    if !found.spec.health.is_empty() {
        let why = "an emulated node runs nothing that could be probed: leave `health` out";
        return Err((Code::NOT_YET, why.to_owned()));
    }
    let (artifact, tree): (Option<Digest>, _) = (None, None);
    let origin = found.origin.to_string();
    let staged = StagedRelease { version, digest: found.digest, origin, artifact, tree, bytes: 0 };
    Ok((staged, Arc::new(found.spec)))
}
