//! What a release of the demo runs: answers every request on the socket that it was given with one line.

use std::os::fd::AsFd as _;
use std::os::unix::net;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::cli::error::CliError;
use crate::cli::interrupt::Interrupts;
use crate::domain::code::{Code, ExitCode};
use crate::head::say_ready;

/// How long one who asks is given for question and answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// The longest head of a request, in bytes.
const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// Serves on the socket at standard input until it is told to end; an answer that is begun is finished.
///
/// # Errors
/// Standard input is no socket that listens.
pub(crate) async fn serve(says: &str) -> Result<ExitCode, CliError> {
    let failed =
        |error: std::io::Error| CliError::caused(Code::IO, "standard input is no socket", &error);
    let own = std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let listener = net::UnixListener::from(own);
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    let mut interrupts = Interrupts::watch()?;
    say_ready();
    loop {
        tokio::select! {
            biased;
            _ = interrupts.next() => return Ok(ExitCode::Done),
            accepted = listener.accept() => {
                let (stream, _) = accepted.map_err(failed)?;
                // Who asks badly, or too slowly, has no answer.
                drop(timeout(ANSWERED_WITHIN, answer(stream, says)).await);
            }
        }
    }
}

async fn answer(mut stream: UnixStream, says: &str) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let bytes = says.len() + 1;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n");
    stream.write_all(format!("{head}{says}\n").as_bytes()).await?;
    stream.shutdown().await
}
