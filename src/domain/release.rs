//! Releases: a spec and an artifact under one digest, and what happened to them on a node.
//!
//! A manifest travels inside a signed wish and is named by the digest of its bytes. Facts name it by that digest and
//! never hold it: a spec may hold values of the environment.

#[cfg(test)]
pub(crate) mod samples;
pub mod trial;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::event::{Detached, Exit, RunResult};
use super::id::{
    ActionName, CheckName, Digest, Generation, InstanceId, IntentId, NodeId, ServiceId,
};
use super::time::UnixMicros;

/// The longest spec of a release, in bytes: the manifest travels in one envelope with its signatures.
pub const SPEC_BYTES_MAX: usize = 48 * 1024;

/// More places to fetch one artifact from than anybody needs.
pub const SOURCES_MAX: usize = 8;

/// The version that each manifest carries.
pub const MANIFEST_VERSION: u8 = 1;

/// Names a release: SHA-256 over the bytes of its manifest, as they travelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct ReleaseId(pub Digest);

impl ReleaseId {
    /// What a service is to run from that is taken away: SHA-256 over no manifest at all, which none has.
    pub const NOTHING: Self = Self(Digest([
        0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9,
        0x24, 0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52,
        0xb8, 0x55,
    ]));

    /// Returns the name of the release with this manifest.
    pub fn of(manifest: &[u8]) -> Self {
        Self(Digest(Sha256::digest(manifest).into()))
    }

    /// Returns the first 8 hex digits: how people are shown it.
    pub fn short(&self) -> String {
        self.0.0[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl std::fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a release consists of. Read strictly: it is part of a wish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub v: u8,
    /// Of which service.
    pub service: ServiceId,
    /// How people call it; at most 64 bytes, never interpreted.
    pub version: String,
    /// The name of the spec's file, for origins: `web.toml`.
    pub file: String,
    /// The body of the spec, TOML, at most [`SPEC_BYTES_MAX`].
    pub spec: String,
    /// What it runs, when that does not stand on the node already.
    pub artifact: Option<Artifact>,
    /// When somebody asked that what runs already is started anew: this makes it another release of the same content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<UnixMicros>,
}

impl Manifest {
    /// Says whether another release has the same content.
    pub fn is_like(&self, other: &Self) -> bool {
        Self { again: other.again, ..self.clone() } == *other
    }
}

/// The largest artifact that is taken, in bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 2 << 30;

/// How the places begin from which artifacts are fetched.
pub const SCHEMES: [&str; 4] = ["file:/", "http://", "https://", "nats:"];

/// The files of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// SHA-256 of the file as it is fetched.
    pub sha256: Digest,
    /// Its length in bytes, at most [`ARTIFACT_BYTES_MAX`].
    pub bytes: u64,
    /// What it is.
    pub format: ArtifactFormat,
    /// Where it may be fetched, tried in this order, 1 to [`SOURCES_MAX`]: `file:/…`, `http://…`, `https://…`,
    /// `nats:BUCKET/NAME`.
    pub from: Vec<String>,
}

/// How the files of a release are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ArtifactFormat {
    /// A tar archive, gzipped.
    TarGz,
    /// A tar archive.
    Tar,
    /// One executable file.
    File,
}

/// What a controller, or the node itself, does with a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The service is to run from it.
    Apply,
    /// The service is to run from what it ran from before. No `apply` of the same wish is taken afterwards.
    Return,
    /// The wish means the node no more, and the service is taken from it. When it means it again, `apply` is taken again.
    Leave,
}

/// How far a release had come on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its files were fetched and looked at; nothing of the service had changed.
    Staging,
    /// Its processes were started and not ready.
    Starting,
    /// Its processes were ready, and not for long enough.
    Holding,
}

/// Body of `order.accepted`: a step of a rollout was verified and taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OrderAccepted {
    /// The intent inside the order.
    pub intent: IntentId,
    /// Its generation.
    pub generation: Generation,
    /// Its release; absent when the service is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Which step.
    pub step: Step,
    /// SHA-256 of the plan; one per intent.
    pub plan: Digest,
    /// The controller's term.
    pub term: u64,
    /// Which controller.
    pub controller: NodeId,
    /// When that verified the intent.
    pub verified_at: UnixMicros,
    /// The wave of the plan, from 1.
    pub wave: u16,
}

/// Body of `release.staged`: its files are here, verified; nothing of the service has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseStaged {
    /// The number of the wish.
    pub generation: Generation,
    /// Which release.
    pub release: ReleaseId,
    /// How people call it.
    pub version: String,
    /// SHA-256 of its artifact, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Digest>,
    /// SHA-256 over the names, modes and contents of its files as they lie on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<Digest>,
    /// The size of its files, in bytes.
    pub bytes: u64,
    /// From the wish, in milliseconds.
    pub took_ms: u64,
}

/// Body of `release.applied`: from here on the service is to run from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseApplied {
    /// The number of the wish: that of the return is one more.
    pub generation: Generation,
    /// The release that the wish is about.
    pub release: ReleaseId,
    /// Whether it is taken up or left.
    pub step: Step,
    /// What the service is to run from: the release, or what it is left for. Absent: its spec files alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<ReleaseId>,
    /// How people call that.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// SHA-256 of the effective spec.
    pub spec: Digest,
    /// How long all instances have to be healthy, in milliseconds.
    pub min_healthy_ms: u64,
    /// When it has failed to be so.
    pub healthy_by: UnixMicros,
    /// The checks that have to pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckName>,
    /// Whether its checks do not count: the processes have to be ready and stay up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_process: bool,
    /// The actions that have to succeed then, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<ActionName>,
    /// How many good releases are kept.
    pub keep: u16,
    /// SHA-256 of the plan, when a controller asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Digest>,
    /// The term of that controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
}

/// Body of `release.healthy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseHealthy {
    /// The number of the wish.
    pub generation: Generation,
    /// Which release.
    pub release: ReleaseId,
    /// SHA-256 of the program that the main process of the first instance runs, read through `/proc/PID/exe`; absent
    /// where the agent may not read that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Digest>,
    /// From the switch until all instances were ready, in milliseconds.
    pub ready_ms: u64,
    /// How long they were healthy then, in milliseconds.
    pub held_ms: u64,
}

/// Body of `release.failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseFailed {
    /// The number of the wish.
    pub generation: Generation,
    /// Which release.
    pub release: ReleaseId,
    /// Whether it was taken up or left.
    pub step: Step,
    /// How far it had come.
    pub phase: Phase,
    /// The error code that says why: `E0701`, `E0711` where another program ran than the release has, and `E0612` where it
    /// was healthy and an action after the deploy failed.
    pub code: String,
    /// In words.
    pub why: String,
    /// The instance that failed, when it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// What the end of its run means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
    /// How its process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// How long that ran, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_ms: Option<u64>,
    /// Its last log lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Detached>,
    /// Whether the node returns to what ran before, by itself.
    pub returns: bool,
}

/// Body of `release.returned`: the service runs again from what it ran from before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseReturned {
    /// The number of the return.
    pub generation: Generation,
    /// The release that was left.
    pub release: ReleaseId,
    /// What it was left for; absent: the spec files alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<ReleaseId>,
    /// From the failure or the wish, in milliseconds.
    pub took_ms: u64,
    /// Whether what runs now is what ran before the release: it never stopped serving.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept_serving: bool,
}

/// Body of `release.removed`: the service was taken away as somebody wished, and nothing of it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseRemoved {
    /// The number of the wish.
    pub generation: Generation,
}

/// Body of `release.refused`: a verified order was not taken. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseRefused {
    /// The intent inside the order, when it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<IntentId>,
    /// Its generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// Its release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Which step was ordered.
    pub step: Step,
    /// The term of the controller that ordered it.
    pub term: u64,
    /// The code of the first check that failed.
    pub code: String,
    /// In words.
    pub why: String,
    /// How many of the same kind this event stands for.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_named_by_the_bytes_of_its_manifest() {
        let id = ReleaseId::of(b"web");
        assert_eq!(id, ReleaseId::of(b"web"));
        assert_ne!(id, ReleaseId::of(b"web "));
        assert!(id.to_string().starts_with(&id.short()));
        assert_eq!(id.short().len(), 8);
        assert_eq!(ReleaseId::of(b""), ReleaseId::NOTHING);
    }
}
