//! What a controller knows of this node's log. It is more than the log itself only where the disk was set back: a backup
//! was restored, or a machine from a picture of it. Then a new epoch begins, in which no wish from before is taken.

use std::time::Duration;

use tracing::{error, warn};

use super::authority::{Refusal, Way};
use super::task::Agent;
use crate::domain::code::Code;
use crate::domain::event::EpochReason;
use crate::domain::id::Seq;
use crate::domain::policy::Kind;
use crate::domain::time::Now;
use crate::head::folder::{StateFolder, write_whole};
use crate::store::Predecessor;

use crate::wire::envelope;
use crate::wire::payload::Receipt;

/// How old an epoch is before a witness may end it, in milliseconds.
const EPOCH_MS_MIN: u64 = 10_000;

/// How long after a witness began one it may not begin the next: one that lies makes one in this time, and no more.
const AGAIN: Duration = Duration::from_secs(600);

/// How far the epochs of others may be ahead of this clock, in milliseconds. What is further is a lie, or this clock is
/// wrong and will be set.
const AHEAD_MS_MAX: u64 = 24 * 3_600_000;

impl Agent {
    /// Takes in how far a controller has this log.
    ///
    /// # Errors
    /// It is no receipt for this log, or could not be kept.
    pub(super) fn receipt_came(&mut self, now: Now, bytes: &[u8], way: Way) -> Result<(), Refusal> {
        let receipt = self.authority.receipt(bytes, way)?;
        let head = self.recorder.head();
        let epoch = head.epoch;
        let size = self.recorder.next().0.saturating_sub(1);
        let is_another =
            (receipt.epoch, receipt.size) == (epoch, head.seq.0) && receipt.root != head.root;
        if (receipt.epoch, receipt.size) <= (epoch, size) && !is_another {
            return Ok(());
        }
        let controller = &receipt.controller;
        let age_ms = now.at.millis().saturating_sub(epoch.unix_ms());
        let path = self.queries.state.witnessed();
        let last = std::fs::metadata(&path).and_then(|about| about.modified()).ok();
        let is_again = last.is_some_and(|at| at.elapsed().is_ok_and(|age| age < AGAIN));
        let is_ahead = receipt.epoch.unix_ms() > now.at.millis().saturating_add(AHEAD_MS_MAX);
        if age_ms < EPOCH_MS_MIN || is_again || is_ahead {
            warn!(%controller, "a witness knows more of this log than is believed it");
            return Ok(());
        }
        if let Err(why) = write_whole(&path, bytes, 0o600) {
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
        self.begin_anew(Some(Seq(size + 1)), why, receipt.epoch.max(epoch));
        Ok(())
    }
}

/// Returns why an epoch follows on this one: a witness knew more of it, or it was damaged.
pub(super) fn reason(state: &StateFolder, before: Predecessor) -> EpochReason {
    let kept = std::fs::read(state.witnessed()).ok();
    let receipt: Option<Receipt> =
        kept.and_then(|bytes| envelope::read_kept(&bytes, Kind::Receipt).ok());
    match receipt.is_some_and(|it| (it.epoch, it.size) >= (before.epoch, before.size)) {
        true => EpochReason::WitnessAhead,
        false => EpochReason::Integrity,
    }
}
