//! Messages of journald's native protocol.
//!
//! ```text
//! NAME=value\n                             a value without a newline
//! NAME\n | length (u64, LE) | value | \n   any value
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::{Identity, Record};

/// The socket of the host's journal.
pub(crate) const SOCKET: &str = "/run/systemd/journal/socket";

pub(crate) fn encode(identity: &Identity, record: &Record, out: &mut Vec<u8>) {
    let short = identity.id.get(..12).unwrap_or(&identity.id);
    let mut fields: BTreeMap<Cow<'_, str>, Cow<'_, [u8]>> = BTreeMap::new();
    let mut add = |name: &'static str, value: &str| {
        fields.insert(name.into(), value.as_bytes().to_vec().into());
    };
    add("CONTAINER_ID", short);
    add("CONTAINER_ID_FULL", &identity.id);
    add("CONTAINER_NAME", &identity.name);
    add("CONTAINER_TAG", &identity.tag);
    add("IMAGE_NAME", &identity.image_name);
    add("SYSLOG_IDENTIFIER", &identity.tag);
    // As in Docker, labels and variables replace fields of their name, but not those of the line.
    for (name, value) in &identity.attributes {
        let name = field_name(name);
        if !name.is_empty() {
            fields.insert(name.into(), value.as_bytes().into());
        }
    }
    let mut add = |name: &'static str, value: String| {
        fields.insert(name.into(), value.into_bytes().into());
    };
    add(
        "PRIORITY",
        if record.is_error { "3" } else { "6" }.to_owned(),
    );
    let time = jiff::Timestamp::from_nanosecond(record.time.into()).unwrap_or_default();
    add("SYSLOG_TIMESTAMP", time.to_string());
    add("CONTAINER_LOG_EPOCH", identity.epoch.clone());
    add("CONTAINER_LOG_ORDINAL", record.ordinal.to_string());
    if let Some(part) = &record.part {
        if !part.last {
            add("CONTAINER_PARTIAL_MESSAGE", "true".to_owned());
        }
        add("CONTAINER_PARTIAL_ID", part.id.clone());
        add("CONTAINER_PARTIAL_ORDINAL", part.ordinal.to_string());
        add("CONTAINER_PARTIAL_LAST", part.last.to_string());
    }
    fields.insert("MESSAGE".into(), record.line.as_slice().into());
    for (name, value) in &fields {
        out.extend(name.as_bytes());
        if value.contains(&b'\n') {
            out.push(b'\n');
            out.extend((value.len() as u64).to_le_bytes());
        } else {
            out.push(b'=');
        }
        out.extend(&**value);
        out.push(b'\n');
    }
}

/// Returns a name of a field for the name of a label: journald accepts upper-case letters, digits and
/// underscores, and keeps leading underscores for itself.
fn field_name(name: &str) -> String {
    let upper = name.chars().map(|letter| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' => letter.to_ascii_uppercase(),
        _ => '_',
    });
    upper.skip_while(|letter| *letter == '_').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_replace_fields_of_the_container_only() {
        let identity = Identity {
            id: "0123456789abcdef".into(),
            name: "web".into(),
            tag: "0123456789ab".into(),
            epoch: "e1".into(),
            attributes: [
                ("container_name", "label"),
                ("_priority", "0"),
                ("app.kind", "a\nb"),
                ("__", "x"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
            ..Identity::default()
        };
        let record = Record {
            time: 0,
            is_error: false,
            line: b"hello".to_vec(),
            ordinal: 7,
            part: None,
        };
        let mut out = Vec::new();
        encode(&identity, &record, &mut out);
        let text = String::from_utf8(out).unwrap();
        for (field, count) in [
            ("CONTAINER_NAME=label\n", 1),
            ("CONTAINER_NAME=", 1),
            ("PRIORITY=6\n", 1),
            ("PRIORITY=", 1),
            ("MESSAGE=hello\n", 1),
            ("CONTAINER_ID=0123456789ab\n", 1),
            ("CONTAINER_LOG_EPOCH=e1\n", 1),
            ("CONTAINER_LOG_ORDINAL=7\n", 1),
            ("APP_KIND\n\u{3}\0\0\0\0\0\0\0a\nb\n", 1),
        ] {
            assert_eq!(text.matches(field).count(), count, "{field}: {text}");
        }
    }
}
