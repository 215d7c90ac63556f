//! A fact of a rollout as a log holds it: with the rollout that it is about.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeStruct as _, Serializer};

use super::event::{RolloutEvent, Why};
use crate::domain::event::{Cause, Context};
use crate::domain::id::{IntentId, ServiceId};

/// A fact of one of many rollouts. Its body is `{rollout, fact}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutFact {
    /// The wish that opened the rollout.
    pub rollout: IntentId,
    /// What happened.
    pub event: RolloutEvent,
}

struct Body<'a>(&'a RolloutEvent);

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_body(serializer)
    }
}

impl RolloutFact {
    /// Returns the type, `rollout.past_tense`.
    pub fn kind(&self) -> &'static str {
        self.event.kind()
    }

    /// Says whether a version that does not know the type must refuse to fold past it.
    pub fn critical(&self) -> bool {
        self.event.critical()
    }

    /// Returns what an envelope says beside the body: the service, and the cause where it is known without the log.
    ///
    /// A cause within the rollout stands in the body, counted; whoever has the log knows its place.
    pub fn context(&self, service: &ServiceId) -> Context {
        let cause = match self.event.cause() {
            Why::Intent(intent) => Some(Cause::Intent(*intent)),
            Why::Report(event) => Some(Cause::Event(event.clone())),
            Why::Fact(_) | Why::Time => None,
        };
        Context::service(service).because(cause, self.event.by().cloned())
    }

    /// Writes the body alone.
    ///
    /// # Errors
    ///
    /// Those of the serializer.
    pub fn serialize_body<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut body = serializer.serialize_struct("RolloutFact", 2)?;
        body.serialize_field("rollout", &self.rollout)?;
        body.serialize_field("fact", &Body(&self.event))?;
        body.end()
    }

    /// Reads the body of a known type; `None` when this version does not know the type.
    ///
    /// # Errors
    ///
    /// The body is not one of this type.
    pub fn deserialize_body<'de, D: Deserializer<'de>>(
        kind: &[u8],
        deserializer: D,
    ) -> Result<Option<Self>, D::Error> {
        match RolloutEvent::KINDS.iter().any(|(known, _)| known.as_bytes() == kind) {
            true => deserializer.deserialize_map(Parts(kind)).map(Some),
            false => Ok(None),
        }
    }
}

/// Reads both parts, whatever their order.
struct Parts<'a>(&'a [u8]);

impl<'de> Visitor<'de> for Parts<'_> {
    type Value = RolloutFact;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a rollout and a fact of it")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RolloutFact, A::Error> {
        let (mut rollout, mut event) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "rollout" => rollout = Some(map.next_value()?),
                "fact" => event = map.next_value_seed(OfKind(self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(RolloutFact {
            rollout: rollout.ok_or_else(|| A::Error::missing_field("rollout"))?,
            event: event.ok_or_else(|| A::Error::missing_field("fact"))?,
        })
    }
}

struct OfKind<'a>(&'a [u8]);

impl<'de> DeserializeSeed<'de> for OfKind<'_> {
    type Value = Option<RolloutEvent>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        RolloutEvent::deserialize_body(self.0, deserializer)
    }
}
