//! The manifest of a release, as it is taken from a signed wish: by a node, and by the controller that plans for it.

use crate::domain::id::ServiceId;
use crate::domain::release::{MANIFEST_VERSION, Manifest, SOURCES_MAX, SPEC_BYTES_MAX};
use crate::domain::text;
use crate::wire::codec;

/// The longest word that people have for a release, in bytes.
pub const VERSION_BYTES_MAX: usize = 64;

/// Reads the manifest of a wish, strictly.
///
/// # Errors
/// Why no such release is taken.
pub fn check_manifest(service: &ServiceId, bytes: &[u8]) -> Result<Manifest, String> {
    let manifest: Manifest = codec::decode(bytes)
        .map_err(|error| text::brief(error.to_string(), text::WHY_BYTES_MAX))?;
    let sources = manifest.artifact.as_ref().map_or(0, |artifact| artifact.from.len());
    let file = &manifest.file;
    match () {
        () if manifest.v != MANIFEST_VERSION => Err(format!("its version is {}", manifest.v)),
        () if manifest.service != *service => {
            Err(format!("it is of `{}` and the wish is for `{service}`", manifest.service))
        }
        () if manifest.version.len() > VERSION_BYTES_MAX => {
            Err("its version is too long".to_owned())
        }
        () if file.is_empty() || file.len() > 255 || file.contains(['/', '\0', '\n']) => {
            Err("its file is not the name of one".to_owned())
        }
        () if manifest.spec.len() > SPEC_BYTES_MAX => {
            Err(format!("its spec has more than {SPEC_BYTES_MAX} bytes"))
        }
        () if sources > SOURCES_MAX => Err(format!("it has more than {SOURCES_MAX} sources")),
        () => Ok(manifest),
    }
}
