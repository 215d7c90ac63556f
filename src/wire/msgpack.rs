//! Reads MessagePack out of a slice, and nothing is copied on the way.
//!
//! It takes what rmp-serde takes and gives the same values, save for forms that nobody here writes and that would
//! make two messages of one meaning: a map as an array, a variant by its number, a text as `bin`, extensions.

mod deserialize;

/// The deepest nesting that is read. Ours need 6; a hostile one costs stack.
const DEPTH_MAX: u8 = 16;

/// Says why a value could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// Something else stands there, or the bytes end.
    #[error("expected {0}")]
    Expected(&'static str),
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// Values stand inside values beyond the limit.
    #[error("values are nested deeper than {DEPTH_MAX}")]
    Depth,
    /// The type has its own opinion.
    #[error("{0}")]
    Refused(Box<str>),
}

impl serde::de::Error for ReadError {
    fn custom<T: std::fmt::Display>(why: T) -> Self {
        Self::Refused(why.to_string().into())
    }
}

/// What is left to be read. Each method reads one thing, or says that another one stands there.
pub(super) struct Reader<'de> {
    rest: &'de [u8],
    depth_left: u8,
}

impl<'de> Reader<'de> {
    pub(super) fn new(bytes: &'de [u8]) -> Self {
        Self { rest: bytes, depth_left: DEPTH_MAX }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Reads exactly these bytes.
    #[inline(always)]
    pub(super) fn expect(&mut self, bytes: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(bytes)?;
        Some(())
    }

    #[inline(always)]
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Option<&'de [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    #[inline(always)]
    fn number<const N: usize>(&mut self) -> Option<u64> {
        let mut wide = [0; 8];
        wide[8 - N..].copy_from_slice(&self.array::<N>()?);
        Some(u64::from_be_bytes(wide))
    }

    #[inline]
    fn len<const N: usize>(&mut self) -> Option<usize> {
        usize::try_from(self.number::<N>()?).ok()
    }

    /// Reads a whole number of 0 or more.
    #[inline(always)]
    pub(super) fn uint(&mut self) -> Option<u64> {
        match self.byte()? {
            small @ 0..=0x7f => Some(u64::from(small)),
            0xcc => self.number::<1>(),
            0xcd => self.number::<2>(),
            0xce => self.number::<4>(),
            0xcf => self.number::<8>(),
            _ => None,
        }
    }

    /// Reads a whole number in one of the forms with a sign.
    fn int(&mut self) -> Option<i64> {
        match self.byte()? {
            small @ 0xe0..=0xff => Some(i64::from(small.cast_signed())),
            0xd0 => self.array().map(i8::from_be_bytes).map(i64::from),
            0xd1 => self.array().map(i16::from_be_bytes).map(i64::from),
            0xd2 => self.array().map(i32::from_be_bytes).map(i64::from),
            0xd3 => self.array().map(i64::from_be_bytes),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn bool(&mut self) -> Option<bool> {
        match self.byte()? {
            0xc2 => Some(false),
            0xc3 => Some(true),
            _ => None,
        }
    }

    /// Reads the bytes of a text, which may not be UTF-8.
    #[inline]
    pub(super) fn text(&mut self) -> Option<&'de [u8]> {
        let len = match self.byte()? {
            short @ 0xa0..=0xbf => usize::from(short & 0x1f),
            0xd9 => self.len::<1>()?,
            0xda => self.len::<2>()?,
            0xdb => self.len::<4>()?,
            _ => return None,
        };
        self.take(len)
    }

    #[inline]
    pub(super) fn bin(&mut self) -> Option<&'de [u8]> {
        let len = match self.byte()? {
            0xc4 => self.len::<1>()?,
            0xc5 => self.len::<2>()?,
            0xc6 => self.len::<4>()?,
            _ => return None,
        };
        self.take(len)
    }

    #[inline]
    fn map_len(&mut self) -> Option<usize> {
        match self.byte()? {
            short @ 0x80..=0x8f => Some(usize::from(short & 0x0f)),
            0xde => self.len::<2>(),
            0xdf => self.len::<4>(),
            _ => None,
        }
    }

    /// Goes into a map behind which nothing follows; returns how many entries it has.
    #[inline]
    pub(super) fn enter_map(&mut self) -> Option<usize> {
        self.depth_left = self.depth_left.checked_sub(1)?;
        self.map_len()
    }

    #[inline]
    fn array_len(&mut self) -> Option<usize> {
        match self.byte()? {
            short @ 0x90..=0x9f => Some(usize::from(short & 0x0f)),
            0xdc => self.len::<2>(),
            0xdd => self.len::<4>(),
            _ => None,
        }
    }

    #[inline]
    fn nil(&mut self) -> Option<()> {
        self.expect(&[0xc0])
    }

    /// Reads what stands inside of a map or an array.
    #[inline]
    fn inside<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        self.depth_left = self.depth_left.checked_sub(1).ok_or(ReadError::Depth)?;
        let value = read(self)?;
        self.depth_left += 1;
        Ok(value)
    }

    /// Steps over one value of any kind.
    fn skip(&mut self) -> Result<(), ReadError> {
        let marker = self.rest.first().copied().unwrap_or(NEVER);
        let inner = match marker {
            0x80..=0x8f | 0xde | 0xdf => self.map_len().and_then(|len| len.checked_mul(2)),
            0x90..=0x9f | 0xdc | 0xdd => self.array_len(),
            0xa0..=0xbf | 0xd9..=0xdb => self.text().map(|_| 0),
            0xc4..=0xc6 => self.bin().map(|_| 0),
            0xc0 => self.nil().map(|()| 0),
            0xc2 | 0xc3 => self.bool().map(|_| 0),
            0xca => self.take(5).map(|_| 0),
            0xcb => self.take(9).map(|_| 0),
            0x00..=0x7f | 0xcc..=0xcf => self.uint().map(|_| 0),
            0xd0..=0xd3 | 0xe0..=0xff => self.int().map(|_| 0),
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => None,
        };
        match inner.ok_or(ReadError::Expected("a value"))? {
            0 => Ok(()),
            inner => self.inside(|reader| (0..inner).try_for_each(|_| reader.skip())),
        }
    }
}

/// The one byte that MessagePack never uses.
const NEVER: u8 = 0xc1;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use proptest::prelude::*;
    use rmp_serde::config::{DefaultConfig, HumanReadableConfig};
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::event::Event;
    use crate::domain::rollout::samples::of_a_log;
    use crate::wire::codec;
    use crate::wire::payload::{Answer, Beat, EventRecord, Intent, Query, Trust};
    use crate::wire::tests::samples;

    type General<'a> = rmp_serde::Deserializer<
        rmp_serde::decode::ReadRefReader<'a, [u8]>,
        HumanReadableConfig<DefaultConfig>,
    >;

    fn general(bytes: &[u8]) -> General<'_> {
        let mut general = rmp_serde::Deserializer::from_read_ref(bytes).with_human_readable();
        general.set_max_depth(usize::from(DEPTH_MAX) + 1);
        general
    }

    /// Demands that what is read here is what rmp-serde reads; says whether anything was.
    fn agrees<T: DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
        let Ok(ours) = codec::decode::<T>(bytes) else { return false };
        assert_eq!(T::deserialize(&mut general(bytes)).unwrap(), ours, "{bytes:02x?}");
        true
    }

    fn body_agrees(kind: &str, bytes: &[u8]) -> bool {
        let Ok(ours) = codec::decode_body(kind, bytes) else { return false };
        let theirs = Event::deserialize_body(kind.as_bytes(), &mut general(bytes)).unwrap();
        assert_eq!(theirs, ours, "{kind} {bytes:02x?}");
        true
    }

    /// Every byte of every sample in other values, and every sample cut and continued.
    fn changed(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
        let bytes = bytes.to_vec();
        let flips = [0x01, 0x02, 0x10, 0x40, 0x80, 0xff];
        let flipped = (0..bytes.len()).flat_map(move |at| flips.map(|flip| (at, flip)));
        let whole = bytes.clone();
        let flipped = flipped.map(move |(at, flip)| {
            let mut changed = whole.clone();
            changed[at] ^= flip;
            changed
        });
        let cut = (0..bytes.len()).map(move |at| bytes[..at].to_vec());
        flipped.chain(cut)
    }

    fn holds<T: DeserializeOwned + serde::Serialize + PartialEq + Debug>(value: &T) {
        let bytes = codec::encode(value);
        assert!(agrees::<T>(&bytes), "{value:?} is not read");
        for bytes in changed(&bytes) {
            agrees::<T>(&bytes);
        }
    }

    fn holds_body(event: &Event) {
        let (kind, body) = (event.kind(), codec::encode_body(event));
        assert!(body_agrees(kind, &body), "{event:?} is not read");
        for bytes in changed(&body) {
            body_agrees(kind, &bytes);
        }
    }

    #[test]
    fn every_payload_is_read_as_rmp_serde_reads_it_however_it_is_damaged() {
        holds(&samples::intent());
        holds(&samples::query());
        holds(&samples::answer());
        holds(&samples::beat());
        holds(&samples::trust());
        holds(&samples::order());
        holds(&samples::receipt());
        holds(&samples::manifest());
        for (context, event) in samples::events() {
            holds(&samples::record(&context, &event));
            holds_body(&event);
        }
        let facts = of_a_log().into_iter().map(|fact| (fact.event.kind(), fact));
        for fact in facts.collect::<BTreeMap<_, _>>().into_values() {
            holds_body(&Event::Rollout(Box::new(fact)));
        }
    }

    #[test]
    fn every_form_of_a_value_is_read() {
        let large = "x".repeat(70_000);
        let wide: Value = (0..70_000).map(|n| json!(n)).collect::<Vec<_>>().into();
        let map: serde_json::Map<_, _> = (0..70_000).map(|n| (n.to_string(), json!(n))).collect();
        let numbers = json!([0, 127, 128, 255, 256, 65_535, 65_536, u64::from(u32::MAX), u64::MAX]);
        let signed = json!([-1, -32, -33, -128, -129, -32_768, -32_769, i64::MIN, 1.5, null, true]);
        for value in [json!(large), wide, Value::Object(map), numbers, signed, json!({"a": {}})] {
            assert!(agrees::<Value>(&codec::encode(&value)));
            // And stepped over.
            codec::decode::<serde::de::IgnoredAny>(&codec::encode(&value)).unwrap();
        }
    }

    #[test]
    fn forms_that_nobody_writes_are_refused() {
        // A text and a name as `bin`, a variant by its number, bytes as an array, an extension.
        assert!(codec::decode::<String>(&[0xc4, 1, b'a']).is_err());
        assert!(codec::decode::<crate::domain::id::ServiceId>(&[0xc4, 1, b'a']).is_err());
        assert!(codec::decode::<crate::domain::policy::KeyClass>(&[0]).is_err());
        assert!(
            codec::decode::<crate::domain::id::Kid>(&[[0xdc, 0, 16].as_slice(), &[1; 16]].concat())
                .is_err()
        );
        assert!(codec::decode::<serde::de::IgnoredAny>(&[0xd4, 1, 1]).is_err());
        assert!(codec::decode::<serde::de::IgnoredAny>(&[0xc1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_as_rmp_serde_reads_them_or_not_at_all(
            bytes in proptest::collection::vec(any::<u8>(), 0..40), kind in 0..Event::KINDS.len()
        ) {
            agrees::<Value>(&bytes);
            agrees::<Vec<Option<i16>>>(&bytes);
            agrees::<(u8, String, f64)>(&bytes);
            agrees::<Intent>(&bytes);
            agrees::<Query>(&bytes);
            agrees::<Answer>(&bytes);
            agrees::<Beat>(&bytes);
            agrees::<Trust>(&bytes);
            agrees::<EventRecord>(&bytes);
            body_agrees(Event::KINDS[kind].0, &bytes);
        }
    }
}
