//! Fetches and unpacks an artifact, on a thread of its own: neither a slow disk nor a slow server holds up supervision.
//!
//! Nothing is parsed before the digest of all bytes was found to be the signed one, and nothing is put in its place
//! before it was unpacked whole. A killed agent leaves a folder that the next attempt throws away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use super::archive::{self, LIMITS, UnpackError};
use super::place::Releases;
use super::tree::Seal;
use crate::agent::wake::{Wake, Waker};
use crate::domain::code::Code;
use crate::domain::id::{Digest, ServiceId};
use crate::domain::release::{Artifact, ArtifactFormat};

/// What the uplink fetches: nothing else of a node reaches out.
const BY_UPLINK: &[&str] = &["http://", "https://", "nats:"];

/// How long the reason may be behind the end of a download that came to nothing.
const REASON_WITHIN: Duration = Duration::from_secs(2);

/// What is asked of the uplink: to fetch a URL into a pipe.
#[derive(Debug)]
pub(crate) struct Download {
    /// From where.
    pub(crate) url: String,
    /// How much at most.
    pub(crate) bytes_max: u64,
    /// Where the bytes go.
    pub(crate) into: std::os::fd::OwnedFd,
    /// Where it says why it ended early.
    pub(crate) why: mpsc::Sender<String>,
}

/// Why files are not here. Nothing of the service has changed.
#[derive(Debug)]
pub(in crate::agent) struct Refused {
    pub(in crate::agent) code: Code,
    pub(in crate::agent) why: String,
}

impl Refused {
    pub(in crate::agent) fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }

    pub(super) fn disk(error: &io::Error) -> Self {
        Self::new(Code::IO, format!("the release cannot be kept on this node: {error}"))
    }
}

/// Has the files of an artifact in their place.
pub(super) fn stage(
    releases: &Releases,
    service: &ServiceId,
    artifact: &Artifact,
    waker: &Waker,
) -> Result<Seal, Refused> {
    if let Some(seal) = releases.sealed(service, &artifact.sha256.to_string()) {
        return Ok(seal);
    }
    let disk = |error: io::Error| Refused::disk(&error);
    let staged = releases.begin(service, artifact.sha256).map_err(disk)?;
    let packed = staged.with_extension("packed");
    let seal = fetch(artifact, &packed, waker).and_then(|mut file| {
        unpack(artifact, &mut file, service, &staged)?;
        // Before the files are in their place: behind that point nobody looks for what a killed agent left.
        drop(fs::remove_file(&packed));
        releases.finish(service, artifact.sha256, &staged).map_err(disk)
    });
    drop(fs::remove_file(&packed));
    if seal.is_err() {
        drop(fs::remove_dir_all(&staged));
    }
    seal
}

/// Fetches the artifact from the first source that has it, and verifies all of it.
fn fetch(artifact: &Artifact, packed: &Path, waker: &Waker) -> Result<File, Refused> {
    let mut reasons = Vec::new();
    let mut code = Code::ARTIFACT_UNAVAILABLE;
    for source in &artifact.from {
        match fetch_from(source, artifact, packed, waker) {
            Ok(file) => return Ok(file),
            Err(refused) => {
                code = refused.code;
                reasons.push(format!("{source}: {}", refused.why));
            }
        }
    }
    match reasons.is_empty() {
        true => Err(Refused::new(code, "the release names no source for its artifact")),
        false => Err(Refused::new(code, reasons.join("; "))),
    }
}

fn fetch_from(
    source: &str,
    artifact: &Artifact,
    packed: &Path,
    waker: &Waker,
) -> Result<File, Refused> {
    let away = |error: io::Error| Refused::new(Code::ARTIFACT_UNAVAILABLE, error.to_string());
    if let Some(path) = source.strip_prefix("file:") {
        let path = Path::new(path);
        let about = fs::metadata(path).map_err(away)?;
        if !path.is_absolute() || !about.is_file() {
            return Err(Refused::new(
                Code::ARTIFACT_UNAVAILABLE,
                "not a file with an absolute path",
            ));
        }
        return copy(File::open(path).map_err(away)?, artifact, packed, || None);
    }
    if BY_UPLINK.iter().any(|scheme| source.starts_with(scheme)) {
        let (reader, writer) = io::pipe().map_err(away)?;
        let (sender, why) = mpsc::channel();
        let download = Download {
            url: source.to_owned(),
            bytes_max: artifact.bytes,
            into: writer.into(),
            why: sender,
        };
        if waker.blocking_send(Wake::Download(download)).is_err() {
            return Err(Refused::new(Code::ARTIFACT_UNAVAILABLE, "the agent is ending"));
        }
        return copy(reader, artifact, packed, || why.recv_timeout(REASON_WITHIN).ok());
    }
    let why = "this version fetches `file:/…`, `http://…`, `https://…` and `nats:BUCKET/NAME`";
    Err(Refused::new(Code::NOT_YET, why))
}

/// Copies and hashes in one pass; what is not exactly what was signed is not given out.
fn copy(
    mut from: impl Read,
    artifact: &Artifact,
    packed: &Path,
    reason: impl FnOnce() -> Option<String>,
) -> Result<File, Refused> {
    drop(fs::remove_file(packed));
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(packed);
    let mut file = file.map_err(|error| Refused::disk(&error))?;
    let mut hash = Sha256::new();
    let (mut buffer, mut bytes) = (vec![0; 64 * 1024], 0u64);
    loop {
        let read = from.read(&mut buffer);
        let len =
            read.map_err(|error| Refused::new(Code::ARTIFACT_UNAVAILABLE, error.to_string()))?;
        if len == 0 {
            break;
        }
        bytes += len as u64;
        if bytes > artifact.bytes {
            let why = format!("it is longer than the {} bytes that were signed", artifact.bytes);
            return Err(Refused::new(Code::ARTIFACT_DIFFERS, why));
        }
        hash.update(&buffer[..len]);
        file.write_all(&buffer[..len]).map_err(|error| Refused::disk(&error))?;
    }
    if bytes < artifact.bytes {
        return Err(match reason() {
            Some(why) => Refused::new(Code::ARTIFACT_UNAVAILABLE, why),
            None => {
                let why = format!("it ended after {bytes} of {} bytes", artifact.bytes);
                Refused::new(Code::ARTIFACT_DIFFERS, why)
            }
        });
    }
    let found = Digest(hash.finalize().into());
    if found != artifact.sha256 {
        let why = format!("its SHA-256 is {found}, and {} was signed", artifact.sha256);
        return Err(Refused::new(Code::ARTIFACT_DIFFERS, why));
    }
    file.rewind().map_err(|error| Refused::disk(&error))?;
    Ok(file)
}

fn unpack(
    artifact: &Artifact,
    file: &mut File,
    service: &ServiceId,
    into: &Path,
) -> Result<(), Refused> {
    let unpacked = match artifact.format {
        ArtifactFormat::Tar => archive::unpack(io::BufReader::new(file), into, LIMITS),
        ArtifactFormat::TarGz => {
            archive::unpack(MultiGzDecoder::new(io::BufReader::new(file)), into, LIMITS)
        }
        ArtifactFormat::File => {
            let mut options = OpenOptions::new();
            let place = into.join(service.as_str());
            let program = options.write(true).create_new(true).mode(0o755).open(place);
            let copied = program.and_then(|mut program| {
                use std::os::unix::fs::PermissionsExt as _;
                program.set_permissions(fs::Permissions::from_mode(0o755))?;
                io::copy(file, &mut program)
            });
            return copied.map(drop).map_err(|error| Refused::disk(&error));
        }
    };
    unpacked.map(drop).map_err(|error| match &error {
        UnpackError::Write { .. } => Refused::new(Code::IO, error.to_string()),
        UnpackError::Damaged(_)
        | UnpackError::NotTar(_)
        | UnpackError::Entry { .. }
        | UnpackError::TooMuch(_) => Refused::new(Code::BAD_ARCHIVE, error.to_string()),
    })
}
