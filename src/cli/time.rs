//! The command line's clock, and times as people type them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use crate::domain::time::UnixMicros;

/// Returns the wall-clock time.
pub fn now() -> UnixMicros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMicros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Returns the wall-clock time as the log files of services write it, so that texts compare as times do.
pub fn log_stamp() -> String {
    format!("{:.9}", Timestamp::now())
}

/// Reads `250ms`, `90s`, `5m`, `1h30m`, `2d`. A bare number is nothing: people read it as seconds, programs as
/// milliseconds.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0)?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit());
        let unit = &rest[digits..unit_end.map_or(rest.len(), |at| digits + at)];
        let ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(ms)?))?;
        rest = &rest[digits + unit.len()..];
    }
    (!text.is_empty()).then_some(total)
}

/// Reads a point in time: RFC 3339, or an age such as `10m`.
pub fn instant(text: &str, now: UnixMicros) -> Option<UnixMicros> {
    if let Some(age) = duration(text) {
        let micros = u64::try_from(age.as_micros()).ok()?;
        return Some(UnixMicros(now.0.saturating_sub(micros)));
    }
    let at: Timestamp = text.parse().ok()?;
    u64::try_from(at.as_microsecond()).ok().map(UnixMicros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, ms) in
            [("250ms", 250), ("90s", 90_000), ("1h30m", 5_400_000), ("2d", 172_800_000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "s", "1.5s", "-1s", "10 s", "99999999999999999999s", "1y", "5m3"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_point_in_time_is_absolute_or_an_age() {
        let now = instant("2026-11-22T14:07:40Z", UnixMicros(0)).unwrap();
        assert_eq!(instant("10s", now), Some(UnixMicros(now.0 - 10_000_000)));
        assert_eq!(instant("2026-11-22T15:07:40+01:00", UnixMicros(0)), Some(now));
        assert_eq!(instant("yesterday", now), None);
    }
}
