//! Formats sizes and durations as Docker does, and parses them.

use crate::{Failure, Outcome};

/// Formats bytes in powers of 1000 with `digits` significant digits: `1.984MB`.
pub(crate) fn size(bytes: u64, digits: usize) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), UNITS[unit])
}

/// Formats bytes in powers of 1024 with four significant digits: `23.54GiB`.
pub(crate) fn binary_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{}{}", significant(value, 4), UNITS[unit])
}

/// Truncates a text to `most` characters, the last of which is then `…`.
pub(crate) fn ellipsis(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.to_owned()
    } else {
        text.chars()
            .take(most.saturating_sub(1))
            .collect::<String>()
            + "…"
    }
}

/// Formats a number with at most `digits` significant digits, like Go's `%.Ng` for numbers in this
/// range.
fn significant(value: f64, digits: usize) -> String {
    let before_point = if value < 1.0 {
        1
    } else {
        value.log10().floor() as usize + 1
    };
    let text = format!("{value:.*}", digits.saturating_sub(before_point));
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Parses a size such as `512`, `64m` or `1.5gb`, with suffixes in powers of 1024. Returns bytes.
pub(crate) fn parse_size(text: &str) -> Outcome<i64> {
    let invalid = || Failure::new(format!("invalid size: '{text}'"));
    let lower = text.trim().to_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.trim().parse().map_err(|_| invalid())?;
    if number < 0.0 || !number.is_finite() || digits.is_empty() {
        return Err(invalid());
    }
    let suffix = &lower[digits.len()..];
    let factor = match suffix {
        "" | "b" => 1u64,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        "p" | "pb" | "pib" => 1 << 50,
        other => return Err(Failure::new(format!("invalid suffix: '{other}'"))),
    };
    let bytes = number * factor as f64;
    if bytes >= i64::MAX as f64 {
        return Err(Failure::new(format!("invalid size: '{text}': too large")));
    }
    Ok(bytes as i64)
}

/// Formats a time in seconds since the epoch as `2 hours ago`.
pub(crate) fn ago(seconds: i64) -> String {
    let now = jiff::Timestamp::now().as_second();
    format!("{} ago", span(now - seconds))
}

/// Formats a duration in seconds as `2 hours`.
pub(crate) fn span(seconds: i64) -> String {
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

/// Parses a duration (`1h30m`, `500ms`). Returns nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    i64::try_from(text.parse::<jiff::SignedDuration>().ok()?.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_and_parses_sizes() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1_983_915, "1.984MB"),
            (123_456_789, "123.5MB"),
            (1_500_000_000, "1.5GB"),
        ] {
            assert_eq!(size(bytes, 4), text);
        }
        assert_eq!(size(1_983_915, 3), "1.98MB");
        assert_eq!(
            (
                binary_size(25_276_063_744).as_str(),
                binary_size(1023).as_str()
            ),
            ("23.54GiB", "1023B")
        );
        assert_eq!(parse_size("64m").unwrap(), 64 << 20);
        assert_eq!(parse_size("1.5k").unwrap(), 1536);
        assert_eq!(parse_size("10x").unwrap_err().text, "invalid suffix: 'x'");
        assert_eq!(parse_size("abc").unwrap_err().text, "invalid size: 'abc'");
        assert_eq!(parse_size("-1").unwrap_err().text, "invalid size: '-1'");
        assert_eq!(
            parse_size("99999999999999999999").unwrap_err().text,
            "invalid size: '99999999999999999999': too large"
        );
    }

    #[test]
    fn parses_durations() {
        assert_eq!(parse_duration("1h30m"), Some(5_400_000_000_000));
        assert_eq!(parse_duration("500ms"), Some(500_000_000));
        assert_eq!(parse_duration("5"), None);
    }
}
