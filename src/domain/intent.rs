//! Wishes: what a person or a job may ask of a node, and who may ask it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::id::{ActionName, Generation, IntentId, ServiceId};
use super::origin::Layer;
use super::overrides::{ConfigChanged, text_of};
use super::release::ReleaseId;
use super::rollout::OnConflict;
use super::time::UnixMicros;

/// What is wanted. Commands wish, events tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Bring a service up; survives reboot.
    Start {
        /// Which service.
        service: ServiceId,
    },
    /// Bring a service down; survives reboot.
    Stop {
        /// Which service.
        service: ServiceId,
    },
    /// Stop, then start, every instance.
    Restart {
        /// Which service.
        service: ServiceId,
    },
    /// The service's own reload.
    Reload {
        /// Which service.
        service: ServiceId,
    },
    /// Send a signal to the main process of every instance.
    Signal {
        /// Which service.
        service: ServiceId,
        /// The signal's number, 1 to 64.
        signal: i32,
    },
    /// Run an action that the service declares.
    Run {
        /// Which service.
        service: ServiceId,
        /// Which action.
        action: ActionName,
        /// Its parameters, by name; values reach argv only. No name may stand twice.
        #[serde(deserialize_with = "each_once")]
        params: BTreeMap<String, String>,
        /// Whether a person said yes to it: some actions want that.
        #[serde(default, skip_serializing_if = "is_no")]
        confirmed: bool,
    },
    /// Make the node match its spec files.
    Apply {
        /// These services, or all of them when empty.
        services: Vec<ServiceId>,
    },
    /// Let a service run from a release, and keep it so. Takes two generations: this one, and the next for the return.
    Deploy {
        /// Which service.
        service: ServiceId,
        /// The number of this wish among those for the service; an older one is refused.
        generation: Generation,
        /// The manifest, as MessagePack. Facts leave it out and name its digest.
        #[serde(with = "serde_bytes")]
        #[cfg_attr(test, schemars(with = "String", extend("contentEncoding" = "base64")))]
        release: Vec<u8>,
        /// What to return to when it fails; absent: what was good last on each node.
        back_to: Option<ReleaseId>,
        /// Why it may pass canary and waves, when it may.
        emergency: Option<String>,
        /// The earlier rollout of the same release that it goes on with: what passed there is not done again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry: Option<IntentId>,
        /// What follows when another rollout of the service is under way; absent: as the spec says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on_conflict: Option<OnConflict>,
        /// Whether it goes back to what succeeded before: by the rules of `[rollback]`, without canary and waits.
        #[serde(default, skip_serializing_if = "is_no")]
        rollback: bool,
    },
    /// Take a service from the node, and keep it so.
    Remove {
        /// Which service.
        service: ServiceId,
        /// The number of this wish among those for the service; an older one is refused.
        generation: Generation,
    },
    /// Set keys of a service, or set them no more: for a part of the fleet, for the node itself, or for a time.
    Configure {
        /// Which service.
        service: ServiceId,
        /// For a part of the fleet: the number of the wish; of two that set one key the higher one counts. Absent: for the
        /// node itself, or for a time.
        generation: Option<Generation>,
        /// What is set, by key: a value as TOML, or else a text. Facts leave the values out and name their digest.
        #[serde(deserialize_with = "each_once")]
        set: BTreeMap<String, String>,
        /// The keys that are not set any more.
        unset: BTreeSet<String>,
        /// Until when, where it is for a time.
        until: Option<UnixMicros>,
        /// Whether it is for each node itself that is meant: without a number and without an end.
        #[serde(default, skip_serializing_if = "is_no")]
        node: bool,
    },
    /// Say how a rollout goes on. Controllers take it, and no node.
    Rollout {
        /// Of which service.
        service: ServiceId,
        /// Which: the wish that opened it.
        rollout: IntentId,
        /// What.
        command: RolloutCommand,
    },
    /// End the node's agent.
    Shutdown {
        /// Whether services go on without it.
        leave_running: bool,
    },
}

/// What may be wanted of a rollout that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RolloutCommand {
    /// No new node gets an order; those under way finish.
    Pause,
    /// It goes on, in spite of what made it pause.
    Resume,
    /// It goes on behind the canary.
    Promote,
    /// A second person agrees to the plan.
    Approve,
    /// It ends.
    Abort {
        /// Whether everything touched goes back first.
        rollback: bool,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_no(flag: &bool) -> bool {
    !flag
}

/// Reads a map in which no name stands twice.
///
/// Readers differ in whether the first or the last of two counts, so two of them would obey two different wishes.
fn each_once<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct EachOnce;
    impl<'de> Visitor<'de> for EachOnce {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a map in which no name stands twice")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((name, value)) = entries.next_entry::<String, String>()? {
                if map.contains_key(&name) {
                    return Err(A::Error::custom(format_args!("`{name}` stands twice")));
                }
                map.insert(name, value);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(EachOnce)
}

/// The closed list of verbs that a grant can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// See [`Action::Start`].
    Start,
    /// See [`Action::Stop`].
    Stop,
    /// See [`Action::Restart`].
    Restart,
    /// See [`Action::Reload`].
    Reload,
    /// See [`Action::Signal`].
    Signal,
    /// See [`Action::Run`].
    Run,
    /// See [`Action::Apply`].
    Apply,
    /// See [`Action::Shutdown`].
    Shutdown,
    /// See [`Action::Deploy`].
    Deploy,
    /// See [`Action::Remove`].
    Remove,
    /// See [`Action::Configure`].
    Configure,
    /// Read status.
    Status,
    /// Read service logs.
    Logs,
    /// Read ranges of the event log.
    Events,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Reload => "reload",
            Self::Signal => "signal",
            Self::Run => "run",
            Self::Apply => "apply",
            Self::Shutdown => "shutdown",
            Self::Deploy => "deploy",
            Self::Remove => "remove",
            Self::Configure => "configure",
            Self::Status => "status",
            Self::Logs => "logs",
            Self::Events => "events",
        })
    }
}

impl Action {
    /// Returns the verb that a grant must name.
    pub fn verb(&self) -> Verb {
        match self {
            Self::Start { .. } => Verb::Start,
            Self::Stop { .. } => Verb::Stop,
            Self::Restart { .. } => Verb::Restart,
            Self::Reload { .. } => Verb::Reload,
            Self::Signal { .. } => Verb::Signal,
            Self::Run { .. } => Verb::Run,
            Self::Apply { .. } => Verb::Apply,
            Self::Shutdown { .. } => Verb::Shutdown,
            // Whoever may begin a rollout may say how it goes on.
            Self::Deploy { .. } | Self::Rollout { .. } => Verb::Deploy,
            Self::Remove { .. } => Verb::Remove,
            Self::Configure { .. } => Verb::Configure,
        }
    }

    /// Returns the service it is about, when it is about one.
    pub fn service(&self) -> Option<&ServiceId> {
        match self {
            Self::Start { service }
            | Self::Stop { service }
            | Self::Restart { service }
            | Self::Reload { service }
            | Self::Signal { service, .. }
            | Self::Run { service, .. }
            | Self::Deploy { service, .. }
            | Self::Rollout { service, .. }
            | Self::Configure { service, .. }
            | Self::Remove { service, .. } => Some(service),
            Self::Apply { .. } | Self::Shutdown { .. } => None,
        }
    }

    /// Returns the number of the desired state that it asks for, when it is one for ever.
    pub fn generation(&self) -> Option<Generation> {
        match self {
            Self::Deploy { generation, .. } | Self::Remove { generation, .. } => Some(*generation),
            Self::Configure { generation, .. } => *generation,
            Self::Start { .. }
            | Self::Stop { .. }
            | Self::Restart { .. }
            | Self::Reload { .. }
            | Self::Signal { .. }
            | Self::Run { .. }
            | Self::Apply { .. }
            | Self::Rollout { .. }
            | Self::Shutdown { .. } => None,
        }
    }

    /// Returns the layer of a configuration in which it changes something.
    pub fn layer(&self) -> Option<Layer> {
        let Self::Configure { generation, node, .. } = self else { return None };
        Some(match (generation, node) {
            (Some(_), _) => Layer::Fleet,
            (None, true) => Layer::Node,
            (None, false) => Layer::Temporary,
        })
    }

    /// Returns what a wish with this id changes of a configuration.
    pub fn config_change(&self, intent: IntentId) -> Option<ConfigChanged> {
        let Self::Configure { generation, set, unset, until, .. } = self else { return None };
        Some(ConfigChanged {
            intent,
            layer: self.layer()?,
            generation: *generation,
            set: set.keys().cloned().collect(),
            unset: unset.clone(),
            text: text_of(set).1,
            until: *until,
        })
    }

    /// Returns the release that is to be deployed.
    pub fn release(&self) -> Option<ReleaseId> {
        match self {
            Self::Deploy { release, .. } => Some(ReleaseId::of(release)),
            _ => None,
        }
    }

    /// Returns the number, where it is one for where a service is and what it runs from.
    pub fn release_generation(&self) -> Option<Generation> {
        match self {
            Self::Configure { .. } => None,
            _ => self.generation(),
        }
    }

    /// Returns the wish as facts hold it: without the manifest and without what is set, which may hold values of the
    /// environment.
    #[must_use]
    pub fn recorded(mut self) -> Self {
        match &mut self {
            Self::Deploy { release, .. } => *release = Vec::new(),
            Self::Configure { set, .. } => set.values_mut().for_each(String::clear),
            _ => {}
        }
        self
    }
}

/// The kind of a principal, as history prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// A person.
    Human,
    /// A job.
    Ci,
    /// A controller.
    Controller,
    /// A rollout.
    Rollout,
    /// The service's own restart policy.
    Policy,
    /// Local root, or the user who runs smgr.
    Local,
    /// smgr itself.
    System,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_stands_twice_is_refused() {
        let wish = |params: &str| {
            let text =
                format!(r#"{{"run":{{"service":"web","action":"clear","params":{params}}}}}"#);
            serde_json::from_str::<Action>(&text)
        };
        assert!(wish(r#"{"what":"a","why":"b"}"#).is_ok());
        let error = wish(r#"{"what":"a","what":"a"}"#).unwrap_err().to_string();
        assert!(error.contains("`what` stands twice"), "{error}");
    }
}
