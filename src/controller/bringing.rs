//! The trust document in force, brought to nodes that judge by an older one: their own logs say so.

use std::io;
use std::sync::Arc;

use tracing::warn;

use super::links::Saying;
use super::setup::read_capped;
use super::task::Controller;
use crate::domain::id::NodeId;
use crate::domain::time::Now;
use crate::head::folder::StateFolder;
use crate::wire::envelope::ENVELOPE_BYTES_MAX;
use crate::wire::subject::{Callee, Subject};

/// The envelope as the root key signed it, and its version.
#[derive(Debug)]
pub(super) struct Bringing {
    version: u64,
    /// Absent when it is larger than a call may be.
    envelope: Option<Arc<[u8]>>,
}

impl Bringing {
    /// Reads the envelope of a folder.
    pub(super) fn of(folder: &StateFolder, version: u64) -> io::Result<Self> {
        let limit = u64::try_from(ENVELOPE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
        let envelope = read_capped(&folder.trust(), limit)?;
        let envelope = (envelope.len() <= ENVELOPE_BYTES_MAX).then(|| envelope.into());
        if envelope.is_none() {
            warn!(
                "the trust document is larger than a call may be: nodes take it in when they join again"
            );
        }
        Ok(Self { version, envelope })
    }
}

impl Controller {
    /// Sends the document to each node that was heard and has an older one, until its log says that it has this one.
    pub(super) fn bring_trust(&self, now: Now) {
        if self.leads().is_some() {
            for node in self.projection.heard_lately(now) {
                self.bring_trust_to(node);
            }
        }
    }

    /// Sends the document to a node if it has an older one, and says whether it did.
    pub(super) fn bring_trust_to(&self, node: &NodeId) -> bool {
        let Bringing { version, envelope } = &self.bringing;
        let trust = self.projection.node(node).and_then(|node| node.head().trust.as_ref());
        let is_behind = trust.is_some_and(|trust| trust.version < *version);
        let Some(envelope) = envelope.as_ref().filter(|_| is_behind) else { return false };
        let Ok(to) = Callee::node(node.clone()) else { return false };
        let subject = Subject::Call { fleet: self.setup.fleet.clone(), to };
        self.say(Saying::Tell(subject, envelope.clone()));
        true
    }
}
