//! Sizes and durations as the commands take and show them.

use whelk_text::{duration, size};

use crate::{Failure, Outcome};

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

/// Formats a time in seconds since the epoch as `2 hours ago`.
pub(crate) fn ago(seconds: i64) -> String {
    ago_exact(seconds, 0)
}

/// Formats a time in seconds and nanoseconds since the epoch as `2 hours ago`. Seconds count when they have passed as a whole, as in Docker's CLI.
pub(crate) fn ago_exact(seconds: i64, nanoseconds: i32) -> String {
    let now = jiff::Timestamp::now().as_nanosecond();
    format!(
        "{} ago",
        duration::human(whole_seconds(seconds, nanoseconds, now))
    )
}

/// Returns the whole seconds from a time to `now`, which is in nanoseconds since the epoch.
fn whole_seconds(seconds: i64, nanoseconds: i32, now: i128) -> i64 {
    let time = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    i64::try_from((now - time) / 1_000_000_000).unwrap_or(i64::MAX)
}

/// Formats an RFC 3339 time as `2 hours ago`.
pub(crate) fn since(time: &str) -> String {
    let parsed = time.parse::<jiff::Timestamp>();
    parsed.map_or_else(
        |_| time.to_owned(),
        |time| ago_exact(time.as_second(), time.subsec_nanosecond()),
    )
}

/// Formats an RFC 3339 time as Go's `time.Time` does, in UTC.
pub(crate) fn utc_time(time: &str) -> String {
    let parsed = time.parse::<jiff::Timestamp>();
    parsed.map_or_else(
        |_| time.to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string(),
    )
}

/// Formats a time in seconds since the epoch as Docker's CLI does, in the local time zone.
pub(crate) fn local_time(seconds: i64) -> String {
    let local = jiff::Timestamp::from_second(seconds)
        .unwrap_or_default()
        .to_zoned(jiff::tz::TimeZone::system());
    local.strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string()
}

/// Returns the first 12 digits of an ID.
pub(crate) fn short_id(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(12).collect()
}

/// Parses a size such as `64m` (see [`size::parse_binary`]).
pub(crate) fn parse_size(text: &str) -> Outcome<i64> {
    size::parse_binary(text).map_err(|error| Failure::new(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_counts_when_it_has_passed() {
        for (seconds, nanoseconds, now, expected) in [
            (4, 900_000_000, 5_100_000_000, 0),
            (4, 900_000_000, 5_900_000_000, 1),
            (4, 0, 5_100_000_000, 1),
            (6, 0, 5_100_000_000, 0),
            (i64::MIN, 0, 0, i64::MAX),
        ] {
            assert_eq!(whole_seconds(seconds, nanoseconds, now), expected);
        }
    }
}
