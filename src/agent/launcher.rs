//! The agent's starts: what is prepared for the keeper, what is known of each run, and the last words of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde_bytes::ByteBuf;

use super::folder::StateFolder;
use super::launch::{Launch, LaunchFault, Launcher, NodeFacts, PATH_DEFAULT, Start};
use super::logs::LogSetup;
use super::names;
use super::services::Services;
use super::setup::NodeSetup;
use crate::domain::effect::Hook;
use crate::domain::event::Detached;
use crate::domain::id::{ActionName, Digest, InstanceId, RunId};
use crate::domain::spec::{Alert, Spec};
use crate::domain::template::Template;
use crate::head::detached::{DetachedStore, Retention};
use crate::ipc::keeper::{RunName, Spawn};

/// How long the last lines of runs are kept, and how many bytes of them.
const TAILS_AGE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
const TAILS_BYTES: u64 = 64 << 20;

/// Prepares starts and keeps what the keeper need not know.
#[derive(Debug)]
pub(super) struct Launchers {
    launcher: Launcher,
    tails: DetachedStore,
    /// The last lines of the last run that ended, by slot.
    last_words: BTreeMap<InstanceId, Vec<String>>,
}

impl Launchers {
    pub(super) fn new(state: &StateFolder, setup: &NodeSetup) -> std::io::Result<Self> {
        // Until the keeper has said so itself.
        let keeper_is_root = state.ruler()? == 0;
        let path = match keeper_is_root {
            true => PATH_DEFAULT.to_owned(),
            false => std::env::var("PATH").unwrap_or_else(|_| PATH_DEFAULT.to_owned()),
        };
        let facts = NodeFacts {
            node: setup.node.clone(),
            fleet: setup.fleet.clone(),
            runtime_dir: state.place().runtime(),
            releases_dir: state.releases(),
            keeper_is_root,
            path,
        };
        let retention = Retention { age: TAILS_AGE, bytes: TAILS_BYTES };
        Ok(Self {
            launcher: Launcher::new(facts),
            tails: DetachedStore::open(&state.root().join("detached"), retention)?,
            last_words: BTreeMap::new(),
        })
    }

    /// Takes in whether the keeper can take on other accounts.
    pub(super) fn keeper_is_root(&mut self, is_root: bool) {
        self.launcher.keeper_is_root(is_root);
    }

    /// Prepares a run of a service.
    pub(super) fn run(
        &mut self,
        spec: &Spec,
        instance: &InstanceId,
        run: RunId,
        memo: ByteBuf,
    ) -> Result<Spawn, LaunchFault> {
        let start = Start { spec, instance, run };
        self.launcher.service(start, memo.into_vec()).map(told)
    }

    /// Prepares a command of the service beside a run.
    pub(super) fn hook(
        &mut self,
        spec: &Spec,
        instance: &InstanceId,
        run: RunId,
        hook: Hook,
        name: RunName,
        memo: ByteBuf,
    ) -> Result<Spawn, LaunchFault> {
        let start = Start { spec, instance, run };
        match hook {
            Hook::PreStop => self.launcher.before_stop(start, name, memo.into_vec()),
            Hook::Reload => self.launcher.reload(start, name, memo.into_vec()),
        }
        .map(told)
    }

    /// Prepares a check of a run by a program.
    pub(super) fn check(
        &mut self,
        start: Start<'_>,
        exec: &[Template],
        name: RunName,
        memo: ByteBuf,
    ) -> Result<Spawn, LaunchFault> {
        self.launcher.check(start, exec, name, memo.into_vec()).map(told)
    }

    /// Prepares a declared action.
    pub(super) fn action(
        &mut self,
        start: Start<'_>,
        action: &ActionName,
        params: &BTreeMap<String, String>,
        name: RunName,
        memo: ByteBuf,
    ) -> Result<Spawn, LaunchFault> {
        let fault = |why: String| LaunchFault { step: "action", errno: 0, why };
        let values = super::launch::bind_action(start.spec, action, params)
            .map_err(|refusal| fault(refusal.to_string()))?;
        self.launcher.action(start, name, action, &values, memo.into_vec()).map(told)
    }

    /// Removes what runs left in folders of their own that are gone, while nobody looked.
    pub(super) fn forget_but(&self, live: &BTreeSet<RunName>) {
        if let Err(why) = self.launcher.clean_up_but(live) {
            tracing::warn!(%why, "the folders of runs that are gone stay");
        }
    }

    /// Removes what a run left in the folder of its own.
    pub(super) fn forget(&self, instance: &InstanceId, run: RunId) {
        if let Err(why) = self.launcher.clean_up(&names::run(instance, run)) {
            tracing::warn!(%instance, %run, %why, "the folder of a run stays");
        }
    }

    /// Returns how the output of a slot is written.
    ///
    /// # Errors
    /// In words, when the folder or a pattern is not one.
    pub(super) fn log_setup(&self, spec: &Spec, instance: &InstanceId) -> Result<LogSetup, String> {
        let dir = self.launcher.log_dir(spec, instance).map_err(|fault| fault.to_string())?;
        LogSetup::new(&spec.log, &spec.alert, dir).map_err(|error| error.to_string())
    }

    /// Returns the annotations of an alert with their names expanded. One that cannot be stays as it was written.
    pub(super) fn annotations(
        &self,
        alert: &Alert,
        instance: &InstanceId,
        run: Option<RunId>,
    ) -> BTreeMap<String, String> {
        let expanded = |text: &Template| {
            self.launcher.text(text, instance, run).unwrap_or_else(|_| text.as_str().to_owned())
        };
        alert.annotations.iter().map(|(name, text)| (name.clone(), expanded(text))).collect()
    }

    /// Returns a text with its names expanded for a run, or why that cannot be.
    pub(super) fn text(
        &self,
        text: &Template,
        instance: &InstanceId,
        run: RunId,
    ) -> Result<String, String> {
        self.launcher.text(text, instance, Some(run)).map_err(|fault| fault.to_string())
    }

    /// Keeps a line beside the log and returns what stands for it in an event.
    pub(super) fn keep_line(&self, line: String) -> Option<Detached> {
        (!line.is_empty()).then(|| self.tails.put(line))
    }

    /// Returns the live log file of a slot.
    pub(super) fn log_path(&self, services: &Services, instance: &InstanceId) -> Option<PathBuf> {
        let (spec, _) = services.spec_of(&instance.service)?;
        Some(self.launcher.log_dir(&spec, instance).ok()?.join("current"))
    }

    /// Keeps the last lines of a run beside the log and returns what stands for them in its exit event.
    pub(super) fn keep_tail(
        &mut self,
        instance: &InstanceId,
        lines: Vec<String>,
    ) -> Option<Detached> {
        if lines.is_empty() {
            self.last_words.remove(instance);
            return None;
        }
        let detached = self.tails.put(lines.join("\n"));
        self.last_words.insert(instance.clone(), lines);
        Some(detached)
    }

    /// Keeps the last lines of a run that goes on beside the log and returns what stands for them.
    pub(super) fn keep_lines(&self, lines: &[String]) -> Option<Detached> {
        self.keep_line(lines.join("\n"))
    }

    /// Returns a text that an event names, as it lies beside the log.
    pub(super) fn text_beside(&self, hash: &Digest) -> Option<Vec<u8>> {
        self.tails.record(hash).ok().flatten()
    }

    /// Forgets what was kept of a slot.
    pub(super) fn forget_slot(&mut self, instance: &InstanceId) {
        self.last_words.remove(instance);
    }

    /// Returns the last lines of the last run of a slot that ended in this life of the agent.
    pub(super) fn tail_of(&self, instance: &InstanceId) -> Vec<String> {
        self.last_words.get(instance).cloned().unwrap_or_default()
    }
}

fn told(launch: Launch) -> Spawn {
    for degradation in &launch.degraded {
        tracing::warn!(run = %launch.spawn.run, key = degradation.key, why = degradation.why, "not as specified");
    }
    launch.spawn
}
