//! One probe: a connection of its own, an answer in time or none.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::domain::health::Answer;
use crate::domain::spec::{Health, Probe, Target};
use crate::head::http::{self, Heard};

/// How much of the rest of an answer is read, in bytes, and for how long: a server that is left in the middle of a small
/// answer takes that for an error.
const REST_BYTES_MAX: u64 = 64 << 10;
const REST_PATIENCE: Duration = Duration::from_secs(1);

/// What is left of an answer.
pub(super) type Rest = Box<dyn AsyncRead + Send + Unpin>;

/// Asks once. The rest of an answer, where there is one, is for [`read_rest`].
pub(super) async fn ask(target: &Target, host: &str, rule: &Health) -> (Answer, Option<Rest>) {
    match timeout(rule.timeout.duration(), connect_and_ask(target, host, &rule.probe)).await {
        Ok(Ok((answer, rest))) => (answer, rest),
        Ok(Err(error)) => (Err(words(&error)), None),
        Err(_elapsed) => (Err(format!("no answer within {}ms", rule.timeout.0)), None),
    }
}

/// Takes what a server still has to say.
pub(super) async fn read_rest(rest: Rest) {
    let mut rest = rest.take(REST_BYTES_MAX);
    let mut nowhere = tokio::io::sink();
    let read = tokio::io::copy(&mut rest, &mut nowhere);
    // Whatever comes of it, the answer is known.
    drop(timeout(REST_PATIENCE, read).await);
}

async fn connect_and_ask(
    target: &Target,
    host: &str,
    probe: &Probe,
) -> io::Result<(Answer, Option<Rest>)> {
    match target {
        Target::Tcp(addresses) => {
            let stream = TcpStream::connect(&addresses[..]).await?;
            speak(stream, host, probe).await
        }
        Target::Unix(path) => speak(UnixStream::connect(path).await?, "localhost", probe).await,
    }
}

async fn speak<S>(mut stream: S, host: &str, probe: &Probe) -> io::Result<(Answer, Option<Rest>)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Probe::Http { path, status_min, status_max, .. } = probe else {
        return Ok((Ok(()), None));
    };
    let answer = match http::ask(&mut stream, host, path).await? {
        Heard::Status(status) if (*status_min..=*status_max).contains(&status) => Ok(()),
        Heard::Status(status) => Err(format!("status {status}")),
        Heard::Nothing => Err("the connection was closed without an answer".to_owned()),
        Heard::NotHttp => Err("the answer is not HTTP".to_owned()),
    };
    Ok((answer, Some(Box::new(stream))))
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::NotFound => "no such socket".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::domain::spec::{Millis, OnFailure};
    use crate::domain::template::Template;

    fn rule(probe: Probe) -> Health {
        Health {
            probe,
            interval: Millis(1000),
            min_interval: Millis(100),
            timeout: Millis(300),
            failures: 1,
            successes: 1,
            on_failure: OnFailure::Unready,
        }
    }

    fn http(address: &str) -> Health {
        let address = Template::new(address);
        let path = "/readyz".to_owned();
        rule(Probe::Http { address, path, status_min: 200, status_max: 299 })
    }

    /// Answers one connection with `text`, and returns what was asked.
    async fn asked_of(text: &'static [u8]) -> (Answer, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            stream.write_all(text).await.unwrap();
            String::from_utf8(request[..read].to_vec()).unwrap()
        });
        let rule = http(path.to_str().unwrap());
        let (answer, rest) = ask(&Target::Unix(path), "ignored", &rule).await;
        if let Some(rest) = rest {
            read_rest(rest).await;
        }
        (answer, server.await.unwrap())
    }

    #[tokio::test]
    async fn an_answer_is_good_when_its_status_is_in_the_range() {
        let (answer, request) = asked_of(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(answer, Ok(()));
        assert!(request.starts_with("GET /readyz HTTP/1.1\r\nHost: localhost\r\n"), "{request}");
        assert_eq!(asked_of(b"HTTP/1.0 200 OK\r\n\r\nfine").await.0, Ok(()));
        let found = asked_of(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await.0;
        assert_eq!(found, Err("status 503".to_owned()));
    }

    #[tokio::test]
    async fn whatever_a_server_says_is_an_answer_and_a_bad_one_unless_it_is_http() {
        for text in ["SSH-2.0-x\r\n", "HTTP/1.1 2000\r\n", "HTTP/1.1 \r\n", "HTTP/1.1 2é\r\n"] {
            let found = asked_of(text.as_bytes()).await.0;
            assert_eq!(found, Err("the answer is not HTTP".to_owned()), "{text}");
        }
        assert_eq!(asked_of(&[b'x'; 4096]).await.0, Err("the answer is not HTTP".to_owned()));
        let closed = Err("the connection was closed without an answer".to_owned());
        assert_eq!(asked_of(b"").await.0, closed);
    }

    #[tokio::test]
    async fn who_accepts_and_says_nothing_has_not_answered_in_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Target::Tcp(vec![address]);
        let rule = http(&address.to_string());
        let (answer, _) = ask(&target, "x", &rule).await;
        assert_eq!(answer, Err("no answer within 300ms".to_owned()));
        // For a check of the connection alone that is enough.
        let tcp = self::rule(Probe::Tcp { address: Template::new(address.to_string()) });
        assert_eq!(ask(&target, "x", &tcp).await.0, Ok(()));
        drop(listener);
        assert_eq!(ask(&target, "x", &tcp).await.0, Err("connection refused".to_owned()));
    }
}
