//! Asks web servers: one GET over HTTP/1.1, plain or encrypted, with every bound where it can be seen.
//!
//! What comes is never trusted: whoever fetches an artifact knows its digest, and whoever measures judges a figure.
//! Over `https://` the server has to prove its name to an authority that this machine trusts (`SSL_CERT_FILE` and
//! `SSL_CERT_DIR` name others), so that a measurement cannot be forged on the way.

mod address;
mod tls;

use std::pin::Pin;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, HOST, LOCATION, TRANSFER_ENCODING,
    USER_AGENT,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use address::{Address, InvalidAddress};

/// How often an answer may lead elsewhere.
const REDIRECTS_MAX: usize = 3;

/// How large the head of an answer may be, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long a server may take to be reached, and to say something more.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const SILENT_MAX: Duration = Duration::from_secs(30);

/// Why a server was asked in vain.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// It is none that this program asks.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// The server cannot be reached, or cannot prove its name.
    #[error("`{host}` cannot be reached: {why}")]
    Unreachable {
        /// Which.
        host: String,
        /// Why.
        why: String,
    },
    /// It answers, and not with what was asked for.
    #[error("the server answers {0}")]
    Status(StatusCode),
    /// It leads from place to place.
    #[error("it leads elsewhere more than {REDIRECTS_MAX} times")]
    Redirects,
    /// It leads to a place that nobody can follow, or out of the encryption.
    #[error("it leads to `{0}`")]
    LedAstray(String),
    /// What it says is coded in a way that nobody asked for.
    #[error("the server's answer is coded as `{0}`")]
    Coding(String),
    /// What it says is not HTTP, or ends early.
    #[error("the server's answer does not read: {0}")]
    Answer(#[from] hyper::Error),
    /// It said nothing for too long.
    #[error("the server said nothing for {} s", SILENT_MAX.as_secs())]
    Silent,
    /// It says more than anybody wants to hear.
    #[error("its answer is longer than {0} bytes")]
    TooLong(u64),
    /// What it said cannot be passed on.
    #[error("what came cannot be written: {0}")]
    Write(#[from] std::io::Error),
}

/// What a server says; its body is still to come.
#[derive(Debug)]
pub struct Answer {
    response: Response<Incoming>,
    /// Drives the connection; it ends with the answer.
    _connection: JoinSet<()>,
}

/// Anything that a connection can be made of.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Asks for a URL, without following where it leads.
///
/// # Errors
/// When there is no answer. Each status is an answer.
pub async fn get(address: &Address) -> Result<Answer, WebError> {
    let unreachable = |why: String| WebError::Unreachable { host: address.host_and_port(), why };
    let connected = timeout(CONNECT_WITHIN, connect(address)).await;
    let stream = connected
        .map_err(|_| unreachable("no answer".to_owned()))?
        .map_err(|error| unreachable(error.to_string()))?;
    let request = Request::get(address.path())
        .header(HOST, address.host_and_port())
        .header(USER_AGENT, concat!("smgr/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "*/*")
        .header(ACCEPT_ENCODING, "identity")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .expect("invariant: an address is made of what may stand in a request");
    let answered = timeout(SILENT_MAX, async {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        let mut task = JoinSet::new();
        task.spawn(async move { drop(connection.await) });
        Ok((sender.send_request(request).await?, task))
    });
    let answered: Result<_, hyper::Error> = answered.await.map_err(|_| WebError::Silent)?;
    let (response, connection) = answered?;
    // Nobody asked for another form of what is there.
    for (name, plain) in [(TRANSFER_ENCODING, "chunked"), (CONTENT_ENCODING, "identity")] {
        let coding = response.headers().get(name).filter(|coding| *coding != plain);
        if let Some(coding) = coding {
            return Err(WebError::Coding(shown(&String::from_utf8_lossy(coding.as_bytes()))));
        }
    }
    Ok(Answer { response, _connection: connection })
}

/// Copies what a URL gives into `into`, at most so many bytes and one: so that more is seen to be more.
///
/// # Errors
/// What was copied until then is not the file.
pub async fn fetch(
    url: &str,
    bytes_max: u64,
    into: &mut (impl AsyncWrite + Unpin),
) -> Result<u64, WebError> {
    let mut address = url.parse::<Address>()?;
    for _ in 0..=REDIRECTS_MAX {
        let answer = get(&address).await?;
        match answer.leads_to(&address)? {
            Some(elsewhere) => address = elsewhere,
            None if answer.status() == StatusCode::OK => return answer.copy(bytes_max, into).await,
            None => return Err(WebError::Status(answer.status())),
        }
    }
    Err(WebError::Redirects)
}

async fn connect(address: &Address) -> std::io::Result<Pin<Box<dyn Stream>>> {
    let stream = TcpStream::connect((address.host(), address.port())).await?;
    match address.is_encrypted() {
        true => Ok(Box::pin(tls::client(address.host(), stream).await?)),
        false => Ok(Box::pin(stream)),
    }
}

impl Answer {
    /// Returns what the server makes of the request.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Returns where the answer leads, or nothing when it is what was asked for.
    fn leads_to(&self, from: &Address) -> Result<Option<Address>, WebError> {
        if !matches!(self.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let to = self.response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
        let to = to.unwrap_or_default();
        let next = from.joined(to).map_err(|_| WebError::LedAstray(shown(to)))?;
        match from.is_encrypted() && !next.is_encrypted() {
            true => Err(WebError::LedAstray(shown(to))),
            false => Ok(Some(next)),
        }
    }

    /// Reads a body of at most so many bytes.
    ///
    /// # Errors
    /// When it is longer, or breaks off.
    pub async fn bytes(self, bytes_max: u64) -> Result<Vec<u8>, WebError> {
        let mut bytes = Vec::new();
        match self.copy(bytes_max, &mut bytes).await? > bytes_max {
            true => Err(WebError::TooLong(bytes_max)),
            false => Ok(bytes),
        }
    }

    /// Copies at most so many bytes of the body, and one.
    async fn copy(
        mut self,
        bytes_max: u64,
        into: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64, WebError> {
        let (most, mut copied) = (bytes_max.saturating_add(1), 0);
        let body = self.response.body_mut();
        while copied < most {
            let frame = timeout(SILENT_MAX, body.frame()).await.map_err(|_| WebError::Silent)?;
            let Some(frame) = frame else { break };
            let Ok(data) = frame?.into_data() else { continue };
            let len = usize::try_from(most - copied).unwrap_or(usize::MAX).min(data.len());
            into.write_all(&data[..len]).await?;
            copied += len as u64;
        }
        into.flush().await?;
        Ok(copied)
    }
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests;
