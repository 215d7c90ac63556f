//! Knows which servers are good enough.

use std::fmt;
use std::str::FromStr;

/// The oldest server that is accepted.
///
/// Older ones let a client step outside its subject permissions in ways that were published (NATS advisories of 2026).
pub const SERVER_VERSION_FLOOR: ServerVersion = ServerVersion { major: 2, minor: 14, patch: 5 };

/// The version of a nats-server; what follows the patch number is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion {
    /// Changes with breaks.
    pub major: u16,
    /// Changes with features.
    pub minor: u16,
    /// Changes with fixes.
    pub patch: u16,
}

/// Says that a text is not `MAJOR.MINOR.PATCH`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a version of a server")]
pub struct InvalidVersion;

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for ServerVersion {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let mut parts = text.trim_start_matches('v').splitn(3, '.');
        let mut next = || {
            let part = parts.next().ok_or(InvalidVersion)?;
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse().map_err(|_| InvalidVersion)
        };
        Ok(Self { major: next()?, minor: next()?, patch: next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_below_the_floor_is_known_by_its_numbers_and_not_by_its_text() {
        let version = |text: &str| text.parse::<ServerVersion>().unwrap();
        assert!(version("2.9.10") < SERVER_VERSION_FLOOR);
        assert!(version("2.14.4") < SERVER_VERSION_FLOOR);
        assert!(version("2.14.5") >= SERVER_VERSION_FLOOR);
        assert!(version("v2.15.1-RC.2") >= SERVER_VERSION_FLOOR);
        assert!(version("10.0.0") >= SERVER_VERSION_FLOOR);
    }

    #[test]
    fn a_server_that_names_no_version_has_none() {
        for text in ["", "2", "2.14", "two.14.5", "2.14.x", "2.99999999.1"] {
            assert!(text.parse::<ServerVersion>().is_err(), "{text:?}");
        }
    }
}
