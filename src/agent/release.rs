//! Releases on this node: their files, their specs, and what their processes run.
//!
//! The core decides; here is what it asks for. Files come and are looked at on threads of their own.

pub mod archive;
mod fetch;
mod place;
mod proof;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;

use tracing::{error, warn};

pub(super) use self::fetch::{Download, Refused};
pub(crate) use self::place::Releases;
use self::proof::Wanted;
use super::task::Agent;
use super::wake::{Wake, Waker};
use crate::config::{self, Input as SpecInput, release_layer};
use crate::domain::code::Code;
use crate::domain::id::{Digest, Generation, ServiceId};
use crate::domain::input::{Input, StagedRelease};
use crate::domain::node::Node;
use crate::domain::release::{ReleaseId, Step};
use crate::domain::spec::Spec;
use crate::domain::text;
use crate::domain::time::UnixMicros;
use crate::ipc::uplink::Ticket;
use crate::wire::status::BusState;

/// How much an event says of the mistakes in a spec, in bytes.
const MISTAKES_BYTES_MAX: usize = 2048;

/// What came of fetching the files of a release.
#[derive(Debug)]
pub(super) struct Files {
    service: ServiceId,
    generation: Generation,
    found: Result<Found, Refused>,
}

#[derive(Debug, Default)]
struct Found {
    artifact: Option<Digest>,
    tree: Option<Digest>,
    bytes: u64,
}

/// What the agent has under way for releases.
#[derive(Debug, Default)]
pub(super) struct Staging {
    /// Whose program is being read, and since when it had been well.
    proving: BTreeSet<(ServiceId, UnixMicros)>,
    /// Whoever waits for the reason why a download came to nothing.
    downloads: BTreeMap<Ticket, mpsc::Sender<String>>,
}

impl Staging {
    /// Takes in what the uplink says of a download.
    pub(super) fn heard(&mut self, ticket: Ticket, why: Option<&str>) {
        if let (Some(waiting), Some(why)) = (self.downloads.remove(&ticket), why) {
            // Whoever waited may have given up.
            drop(waiting.send(why.to_owned()));
        }
    }
}

/// Returns the layers of the releases in force, as the log tells them.
pub(super) fn layers(releases: &Releases, node: &Node) -> Vec<SpecInput> {
    let known = node.releases().iter();
    let in_force = known.filter_map(|(service, it)| Some((service, it.current.as_ref()?.release)));
    let read = |(service, release)| {
        let manifest = releases.read(service, release);
        if manifest.is_none() {
            error!(%service, %release, "the manifest of the release in force is lost");
        }
        Some(release_layer(release, manifest?))
    };
    in_force.filter_map(read).collect()
}

impl Agent {
    /// Has the files of what is on its way, on a thread of its own.
    pub(super) fn stage(
        &mut self,
        service: ServiceId,
        generation: Generation,
        release: Option<ReleaseId>,
    ) {
        let releases = self.services.releases().clone();
        let waker = self.waker.clone();
        let work = {
            let (service, waker) = (service.clone(), waker.clone());
            move || {
                let found = files(&releases, &service, release, &waker);
                let files = Files { service, generation, found };
                drop(waker.blocking_send(Wake::Staged(files)));
            }
        };
        if let Err(why) = std::thread::Builder::new().name("smgr-release".to_owned()).spawn(work) {
            let staged = Err((Code::IO, format!("no thread can be started: {why}")));
            self.inbox.push_back(Input::Staged { service, generation, staged });
        }
    }

    /// Puts the spec of what was staged into force, and says so to the core.
    pub(super) fn files_came(&mut self, files: Files) {
        let Files { service, generation, found } = files;
        let known = self.node.releases().get(&service);
        let trial = known.and_then(|known| known.trial.as_deref());
        let Some(trial) = trial.filter(|it| it.generation == generation && it.trying.is_none())
        else {
            return; // Something newer took its place.
        };
        let (step, release, back) = (trial.step, trial.release, trial.back.clone());
        let staged = found.and_then(|found| {
            let now = match step {
                Step::Apply => Some(release),
                Step::Return | Step::Leave => back.as_ref().and_then(|back| back.release),
            };
            let (version, digest, origin) = match (step, back) {
                (Step::Return, Some(back)) => {
                    self.services.bring_back(&self.node, &service, &back)?
                }
                _ => self.services.adopt_release(&self.node, &service, release)?,
            };
            if let Err(why) = self.services.releases().point(&service, now) {
                warn!(%service, %why, "what is in force is not shown by its link");
            }
            let Found { artifact, tree, bytes } = found;
            Ok(StagedRelease { version, digest, origin, artifact, tree, bytes })
        });
        let staged = staged.map_err(|Refused { code, why }| (code, why));
        self.decide(Input::Staged { service, generation, staged });
    }

    /// Reads what the first process of a release runs, on a thread of its own.
    pub(super) fn prove(
        &mut self,
        service: ServiceId,
        generation: Generation,
        since: UnixMicros,
        pid: Option<u32>,
    ) {
        if !self.staging.proving.insert((service.clone(), since)) {
            return;
        }
        let waker = self.waker.clone();
        let spec = self.services.specs().get(&service);
        let artifact = spec.and_then(|spec| spec.release.as_ref()?.artifact.clone());
        let folder = self.services.releases().of(&service);
        let wanted = artifact.map(|artifact| Wanted { folder, artifact });
        let read = {
            let service = service.clone();
            move || {
                let running = pid.map_or(Ok(None), |pid| proof::running(pid, wanted.as_ref()));
                drop(waker.blocking_send(Wake::Proved { service, generation, since, running }));
            }
        };
        if let Err(why) = std::thread::Builder::new().name("smgr-proof".to_owned()).spawn(read) {
            error!(%why, "no thread can be started to read a program");
            // What it runs is not known, and nobody asks again.
            self.staging.proving.remove(&(service.clone(), since));
            self.inbox.push_back(Input::Proved { service, generation, since, running: Ok(None) });
        }
    }

    pub(super) fn proved(
        &mut self,
        service: ServiceId,
        generation: Generation,
        since: UnixMicros,
        running: Result<Option<Digest>, String>,
    ) {
        self.staging.proving.remove(&(service.clone(), since));
        self.decide(Input::Proved { service, generation, since, running });
    }

    /// Removes the files that nothing can return to.
    pub(super) fn prune_releases(&self, service: &ServiceId) {
        let Some(known) = self.node.releases().get(service) else { return };
        let good = known.good.iter().filter_map(|good| good.release);
        let current = known.current.as_ref().map(|mark| mark.release);
        let trial = known.trial.as_deref();
        let on_trial = trial.map(|trial| trial.release);
        let back = trial.and_then(|trial| trial.back.as_ref()?.release);
        let keep: Vec<_> = good.chain(current).chain(on_trial).chain(back).collect();
        if let Err(why) = self.services.releases().prune(service, &keep) {
            warn!(%service, %why, "old releases stay on the disk");
        }
    }

    /// Asks the uplink for a download.
    pub(super) fn download(&mut self, download: Download) {
        let Download { url, bytes_max, into, why } = download;
        match self.voice.fetch(url, bytes_max, into) {
            Some(ticket) => drop(self.staging.downloads.insert(ticket, why)),
            // The other end of the pipe closes here.
            None => {
                let away = match self.voice.state() {
                    BusState::Off => {
                        "a node without a bus has no uplink to fetch with: give it a file"
                    }
                    BusState::Connected { .. } | BusState::Away { .. } => "the uplink is away",
                };
                drop(why.send(away.to_owned()));
            }
        }
    }

    /// Says why nothing may be started from the files of a spec's release.
    pub(super) fn broken_release(&self, service: &ServiceId, spec: &Spec) -> Option<String> {
        let artifact = spec.release.as_ref()?.artifact.as_deref()?;
        match self.services.releases().sealed(service, artifact) {
            Some(_) => None,
            None => Some(format!(
                "[{}] the files of the release are not what was verified",
                Code::RELEASE_CHANGED
            )),
        }
    }
}

/// Has the files of a release, or of none.
fn files(
    releases: &Releases,
    service: &ServiceId,
    release: Option<ReleaseId>,
    waker: &Waker,
) -> Result<Found, Refused> {
    let Some(release) = release else { return Ok(Found::default()) };
    let gone =
        || Refused::new(Code::RELEASE_GONE, format!("the manifest of {release} is not here"));
    let manifest = releases.read(service, release).ok_or_else(gone)?;
    let Some(artifact) = &manifest.artifact else { return Ok(Found::default()) };
    let seal = fetch::stage(releases, service, artifact, waker)?;
    Ok(Found { artifact: Some(artifact.sha256), tree: seal.tree(), bytes: seal.bytes })
}

/// Says in an event, in a line, what is wrong with the spec of a release.
pub(super) fn mistaken(mistakes: &[config::Mistake]) -> Refused {
    let code = mistakes.first().map_or(Code::BAD_MANIFEST, |mistake| mistake.code);
    let told = mistakes.iter().map(|mistake| format!("{}: {}", mistake.place(), mistake.what));
    let why = told.collect::<Vec<_>>().join("; ");
    Refused::new(code, text::brief(why, MISTAKES_BYTES_MAX))
}
