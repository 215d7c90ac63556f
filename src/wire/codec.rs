//! The one MessagePack configuration: named maps, human-readable forms, a depth limit, whole input consumed.
//!
//! MessagePack has no canonical form, so nothing here may be used to encode again what is to be verified, compared
//! or hashed: signatures and hashes are over the bytes that travelled.

use rmp_serde::Serializer;
use rmp_serde::config::{DefaultConfig, HumanReadableConfig, StructMapConfig};
use serde::{Deserialize, Serialize};

use super::msgpack::{ReadError, Reader};
use crate::domain::event::Event;

/// Says why bytes are not a value of the wanted type.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Not MessagePack, or not of this shape.
    #[error("the bytes are not of the expected shape: {0}")]
    Shape(String),
    /// A value, and then something more.
    #[error("bytes follow after the value")]
    Trailing,
}

type Config = HumanReadableConfig<StructMapConfig<DefaultConfig>>;

fn serializer(buffer: &mut Vec<u8>) -> Serializer<&mut Vec<u8>, Config> {
    Serializer::new(buffer).with_struct_map().with_human_readable()
}

/// Returns the MessagePack form of a value of ours.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1024);
    value
        .serialize(&mut serializer(&mut bytes))
        .expect("our types have a MessagePack form and memory takes every write");
    bytes
}

/// Returns the MessagePack form of an event's body.
pub fn encode_body(event: &Event) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    event
        .serialize_body(&mut serializer(&mut bytes))
        .expect("event bodies have a MessagePack form and memory takes every write");
    bytes
}

/// Reads one value and demands that it is the whole input.
///
/// The caller caps the size first: the decoder itself allocates at most what the input holds.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    let mut reader = Reader::new(bytes);
    let value = T::deserialize(&mut reader).map_err(shape)?;
    at_end(&reader).map(|()| value)
}

/// Reads the body of an event; `None` when this version does not know the type.
pub fn decode_body(kind: impl AsRef<[u8]>, bytes: &[u8]) -> Result<Option<Event>, CodecError> {
    let mut reader = Reader::new(bytes);
    let event = Event::deserialize_body(kind.as_ref(), &mut reader).map_err(shape)?;
    if event.is_some() {
        at_end(&reader)?; // Of an unknown one nothing was read.
    }
    Ok(event)
}

fn shape(error: ReadError) -> CodecError {
    CodecError::Shape(error.to_string())
}

fn at_end(reader: &Reader<'_>) -> Result<(), CodecError> {
    if reader.is_at_end() { Ok(()) } else { Err(CodecError::Trailing) }
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;

    use super::*;

    #[test]
    fn bytes_after_the_value_are_refused() {
        assert!(matches!(decode::<u8>(&[1]), Ok(1)));
        assert!(matches!(decode::<u8>(&[1, 2]), Err(CodecError::Trailing)));
        assert!(matches!(decode::<u8>(&[1, 0xcd]), Err(CodecError::Trailing)));
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused_without_a_deep_stack() {
        let deep = [vec![0x91; 5_000], vec![0xc0]].concat();
        assert!(matches!(decode::<IgnoredAny>(&deep), Err(CodecError::Shape(_))));
    }

    #[test]
    fn a_length_that_the_input_does_not_hold_is_refused() {
        for bytes in [[0xc6, 0xff, 0xff, 0xff, 0xff], [0xdd, 0xff, 0xff, 0xff, 0xff]] {
            assert!(decode::<serde_bytes::ByteBuf>(&bytes).is_err());
            assert!(decode::<Vec<u8>>(&bytes).is_err());
        }
    }
}
