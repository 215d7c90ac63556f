//! The artifact of a release: looked at where it lies, and put where nodes on other machines find it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::bus::{ObjectError, ObjectPlace};
use crate::cli::args::Deploy;
use crate::cli::client::Client;
use crate::cli::commands::place;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::out::Out;
use crate::domain::code::Code;
use crate::domain::id::{Digest, ServiceId};
use crate::domain::release::{ARTIFACT_BYTES_MAX, Artifact, ArtifactFormat, Manifest};
use crate::head::manifest::VERSION_BYTES_MAX;
use crate::web;

/// Looks at an artifact where it lies: its digest is what is signed.
pub(super) async fn read(context: &Context, source: &str) -> Result<Artifact, CliError> {
    let away = |error: &dyn std::error::Error| {
        CliError::caused(Code::ARTIFACT_UNAVAILABLE, "the artifact cannot be fetched", error)
    };
    let mut hashing = Hashing::default();
    let bytes = if let Some(place) = ObjectPlace::parse(source) {
        let client = Client::of_controllers(context).await?.ok_or_else(place::no_fleet)?;
        let copied = client.copy_object(&place, ARTIFACT_BYTES_MAX, &mut hashing).await;
        copied.map_err(|error| away(&error))?
    } else if ["http://", "https://"].iter().any(|scheme| source.starts_with(scheme)) {
        let fetched = web::fetch(source, ARTIFACT_BYTES_MAX, &mut hashing).await;
        fetched.map_err(|error| away(&error))?
    } else {
        return of_file(source);
    };
    let (sha256, from) = (Digest(hashing.hash.finalize().into()), vec![source.to_owned()]);
    Ok(Artifact { sha256, bytes, format: format_of(source), from })
}

fn of_file(source: &str) -> Result<Artifact, CliError> {
    let path = source.strip_prefix("file:").unwrap_or(source);
    let failed = |error: io::Error| {
        CliError::caused(Code::FILE_UNREADABLE, "the artifact cannot be read", &error).at(path)
    };
    let path = std::path::absolute(path).map_err(failed)?;
    let (sha256, bytes) = digest_of(&path).map_err(failed)?;
    let from = path.to_str().map(|path| format!("file:{path}"));
    let from = from.ok_or_else(|| CliError::new(Code::BAD_PATH, "its path is not UTF-8"))?;
    Ok(Artifact { sha256, bytes, format: format_of(source), from: vec![from] })
}

/// Says in the release that an artifact that is a file here is in the store of the fleet too; returns its path and place.
///
/// `file:PATH` is a file that each node has. What is said is the same whether it is planned or deployed, as the release
/// is known by its digest.
pub(super) fn name_store<'a>(
    client: &Client,
    manifest: &mut Manifest,
    args: &'a Deploy,
) -> Option<(&'a str, ObjectPlace)> {
    let path = args.artifact.as_deref().filter(|source| !source.contains(':'))?;
    let artifact = manifest.artifact.as_mut().filter(|_| client.is_by_bus())?;
    // By its name it is known again what it is, as with a file.
    let name = format!("{}{}", artifact.sha256, suffix_of(artifact.format));
    let place = client.artifact_place(name);
    artifact.from.push(place.to_string());
    Some((path, place))
}

/// Puts an artifact that is a file here into the store of the fleet, so that nodes on other machines find it too. Without
/// a store they look for the file on their own machines.
pub(super) async fn share(client: &Client, manifest: &mut Manifest, args: &Deploy, out: Out) {
    let Some((path, place)) = name_store(client, manifest, args) else { return };
    let bytes = manifest.artifact.as_ref().map_or(0, |artifact| artifact.bytes);
    let put = match File::open(path) {
        Ok(file) => client.put_artifact(&place, bytes, &mut Blocking(file)).await,
        Err(error) => Err(ObjectError::Io(error)),
    };
    if let Err(error) = put {
        out.note(&format!(
            "the artifact is not in the store of the fleet ({error}): each node looks for the file on its own machine"
        ));
    }
}

/// Returns the version in the name of an artifact, where that is called after its service: `1.1` for `web-1.1.tar.gz`.
pub(super) fn version_in(service: &ServiceId, source: &str) -> Option<String> {
    let name = name_of(source).rsplit('/').next()?;
    let archive = [".tar.gz", ".tgz", ".tar"].iter().find_map(|end| name.strip_suffix(end));
    let version = archive.unwrap_or(name).strip_prefix(service.as_str())?.strip_prefix('-')?;
    let is_word = |text: &str| text.chars().all(|c| c.is_ascii_graphic()) && !text.is_empty();
    (is_word(version) && version.len() <= VERSION_BYTES_MAX).then(|| version.to_owned())
}

fn suffix_of(format: ArtifactFormat) -> &'static str {
    match format {
        ArtifactFormat::Tar => ".tar",
        ArtifactFormat::TarGz => ".tar.gz",
        ArtifactFormat::File => "",
    }
}

fn digest_of(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((Digest(hash.finalize().into()), bytes)),
            len => {
                hash.update(&buffer[..len]);
                bytes += len as u64;
            }
        }
    }
}

pub(crate) fn format_of(source: &str) -> ArtifactFormat {
    let name = name_of(source);
    match () {
        () if name.ends_with(".tar.gz") || name.ends_with(".tgz") => ArtifactFormat::TarGz,
        () if name.ends_with(".tar") => ArtifactFormat::Tar,
        () => ArtifactFormat::File,
    }
}

/// Returns a path or an address without what an address says behind it.
fn name_of(source: &str) -> &str {
    source.split(['?', '#']).next().unwrap_or_default()
}

/// Reads a file while whoever asked waits: the command has nothing else to do.
struct Blocking(File);

impl AsyncRead for Blocking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.0.read(into.initialize_unfilled())?;
        into.advance(len);
        Poll::Ready(Ok(()))
    }
}

/// Takes bytes and keeps nothing of them but their digest.
#[derive(Default)]
struct Hashing {
    hash: Sha256,
}

impl AsyncWrite for Hashing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.hash.update(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_artifact_says_its_version_where_it_is_called_after_its_service() {
        let of = |source| version_in(&"web".parse().unwrap(), source);
        for source in ["web-1.1.tar.gz", "./out/web-1.1.tgz", "https://a.example/web-1.1.tar?x=2"] {
            assert_eq!(of(source).as_deref(), Some("1.1"), "{source}");
        }
        assert_eq!(of("web-1.1").as_deref(), Some("1.1"), "one file");
        for source in ["web.tar.gz", "web-.tar.gz", "webby-1.1.tar.gz", "web-1 1.tar", "web-1.1/x"]
        {
            assert_eq!(of(source), None, "{source}");
        }
        assert_eq!(of(&format!("web-{}", "9".repeat(65))), None, "no node would take it");
    }
}
