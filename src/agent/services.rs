//! The specs that are in force: read from files when asked, kept by digest beside the log, never applied by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;
use tracing::{error, warn};

use super::answers::ReplyTo;
use super::authority::Way;
use super::folder::StateFolder;
use super::history::RETENTION;
use super::origins::{self, Origins};
use super::overrides::{self, SetBy};
use super::release::{self, Refused, Releases};
use super::setup::NodeSetup;
use super::task::Agent;
use super::texts::{Reading, Texts};
use super::wake::Wake;
use crate::config::{self, Loaded, LoadedService, Mistake, Options, Part, Roots, Told};
use crate::domain::code::Code;
use crate::domain::id::{Digest, Generation, IntentId, ServiceId};
use crate::domain::input::{Input, OrderMark};
use crate::domain::instance::{Instance, State};
use crate::domain::intent::Action;
use crate::domain::node::Node;
use crate::domain::overrides::text_of;
use crate::domain::release::ReleaseId;
use crate::domain::release::trial::Good;
use crate::domain::spec::{Change, Spec};
use crate::domain::text;
use crate::wire::payload::Intent;

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
    texts: Texts,
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
            texts: Texts::new(state.specs()),
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
        let origins = Origins::read(self.texts.folder());
        let reading = self.texts.reading();
        let mut missing = Vec::new();
        for (service, known) in node.services() {
            if !self.recall_one(service, known.digest, &reading, &origins) {
                missing.push((service.clone(), known.digest));
            }
        }
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
        let unchanged: Vec<_> =
            unchanged.iter().map(|(service, found)| (service, *found)).collect();
        self.keep(&unchanged);
        self.adopt(&unchanged);
    }

    fn recall_one(
        &mut self,
        service: &ServiceId,
        digest: Digest,
        texts: &Reading,
        origins: &Origins,
    ) -> bool {
        let Some(text) = texts.get(digest) else { return false };
        let Ok(spec) = serde_json::from_str::<Spec>(&text) else { return false };
        if config::canonical(&spec).1 != digest {
            return false;
        }
        let overridden = origins.of(service, digest).map(origins::overridden).unwrap_or_default();
        self.specs.insert(service.clone(), Arc::new(spec));
        self.in_force.insert(service.clone(), InForce { digest, overridden });
        true
    }

    /// Reads all spec files and the specs of the releases in force, or says all that is wrong with them.
    pub(super) fn load(&self, node: &Node) -> Result<Loaded, Vec<Mistake>> {
        self.load_layers(self.layers(node))
    }

    /// Returns what no file of the machine says: releases in force, and what signed wishes set.
    fn layers(&self, node: &Node) -> Vec<config::Input> {
        let mut layers = release::layers(&self.releases, node);
        layers.extend(self.all_set(node).iter().filter_map(SetBy::input));
        layers
    }

    fn all_set(&self, node: &Node) -> Vec<SetBy> {
        overrides::all_set(node.overrides(), &self.texts.reading(), None)
    }

    /// Writes down for the command line what signed wishes set.
    pub(super) fn write_down_set(&self, node: &Node) {
        overrides::write_down(self.texts.folder(), &self.all_set(node));
    }

    /// Keeps what a wish sets, once it is known that the services could be read with it.
    ///
    /// # Errors
    /// What would be wrong with them, or that it could not be kept.
    pub(super) fn keep_set(
        &self,
        node: &Node,
        wish: &Intent,
        order: Option<&OrderMark>,
    ) -> Result<(), Refused> {
        let Action::Configure { service, set, unset, .. } = &wish.action else { return Ok(()) };
        check_unset(node, service, unset, order)?;
        let Some(change) = wish.action.config_change(wish.id) else { return Ok(()) };
        let mut changed = node.overrides().clone();
        changed.entry(service.clone()).or_default().change(&change, None);
        let new = Some((change.text, set));
        let mut layers = release::layers(&self.releases, node);
        for set in overrides::all_set(&changed, &self.texts.reading(), new) {
            let bad = |why| Refused::new(Code::BAD_PARAMETER, why);
            layers.push(set.checked().map_err(bad)?);
        }
        self.load_layers(layers).map_err(|mistakes| release::mistaken(&mistakes))?;
        let (text, digest) = text_of(set);
        let kept = self.texts.keep(&BTreeMap::from([(digest, text.as_str())]));
        kept.map_err(|why| Refused::new(Code::IO, format!("what is set cannot be kept: {why}")))
    }

    /// Returns the same for another thread to do, about one service: its effective values, as far as they may be told.
    pub(super) fn reading_of(
        &self,
        node: &Node,
        service: ServiceId,
    ) -> impl FnOnce() -> Option<Told> + Send + 'static {
        let known = node.releases().iter();
        let in_force: Vec<(ServiceId, ReleaseId)> = known
            .filter_map(|(service, it)| Some((service.clone(), it.current.as_ref()?.release)))
            .collect();
        let (roots, options, writer) = (self.roots.clone(), self.options.clone(), self.writer);
        let releases = self.releases.clone();
        let set: Vec<config::Input> = self.all_set(node).iter().filter_map(SetBy::input).collect();
        move || {
            let layers = in_force.iter().filter_map(|(service, release)| {
                Some(config::release_layer(*release, releases.read(service, *release)?))
            });
            let options = Options { releases: layers.chain(set).collect(), ..options };
            let mut loaded = config::load(&roots, &options, Some(writer)).ok()?;
            let found = loaded.services.remove(&service)?;
            Some(Told::new(found.digest, found.effective))
        }
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
        let mut layers = self.layers(node);
        let is_release = |layer: &config::Input| matches!(layer.part, Part::Release(..));
        layers.retain(|layer| !is_release(layer) || layer.stem != service.as_str());
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
        self.keep(&[(service, &found)]);
        self.adopt(&[(service, &found)]);
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
        if !is_same && self.recall_again(service, good.spec) {
            return Ok((good.version.clone(), good.spec, "what ran before".to_owned()));
        }
        let none = || Refused::new(Code::RELEASE_GONE, "the spec that ran before is not here");
        let found = found.ok_or_else(none)?;
        self.keep(&[(service, &found)]);
        self.adopt(&[(service, &found)]);
        Ok((good.version.clone(), found.digest, found.origin.to_string()))
    }

    fn recall_again(&mut self, service: &ServiceId, digest: Digest) -> bool {
        let origins = Origins::read(self.texts.folder());
        self.recall_one(service, digest, &self.texts.reading(), &origins)
    }

    /// Puts texts beside the log, so that they are on disk before an event names their digests.
    fn keep(&self, found: &[(&ServiceId, &LoadedService)]) {
        let texts = found.iter().map(|(_, found)| (found.digest, found.text.as_str())).collect();
        if let Err(why) = self.texts.keep(&texts) {
            warn!(specs = texts.len(), %why, "specs could not be kept beside the log");
        }
    }

    /// Returns for each of these which keys change against what is in force; none where nothing is, or it is not known.
    fn changed_keys(&self, found: &[(&ServiceId, &LoadedService)]) -> Vec<Vec<String>> {
        let origins = Origins::read(self.texts.folder());
        let changed = |(service, found): &(&ServiceId, &LoadedService)| {
            let before = self.in_force.get(*service).filter(|it| it.digest != found.digest);
            let before = before.and_then(|it| origins.of(service, it.digest));
            before.map(|before| origins::differ(before, &found.set())).unwrap_or_default()
        };
        found.iter().map(changed).collect()
    }

    /// Puts specs into force whose texts were kept.
    fn adopt(&mut self, found: &[(&ServiceId, &LoadedService)]) {
        if found.is_empty() {
            return;
        }
        let mut sets = Vec::with_capacity(found.len());
        let mut out = BTreeSet::new();
        for (service, found) in found {
            let (service, digest, set) = ((*service).clone(), found.digest, found.set());
            self.specs.insert(service.clone(), Arc::new(found.spec.clone()));
            let in_force = InForce { digest, overridden: origins::overridden(&set) };
            let before = self.in_force.insert(service.clone(), in_force);
            out.extend(before.map(|before| before.digest).filter(|before| *before != digest));
            sets.push((service, digest, set));
        }
        origins::change(self.texts.folder(), |origins| {
            for (service, digest, set) in sets {
                origins.set(service, digest, set);
            }
        });
        self.age(&out);
    }

    /// Forgets the spec of a service that is gone.
    pub(super) fn forget(&mut self, service: &ServiceId) {
        self.specs.remove(service);
        if let Some(before) = self.in_force.remove(service) {
            origins::change(self.texts.folder(), |origins| origins.forget(service));
            self.age(&BTreeSet::from([before.digest]));
        }
    }

    /// Begins to count the age of texts: no later event names them.
    fn age(&self, digests: &BTreeSet<Digest>) {
        if let Err(why) = self.texts.age(digests) {
            warn!(specs = digests.len(), %why, "specs that are out of force may be dropped early");
        }
    }

    /// Removes the texts that neither a service nor an event that is still kept can name. They may hold secrets.
    pub(super) fn prune(&self, node: &Node) {
        self.prune_before(node, SystemTime::now() - RETENTION.max_age);
    }

    fn prune_before(&self, node: &Node, before: SystemTime) {
        let services = node.services().values();
        let needed: BTreeSet<Digest> = services
            .flat_map(|service| {
                let mains = service.instances.iter().flat_map(Instance::states);
                let mains = mains.filter_map(State::main);
                std::iter::once(service.digest).chain(mains.map(|main| main.spec))
            })
            .chain(node.releases().values().flat_map(|known| {
                let back = known.trial.iter().filter_map(|trial| trial.back.as_ref());
                known.good.iter().chain(back).map(|good| good.spec)
            }))
            .chain(
                node.overrides()
                    .values()
                    .flat_map(|known| known.in_force().filter_map(|(.., it)| it.text)),
            )
            .collect();
        self.texts.prune(&needed, before);
    }
}

impl Agent {
    /// Takes in services that the files have and the log does not: what a first start finds.
    ///
    /// A service that the log knows keeps the spec that was applied, whatever its file says in the meantime; one that
    /// somebody took away stays away until he applies its file.
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
        let (known, releases) = (self.node.services(), self.node.releases());
        let is_new = |service: &ServiceId| {
            let was_taken = releases
                .get(service)
                .is_some_and(|it| it.trial.is_none() && it.generation > Generation(0));
            !known.contains_key(service) && !was_taken
        };
        let found = loaded.services.into_iter().filter(|(service, _)| is_new(service)).collect();
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
        let all: Vec<_> = found.iter().map(|(service, found)| (service, found)).collect();
        let keeps = all.iter().map(|(service, found)| {
            let before = self.services.spec_of(service);
            before.filter(|(before, _)| before.change_to(&found.spec) != Change::Restart)
        });
        let keeps: Vec<_> = keeps.map(|before| before.map(|(_, digest)| digest)).collect();
        let keys = self.services.changed_keys(&all);
        self.services.keep(&all);
        self.services.adopt(&all);
        for (((service, found), keeps), keys) in found.into_iter().zip(keeps).zip(keys) {
            let (digest, origin) = (found.digest, found.origin.to_string());
            let input = Input::SpecAdopted { service, digest, origin, intent, keeps, keys };
            self.inbox.push_back(input);
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
        // The same values may stand elsewhere by now.
        self.services
            .adopt(&known.iter().map(|(service, found)| (service, found)).collect::<Vec<_>>());
        self.adopt_all(news, Some(intent));
        for service in gone {
            self.inbox.push_back(Input::SpecRemoved { service, intent: Some(intent) });
        }
        self.will_settle();
        self.inbox.push_back(Input::Applied { intent, failed: None });
    }
}

/// Checks that a wish sets no more what is a key. What comes in an order was judged by the controllers when it was wished,
/// maybe by a version that knew more keys than this one.
fn check_unset(
    node: &Node,
    service: &ServiceId,
    unset: &BTreeSet<String>,
    order: Option<&OrderMark>,
) -> Result<(), Refused> {
    if order.is_some() {
        return Ok(());
    }
    let known = node.overrides().get(service);
    config::keys::check_unset(unset, |key| known.is_some_and(|known| known.knows(key)))
        .map_err(|why| Refused::new(Code::BAD_PARAMETER, why))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::origin::Origin;
    use crate::domain::release::Step;
    use crate::domain::template::Template;
    use crate::domain::time::UnixMicros;

    #[test]
    fn a_key_that_is_none_here_is_unset_by_an_order_alone() {
        let order = OrderMark {
            step: Step::Apply,
            plan: Digest([0; 32]),
            term: 1,
            controller: "c1".parse().unwrap(),
            verified_at: UnixMicros(1),
            wave: 1,
            is_unproved: false,
        };
        let web: ServiceId = "web".parse().unwrap();
        let is_taken = |key: &str, order: Option<&OrderMark>| {
            check_unset(&Node::default(), &web, &BTreeSet::from([key.to_owned()]), order).is_ok()
        };
        assert!(is_taken("stop.timeout", None));
        assert!(!is_taken("stop.timeuot", None));
        assert!(is_taken("stop.timeuot", Some(&order)));
    }

    #[test]
    fn the_text_of_a_spec_that_nothing_names_is_kept_as_long_as_events_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let mut services = Services {
            texts: Texts::new(folder.path().join("specs")),
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
        let texts = BTreeMap::from([(old, "old"), (other, "other")]);
        services.texts.keep(&texts).unwrap();
        let ago = SystemTime::now() - Duration::from_secs(60);
        for digest in [old, other] {
            let file = fs::File::open(services.texts.path(digest)).unwrap();
            file.set_modified(ago).unwrap();
        }
        let found = LoadedService {
            spec,
            rollouts: crate::domain::rollout::Rollouts::default(),
            digest: old,
            text: String::new(),
            origin: Origin::built_in(),
            effective: BTreeMap::new(),
        };
        services.adopt(&[(&service, &found)]);
        services.forget(&service);
        let node = Node::default();
        services.prune_before(&node, SystemTime::now() - Duration::from_secs(30));
        assert!(services.texts.path(old).exists(), "it went out of force just now");
        assert!(!services.texts.path(other).exists());
        services.prune_before(&node, SystemTime::now() + Duration::from_secs(1));
        assert!(!services.texts.path(old).exists());
        assert!(services.spec_of(&service).is_none());
    }
}
