//! What of a record is kept in memory: the texts in it are those of clients.

use std::collections::BTreeMap;

use crate::cut::beginning;
use crate::pb::control::BuildHistoryRecord;

/// Maximum length of a text in bytes.
const MAX_TEXT: usize = 8 << 10;

/// Maximum size of the texts of a list in bytes.
const MAX_LIST: usize = 64 << 10;

/// Stands for what is left out.
const CUT: &str = "…";

/// Cuts what is too long in a record.
pub(super) fn shorten(record: &mut BuildHistoryRecord) {
    text(&mut record.frontend);
    texts(&mut record.frontend_attrs);
    texts(&mut record.exporter_response);
    let mut room = MAX_LIST;
    record.exporters.retain_mut(|exporter| {
        text(&mut exporter.kind);
        texts(&mut exporter.attrs);
        let sizes = exporter.attrs.iter();
        let size = sizes.map(|(name, value)| name.len() + value.len()).sum();
        take(&mut room, exporter.kind.len().saturating_add(size))
    });
    if let Some(error) = &mut record.error {
        text(&mut error.message);
    }
}

fn text(text: &mut String) {
    if text.len() > MAX_TEXT {
        let end = beginning(text, MAX_TEXT).len();
        text.truncate(end);
        text.push_str(CUT);
    }
}

fn texts(texts: &mut BTreeMap<String, String>) {
    let mut room = MAX_LIST;
    let count = texts.len();
    texts.retain(|name, value| {
        text(value);
        take(&mut room, name.len() + value.len())
    });
    if texts.len() < count {
        texts.insert(CUT.into(), format!("{} more", count - texts.len()));
    }
}

/// Takes `size` of `room`. Returns whether there was enough.
fn take(room: &mut usize, size: usize) -> bool {
    let left = room.checked_sub(size);
    *room = left.unwrap_or(*room);
    left.is_some()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::pb::control::Exporter;

    #[test]
    fn a_record_has_a_limit() {
        let attributes = |count: usize, length: usize| {
            let one = |number: usize| (format!("build-arg:{number:06}"), "é".repeat(length));
            (0..count).map(one).collect::<BTreeMap<_, _>>()
        };
        let exporter = Exporter {
            kind: "image".into(),
            attrs: attributes(1, 100_000),
        };
        let mut record = BuildHistoryRecord {
            frontend: "f".repeat(1 << 20),
            frontend_attrs: attributes(100_000, 10),
            exporters: vec![exporter; 1000],
            exporter_response: attributes(20, 100_000),
            ..BuildHistoryRecord::default()
        };
        shorten(&mut record);
        assert!(record.encoded_len() < 256 << 10, "{}", record.encoded_len());
        let kept = record.frontend_attrs.len() - 1;
        assert!(kept > 1000, "{kept}");
        let rest = format!("{} more", 100_000 - kept);
        assert_eq!(record.frontend_attrs[CUT], rest);
        assert!(record.exporter_response["build-arg:000000"].ends_with("é…"));
        // The same again: nothing changes.
        let whole = BuildHistoryRecord {
            frontend_attrs: attributes(10, 10),
            ..BuildHistoryRecord::default()
        };
        let mut short = whole.clone();
        shorten(&mut short);
        assert_eq!(short, whole);
    }
}
