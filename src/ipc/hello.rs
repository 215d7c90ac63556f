//! The first frame both ways: who speaks, and which version both understand.

use serde::{Deserialize, Serialize};

/// The version of all protocols between the parts. A part also speaks the one before.
pub const PROTOCOL: u16 = 1;

/// The parts of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The hands: parent of every service.
    Keeper,
    /// The head: decides and remembers.
    Agent,
    /// The voice: speaks NATS.
    Uplink,
}

impl Part {
    /// Returns the name in file names and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Part::Keeper => "keeper",
            Part::Agent => "agent",
            Part::Uplink => "uplink",
        }
    }
}

/// One life of a part: random, chosen at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// Draws a new one from the kernel's randomness.
    pub fn draw() -> Self {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the kernel has randomness once it runs processes");
        Self(u64::from_le_bytes(bytes))
    }
}

/// Opens a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Who speaks.
    pub part: Part,
    /// The highest version it speaks; it also speaks the one before.
    pub protocol: u16,
    /// The build, for people.
    pub build: String,
    /// Which life of the part.
    pub incarnation: Incarnation,
}

/// Says that two parts have no version in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part} speaks protocol {theirs} and this part {ours}: restart the older one", part = .part.name())]
pub struct NoCommonProtocol {
    part: Part,
    theirs: u16,
    ours: u16,
}

impl Hello {
    /// Builds this build's hello.
    pub fn of(part: Part, incarnation: Incarnation) -> Self {
        let build = env!("CARGO_PKG_VERSION").to_owned();
        Self { part, protocol: PROTOCOL, build, incarnation }
    }

    /// Returns the version to speak with the part that sent this hello.
    ///
    /// # Errors
    /// When the two are more than one version apart.
    pub fn agree(&self) -> Result<u16, NoCommonProtocol> {
        match self.protocol.abs_diff(PROTOCOL) {
            0 | 1 => Ok(self.protocol.min(PROTOCOL)),
            _ => Err(NoCommonProtocol { part: self.part, theirs: self.protocol, ours: PROTOCOL }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_one_version_apart_speak_the_lower_and_others_not_at_all() {
        let mut hello = Hello::of(Part::Agent, Incarnation(1));
        assert_eq!(hello.agree(), Ok(PROTOCOL));
        hello.protocol = PROTOCOL + 1;
        assert_eq!(hello.agree(), Ok(PROTOCOL));
        hello.protocol = PROTOCOL + 2;
        assert!(hello.agree().is_err());
    }
}
