//! Where the releases of a node lie, and nothing of what is in them.
//!
//! `releases/<service>/<artifact>/` holds the files, `<artifact>.seal` what was verified of them, `<release>.manifest` the
//! manifest, and the link `in-force` leads to the manifest in force, for people and for the command line.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use super::tree::Seal;
use crate::domain::id::{Digest, ServiceId};
use crate::domain::release::{Manifest, ReleaseId};
use crate::head::folder::write_whole;
use crate::wire::codec;

/// What begins the name of a folder that is being filled.
const STAGING: &str = ".staging-";

/// The releases of one node.
#[derive(Clone, Debug)]
pub(crate) struct Releases {
    root: PathBuf,
}

impl Releases {
    /// Names the folder. Nothing is read or made.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn of(&self, service: &ServiceId) -> PathBuf {
        self.root.join(service.as_str())
    }

    /// Returns the folder that `${release}` stands for.
    pub(crate) fn tree(&self, service: &ServiceId, artifact: &str) -> PathBuf {
        self.of(service).join(artifact)
    }

    fn seal(&self, service: &ServiceId, artifact: &str) -> PathBuf {
        self.of(service).join(format!("{artifact}.seal"))
    }

    fn manifest(&self, service: &ServiceId, release: ReleaseId) -> PathBuf {
        self.of(service).join(format!("{release}.manifest"))
    }

    fn make(&self, service: &ServiceId) -> io::Result<PathBuf> {
        let folder = self.of(service);
        // The accounts of services have to pass; manifests and seals are closed one by one.
        DirBuilder::new().recursive(true).mode(0o755).create(&folder)?;
        Ok(folder)
    }

    /// Keeps a manifest, so that it is on disk before an event names it.
    pub(crate) fn keep(&self, service: &ServiceId, manifest: &[u8]) -> io::Result<()> {
        self.make(service)?;
        let path = self.manifest(service, ReleaseId::of(manifest));
        match path.exists() {
            true => Ok(()),
            false => write_whole(&path, manifest, 0o600),
        }
    }

    /// Reads the bytes of a manifest that was kept.
    pub(crate) fn manifest_bytes(
        &self,
        service: &ServiceId,
        release: ReleaseId,
    ) -> Option<Vec<u8>> {
        let bytes = fs::read(self.manifest(service, release)).ok()?;
        (ReleaseId::of(&bytes) == release).then_some(bytes)
    }

    /// Reads a manifest that was kept.
    pub(crate) fn read(&self, service: &ServiceId, release: ReleaseId) -> Option<Manifest> {
        codec::decode(&self.manifest_bytes(service, release)?).ok()
    }

    /// Says for people which manifest is in force.
    pub(super) fn point(&self, service: &ServiceId, release: Option<ReleaseId>) -> io::Result<()> {
        let folder = self.make(service)?;
        let (link, staged) = (folder.join("in-force"), folder.join("in-force.new"));
        drop(fs::remove_file(&staged));
        match release {
            Some(release) => {
                symlink(format!("{release}.manifest"), &staged)?;
                fs::rename(staged, link)
            }
            None => match fs::remove_file(link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Reads the manifests that the links lead to, with their names, as far as this user may.
    pub(crate) fn in_force(&self) -> Vec<(ReleaseId, Manifest)> {
        let services = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let read = |folder: &Path| {
            let bytes = fs::read(folder.join("in-force")).ok()?;
            Some((ReleaseId::of(&bytes), codec::decode::<Manifest>(&bytes).ok()?))
        };
        services.filter_map(|entry| read(&entry.path())).collect()
    }

    /// Returns what was verified of the files of an artifact, when they are here and are still that.
    pub(super) fn sealed(&self, service: &ServiceId, artifact: &str) -> Option<Seal> {
        let text = fs::read(self.seal(service, artifact)).ok()?;
        let seal: Seal = serde_json::from_slice(&text).ok()?;
        seal.holds(&self.tree(service, artifact)).ok()?.then_some(seal)
    }

    /// Makes an empty folder to be filled, on the same disk. What a killed predecessor left is removed.
    pub(super) fn begin(&self, service: &ServiceId, artifact: Digest) -> io::Result<PathBuf> {
        let folder = self.make(service)?.join(format!("{STAGING}{artifact}"));
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o755).create(&folder)?;
        Ok(folder)
    }

    /// Puts verified files in their place: whole and on disk, or not at all.
    pub(super) fn finish(
        &self,
        service: &ServiceId,
        artifact: Digest,
        staged: &Path,
    ) -> io::Result<Seal> {
        let (name, folder) = (artifact.to_string(), self.of(service));
        let place = folder.join(&name);
        rustix::fs::syncfs(File::open(staged)?)?;
        // The seal is of the files as they will stand, which a rename of their folder does not change.
        let seal = Seal::of(staged)?;
        if place.exists() {
            // It did not hold, or it would have been taken as it is.
            fs::remove_dir_all(&place)?;
        }
        let text = serde_json::to_vec(&seal).map_err(io::Error::other)?;
        write_whole(&self.seal(service, &name), &text, 0o600)?;
        fs::rename(staged, &place)?;
        File::open(&folder)?.sync_all()?;
        Ok(seal)
    }

    /// Removes the files that nothing can return to.
    pub(super) fn prune(&self, service: &ServiceId, keep: &[ReleaseId]) -> io::Result<()> {
        let manifests = keep.iter().filter_map(|release| {
            let artifact = self.read(service, *release).and_then(|it| it.artifact);
            Some(artifact?.sha256.to_string())
        });
        let artifacts: Vec<String> = manifests.collect();
        let releases: Vec<String> = keep.iter().map(ToString::to_string).collect();
        for entry in fs::read_dir(self.of(service)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_kept = match name.rsplit_once('.') {
                Some((id, "manifest")) => releases.iter().any(|kept| kept == id),
                Some((id, "seal")) => artifacts.iter().any(|kept| kept == id),
                // One may be being filled.
                Some(_) => true,
                None => name == "in-force" || artifacts.contains(&name),
            };
            match is_kept {
                true => {}
                false if entry.file_type()?.is_dir() => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }
}
