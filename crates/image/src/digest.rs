//! Content digests: an algorithm and lower-case hexadecimal digits, such as `sha256:` followed by 64
//! of them. SHA-256 and SHA-512 are supported, the two algorithms that the OCI image specification
//! registers.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

use crate::error::{Error, Result};

/// How a digest is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// What is used unless someone else has chosen the digest.
    #[default]
    Sha256,
    Sha512,
}

impl Algorithm {
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Returns the name in digests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Returns the number of hexadecimal digits.
    fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }

    /// Returns the digest of `content`.
    pub fn digest(self, content: &[u8]) -> Digest {
        let mut hasher = Hasher::new(self);
        hasher.update(content);
        hasher.finish()
    }
}

/// A digest of content. The constructors validate it, so that its digits can be used as a file name
/// (CVE-2024-3727). Their number says what the algorithm is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Returns the SHA-256 digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Algorithm::Sha256.digest(content)
    }

    /// Returns whether it is the digest of `content`.
    pub fn is_of(&self, content: &[u8]) -> bool {
        self.algorithm().digest(content) == *self
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        let mut text = String::with_capacity(algorithm.name().len() + 1 + algorithm.digits());
        text.push_str(algorithm.name());
        text.push(':');
        for byte in hash {
            use fmt::Write;
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// Returns the digest with these hexadecimal digits; `None` if they are not valid.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let mut algorithms = Algorithm::ALL.into_iter();
        let algorithm = algorithms.find(|algorithm| algorithm.digits() == digits.len())?;
        format!("{}:{digits}", algorithm.name()).parse().ok()
    }

    pub fn algorithm(&self) -> Algorithm {
        let (name, _) = self.parts();
        let mut algorithms = Algorithm::ALL.into_iter();
        let found = algorithms.find(|algorithm| algorithm.name() == name);
        found.unwrap_or_default()
    }

    /// Returns the hexadecimal digits.
    pub fn hex(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once(':').unwrap_or_default()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, digits) = text.split_once(':').unwrap_or((text, ""));
        let mut algorithms = Algorithm::ALL.into_iter();
        let Some(algorithm) = algorithms.find(|algorithm| algorithm.name() == name) else {
            return Err(Error::invalid(format!(
                "unsupported digest algorithm in {text:?}"
            )));
        };
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() == algorithm.digits() && digits.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::invalid(format!(
                "invalid checksum digest length or character in {text:?}"
            )))
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

/// Hashes bytes with an algorithm.
#[derive(Clone, Debug)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::from_hash(Algorithm::Sha256, &hash.finalize()),
            Self::Sha512(hash) => Digest::from_hash(Algorithm::Sha512, &hash.finalize()),
        }
    }
}

/// Hashes and counts the bytes read from or written to `inner`.
#[derive(Debug)]
pub struct Hashing<T> {
    inner: T,
    hash: Hasher,
    count: u64,
}

impl<T> Hashing<T> {
    /// Hashes with SHA-256.
    pub fn new(inner: T) -> Self {
        Self::with(Algorithm::Sha256, inner)
    }

    pub fn with(algorithm: Algorithm, inner: T) -> Self {
        Self {
            inner,
            hash: Hasher::new(algorithm),
            count: 0,
        }
    }

    pub fn algorithm(&self) -> Algorithm {
        match self.hash {
            Hasher::Sha256(_) => Algorithm::Sha256,
            Hasher::Sha512(_) => Algorithm::Sha512,
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
        (self.hash.finish(), self.count, self.inner)
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
    fn accepts_only_complete_lower_case_digests() {
        let good = Digest::of(b"");
        assert_eq!(
            good.as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let long = Algorithm::Sha512.digest(b"");
        assert_eq!(
            long.as_str(),
            "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
        );
        for (digest, algorithm) in [(&good, Algorithm::Sha256), (&long, Algorithm::Sha512)] {
            assert_eq!(digest.as_str().parse::<Digest>().unwrap(), *digest);
            assert_eq!(digest.algorithm(), algorithm);
            assert_eq!(Digest::from_hex(digest.hex()).as_ref(), Some(digest));
            assert!(digest.is_of(b"") && !digest.is_of(b"x"));
            let mut hashing = Hashing::with(algorithm, io::empty());
            assert_eq!(hashing.read(&mut [0]).unwrap(), 0);
            assert_eq!(hashing.finish().0, *digest);
        }
        let algorithm = "unsupported digest algorithm";
        let form = "invalid checksum digest length or character";
        for (bad, expected) in [
            ("", algorithm),
            ("sha256", form),
            ("sha256:", form),
            ("sha256:../../etc/passwd", form),
            ("sha512:00", form),
            ("sha384:00", algorithm),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", algorithm),
            (&good.as_str().to_uppercase(), algorithm),
            (&good.as_str()[..70], form),
            (&good.as_str().replace("256", "512"), form),
            (&long.as_str().replace("512", "256"), form),
        ] {
            let error = bad.parse::<Digest>().unwrap_err().to_string();
            assert_eq!(error, format!("{expected} in {bad:?}"));
        }
        for digits in ["", "..", &good.hex()[1..], &"g".repeat(128)] {
            assert_eq!(Digest::from_hex(digits), None, "{digits}");
        }
    }
}
