//! The specs that are in force: read from files when asked, kept by digest beside the log, never applied by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;
use tracing::{error, warn};

use super::answers::ReplyTo;
use super::authority::Way;
use super::folder::{StateFolder, write_all_whole};
use super::history::RETENTION;
use super::origins;
use super::release::{self, Refused, Releases};
use super::setup::NodeSetup;
use super::task::Agent;
use super::wake::Wake;
use crate::config::{self, Loaded, LoadedService, Mistake, Options, Roots};
use crate::domain::code::Code;
use crate::domain::id::{Digest, IntentId, ServiceId};
use crate::domain::input::Input;
use crate::domain::instance::{Instance, State};
use crate::domain::intent::Action;
use crate::domain::node::Node;
use crate::domain::release::ReleaseId;
use crate::domain::release::trial::Good;
use crate::domain::spec::{Change, Spec};
use crate::domain::text;

/// How much an event says of the mistakes in spec files, in bytes; `smgr check` shows them all.
const MISTAKES_BYTES_MAX: usize = 4096;

/// What one service is at this moment.
#[derive(Debug, Clone)]
struct InForce {
    digest: Digest,
    /// The keys that layers above the release set.
    overridden: Vec<String>,
}

/// The specs of a node.
#[derive(Debug)]
pub(super) struct Services {
    folder: PathBuf,
    roots: Roots,
    options: Options,
    /// The user who may write spec files, besides root.
    writer: u32,
    specs: BTreeMap<ServiceId, Arc<Spec>>,
    in_force: BTreeMap<ServiceId, InForce>,
    releases: Releases,
}

impl Services {
    pub(super) fn new(state: &StateFolder, setup: &NodeSetup, uid: u32) -> Self {
        Self {
            folder: state.specs(),
            roots: setup.specs.roots(),
            options: Options {
                log_root: setup.service_logs.display().to_string(),
                user_required: uid == 0,
                releases: Vec::new(),
            },
            writer: uid,
            specs: BTreeMap::new(),
            in_force: BTreeMap::new(),
            releases: Releases::new(state.releases()),
        }
    }

    /// Returns where releases lie.
    pub(super) fn releases(&self) -> &Releases {
        &self.releases
    }

    /// Returns the specs in force, by service.
    pub(super) fn specs(&self) -> &BTreeMap<ServiceId, Arc<Spec>> {
        &self.specs
    }

    /// Returns the spec in force of one service, with its digest.
    pub(super) fn spec_of(&self, service: &ServiceId) -> Option<(Arc<Spec>, Digest)> {
        Some((self.specs.get(service)?.clone(), self.in_force.get(service)?.digest))
    }

    /// Returns the keys of a service that layers above the release set.
    pub(super) fn overridden(&self, service: &ServiceId) -> &[String] {
        self.in_force.get(service).map_or(&[], |it| &it.overridden)
    }

    /// Reads the specs that the log says are in force from beside the log.
    ///
    /// A text that is gone or changed is found again in the spec files, if it stands there unchanged; otherwise the
    /// service cannot be started again until it is applied, and says so.
    pub(super) fn recall(&mut self, node: &Node) {
        let missing: Vec<(ServiceId, Digest)> = node
            .services()
            .iter()
            .filter(|(service, known)| !self.recall_one(service, known.digest))
            .map(|(service, known)| (service.clone(), known.digest))
            .collect();
        if missing.is_empty() {
            return;
        }
        let loaded = self.load(node).unwrap_or_default();
        let mut unchanged = Vec::new();
        for (service, digest) in missing {
            match loaded.services.get(&service) {
                Some(found) if found.digest == digest => unchanged.push((service, found)),
                _ => error!(%service, %digest, "its spec is lost; `smgr apply` takes the file's"),
            }
        }
        self.keep(unchanged.iter().map(|(_, found)| (found.digest, found.text.as_str())));
        for (service, found) in unchanged {
            self.adopt(&service, found);
        }
    }

    fn recall_one(&mut self, service: &ServiceId, digest: Digest) -> bool {
        let Ok(text) = fs::read_to_string(self.path(digest)) else { return false };
        let Ok(spec) = serde_json::from_str::<Spec>(&text) else { return false };
        if config::canonical(&spec).1 != digest {
            return false;
        }
        let set = origins::read(&self.folder, service, digest).unwrap_or_default();
        self.specs.insert(service.clone(), Arc::new(spec));
        let overridden = origins::overridden(&set);
        self.in_force.insert(service.clone(), InForce { digest, overridden });
        true
    }

    /// Reads all spec files and the specs of the releases in force, or says all that is wrong with them.
    pub(super) fn load(&self, node: &Node) -> Result<Loaded, Vec<Mistake>> {
        self.load_layers(release::layers(&self.releases, node))
    }

    fn load_layers(&self, releases: Vec<config::Input>) -> Result<Loaded, Vec<Mistake>> {
        let options = Options { releases, ..self.options.clone() };
        config::load(&self.roots, &options, Some(self.writer))
    }

    /// Reads all specs as if a service ran from `release`, or from its files alone.
    fn load_as_if(
        &self,
        node: &Node,
        service: &ServiceId,
        release: Option<ReleaseId>,
    ) -> Result<(String, Option<LoadedService>), Refused> {
        let mut layers = release::layers(&self.releases, node);
        layers.retain(|layer| layer.stem != service.as_str());
        let mut version = String::new();
        if let Some(release) = release {
            let gone = || {
                Refused::new(Code::RELEASE_GONE, format!("the manifest of {release} is not here"))
            };
            let manifest = self.releases.read(service, release).ok_or_else(gone)?;
            version.clone_from(&manifest.version);
            layers.push(crate::config::release_layer(release, manifest));
        }
        let mut loaded = self.load_layers(layers).map_err(|it| release::mistaken(&it))?;
        Ok((version, loaded.services.remove(service)))
    }

    /// Puts the spec of a release into force; returns what people call it, its digest, and where it was read.
    pub(super) fn adopt_release(
        &mut self,
        node: &Node,
        service: &ServiceId,
        release: ReleaseId,
    ) -> Result<(String, Digest, String), Refused> {
        let (version, found) = self.load_as_if(node, service, Some(release))?;
        let none = || Refused::new(Code::BAD_MANIFEST, "its spec describes no service");
        let found = found.ok_or_else(none)?;
        self.keep([(found.digest, found.text.as_str())]);
        self.adopt(service, &found);
        Ok((version, found.digest, found.origin.to_string()))
    }

    /// Puts the spec into force that ran before a release, value for value.
    ///
    /// The files may say something else by now. What ran is kept beside the log; only when that is lost the files count.
    pub(super) fn bring_back(
        &mut self,
        node: &Node,
        service: &ServiceId,
        good: &Good,
    ) -> Result<(String, Digest, String), Refused> {
        let found = self.load_as_if(node, service, good.release).map(|(_, found)| found);
        let found = found.ok().flatten();
        let is_same = found.as_ref().is_some_and(|found| found.digest == good.spec);
        if !is_same && self.recall_one(service, good.spec) {
            return Ok((good.version.clone(), good.spec, "what ran before".to_owned()));
        }
        let none = || Refused::new(Code::RELEASE_GONE, "the spec that ran before is not here");
        let found = found.ok_or_else(none)?;
        self.keep([(found.digest, found.text.as_str())]);
        self.adopt(service, &found);
        Ok((good.version.clone(), found.digest, found.origin.to_string()))
    }

    /// Puts texts beside the log, so that they are on disk before an event names their digests.
    fn keep<'a>(&self, texts: impl IntoIterator<Item = (Digest, &'a str)>) {
        let texts: BTreeMap<PathBuf, &[u8]> = texts
            .into_iter()
            .map(|(digest, text)| (self.path(digest), text.as_bytes()))
            .filter(|(path, _)| !path.exists())
            .collect();
        let texts: Vec<_> = texts.into_iter().collect();
        // They may hold values of the environment, so only the agent's own account reads them.
        let kept = fs::create_dir_all(&self.folder)
            .and_then(|()| write_all_whole(&self.folder, &texts, 0o600));
        if let Err(why) = kept {
            warn!(specs = texts.len(), %why, "specs could not be kept beside the log");
        }
    }

    /// Puts a spec into force whose text was kept.
    fn adopt(&mut self, service: &ServiceId, found: &LoadedService) {
        self.specs.insert(service.clone(), Arc::new(found.spec.clone()));
        let (digest, set) = (found.digest, found.set());
        let in_force = InForce { digest, overridden: origins::overridden(&set) };
        origins::keep(&self.folder, service, digest, set);
        let before = self.in_force.insert(service.clone(), in_force);
        if let Some(before) = before.filter(|before| before.digest != digest) {
            self.age(before.digest);
        }
    }

    /// Forgets the spec of a service that is gone.
    pub(super) fn forget(&mut self, service: &ServiceId) {
        self.specs.remove(service);
        if let Some(before) = self.in_force.remove(service) {
            origins::forget(&self.folder, service);
            self.age(before.digest);
        }
    }

    /// Begins to count the age of a text: no later event names it.
    fn age(&self, digest: Digest) {
        let now = SystemTime::now();
        let aged = File::open(self.path(digest)).and_then(|file| file.set_modified(now));
        if let Err(why) = aged {
            warn!(%digest, %why, "a spec that is out of force may be dropped early");
        }
    }

    /// Removes the texts that neither a service nor an event that is still kept can name. They may hold secrets.
    pub(super) fn prune(&self, node: &Node) {
        self.prune_before(node, SystemTime::now() - RETENTION.max_age);
    }

    fn prune_before(&self, node: &Node, before: SystemTime) {
        let services = node.services().values();
        let needed: BTreeSet<PathBuf> = services
            .flat_map(|service| {
                let mains = service.instances.iter().flat_map(Instance::states);
                let mains = mains.filter_map(State::main);
                std::iter::once(service.digest).chain(mains.map(|main| main.spec))
            })
            .chain(node.releases().values().flat_map(|known| {
                let back = known.trial.iter().filter_map(|trial| trial.back.as_ref());
                known.good.iter().chain(back).map(|good| good.spec)
            }))
            .map(|digest| self.path(digest))
            .collect();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_old = entry.metadata().and_then(|about| about.modified());
            if path.extension().is_some_and(|ending| ending == "json")
                && !needed.contains(&path)
                && is_old.is_ok_and(|modified| modified < before)
                && let Err(why) = fs::remove_file(&path)
            {
                warn!(path = %path.display(), %why, "a spec that nothing names stays");
            }
        }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        Path::new(&self.folder).join(format!("{digest}.json"))
    }
}

impl Agent {
    /// Takes in services that the files have and the log does not: what a first start finds.
    ///
    /// A service that the log knows keeps the spec that was applied, whatever its file says in the meantime.
    pub(super) fn adopt_new_services(&mut self) {
        let loaded = match self.services.load(&self.node) {
            Ok(loaded) => loaded,
            Err(mistakes) => {
                error!(
                    mistakes = mistakes.len(),
                    "the spec files have mistakes: `smgr check` shows them"
                );
                return;
            }
        };
        let known = self.node.services();
        let found = loaded.services.into_iter().filter(|(service, _)| !known.contains_key(service));
        let found = found.collect();
        self.adopt_all(found, None);
    }

    /// Takes the wish that `smgr up` left: to match the files before anything is started from what they said before.
    ///
    /// It passes the same gate as any other. One that is not needed, since all is as the files say, is not taken.
    pub(super) async fn apply_at_boot(&mut self, wakes: &mut mpsc::Receiver<Wake>) {
        let path = self.queries.state.boot_wish();
        let Ok(wish) = fs::read(&path) else { return };
        if let Err(why) = fs::remove_file(&path) {
            warn!(%why, "the wish of the start stays where it is");
        }
        if self.services.load(&self.node).is_ok_and(|files| self.is_current(&files)) {
            return;
        }
        let before = self.open_applies();
        self.heard(&wish, Way::Local, ReplyTo::Nobody);
        self.follow_up();
        // It is accepted on disk first, as ever. Where the disk takes nothing, supervision goes on without it.
        while self.outage().is_none() && !self.open_applies().is_subset(&before) {
            let Some(wake) = wakes.recv().await else { return };
            self.turn(wake);
        }
    }

    fn is_current(&self, files: &Loaded) -> bool {
        let known = self.node.services().iter().filter(|(_, known)| !known.removed);
        let known: BTreeMap<_, _> = known.map(|(service, known)| (service, known.digest)).collect();
        known == files.services.iter().map(|(service, file)| (service, file.digest)).collect()
    }

    fn open_applies(&self) -> BTreeSet<IntentId> {
        let open = self.node.seen().open();
        let applies = open.filter(|(_, record, _)| matches!(record.action, Action::Apply { .. }));
        applies.map(|(intent, ..)| *intent).collect()
    }

    /// Puts specs into force, all of them together: on a first start there may be hundreds.
    fn adopt_all(&mut self, found: Vec<(ServiceId, LoadedService)>, intent: Option<IntentId>) {
        self.services.keep(found.iter().map(|(_, found)| (found.digest, found.text.as_str())));
        for (service, found) in found {
            let before = self.services.spec_of(&service);
            let before =
                before.filter(|(before, _)| before.change_to(&found.spec) != Change::Restart);
            let keeps = before.map(|(_, digest)| digest);
            self.services.adopt(&service, &found);
            let (digest, origin) = (found.digest, found.origin.to_string());
            self.inbox.push_back(Input::SpecAdopted { service, digest, origin, intent, keeps });
        }
    }

    /// Makes the node match its files, as an intent asked.
    pub(super) fn load_specs(&mut self, intent: IntentId, only: &[ServiceId]) {
        let failed = |code: crate::domain::code::Code, why: String| Input::Applied {
            intent,
            failed: Some((code.to_string(), why)),
        };
        let loaded = match self.services.load(&self.node) {
            Ok(loaded) => loaded,
            Err(mistakes) => {
                // Specs quote themselves at any length.
                let why = config::render(&mistakes, "nothing was applied", None);
                let why = text::brief(why, MISTAKES_BYTES_MAX);
                let code = mistakes.first().map_or(crate::domain::code::Code::INTERNAL, |m| m.code);
                self.inbox.push_back(failed(code, why));
                return;
            }
        };
        let wanted = |service: &ServiceId| only.is_empty() || only.contains(service);
        if let Some(stranger) = only.iter().find(|service| {
            !loaded.services.contains_key(service) && !self.node.services().contains_key(service)
        }) {
            let why = format!("no spec file describes `{stranger}`");
            self.inbox.push_back(failed(crate::domain::code::Code::NO_SUCH_SERVICE, why));
            return;
        }
        let gone: Vec<ServiceId> = self
            .node
            .services()
            .keys()
            .filter(|service| wanted(service) && !loaded.services.contains_key(service))
            .cloned()
            .collect();
        let is_known = |(service, found): &(ServiceId, LoadedService)| {
            let known = self.node.services().get(service);
            known.is_some_and(|known| known.digest == found.digest && !known.removed)
        };
        let found = loaded.services.into_iter().filter(|(service, _)| wanted(service));
        let (known, news): (Vec<_>, Vec<_>) = found.partition(is_known);
        for (service, found) in known {
            // The same values may stand elsewhere by now.
            self.services.adopt(&service, &found);
        }
        self.adopt_all(news, Some(intent));
        for service in gone {
            self.inbox.push_back(Input::SpecRemoved { service, intent: Some(intent) });
        }
        self.inbox.push_back(Input::Applied { intent, failed: None });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::origin::Origin;
    use crate::domain::template::Template;

    #[test]
    fn the_text_of_a_spec_that_nothing_names_is_kept_as_long_as_events_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let mut services = Services {
            folder: folder.path().join("specs"),
            roots: Roots::default(),
            options: Options { log_root: "/log".to_owned(), ..Options::default() },
            writer: 0,
            specs: BTreeMap::new(),
            in_force: BTreeMap::new(),
            releases: Releases::new(folder.path().join("releases")),
        };
        let service: ServiceId = "web".parse().unwrap();
        let spec = Spec::new(Vec::new(), Template::new("/"), Template::new("/log"));
        let (old, other) = (Digest([1; 32]), Digest([2; 32]));
        services.keep([(old, "old"), (other, "other")]);
        let ago = SystemTime::now() - Duration::from_secs(60);
        for digest in [old, other] {
            File::open(services.path(digest)).unwrap().set_modified(ago).unwrap();
        }
        let found = LoadedService {
            spec,
            rollouts: crate::domain::rollout::Rollouts::default(),
            digest: old,
            text: String::new(),
            origin: Origin::built_in(),
            effective: BTreeMap::new(),
        };
        services.adopt(&service, &found);
        services.forget(&service);
        let node = Node::default();
        services.prune_before(&node, SystemTime::now() - Duration::from_secs(30));
        assert!(services.path(old).exists(), "it went out of force just now");
        assert!(!services.path(other).exists());
        services.prune_before(&node, SystemTime::now() + Duration::from_secs(1));
        assert!(!services.path(old).exists());
        assert!(services.spec_of(&service).is_none());
    }
}
