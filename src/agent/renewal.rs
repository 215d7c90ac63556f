//! A trust document that comes while the agent runs: nodes were admitted or keys taken back.

use tracing::{error, info};

use super::authority::{Authority, Refusal};
use super::folder::write_whole;
use super::keyfile::read_root;
use super::task::Agent;
use super::trust::{ring_of, succeed};
use crate::domain::code::Code;
use crate::domain::event::{Context, Event, TrustChanged};
use crate::domain::input::Decision;
use crate::domain::text;
use crate::domain::time::Now;

impl Agent {
    /// Judges by a document from here on, if the root key that is pinned here signed it after the one in force.
    ///
    /// The one in force and those before it change nothing: anybody may send them again.
    ///
    /// # Errors
    /// The first check that failed, or that it could not be kept: then the one before holds.
    pub(super) fn trust_came(&mut self, now: Now, bytes: &[u8]) -> Result<(), Refusal> {
        let refused = |code, why: String| Refusal {
            code,
            why: text::brief(why, text::WHY_BYTES_MAX),
            signed: None,
        };
        let root = read_root(&self.queries.state)
            .map_err(|error| refused(Code::FILE_UNREADABLE, error.to_string()))?
            .ok_or_else(|| refused(Code::FILE_UNREADABLE, "no root key is pinned".to_owned()))?;
        let (trust, digest) = Authority::trust(bytes, root)?;
        let read = TrustChanged { version: trust.version, digest };
        let is_new = succeed(&trust, &read, &self.setup.fleet, &self.node)
            .map_err(|error| refused(Code::TRUST_UNUSABLE, error.to_string()))?;
        if !is_new {
            return Ok(());
        }
        let ring =
            ring_of(&trust).map_err(|error| refused(Code::TRUST_UNUSABLE, error.to_string()))?;
        // On disk before the history says so: an agent that finds less there than it has said obeys nobody.
        if let Err(why) = write_whole(&self.queries.state.received_trust(), bytes, 0o600) {
            error!(%why, version = trust.version, "the trust document could not be kept");
            return Err(refused(Code::IO, format!("it could not be kept: {why}")));
        }
        info!(version = trust.version, "another trust document is in force");
        self.authority.renew(ring, trust);
        let events = vec![(Context::default(), Event::TrustChanged(read))];
        self.commit(now, Decision { events, effects: Vec::new() });
        Ok(())
    }
}
