//! Durations in Go's format: `1m30s`, `1.5h`.

use crate::{Error, Result};

/// Parses a duration and returns it in nanoseconds.
///
/// # Errors
/// Returns an error with the text of Go's `time.ParseDuration`.
pub(crate) fn parse(text: &str) -> Result<i64> {
    let invalid = || Error::new(format!("time: invalid duration {text:?}"));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let number = rest
            .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
            .unwrap_or(rest.len());
        let value: f64 = rest[..number].parse().map_err(|_| invalid())?;
        rest = &rest[number..];
        let end = rest
            .find(|letter: char| letter.is_ascii_digit() || letter == '.')
            .unwrap_or(rest.len());
        let scale = match &rest[..end] {
            "" => {
                return Err(Error::new(format!(
                    "time: missing unit in duration {text:?}"
                )));
            }
            "ns" => 1f64,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            unit => {
                return Err(Error::new(format!(
                    "time: unknown unit {unit:?} in duration {text:?}"
                )));
            }
        };
        total += value * scale;
        rest = &rest[end..];
    }
    // Durations are limited to 2^63 nanoseconds (292 years).
    const LIMIT: f64 = 9_223_372_036_854_775_807f64;
    if total >= LIMIT {
        return Err(invalid());
    }
    let nanoseconds = total as i64;
    Ok(if negative { -nanoseconds } else { nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_durations_like_go() {
        for (text, expected) in [
            ("0", 0),
            ("5s", 5_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("-2ms", -2_000_000),
            ("3us", 3_000),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("", "time: invalid duration \"\""),
            ("x", "time: invalid duration \"x\""),
            ("5", "time: missing unit in duration \"5\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            ("1.2.3s", "time: invalid duration \"1.2.3s\""),
            ("9999999999h", "time: invalid duration \"9999999999h\""),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected);
        }
    }
}
