//! Asks an HTTP server for a status: what checks of nodes and of rollouts have in common.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// How much is read to find the status line of an answer, in bytes.
const STATUS_BYTES_MAX: usize = 256;

/// How a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// With this status.
    Status(u16),
    /// With something else than HTTP.
    NotHttp,
    /// With nothing: it closed the connection.
    Nothing,
}

/// Asks for `path` and reads the status line; the rest of the answer stays in the stream.
///
/// # Errors
/// When the connection breaks. How long it may take is for the caller to say.
pub async fn ask<S>(stream: &mut S, host: &str, path: &str) -> io::Result<Heard>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: smgr/{}\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(STATUS_BYTES_MAX);
    // A server may leave the connection open behind its answer.
    while !head.contains(&b'\n') && head.len() < STATUS_BYTES_MAX {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(match status(&head) {
        Some(status) => Heard::Status(status),
        None if head.is_empty() => Heard::Nothing,
        None => Heard::NotHttp,
    })
}

/// Returns the status of an answer that begins with `HTTP/1.1 200`.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let rest = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    let (_, rest) = rest.split_once(' ')?;
    let digits = rest.get(..3)?;
    let is_whole = !rest[3..].starts_with(|c: char| c.is_ascii_digit());
    digits.parse().ok().filter(|status| is_whole && *status >= 100)
}
