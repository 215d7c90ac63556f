//! What one needs to know to reach a bus.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::rustls::RootCertStore;
use async_nats::rustls::pki_types::CertificateDer;
use async_nats::rustls::pki_types::pem::PemObject as _;
use async_nats::{ConnectOptions, ServerAddr};

use crate::wire::subject::InboxPrefix;

/// How often a quiet connection is probed. Death is noticed after at most three of these; a closed socket is noticed
/// at once. Short would be paid with wakeups on every idle node.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How many messages wait to be written. Beyond it publishers wait.
const OUTGOING_MAX: usize = 128;

/// How many messages wait for each subscriber unless told otherwise. Beyond it the newest are dropped and counted.
const INCOMING_MAX: usize = 1024;

/// Where a bus is, who we are on it, and how it proves who it is.
#[derive(Clone, Debug)]
pub struct BusOptions {
    /// `nats://HOST:PORT` or `tls://HOST:PORT`; all of one kind.
    pub urls: Vec<String>,
    /// Who we are. Never the key that signs envelopes: the server chooses what this one signs.
    pub credentials: Credentials,
    /// The files for `tls://`.
    pub tls: TlsFiles,
    /// Where we are answered.
    pub inbox: InboxPrefix,
    /// What the server's own lists show.
    pub name: String,
    /// How many messages may wait for each subscriber; the newest beyond it are dropped and counted.
    pub incoming_max: usize,
}

/// Proves to the server who we are.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing is shown; for a server of one's own on the loopback.
    #[default]
    Anonymous,
    /// An NKey seed (`SU...`).
    NkeySeed(String),
    /// The text of a `.creds` file: a user JWT and its seed.
    Creds(String),
}

/// The certificates for `tls://`, all as PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The only authorities that are trusted; `None` means those of the system.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Says why options cannot work, whatever the network does.
#[derive(Debug, thiserror::Error)]
pub enum InvalidOptions {
    /// There is no server to connect to.
    #[error("no url of a bus is given")]
    NoUrls,
    /// A url is neither `nats://` nor `tls://`.
    #[error("`{url}` is not the url of a bus: nats://HOST:PORT or tls://HOST:PORT")]
    Url { url: String },
    /// One server would be asked for its certificate and another not.
    #[error("the urls of the bus mix nats:// and tls://")]
    Mixed,
    /// The text is not that of a `.creds` file.
    #[error("the credentials for the bus cannot be read")]
    Credentials { source: std::io::Error },
}

/// Says why a file with credentials could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("failed to read the bus credentials at `{path}`")]
pub struct ReadCredentialsError {
    path: PathBuf,
    source: std::io::Error,
}

impl BusOptions {
    /// Returns options for `urls` with everything else as usual.
    pub fn new(urls: Vec<String>, inbox: InboxPrefix, name: impl Into<String>) -> Self {
        Self {
            urls,
            credentials: Credentials::Anonymous,
            tls: TlsFiles::default(),
            inbox,
            name: name.into(),
            incoming_max: INCOMING_MAX,
        }
    }

    /// Says whether the connection is encrypted and the server has to prove its name.
    ///
    /// # Errors
    /// Fails when there is no url, when one is of an unknown kind, and when they mix kinds.
    pub fn encrypted(&self) -> Result<bool, InvalidOptions> {
        let is_plain = |url: &str| !url.contains(|it: char| it.is_whitespace() || it.is_control());
        let mut encrypted = self.urls.iter().map(|url| match url.split_once("://") {
            Some(("tls", rest)) if is_plain(rest) => Ok(true),
            Some(("nats", rest)) if is_plain(rest) => Ok(false),
            Some(_) | None => Err(InvalidOptions::Url { url: shown(url) }),
        });
        let first = encrypted.next().ok_or(InvalidOptions::NoUrls)??;
        encrypted.try_for_each(|next| match next? == first {
            true => Ok(()),
            false => Err(InvalidOptions::Mixed),
        })?;
        Ok(first)
    }

    /// Names what is tried, for people: the servers, and who has to vouch for them.
    pub(super) fn tried(&self) -> String {
        let urls = self.urls.join(", ");
        match &self.tls.ca {
            Some(ca) if self.encrypted().unwrap_or_default() => {
                format!("{urls}, for which {} has to vouch", ca.display())
            }
            Some(_) | None => urls,
        }
    }

    /// Returns what the client library needs, without the callbacks.
    pub(super) fn connect_options(&self) -> Result<ConnectOptions, InvalidOptions> {
        let mut options = ConnectOptions::new()
            .name(&self.name)
            .custom_inbox_prefix(&self.inbox)
            .ping_interval(PING_INTERVAL)
            .connection_timeout(CONNECT_TIMEOUT)
            .client_capacity(OUTGOING_MAX)
            .subscription_capacity(self.incoming_max)
            .max_reconnects(None)
            // A server may name others to go to; we go where we were told.
            .ignore_discovered_servers();
        if self.encrypted()? {
            // The handshake comes before the first word of the server, so that nobody between can talk us out of it.
            options = options.require_tls(true).tls_first();
            if let Some(ca) = &self.tls.ca {
                options = options.add_root_certificates(ca.clone());
            }
            if let Some((certificate, key)) = &self.tls.client {
                options = options.add_client_certificate(certificate.clone(), key.clone());
            }
        }
        match &self.credentials {
            Credentials::Anonymous => Ok(options),
            Credentials::NkeySeed(seed) => Ok(options.nkey(seed.clone())),
            Credentials::Creds(text) => {
                options.credentials(text).map_err(|source| InvalidOptions::Credentials { source })
            }
        }
    }
}

impl Credentials {
    /// Reads an NKey seed or a `.creds` file; which of the two is seen from its text.
    ///
    /// # Errors
    /// Fails when the file cannot be read.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self, ReadCredentialsError> {
        let path = path.into();
        match std::fs::read_to_string(&path) {
            Ok(text) if text.contains("-----BEGIN") => Ok(Self::Creds(text)),
            Ok(text) => Ok(Self::NkeySeed(text.trim().to_owned())),
            Err(source) => Err(ReadCredentialsError { path, source }),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::NkeySeed(_) => "NkeySeed([redacted])",
            Self::Creds(_) => "Creds([redacted])",
        })
    }
}

/// Returns the host that the url of a bus names.
pub fn host_of(url: &str) -> Option<String> {
    let address: ServerAddr = url.parse().ok()?;
    Some(address.host().to_owned()).filter(|host| !host.is_empty())
}

/// Says whether a text holds certificates of authorities in PEM, and no other.
pub fn vouches(pem: &str) -> bool {
    let mut roots = RootCertStore::empty();
    let mut certificates = CertificateDer::pem_slice_iter(pem.as_bytes());
    certificates.all(|it| it.is_ok_and(|it| roots.add(it).is_ok())) && !roots.is_empty()
}

/// Cuts what might be a password out of a url that goes into an error.
fn shown(url: &str) -> String {
    let tail = url.rsplit_once('@').map_or(url, |(_, tail)| tail);
    tail.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(urls: &[&str]) -> BusOptions {
        let urls = urls.iter().map(|url| (*url).to_owned()).collect();
        BusOptions::new(urls, InboxPrefix("alice".parse().unwrap()), "test")
    }

    #[test]
    fn urls_are_of_one_known_kind() {
        assert!(options(&["tls://a:4222", "tls://b:4222"]).encrypted().unwrap());
        assert!(!options(&["nats://127.0.0.1:4222"]).encrypted().unwrap());
        assert!(matches!(options(&[]).encrypted(), Err(InvalidOptions::NoUrls)));
        assert!(matches!(
            options(&["tls://a", "nats://b"]).encrypted(),
            Err(InvalidOptions::Mixed)
        ));
        for url in ["a:4222", "http://a", "ws://a", "TLS://a"] {
            assert!(
                matches!(options(&[url]).encrypted(), Err(InvalidOptions::Url { .. })),
                "{url}"
            );
        }
    }

    #[test]
    fn the_host_of_a_url_is_what_a_certificate_has_to_name() {
        for (url, host) in [
            ("tls://bus.example.com:4222", Some("bus.example.com")),
            ("tls://10.0.0.1:4222", Some("10.0.0.1")),
            ("tls://[fd00::1]:4222", Some("fd00::1")),
            ("tls://bus", Some("bus")),
            ("tls://", None),
            ("tls://:4222", None),
        ] {
            assert_eq!(host_of(url).as_deref(), host, "{url}");
        }
    }

    #[test]
    fn only_whole_certificates_vouch() {
        let pem = include_str!("../../integration/support/tls/authority.pem");
        assert!(vouches(pem) && vouches(&format!("{pem}{pem}")));
        for damaged in ["", "x", &pem[..pem.len() / 2], &pem.replacen("MII", "MMM", 1)] {
            assert!(!vouches(damaged), "{damaged}");
        }
        assert!(!vouches(include_str!("../../integration/support/tls/server.key")));
    }

    #[test]
    fn no_secret_is_shown_by_a_debug_print_or_an_error() {
        let seed = "SUANQDPB2RUOE4ETUA26CNX7FUKE5ZZKFCQIIW63OX225F2CO7UEXTM7ZY";
        let mut options = options(&["http://bob:hunter2@host"]);
        options.credentials = Credentials::NkeySeed(seed.to_owned());
        assert!(!format!("{:?}", options.credentials).contains(seed));
        let error = options.encrypted().unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
