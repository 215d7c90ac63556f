//! The trust document in force, brought to nodes that judge by an older one: their own logs say so.

use std::io;
use std::sync::Arc;

use tracing::warn;

use super::links::Saying;
use super::setup::read_capped;
use super::task::{Controller, Role};
use crate::domain::time::Now;
use crate::head::folder::StateFolder;
use crate::wire::envelope::ENVELOPE_BYTES_MAX;
use crate::wire::subject::{Callee, Subject};

/// The envelope as the root key signed it, and its version.
#[derive(Debug)]
pub(super) struct Bringing {
    version: u64,
    envelope: Arc<[u8]>,
}

impl Bringing {
    /// Reads the envelope of a folder.
    pub(super) fn of(folder: &StateFolder, version: u64) -> io::Result<Self> {
        let limit = u64::try_from(ENVELOPE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
        let envelope: Arc<[u8]> = read_capped(&folder.trust(), limit)?.into();
        if envelope.len() > ENVELOPE_BYTES_MAX {
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
        let Bringing { version, envelope } = &self.bringing;
        if !matches!(self.role, Role::Leader(_)) || envelope.len() > ENVELOPE_BYTES_MAX {
            return;
        }
        for node in self.projection.trust_behind(*version, now) {
            let Ok(to) = Callee::node(node) else { continue };
            let subject = Subject::Call { fleet: self.setup.fleet.clone(), to };
            self.say(Saying::Tell(subject, envelope.clone()));
        }
    }
}
