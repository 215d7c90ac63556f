//! The first frame both ways: who speaks, and which version both understand.

use serde::{Deserialize, Serialize};

use super::keeper::Exit;

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

/// How the life of a part before this one ended, as its parent saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// How.
    pub exit: Exit,
    /// When, in microseconds of Unix time.
    pub unix_us: u64,
}

impl Before {
    /// The variable in which a parent tells it to the next life of the part.
    pub const VARIABLE: &str = "SMGR_BEFORE";

    /// Describes an end in this moment; `None` when it was in good order, or nobody saw how it was.
    pub fn now(exit: Exit) -> Option<Self> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let micros = now.tv_sec.max(0) as u64 * 1_000_000 + now.tv_nsec as u64 / 1000;
        let is_news = !matches!(exit, Exit::Code(0) | Exit::Unknown);
        is_news.then_some(Self { exit, unix_us: micros })
    }

    /// Returns what the parent of this process told.
    pub fn told() -> Option<Self> {
        Self::parse(&std::env::var(Self::VARIABLE).ok()?)
    }

    /// Returns the value of the variable: `signal 9 1795356145310000`.
    pub fn text(self) -> String {
        let (how, number) = match self.exit {
            Exit::Code(code) => ("code", code),
            Exit::Signal { signal, core: false } => ("signal", signal),
            Exit::Signal { signal, core: true } => ("core", signal),
            Exit::Unknown => ("unknown", 0),
        };
        format!("{how} {number} {}", self.unix_us)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (how, number) = (words.next()?, words.next()?.parse().ok()?);
        let exit = match how {
            "code" => Exit::Code(number),
            "signal" => Exit::Signal { signal: number, core: false },
            "core" => Exit::Signal { signal: number, core: true },
            _ => return None,
        };
        Some(Self { exit, unix_us: words.next()?.parse().ok()? })
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
    /// How its life before ended, when it did not end in good order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
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
        Self { part, protocol: PROTOCOL, build, incarnation, before: Before::told() }
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
    fn how_a_life_ended_reads_what_it_writes_and_nothing_else() {
        for exit in [
            Exit::Code(101),
            Exit::Signal { signal: 9, core: false },
            Exit::Signal { signal: 11, core: true },
        ] {
            let before = Before { exit, unix_us: 1_795_356_145_310_000 };
            assert_eq!(Before::parse(&before.text()), Some(before));
        }
        for text in ["", "signal", "signal 9", "signal 9 x", "sideways 9 1"] {
            assert_eq!(Before::parse(text), None, "{text}");
        }
        assert_eq!(Before::now(Exit::Code(0)), None);
        assert_eq!(Before::now(Exit::Unknown), None);
    }

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
