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
    let now = jiff::Timestamp::now().as_second();
    format!("{} ago", duration::human(now - seconds))
}

/// Formats an RFC 3339 time as `2 hours ago`.
pub(crate) fn since(time: &str) -> String {
    let parsed = time.parse::<jiff::Timestamp>();
    parsed.map_or_else(|_| time.to_owned(), |time| ago(time.as_second()))
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
