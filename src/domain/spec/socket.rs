//! Sockets that are open before a service starts and stay open while it is started again.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::template::Template;

/// How many sockets a service may have.
pub const SOCKETS_MAX: usize = 32;

/// The longest path of a unix socket, in bytes: what the kernel's `sockaddr_un` has room for.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// A socket that the keeper holds and each run gets as a descriptor, from 3 on in the order of the names.
///
/// Whoever connects while no run is there waits in the queue of the socket and is served by the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Socket {
    /// Where it listens: `tcp:ADDRESS:PORT`, `udp:ADDRESS:PORT` or `unix:PATH`.
    pub listen: Template,
    /// How many connections may wait.
    pub backlog: u32,
    /// Whether each instance has one of its own; else all instances of the service share it.
    pub per_instance: bool,
    /// The file mode of a unix socket.
    pub mode: u16,
}

/// An address to listen at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Address {
    /// A stream of the internet; `[::]` takes IPv4 as well.
    Tcp(SocketAddr),
    /// Datagrams of the internet.
    Udp(SocketAddr),
    /// A stream of this machine, by an absolute path.
    Unix(String),
}

/// Says why a text is no address to listen at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// It begins with no kind that is known.
    #[error("begins with none of tcp:, udp: and unix:")]
    Kind,
    /// No address and port.
    #[error("is no ADDRESS:PORT with an IP address, such as 127.0.0.1:8080 or [::]:8080")]
    Internet,
    /// No path, or too long a one.
    #[error("is no absolute path of at most {UNIX_PATH_BYTES_MAX} bytes")]
    Path,
}

impl Address {
    /// Says whether nothing can listen here once something listens there.
    pub fn excludes(&self, other: &Self) -> bool {
        let overlap = |a: &SocketAddr, b: &SocketAddr| {
            // `[::]` takes IPv4 as well.
            let holds = |all: &SocketAddr, one: &SocketAddr| {
                all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4())
            };
            // Port 0 is another one each time.
            a.port() == b.port()
                && a.port() != 0
                && (a.ip() == b.ip() || holds(a, b) || holds(b, a))
        };
        match (self, other) {
            (Self::Tcp(a), Self::Tcp(b)) | (Self::Udp(a), Self::Udp(b)) => overlap(a, b),
            (Self::Unix(a), Self::Unix(b)) => a == b,
            _ => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => write!(f, "tcp:{at}"),
            Self::Udp(at) => write!(f, "udp:{at}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let (kind, rest) = text.split_once(':').ok_or(InvalidAddress::Kind)?;
        let internet = || rest.parse().map_err(|_| InvalidAddress::Internet);
        match kind {
            "tcp" => Ok(Self::Tcp(internet()?)),
            "udp" => Ok(Self::Udp(internet()?)),
            "unix" if rest.starts_with('/') && rest.len() <= UNIX_PATH_BYTES_MAX => {
                Ok(Self::Unix(rest.to_owned()))
            }
            "unix" => Err(InvalidAddress::Path),
            _ => Err(InvalidAddress::Kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_kind_and_no_name_that_may_change_its_meaning() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("tcp:[::]:80"), Ok(Address::Tcp("[::]:80".parse().unwrap())));
        assert_eq!(parse("udp:127.0.0.1:53"), Ok(Address::Udp("127.0.0.1:53".parse().unwrap())));
        assert_eq!(parse("unix:/run/a.sock"), Ok(Address::Unix("/run/a.sock".to_owned())));
        assert_eq!(parse("tcp:localhost:80"), Err(InvalidAddress::Internet));
        assert_eq!(parse("tcp::80"), Err(InvalidAddress::Internet));
        assert_eq!(parse("unix:a.sock"), Err(InvalidAddress::Path));
        assert_eq!(parse(&format!("unix:/{}", "a".repeat(107))), Err(InvalidAddress::Path));
        assert_eq!(parse("8080"), Err(InvalidAddress::Kind));
        assert_eq!(parse("http:8080"), Err(InvalidAddress::Kind));
    }

    #[test]
    fn a_port_on_all_addresses_leaves_none_for_others() {
        let excludes = |a: &str, b: &str| {
            let (a, b) = (a.parse::<Address>().unwrap(), b.parse::<Address>().unwrap());
            assert_eq!(a.excludes(&b), b.excludes(&a), "{a} {b}");
            a.excludes(&b)
        };
        assert!(excludes("tcp:127.0.0.1:80", "tcp:127.0.0.1:80"));
        assert!(excludes("tcp:[::]:80", "tcp:127.0.0.1:80"));
        assert!(excludes("tcp:[::]:80", "tcp:0.0.0.0:80"));
        assert!(excludes("udp:0.0.0.0:53", "udp:127.0.0.1:53"));
        assert!(excludes("unix:/a", "unix:/a"));
        assert!(!excludes("tcp:0.0.0.0:80", "tcp:[::1]:80"));
        assert!(!excludes("tcp:127.0.0.1:80", "tcp:127.0.0.2:80"));
        assert!(!excludes("tcp:127.0.0.1:53", "udp:127.0.0.1:53"));
        assert!(!excludes("tcp:127.0.0.1:0", "tcp:127.0.0.1:0"));
        assert!(!excludes("unix:/a", "unix:/b"));
    }
}
