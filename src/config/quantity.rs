//! Durations, sizes, percentages and rates, as people write them: always with a unit.

/// The longest duration that is read: 10 years, so that sums cannot overflow.
const DURATION_MS_MAX: u64 = 10 * 366 * 24 * 60 * 60 * 1000;

/// The largest size that is read: 2^53 bytes, so that JSON readers do not round it.
const SIZE_BYTES_MAX: u64 = 1 << 53;

/// Reads `"250ms"`, `"30s"`, `"1h30m"`, `"14d"` into milliseconds, or says what is wrong.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    const UNITS: &[(&str, u64)] = &[
        ("ms", 1),
        ("s", 1000),
        ("m", 60_000),
        ("h", 3_600_000),
        ("d", 86_400_000),
        ("w", 604_800_000),
    ];
    let example = "write durations with units, such as \"250ms\", \"30s\", \"1h30m\"";
    let mut rest = text;
    let mut total = 0_u64;
    let mut smallest = u64::MAX;
    if text.is_empty() {
        return Err(example.to_owned());
    }
    while !rest.is_empty() {
        let (number, after) = digits(rest).ok_or_else(|| example.to_owned())?;
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let (_, ms) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| match unit {
            "" if after.is_empty() => {
                format!("a number without unit: write \"{text}s\" or \"{text}ms\"")
            }
            "us" | "µs" | "ns" => "the smallest unit is ms".to_owned(),
            _ => format!("units are ms, s, m, h, d and w; {example}"),
        })?;
        if *ms >= smallest {
            return Err("units go from large to small, each once: \"1h30m\"".to_owned());
        }
        smallest = *ms;
        total = number
            .checked_mul(*ms)
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= DURATION_MS_MAX)
            .ok_or("longer than 10 years")?;
        rest = next;
    }
    Ok(total)
}

/// Reads `"512MiB"` or `"10MB"` into bytes, or says what is wrong. `"0"` needs no unit.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const UNITS: &[(&str, u64)] = &[
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
    ];
    if text == "0" {
        return Ok(0);
    }
    let example = "write sizes as KiB, MiB, GiB (1024) or kB, MB, GB (1000), such as \"512MiB\"";
    let (number, unit) = digits(text).ok_or_else(|| example.to_owned())?;
    let digits = &text[..text.len() - unit.len()];
    let bytes = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, bytes)| *bytes);
    let bytes = bytes.ok_or_else(|| match unit {
        "K" | "M" | "G" | "k" | "m" | "g" => {
            let letter = unit.to_ascii_uppercase();
            let decimal = if letter == "K" { "k" } else { letter.as_str() };
            format!(
                "systemd and docker read {unit} as 2^{0}, Kubernetes as 10^{1}: write \
                 \"{digits}{letter}iB\" or \"{digits}{decimal}B\"",
                match letter.as_str() {
                    "K" => 10,
                    "M" => 20,
                    _ => 30,
                },
                match letter.as_str() {
                    "K" => 3,
                    "M" => 6,
                    _ => 9,
                }
            )
        }
        "KB" => format!("write \"{digits}KiB\" (1024) or \"{digits}kB\" (1000)"),
        "" => format!("a number without unit: {example}"),
        _ => example.to_owned(),
    })?;
    number
        .checked_mul(bytes)
        .filter(|bytes| *bytes <= SIZE_BYTES_MAX)
        .ok_or_else(|| "larger than 2^53 bytes".to_owned())
}

/// Reads `"25%"`.
pub(super) fn percent(text: &str) -> Result<u8, String> {
    let (number, unit) = digits(text).unwrap_or((0, ""));
    match (unit, u8::try_from(number)) {
        ("%", Ok(percent @ 0..=100)) => Ok(percent),
        _ => Err("write whole percent from \"0%\" to \"100%\"".to_owned()),
    }
}

/// Reads `"20000/s"` into lines a second.
pub(super) fn rate(text: &str) -> Result<u32, String> {
    let (number, unit) = digits(text).unwrap_or((0, ""));
    match (unit, u32::try_from(number)) {
        ("/s", Ok(rate @ 1..=1_000_000_000)) => Ok(rate),
        _ => Err("write lines a second, such as \"20000/s\"".to_owned()),
    }
}

/// Reads octal digits into a file mode.
pub(super) fn mode(text: &str) -> Result<u16, String> {
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    let mode = u16::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.ok_or_else(|| "write three octal digits, with or without a leading 0: \"0022\"".to_owned())
}

fn digits(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok().map(|number| (number, &text[end..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_duration_has_units_from_large_to_small() {
        assert_eq!(duration("250ms"), Ok(250));
        assert_eq!(duration("1h30m"), Ok(5_400_000));
        assert_eq!(duration("0s"), Ok(0));
        assert_eq!(duration("14d"), Ok(1_209_600_000));
        for text in ["", "30", "s", "1.5s", "-1s", "1m1h", "1s1s", "1h 30m", "5y", "10us", "99999w"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration("30").unwrap_err().contains("\"30s\""));
    }

    #[test]
    fn a_size_says_its_base() {
        assert_eq!(size("16KiB"), Ok(16384));
        assert_eq!(size("10MB"), Ok(10_000_000));
        assert_eq!(size("0"), Ok(0));
        for text in ["", "512", "512M", "1.5GiB", "1TiB", "KiB", "-1KiB", "99999999999GiB", "5 MiB"]
        {
            assert!(size(text).is_err(), "{text}");
        }
        let hint = size("512M").unwrap_err();
        assert!(hint.contains("2^20") && hint.contains("\"512MiB\" or \"512MB\""), "{hint}");
        assert!(size("4k").unwrap_err().contains("\"4KiB\" or \"4kB\""));
    }

    #[test]
    fn shares_rates_and_modes_are_exact() {
        assert_eq!((percent("25%"), rate("20000/s"), mode("0022")), (Ok(25), Ok(20_000), Ok(0o22)));
        for text in ["25", "101%", "%", "", "2.5%"] {
            assert!(percent(text).is_err(), "{text}");
        }
        for text in ["", "0/s", "20000", "1/m"] {
            assert!(rate(text).is_err(), "{text}");
        }
        for text in ["", "22", "0888", "1777", "00022"] {
            assert!(mode(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_quantity_panic(text in "\\PC*|[0-9]{1,30}[a-zA-Z%/]{0,4}") {
            drop((duration(&text), size(&text)));
            drop((percent(&text), rate(&text), mode(&text)));
        }
    }
}
