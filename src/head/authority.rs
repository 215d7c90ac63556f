//! The gate: every wish is checked here, whatever the bus or the sender says of it.
//!
//! The checks stand in the order of the research on envelopes: size, shape, type, key, class, rate, signature,
//! strict decoding, issuer, fleet, audience, time, grant. The first that fails names itself and nothing is changed.
//! Whether an id was seen before is the core's to say, since it is folded from the log.

mod brought;
mod order;
mod request;
mod roster;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::trust::{ReadTrustError, open_trust};
use crate::domain::code::Code;
use crate::domain::event::Actor;
use crate::domain::id::{Digest, FleetId, Generation, IntentId, Kid, NodeId};
use crate::domain::input::{OrderMark, Wish};
use crate::domain::intent::Verb;
use crate::domain::policy::{self, Holder, KeyClass, Kind};
use crate::domain::text;
use crate::domain::time::UnixMicros;
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX, EnvelopeError};
use crate::wire::key::{Keyring, PublicKey};
use crate::wire::payload::{Ask, Audience, Intent, Mode, NODES_MAX, PAYLOAD_VERSION, Query, Trust};

pub use order::{OrderRefusal, VerifiedOrder};
pub use request::Requested;
pub use roster::Enrolment;

/// How far two clocks may differ, in milliseconds.
pub const SKEW_MS: u64 = 30_000;

/// The longest life of a `once` intent or a query, in milliseconds.
pub const LIFE_MS_MAX: u64 = 15 * 60_000;

/// The largest intent, in bytes: what is taken of it has to fit an event, and later a part of a baseline.
const INTENT_BYTES_MAX: usize = 32 * 1024;

/// What a signer may say of itself, in bytes.
const NOTE_BYTES_MAX: usize = 256;

/// Messages by one key, a second, and the burst above it: each may cost a row, an answer and a look at the node.
const RATE: f64 = 1000.0;
const BURST: f64 = 2000.0;

/// The messages of each way that are known again when they are repeated: a few seconds of a key at its full rate.
const REPEATS_KNOWN: usize = 8192;

/// Rosters before the one in force that are known until the process ends: of the nodes that are admitted while a wish is
/// obeyed each makes another one.
const ROSTERS_KNOWN: usize = 8;

/// By which way a message came. A wish is judged the same on all of them, but their floods are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The bus, where anybody may send anything.
    Bus,
    /// The local socket.
    Local,
}

/// Why a message was refused. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refusal {
    /// The check that failed.
    pub code: Code,
    /// In words.
    pub why: String,
    /// Whether a trusted key signed it: only then may it cost an event and an answer.
    pub signed: Option<Signed>,
}

/// Who signed a message whose signature held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The wish, when it could be read.
    pub id: Option<IntentId>,
    /// The signer.
    pub actor: Actor,
}

/// A wish that passed every check that needs no history.
#[derive(Clone, Debug)]
pub struct Verified<T> {
    /// The payload.
    pub payload: T,
    /// SHA-256 of the signed bytes.
    pub digest: Digest,
    /// On whose authority.
    pub actor: Actor,
    /// What of the checks on time and grants failed. A repeat of a wish that was taken is answered all the same.
    pub objection: Option<Refusal>,
}

impl Verified<Intent> {
    /// Says why it is not taken, to whoever signed it.
    pub fn refused(&self, code: Code, why: String) -> Refusal {
        let signed = Signed { id: Some(self.payload.id), actor: self.actor.clone() };
        Refusal { code, why, signed: Some(signed) }
    }

    /// Returns it as the core takes it.
    pub fn wish(&self, is_own: bool, order: Option<OrderMark>) -> Wish {
        let intent = &self.payload;
        Wish {
            id: intent.id,
            digest: self.digest,
            action: intent.action.clone(),
            issued_at: intent.iat,
            generation: None,
            expires_at: intent.exp,
            by: self.actor.clone(),
            is_own,
            order,
        }
    }
}

/// The keys, the grants and the rates of one node.
#[derive(Debug)]
pub struct Authority {
    fleet: FleetId,
    node: NodeId,
    ring: Arc<Keyring>,
    revoked: Vec<Kid>,
    /// The nodes that root enrolled.
    roster: Arc<Enrolment>,
    /// Those of the trust documents before, the last one first: wishes name them that were signed by these.
    earlier: VecDeque<Arc<Enrolment>>,
    buckets: BTreeMap<(Way, Kid), Bucket>,
    repeats: BTreeMap<Way, Repeats>,
    /// The highest time that the log knows: a clock below it is wrong.
    floor: UnixMicros,
}

impl Authority {
    /// Makes the gate of a node. Several in one process may have one keyring.
    pub fn new(
        fleet: FleetId,
        node: NodeId,
        ring: impl Into<Arc<Keyring>>,
        revoked: Vec<Kid>,
    ) -> Self {
        let ring = ring.into();
        let floor = UnixMicros::default();
        let (buckets, repeats) = (BTreeMap::new(), BTreeMap::new());
        let (roster, earlier) = Default::default();
        Self { fleet, node, ring, revoked, roster, earlier, buckets, repeats, floor }
    }

    /// Checks a trust document that somebody brought: whoever did, it is the root key that counts.
    pub fn trust(bytes: &[u8], root: PublicKey) -> Result<(Trust, Digest), Refusal> {
        open_trust(bytes, root).map_err(|error| match error {
            ReadTrustError::Envelope(error) => refusal_of(error),
            ReadTrustError::Kind => unsigned(Code::UNKNOWN_TYPE, error.to_string()),
            other => {
                unsigned(Code::BAD_PAYLOAD, text::brief(other.to_string(), text::WHY_BYTES_MAX))
            }
        })
    }

    /// Judges by another trust document from here on.
    pub fn renew(&mut self, ring: Keyring, trust: Trust) {
        self.ring = ring.into();
        self.revoked = trust.revoked;
        let roster = Arc::new(Enrolment::from(trust.nodes));
        self.earlier.push_front(std::mem::replace(&mut self.roster, roster));
        self.earlier.truncate(ROSTERS_KNOWN);
    }

    /// Raises the time below which this machine's clock is known to be wrong.
    pub fn raise_floor(&mut self, at: UnixMicros) {
        self.floor = self.floor.max(at);
    }

    /// Checks an intent.
    pub fn intent(
        &mut self,
        bytes: &[u8],
        way: Way,
        now: UnixMicros,
    ) -> Result<Verified<Intent>, Refusal> {
        let Open { payload: intent, kid, holder, digest } = self.read_intent(bytes, way)?;
        let actor = Actor { note: intent.note.clone(), ..actor_of(&holder, kid) };
        let refuse = |actor: &Actor, code: Code, why: String| Refusal {
            code,
            why,
            signed: Some(Signed { id: Some(intent.id), actor: actor.clone() }),
        };
        if let Audience::Select { .. } = &intent.audience {
            let why = "a selection is resolved by a controller".to_owned();
            return Err(refuse(&actor, Code::ORDER_NEEDED, why));
        }
        if let Err(why) = self.addressed(&intent.fleet, &intent.audience, true) {
            return Err(refuse(&actor, Code::WRONG_AUDIENCE, why));
        }
        if let Err((code, why)) = fits_mode(&intent) {
            return Err(refuse(&actor, code, why));
        }
        if let (Mode::Desired, Audience::Nodes(nodes)) = (intent.mode, &intent.audience)
            && nodes.len() != 1
        {
            let why =
                format!("it names {} nodes: a controller goes from wave to wave", nodes.len());
            return Err(refuse(&actor, Code::ORDER_NEEDED, why));
        }
        let verb = intent.action.verb();
        let service = intent.action.service();
        let objection = self
            .intent_in_time(&intent, &holder, way, now)
            .and_then(|()| self.granted(&holder, verb, service))
            .err()
            .map(|(code, why)| refuse(&actor, code, why));
        Ok(Verified { payload: intent, digest, actor, objection })
    }

    /// Judges a wish again that had to wait: what is trusted may have changed meanwhile.
    ///
    /// # Errors
    /// Why it is not taken any more.
    pub fn judge_again(
        &self,
        wish: &Verified<Intent>,
        way: Way,
        now: UnixMicros,
    ) -> Result<(), Refusal> {
        let intent = &wish.payload;
        let kid = intent.iss;
        if self.revoked.contains(&kid) {
            return Err(unsigned(Code::KEY_REVOKED, format!("key {kid} was taken back")));
        }
        let Some((_, holder)) = self.ring.get(kid) else {
            return Err(refusal_of(EnvelopeError::UnknownKey { kid }));
        };
        self.intent_in_time(intent, holder, way, now)
            .and_then(|()| self.granted(holder, intent.action.verb(), intent.action.service()))
            .map_err(|(code, why)| wish.refused(code, why))
    }

    /// Opens an intent and checks what holds for it wherever it is taken.
    fn read_intent(&mut self, bytes: &[u8], way: Way) -> Result<Open<Intent>, Refusal> {
        let opened: Open<Intent> = self.open(bytes, Kind::Intent, way)?;
        let (intent, kid) = (&opened.payload, opened.kid);
        let refuse = |code: Code, why: String| {
            let actor = actor_of(&opened.holder, kid);
            Refusal { code, why, signed: Some(Signed { id: Some(intent.id), actor }) }
        };
        if bytes.len() > INTENT_BYTES_MAX && intent.action.verb() != Verb::Deploy {
            let why = format!("the intent has {} bytes, more than {INTENT_BYTES_MAX}", bytes.len());
            return Err(refuse(Code::TOO_LARGE, why));
        }
        if intent.note.len() > NOTE_BYTES_MAX {
            let why =
                format!("the note has {} bytes, more than {NOTE_BYTES_MAX}", intent.note.len());
            return Err(refuse(Code::BAD_PAYLOAD, why));
        }
        if intent.v != PAYLOAD_VERSION {
            return Err(refuse(Code::BAD_PAYLOAD, format!("payload version {}", intent.v)));
        }
        if intent.iss != kid {
            let why = format!("it says key {} and was signed by {kid}", intent.iss);
            return Err(refuse(Code::WRONG_ISSUER, why));
        }
        Ok(opened)
    }

    /// Checks a query.
    pub fn query(
        &mut self,
        bytes: &[u8],
        way: Way,
        now: UnixMicros,
    ) -> Result<Verified<Query>, Refusal> {
        let Open { payload: query, kid, holder, digest } = self.open(bytes, Kind::Query, way)?;
        let query: Query = query;
        let actor = actor_of(&holder, kid);
        let refuse = |code: Code, why: String| Refusal {
            code,
            why,
            signed: Some(Signed { id: Some(query.id), actor: actor.clone() }),
        };
        if query.v != PAYLOAD_VERSION {
            return Err(refuse(Code::BAD_PAYLOAD, format!("payload version {}", query.v)));
        }
        if query.iss != kid {
            let why = format!("it says key {} and was signed by {kid}", query.iss);
            return Err(refuse(Code::WRONG_ISSUER, why));
        }
        self.addressed(&query.fleet, &query.audience, false)
            .map_err(|why| refuse(Code::WRONG_AUDIENCE, why))?;
        let (verb, service) = verb_of(&query.ask);
        self.holds_now(&holder, query.iat, now)
            .and_then(|()| self.in_time(query.iat, query.exp, way, holder.class, now))
            .and_then(|()| self.granted(&holder, verb, service))
            .and_then(|()| match query.ask {
                // Neither says of which service it is.
                Ask::Beside { .. } | Ask::Trust(_) if holder.class != KeyClass::Controller => {
                    Err((Code::NOT_GRANTED, "this is for controllers".to_owned()))
                }
                _ => Ok(()),
            })
            .map_err(|(code, why)| refuse(code, why))?;
        Ok(Verified { payload: query, digest, actor, objection: None })
    }

    fn open<T: DeserializeOwned>(
        &mut self,
        bytes: &[u8],
        kind: Kind,
        way: Way,
    ) -> Result<Open<T>, Refusal> {
        let sealed = envelope::read(bytes, ENVELOPE_BYTES_MAX).map_err(refusal_of)?;
        if sealed.kind() != kind {
            let why = format!("{:?} is not taken here", sealed.kind());
            return Err(unsigned(Code::UNKNOWN_TYPE, why));
        }
        if let Some(kid) = sealed.kids().find(|kid| self.revoked.contains(kid)) {
            return Err(unsigned(Code::KEY_REVOKED, format!("key {kid} was taken back")));
        }
        let opened = sealed.open(&self.ring).map_err(refusal_of)?;
        // Only now is it known whose message it is: what anybody could make in the name of a key, or repeat of what it
        // sent, is no reason not to hear that key. A forgery costs a verification of some 50 us and has no budget: one
        // that runs out would have to refuse the next message unseen, whoever it is by.
        let kid = opened.kid;
        let repeats = self.repeats.entry(way).or_default();
        if !repeats.is_new(opened.digest) {
            if !repeats.bucket.take(Instant::now()) {
                let why = format!("more than {RATE} messages a second are repeats of others");
                return Err(unsigned(Code::RATE_LIMITED, why));
            }
        } else if !self.buckets.entry((way, kid)).or_default().take(Instant::now()) {
            // It was not heard: sent again, it is new.
            repeats.forget_last();
            let why = format!("key {kid} sends more than {RATE} messages a second");
            return Err(unsigned(Code::RATE_LIMITED, why));
        }
        let signed = Signed { id: None, actor: actor_of(opened.holder, opened.kid) };
        let payload = codec::decode(opened.payload).map_err(|error| Refusal {
            code: Code::BAD_PAYLOAD,
            // It quotes names of the sender's choice.
            why: text::brief(error.to_string(), text::WHY_BYTES_MAX),
            signed: Some(signed),
        })?;
        Ok(Open { payload, kid: opened.kid, holder: opened.holder.clone(), digest: opened.digest })
    }

    fn addressed(&self, fleet: &FleetId, audience: &Audience, changes: bool) -> Result<(), String> {
        if *fleet != self.fleet {
            return Err(format!("it is for fleet `{fleet}`, this is `{}`", self.fleet));
        }
        match audience {
            Audience::All if changes => {
                Err("an intent names its nodes; `all` is for queries only".to_owned())
            }
            Audience::Nodes(nodes) if nodes.len() > NODES_MAX => {
                Err(format!("it names {} nodes, more than {NODES_MAX}", nodes.len()))
            }
            Audience::Select { .. } => {
                Err("a selection is resolved by a controller: it is taken inside an order only"
                    .to_owned())
            }
            audience if audience.includes(&self.node) => Ok(()),
            _ => Err(format!("it does not name this node, `{}`", self.node)),
        }
    }

    fn in_time(
        &self,
        iat: UnixMicros,
        exp: UnixMicros,
        way: Way,
        class: KeyClass,
        now: UnixMicros,
    ) -> Result<(), (Code, String)> {
        if exp.ms_since(iat) > LIFE_MS_MAX {
            let why = format!("it lives longer than {LIFE_MS_MAX} ms");
            return Err((Code::LIFETIME_TOO_LONG, why));
        }
        // A wrong clock never locks a machine out of the commands of its own root.
        let own = way == Way::Local && class == KeyClass::Local;
        if !own && now.plus_ms(SKEW_MS) < self.floor {
            let why =
                "this node's clock is behind its own history, so ages cannot be told".to_owned();
            return Err((Code::CLOCK_UNSURE, why));
        }
        if now > exp.plus_ms(SKEW_MS) {
            return Err((Code::EXPIRED, format!("it expired {} ms ago", now.ms_since(exp))));
        }
        if iat > now.plus_ms(SKEW_MS) {
            let why = format!("it was signed {} ms in the future", iat.ms_since(now));
            return Err((Code::NOT_YET_VALID, why));
        }
        Ok(())
    }

    /// Says whether an intent may be taken at this time. What is desired never expires, as its generation says whether it
    /// is new; but whoever brings it himself has to have a key that has not ended.
    fn intent_in_time(
        &self,
        intent: &Intent,
        holder: &Holder,
        way: Way,
        now: UnixMicros,
    ) -> Result<(), (Code, String)> {
        self.holds_now(holder, intent.iat, now)?;
        match intent.mode {
            Mode::Once => self.in_time(intent.iat, intent.exp, way, holder.class, now),
            Mode::Desired => Ok(()),
        }
    }

    /// Says whether a key had not ended when it signed, and has not yet. By a clock that is behind the history of this
    /// machine it would hold again, so what counts is the later of the two.
    fn holds_now(
        &self,
        holder: &Holder,
        signed: UnixMicros,
        now: UnixMicros,
    ) -> Result<(), (Code, String)> {
        might_sign(holder, signed, now.max(self.floor))
    }

    fn granted(
        &self,
        holder: &Holder,
        verb: Verb,
        service: Option<&crate::domain::id::ServiceId>,
    ) -> Result<(), (Code, String)> {
        self.granted_on(holder, verb, service, &self.node)
    }

    fn granted_on(
        &self,
        holder: &Holder,
        verb: Verb,
        service: Option<&crate::domain::id::ServiceId>,
        node: &NodeId,
    ) -> Result<(), (Code, String)> {
        let request = policy::Request { verb, service, node };
        match policy::allowed_by(&holder.grants, request) {
            Some(_) => Ok(()),
            None => Err((
                Code::NOT_GRANTED,
                match service {
                    Some(service) => {
                        format!("`{}` may not {verb} `{service}` on `{node}`", holder.name)
                    }
                    None => format!("`{}` may not {verb} on `{node}`", holder.name),
                },
            )),
        }
    }
}

/// Numbers from here on are refused: a release takes two, its own and that of its return.
const GENERATION_END: Generation = Generation(u64::MAX - 1);

/// Says whether a wish is one for ever, or once, as its action is.
fn fits_mode(intent: &Intent) -> Result<(), (Code, String)> {
    match (intent.mode, intent.action.generation()) {
        (_, Some(generation)) if generation >= GENERATION_END => {
            let why = format!("generation {generation} leaves no number for what comes after it");
            Err((Code::BAD_PAYLOAD, why))
        }
        (Mode::Desired, Some(_)) | (Mode::Once, None) => Ok(()),
        (Mode::Once, Some(_)) => {
            Err((Code::BAD_PAYLOAD, "a release is desired, not asked for once".to_owned()))
        }
        (Mode::Desired, None) => {
            let why = "only releases are desired by intent in this version".to_owned();
            Err((Code::NOT_YET, why))
        }
    }
}

/// Says whether a key had not ended when it signed, and when that was found to be so. Only the second is beyond the reach
/// of whoever has the key.
fn might_sign(
    holder: &Holder,
    signed: UnixMicros,
    found: UnixMicros,
) -> Result<(), (Code, String)> {
    match holder.until {
        Some(until) if signed > until || found > until.plus_ms(SKEW_MS) => {
            let late = signed.max(found).ms_since(until);
            let why = format!("the key of `{}` ended {late} ms before that", holder.name);
            Err((Code::KEY_OUT_OF_TIME, why))
        }
        _ => Ok(()),
    }
}

struct Open<T> {
    payload: T,
    kid: Kid,
    holder: Holder,
    digest: Digest,
}

fn actor_of(holder: &Holder, kid: Kid) -> Actor {
    Actor {
        kind: holder.class.actor(),
        name: holder.name.clone(),
        key: Some(kid),
        note: String::new(),
    }
}

fn verb_of(ask: &Ask) -> (Verb, Option<&crate::domain::id::ServiceId>) {
    match ask {
        Ask::Ping | Ask::Status | Ask::Fleet | Ask::Rollouts | Ask::Rollout { .. } => {
            (Verb::Status, None)
        }
        Ask::Config { service } => (Verb::Status, Some(service)),
        Ask::Logs { service, .. } => (Verb::Logs, Some(service)),
        // Whether the wish itself may be read is for the controller, which knows its service.
        Ask::Wish { .. }
        | Ask::Beside { .. }
        | Ask::Trust(_)
        | Ask::Range { .. }
        | Ask::Outcome { .. }
        | Ask::Arrivals { .. }
        | Ask::Copy { .. } => (Verb::Events, None),
    }
}

fn unsigned(code: Code, why: String) -> Refusal {
    Refusal { code, why, signed: None }
}

fn refusal_of(error: EnvelopeError) -> Refusal {
    let code = match &error {
        EnvelopeError::Size { .. } => Code::TOO_LARGE,
        EnvelopeError::Shape(_) => Code::BAD_SHAPE,
        EnvelopeError::UnknownType => Code::UNKNOWN_TYPE,
        EnvelopeError::UnknownKey { .. } => Code::UNKNOWN_SIGNER,
        EnvelopeError::Class { .. } => Code::CLASS_MAY_NOT_SIGN,
        EnvelopeError::Signature { .. } => Code::BAD_SIGNATURE,
    };
    unsigned(code, error.to_string())
}

/// What was heard lately by one way, and what its repeats may cost: anybody on a bus can send again what he has seen.
#[derive(Debug, Default)]
struct Repeats {
    known: BTreeSet<Digest>,
    order: VecDeque<Digest>,
    bucket: Bucket,
}

impl Repeats {
    /// Says whether a message was not heard lately, and remembers it.
    fn is_new(&mut self, message: Digest) -> bool {
        if !self.known.insert(message) {
            return false;
        }
        self.order.push_back(message);
        if self.order.len() > REPEATS_KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    fn forget_last(&mut self) {
        if let Some(last) = self.order.pop_back() {
            self.known.remove(&last);
        }
    }
}

/// A token bucket that needs no timer.
#[derive(Debug, Default)]
struct Bucket {
    spent: f64,
    since: Option<Instant>,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let idle = self.since.map_or(Duration::ZERO, |since| now.duration_since(since));
        self.since = Some(now);
        self.spent = (self.spent - idle.as_secs_f64() * RATE).max(0.0);
        let fits = self.spent + 1.0 <= BURST;
        self.spent += f64::from(u8::from(fits));
        fits
    }
}

#[cfg(test)]
mod tests;
