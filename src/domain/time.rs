//! Points in time and lengths of time, as plain numbers with a unit in the name.

use serde::{Deserialize, Serialize};

/// A wall-clock time in microseconds since the Unix epoch, UTC.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct UnixMicros(pub u64);

impl UnixMicros {
    /// Returns the time in whole milliseconds.
    pub fn millis(self) -> u64 {
        self.0 / 1000
    }

    /// Returns the time `ms` milliseconds later.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// Returns the milliseconds from `earlier` to this time, 0 when the clock went back.
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1000
    }
}

/// The moment at which something is decided: both clocks, read once by the shell.
///
/// `mono_ns` is CLOCK_BOOTTIME and comparable only within one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Now {
    /// Wall clock.
    pub at: UnixMicros,
    /// Boot-time clock in nanoseconds.
    pub mono_ns: u64,
}
