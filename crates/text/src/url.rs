//! Percent-encoding of URLs.

/// Percent-encodes a path segment or query value.
pub fn escape(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_all_but_unreserved_characters() {
        assert_eq!(escape("a-_.~Z9"), "a-_.~Z9");
        assert_eq!(escape("a b/c&ä"), "a%20b%2Fc%26%C3%A4");
    }
}
