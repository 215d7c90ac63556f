//! The payloads inside envelopes.
//!
//! *Wishes* (intent, query, trust) refuse an unknown field. *Facts* (event, answer, beat) are additive for ever:
//! a reader ignores fields that it does not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest as _, Sha256};

use super::codec::{self, CodecError};
use super::key::digest_of;
use super::status::{FleetStatus, NodeStatus};
use crate::domain::event::{Actor, Cause, Context, Event, Outcome};
use crate::domain::id::{
    BootId, Digest, EpochId, EventId, FleetId, IntentId, Kid, NodeId, Principal, RunId, Seq,
    ServiceId,
};
use crate::domain::intent::Action;
use crate::domain::policy::{Grant, KeyClass};
use crate::domain::release::Step;
use crate::domain::time::{Now, UnixMicros};

/// The version that each payload carries.
pub const PAYLOAD_VERSION: u8 = 1;

/// More nodes than one intent may name; beyond it a selector and the roster's digest stand for them.
pub const NODES_MAX: usize = 256;

/// How often an intent may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// At most once on each node, within minutes.
    Once,
    /// Until it is so, for ever.
    Desired,
}

/// For which nodes a wish is meant; the decision is on this, never on the subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Audience {
    /// These, at most [`NODES_MAX`].
    Nodes(Vec<NodeId>),
    /// Every node of the fleet. Only a query may say so.
    All,
    /// Those whose labels match, as one roster tells them. Only an intent inside an order may say so.
    Select {
        /// `env=prod,role=web`.
        selector: String,
        /// SHA-256 of the roster that was looked at.
        roster: Digest,
    },
}

impl Audience {
    /// Says whether the node is meant.
    pub fn includes(&self, node: &NodeId) -> bool {
        match self {
            Self::Nodes(nodes) => nodes.contains(node),
            Self::All => true,
            // Who is selected follows from the plan; no node can tell from the words alone.
            Self::Select { .. } => false,
        }
    }
}

/// A wish, signed by a person's or a job's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// [`PAYLOAD_VERSION`].
    pub v: u8,
    /// Chosen at random by the signer.
    pub id: IntentId,
    /// The key that signs.
    pub iss: Kid,
    /// When it was signed.
    pub iat: UnixMicros,
    /// From when on it is not taken any more.
    pub exp: UnixMicros,
    /// In which fleet.
    pub fleet: FleetId,
    /// How often.
    pub mode: Mode,
    /// What.
    pub action: Action,
    /// Where.
    pub audience: Audience,
    /// What the signer says of itself: `sudo by bob`, a CI run's address. At most 256 bytes.
    #[serde(default)]
    pub note: String,
}

/// What a query asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Are you there?
    Ping,
    /// What runs, what not, why.
    Status,
    /// The effective values of a service's configuration and where each was set, as its files and its release are.
    Config {
        /// Which service.
        service: ServiceId,
    },
    /// A text beside the log that an event names by its hash, for controllers: the last lines of an instance that failed.
    Beside {
        /// Which.
        hash: Digest,
    },
    /// Of a controller to nodes: a piece of a trust document that is too long for one message. What it says counts when all
    /// pieces are there and the root key signed the whole.
    Trust(TrustPiece),
    /// The end of a service's log.
    Logs {
        /// Which service.
        service: ServiceId,
        /// Which slot, or all of them.
        index: Option<u16>,
        /// How many lines, at most 10,000.
        lines: u32,
        /// When there is nothing new, wait for it; absent, answer at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wait: Option<LogWait>,
    },
    /// Events after a cursor, in order.
    Range {
        /// The last event that the asker has; `None` asks from the first one kept.
        after: Option<EventId>,
        /// At most this many.
        events_max: u32,
        /// Wait this long for the first one when there is none yet, in milliseconds, at most 30,000.
        wait_ms: u32,
    },
    /// What came of an intent.
    Outcome {
        /// Which.
        intent: IntentId,
    },
    /// Of a controller: the fleet as it knows it.
    Fleet,
    /// Of a controller: the rollouts that it remembers, newest first.
    Rollouts,
    /// Of a controller: one rollout.
    Rollout {
        /// `r-9d2c4f01`, or the beginning of it that no other has.
        name: String,
        /// How many of its facts the asker has seen.
        seen: u32,
        /// When there are no more, wait this long for the next one, in milliseconds, at most 30,000.
        wait_ms: u32,
    },
    /// Of a controller: the signed wish that opened a rollout, for whoever may deploy the service.
    Wish {
        /// Which rollout.
        rollout: IntentId,
    },
    /// Of a controller: the events of all logs in the order in which they arrived there.
    Arrivals {
        /// The place behind which to begin: `CONTROLLER/EPOCH/N`. `None` asks from the first one kept.
        after: Option<EventId>,
        /// At most this many.
        events_max: u32,
        /// Wait this long for the first one when there is none yet, in milliseconds, at most 30,000.
        wait_ms: u32,
    },
    /// Of a controller: events of its copy of a log.
    Copy {
        /// Whose log.
        origin: NodeId,
        /// The last event that the asker has; `None` asks from the first one kept.
        after: Option<EventId>,
        /// At most this many.
        events_max: u32,
    },
}

/// A piece of the envelope of a trust document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TrustPiece {
    /// The version of the document.
    pub version: u64,
    /// SHA-256 of the whole envelope.
    pub digest: Digest,
    /// Its place among the pieces, from 0.
    pub part: u16,
    /// How many there are.
    pub parts: u16,
    /// The bytes.
    #[cfg_attr(test, schemars(with = "String", extend("contentEncoding" = "base64")))]
    pub bytes: ByteBuf,
}

/// The bytes of an envelope in one piece: with what a query says beside them they fit a message.
pub const TRUST_PIECE_BYTES: usize = 48 * 1024;

impl TrustPiece {
    /// Cuts the envelope of a document.
    pub fn cut(version: u64, envelope: &[u8]) -> Vec<Self> {
        let digest = digest_of(envelope);
        let pieces = envelope.chunks(TRUST_PIECE_BYTES);
        let parts = u16::try_from(pieces.len()).expect("invariant: a trust document is capped");
        let piece = |(part, bytes): (u16, &[u8])| {
            let bytes = ByteBuf::from(bytes.to_vec());
            Self { version, digest, part, parts, bytes }
        };
        (0..).zip(pieces).map(piece).collect()
    }
}

/// How long an answer may wait for lines that the asker does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LogWait {
    /// With which line the log of each slot ended for the asker; a slot that is not named had none.
    pub seen: Vec<SeenEnd>,
    /// At most this long, in milliseconds, and never longer than 30,000.
    pub ms: u32,
}

/// The end of a log, as somebody saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SeenEnd {
    /// Which slot.
    pub index: u16,
    /// SHA-256 of the last line, as it stands in the file.
    pub line: Digest,
}

impl LogWait {
    /// Says whether a slot's log ends otherwise than the asker has seen it.
    pub fn is_news(&self, index: u16, lines: &[String]) -> bool {
        lines.last().is_some_and(|last| {
            let end = SeenEnd { index, line: line_digest(last) };
            !self.seen.contains(&end)
        })
    }
}

/// Returns what a line is named by in a [`SeenEnd`].
pub fn line_digest(line: &str) -> Digest {
    Digest(Sha256::digest(line.as_bytes()).into())
}

/// A reading that is asked for: short expiry, not logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// [`PAYLOAD_VERSION`].
    pub v: u8,
    /// Chosen at random by the signer; the answer names it.
    pub id: IntentId,
    /// The key that signs.
    pub iss: Kid,
    /// When it was signed.
    pub iat: UnixMicros,
    /// From when on it is not answered any more.
    pub exp: UnixMicros,
    /// In which fleet.
    pub fleet: FleetId,
    /// Of whom.
    pub audience: Audience,
    /// What.
    pub ask: Ask,
}

/// The node's answer to a query or an intent, signed by the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Answer {
    /// [`PAYLOAD_VERSION`].
    pub v: u8,
    /// Who answers.
    pub node: NodeId,
    /// The query or intent it answers.
    pub cause: IntentId,
    /// When.
    pub at: UnixMicros,
    /// Its place among the answers to one query, from 0.
    pub part: u32,
    /// Whether it is the last one.
    pub last: bool,
    /// What.
    pub reply: Reply,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// I am here.
    Pong {
        /// The version of the program.
        version: String,
    },
    /// What runs.
    Status(Box<NodeStatus>),
    /// Lines of a log, oldest first, as they stand in the file.
    Lines {
        /// Whose.
        service: ServiceId,
        /// Which slot.
        index: u16,
        /// The lines.
        lines: Vec<String>,
    },
    /// A run of the log.
    Range {
        /// The epoch of the rows.
        epoch: EpochId,
        /// The sequence of the first row.
        first: Seq,
        /// The envelopes, as stored.
        #[cfg_attr(test, schemars(with = "Vec<String>"))]
        rows: Vec<ByteBuf>,
        /// The last durable event of the log.
        head: EventId,
    },
    /// The fleet, in parts.
    Fleet(Box<FleetStatus>),
    /// A piece of something longer than one answer; all pieces in their order are the whole. JSON for rollouts, an
    /// envelope for a wish.
    Piece {
        /// The bytes.
        #[cfg_attr(test, schemars(with = "String", extend("contentEncoding" = "base64")))]
        bytes: ByteBuf,
    },
    /// A run of arrivals. Each envelope names its own log; its place is `first` and so on.
    Arrivals {
        /// The epoch of the places.
        epoch: EpochId,
        /// The place of the first one.
        first: Seq,
        /// The envelopes, as they arrived.
        #[cfg_attr(test, schemars(with = "Vec<String>"))]
        rows: Vec<ByteBuf>,
        /// The last place.
        head: EventId,
        /// What lies up to this place may have been given to the asker before, on this page and on later ones: it came
        /// with the place of another controller, which says nothing of the order of arrival here. Else 0.
        #[serde(default)]
        again: u32,
    },
    /// The intent is durable; its outcome follows.
    Accepted {
        /// The event that says so.
        event: EventId,
    },
    /// What came of the intent; the same however often it is asked.
    Outcome {
        /// What.
        outcome: Outcome,
        /// The event that says so.
        event: EventId,
    },
    /// The wish or query was refused and nothing changed.
    Refused {
        /// `E0311`.
        code: String,
        /// In words.
        why: String,
    },
}

/// The version of the shape of every body that this version writes.
const BODY_SCHEMA: u16 = 1;

/// A fact, signed by the node on which it happened. Its envelope is the row of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventRecord {
    /// [`PAYLOAD_VERSION`].
    pub v: u8,
    /// Whose log.
    pub origin: NodeId,
    /// Which stretch of it.
    pub epoch: EpochId,
    /// Which entry.
    pub seq: Seq,
    /// When, by the wall clock.
    pub at: UnixMicros,
    /// When, by the boot-time clock, in nanoseconds.
    pub mono_ns: u64,
    /// In which boot.
    pub boot: BootId,
    /// `noun.past_tense`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The version of the body's shape.
    pub schema: u16,
    /// Whether a version that does not know the type must stop here.
    pub critical: bool,
    /// Which service it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceId>,
    /// Which slot of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u16>,
    /// Which start of the slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// What led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// On whose authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
    /// When it was written, if that was later than it happened because the log was unavailable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_at: Option<UnixMicros>,
    /// A MessagePack map by `type`.
    #[cfg_attr(test, schemars(with = "String", extend("contentEncoding" = "base64")))]
    pub body: ByteBuf,
}

/// An event that was read, with or without a body that this version knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time is read, and never kept")]
pub enum Body {
    /// Known.
    Known(Event),
    /// Of a type that this version does not know.
    Unknown,
}

impl EventRecord {
    /// Returns the record of an event that happened `now`, as it is written when that is at once.
    pub fn of(id: EventId, now: Now, boot: BootId, context: &Context, event: &Event) -> Self {
        Self {
            v: PAYLOAD_VERSION,
            origin: id.origin,
            epoch: id.epoch,
            seq: id.seq,
            at: now.at,
            mono_ns: now.mono_ns,
            boot,
            kind: event.kind().to_owned(),
            schema: BODY_SCHEMA,
            critical: event.critical(),
            service: context.service.clone(),
            index: context.index,
            run: context.run,
            cause: context.cause.clone(),
            by: context.by.clone(),
            recorded_at: None,
            body: ByteBuf::from(codec::encode_body(event)),
        }
    }

    /// Returns the event's name.
    pub fn id(&self) -> EventId {
        EventId { origin: self.origin.clone(), epoch: self.epoch, seq: self.seq }
    }

    /// Returns who, where and why.
    pub fn context(&self) -> Context {
        Context {
            service: self.service.clone(),
            index: self.index,
            run: self.run,
            cause: self.cause.clone(),
            by: self.by.clone(),
        }
    }

    /// Reads the body.
    pub fn event(&self) -> Result<Body, CodecError> {
        Ok(codec::decode_body(&self.kind, &self.body)?.map_or(Body::Unknown, Body::Known))
    }
}

/// The head of a log, told every few seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Beat {
    /// [`PAYLOAD_VERSION`].
    pub v: u8,
    /// Whose log.
    pub origin: NodeId,
    /// The running epoch.
    pub epoch: EpochId,
    /// The last durable event.
    pub seq: Seq,
    /// The Merkle root over the epoch up to `seq`.
    pub root: Digest,
    /// SHA-256 of the folded state.
    pub state_hash: Digest,
    /// The version of the folding rules: hashes compare only between equals. 0 while the state is ahead of the events that
    /// are on disk: then there is nothing to compare.
    pub fold: u32,
    /// When.
    pub at: UnixMicros,
    /// Whether controllers are asked how far they have the log: each says so with a receipt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asks: bool,
}

/// A controller's word that it has a log durably up to here, and that this extends what it had before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Receipt {
    /// [`PAYLOAD_VERSION`].
    pub v: u8,
    /// Who has it.
    pub controller: NodeId,
    /// Whose log.
    pub origin: NodeId,
    /// The epoch.
    pub epoch: EpochId,
    /// How many events of the epoch.
    pub size: u64,
    /// The Merkle root over them.
    pub root: Digest,
    /// When.
    pub at: UnixMicros,
}

/// Which keys may do what, signed by the root key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// [`PAYLOAD_VERSION`].
    pub v: u8,
    /// Rises by at least one with each change; a lower one is refused.
    pub version: u64,
    /// For which fleet.
    pub fleet: FleetId,
    /// When it was signed.
    pub issued: UnixMicros,
    /// The keys.
    pub keys: Vec<TrustedKey>,
    /// Keys that are not trusted any more, whatever else says so.
    pub revoked: Vec<Kid>,
    /// The roster: the nodes of the fleet with their keys and labels. Left out where there is none, so that older
    /// documents keep their bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Enrolled>,
}

/// The signed enrolment record of a node: what it is called, by which key it speaks, and what is said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Enrolled {
    /// Its name.
    pub node: NodeId,
    /// The key with which it signs events, answers and beats.
    pub kid: Kid,
    /// Labels by which it is selected. A node never says them of itself.
    pub labels: BTreeMap<String, String>,
}

impl Trust {
    /// Returns the digest by which an intent names the roster: SHA-256 of its canonical MessagePack.
    pub fn roster_digest(&self) -> Digest {
        let mut nodes = self.nodes.clone();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        roster_digest(&nodes)
    }
}

/// Returns the digest of the nodes of a trust document, which stand in the order of their names.
pub fn roster_digest(nodes: &[Enrolled]) -> Digest {
    digest_of(&codec::encode(&nodes))
}

/// One node's step of an intent, signed by a controller. A wish: read strictly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// [`PAYLOAD_VERSION`].
    pub v: u8,
    /// The controller's key, which signs.
    pub iss: Kid,
    /// When it was signed.
    pub iat: UnixMicros,
    /// In which fleet.
    pub fleet: FleetId,
    /// For which node; the decision is on this, never on the subject.
    pub node: NodeId,
    /// The whole envelope of the intent. Nothing beyond it is done.
    #[cfg_attr(test, schemars(with = "String", extend("contentEncoding" = "base64")))]
    pub intent: ByteBuf,
    /// Which step of it.
    pub step: Step,
    /// SHA-256 of the plan that the controller made of it; one per intent.
    pub plan: Digest,
    /// The controller's term. A node takes none below the highest that it has seen.
    pub term: u64,
    /// Which controller.
    pub controller: NodeId,
    /// When it verified the intent.
    pub verified_at: UnixMicros,
    /// Of which wave of the plan, from 1.
    pub wave: u16,
    /// For all but the nodes that go first: the envelopes of the events by which other nodes told that the release is
    /// healthy there, at most [`CANARY_MAX`].
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub canary: Vec<ByteBuf>,
}

/// More nodes than a canary wave has.
pub const CANARY_MAX: usize = 16;

/// One key of a trust document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TrustedKey {
    /// The 32 bytes of the public key.
    pub key: Digest,
    /// Whose it is.
    pub name: Principal,
    /// Of which class.
    pub class: KeyClass,
    /// What it may do.
    pub grants: Vec<Grant>,
    /// Until when it may sign. What was signed and accepted by then holds for ever, so a node that was away takes it from
    /// a controller later as well; a key that must not count at all is revoked. Left out where there is no end, so that
    /// older documents keep their bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMicros>,
}
