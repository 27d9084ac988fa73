//! The names in requests. Their constructors validate them, so they can be used as file names.

use std::fmt;

use whelk_image::Digest;

use crate::error::{Error, Kind, Result};

/// Maximum length of a repository's name, as in Docker's registry.
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// The name of a repository, such as `team/app`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RepositoryName(String);

impl RepositoryName {
    /// # Errors
    /// Returns an error if the name is not one of the specification's grammar, or is too long.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        if name.len() <= MAX_REPOSITORY && name.split('/').all(is_component) {
            Ok(Self(name.to_owned()))
        } else {
            let name: String = name.chars().take(MAX_REPOSITORY).collect();
            Err(Kind::NameInvalid.error(format!("invalid repository name {name:?}")))
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text is one component of a repository's name:
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
pub(crate) fn is_component(text: &str) -> bool {
    let is_word = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let is_separator =
        |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|letter| letter == b'-');
    text.chars()
        .all(|letter| is_word(letter) || "._-".contains(letter))
        && text.starts_with(is_word)
        && text.ends_with(is_word)
        && text
            .split(is_word)
            .filter(|between| !between.is_empty())
            .all(is_separator)
}

/// Selects a manifest in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ManifestKey {
    Tag(String),
    Digest(Digest),
}

impl ManifestKey {
    /// # Errors
    /// Returns an error if the text is neither a tag nor a digest.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.contains(':') {
            return digest(text).map(Self::Digest);
        }
        tag(text).map(Self::Tag)
    }
}

/// # Errors
/// Returns an error if the text is not a tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub(crate) fn tag(text: &str) -> Result<String> {
    let is_letter = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'_';
    let is_valid = text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_letter)
        && text
            .bytes()
            .all(|letter| is_letter(letter) || b".-".contains(&letter));
    if is_valid {
        Ok(text.to_owned())
    } else {
        let text: String = text.chars().take(MAX_TAG).collect();
        Err(Kind::ManifestInvalid.error(format!("invalid tag {text:?}")))
    }
}

/// # Errors
/// Returns an error if the text is not a SHA-256 or SHA-512 digest.
pub(crate) fn digest(text: &str) -> Result<Digest> {
    text.parse()
        .map_err(|error: whelk_image::Error| Kind::DigestInvalid.error(error.to_string()))
}

/// The identifier of an upload.
pub(crate) fn upload(text: &str) -> Result<String> {
    if text.len() == 32
        && text
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    {
        Ok(text.to_owned())
    } else {
        Err(unknown_upload())
    }
}

pub(crate) fn unknown_upload() -> Error {
    Kind::UploadUnknown.error("the upload does not exist, or has ended")
}

/// Returns a random name of 32 hexadecimal digits.
pub(crate) fn random() -> String {
    let mut bytes = [0; 16];
    // getrandom(2) does not fail for so few bytes once the generator is seeded.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories() {
        let long = "a".repeat(255);
        for name in [
            "a",
            "a/b",
            "a.b/c_d/e__f/g---h",
            "0",
            "blobs/uploads",
            &long,
        ] {
            assert_eq!(RepositoryName::parse(name).unwrap().as_str(), name);
        }
        let longer = "a".repeat(256);
        for name in [
            "", "/", "a/", "/a", "a//b", "..", ".", "a/../b", "a/.", "A", "a..b", "a___b", "a._b",
            "-a", "a-", "_uploads", "a/_tags", "a\0", "a b", "ä", "a\\b", "a:b", "a%2f", &longer,
        ] {
            let error = RepositoryName::parse(name).unwrap_err();
            assert_eq!(error.kind, Kind::NameInvalid, "{name}");
        }
    }

    #[test]
    fn versions() {
        let long = "a".repeat(128);
        for text in ["latest", "1.0-rc_1", "_x", "A", &long] {
            assert_eq!(
                ManifestKey::parse(text).unwrap(),
                ManifestKey::Tag(text.into())
            );
        }
        let longer = "a".repeat(129);
        for text in ["", ".", "..", ".a", "-a", "a/b", "a+b", "a\0", "ä", &longer] {
            assert_eq!(
                ManifestKey::parse(text).unwrap_err().kind,
                Kind::ManifestInvalid,
                "{text}"
            );
        }
        for text in ["sha256:", "sha256:../x", "md5:00", ":", "sha256:A"] {
            assert_eq!(
                ManifestKey::parse(text).unwrap_err().kind,
                Kind::DigestInvalid,
                "{text}"
            );
        }
        assert!(upload(&random()).is_ok());
        for text in [
            "",
            "..",
            "../../../etc/passwd",
            &"A".repeat(32),
            &"a".repeat(33),
        ] {
            assert_eq!(upload(text).unwrap_err().kind, Kind::UploadUnknown);
        }
    }
}
