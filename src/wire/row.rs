//! The fast way to read a row of a log that this program wrote itself.
//!
//! Replay reads millions of rows, all in the one form that [`codec::encode`](super::codec::encode) writes. They are
//! read here without a copy. Whatever is in another form is left to the general decoder, whose word alone counts:
//! [`Row::read`] returns either what that decoder would return, or nothing.

use crate::domain::id::{BootId, Kid, is_token};

const TYP: &[u8] = b"application/vnd.smgr.event.v1+msgpack";

/// An event of which nothing was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row<'a> {
    /// See [`EventRecord::at`](super::payload::EventRecord::at).
    pub(super) at: u64,
    /// See [`EventRecord::kind`](super::payload::EventRecord::kind).
    pub(super) kind: &'a str,
    /// See [`EventRecord::critical`](super::payload::EventRecord::critical).
    pub(super) critical: bool,
    /// Not yet known to be a name.
    pub(super) service: Option<&'a [u8]>,
    /// See [`EventRecord::index`](super::payload::EventRecord::index).
    pub(super) index: Option<u16>,
    /// See [`EventRecord::run`](super::payload::EventRecord::run).
    pub(super) run: Option<u64>,
    /// A value of its own, not decoded.
    pub(super) cause: Option<&'a [u8]>,
    /// A value of its own, not decoded.
    pub(super) by: Option<&'a [u8]>,
    /// See [`EventRecord::body`](super::payload::EventRecord::body).
    pub(super) body: &'a [u8],
}

impl<'a> Row<'a> {
    /// Reads a sealed event in the form in which it is written here, with one signature.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut outer = Reader { rest: bytes };
        outer.expect(&[0x95, 0x01])?;
        let typ = outer.text_bytes()?;
        let payload = outer.bin()?;
        outer.expect(&[0x91, 0x92])?;
        let kid = outer.bin()?;
        let signature = outer.bin()?;
        outer.expect(&[0x90])?;
        let whole = typ == TYP
            && kid.len() == size_of::<Kid>()
            && signature.len() == 64
            && outer.rest.is_empty();
        if whole { Self::read_payload(payload) } else { None }
    }

    /// Reads the fields in the order of the type, each with its name as it is written.
    fn read_payload(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader { rest: bytes };
        let fields = reader.map_len()?;
        reader.expect(b"\xa1v")?;
        u8::try_from(reader.uint()?).ok()?;
        reader.expect(b"\xa6origin")?;
        is_token(reader.text_bytes()?).then_some(())?;
        reader.expect(b"\xa5epoch")?;
        reader.uint()?;
        reader.expect(b"\xa3seq")?;
        reader.uint()?;
        reader.expect(b"\xa2at")?;
        let at = reader.uint()?;
        reader.expect(b"\xa7mono_ns")?;
        reader.uint()?;
        reader.expect(b"\xa4boot")?;
        (reader.bin()?.len() == size_of::<BootId>()).then_some(())?;
        reader.expect(b"\xa4type")?;
        let kind = reader.text()?;
        reader.expect(b"\xa6schema")?;
        u16::try_from(reader.uint()?).ok()?;
        reader.expect(b"\xa8critical")?;
        let critical = reader.bool()?;
        let service = reader.optional(b"\xa7service", Reader::text_bytes)?;
        let index = reader.optional(b"\xa5index", |reader| reader.uint()?.try_into().ok())?;
        let run = reader.optional(b"\xa3run", Reader::uint)?;
        let cause = reader.optional(b"\xa5cause", Reader::value)?;
        let by = reader.optional(b"\xa2by", Reader::value)?;
        let recorded_at = reader.optional(b"\xabrecorded_at", Reader::uint)?;
        reader.expect(b"\xa4body")?;
        let body = reader.bin()?;
        let optional = [
            service.is_some(),
            index.is_some(),
            run.is_some(),
            cause.is_some(),
            by.is_some(),
            recorded_at.is_some(),
        ];
        let found = 11 + optional.into_iter().filter(|there| *there).count();
        (found == fields && reader.rest.is_empty()).then_some(Row {
            at,
            kind,
            critical,
            service,
            index,
            run,
            cause,
            by,
            body,
        })
    }
}

/// How deep a value may be that is stepped over. Deeper ones are the general decoder's.
const DEPTH_MAX: u32 = 6;

/// Reads MessagePack in its shortest forms.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn expect(&mut self, bytes: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(bytes)?;
        Some(())
    }

    /// Reads a field that may be missing: nothing when it is there and cannot be read.
    fn optional<T>(
        &mut self,
        name: &[u8],
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<Option<T>> {
        match self.expect(name) {
            Some(()) => read(self).map(Some),
            None => Some(None),
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn number<const N: usize>(&mut self) -> Option<u64> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        let mut wide = [0; 8];
        wide[8 - N..].copy_from_slice(bytes);
        Some(u64::from_be_bytes(wide))
    }

    fn len<const N: usize>(&mut self) -> Option<usize> {
        usize::try_from(self.number::<N>()?).ok()
    }

    fn uint(&mut self) -> Option<u64> {
        match self.byte()? {
            small @ 0..=0x7f => Some(u64::from(small)),
            0xcc => self.number::<1>(),
            0xcd => self.number::<2>(),
            0xce => self.number::<4>(),
            0xcf => self.number::<8>(),
            _ => None,
        }
    }

    fn bool(&mut self) -> Option<bool> {
        match self.byte()? {
            0xc2 => Some(false),
            0xc3 => Some(true),
            _ => None,
        }
    }

    fn map_len(&mut self) -> Option<usize> {
        match self.byte()? {
            short @ 0x80..=0x8f => Some(usize::from(short & 0x0f)),
            0xde => self.len::<2>(),
            _ => None,
        }
    }

    fn text_bytes(&mut self) -> Option<&'a [u8]> {
        let len = match self.byte()? {
            short @ 0xa0..=0xbf => usize::from(short & 0x1f),
            0xd9 => self.len::<1>()?,
            0xda => self.len::<2>()?,
            _ => return None,
        };
        self.take(len)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.text_bytes()?).ok()
    }

    fn bin(&mut self) -> Option<&'a [u8]> {
        let len = match self.byte()? {
            0xc4 => self.len::<1>()?,
            0xc5 => self.len::<2>()?,
            0xc6 => self.len::<4>()?,
            _ => return None,
        };
        self.take(len)
    }

    /// Returns the bytes of one value of any kind but nil.
    fn value(&mut self) -> Option<&'a [u8]> {
        let before = self.rest;
        if before.first() == Some(&0xc0) {
            return None;
        }
        self.skip(DEPTH_MAX)?;
        before.get(..before.len() - self.rest.len())
    }

    fn skip(&mut self, depth: u32) -> Option<()> {
        let inner = match *self.rest.first()? {
            0x80..=0x8f | 0xde => 2 * self.map_len()?,
            short @ 0x90..=0x9f => {
                self.byte()?;
                usize::from(short & 0x0f)
            }
            0xa0..=0xbf | 0xd9 | 0xda => {
                self.text_bytes()?;
                0
            }
            0xc4..=0xc6 => {
                self.bin()?;
                0
            }
            0xc0 | 0xc2 | 0xc3 => {
                self.byte()?;
                0
            }
            0x00..=0x7f | 0xcc..=0xcf => {
                self.uint()?;
                0
            }
            _ => return None,
        };
        let depth = if inner == 0 { depth } else { depth.checked_sub(1)? };
        (0..inner).try_for_each(|_| self.skip(depth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::{Actor, Cause};
    use crate::domain::policy::Kind;
    use crate::wire::codec;
    use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
    use crate::wire::payload::EventRecord;
    use crate::wire::tests::samples;

    fn rows() -> Vec<(EventRecord, Vec<u8>)> {
        let signer = samples::node_key();
        let events = samples::events().into_iter();
        let records = events.map(|(context, event)| samples::record(&context, &event));
        records
            .map(|record| {
                let row = envelope::seal(Kind::Event, &codec::encode(&record), &signer);
                (record, row)
            })
            .collect()
    }

    /// Says whether the row holds what the record does.
    fn agrees(row: &Row<'_>, record: &EventRecord) -> bool {
        row.at == record.at.0
            && row.kind == record.kind
            && row.critical == record.critical
            && row.service == record.service.as_ref().map(|service| service.as_str().as_bytes())
            && row.index == record.index
            && row.run == record.run.map(|run| run.0)
            && row.cause.map(|bytes| codec::decode(bytes).unwrap()) == record.cause
            && row.by.map(|bytes| codec::decode(bytes).unwrap()) == record.by
            && row.body == record.body.as_slice()
    }

    #[test]
    fn what_is_written_here_is_read_the_fast_way() {
        for (record, bytes) in rows() {
            let row = Row::read(&bytes).unwrap_or_else(|| panic!("{record:?}"));
            assert!(agrees(&row, &record), "{row:?} is not {record:?}");
        }
    }

    #[test]
    fn the_fast_way_never_reads_what_the_general_decoder_does_not() {
        for (_, bytes) in rows() {
            for at in 0..bytes.len() {
                for flip in [0x01, 0x10, 0x80, 0xff] {
                    let mut changed = bytes.clone();
                    changed[at] ^= flip;
                    let Some(row) = Row::read(&changed) else { continue };
                    let sealed = envelope::read(&changed, ENVELOPE_BYTES_MAX).unwrap();
                    // These are judged by whoever asked for the row.
                    let is_cause = |bytes| codec::decode::<Cause>(bytes).is_ok();
                    let is_actor = |bytes| codec::decode::<Actor>(bytes).is_ok();
                    if !row.service.is_none_or(is_token)
                        || !row.cause.is_none_or(is_cause)
                        || !row.by.is_none_or(is_actor)
                    {
                        continue;
                    }
                    let record: EventRecord = codec::decode(sealed.unverified_payload()).unwrap();
                    assert!(agrees(&row, &record), "byte {at} ^ {flip:#x}");
                }
            }
        }
    }
}
