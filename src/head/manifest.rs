//! The manifest of a release, as it is taken from a signed wish: by a node, and by the controller that plans for it.

use crate::domain::id::ServiceId;
use crate::domain::release::{
    ARTIFACT_BYTES_MAX, Artifact, MANIFEST_VERSION, Manifest, SCHEMES, SOURCES_MAX, SPEC_BYTES_MAX,
};
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
        () => manifest.artifact.as_ref().map_or(Ok(()), check_artifact).map(|()| manifest),
    }
}

fn check_artifact(artifact: &Artifact) -> Result<(), String> {
    let Artifact { bytes, from, .. } = artifact;
    let is_served = |source: &&String| SCHEMES.iter().any(|scheme| source.starts_with(scheme));
    match from.iter().find(|source| !is_served(source)) {
        Some(source) => Err(format!(
            "nothing is fetched from `{}`: write {}… with the whole path or address",
            text::printable(&text::brief(source.clone(), 80)),
            SCHEMES.join("…, "),
        )),
        None if from.is_empty() => Err("it names no place where its artifact is".to_owned()),
        None if from.len() > SOURCES_MAX => Err(format!("it has more than {SOURCES_MAX} sources")),
        None if *bytes == 0 || *bytes > ARTIFACT_BYTES_MAX => {
            Err(format!("its artifact has {bytes} bytes, and 1 to {ARTIFACT_BYTES_MAX} are taken"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Digest;
    use crate::domain::release::ArtifactFormat;

    #[test]
    fn what_could_never_be_taken_is_refused_before_anything_begins() {
        let good = Manifest {
            v: MANIFEST_VERSION,
            service: "web".parse().unwrap(),
            version: "1".to_owned(),
            file: "web.toml".to_owned(),
            spec: "exec = [\"a\"]".to_owned(),
            artifact: Some(Artifact {
                sha256: Digest([1; 32]),
                bytes: 7,
                format: ArtifactFormat::File,
                from: vec!["https://example.com/web".to_owned()],
            }),
            again: None,
        };
        let check = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = good.clone();
            change(&mut manifest);
            check_manifest(&good.service, &codec::encode(&manifest))
        };
        let of_artifact = |change: &dyn Fn(&mut Artifact)| {
            check(&|manifest| change(manifest.artifact.as_mut().unwrap()))
        };
        assert_eq!(check(&|_| {}), Ok(good.clone()));
        let from = |source: &str| of_artifact(&|it| it.from = vec![source.to_owned()]);
        let all = [
            (check(&|it| it.v = 9), "version"),
            (check(&|it| it.service = "db".parse().unwrap()), "of `db`"),
            (check(&|it| it.version = "1".repeat(65)), "too long"),
            (check(&|it| it.file = "../web.toml".to_owned()), "file"),
            (check(&|it| it.spec = "#".repeat(SPEC_BYTES_MAX + 1)), "spec"),
            (of_artifact(&|it| it.from.clear()), "no place"),
            (of_artifact(&|it| it.from = vec!["nats:a/b".to_owned(); SOURCES_MAX + 1]), "sources"),
            (of_artifact(&|it| it.bytes = 0), "0 bytes"),
            (of_artifact(&|it| it.bytes = ARTIFACT_BYTES_MAX + 1), "bytes"),
            (from("ftp://example.com/web"), "ftp:"),
            (from("file:web"), "file:web"),
            (from("\u{1b}[2J"), "nothing is fetched"),
            (from(""), "nothing is fetched"),
        ];
        for (found, word) in all {
            let why = found.expect_err(word);
            assert!(why.contains(word) && !why.contains('\u{1b}'), "{why}");
        }
    }
}
