//! Messages of journald's native protocol.
//!
//! ```text
//! NAME=value\n                             a value without a newline
//! NAME\n | length (u64, LE) | value | \n   any value
//! ```

use crate::{Identity, Record};

/// The socket of the host's journal.
pub(crate) const SOCKET: &str = "/run/systemd/journal/socket";

pub(crate) fn encode(identity: &Identity, record: &Record, out: &mut Vec<u8>) {
    let mut field = |name: &str, value: &[u8]| {
        out.extend(name.as_bytes());
        if value.contains(&b'\n') {
            out.push(b'\n');
            out.extend((value.len() as u64).to_le_bytes());
        } else {
            out.push(b'=');
        }
        out.extend(value);
        out.push(b'\n');
    };
    field("PRIORITY", if record.is_error { b"3" } else { b"6" });
    field("MESSAGE", &record.line);
    let short = identity.id.get(..12).unwrap_or(&identity.id);
    field("CONTAINER_ID", short.as_bytes());
    field("CONTAINER_ID_FULL", identity.id.as_bytes());
    field("CONTAINER_NAME", identity.name.as_bytes());
    field("CONTAINER_TAG", identity.tag.as_bytes());
    field("IMAGE_NAME", identity.image_name.as_bytes());
    field("SYSLOG_IDENTIFIER", identity.tag.as_bytes());
    let time = jiff::Timestamp::from_nanosecond(record.time.into()).unwrap_or_default();
    field("SYSLOG_TIMESTAMP", time.to_string().as_bytes());
    for (name, value) in &identity.attributes {
        let name = field_name(name);
        if !name.is_empty() {
            field(&name, value.as_bytes());
        }
    }
    if let Some(part) = &record.part {
        if !part.last {
            field("CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        field("CONTAINER_PARTIAL_ID", part.id.as_bytes());
        field(
            "CONTAINER_PARTIAL_ORDINAL",
            part.ordinal.to_string().as_bytes(),
        );
        field(
            "CONTAINER_PARTIAL_LAST",
            if part.last { b"true" } else { b"false" },
        );
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
