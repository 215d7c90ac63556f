//! Reads the clocks, the boot id and randomness for the core, which has none of them.

use std::fs;
use std::io;

use rustix::time::{ClockId, clock_gettime};

use crate::domain::id::BootId;
use crate::domain::time::{Now, UnixMicros};

/// Reads both clocks.
pub fn now() -> Now {
    let wall = clock_gettime(ClockId::Realtime);
    let boot = clock_gettime(ClockId::Boottime);
    let micros = |secs: i64, nanos: i64| secs.max(0) as u64 * 1_000_000 + nanos as u64 / 1000;
    Now {
        at: UnixMicros(micros(wall.tv_sec, wall.tv_nsec)),
        mono_ns: boot.tv_sec as u64 * 1_000_000_000 + boot.tv_nsec as u64,
    }
}

/// Reads the kernel's boot id.
///
/// # Errors
/// When /proc is not mounted.
pub fn boot_id() -> io::Result<BootId> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    hex.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the boot id is no UUID"))
}

/// Draws 64 random bits.
pub fn entropy() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the kernel has randomness once it runs processes");
    u64::from_le_bytes(bytes)
}
