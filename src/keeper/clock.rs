//! The two clocks of a fact, and the one by which it is told how long something took.

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::ipc::keeper::Moment;

/// Returns the time since boot, in nanoseconds, sleep included: the clock by which the kernel notes when processes began.
pub(super) fn since_boot_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let unsigned = |number: i64| u64::try_from(number).unwrap_or_default();
    unsigned(time.tv_sec) * 1_000_000_000 + unsigned(time.tv_nsec)
}

/// Returns the present moment.
pub(super) fn now() -> Moment {
    let wall = clock_gettime(ClockId::Realtime);
    let mono = clock_gettime(ClockId::Monotonic);
    let unsigned = |number: i64| u64::try_from(number).unwrap_or_default();
    let nanos = |time: Timespec| unsigned(time.tv_sec) * 1_000_000_000 + unsigned(time.tv_nsec);
    Moment { unix_us: nanos(wall) / 1000, mono_ns: nanos(mono) }
}
