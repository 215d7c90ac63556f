//! Times, lengths of time and sizes as people read them.

use jiff::Timestamp;
use jiff::fmt::strtime;

use crate::domain::time::UnixMicros;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Returns an age in two units at most: `45s`, `1m09s`, `2h11m`, `9d04h`. Seconds are rounded, what is above is not.
pub fn age(ms: u64) -> String {
    let seconds = rounded(ms, 1000);
    match seconds {
        0..MINUTE => format!("{seconds}s"),
        MINUTE..HOUR => format!("{}m{:02}s", seconds / MINUTE, seconds % MINUTE),
        HOUR..DAY => format!("{}h{:02}m", seconds / HOUR, seconds % HOUR / MINUTE),
        _ => format!("{}d{:02}h", seconds / DAY, seconds % DAY / HOUR),
    }
}

/// Returns a measured length of time: `3 ms`, `0.31s`, `12.6s`, `1m09s`, `2h11m`, `3d04h52m`.
pub fn span(ms: u64) -> String {
    let (hundredths, tenths, seconds) = (rounded(ms, 10), rounded(ms, 100), rounded(ms, 1000));
    match ms {
        0..10 => format!("{ms} ms"),
        10..1000 => trimmed(&format!("{}.{:02}", hundredths / 100, hundredths % 100)),
        _ if tenths < 600 => trimmed(&format!("{}.{}", tenths / 10, tenths % 10)),
        _ if seconds < DAY => age(ms),
        _ => {
            format!("{}d{:02}h{:02}m", seconds / DAY, seconds % DAY / HOUR, seconds % HOUR / MINUTE)
        }
    }
}

fn rounded(ms: u64, unit: u64) -> u64 {
    ms.saturating_add(unit / 2) / unit
}

fn trimmed(number: &str) -> String {
    format!("{}s", number.trim_end_matches('0').trim_end_matches('.'))
}

/// Returns a size: `640 B`, `3.1 MiB`, `182 MiB`, `1 GiB`. Always rounded down.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = bytes.ilog2() / 10;
    let unit = 1_u64 << (10 * power);
    let (whole, tenth) = (bytes / unit, bytes % unit / unit.div_ceil(10));
    let name = UNITS[power as usize - 1];
    if whole < 10 && tenth > 0 {
        format!("{whole}.{tenth} {name}")
    } else {
        format!("{whole} {name}")
    }
}

/// Returns a number with its noun: `1 restart`, `10 restarts`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Returns `14:07:40Z`.
pub fn clock(at: UnixMicros) -> String {
    written(at, "%H:%M:%SZ")
}

/// Returns `14:07:40.123Z`.
pub fn clock_ms(at: UnixMicros) -> String {
    written(at, "%H:%M:%S.%3fZ")
}

/// Returns `2026-11-22 14:07:40`, for a column whose head says UTC.
pub fn date_time(at: UnixMicros) -> String {
    written(at, "%Y-%m-%d %H:%M:%S")
}

/// Returns `2026-11-22 14:07:40.123Z`.
pub fn date_time_ms(at: UnixMicros) -> String {
    written(at, "%Y-%m-%d %H:%M:%S.%3fZ")
}

/// Returns `14:07:40Z` on the day of `now`, else `2026-11-19 14:07:40Z`.
pub fn moment(at: UnixMicros, now: UnixMicros) -> String {
    let day = |time: UnixMicros| time.millis() / 1000 / DAY;
    if day(at) == day(now) { clock(at) } else { written(at, "%Y-%m-%d %H:%M:%SZ") }
}

fn written(at: UnixMicros, format: &str) -> String {
    // A node can claim any time; one that no calendar holds is shown as the last one that it does.
    let micros = i64::try_from(at.0).unwrap_or(i64::MAX);
    let time = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX);
    strtime::format(format, time).expect("these formats need nothing but a time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units_at_most() {
        let ages = [499, 44_900, 69_000, 3_599_600, 7_879_000, 792_000_000].map(age);
        assert_eq!(ages, ["0s", "45s", "1m09s", "1h00m", "2h11m", "9d04h"]);
    }

    #[test]
    fn spans_keep_two_or_three_digits() {
        let spans = [0, 3, 43, 90, 311, 800, 999, 1_204, 10_000, 12_592].map(span);
        let shown =
            ["0 ms", "3 ms", "0.04s", "0.09s", "0.31s", "0.8s", "1s", "1.2s", "10s", "12.6s"];
        assert_eq!(spans, shown);
        assert_eq!([59_949, 59_950, 69_000].map(span), ["59.9s", "1m00s", "1m09s"]);
        assert_eq!(span(276_720_000), "3d04h52m");
    }

    #[test]
    fn sizes_have_units_of_1024() {
        let sizes = [0, 1023, 65_536, 3_250_586, 190_840_832, 1 << 30, u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "64 KiB", "3.1 MiB", "182 MiB", "1 GiB", "15 EiB"]);
    }

    #[test]
    fn times_are_utc_and_any_number_has_one() {
        let at = UnixMicros(1_795_356_460_123_456);
        assert_eq!(date_time_ms(at), "2026-11-22 14:07:40.123Z");
        assert_eq!(
            (clock(at).as_str(), date_time(at).as_str()),
            ("14:07:40Z", "2026-11-22 14:07:40")
        );
        assert_eq!(moment(at, at.plus_ms(36_000_000)), "2026-11-22 14:07:40Z");
        assert_eq!(date_time_ms(UnixMicros(0)), "1970-01-01 00:00:00.000Z");
        assert_eq!(date_time_ms(UnixMicros(u64::MAX)), "9999-12-30 22:00:00.999Z");
    }
}
