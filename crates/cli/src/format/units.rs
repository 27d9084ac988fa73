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

/// Parses a size such as `64m` (see [`size::parse_binary`]).
pub(crate) fn parse_size(text: &str) -> Outcome<i64> {
    size::parse_binary(text).map_err(|error| Failure::new(error.to_string()))
}
