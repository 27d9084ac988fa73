//! Docker's `json-file` format: one JSON object per line.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{LogRecord, Stream};

/// Appends a record to `out`. Invalid UTF-8 becomes U+FFFD, as with Docker.
pub(super) fn encode(record: &LogRecord, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Line<'a> {
        log: std::borrow::Cow<'a, str>,
        stream: &'static str,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        attrs: &'a BTreeMap<String, String>,
        time: String,
    }
    let stream = if record.stream == Stream::Stdout {
        "stdout"
    } else {
        "stderr"
    };
    let line = Line {
        log: String::from_utf8_lossy(&record.data),
        stream,
        attrs: &record.attributes,
        time: timestamp(record.time),
    };
    if serde_json::to_writer(&mut *out, &line).is_ok() {
        out.push(b'\n');
    }
}

/// Decodes one line (without its newline). Returns `None` for an invalid line, so that a line that
/// was cut off by a full disk does not hide those after it.
pub(super) fn decode(line: &[u8]) -> Option<LogRecord> {
    #[derive(Deserialize)]
    struct Line {
        log: String,
        stream: String,
        time: String,
        #[serde(default)]
        attrs: BTreeMap<String, String>,
    }
    let line: Line = serde_json::from_slice(line).ok()?;
    let time = line.time.parse::<jiff::Timestamp>().ok()?;
    let stream = if line.stream == "stderr" {
        Stream::Stderr
    } else {
        Stream::Stdout
    };
    Some(LogRecord {
        time: i64::try_from(time.as_nanosecond()).ok()?,
        stream,
        data: line.log.into_bytes(),
        attributes: line.attrs,
    })
}

/// Formats nanoseconds since the Unix epoch as RFC 3339 in UTC, without trailing zeros.
fn timestamp(nanoseconds: i64) -> String {
    let time = jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default();
    let mut text = String::with_capacity(30);
    let _ = write!(text, "{time}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_dockers_format() {
        let record = LogRecord {
            time: 1_700_000_000_120_000_000,
            stream: Stream::Stderr,
            data: b"h\"i\xff\n".to_vec(),
            attributes: BTreeMap::new(),
        };
        let mut out = Vec::new();
        encode(&record, &mut out);
        assert_eq!(
            String::from_utf8(out.clone()).unwrap(),
            "{\"log\":\"h\\\"i\u{fffd}\\n\",\"stream\":\"stderr\",\"time\":\"2023-11-14T22:13:20.12Z\"}\n"
        );
        assert_eq!(decode(&out).unwrap().time, record.time);
        assert_eq!(decode(b"{\"log\":\"cut"), None);
    }
}
