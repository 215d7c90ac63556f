//! What a controller knows of this node's log. It is more than the log itself only where the disk was set back: a backup
//! was restored, or a machine from a picture of it. Then a new epoch begins, in which no wish from before is taken.
//!
//! So controllers are asked whenever the bus is there anew, and what may run once alone and came over the bus waits until
//! they have said it. What does not wait: this machine's own commands, and what says by its number whether it is newer.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tracing::{error, warn};

use super::answers::ReplyTo;
use super::authority::{Refusal, Verified, Way};
use super::clock;
use super::task::{Agent, Deadline};
use crate::domain::code::Code;
use crate::domain::event::EpochReason;
use crate::domain::id::{EpochId, NodeId, Principal, Seq};
use crate::domain::policy::Kind;
use crate::domain::time::Now;
use crate::head::folder::{StateFolder, write_whole};
use crate::store::Predecessor;
use crate::wire::envelope;
use crate::wire::payload::{Intent, Mode, Receipt};

/// How old an epoch is before a witness may end it, in milliseconds.
const EPOCH_MS_MIN: u64 = 10_000;

/// How long after a witness began one it may not begin the next: one that lies makes one in this time, and no more.
const AGAIN: Duration = Duration::from_secs(600);

/// How far the epochs of others may be ahead of this clock, in milliseconds. What is further is a lie, or this clock is
/// wrong and will be set.
const AHEAD_MS_MAX: u64 = 24 * 3_600_000;

/// How long the controllers have to say how far they have this log. Then a node takes wishes without them: it has to work
/// with every one of them down.
const WITHIN: Duration = Duration::from_secs(2);

/// Wishes that wait for it. Whoever asks for more is told to try again.
const WISHES_MAX: usize = 256;

/// The controllers that have not said how far they have this log since the bus is there, and what waits for them.
#[derive(Debug, Default)]
pub(super) struct Witnesses {
    awaited: BTreeSet<Principal>,
    wishes: VecDeque<(Verified<Intent>, ReplyTo)>,
}

impl Witnesses {
    /// Says whether any of them has not said it.
    pub(super) fn are_awaited(&self) -> bool {
        !self.awaited.is_empty()
    }

    fn heard(&mut self, controller: &NodeId) {
        self.awaited.retain(|known| known.as_str() != controller.as_str());
    }
}

impl Agent {
    /// The bus is there: tells everybody the head of this log, and asks the controllers how much of it they have.
    pub(super) fn bus_is_up(&mut self) {
        self.witnesses.awaited = self.authority.controllers().cloned().collect();
        // What waits already does so no longer because the bus comes and goes.
        if self.witnesses.are_awaited() && self.witnesses.wishes.is_empty() {
            self.await_witnesses();
        }
        self.beat();
    }

    fn await_witnesses(&mut self) {
        let due = clock::now().mono_ns + WITHIN.as_nanos() as u64;
        self.timers.set(Deadline::Witnesses, due);
    }

    /// Takes a wish that passed the gate, at once or when the controllers were heard.
    pub(super) fn take_in_turn(&mut self, now: Now, wish: Verified<Intent>, way: Way, to: ReplyTo) {
        if !self.has_to_wait(&wish, way) {
            return self.take_wish(now, &wish, way, to);
        }
        if self.witnesses.wishes.len() >= WISHES_MAX {
            let why = "no controller has said yet how far it has this log, and many wishes wait";
            return self.refuse(now, wish.refused(Code::BUSY, why.to_owned()), &to);
        }
        self.witnesses.wishes.push_back((wish, to));
        if !self.timers.has(&Deadline::Witnesses) {
            self.await_witnesses();
        }
    }

    /// Says whether this log would not know a wish again, if the disk was set back to before it.
    fn has_to_wait(&self, wish: &Verified<Intent>, way: Way) -> bool {
        // What is heard before the uplink has told that the bus is there came with it.
        let is_asked = self.witnesses.are_awaited()
            || !self.voice.is_connected() && self.authority.controllers().next().is_some();
        let is_new = wish.objection.is_none() && self.node.seen().get(&wish.payload.id).is_none();
        is_asked && is_new && way == Way::Bus && wish.payload.mode == Mode::Once
    }

    /// Takes what waited: the controllers have said what there is to say, or had the time.
    pub(super) fn witnesses_were_heard(&mut self) {
        self.timers.cancel(&Deadline::Witnesses);
        let Witnesses { wishes, .. } = std::mem::take(&mut self.witnesses);
        for (wish, to) in wishes {
            let now = clock::now();
            match self.authority.judge_again(&wish, Way::Bus, now.at) {
                Ok(()) => self.take_wish(now, &wish, Way::Bus, to),
                Err(refusal) => self.refuse(now, refusal, &to),
            }
        }
    }

    /// Takes in how far a controller has this log.
    ///
    /// # Errors
    /// It is no receipt for this log, or could not be kept.
    pub(super) fn receipt_came(&mut self, now: Now, bytes: &[u8], way: Way) -> Result<(), Refusal> {
        let receipt = self.authority.receipt(bytes, way, now.at)?;
        if !self.is_ahead(now, &receipt) {
            self.witnesses.heard(&receipt.controller);
            if !self.witnesses.are_awaited() {
                self.witnesses_were_heard();
            }
            return Ok(());
        }
        if let Err(why) = write_whole(&self.queries.state.witnessed(), bytes, 0o600) {
            error!(%why, "a receipt could not be kept");
            let why = format!("it could not be kept: {why}");
            return Err(Refusal { code: Code::IO, why, signed: None });
        }
        let (epoch, size) = self.recorded_to();
        let why = format!(
            "{} has {} events of the epoch {}, and {size} of {} are here",
            receipt.controller,
            receipt.size,
            receipt.epoch.token(),
            epoch.token()
        );
        self.begin_anew(Some(Seq(size + 1)), why, receipt.epoch.max(epoch));
        Ok(())
    }

    /// Returns the epoch, and how many events of it there are, those on their way to the disk among them.
    fn recorded_to(&self) -> (EpochId, u64) {
        (self.recorder.head().epoch, self.recorder.next().0.saturating_sub(1))
    }

    /// Says whether a controller knows more of this log than the log does, as far as it is believed that.
    fn is_ahead(&self, now: Now, receipt: &Receipt) -> bool {
        let (head, here) = (self.recorder.head(), self.recorded_to());
        let told = (receipt.epoch, receipt.size);
        let is_another = told == (head.epoch, head.seq.0) && receipt.root != head.root;
        if told <= here && !is_another {
            return false;
        }
        let age_ms = now.at.millis().saturating_sub(head.epoch.unix_ms());
        let last = std::fs::metadata(self.queries.state.witnessed());
        let last = last.and_then(|about| about.modified()).ok();
        let is_again = last.is_some_and(|at| at.elapsed().is_ok_and(|age| age < AGAIN));
        let is_far = receipt.epoch.unix_ms() > now.at.millis().saturating_add(AHEAD_MS_MAX);
        let is_believed = age_ms >= EPOCH_MS_MIN && !is_again && !is_far;
        if !is_believed {
            let controller = &receipt.controller;
            warn!(%controller, "a witness knows more of this log than is believed it");
        }
        is_believed
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
