//! What others are told of their own accord: durable events, that a wish was taken, and heartbeats.
//!
//! It waits a moment, so that what follows at once goes with it. Answers do not wait; see [`super::answers`].

use std::sync::Arc;
use std::time::Duration;

use super::clock;
use super::recorder::Live;
use super::task::{Agent, Deadline};
use crate::domain::id::{Digest, EventId, IntentId};
use crate::domain::node::FOLD_VERSION;
use crate::domain::policy::Kind;
use crate::domain::time::Now;
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::payload::{Beat, PAYLOAD_VERSION, Reply};

/// How often the head of the log is told while the bus is there.
const BEAT: Duration = Duration::from_secs(5);

/// How often while controllers are asked how far they have the log: one may come to the bus with this node.
const ASKING_BEAT: Duration = Duration::from_millis(500);

/// How long what is durable may wait for what follows it until others hear of it together: events, and that a wish was
/// taken. Whoever waits for an outcome is then not kept waiting by what matters less, and a burst costs the bus less.
const TELL_AFTER: Duration = Duration::from_millis(10);

/// Events that wait for it at most.
const UNTOLD_MAX: usize = 256;

/// What is durable and nobody has heard of.
#[derive(Debug, Default)]
pub(super) struct Untold {
    /// Events for the bus.
    pub(super) events: Vec<Live>,
    /// Wishes that were taken, for whoever waits.
    pub(super) accepted: Vec<(IntentId, EventId)>,
}

impl Agent {
    /// Sees to it that others hear of what is durable, together with what follows at once.
    pub(super) fn tell_soon(&mut self) {
        let is_due = self.timers.has(&Deadline::Tell);
        let has_news = !self.untold.events.is_empty() || !self.untold.accepted.is_empty();
        if self.untold.events.len() >= UNTOLD_MAX {
            self.tell();
        } else if has_news && !is_due {
            let due = clock::now().mono_ns + TELL_AFTER.as_nanos() as u64;
            self.timers.set(Deadline::Tell, due);
        }
    }

    pub(super) fn tell(&mut self) {
        self.timers.cancel(&Deadline::Tell);
        for (intent, event) in self.untold.accepted.drain(..) {
            // Nobody waits any more for a wish whose outcome was told.
            if let Some(sealed) = self.answers.sign(intent, Reply::Accepted { event }) {
                self.answers.tell(intent, &sealed, &mut self.voice);
            }
        }
        for live in self.untold.events.drain(..) {
            self.voice.publish(&live);
        }
    }

    pub(super) fn beat(&mut self) {
        if !self.voice.is_connected() {
            return;
        }
        // The head that it tells is not ahead of what was told.
        self.tell();
        let now = clock::now();
        let beat = self.sealed_beat(now);
        self.voice.beat(&beat);
        let pause = if self.witnesses.are_awaited() { ASKING_BEAT } else { BEAT };
        self.timers.set(Deadline::Beat, now.mono_ns + pause.as_nanos() as u64);
    }

    pub(super) fn sealed_beat(&mut self, now: Now) -> Arc<[u8]> {
        let head = self.recorder.head();
        let state_hash = self.state_hash_at(head.seq);
        let beat = Beat {
            v: PAYLOAD_VERSION,
            origin: self.setup.node.clone(),
            epoch: head.epoch,
            seq: head.seq,
            root: head.root,
            state_hash: state_hash.unwrap_or(Digest([0; 32])),
            fold: state_hash.map_or(0, |_| FOLD_VERSION),
            at: now.at,
            asks: self.witnesses.are_awaited(),
        };
        envelope::seal(Kind::Beat, &codec::encode(&beat), &self.signer).into()
    }
}
