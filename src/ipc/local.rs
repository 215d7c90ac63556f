//! The local socket, by which the command line reaches the agent: transport only.
//!
//! One connection carries any number of requests, each with a number of its own; an answer is a
//! stream of envelopes and one end. Authority is in the signature of a request, except for readings,
//! which the socket's permissions grant to root and the group `smgr`.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::hello::Hello;

/// The requests that one connection may have open.
pub const OPEN_MAX: usize = 32;

/// Numbers the requests of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// Command line to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalRequest {
    /// A signed envelope: an intent or a query.
    Envelope {
        /// Comes back with every answer.
        id: RequestId,
        /// The envelope.
        bytes: ByteBuf,
    },
    /// An unsigned reading: the payload of a query.
    Read {
        /// Comes back with every answer.
        id: RequestId,
        /// The payload.
        bytes: ByteBuf,
    },
    /// No more answers are wanted.
    Cancel {
        /// Which request.
        id: RequestId,
    },
}

/// Agent to command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalAnswer {
    /// The first frame: who answers.
    Hello(Hello),
    /// One of any number of answers.
    Answer {
        /// To which request.
        id: RequestId,
        /// The envelope or the reading.
        bytes: ByteBuf,
    },
    /// The last frame of a request that was understood.
    End {
        /// Which request.
        id: RequestId,
    },
    /// The last frame of a request that was not.
    Refused {
        /// Which request.
        id: RequestId,
        /// The code of the error table.
        code: String,
        /// Why, for people.
        why: String,
    },
}
