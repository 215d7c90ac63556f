//! The address of what a server is asked for.

use std::str::FromStr;

use hyper::Uri;

/// `http://HOST[:PORT]/PATH` or `https://…`, without names of users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    encrypted: bool,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// With its query.
    path: String,
}

/// Says that a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no URL of the form http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH")]
pub struct InvalidAddress(String);

impl Address {
    /// Returns the server's name, or its IP address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Says whether the server has to prove its name.
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// Returns path and query.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the address of something else on the same server.
    ///
    /// # Errors
    /// When the path cannot stand in an address.
    pub fn joined(&self, to: &str) -> Result<Self, InvalidAddress> {
        match to.starts_with('/') && !to.starts_with("//") {
            true => format!("{}{to}", self.server()).parse(),
            false => to.parse(),
        }
    }

    /// Returns `host:port`, as the server wants to hear it.
    pub(super) fn host_and_port(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn server(&self) -> String {
        let scheme = if self.encrypted { "https" } else { "http" };
        format!("{scheme}://{}", self.host_and_port())
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let bad = || {
            let tail = text.rsplit_once('@').map_or(text, |(_, tail)| tail); // No password goes into an error.
            InvalidAddress(super::shown(tail))
        };
        // What is behind a `#` is for browsers.
        let asked = text.split('#').next().unwrap_or_default();
        let uri: Uri = asked.parse().map_err(|_| bad())?;
        let encrypted = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => return Err(bad()),
        };
        let authority = uri.authority().filter(|it| !it.as_str().contains('@')).ok_or_else(bad)?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str().ends_with(':') || has_bad_port(authority.as_str()) => {
                return Err(bad());
            }
            None => {
                if encrypted {
                    443
                } else {
                    80
                }
            }
        };
        let path = uri.path_and_query().map_or("/", |it| it.as_str());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        match host.is_empty() {
            true => Err(bad()),
            false => Ok(Self { encrypted, host, port, path }),
        }
    }
}

/// The parser leaves out a port that is none.
fn has_bad_port(authority: &str) -> bool {
    let behind = authority.rsplit_once(']').map_or(authority, |(_, behind)| behind);
    behind.contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(bool, String, u16, String)> {
        let it: Address = text.parse().ok()?;
        Some((it.encrypted, it.host, it.port, it.path))
    }

    #[test]
    fn an_address_is_taken_apart_and_what_is_none_is_refused() {
        let some = |encrypted, host: &str, port, path: &str| {
            Some((encrypted, host.to_owned(), port, path.to_owned()))
        };
        assert_eq!(parsed("http://ci.lan:8080/a?b#c"), some(false, "ci.lan", 8080, "/a?b"));
        assert_eq!(parsed("https://ci.lan"), some(true, "ci.lan", 443, "/"));
        assert_eq!(parsed("http://[::1]"), some(false, "::1", 80, "/"));
        assert_eq!(parsed("http://h?x=1"), some(false, "h", 80, "/?x=1"));
        for bad in [
            "",
            "h",
            "/x",
            "http://",
            "http:///x",
            "http://h:x/",
            "http://h:/",
            "http://h:99999/",
            "http://u@h/",
            "http://u:p@h/",
            "http://h/a b",
            "http://h/\r\nX: y",
            "file:/x",
            "ftp://h/",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
        let error = "http://bob:hunter2@h/".parse::<Address>().unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn an_answer_may_lead_to_another_place_or_server() {
        let from: Address = "https://[::1]:8443/a?x".parse().unwrap();
        let to = |to: &str| from.joined(to).ok().map(|it| (it.host_and_port(), it.path));
        assert_eq!(to("/b"), Some(("[::1]:8443".to_owned(), "/b".to_owned())));
        assert_eq!(to("http://h/b"), Some(("h:80".to_owned(), "/b".to_owned())));
        for bad in ["", "//h/b", "b", "/a b", "javascript:x"] {
            assert_eq!(to(bad), None, "{bad}");
        }
    }
}
