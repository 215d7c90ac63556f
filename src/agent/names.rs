//! The names under which the keeper knows what the core calls instances, runs, hooks and actions.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

pub(super) use super::launch::{run_name as run, slot_name as slot};
use crate::domain::effect::Hook;
use crate::domain::id::{CheckName, Digest, InstanceId, IntentId, RunId};
use crate::ipc::keeper::{RunName, SlotName};
use crate::wire::codec;

/// What the keeper hands back, unread, with every fact of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Memo {
    /// The main process of an instance.
    Run {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
        /// The spec it was started from.
        spec: Digest,
    },
    /// A command of the service beside a run.
    Hook {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
        /// Which command.
        hook: HookName,
    },
    /// A check of a run by a program.
    Check {
        /// Which slot.
        instance: InstanceId,
        /// Which start of it.
        run: RunId,
        /// Which check.
        check: CheckName,
    },
    /// A declared action.
    Action {
        /// The wish that asked for it.
        intent: IntentId,
        /// On which slot's channels.
        instance: InstanceId,
    },
}

/// [`Hook`], as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum HookName {
    /// `stop.pre`.
    PreStop,
    /// `reload.by = "exec"`.
    Reload,
}

impl From<Hook> for HookName {
    fn from(hook: Hook) -> Self {
        match hook {
            Hook::PreStop => Self::PreStop,
            Hook::Reload => Self::Reload,
        }
    }
}

impl From<HookName> for Hook {
    fn from(hook: HookName) -> Self {
        match hook {
            HookName::PreStop => Self::PreStop,
            HookName::Reload => Self::Reload,
        }
    }
}

impl Memo {
    /// Returns the form that travels.
    pub(super) fn encode(&self) -> ByteBuf {
        ByteBuf::from(codec::encode(self))
    }

    /// Reads what the keeper handed back; `None` when an agent of another version wrote it.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        codec::decode(bytes).ok()
    }
}

/// Returns the instance that a slot name stands for.
pub(super) fn instance_of(slot: &SlotName) -> Option<InstanceId> {
    let (service, index) = slot.as_str().rsplit_once('.')?;
    Some(InstanceId { service: service.parse().ok()?, index: index.parse().ok()? })
}

/// Names a hook beside a run: `web.0.17.pre-stop`.
///
/// A reload may be asked for more than once in a run, so the operation tells them apart.
pub(super) fn hook(instance: &InstanceId, run: RunId, hook: Hook, operation: [u8; 16]) -> RunName {
    let what = match hook {
        Hook::PreStop => "pre-stop",
        Hook::Reload => "reload",
    };
    let tail = IntentId(operation).to_string();
    name(format!("{}.{}.{run}.{what}.{}", instance.service, instance.index, &tail[..12]))
}

/// Names a check of a run: `web.0.17.check.4711`. The number is another one each time.
pub(super) fn check(instance: &InstanceId, run: RunId, number: u64) -> RunName {
    name(format!("{}.{}.{run}.check.{number}", instance.service, instance.index))
}

/// Names an action: `act.<intent>`.
pub(super) fn action(intent: IntentId) -> RunName {
    name(format!("act.{intent}"))
}

fn name<T: std::str::FromStr>(text: String) -> T {
    text.parse().ok().expect("service names are tokens of at most 63 bytes, so the name fits")
}
