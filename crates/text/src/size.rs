//! Sizes in bytes, with the suffixes of Docker's package `units`.
//!
//! The same suffix means powers of 1000 or of 1024, depending on the place: sizes that users enter are
//! binary ([`parse_binary`]; `64m` of memory is 64 MiB), and sizes of images and files are shown in powers
//! of 1000 ([`decimal`]), sizes of memory in powers of 1024 ([`binary`]).

use crate::{Error, Result};

/// Formats bytes in powers of 1000 with `digits` significant digits, as Docker's
/// `HumanSizeWithPrecision` does: `1.984MB`.
pub fn decimal(bytes: u64, digits: usize) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), UNITS[unit])
}

/// Formats bytes in powers of 1024 with four significant digits, as Docker's `BytesSize`
/// does: `23.54GiB`.
pub fn binary(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{}{}", significant(value, 4), UNITS[unit])
}

/// Parses a size such as `512`, `64m` or `1.5gb` and returns bytes, like Docker's `RAMInBytes`. Suffixes are
/// powers of 1024 with or without `b` or `ib`, in upper or lower case.
///
/// # Errors
/// Returns an error with Docker's text if the text is not a number with one of these suffixes, or if the
/// size is negative or exceeds 63 bits.
pub fn parse_binary(text: &str) -> Result<i64> {
    let invalid = || Error::new(format!("invalid size: '{text}'"));
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
        other => return Err(Error::new(format!("invalid suffix: '{other}'"))),
    };
    let bytes = number * factor as f64;
    if bytes >= i64::MAX as f64 {
        return Err(Error::new(format!("invalid size: '{text}': too large")));
    }
    Ok(crate::number::saturating(bytes))
}

/// Formats a number with at most `digits` significant digits, like Go's `%.Ng` for numbers in this
/// range.
fn significant(value: f64, digits: usize) -> String {
    let before_point = if value < 1.0 {
        1
    } else {
        format!("{:.0}", value.trunc()).len()
    };
    let text = format!("{value:.*}", digits.saturating_sub(before_point));
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_sizes() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1_983_915, "1.984MB"),
            (123_456_789, "123.5MB"),
            (1_500_000_000, "1.5GB"),
        ] {
            assert_eq!(decimal(bytes, 4), text);
        }
        assert_eq!(decimal(1_983_915, 3), "1.98MB");
        assert_eq!(binary(25_276_063_744), "23.54GiB");
        assert_eq!(binary(1023), "1023B");
    }

    #[test]
    fn parses_sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512b", 512),
            ("64m", 64 << 20),
            ("64MB", 64 << 20),
            ("64MiB", 64 << 20),
            ("64 m", 64 << 20),
            ("1.5k", 1536),
            ("2G", 2 << 30),
            ("1t", 1 << 40),
            ("1p", 1 << 50),
        ] {
            assert_eq!(parse_binary(text), Ok(bytes), "{text}");
        }
        for (text, error) in [
            ("10x", "invalid suffix: 'x'"),
            ("10kbb", "invalid suffix: 'kbb'"),
            ("10ki", "invalid suffix: 'ki'"),
            ("abc", "invalid size: 'abc'"),
            ("inf", "invalid size: 'inf'"),
            ("", "invalid size: ''"),
            ("-1", "invalid size: '-1'"),
            (
                "99999999999999999999",
                "invalid size: '99999999999999999999': too large",
            ),
        ] {
            assert_eq!(parse_binary(text), Err(Error::new(error)), "{text}");
        }
    }
}
