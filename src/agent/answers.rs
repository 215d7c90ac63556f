//! Signs answers and sends each to whom it was promised: an inbox on the bus, or a caller at the local socket.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::clock;
use super::local::Caller;
use super::voice::Voice;
use crate::domain::id::{IntentId, NodeId};
use crate::domain::policy::Kind;
use crate::ipc::local::RequestId;
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::key::Signer;
use crate::wire::payload::{Answer, PAYLOAD_VERSION, Reply};
use crate::wire::subject::Inbox;

/// Intents whose callers wait for an outcome, and callers of one intent: beyond it they ask again.
const INTENTS_MAX: usize = 4096;
const CALLERS_MAX: usize = 16;

/// Whom to answer.
#[derive(Debug, Clone)]
pub(super) enum ReplyTo {
    /// An inbox on the bus that belongs to whoever signed.
    Bus(Inbox),
    /// A request at the local socket.
    Local(Caller, RequestId),
    /// Nobody asked for an answer.
    Nobody,
}

/// The one who answers for a node.
#[derive(Debug)]
pub(super) struct Answers {
    node: NodeId,
    signer: Arc<Signer>,
    waiting: BTreeMap<IntentId, Vec<ReplyTo>>,
}

impl Answers {
    pub(super) fn new(node: NodeId, signer: Arc<Signer>) -> Self {
        Self { node, signer, waiting: BTreeMap::new() }
    }

    /// Remembers who waits for the outcome of an intent.
    pub(super) fn wait(&mut self, intent: IntentId, to: ReplyTo) {
        let has_room = self.waiting.len() < INTENTS_MAX || self.waiting.contains_key(&intent);
        if !has_room || matches!(to, ReplyTo::Nobody) {
            return;
        }
        let callers = self.waiting.entry(intent).or_default();
        if callers.len() < CALLERS_MAX {
            callers.push(to);
        }
    }

    /// Signs an answer to all who wait for an intent, if anybody does. It is not sent before its promise is kept: what
    /// it says goes to the disk in the meantime.
    pub(super) fn sign(&self, intent: IntentId, reply: Reply) -> Option<Arc<[u8]>> {
        self.waiting.contains_key(&intent).then(|| {
            let last = !matches!(reply, Reply::Accepted { .. });
            self.seal(intent, u32::from(last), last, reply)
        })
    }

    /// Tells all who wait for an intent something on the way.
    pub(super) fn tell(&self, intent: IntentId, sealed: &Arc<[u8]>, voice: &mut Voice) {
        for to in self.waiting.get(&intent).into_iter().flatten() {
            deliver(to, sealed, false, voice);
        }
    }

    /// Tells all who wait for an intent how it ended.
    pub(super) fn finish(&mut self, intent: IntentId, sealed: &Arc<[u8]>, voice: &mut Voice) {
        for to in self.waiting.remove(&intent).unwrap_or_default() {
            deliver(&to, sealed, true, voice);
        }
    }

    /// Answers one caller with one last answer.
    pub(super) fn reply(&self, to: &ReplyTo, cause: IntentId, reply: Reply, voice: &mut Voice) {
        let parts = [reply];
        self.reply_parts(to, cause, parts, voice);
    }

    /// Answers one caller in parts.
    pub(super) fn reply_parts(
        &self,
        to: &ReplyTo,
        cause: IntentId,
        replies: impl IntoIterator<Item = Reply>,
        voice: &mut Voice,
    ) {
        let mut replies = (0..).zip(replies).peekable();
        while let Some((part, reply)) = replies.next() {
            let last = replies.peek().is_none();
            self.reply_part(to, cause, (part, last), reply, voice);
        }
    }

    /// Answers one caller with a part: its number, from 0, and whether nothing comes behind it.
    pub(super) fn reply_part(
        &self,
        to: &ReplyTo,
        cause: IntentId,
        (part, last): (u32, bool),
        reply: Reply,
        voice: &mut Voice,
    ) {
        let sealed = self.seal(cause, part, last, reply);
        deliver(to, &sealed, last, voice);
    }

    fn seal(&self, cause: IntentId, part: u32, last: bool, reply: Reply) -> Arc<[u8]> {
        let at = clock::now().at;
        let node = self.node.clone();
        let answer = Answer { v: PAYLOAD_VERSION, node, cause, at, part, last, reply };
        envelope::seal(Kind::Answer, &codec::encode(&answer), &self.signer).into()
    }
}

fn deliver(to: &ReplyTo, sealed: &Arc<[u8]>, last: bool, voice: &mut Voice) {
    match to {
        ReplyTo::Bus(inbox) => voice.answer(inbox, sealed),
        ReplyTo::Local(caller, id) => {
            caller.answer(*id, sealed.to_vec());
            if last {
                caller.end(*id);
            }
        }
        ReplyTo::Nobody => {}
    }
}
