//! The specs that are in force: read from files when asked, kept by digest beside the log, never applied by themselves.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{error, warn};

use super::folder::{StateFolder, write_whole};
use super::setup::NodeSetup;
use super::task::Agent;
use crate::config::{self, Loaded, Mistake, Options, Roots};
use crate::domain::id::{Digest, IntentId, ServiceId};
use crate::domain::input::Input;
use crate::domain::node::Node;
use crate::domain::spec::Spec;

/// What one service is at this moment.
#[derive(Debug, Clone)]
struct InForce {
    digest: Digest,
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
}

impl Services {
    pub(super) fn new(state: &StateFolder, setup: &NodeSetup, uid: u32) -> Self {
        let specs = &setup.specs;
        Self {
            folder: state.root().join("specs"),
            roots: Roots {
                vendor: specs.vendor.clone(),
                host: specs.host.clone(),
                group: specs.group.clone(),
                node: specs.node.clone(),
                project: specs.project.clone(),
            },
            options: Options {
                log_root: setup.service_logs.display().to_string(),
                user_required: uid == 0,
            },
            writer: uid,
            specs: BTreeMap::new(),
            in_force: BTreeMap::new(),
        }
    }

    /// Returns the specs in force, by service.
    pub(super) fn specs(&self) -> &BTreeMap<ServiceId, Arc<Spec>> {
        &self.specs
    }

    /// Returns the spec in force of one service, with its digest.
    pub(super) fn spec_of(&self, service: &ServiceId) -> Option<(Arc<Spec>, Digest)> {
        Some((self.specs.get(service)?.clone(), self.in_force.get(service)?.digest))
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
        let loaded = self.load().unwrap_or_default();
        for (service, digest) in missing {
            match loaded.services.get(&service) {
                Some(found) if found.digest == digest => {
                    self.adopt(&service, found.spec.clone(), digest, &found.text);
                }
                _ => error!(%service, %digest, "its spec is lost; `smgr apply` takes the file's"),
            }
        }
    }

    fn recall_one(&mut self, service: &ServiceId, digest: Digest) -> bool {
        let Ok(text) = fs::read_to_string(self.path(digest)) else { return false };
        let Ok(spec) = serde_json::from_str::<Spec>(&text) else { return false };
        if config::canonical(&spec).1 != digest {
            return false;
        }
        self.specs.insert(service.clone(), Arc::new(spec));
        self.in_force.insert(service.clone(), InForce { digest });
        true
    }

    /// Reads all spec files, or says all that is wrong with them.
    pub(super) fn load(&self) -> Result<Loaded, Vec<Mistake>> {
        config::load(&self.roots, &self.options, Some(self.writer))
    }

    /// Puts a spec into force. Its text is on disk before an event names its digest.
    pub(super) fn adopt(&mut self, service: &ServiceId, spec: Spec, digest: Digest, text: &str) {
        if let Err(why) = self.keep(digest, text) {
            warn!(%service, %why, "the spec could not be kept beside the log");
        }
        self.specs.insert(service.clone(), Arc::new(spec));
        self.in_force.insert(service.clone(), InForce { digest });
    }

    fn keep(&self, digest: Digest, text: &str) -> io::Result<()> {
        let path = self.path(digest);
        if path.exists() {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        // It may hold values of the environment, so only the agent's own account reads it.
        write_whole(&path, text.as_bytes(), 0o600)
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
        let loaded = match self.services.load() {
            Ok(loaded) => loaded,
            Err(mistakes) => {
                error!(
                    mistakes = mistakes.len(),
                    "the spec files have mistakes: `smgr check` shows them"
                );
                return;
            }
        };
        for (service, found) in loaded.services {
            if self.node.services().contains_key(&service) {
                continue;
            }
            self.services.adopt(&service, found.spec, found.digest, &found.text);
            let origin = found.origin.to_string();
            let digest = found.digest;
            self.inbox.push_back(Input::SpecAdopted { service, digest, origin, intent: None });
        }
    }

    /// Makes the node match its files, as an intent asked.
    pub(super) fn load_specs(&mut self, intent: IntentId, only: &[ServiceId]) {
        let failed = |code: crate::domain::code::Code, why: String| Input::Applied {
            intent,
            failed: Some((code.to_string(), why)),
        };
        let loaded = match self.services.load() {
            Ok(loaded) => loaded,
            Err(mistakes) => {
                let why = config::render(&mistakes, "nothing was applied", None);
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
        for (service, found) in loaded.services {
            let known = self.node.services().get(&service);
            if !wanted(&service)
                || known.is_some_and(|known| known.digest == found.digest && !known.removed)
            {
                continue;
            }
            self.services.adopt(&service, found.spec, found.digest, &found.text);
            let origin = found.origin.to_string();
            let (digest, intent) = (found.digest, Some(intent));
            self.inbox.push_back(Input::SpecAdopted { service, digest, origin, intent });
        }
        for service in gone {
            self.inbox.push_back(Input::SpecRemoved { service, intent: Some(intent) });
        }
        self.inbox.push_back(Input::Applied { intent, failed: None });
    }
}
