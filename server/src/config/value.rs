//! Text forms of flag values: Go's booleans, integers and durations, and byte sizes.
//!
//! Source: Go's `strconv.ParseBool`, `strconv.ParseUint` with base 0 and `time.ParseDuration`, which etcd's flags use.

use std::time::Duration;

/// Parses Go's spellings of a boolean.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// Parses an unsigned integer: decimal, or with one of the prefixes 0x, 0o, 0b; `_` may separate digits.
pub(crate) fn parse_u64(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    let (digits, radix) = match digits.get(..2) {
        Some("0x" | "0X") => (&digits[2..], 16),
        Some("0o" | "0O") => (&digits[2..], 8),
        Some("0b" | "0B") => (&digits[2..], 2),
        _ => (&digits[..], 10),
    };
    if digits.starts_with('+') {
        return Err("expected a whole number that is not negative".to_owned());
    }
    u64::from_str_radix(digits, radix)
        .map_err(|_| "expected a whole number that is not negative".to_owned())
}

/// Parses a signed integer, in the forms of [`parse_u64`] with an optional sign.
pub(crate) fn parse_i64(text: &str) -> Result<i64, String> {
    let refused = || "expected a whole number".to_owned();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = i128::from(parse_u64(digits).map_err(|_| refused())?);
    i64::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| refused())
}

/// Parses a Go duration such as `1m30s`, `100ms` or `0`. A negative one is refused.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let refused = || "expected a duration such as 100ms, 5s or 1h30m".to_owned();
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.starts_with('-') {
        return Err("a duration must not be negative".to_owned());
    }
    if rest.is_empty() {
        return Err(refused());
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number_len = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(refused)?;
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let unit_nanos: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(refused()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(refused());
        }
        let whole: u128 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| refused())?
        };
        nanos = whole
            .checked_mul(unit_nanos)
            .and_then(|part| nanos.checked_add(part))
            .ok_or_else(refused)?;
        let mut digit_nanos = unit_nanos;
        for digit in fraction.bytes() {
            if !digit.is_ascii_digit() {
                return Err(refused());
            }
            digit_nanos /= 10;
            let part = u128::from(digit - b'0') * digit_nanos;
            nanos = nanos.checked_add(part).ok_or_else(refused)?;
        }
        rest = tail;
    }
    match u64::try_from(nanos) {
        Ok(nanos) if i64::try_from(nanos).is_ok() => Ok(Duration::from_nanos(nanos)),
        _ => Err("the duration is longer than 292 years".to_owned()),
    }
}

/// Parses a size in bytes: a plain number, or one followed by KiB, MiB or GiB.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let refused = || "expected bytes, or a number with KiB, MiB or GiB".to_owned();
    for (suffix, shift) in [("KiB", 10), ("MiB", 20), ("GiB", 30)] {
        if let Some(number) = text.strip_suffix(suffix) {
            let number = parse_u64(number.trim_end()).map_err(|_| refused())?;
            return number.checked_mul(1 << shift).ok_or_else(refused);
        }
    }
    parse_u64(text).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_go_s() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(parse_bool(text), Ok(true), "{text}");
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(parse_bool(text), Ok(false), "{text}");
        }
        for text in ["", "yes", "on", "tRUE", " true"] {
            assert!(parse_bool(text).is_err(), "{text}");
        }
    }

    #[test]
    fn integers_have_go_s_prefixes() {
        assert_eq!(parse_u64("10_000"), Ok(10_000));
        assert_eq!(parse_u64("0x10"), Ok(16));
        assert_eq!(parse_i64("-1"), Ok(-1));
        assert_eq!(parse_i64("-9223372036854775808"), Ok(i64::MIN));
        for text in ["", "-", "+1", "1.5", "0x", "18446744073709551616", "ä1"] {
            assert!(parse_u64(text).is_err(), "{text}");
        }
        assert!(parse_i64("9223372036854775808").is_err());
    }

    #[test]
    fn durations_are_go_s() {
        let check = |text: &str, nanos: u64| {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_nanos(nanos)),
                "{text}"
            )
        };
        check("0", 0);
        check("0s", 0);
        check("100ms", 100_000_000);
        check("1m0s", 60_000_000_000);
        check("1h30m", 5_400_000_000_000);
        check("1.5s", 1_500_000_000);
        check(".5ms", 500_000);
        check("2h", 7_200_000_000_000);
        check("3µs", 3_000);
        for text in [
            "",
            "5",
            "-1s",
            "1d",
            "s",
            ".s",
            "1s5",
            "99999999h",
            "340282366920938463463374607431768211.999us",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_take_binary_units() {
        assert_eq!(parse_size("134217728"), Ok(128 << 20));
        assert_eq!(parse_size("128MiB"), Ok(128 << 20));
        assert_eq!(parse_size("1 GiB"), Ok(1 << 30));
        for text in ["", "MiB", "1MB", "-1", "99999999999GiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
