//! Names and numbers with meaning. Every id refuses what would not fit a NATS token or a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::name::Name;

/// The longest name of a node, a service, a fleet or a principal, in bytes.
pub const TOKEN_BYTES_MAX: usize = 63;

/// Says why a text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a name: names are 1 to 63 of a-z, 0-9 and `-`{hint}")]
pub struct InvalidToken {
    text: String,
    hint: String,
}

impl InvalidToken {
    fn new(text: &str) -> Self {
        let shown: String = text.chars().take(80).map(printable).collect();
        let mapped = map_to_token(text);
        let hint = match mapped.is_empty() || mapped == text {
            true => String::new(),
            false => format!("; `{mapped}` would do"),
        };
        Self { text: shown, hint }
    }
}

fn printable(c: char) -> char {
    if c.is_control() { '\u{fffd}' } else { c }
}

/// Proposes the nearest token for a real name such as `php-fpm8.2` or a host name.
pub(crate) fn map_to_token(text: &str) -> String {
    let mapped: String = text
        .chars()
        .take(TOKEN_BYTES_MAX)
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .collect();
    mapped.trim_matches('-').to_owned()
}

/// Says whether these bytes are a name; then they are also text.
pub(crate) fn is_token(text: &[u8]) -> bool {
    (1..=TOKEN_BYTES_MAX).contains(&text.len())
        && text.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

macro_rules! token {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        #[cfg_attr(test, schemars(transparent))]
        pub struct $name(
            #[cfg_attr(test, schemars(with = "String", regex(pattern = r"^[a-z0-9-]{1,63}$")))]
            Name,
        );

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// Returns the name as bytes.
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }

            /// Returns the name that these bytes are, if they are one.
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                is_token(bytes).then(|| Self(Name::new(bytes)))
            }
        }

        impl FromStr for $name {
            type Err = InvalidToken;

            fn from_str(text: &str) -> Result<Self, InvalidToken> {
                Self::from_bytes(text.as_bytes()).ok_or_else(|| InvalidToken::new(text))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a name of 1 to 63 characters a-z, 0-9 and `-`")
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<$name, E> {
                        let text = || String::from_utf8_lossy(bytes);
                        $name::from_bytes(bytes).ok_or_else(|| E::custom(InvalidToken::new(&text())))
                    }
                }
                // Each byte is looked at anyway: the text need not be checked for UTF-8 before.
                deserializer.deserialize_identifier(Visitor)
            }
        }
    };
}

token!(
    /// Names a fleet.
    FleetId
);
token!(
    /// Names a node (a machine) or a controller: whoever keeps a log of its own.
    NodeId
);
token!(
    /// Names a service.
    ServiceId
);
token!(
    /// Names an action that a service declares.
    ActionName
);
token!(
    /// Names an alert that a service declares.
    AlertName
);
token!(
    /// Names a health check that a service declares.
    CheckName
);
token!(
    /// Names a person, a job or a part that holds a key.
    Principal
);
token!(
    /// Names a type of event where a dot does not fit: `instance-started` for `instance.started`.
    EventKind
);
token!(
    /// Names a retained trust document.
    DocumentName
);

/// Names one slot of a service: `web/0`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InstanceId {
    /// The service.
    pub service: ServiceId,
    /// The slot, from 0.
    pub index: u16,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.index)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Numbers the starts of an instance, from 1; never used twice.
    RunId(u64)
);
number!(
    /// Numbers a desired state; an older one is refused.
    Generation(u64)
);
number!(
    /// A place in a log, contiguous from 1 within an epoch.
    Seq(u64)
);

impl Seq {
    /// A place that no log has: stands for the end.
    pub const MAX: Self = Self(u64::MAX);
}

number!(
    /// One unbroken stretch of a log: 48 bits of Unix milliseconds and 16 random bits.
    ///
    /// Printed in 13 characters of base 36, so that it sorts as text and holds no dot.
    EpochId(u64)
);

macro_rules! bytes {
    ($(#[$doc:meta])* $name:ident($len:literal)) => {
        $(#[$doc])*
        ///
        /// Travels as MessagePack `bin`; shown as lower-case hex, which is also its JSON form.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        #[cfg(test)]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "description": concat!("A MessagePack `bin` of ", $len, " bytes; in JSON lower-case hex."),
                    "pattern": format!("^[0-9a-f]{{{}}}$", 2 * $len),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidHex;

            fn from_str(text: &str) -> Result<Self, InvalidHex> {
                let mut bytes = [0; $len];
                if !text.is_ascii() || text.len() != 2 * $len {
                    return Err(InvalidHex { bytes: $len });
                }
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16)
                        .map_err(|_| InvalidHex { bytes: $len })?;
                }
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} bytes", $len)
                    }

                    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<$name, E> {
                        let wrong = |_| E::invalid_length(bytes.len(), &self);
                        bytes.try_into().map($name).map_err(wrong)
                    }
                }
                deserializer.deserialize_bytes(Visitor)
            }
        }
    };
}

/// Says that a text is not the hex form of an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {} hex digits", bytes * 2)]
pub struct InvalidHex {
    bytes: usize,
}

bytes!(
    /// The id of an intent: 16 random bytes chosen by the signer.
    IntentId(16)
);
bytes!(
    /// The id of a key: the first 16 bytes of SHA-256("smgr-kid-v1\0" || public key).
    Kid(16)
);
bytes!(
    /// A SHA-256 digest: of a spec, of a state, of a tree.
    Digest(32)
);
bytes!(
    /// The kernel's boot id.
    BootId(16)
);

impl EpochId {
    /// Builds an epoch from its time and 16 random bits.
    pub fn new(unix_ms: u64, random: u16) -> Self {
        Self(unix_ms << 16 | u64::from(random))
    }

    /// Returns the time at which the epoch began, in Unix milliseconds.
    pub fn unix_ms(self) -> u64 {
        self.0 >> 16
    }

    /// Returns the 13 characters of base 36 that paths, subjects and cursors carry.
    pub fn token(self) -> String {
        let mut digits = [b'0'; 13];
        let mut rest = self.0;
        for digit in digits.iter_mut().rev() {
            *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
            rest /= 36;
        }
        digits.iter().map(|digit| char::from(*digit)).collect()
    }

    /// Reads the form that [`EpochId::token`] writes.
    pub fn from_token(text: &str) -> Option<Self> {
        let canonical = |epoch: &Self| epoch.token() == text;
        u64::from_str_radix(text, 36).ok().map(Self).filter(canonical)
    }
}

/// Names an event for ever: `ORIGIN/EPOCH/SEQ`. A reader's place in a stream has the same form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventId {
    /// Whose log.
    pub origin: NodeId,
    /// Which stretch of it.
    pub epoch: EpochId,
    /// Which entry.
    pub seq: Seq,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.origin, self.epoch.token(), self.seq)
    }
}

/// Says that a text is not `ORIGIN/EPOCH/SEQ`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a cursor has the form ORIGIN/EPOCH/SEQ, as printed by `smgr events`")]
pub struct InvalidEventId;

impl FromStr for EventId {
    type Err = InvalidEventId;

    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        let mut parts = text.split('/');
        let (Some(origin), Some(epoch), Some(seq), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidEventId);
        };
        Ok(Self {
            origin: origin.parse().map_err(|_| InvalidEventId)?,
            epoch: EpochId::from_token(epoch).ok_or(InvalidEventId)?,
            seq: Seq(seq.parse().map_err(|_| InvalidEventId)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_not_fit_a_subject_is_refused() {
        let long = "a".repeat(64);
        for text in ["", "a.b", "*", ">", "A", "a b", "../x", "a/b", "a\0", "ä", long.as_str()] {
            assert!(text.parse::<ServiceId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_real_name_that_does_not_fit_is_answered_with_one_that_does() {
        let error = "php-fpm8.2".parse::<ServiceId>().unwrap_err().to_string();
        assert!(error.contains("`php-fpm8-2` would do"), "{error}");
    }

    #[test]
    fn an_event_id_reads_what_it_writes() {
        let id = EventId {
            origin: "n1".parse().unwrap(),
            epoch: EpochId::new(1_795_000_000_000, 7),
            seq: Seq(42),
        };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("n1/1/2".parse::<EventId>(), Err(InvalidEventId));
    }
}
