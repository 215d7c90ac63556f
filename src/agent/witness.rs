//! What a controller knows of this node's log. It is more than the log itself only where the disk was set back: a backup
//! was restored, or a machine from a picture of it. Then a new epoch begins, in which no wish from before is taken.

use tracing::{error, warn};

use super::authority::{Refusal, Way};
use super::task::Agent;
use crate::domain::code::Code;
use crate::domain::event::EpochReason;
use crate::domain::id::Seq;
use crate::domain::time::Now;
use crate::head::folder::{StateFolder, write_whole};
use crate::store::Predecessor;
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::payload::Receipt;

/// How old an epoch is before a witness may end it, in milliseconds: one that lies makes no new ones without end.
const EPOCH_MS_MIN: u64 = 10_000;

impl Agent {
    /// Takes in how far a controller has this log.
    ///
    /// # Errors
    /// It is no receipt for this log, or could not be kept.
    pub(super) fn receipt_came(&mut self, now: Now, bytes: &[u8], way: Way) -> Result<(), Refusal> {
        let receipt = self.authority.receipt(bytes, way)?;
        let epoch = self.recorder.head().epoch;
        let size = self.recorder.next().0.saturating_sub(1);
        if (receipt.epoch, receipt.size) <= (epoch, size) {
            return Ok(());
        }
        let controller = &receipt.controller;
        if now.at.millis().saturating_sub(epoch.unix_ms()) < EPOCH_MS_MIN {
            warn!(%controller, "a witness knows more of an epoch that has only just begun");
            return Ok(());
        }
        if let Err(why) = write_whole(&self.queries.state.witnessed(), bytes, 0o600) {
            error!(%why, "a receipt could not be kept");
            let why = format!("it could not be kept: {why}");
            return Err(Refusal { code: Code::IO, why, signed: None });
        }
        let why = format!(
            "{controller} has {} events of the epoch {}, and {size} of {} are here",
            receipt.size,
            receipt.epoch.token(),
            epoch.token()
        );
        self.damaged(Some(Seq(size + 1)), why);
        Ok(())
    }
}

/// Returns why an epoch follows on this one: a witness knew more of it, or it was damaged.
pub(super) fn reason(state: &StateFolder, before: Predecessor) -> EpochReason {
    let receipt = std::fs::read(state.witnessed()).ok().and_then(|bytes| {
        let sealed = envelope::read(&bytes, ENVELOPE_BYTES_MAX).ok()?;
        codec::decode::<Receipt>(sealed.unverified_payload()).ok()
    });
    match receipt.is_some_and(|it| (it.epoch, it.size) > (before.epoch, before.size)) {
        true => EpochReason::WitnessAhead,
        false => EpochReason::Integrity,
    }
}
