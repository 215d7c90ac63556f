//! What runs and slots are called, and how operations and facts are numbered.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name of a run or a slot, in bytes: it names a cgroup folder and a variable.
pub const NAME_BYTES_MAX: usize = 128;

/// Says why a text names neither run nor slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a run or slot is named by 1 to {NAME_BYTES_MAX} of a-z, 0-9, `-` and `.`, `.` not first")]
pub struct InvalidName;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let fits = |b: u8| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.'
                };
                let long = (1..=NAME_BYTES_MAX).contains(&text.len());
                match long && !text.starts_with('.') && text.bytes().all(fits) {
                    true => Ok(Self(text.to_owned())),
                    false => Err(InvalidName),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// Names a run, for ever: `web.0.17`. Chosen by the agent, never used twice.
    RunName
);
name!(
    /// Names what runs share one after the other, their pipes and sockets: `web.0`.
    SlotName
);

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);
    };
}

counter!(
    /// Numbers the operations of one life of an agent, ascending.
    OperationNumber
);
counter!(
    /// Numbers the facts of one life of a keeper, contiguous from 1.
    FactNumber
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::frame::{decode, encode};

    #[test]
    fn a_name_that_would_leave_its_folder_is_refused() {
        for text in ["", ".", "..", "../a", "a/b", "A", "a b", "a\0"] {
            assert_eq!(text.parse::<RunName>(), Err(InvalidName), "{text:?}");
        }
        assert!(decode::<RunName>(&encode(&"a/b").unwrap()).is_err());
        assert!("web.0.17".parse::<RunName>().is_ok());
    }
}
