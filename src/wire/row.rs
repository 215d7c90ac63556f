//! The fast way to read a row of a log that this program wrote itself.
//!
//! Replay reads millions of rows, all in the one form that [`codec::encode`](super::codec::encode) writes. They are
//! read here without a copy. Whatever is in another form is left to the general decoder, whose word alone counts:
//! [`Row::read`] returns either what that decoder would return, or nothing.

use serde::Deserialize;

use super::msgpack::Reader;
use crate::domain::event::{Actor, Cause};
use crate::domain::id::{BootId, Kid, is_token};

const TYP: &[u8] = b"application/vnd.smgr.event.v1+msgpack";

/// An event of which hardly anything was copied.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// See [`EventRecord::at`](super::payload::EventRecord::at).
    pub(super) at: u64,
    /// See [`EventRecord::kind`](super::payload::EventRecord::kind). Not yet known to be a text.
    pub(super) kind: &'a [u8],
    /// Not yet known to be a name.
    pub(super) service: Option<&'a [u8]>,
    /// See [`EventRecord::index`](super::payload::EventRecord::index).
    pub(super) index: Option<u16>,
    /// See [`EventRecord::run`](super::payload::EventRecord::run).
    pub(super) run: Option<u64>,
    /// See [`EventRecord::cause`](super::payload::EventRecord::cause).
    pub(super) cause: Option<Cause>,
    /// See [`EventRecord::by`](super::payload::EventRecord::by).
    pub(super) by: Option<Actor>,
    /// See [`EventRecord::body`](super::payload::EventRecord::body).
    pub(super) body: &'a [u8],
}

impl<'a> Row<'a> {
    /// Reads a sealed event in the form in which it is written here, with one signature.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut outer = Reader::new(bytes);
        outer.expect(&[0x95, 0x01])?;
        let typ = outer.text()?;
        let payload = outer.bin()?;
        outer.expect(&[0x91, 0x92])?;
        let kid = outer.bin()?;
        let signature = outer.bin()?;
        outer.expect(&[0x90])?;
        let whole = typ == TYP
            && kid.len() == size_of::<Kid>()
            && signature.len() == 64
            && outer.is_at_end();
        if whole { Self::read_payload(payload) } else { None }
    }

    /// Reads the fields in the order of the type, each with its name as it is written.
    fn read_payload(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let fields = reader.enter_map()?;
        reader.expect(b"\xa1v")?;
        u8::try_from(reader.uint()?).ok()?;
        reader.expect(b"\xa6origin")?;
        is_token(reader.text()?).then_some(())?;
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
        reader.bool()?;
        let reader = &mut reader;
        let service = optional(reader, b"\xa7service", Reader::text)?;
        let index = optional(reader, b"\xa5index", |reader| reader.uint()?.try_into().ok())?;
        let run = optional(reader, b"\xa3run", Reader::uint)?;
        let cause = optional(reader, b"\xa5cause", |reader| Cause::deserialize(reader).ok())?;
        let by = optional(reader, b"\xa2by", |reader| Actor::deserialize(reader).ok())?;
        let recorded_at = optional(reader, b"\xabrecorded_at", Reader::uint)?;
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
        (found == fields && reader.is_at_end()).then_some(Row {
            at,
            kind,
            service,
            index,
            run,
            cause,
            by,
            body,
        })
    }
}

/// Reads a field that may be missing: nothing when it is there and cannot be read.
#[inline]
fn optional<'a, T>(
    reader: &mut Reader<'a>,
    name: &[u8],
    read: impl FnOnce(&mut Reader<'a>) -> Option<T>,
) -> Option<Option<T>> {
    match reader.expect(name) {
        Some(()) => read(reader).map(Some),
        None => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::ServiceId;
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
            && row.kind == record.kind.as_bytes()
            && row.service == record.service.as_ref().map(ServiceId::as_bytes)
            && row.index == record.index
            && row.run == record.run.map(|run| run.0)
            && row.cause == record.cause
            && row.by == record.by
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
                    let is_text = |bytes| std::str::from_utf8(bytes).is_ok();
                    if !row.service.is_none_or(is_token) || !is_text(row.kind) {
                        continue; // These are judged by whoever asked for the row.
                    }
                    let record: EventRecord = codec::decode(sealed.unverified_payload()).unwrap();
                    assert!(agrees(&row, &record), "byte {at} ^ {flip:#x}");
                }
            }
        }
    }
}
