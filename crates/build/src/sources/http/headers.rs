//! Values of headers of HTTP.

use std::time::UNIX_EPOCH;

use whelk_text::url::unescape;

/// Parses a time, in any of HTTP's formats, in seconds since 1970.
pub(super) fn time(text: &str) -> Option<i64> {
    // Some servers call it so, as Go's formatting does.
    let text = match text.strip_suffix(" UTC") {
        Some(time) => format!("{time} GMT"),
        None => text.to_owned(),
    };
    let time = httpdate::parse_http_date(&text).ok()?;
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

/// Returns the file name in the header `Content-Disposition` (RFC 6266). That of `filename*` counts before that of `filename`.
pub(super) fn disposition_name(value: &str) -> Option<String> {
    let (mut plain, mut encoded) = (None, None);
    let (_, mut rest) = value.split_once(';')?;
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = parameter(after);
        match key.trim().to_ascii_lowercase().as_str() {
            "filename" => plain = plain.or(Some(value)),
            "filename*" => encoded = encoded.or_else(|| decoded(&value)),
            _ => {}
        }
        rest = after.split_once(';').map_or("", |(_, rest)| rest);
    }
    encoded.or(plain).filter(|name| !name.is_empty())
}

/// Splits off the value of a parameter: a word, or a text in quotes.
fn parameter(text: &str) -> (String, &str) {
    let text = text.trim_start();
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find(';').unwrap_or(text.len()));
        return (value.trim().to_owned(), rest);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices().peekable();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            // Some servers send paths of Windows without escaping them.
            '\\' => match letters.next_if(|(_, next)| matches!(next, '"' | '\\')) {
                Some((_, escaped)) => value.push(escaped),
                None => value.push('\\'),
            },
            letter => value.push(letter),
        }
    }
    (value, "")
}

/// Decodes `CHARSET'LANGUAGE'TEXT` (RFC 8187).
fn decoded(value: &str) -> Option<String> {
    let mut parts = value.splitn(3, '\'');
    let charset = parts.next()?.to_ascii_lowercase();
    let text = parts.nth(1)?;
    match charset.as_str() {
        "utf-8" | "us-ascii" => unescape(text).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_or_quoted_or_encoded() {
        for (header, expected) in [
            ("attachment; filename=\"x.tar\"", Some("x.tar")),
            ("attachment; FILENAME=x", Some("x")),
            ("attachment;a=b ; filename = x ;c=d", Some("x")),
            (
                "inline; filename=\"a; b=\\\"c\\\".txt\"",
                Some("a; b=\"c\".txt"),
            ),
            ("inline; filename=\"C:\\dir\\x\"", Some("C:\\dir\\x")),
            ("inline; filename=\"open", Some("open")),
            (
                "inline; filename=x; filename*=UTF-8''%e2%82%ac.txt",
                Some("€.txt"),
            ),
            ("inline; filename*=us-ascii'en'a%20b", Some("a b")),
            ("inline; filename=x; filename*=latin1''%e4", Some("x")),
            ("inline; filename*=UTF-8''%zz", None),
            ("inline; filename=\"\"", None),
            ("attachment", None),
            ("attachment; filename", None),
        ] {
            assert_eq!(disposition_name(header).as_deref(), expected, "{header}");
        }
    }

    #[test]
    fn times_have_three_formats() {
        for text in [
            "Thu, 01 Jan 1970 00:01:00 GMT",
            "Thursday, 01-Jan-70 00:01:00 GMT",
            "Thursday, 01-Jan-70 00:01:00 UTC",
            "Thu Jan  1 00:01:00 1970",
        ] {
            assert_eq!(time(text), Some(60), "{text}");
        }
        assert_eq!(time("soon"), None);
    }
}
