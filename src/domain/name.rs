//! An ASCII text that mostly is short, and then needs no memory of its own.
//!
//! Names stand in every event and are copied into what is folded from it: with one allocation each, replay would
//! spend its time on them.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// The longest text that stands in place, in bytes: as many as make a name as large as a `String`.
const SHORT_MAX: usize = 22;

/// A text that does not change.
#[derive(Clone)]
pub(super) enum Name {
    /// In place, followed by zeros.
    Short {
        /// Its length.
        len: u8,
        /// Its bytes.
        bytes: [u8; SHORT_MAX],
    },
    /// Elsewhere.
    Long(Box<[u8]>),
}

impl Name {
    /// Keeps a text, of which the caller knows that it is ASCII.
    pub(super) fn new(text: &[u8]) -> Self {
        debug_assert!(text.is_ascii(), "invariant: the caller looked at each byte");
        let mut bytes = [0; SHORT_MAX];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(text);
                Self::Short { len, bytes }
            }
            _ => Self::Long(text.into()),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("invariant: ASCII is UTF-8")
    }

    #[inline]
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(text) => text,
        }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_takes_no_more_room_than_a_string() {
        assert_eq!(size_of::<Name>(), size_of::<String>());
        assert_eq!(size_of::<Option<Name>>(), size_of::<Option<String>>());
    }

    proptest! {
        #[test]
        fn a_name_is_the_text_it_was_made_of_however_long(a in "[ -~]{0,40}", b in "[ -~]{0,40}") {
            let (one, other) = (Name::new(a.as_bytes()), Name::new(b.as_bytes()));
            prop_assert_eq!(one.as_str(), &a);
            prop_assert_eq!(one == other, a == b);
            prop_assert_eq!(one.cmp(&other), a.cmp(&b));
        }
    }
}
