//! The local socket: one connection, one request at a time.

use std::io;

use serde_bytes::ByteBuf;

use crate::cli::context::{Context, not_up, short};
use crate::cli::error::CliError;
use crate::domain::code::Code;
use crate::domain::id::NodeId;
use crate::ipc::channel::{self, Receiver, Sender};
use crate::ipc::local::{LocalAnswer, LocalRequest, RequestId};
use crate::ipc::socket::SocketError;

/// A connection to the agent of this machine.
#[derive(Debug)]
pub(super) struct Road {
    sender: Sender,
    receiver: Receiver,
    next: u64,
    own: NodeId,
}

/// One frame of the answer to a request.
#[derive(Debug)]
pub(super) enum Frame {
    /// An envelope, or the bare answer to an unsigned reading.
    Answer(Vec<u8>),
    /// Nothing more comes.
    End,
    /// The agent ended before the answer did.
    Lost,
}

impl Road {
    pub(super) async fn connect(context: &Context, own: NodeId) -> Result<Self, CliError> {
        let path = context.folder.place().local_socket();
        let (sender, mut receiver) =
            channel::connect(&path).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    CliError::new(Code::SOCKET_REFUSED, Code::SOCKET_REFUSED.title())
                        .at(short(&path))
                        .hint("read as a member of the group `smgr`, or use sudo")
                }
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => not_up(context),
                _ => {
                    CliError::caused(Code::AGENT_UNREACHABLE, "the agent cannot be reached", &error)
                        .at(short(&path))
                }
            })?;
        let hello = receiver.receive::<LocalAnswer>().await.map_err(|error| gone(&error))?;
        match hello.message {
            LocalAnswer::Hello(hello) => {
                hello
                    .agree()
                    .map_err(|error| CliError::from_error(Code::PROTOCOL_MISMATCH, &error))?;
            }
            other => return Err(unexpected(&other)),
        }
        Ok(Self { sender, receiver, next: 1, own })
    }

    pub(super) async fn send(
        &mut self,
        bytes: &[u8],
        is_envelope: bool,
    ) -> Result<(RequestId, NodeId), CliError> {
        let id = RequestId(self.next);
        self.next += 1;
        let bytes = ByteBuf::from(bytes);
        let request = match is_envelope {
            true => LocalRequest::Envelope { id, bytes },
            false => LocalRequest::Read { id, bytes },
        };
        self.sender.send(&request).await.map_err(|error| gone(&error))?;
        Ok((id, self.own.clone()))
    }

    /// Returns the next frame of one request; those of an abandoned one are passed over.
    pub(super) async fn next(&mut self, of: RequestId) -> Result<Frame, CliError> {
        loop {
            let answer = match self.receiver.receive::<LocalAnswer>().await {
                Ok(received) => received.message,
                Err(SocketError::Closed) => return Ok(Frame::Lost),
                Err(error) => return Err(gone(&error)),
            };
            match answer {
                LocalAnswer::Answer { id, bytes } if id == of => {
                    return Ok(Frame::Answer(bytes.into_vec()));
                }
                LocalAnswer::End { id } if id == of => return Ok(Frame::End),
                LocalAnswer::Refused { id, code, why } if id == of => {
                    return Err(CliError::new(code.parse().unwrap_or(Code::INTERNAL), why));
                }
                LocalAnswer::Answer { .. }
                | LocalAnswer::End { .. }
                | LocalAnswer::Refused { .. } => {}
                LocalAnswer::Hello(_) => return Err(unexpected(&answer)),
            }
        }
    }
}

fn gone(error: &SocketError) -> CliError {
    CliError::caused(Code::AGENT_UNREACHABLE, "the agent does not answer", error)
}

fn unexpected(answer: &LocalAnswer) -> CliError {
    let what = match answer {
        LocalAnswer::Hello(_) => "the agent greeted twice",
        LocalAnswer::Answer { .. } | LocalAnswer::End { .. } | LocalAnswer::Refused { .. } => {
            "the agent did not greet"
        }
    };
    CliError::new(Code::PROTOCOL_MISMATCH, what)
}
