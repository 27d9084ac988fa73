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

/// Decodes a percent-encoded part of a URL; `+` is not decoded.
///
/// # Errors
/// Returns the first escape that is invalid, or the text if it is not UTF-8 when decoded.
pub fn unescape(text: &str) -> Result<String, &str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = &rest[at..];
        let escape = escape.get(..3).ok_or(escape)?;
        // `from_str_radix` accepts a sign.
        let digits = &escape[1..];
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let byte = u8::from_str_radix(digits, 16).ok().filter(|_| is_hex);
        bytes.push(byte.ok_or(escape)?);
        rest = &rest[at + 3..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).map_err(|_| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_all_but_unreserved_characters() {
        assert_eq!(escape("a-_.~Z9"), "a-_.~Z9");
        assert_eq!(escape("a b/c&ä"), "a%20b%2Fc%26%C3%A4");
    }

    #[test]
    fn unescapes_what_is_escaped() {
        assert_eq!(
            unescape("a%20b%2Fc%26%C3%A4%e2%82%ac+"),
            Ok("a b/c&ä€+".into())
        );
        for (text, escape) in [
            ("a%", "%"),
            ("%4", "%4"),
            ("%zz1", "%zz"),
            ("%+1", "%+1"),
            ("%ff", "%ff"),
            ("%ä", "%ä"),
        ] {
            assert_eq!(unescape(text), Err(escape));
        }
    }
}
