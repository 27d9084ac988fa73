//! Image references: grammar, normal form, and the short (familiar) form.
//!
//! `busybox` is short for `docker.io/library/busybox:latest`.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};

const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME_LEN: usize = 255;
const MAX_TAG_LEN: usize = 128;

/// A normalized reference: domain, path, and a tag, a digest, both or neither.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    pub domain: String,
    pub path: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl Reference {
    /// Adds the default tag `latest` if there is neither a tag nor a digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.into());
        }
        self
    }

    /// Converts to a reference that can be a tag of an image, adding the default tag if there is
    /// none.
    ///
    /// # Errors
    /// Returns an error if there is a digest, or if the name is that of a digest's algorithm: either
    /// could be mistaken for an image ID or a digest.
    pub fn into_tag(self) -> Result<Self> {
        if self.digest.is_some() {
            return Err(Error::invalid(
                "refusing to create a tag with a digest reference",
            ));
        }
        let name = self.familiar_name();
        if Algorithm::ALL
            .iter()
            .any(|algorithm| name == algorithm.name())
        {
            return Err(Error::invalid(
                "refusing to create an ambiguous tag using digest algorithm as name",
            ));
        }
        Ok(self.with_default_tag())
    }

    /// Returns domain and path: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Returns the short form of domain and path: `busybox`.
    pub fn familiar_name(&self) -> String {
        if self.domain == DEFAULT_DOMAIN {
            return self
                .path
                .strip_prefix(OFFICIAL_PREFIX)
                .filter(|rest| !rest.contains('/') && !is_id(rest))
                .unwrap_or(&self.path)
                .to_owned();
        }
        self.name()
    }

    /// Returns the short form of the whole reference: `busybox:latest`.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text = text + ":" + tag;
        }
        if let Some(digest) = &self.digest {
            text = text + "@" + digest.as_str();
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.name()))
    }
}

/// Returns whether a text has the form of an image's id, which no short form may have.
fn is_id(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn invalid() -> Error {
    Error::invalid("invalid reference format")
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if is_id(text) {
            return Err(Error::invalid(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|_| invalid())?)),
            None => (text, None),
        };
        // A colon after the last slash separates the tag; one before it belongs to a port.
        let (name, tag) = match rest.rfind(':') {
            Some(colon) if !rest[colon..].contains('/') => {
                (&rest[..colon], Some(&rest[colon + 1..]))
            }
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(|_| invalid())?;
        }
        let (domain, path) = split_domain(name);
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Error::invalid(format!(
                "invalid reference format: repository name ({path}) must be lowercase"
            )));
        }
        if !check_domain(&domain) || !check_path(&path) {
            return Err(invalid());
        }
        if domain.len() + 1 + path.len() > MAX_NAME_LEN {
            return Err(Error::invalid(format!(
                "invalid reference format: repository name must not be more than {MAX_NAME_LEN} characters"
            )));
        }
        Ok(Self {
            domain,
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// Checks a tag: a letter, digit or `_`, followed by up to 127 of these, `.` and `-`.
///
/// # Errors
/// Returns an error if the tag does not have this form.
pub fn check_tag(tag: &str) -> Result<()> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let valid = tag.len() <= MAX_TAG_LEN
        && tag.bytes().next().is_some_and(word)
        && tag
            .bytes()
            .all(|byte| word(byte) || byte == b'.' || byte == b'-');
    if valid {
        Ok(())
    } else {
        Err(Error::invalid("invalid tag format"))
    }
}

/// Splits a name into domain and path. The first component is a domain if it contains a dot or a
/// colon, is `localhost`, or has upper-case letters.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.to_lowercase() != first =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == "index.docker.io" {
        DEFAULT_DOMAIN
    } else {
        domain
    };
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
        format!("{OFFICIAL_PREFIX}{path}")
    } else {
        path.to_owned()
    };
    (domain.to_owned(), path)
}

fn check_domain(domain: &str) -> bool {
    if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(check_port));
    }
    let (host, port) = domain
        .split_once(':')
        .map_or((domain, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && port.is_none_or(check_port)
}

fn check_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Checks a path: components of lower-case letters and digits, separated inside by one `.`, one or
/// two `_`, or any number of `-`.
fn check_path(path: &str) -> bool {
    path.split('/').all(|component| {
        let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = component.as_bytes();
        if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
            return false;
        }
        bytes.split(alphanumeric).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__")
                || separator.iter().all(|&byte| byte == b'-')
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, normal: &str, familiar: &str) {
        let reference: Reference = text
            .parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(
            (
                reference.to_string().as_str(),
                reference.familiar().as_str()
            ),
            (normal, familiar),
            "{text}"
        );
    }

    #[test]
    fn normalizes_names() {
        check("busybox", "docker.io/library/busybox", "busybox");
        check(
            "busybox:1.36",
            "docker.io/library/busybox:1.36",
            "busybox:1.36",
        );
        check("me/app", "docker.io/me/app", "me/app");
        // Without `library/` it would be an image's id.
        let hex = format!("library/{}", "ab".repeat(32));
        check(&hex, &format!("docker.io/{hex}"), &hex);
        check("index.docker.io/library/x", "docker.io/library/x", "x");
        check("localhost/app:v1", "localhost/app:v1", "localhost/app:v1");
        check(
            "host:5000/a/b__c:v-1.2",
            "host:5000/a/b__c:v-1.2",
            "host:5000/a/b__c:v-1.2",
        );
        check("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a");
        let digest = Digest::of(b"x");
        check(
            &format!("a@{digest}"),
            &format!("docker.io/library/a@{digest}"),
            &format!("a@{digest}"),
        );
        assert_eq!(
            "a".parse::<Reference>()
                .unwrap()
                .with_default_tag()
                .familiar(),
            "a:latest"
        );
    }

    #[test]
    fn rejects_invalid_names() {
        let long = "a/".repeat(200) + "a";
        for text in [
            "",
            "a b",
            "a:",
            ":tag",
            "a:bad/tag",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a@sha256:12",
            "a@md5:00",
            "host:port/a",
            "a:.x",
            "a\0b",
            "ü",
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert_eq!(error, "invalid reference format", "{text:?}");
        }
        for (text, expected) in [
            (
                long.as_str(),
                "repository name must not be more than 255 characters",
            ),
            ("UPPER", "repository name (library/UPPER) must be lowercase"),
            (
                "Bad Name",
                "repository name (library/Bad Name) must be lowercase",
            ),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert_eq!(error, format!("invalid reference format: {expected}"));
        }
    }
}
