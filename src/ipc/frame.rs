//! One message is one packet of named MessagePack maps. Bodies too large for a packet travel in a
//! sealed memfd beside it; see `sealed`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::sealed;
use crate::wire::codec::{self, CodecError};

/// The largest packet, in bytes: small enough for every socket buffer of a default kernel.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;

/// The largest message, in bytes: what a specification or an envelope may need at most.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// The most descriptors beside one message; an instance has four and its runs one each.
pub const DESCRIPTORS_MAX: usize = 16;

/// The packet that says "the message is in the memfd that comes as the first descriptor".
///
/// It is MessagePack's `nil`, which no message encodes to.
const IN_MEMFD: &[u8] = &[0xc0];

/// Says why a message could not become a packet or a packet no message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The bytes are not the message that was expected.
    #[error("failed to decode a message")]
    Decode(#[from] CodecError),
    /// The message is larger than any may be.
    #[error("a message of {bytes} bytes is larger than {MESSAGE_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// More descriptors than may come with one message.
    #[error("{0} descriptors come with one message, at most {DESCRIPTORS_MAX} may")]
    TooManyDescriptors(usize),
    /// The memfd that should hold the message cannot be made, or is not what it must be.
    #[error("failed to pass a large message in a sealed memfd")]
    Sealed(#[source] sealed::SealedError),
    /// The packet points at a memfd that did not come with it.
    #[error("the memfd of a large message did not come with it")]
    MemfdMissing,
}

/// Encodes a message as a named map.
///
/// # Errors
/// When it is larger than [`MESSAGE_BYTES_MAX`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let bytes = codec::encode(message);
    match bytes.len() {
        ..=MESSAGE_BYTES_MAX => Ok(bytes),
        bytes => Err(FrameError::TooLarge { bytes }),
    }
}

/// Decodes a message and demands that it is all there is.
///
/// # Errors
/// When the input is too large, nested too deeply, malformed, or longer than the message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(FrameError::TooLarge { bytes: bytes.len() });
    }
    Ok(codec::decode(bytes)?)
}

/// A message ready to be sent, with the descriptors that go with it.
///
/// It owns them: they are duplicates, so it can wait in a queue while the originals close.
#[derive(Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Packet {
    /// Builds the packet of a message without descriptors.
    ///
    /// # Errors
    /// As [`Packet::with_descriptors`].
    pub fn new<T: Serialize>(message: &T) -> Result<Self, FrameError> {
        Self::with_descriptors(message, Vec::new())
    }

    /// Builds the packet of a message; what does not fit into it goes into a sealed memfd.
    ///
    /// # Errors
    /// When the message is too large or has too many descriptors.
    pub fn with_descriptors<T: Serialize>(
        message: &T,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Self, FrameError> {
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(FrameError::TooManyDescriptors(descriptors.len()));
        }
        let bytes = encode(message)?;
        if bytes.len() <= PACKET_BYTES_MAX {
            return Ok(Self { bytes, descriptors });
        }
        descriptors.insert(0, sealed::seal(&bytes).map_err(FrameError::Sealed)?);
        Ok(Self { bytes: IN_MEMFD.to_vec(), descriptors })
    }

    /// Returns the bytes on the socket.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the descriptors on the socket.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.descriptors.iter().map(AsFd::as_fd).collect()
    }
}

/// A message that came, with the descriptors that came with it.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// What came with it, in the order that the message says.
    pub descriptors: Vec<OwnedFd>,
}

/// Turns what a socket gave into a message.
///
/// # Errors
/// As [`decode`], and when the memfd of a large message is missing or not sealed.
pub fn open<T: DeserializeOwned>(
    bytes: &[u8],
    mut descriptors: Vec<OwnedFd>,
) -> Result<Received<T>, FrameError> {
    if bytes != IN_MEMFD {
        return Ok(Received { message: decode(bytes)?, descriptors });
    }
    if descriptors.is_empty() {
        return Err(FrameError::MemfdMissing);
    }
    let body = sealed::read(&descriptors.remove(0)).map_err(FrameError::Sealed)?;
    Ok(Received { message: decode(&body)?, descriptors })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Body {
        text: String,
    }

    #[test]
    fn a_message_reads_what_it_wrote() {
        let body = Body { text: "a".into() };
        let packet = Packet::new(&body).unwrap();
        assert_eq!(open::<Body>(packet.bytes(), vec![]).unwrap().message, body);
    }

    #[test]
    fn a_message_too_large_for_a_packet_travels_in_a_memfd() {
        let body = Body { text: "a".repeat(PACKET_BYTES_MAX) };
        let packet = Packet::new(&body).unwrap();
        assert_eq!(packet.bytes(), IN_MEMFD);
        assert_eq!(open::<Body>(IN_MEMFD, packet.descriptors).unwrap().message, body);
        assert!(matches!(open::<Body>(IN_MEMFD, vec![]), Err(FrameError::MemfdMissing)));
    }

    #[test]
    fn a_message_larger_than_any_may_be_is_refused() {
        let body = Body { text: "a".repeat(MESSAGE_BYTES_MAX) };
        assert!(matches!(Packet::new(&body), Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn bytes_behind_a_message_are_refused() {
        let mut bytes = encode(&Body { text: "a".into() }).unwrap();
        bytes.push(0);
        assert!(matches!(decode::<Body>(&bytes), Err(FrameError::Decode(CodecError::Trailing))));
    }

    #[test]
    fn input_nested_without_end_is_refused() {
        let bytes = vec![0x91; PACKET_BYTES_MAX];
        assert!(matches!(decode::<serde_json::Value>(&bytes), Err(FrameError::Decode(_))));
    }
}
