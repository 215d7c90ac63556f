//! The local socket: one connection, one request at a time.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::time::{Instant, timeout_at};

use crate::cli::context::{Context, not_up, short};
use crate::cli::error::CliError;
use crate::cli::out::Out;
use crate::domain::code::Code;
use crate::domain::id::NodeId;
use crate::ipc::channel::{self, Receiver, Sender};
use crate::ipc::hello::Part;
use crate::ipc::local::{LocalAnswer, LocalRequest, RequestId};
use crate::ipc::socket::SocketError;

/// How long an agent that died may take until it is there again: the keeper starts it within milliseconds.
const RETURN_WITHIN: Duration = Duration::from_secs(5);

/// How long one that is there may take to greet.
const GREETED_WITHIN: Duration = Duration::from_secs(10);

/// Whoever waits for longer is told for what.
const SILENT_MAX: Duration = Duration::from_secs(1);

/// The pause between two looks at whether it is there.
const LOOK_EVERY: Duration = Duration::from_millis(20);

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
        let (sender, receiver, hello) = dial(context, &path).await?;
        match hello {
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

/// Connects and takes the first frame. While a keeper is there, so will be an agent: one that was killed is waited for.
async fn dial(context: &Context, path: &Path) -> Result<(Sender, Receiver, LocalAnswer), CliError> {
    let began = Instant::now();
    let mut say_at = Some(began + SILENT_MAX);
    loop {
        let error = match channel::connect(path) {
            Ok((sender, mut receiver)) => {
                let hello = loop {
                    let until = say_at.unwrap_or(began + GREETED_WITHIN);
                    match timeout_at(until, receiver.receive::<LocalAnswer>()).await {
                        Ok(hello) => break hello,
                        Err(_) if say_at.take().is_some() => say(context),
                        Err(_) => return Err(away(context, path, "does not answer")),
                    }
                };
                match hello {
                    Ok(hello) => return Ok((sender, receiver, hello.message)),
                    // It died in the moment between.
                    Err(SocketError::Closed) => io::ErrorKind::ConnectionRefused.into(),
                    Err(error) => return Err(gone(&error)),
                }
            }
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                return Err(CliError::new(Code::SOCKET_REFUSED, Code::SOCKET_REFUSED.title())
                    .at(short(path))
                    .hint("read as a member of the group `smgr`, or use sudo"));
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                let is_up = context.folder.place().is_locked(Part::Keeper).unwrap_or(false);
                if !is_up {
                    return Err(not_up(context));
                }
                if began.elapsed() >= RETURN_WITHIN {
                    return Err(away(context, path, "does not come back"));
                }
                if say_at.is_some_and(|at| Instant::now() >= at) {
                    say_at = None;
                    say(context);
                }
            }
            _ => {
                let what = "the agent cannot be reached";
                return Err(CliError::caused(Code::AGENT_UNREACHABLE, what, &error).at(short(path)));
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn say(context: &Context) {
    Out { form: context.global.output }.note("waiting for the agent of this machine");
}

fn away(context: &Context, path: &Path, how: &str) -> CliError {
    let what = format!("smgr is up here, but its agent {how}");
    CliError::new(Code::AGENT_UNREACHABLE, what)
        .at(short(path))
        .hint(format!("see {}", short(&context.folder.parts_log())))
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
