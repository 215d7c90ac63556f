//! Where a setting comes from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A layer of configuration; later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// The program's own defaults.
    BuiltIn,
    /// `/usr/lib/smgr/services.d`, from a package.
    Vendor,
    /// `/etc/smgr/services.d`, or a project's `smgr.toml`.
    Host,
    /// `/etc/smgr/groups.d`.
    Group,
    /// The spec that was deployed with an artifact.
    Release,
    /// An override for a part of the fleet.
    Fleet,
    /// `/etc/smgr/override.d`: this machine's last word.
    Node,
    /// An override with an end.
    Temporary,
}

impl Layer {
    /// Returns its number, 1 to 8, as the documentation counts.
    pub fn number(self) -> u8 {
        self as u8 + 1
    }
}

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Origin {
    /// In which layer.
    pub layer: Layer,
    /// In which file, if it was a file.
    pub file: Option<String>,
    /// In which line of it, from 1.
    pub line: Option<u32>,
    /// In the spec of which release, if it was one.
    pub release: Option<String>,
    /// By which signed event, if it was one.
    pub event: Option<String>,
}

impl Origin {
    /// Returns the origin of what nobody set.
    pub fn built_in() -> Self {
        Self { layer: Layer::BuiltIn, file: None, line: None, release: None, event: None }
    }

    /// Returns the origin of a line in a file.
    pub fn line(layer: Layer, file: String, line: u32) -> Self {
        Self { layer, file: Some(file), line: Some(line), release: None, event: None }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(release) = &self.release {
            write!(f, "release {release}, ")?;
        }
        match (&self.file, self.line, &self.event) {
            (Some(file), Some(line), _) => write!(f, "{file}:{line}"),
            (Some(file), None, _) => f.write_str(file),
            (None, _, Some(event)) => f.write_str(event),
            (None, _, None) => f.write_str("built-in"),
        }
    }
}
