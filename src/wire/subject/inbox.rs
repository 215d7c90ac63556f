//! The places at which principals are answered.

use std::fmt;
use std::str::FromStr;

use super::InvalidSubject;
use crate::domain::id::Principal;

/// The longest inbox, in bytes: prefix, principal, and two tokens of 22 characters with room to spare.
const INBOX_BYTES_MAX: usize = 192;

/// The part of the bus under which one principal is answered: `_INBOX.<principal>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboxPrefix(pub Principal);

/// A place to answer at: an inbox below the [`InboxPrefix`] of a known principal.
///
/// An answer goes nowhere else, or a caller could have it delivered as a call to somebody.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inbox {
    owner: InboxPrefix,
    rest: String,
}

impl InboxPrefix {
    /// Says whether `inbox` belongs to the principal of this prefix.
    pub fn owns(&self, inbox: &Inbox) -> bool {
        *self == inbox.owner
    }
}

impl fmt::Display for InboxPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "_INBOX.{}", self.0)
    }
}

impl Inbox {
    /// Returns whose inbox it is.
    pub fn principal(&self) -> &Principal {
        &self.owner.0
    }
}

impl fmt::Display for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.owner, self.rest)
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Inbox {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        let is_token = |token: &str| {
            !token.is_empty()
                && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let (principal, rest) = Some(text)
            .filter(|text| text.len() <= INBOX_BYTES_MAX)
            .and_then(|text| text.strip_prefix("_INBOX."))
            .and_then(|text| text.split_once('.'))
            .filter(|(_, rest)| rest.split('.').all(is_token))
            .ok_or(InvalidSubject::Inbox)?;
        Ok(Self { owner: InboxPrefix(principal.parse()?), rest: rest.to_owned() })
    }
}
