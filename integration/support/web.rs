//! A web server of one's own, plain or encrypted.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Returns the file of one of the certificates for tests.
pub(crate) fn certificate(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/integration/support/tls")).join(name)
}

/// Serves each GET as `answer` says of its path, until the test ends; returns `http://` or `https://` and the place.
pub(crate) fn serve(
    encrypted: bool,
    answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = listener.local_addr().unwrap();
    let config = encrypted.then(|| Arc::new(config()));
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, config, answer) = (stream.unwrap(), config.clone(), answer.clone());
            // One who breaks off is none of the server's business.
            thread::spawn(move || match config {
                None => drop(one(&mut stream, &*answer)),
                Some(config) => {
                    let connection = ServerConnection::new(config).unwrap();
                    drop(one(&mut StreamOwned::new(connection, stream), &*answer));
                }
            });
        }
    });
    format!("{}://{place}", if encrypted { "https" } else { "http" })
}

fn config() -> ServerConfig {
    let chain = CertificateDer::pem_file_iter(certificate("server.pem")).unwrap();
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(certificate("server.key")).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap()
}

fn one(
    stream: &mut (impl Read + Write),
    answer: &(impl Fn(&str) -> Vec<u8> + ?Sized),
) -> std::io::Result<()> {
    let (mut asked, mut some) = (Vec::new(), [0; 1024]);
    while !asked.ends_with(b"\r\n\r\n") {
        match stream.read(&mut some)? {
            0 => return Ok(()),
            len => asked.extend(&some[..len]),
        }
    }
    let asked = String::from_utf8_lossy(&asked).into_owned();
    let body = answer(asked.split(' ').nth(1).unwrap_or_default());
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(&body)?;
    stream.flush()
}
