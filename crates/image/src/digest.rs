//! Content digests: `sha256:` followed by 64 lower-case hexadecimal digits. Other algorithms are
//! not supported.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// A SHA-256 digest. The constructors validate it, so it can be used as a file name
/// (CVE-2024-3727).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

const PREFIX: &str = "sha256:";
const DIGITS: usize = 64;

impl Digest {
    pub fn of(content: &[u8]) -> Self {
        Self::from_hash(Sha256::digest(content).as_slice())
    }

    fn from_hash(hash: &[u8]) -> Self {
        let mut text = String::with_capacity(PREFIX.len() + DIGITS);
        text.push_str(PREFIX);
        for byte in hash {
            use fmt::Write;
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// Returns the digest with these 64 hexadecimal digits; `None` if they are not valid.
    pub(crate) fn from_hex(digits: &str) -> Option<Self> {
        format!("{PREFIX}{digits}").parse().ok()
    }

    /// Returns the 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix(PREFIX) {
            Some(hex)
                if hex.len() == DIGITS
                    && hex
                        .bytes()
                        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) =>
            {
                Ok(Self(text.to_owned()))
            }
            Some(_) => Err(Error::invalid(format!(
                "invalid checksum digest length or character in {text:?}"
            ))),
            None => Err(Error::invalid(format!(
                "unsupported digest algorithm in {text:?}"
            ))),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hashes and counts the bytes read from or written to `inner`.
#[derive(Debug)]
pub struct Hashing<T> {
    inner: T,
    hash: Sha256,
    count: u64,
}

impl<T> Hashing<T> {
    pub fn new(inner: T) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            count: 0,
        }
    }

    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the digest, the number of bytes and the inner value.
    pub fn finish(self) -> (Digest, u64, T) {
        (
            Digest::from_hash(self.hash.finalize().as_slice()),
            self.count,
            self.inner,
        )
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_complete_lower_case_sha256_digests() {
        let good = Digest::of(b"");
        assert_eq!(
            good.as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(good.as_str().parse::<Digest>().unwrap(), good);
        let algorithm = "unsupported digest algorithm";
        let form = "invalid checksum digest length or character";
        for (bad, expected) in [
            ("", algorithm),
            ("sha256:", form),
            ("sha256:../../etc/passwd", form),
            ("sha512:00", algorithm),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", algorithm),
            (&good.as_str().to_uppercase(), algorithm),
            (&good.as_str()[..70], form),
        ] {
            let error = bad.parse::<Digest>().unwrap_err().to_string();
            assert_eq!(error, format!("{expected} in {bad:?}"));
        }
    }
}
