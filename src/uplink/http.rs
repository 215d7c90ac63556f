//! Fetches one URL over HTTP/1.1, as far as an artifact needs it: no encryption, no cookies, no caches.
//!
//! Nothing here is trusted: whoever asked for the bytes knows their digest. So a plain client is enough, and every bound
//! stands where it can be seen.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How often an answer may lead elsewhere.
const REDIRECTS_MAX: usize = 3;

/// How long a server may take to be reached, and to say something more.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const SILENT_MAX: Duration = Duration::from_secs(30);

/// Why a download came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It is none that this program fetches.
    #[error("`{0}` is no URL of the form http://HOST[:PORT]/PATH")]
    Url(String),
    /// The server cannot be reached.
    #[error("`{host}` cannot be reached: {why}")]
    Unreachable {
        /// Which.
        host: String,
        /// Why.
        why: String,
    },
    /// It answers, and not with the file.
    #[error("the server answers {0}")]
    Status(String),
    /// It leads from place to place.
    #[error("it leads elsewhere more than {REDIRECTS_MAX} times")]
    Redirects,
    /// What it says is not HTTP.
    #[error("the server's answer does not read: {0}")]
    Answer(&'static str),
    /// It said nothing for too long.
    #[error("the server said nothing for {} s", SILENT_MAX.as_secs())]
    Silent,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] std::io::Error),
}

/// The parts of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    host: String,
    port: u16,
    path: String,
}

/// How the body of an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked,
    UntilClosed,
}

/// Copies what a URL gives into `into`, at most so many bytes and one: so that more is seen to be more.
///
/// # Errors
/// What was copied until then is not the file.
pub async fn fetch(
    url: &str,
    bytes_max: u64,
    into: &mut (impl AsyncWrite + Unpin),
) -> Result<u64, FetchError> {
    let mut url = Url::parse(url)?;
    for _ in 0..=REDIRECTS_MAX {
        let host = format!("{}:{}", url.host, url.port);
        let unreachable = |why: String| FetchError::Unreachable { host: host.clone(), why };
        let address = (url.host.trim_matches(['[', ']']), url.port);
        let connected = timeout(CONNECT_WITHIN, TcpStream::connect(address)).await;
        let mut stream = connected
            .map_err(|_| unreachable("no answer".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        stream.write_all(url.request().as_bytes()).await?;
        let mut reader = Reader { from: stream, buffer: Vec::new() };
        let head = reader.head().await?;
        match head.next(&url)? {
            Some(elsewhere) => url = elsewhere,
            None => return reader.body(head.body()?, bytes_max, into).await,
        }
    }
    Err(FetchError::Redirects)
}

impl Url {
    fn parse(text: &str) -> Result<Self, FetchError> {
        let bad = || FetchError::Url(text.chars().take(200).collect());
        let rest = text.strip_prefix("http://").ok_or_else(bad)?;
        let (place, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let is_plain = |c: char| c.is_ascii_graphic();
        if place.is_empty() || place.contains('@') || !text.chars().all(is_plain) {
            return Err(bad());
        }
        let (host, port) = match place.rsplit_once(':').filter(|_| !place.ends_with(']')) {
            Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
            None => (place, 80),
        };
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { host: host.to_owned(), port, path: path.to_owned() })
    }

    fn request(&self) -> String {
        let Self { host, port, path } = self;
        let agent = concat!("smgr/", env!("CARGO_PKG_VERSION"));
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: {agent}\r\nAccept: */*\r\n\
             Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
        )
    }
}

/// The head of an answer.
#[derive(Debug)]
struct Head {
    status: u16,
    words: String,
    fields: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &str) -> Result<Self, FetchError> {
        let bad = FetchError::Answer;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let words = first.strip_prefix("HTTP/1.").and_then(|it| it.split_once(' '));
        let (_, words) = words.ok_or(bad("it is not HTTP/1"))?;
        let status = words.get(..3).and_then(|code| code.parse().ok());
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        Ok(Self {
            status: status.ok_or(bad("it has no status"))?,
            words: words.chars().take(80).collect(),
            fields: lines.filter_map(field).collect(),
        })
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns where the answer leads, or nothing when it is the file.
    fn next(&self, from: &Url) -> Result<Option<Url>, FetchError> {
        match self.status {
            200 => Ok(None),
            301 | 302 | 303 | 307 | 308 => {
                let to = self.field("location").ok_or(FetchError::Answer("it leads nowhere"))?;
                let to = match to.starts_with('/') {
                    true => Url { path: to.to_owned(), ..from.clone() },
                    false => Url::parse(to)?,
                };
                Ok(Some(to))
            }
            _ => Err(FetchError::Status(self.words.clone())),
        }
    }

    fn body(&self) -> Result<Body, FetchError> {
        match (self.field("transfer-encoding"), self.field("content-length")) {
            (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => Ok(Body::Chunked),
            (Some(_), _) => Err(FetchError::Answer("an unknown transfer coding")),
            (None, Some(length)) => {
                let length = length.parse().map_err(|_| FetchError::Answer("a bad length"))?;
                Ok(Body::Length(length))
            }
            (None, None) => Ok(Body::UntilClosed),
        }
    }
}

struct Reader<R> {
    from: R,
    /// What was read and not used.
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads some more; says whether there was any.
    async fn more(&mut self) -> Result<bool, FetchError> {
        let read = timeout(SILENT_MAX, self.from.read_buf(&mut self.buffer)).await;
        Ok(read.map_err(|_| FetchError::Silent)?? > 0)
    }

    async fn head(&mut self) -> Result<Head, FetchError> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).take(end).collect();
                let text = String::from_utf8(head);
                return Head::parse(&text.map_err(|_| FetchError::Answer("its head is no text"))?);
            }
            if self.buffer.len() > HEAD_BYTES_MAX {
                return Err(FetchError::Answer("its head is too long"));
            }
            if !self.more().await? {
                return Err(FetchError::Answer("it ended in its head"));
            }
        }
    }

    async fn body(
        mut self,
        body: Body,
        bytes_max: u64,
        into: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64, FetchError> {
        let most = bytes_max.saturating_add(1);
        let copied = match body {
            Body::Length(length) => self.copy(length.min(most), into).await?,
            Body::UntilClosed => self.copy(most, into).await?,
            Body::Chunked => {
                let mut copied = 0;
                while copied < most {
                    let length = self.chunk_length().await?;
                    if length == 0 {
                        break;
                    }
                    let part = self.copy(length.min(most - copied), into).await?;
                    copied += part;
                    if part < length {
                        break;
                    }
                    self.line().await?;
                }
                copied
            }
        };
        if let Body::Length(length) = body
            && copied < length.min(most)
        {
            return Err(FetchError::Answer("it ended before its length"));
        }
        into.flush().await?;
        Ok(copied)
    }

    /// Copies so many bytes, or what there is until the end.
    async fn copy(
        &mut self,
        mut left: u64,
        into: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64, FetchError> {
        let mut copied = 0;
        while left > 0 {
            if self.buffer.is_empty() && !self.more().await? {
                break;
            }
            let len = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            into.write_all(&self.buffer[..len]).await?;
            self.buffer.drain(..len);
            (left, copied) = (left - len as u64, copied + len as u64);
        }
        Ok(copied)
    }

    async fn line(&mut self) -> Result<String, FetchError> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).map_err(|_| FetchError::Answer("a bad line"));
            }
            if self.buffer.len() > HEAD_BYTES_MAX || !self.more().await? {
                return Err(FetchError::Answer("it ended in a line"));
            }
        }
    }

    async fn chunk_length(&mut self) -> Result<u64, FetchError> {
        let line = self.line().await?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        u64::from_str_radix(digits, 16).map_err(|_| FetchError::Answer("a bad chunk"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body_of(answer: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
        let mut reader = Reader { from: answer.as_bytes(), buffer: Vec::new() };
        let head = reader.head().await?;
        let url = Url::parse("http://h/x")?;
        assert_eq!(head.next(&url)?, None);
        let mut into = Vec::new();
        reader.body(head.body()?, bytes_max, &mut into).await?;
        Ok(into)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn each_way_to_end_a_body_is_read() {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
            "HTTP/1.0 200 OK\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        ] {
            assert_eq!(body_of(answer, 100).await.unwrap(), b"hello", "{answer}");
        }
        let long = "HTTP/1.1 200 OK\r\n\r\nhello";
        assert_eq!(body_of(long, 3).await.unwrap(), b"hell", "one more shows that it is more");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_not_the_file_is_an_error() {
        for answer in [
            "",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "HTTP/1.1 302 Found\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        ] {
            assert!(body_of(answer, 100).await.is_err(), "{answer:?}");
        }
    }

    #[test]
    fn only_plain_urls_are_fetched() {
        let url = Url::parse("http://ci.internal:8080/a?b#c").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("ci.internal", 8080, "/a?b"));
        assert_eq!(Url::parse("http://[::1]").unwrap().port, 80);
        for bad in
            ["https://h/", "http://", "http://h:x/", "http://u@h/", "http://h/a b", "file:/x"]
        {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }
}
