//! The fast way to read a row of a log that this program wrote itself.
//!
//! Replay reads millions of rows, all in the one form that [`codec::encode`](super::codec::encode) writes. They are
//! read here without a copy. Whatever is in another form is left to the general decoder, whose word alone counts:
//! [`Row::read`] returns either what that decoder would return, or nothing.

use super::payload::EventRecord;
use crate::domain::id::{Kid, is_token};

const TYP: &[u8] = b"application/vnd.smgr.event.v1+msgpack";

/// An event of which nothing was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row<'a> {
    /// See [`EventRecord::at`].
    pub(super) at: u64,
    /// See [`EventRecord::kind`].
    pub(super) kind: &'a str,
    /// See [`EventRecord::critical`].
    pub(super) critical: bool,
    /// See [`EventRecord::service`].
    pub(super) service: Option<&'a str>,
    /// See [`EventRecord::index`].
    pub(super) index: Option<u16>,
    /// See [`EventRecord::run`].
    pub(super) run: Option<u64>,
    /// See [`EventRecord::cause`]: a value of its own, not decoded.
    pub(super) cause: Option<&'a [u8]>,
    /// See [`EventRecord::by`]: a value of its own, not decoded.
    pub(super) by: Option<&'a [u8]>,
    /// See [`EventRecord::body`].
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

    fn read_payload(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader { rest: bytes };
        let mut row = Row {
            at: 0,
            kind: "",
            critical: false,
            service: None,
            index: None,
            run: None,
            cause: None,
            by: None,
            body: &[],
        };
        let mut found = 0_u32;
        for _ in 0..reader.map_len()? {
            let field = match reader.text_bytes()? {
                b"v" => {
                    u8::try_from(reader.uint()?).ok()?;
                    Field::V
                }
                b"origin" => {
                    is_token(reader.text()?).then_some(())?;
                    Field::Origin
                }
                b"epoch" => {
                    reader.uint()?;
                    Field::Epoch
                }
                b"seq" => {
                    reader.uint()?;
                    Field::Seq
                }
                b"at" => {
                    row.at = reader.uint()?;
                    Field::At
                }
                b"mono_ns" => {
                    reader.uint()?;
                    Field::MonoNs
                }
                b"boot" => {
                    (reader.bin()?.len() == 16).then_some(())?;
                    Field::Boot
                }
                b"type" => {
                    row.kind = reader.text()?;
                    Field::Kind
                }
                b"schema" => {
                    u16::try_from(reader.uint()?).ok()?;
                    Field::Schema
                }
                b"critical" => {
                    row.critical = reader.bool()?;
                    Field::Critical
                }
                b"service" => {
                    row.service = Some(reader.text().filter(|text| is_token(text))?);
                    Field::Service
                }
                b"index" => {
                    row.index = Some(u16::try_from(reader.uint()?).ok()?);
                    Field::Index
                }
                b"run" => {
                    row.run = Some(reader.uint()?);
                    Field::Run
                }
                b"cause" => {
                    row.cause = Some(reader.value()?);
                    Field::Cause
                }
                b"by" => {
                    row.by = Some(reader.value()?);
                    Field::By
                }
                b"recorded_at" => {
                    reader.uint()?;
                    Field::RecordedAt
                }
                b"body" => {
                    row.body = reader.bin()?;
                    Field::Body
                }
                _ => return None,
            };
            let bit = 1 << field as u32;
            if found & bit != 0 {
                return None;
            }
            found |= bit;
        }
        (found & Field::REQUIRED == Field::REQUIRED && reader.rest.is_empty()).then_some(row)
    }
}

/// The fields of an [`EventRecord`].
#[derive(Clone, Copy)]
#[repr(u32)]
enum Field {
    V,
    Origin,
    Epoch,
    Seq,
    At,
    MonoNs,
    Boot,
    Kind,
    Schema,
    Critical,
    Body,
    Service,
    Index,
    Run,
    Cause,
    By,
    RecordedAt,
}

impl Field {
    /// Those up to `body` have to be there.
    const REQUIRED: u32 = (1 << (Self::Body as u32 + 1)) - 1;
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

const _: fn(&EventRecord) = |record| {
    // A field that is added to the record has to be read here too.
    let EventRecord {
        v: _,
        origin: _,
        epoch: _,
        seq: _,
        at: _,
        mono_ns: _,
        boot: _,
        kind: _,
        schema: _,
        critical: _,
        service: _,
        index: _,
        run: _,
        cause: _,
        by: _,
        recorded_at: _,
        body: _,
    } = record;
};
