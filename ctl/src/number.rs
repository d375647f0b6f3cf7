//! Numbers, durations and sizes as Go programs read and write them.
//!
//! Scripts pass `--command-timeout=1m30s` and read `took = 1.85ms` and `2.1 GB`; error texts are those
//! of Go's `strconv` and `time`, which etcdctl shows.

use std::time::Duration;

/// Reads a decimal or hexadecimal (`radix` 16) number.
pub(crate) fn parse_int(text: &str, radix: u32) -> Result<i64, String> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    i64::from_str_radix(text, radix).map_err(|e| match e.kind() {
        PosOverflow | NegOverflow => {
            format!("strconv.ParseInt: parsing {text:?}: value out of range")
        }
        _ => format!("strconv.ParseInt: parsing {text:?}: invalid syntax"),
    })
}

/// Reads the id of a member: an unsigned hexadecimal number.
pub(crate) fn parse_id(text: &str) -> Result<u64, String> {
    let error = |why| format!("strconv.ParseUint: parsing {text:?}: {why}");
    if text.starts_with('+') {
        return Err(error("invalid syntax"));
    }
    u64::from_str_radix(text, 16).map_err(|e| match e.kind() {
        std::num::IntErrorKind::PosOverflow => error("value out of range"),
        _ => error("invalid syntax"),
    })
}

/// Reads the number of a flag: decimal, or with the prefix `0x`, `0o`, `0b` or `0`.
pub(crate) fn parse_flag_int(text: &str) -> Result<i64, String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    if digits.starts_with(['+', '-']) {
        return Err(format!(
            "strconv.ParseInt: parsing {text:?}: invalid syntax"
        ));
    }
    parse_int(&format!("{sign}{digits}"), radix).map_err(|e| match e.rsplit_once(": ") {
        Some((_, why)) => format!("strconv.ParseInt: parsing {text:?}: {why}"),
        None => e,
    })
}

/// Reads a boolean flag.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!(
            "strconv.ParseBool: parsing {text:?}: invalid syntax"
        )),
    }
}

/// Reads a duration such as `300ms` or `1h2m1.5s`. Negative ones are refused: no timeout can be negative.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let value: f64 = rest[..end].parse().map_err(|_| invalid())?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            unknown => {
                return Err(format!(
                    "time: unknown unit {unknown:?} in duration {text:?}"
                ));
            }
        };
        nanos += value * unit;
        rest = &rest[end..];
    }
    if nanos > i64::MAX as f64 {
        return Err(invalid());
    }
    Ok(Duration::from_nanos(nanos as u64))
}

/// Writes a duration in Go's way: the largest unit that keeps a whole part, without trailing zeros.
pub(crate) fn duration(value: Duration) -> String {
    let nanos = value.as_nanos();
    let fraction = |nanos: u128, unit: u128, width: usize| {
        let (whole, part) = (nanos / unit, nanos % unit);
        let digits = format!("{part:0width$}");
        let digits = digits.trim_end_matches('0');
        if digits.is_empty() {
            whole.to_string()
        } else {
            format!("{whole}.{digits}")
        }
    };
    const SECOND: u128 = 1_000_000_000;
    match nanos {
        0 => "0s".to_owned(),
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => format!("{}µs", fraction(n, 1_000, 3)),
        n if n < SECOND => format!("{}ms", fraction(n, 1_000_000, 6)),
        n => {
            let (hours, minutes) = (n / SECOND / 3600, n / SECOND / 60 % 60);
            let seconds = fraction(n % (60 * SECOND), SECOND, 9);
            match (hours, minutes) {
                (0, 0) => format!("{seconds}s"),
                (0, _) => format!("{minutes}m{seconds}s"),
                _ => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// Writes a number of bytes with a decimal unit and two digits: `9 B`, `25 kB`, `2.1 GB`.
pub(crate) fn bytes(value: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if value < 10 {
        return format!("{value} B");
    }
    let exponent = (value as f64).log(1000.0).floor() as usize;
    let scaled = (value as f64 / 1000f64.powi(exponent as i32) * 10.0 + 0.5).floor() / 10.0;
    if scaled < 10.0 {
        format!("{scaled:.1} {}", UNITS[exponent])
    } else {
        format!("{scaled:.0} {}", UNITS[exponent])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fail_with_go_words() {
        assert_eq!(parse_int("ff", 16), Ok(255));
        assert_eq!(parse_id("ced000fda4d05edf"), Ok(0xced0_00fd_a4d0_5edf));
        assert_eq!(
            parse_id("-1").unwrap_err(),
            "strconv.ParseUint: parsing \"-1\": invalid syntax"
        );
        assert_eq!(
            parse_int("zz", 16).unwrap_err(),
            r#"strconv.ParseInt: parsing "zz": invalid syntax"#
        );
        assert_eq!(
            parse_int("99999999999999999999", 10).unwrap_err(),
            r#"strconv.ParseInt: parsing "99999999999999999999": value out of range"#
        );
        for (text, expect) in [
            ("12", 12),
            ("-1", -1),
            ("0x10", 16),
            ("-0x10", -16),
            ("010", 8),
            ("0", 0),
            ("0b11", 3),
        ] {
            assert_eq!(parse_flag_int(text), Ok(expect), "{text}");
        }
        for text in ["", "x", "0x", "--1", "+-1", "1_0"] {
            assert!(parse_flag_int(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        let ms = Duration::from_millis;
        for (text, expect) in [
            ("300ms", ms(300)),
            ("5s", ms(5000)),
            ("1m30s", ms(90_000)),
            ("1.5h", ms(5_400_000)),
            ("0", ms(0)),
            ("10us", Duration::from_micros(10)),
        ] {
            assert_eq!(parse_duration(text), Ok(expect), "{text}");
        }
        assert_eq!(
            parse_duration("5").unwrap_err(),
            r#"time: missing unit in duration "5""#
        );
        assert_eq!(
            parse_duration("5x").unwrap_err(),
            r#"time: unknown unit "x" in duration "5x""#
        );
        assert!(parse_duration("").is_err() && parse_duration("-1s").is_err());
        for (value, expect) in [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(17), "17ns"),
            (Duration::from_nanos(1_500), "1.5µs"),
            (Duration::from_nanos(1_850_118), "1.850118ms"),
            (Duration::from_nanos(1_000_315_780), "1.00031578s"),
            (Duration::from_secs(60), "1m0s"),
            (Duration::from_millis(3_661_500), "1h1m1.5s"),
        ] {
            assert_eq!(duration(value), expect);
        }
    }

    #[test]
    fn sizes_have_two_digits() {
        for (value, expect) in [
            (0, "0 B"),
            (9, "9 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (20_480, "20 kB"),
            (2_147_483_648, "2.1 GB"),
            (9_960_000, "10 MB"),
        ] {
            assert_eq!(bytes(value), expect);
        }
    }
}
