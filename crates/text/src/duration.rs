//! Durations: in Go's format (`1m30s`, `1.5h`), and as Docker shows them (`2 hours`).

use crate::{Error, Result};

/// Parses a duration and returns it in nanoseconds.
///
/// # Errors
/// Returns an error with the text of Go's `time.ParseDuration`.
pub fn parse(text: &str) -> Result<i64> {
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
    let nanoseconds = crate::number::saturating(total);
    Ok(if negative { -nanoseconds } else { nanoseconds })
}

/// Formats nanoseconds as Go's `time.Duration` does: `1h0m30s`, `1.5ms`.
pub fn format(nanoseconds: i64) -> String {
    const SECOND: u64 = 1_000_000_000;
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let fraction = |value: u64, unit: u64| {
        let digits = unit.to_string().len() - 1;
        let rest = format!("{:0digits$}", value % unit);
        let rest = rest.trim_end_matches('0');
        if rest.is_empty() || digits == 0 {
            (value / unit).to_string()
        } else {
            format!("{}.{rest}", value / unit)
        }
    };
    let text = match total {
        0 => "0s".to_owned(),
        total if total < 1_000 => format!("{total}ns"),
        total if total < 1_000_000 => format!("{}µs", fraction(total, 1_000)),
        total if total < SECOND => format!("{}ms", fraction(total, 1_000_000)),
        total => {
            let (minutes, rest) = (total / SECOND / 60, total % (60 * SECOND));
            let seconds = format!("{}s", fraction(rest, SECOND));
            match minutes {
                0 => seconds,
                1..60 => format!("{minutes}m{seconds}"),
                _ => format!("{}h{}m{seconds}", minutes / 60, minutes % 60),
            }
        }
    };
    format!("{sign}{text}")
}

/// Formats a duration in seconds as `2 hours`, like Docker's `HumanDuration`.
pub fn human(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 14 => format!("{} days", hours / 24),
        () if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
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

    #[test]
    fn formats_durations_like_go() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (30_000_000_000, "30s"),
            (90_500_000_000, "1m30.5s"),
            (3_600_000_000_000, "1h0m0s"),
            (-5_000_000_000, "-5s"),
        ] {
            assert_eq!(format(nanoseconds), text);
        }
    }

    #[test]
    fn formats_durations_like_docker() {
        for (seconds, text) in [
            (-1, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (7300, "2 hours"),
            (200_000, "2 days"),
            (1_500_000, "2 weeks"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }
}
