//! From the texts of all files to the services that they mean, checked against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::build::{self, Context};
use super::keys::SERVICE;
use super::merge::{Effective, Merged};
use super::mistake::Mistake;
use super::read::{self, Settings};
use super::shared;
use super::source::{Place, Source};
use crate::domain::code::Code;
use crate::domain::id::{Digest, ServiceId};
use crate::domain::origin::{Layer, Origin};
use crate::domain::release::{Manifest, ReleaseId};
use crate::domain::rollout::Rollouts;
use crate::domain::spec::{Released, Spec};
use crate::domain::text::printable;

/// What decides, besides the files, what they mean.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of all logs: `log.dir` is by default a folder for each instance in it.
    pub log_root: String,
    /// Whether each service has to say as whom it runs; so it is when smgr runs as root.
    pub user_required: bool,
    /// What no file of the machine says: the specs of the releases in force, each as [`Part::Release`], and what signed
    /// wishes set, each as [`Part::Set`].
    pub releases: Vec<Input>,
}

impl Default for Options {
    fn default() -> Self {
        Self { log_root: "/var/log/smgr".to_owned(), user_required: false, releases: Vec::new() }
    }
}

/// What a file is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The body of one service, in layer vendor or host.
    Body(Layer),
    /// Bodies of services under `[service.NAME]`.
    Project,
    /// What all services of a group have in common.
    Group,
    /// This machine's last word on one service.
    Override,
    /// The body of one service that was deployed, with the digest of its artifact.
    Release(ReleaseId, Option<Digest>),
    /// What a signed wish set of one service, in layer fleet, node or temporary.
    Set(Layer),
}

/// The text of one file.
#[derive(Clone, Debug)]
pub struct Input {
    /// What it is a part of.
    pub part: Part,
    /// Its path, as it is shown.
    pub shown: String,
    /// Its file name without `.toml`: the name of a service or a group.
    pub stem: String,
    /// Where relative paths start; absolute, for projects only.
    pub folder: Option<String>,
    /// What it holds.
    pub text: String,
}

/// All services that the files mean.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// By name.
    pub services: BTreeMap<ServiceId, LoadedService>,
    /// What is allowed, but should be looked at.
    pub warnings: Vec<Mistake>,
}

/// One service as it should be.
#[derive(Clone, Debug)]
pub struct LoadedService {
    /// What is wanted.
    pub spec: Spec,
    /// What it says about the fleet. No part of the spec: nothing of it changes what runs on a node.
    pub rollouts: Rollouts,
    /// SHA-256 of `text`.
    pub digest: Digest,
    /// The spec in its one canonical form (JSON); reads back as `spec`. May hold secrets.
    pub text: String,
    /// Where its body begins.
    pub origin: Origin,
    /// Each effective value with its origin and what it hides, by key.
    pub effective: BTreeMap<String, Effective>,
}

impl LoadedService {
    fn new(
        spec: Spec,
        rollouts: Rollouts,
        origin: Origin,
        effective: BTreeMap<String, Effective>,
    ) -> Self {
        let (text, digest) = canonical(&spec);
        Self { spec, rollouts, digest, text, origin, effective }
    }

    /// Returns the values that somebody set, by key; all others are built in.
    pub fn set(&self) -> BTreeMap<String, Effective> {
        let is_set = |it: &Effective| it.origin.layer != Layer::BuiltIn;
        let set = self.effective.iter().filter(|(_, it)| is_set(it));
        set.map(|(key, it)| (key.clone(), it.clone())).collect()
    }
}

/// Returns the one canonical form of a spec, and its digest.
///
/// Fields in the order of the type, maps in the order of their keys. A field that a later version
/// adds has to be left out while it has its default, so that the digests of old specs stay.
pub fn canonical(spec: &Spec) -> (String, Digest) {
    let text = serde_json::to_string(spec).expect("invariant: a spec has text keys and no floats");
    let digest = Digest(Sha256::digest(text.as_bytes()).into());
    (text, digest)
}

/// A service before its layers are merged.
struct Draft {
    whole: Place,
    folder: Option<String>,
    layers: Vec<(Layer, Settings)>,
}

/// Assembles the services, or says all that is wrong.
pub fn assemble(inputs: Vec<Input>, options: &Options) -> Result<Loaded, Vec<Mistake>> {
    let mut assembler = Assembler::default();
    for input in inputs {
        assembler.take(input);
    }
    assembler.finish(options)
}

/// Returns the spec of a release as a file of the layer `release`.
pub fn release_layer(release: ReleaseId, manifest: Manifest) -> Input {
    let artifact = manifest.artifact.as_ref().map(|artifact| artifact.sha256);
    Input {
        part: Part::Release(release, artifact),
        shown: manifest.file,
        stem: manifest.service.to_string(),
        folder: None,
        text: manifest.spec,
    }
}

/// Returns what a signed wish sets of a service as a file of its layer; `event` is how its origin is shown.
///
/// # Errors
/// When a key leads through something that is no block.
pub fn set_layer(
    layer: Layer,
    event: &str,
    service: &ServiceId,
    set: &[(String, String)],
) -> Result<Input, String> {
    Ok(Input {
        part: Part::Set(layer),
        shown: event.to_owned(),
        stem: service.to_string(),
        folder: None,
        text: super::write::with_settings("", set)?,
    })
}

/// Checks the keys of what is to be set, each by itself.
///
/// # Errors
/// All that is wrong with them.
pub fn check_set(set: Input) -> Result<(), Vec<Mistake>> {
    let mut assembler = Assembler::default();
    assembler.take(set);
    if assembler.mistakes.is_empty() { Ok(()) } else { Err(assembler.mistakes) }
}

/// Returns what the spec of a release says about the fleet, as far as it says so itself: other services, groups and the
/// layers of a node are nobody's here.
///
/// # Errors
/// All that is wrong with it.
pub fn rollouts_of(release: Input) -> Result<Rollouts, Vec<Mistake>> {
    let mut assembler = Assembler::default();
    assembler.take(release);
    let Some((name, draft)) =
        assembler.drafts.pop_first().filter(|_| assembler.mistakes.is_empty())
    else {
        return Err(assembler.mistakes);
    };
    let merged = merge(&name, draft.layers, None, &Options::default());
    let context = Context { whole: &draft.whole, user_required: false, folder: None };
    build::build(&merged, &context).map(|(_, rollouts)| rollouts)
}

#[derive(Default)]
struct Assembler {
    mistakes: Vec<Mistake>,
    releases: BTreeMap<ServiceId, Released>,
    drafts: BTreeMap<ServiceId, Draft>,
    /// A group may have a file of the project and one of the machine, which wins.
    groups: BTreeMap<String, Vec<(Place, Settings)>>,
    overrides: Vec<(ServiceId, Place, Settings)>,
    /// What signed wishes set. That of a service which is not there waits for it.
    set: Vec<(ServiceId, Layer, Settings)>,
}

impl Assembler {
    fn take(&mut self, input: Input) {
        let layer = match input.part {
            Part::Body(layer) => layer,
            Part::Project => Layer::Host,
            Part::Group => Layer::Group,
            Part::Override => Layer::Node,
            Part::Set(layer) => layer,
            Part::Release(..) => Layer::Release,
        };
        let source = match input.part {
            Part::Release(release, _) => Source::of_release(input.shown, release, &input.text),
            Part::Set(layer) => Source::of_event(input.shown, layer, &input.text),
            _ => Source::new(input.shown, layer, &input.text),
        };
        let whole = source.whole();
        let document = match read::parse(&source) {
            Ok(document) => document,
            Err(mistake) => return self.mistakes.push(mistake),
        };
        let body = document.as_table();
        if input.part == Part::Project {
            return self.project(&source, body, input.folder);
        }
        let Ok(name) = input.stem.parse::<ServiceId>() else {
            let mistake = read::bad_token(&input.stem, &whole).map(|mistake| Mistake {
                mark: None,
                label: format!(
                    "the file's name is the {}'s, and {}",
                    noun(input.part),
                    mistake.label
                ),
                ..mistake
            });
            return self.mistakes.extend(mistake);
        };
        let settings = read::read(&source, SERVICE, build::NAMES, body, &[], &mut self.mistakes);
        match input.part {
            Part::Body(_) | Part::Project => self.body(name, layer, whole, None, settings),
            Part::Release(release, artifact) => {
                let (id, artifact) = (release.to_string(), artifact.map(|it| it.to_string()));
                self.releases.insert(name.clone(), Released { id, artifact });
                self.body(name, layer, whole, None, settings);
            }
            Part::Group if settings.contains_key(&["group".to_owned()][..]) => {
                let key = &settings[&["group".to_owned()][..]].key;
                let label = "a group's file cannot move a service into another";
                self.mistakes.push(key.mistake(Code::UNKNOWN_KEY, label).hint("take it out"));
            }
            Part::Group => self.groups.entry(input.stem).or_default().push((whole, settings)),
            Part::Set(_) => self.set.push((name, layer, settings)),
            Part::Override => self.overrides.push((name, whole, settings)),
        }
    }

    fn project(&mut self, source: &Arc<Source>, body: &toml_edit::Table, folder: Option<String>) {
        for (name, item) in body.iter() {
            let key = Place::new(source, body.key(name).and_then(toml_edit::Key::span));
            match (name, item.as_table_like()) {
                ("spec", None) if item.as_integer() == Some(1) => {}
                ("spec", None) if item.as_integer().is_some() => {
                    let place = Place::new(source, item.span());
                    let mistake = place.mistake(Code::SPEC_VERSION, "this version reads spec = 1");
                    self.mistakes.push(mistake);
                }
                ("service", Some(services)) => self.services(source, services, folder.as_deref()),
                _ => self.mistakes.push(outside(name, &key)),
            }
        }
    }

    fn services(
        &mut self,
        source: &Arc<Source>,
        services: &dyn toml_edit::TableLike,
        folder: Option<&str>,
    ) {
        for (name, item) in services.iter() {
            let key = Place::new(source, services.key(name).and_then(toml_edit::Key::span));
            if let Some(mistake) = read::bad_token(name, &key) {
                self.mistakes.push(mistake);
                continue;
            }
            let (Some(body), Ok(service)) = (item.as_table_like(), name.parse()) else {
                let label = format!("`{name}` is a service, so a block");
                let hint = format!("[service.{name}]");
                self.mistakes.push(key.mistake(Code::WRONG_TYPE, label).hint(hint));
                continue;
            };
            let at = ["service", name];
            let settings = read::read(source, SERVICE, build::NAMES, body, &at, &mut self.mistakes);
            self.body(service, Layer::Host, key, folder.map(str::to_owned), settings);
        }
    }

    fn body(
        &mut self,
        name: ServiceId,
        layer: Layer,
        whole: Place,
        folder: Option<String>,
        settings: Settings,
    ) {
        let Some(draft) = self.drafts.get_mut(&name) else {
            let layers = vec![(layer, settings)];
            self.drafts.insert(name, Draft { whole, folder, layers });
            return;
        };
        if draft.layers.iter().any(|(taken, _)| *taken == layer) {
            let other = format!("{}:{}", draft.whole.source.shown, draft.whole.line());
            let label = format!("`{name}` is defined in {} as well", printable(&other));
            self.mistakes.push(whole.mistake(Code::DUPLICATE_SERVICE, label).hint("rename one"));
            return;
        }
        if layer > draft.whole.source.layer {
            draft.whole = whole;
        }
        draft.layers.push((layer, settings));
    }

    fn finish(mut self, options: &Options) -> Result<Loaded, Vec<Mistake>> {
        // Before the files: of one layer what comes last counts, and a machine's file is its last word.
        for (name, layer, settings) in std::mem::take(&mut self.set) {
            if let Some(draft) = self.drafts.get_mut(&name) {
                draft.layers.push((layer, settings));
            }
        }
        for (name, whole, settings) in std::mem::take(&mut self.overrides) {
            match self.drafts.get_mut(&name) {
                Some(draft) => draft.layers.push((Layer::Node, settings)),
                None => {
                    let label = format!("there is no service `{name}` to change");
                    let mistake = whole.mistake(Code::OVERRIDE_OF_NOTHING, label);
                    let hint = "rename the file, or take it away";
                    self.mistakes.push(mistake.hint(near(&name, self.drafts.keys(), hint)));
                }
            }
        }
        let names: BTreeSet<ServiceId> = self.drafts.keys().cloned().collect();
        let mut loaded = Loaded::default();
        let mut groups = BTreeSet::new();
        let mut waits = BTreeMap::new();
        let mut listens = Vec::new();
        for (name, draft) in self.drafts {
            let group =
                Merged::new(SERVICE, draft.layers.clone(), BTreeMap::new()).text(&["group"]);
            let common = group.as_ref().and_then(|group| self.groups.get(group));
            groups.extend(group.clone());
            let layers = draft.layers.into_iter().chain(
                common.into_iter().flatten().map(|(_, group)| (Layer::Group, group.clone())),
            );
            let merged = merge(&name, layers.collect(), draft.folder.as_deref(), options);
            let context = Context {
                whole: &draft.whole,
                user_required: options.user_required,
                folder: draft.folder.as_deref(),
            };
            match build::build(&merged, &context) {
                Ok((mut spec, rollouts)) => {
                    spec.release = self.releases.remove(&name);
                    listens.extend(shared::listens(&name, &spec, &merged));
                    loaded.warnings.extend(warnings(&merged, &spec, options));
                    let origin = draft.whole.origin();
                    let effective = merged.effective();
                    let service = LoadedService::new(spec, rollouts, origin, effective);
                    loaded.services.insert(name.clone(), service);
                }
                Err(more) => self.mistakes.extend(more),
            }
            let on = merged.names(&["depends_on"]).into_iter().filter_map(|other| {
                let place = merged.place(&["depends_on", &other])?.clone();
                Some((other.parse::<ServiceId>().ok()?, place))
            });
            waits.insert(name, on.collect::<BTreeMap<_, _>>());
        }
        for (group, files) in &self.groups {
            let idle = files.iter().filter(|_| !groups.contains(group));
            loaded.warnings.extend(idle.map(|(whole, _)| {
                let label = format!("no service says group = \"{group}\"");
                let hint = "rename the file, or take it away";
                whole.mistake(Code::GROUP_OF_NOTHING, label).hint(near(group, &groups, hint))
            }));
        }
        self.mistakes.extend(shared::logs(&loaded.services));
        self.mistakes.extend(shared::sockets(&listens));
        self.mistakes.extend(unknown_dependencies(&waits, &names));
        self.mistakes.extend(cycles(&waits));
        // In the order of reading, whatever found them.
        let place = |mistake: &Mistake| mistake.mark.as_ref().map(|mark| (mark.line, mark.start));
        self.mistakes.sort_by(|a, b| a.path.cmp(&b.path).then_with(|| place(a).cmp(&place(b))));
        if self.mistakes.is_empty() { Ok(loaded) } else { Err(self.mistakes) }
    }
}

fn merge(
    name: &ServiceId,
    layers: Vec<(Layer, Settings)>,
    folder: Option<&str>,
    options: &Options,
) -> Merged {
    let quoted = |text: &str| toml_edit::Value::from(text).to_string();
    let literal = |text: &str| text.replace('$', "$$");
    let log_dir = format!("{}/${{service}}/${{instance}}", literal(&options.log_root));
    let working_dir = folder.map_or("/".to_owned(), literal);
    let built_in =
        BTreeMap::from([("log.dir", quoted(&log_dir)), ("working_dir", quoted(&working_dir))]);
    tracing::trace!(service = %name, layers = layers.len(), "layers merged");
    Merged::new(SERVICE, layers, built_in)
}

fn warnings(merged: &Merged, spec: &Spec, options: &Options) -> Vec<Mistake> {
    let copied = spec.credential.iter().filter(|(_, credential)| credential.env.is_some());
    let place = |name: &str| merged.place(&["credential", name, "env"]);
    let score = ["limits", "oom_score_adjust"];
    let lowered =
        merged.place(&score).filter(|_| spec.limits.oom_score_adjust < 0 && !options.user_required);
    let lowered = lowered.map(|place| {
        let label = "only root may lower it: it stays as it is inherited";
        let mistake = place.mistake(Code::OUT_OF_RANGE, label);
        mistake.hint("status shows Degraded=true as long as it is so")
    });
    copied
        .filter_map(|(name, _)| {
            let label = "every child of the service inherits this secret";
            let mistake = place(name)?.mistake(Code::SECRET_IN_ENVIRONMENT, label);
            Some(mistake.hint(format!("read the file $CREDENTIALS_DIRECTORY/{name} if you can")))
        })
        .chain(lowered)
        .collect()
}

fn noun(part: Part) -> &'static str {
    if part == Part::Group { "group" } else { "service" }
}

/// Says what is wrong with a key outside all services of a project.
fn outside(name: &str, key: &Place) -> Mistake {
    let shown: String = printable(name).chars().take(80).collect();
    let known = super::keys::names_in(SERVICE, &[]);
    let mistake = key
        .mistake(Code::UNKNOWN_KEY, "unknown key outside of [service.NAME]")
        .what(format!("unknown key `{shown}` outside of [service.NAME]"));
    match name {
        name if strsim::osa_distance(name, "service") <= 2 => {
            mistake.hint("did you mean `service`?")
        }
        name if known.contains(&name) => {
            mistake.hint("in a project the keys of a service stand in [service.NAME]")
        }
        _ => mistake,
    }
}

type Waits = BTreeMap<ServiceId, BTreeMap<ServiceId, Place>>;

/// Returns the service that was probably meant by a name that none has.
pub fn likely_service<'n>(
    names: impl IntoIterator<Item = &'n ServiceId>,
    meant: &str,
) -> Option<&'n ServiceId> {
    let near = names.into_iter().map(|name| (strsim::osa_distance(name.as_str(), meant), name));
    near.filter(|(distance, _)| *distance <= 2).min().map(|(_, name)| name)
}

fn unknown_dependencies(waits: &Waits, names: &BTreeSet<ServiceId>) -> Vec<Mistake> {
    let all = waits.values().flatten().filter(|(other, _)| !names.contains(*other));
    all.map(|(other, place)| {
        let label = format!("there is no service `{other}`");
        let mistake = place.mistake(Code::UNKNOWN_DEPENDENCY, label);
        match likely_service(names, other.as_str()) {
            Some(near) => mistake.hint(format!("did you mean `{near}`?")),
            None => mistake.hint("define it, or take the dependency out"),
        }
    })
    .collect()
}

/// Asks for the known name that was probably meant, or says what else to do.
fn near<T: ToString>(
    name: &impl ToString,
    known: impl IntoIterator<Item = T>,
    otherwise: &str,
) -> String {
    let name = name.to_string();
    let known = known.into_iter().map(|known| known.to_string());
    let nearest = known.map(|known| (strsim::osa_distance(&known, &name), known)).min();
    match nearest.filter(|(distance, _)| *distance <= 2) {
        Some((_, known)) => format!("did you mean `{known}`?"),
        None => otherwise.to_owned(),
    }
}

/// Names each way round of services that wait for each other, once.
fn cycles(waits: &Waits) -> Vec<Mistake> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        OnTheWay,
        Done,
    }
    let mut seen: BTreeMap<&ServiceId, Seen> = BTreeMap::new();
    let mut mistakes = Vec::new();
    for start in waits.keys() {
        if seen.contains_key(start) {
            continue;
        }
        // A stack of our own: a long chain must not exhaust the thread's.
        let mut way = vec![(start, waits[start].iter())];
        seen.insert(start, Seen::OnTheWay);
        while let Some((name, rest)) = way.last_mut() {
            let name = *name;
            let Some((other, place)) = rest.next() else {
                seen.insert(name, Seen::Done);
                way.pop();
                continue;
            };
            match (seen.get(other), waits.get_key_value(other)) {
                (None, Some((other, on))) => {
                    seen.insert(other, Seen::OnTheWay);
                    way.push((other, on.iter()));
                }
                (Some(Seen::OnTheWay), _) => {
                    let round = way.iter().map(|(name, _)| *name).skip_while(|name| *name != other);
                    let round: Vec<String> =
                        round.chain([other]).map(ToString::to_string).collect();
                    let label = format!("these wait for each other: {}", round.join(" → "));
                    let mistake = place.mistake(Code::DEPENDENCY_CYCLE, label);
                    mistakes.push(mistake.hint("take one of these dependencies out"));
                }
                (Some(Seen::Done), _) | (None, None) => {}
            }
        }
    }
    mistakes
}
