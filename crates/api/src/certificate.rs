//! Reads the subject and the validity of an X.509 certificate (RFC 5280, section 4.1): `rustls`
//! verifies certificates, but does not show their content.
//!
//! ```text
//! Certificate    ::= SEQUENCE { tbsCertificate, … }
//! tbsCertificate ::= SEQUENCE { [0] version OPTIONAL, serial, signature, issuer, validity, subject, … }
//! validity       ::= SEQUENCE { notBefore, notAfter }
//! subject        ::= SEQUENCE OF SET OF SEQUENCE { type OBJECT IDENTIFIER, value }
//! ```

use std::fmt::Write;

/// The fields of an X.509 certificate that the engine shows or checks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// Such as `CN=client,O=Example`.
    pub subject: String,
    /// The end of the validity, in seconds since the epoch.
    pub not_after: i64,
}

const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;

/// Parses a certificate in DER. Returns `None` if it is malformed.
pub(crate) fn parse(der: &[u8]) -> Option<Certificate> {
    let mut certificate = Reader(Reader(der).expect(SEQUENCE)?);
    let mut fields = Reader(certificate.expect(SEQUENCE)?);
    if fields.0.first() == Some(&VERSION) {
        fields.next()?;
    }
    fields.expect(INTEGER)?;
    fields.expect(SEQUENCE)?;
    fields.expect(SEQUENCE)?;
    let mut validity = Reader(fields.expect(SEQUENCE)?);
    validity.next()?;
    let not_after = time(validity.next()?)?;
    let subject = name(fields.expect(SEQUENCE)?)?;
    Some(Certificate { subject, not_after })
}

/// A sequence of DER elements: tag, length, content.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], mut rest) = self.0.split_first_chunk::<2>()?;
        let length = if first < 0x80 {
            usize::from(first)
        } else {
            // The number of bytes of the length; no certificate has 16 MiB.
            let count = usize::from(first & 0x7f);
            let (bytes, behind) = rest.split_at_checked(count).filter(|_| count <= 3)?;
            rest = behind;
            bytes
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte))
        };
        let (content, behind) = rest.split_at_checked(length)?;
        self.0 = behind;
        Some((tag, content))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next()
            .filter(|(found, _)| *found == tag)
            .map(|(_, content)| content)
    }
}

fn name(der: &[u8]) -> Option<String> {
    let (mut sets, mut text) = (Reader(der), String::new());
    while !sets.0.is_empty() {
        let mut set = Reader(sets.expect(SET)?);
        let mut separator = ",";
        while !set.0.is_empty() {
            let attribute = Reader(set.expect(SEQUENCE)?);
            if let Some(attribute) = attribute_text(attribute)? {
                let separator = if text.is_empty() { "" } else { separator };
                write!(text, "{separator}{attribute}").ok()?;
            }
            // Within a set (RFC 4514, section 2.2).
            separator = "+";
        }
    }
    Some(text)
}

/// Returns `LABEL=VALUE`, or nothing for attributes that have no label here.
fn attribute_text(mut attribute: Reader<'_>) -> Option<Option<String>> {
    let label = match attribute.expect(OBJECT_IDENTIFIER)? {
        [0x55, 0x04, 0x03] => "CN",
        [0x55, 0x04, 0x06] => "C",
        [0x55, 0x04, 0x07] => "L",
        [0x55, 0x04, 0x08] => "ST",
        [0x55, 0x04, 0x0a] => "O",
        [0x55, 0x04, 0x0b] => "OU",
        _ => return Some(None),
    };
    let (_, value) = attribute.next()?;
    // The subject is written to the log: control characters must not get there.
    let value = String::from_utf8_lossy(value);
    let value = value.chars().map(|character| match character {
        ',' | '+' | '\\' => format!("\\{character}"),
        other => other.escape_debug().to_string(),
    });
    Some(Some(format!("{label}={}", value.collect::<String>())))
}

/// `YYMMDDHHMMSSZ` (years 1950 to 2049) or `YYYYMMDDHHMMSSZ`.
fn time((tag, content): (u8, &[u8])) -> Option<i64> {
    let text = std::str::from_utf8(content).ok()?;
    let full = match tag {
        UTC_TIME if text.get(..2)?.parse::<u8>().ok()? < 50 => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", full).ok()?;
    // A `Timestamp` ends before 99991231235959Z, which stands for no end (RFC 5280, section 4.1.2.5).
    let epoch = jiff::civil::date(1970, 1, 1).at(0, 0, 0, 0);
    Some(time.duration_since(epoch).as_secs())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let mut element = vec![tag, 0x82];
        element.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
        element.extend_from_slice(&content);
        element
    }

    fn attribute(kind: u8, value: &str) -> Vec<u8> {
        attributes(&[(kind, value)])
    }

    /// A set of attributes.
    fn attributes(list: &[(u8, &str)]) -> Vec<u8> {
        let list: Vec<Vec<u8>> = list
            .iter()
            .map(|(kind, value)| {
                let kind = [OBJECT_IDENTIFIER, 3, 0x55, 0x04, *kind];
                let value = element(0x0c, &[value.as_bytes()]);
                element(SEQUENCE, &[&kind, &value])
            })
            .collect();
        let list: Vec<&[u8]> = list.iter().map(Vec::as_slice).collect();
        element(SET, &list)
    }

    fn certificate(subject: &[&[u8]], end: &[u8]) -> Vec<u8> {
        let sequence = |parts: &[&[u8]]| element(SEQUENCE, parts);
        let version = [VERSION, 3, INTEGER, 1, 2];
        let begin = element(UTC_TIME, &[b"200101000000Z"]);
        let fields = sequence(&[
            &version,
            &[INTEGER, 1, 7],
            &sequence(&[]),
            &sequence(&[&attribute(3, "issuer")]),
            &sequence(&[&begin, end]),
            &sequence(subject),
        ]);
        sequence(&[&fields, &sequence(&[])])
    }

    #[test]
    fn reads_subjects_and_expiry_times() {
        let end = element(UTC_TIME, &[b"700101000001Z"]);
        let organization = attribute(10, "Ex,ample\n");
        let der = certificate(&[&attribute(3, "joe"), &organization], &end);
        let expected = Certificate {
            subject: "CN=joe,O=Ex\\,ample\\n".into(),
            not_after: 1,
        };
        assert_eq!(parse(&der), Some(expected));
        let end = element(GENERALIZED_TIME, &[b"20510101000000Z"]);
        let parsed = parse(&certificate(&[], &end)).unwrap();
        assert_eq!(
            (parsed.subject.as_str(), parsed.not_after),
            ("", 2_556_144_000)
        );
        // No end.
        let end = element(GENERALIZED_TIME, &[b"99991231235959Z"]);
        // 5 is the serial number, which is not shown.
        let set = attributes(&[(5, "7"), (3, "a+b"), (11, "unit")]);
        let parsed = parse(&certificate(&[&set, &attribute(10, "x")], &end)).unwrap();
        assert_eq!(
            (parsed.subject.as_str(), parsed.not_after),
            ("CN=a\\+b+OU=unit,O=x", 253_402_300_799)
        );
    }

    #[test]
    fn malformed_certificates_are_rejected() {
        let end = element(UTC_TIME, &[b"700101000001Z"]);
        let der = certificate(&[&attribute(3, "joe")], &end);
        for length in 0..der.len() {
            assert_eq!(parse(&der[..length]), None, "{length} bytes");
        }
        assert_eq!(parse(&[SEQUENCE, 0xff]), None);
        let end = element(UTC_TIME, &[b"never"]);
        assert_eq!(parse(&certificate(&[], &end)), None);
    }
}
