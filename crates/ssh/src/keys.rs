//! An agent of keys in files (draft-ietf-sshm-ssh-agent): tells what keys there are, and signs. It learns no keys, and
//! forgets none.

use russh::keys::signature::Signer as _;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::{HashAlg, PrivateKey};

use crate::{Error, Result};

// The numbers of messages, and flags of requests.
const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// Keys, with the bytes of their public parts.
#[derive(Default)]
pub struct Keys(Vec<(Vec<u8>, PrivateKey)>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Keys({})", self.0.len())
    }
}

impl Keys {
    /// Adds the key of a file: OpenSSH's format, PKCS#8, or the older ones of PEM. `passphrase` decrypts it.
    ///
    /// # Errors
    /// Returns [`Error::Encrypted`] if there is no passphrase, or if it is a wrong one, and [`Error::Key`] if this is no private key.
    pub fn add(&mut self, text: &str, passphrase: Option<&str>) -> Result<()> {
        let key = decode(text, passphrase)?;
        let public = key.public_key().to_bytes();
        let public = public.map_err(|error| Error::Key(error.to_string()))?;
        self.0.push((public, key));
        Ok(())
    }

    /// Answers a request, which is without its length. So is the answer.
    #[must_use]
    pub fn answer(&self, request: &[u8]) -> Vec<u8> {
        let answer = match request.split_first() {
            Some((&REQUEST_IDENTITIES, _)) => Some(self.identities()),
            Some((&SIGN_REQUEST, rest)) => self.sign(rest),
            _ => None,
        };
        answer.unwrap_or_else(|| vec![FAILURE])
    }

    fn identities(&self) -> Vec<u8> {
        let mut answer = vec![IDENTITIES_ANSWER];
        answer.extend(length(self.0.len()));
        for (public, _) in &self.0 {
            put(&mut answer, public);
            // Comments are names of people and machines, which steps need not know.
            put(&mut answer, b"");
        }
        answer
    }

    /// Returns a signature; `None` for a malformed request, or if there is no such key.
    fn sign(&self, mut request: &[u8]) -> Option<Vec<u8>> {
        let public = take(&mut request)?;
        let data = take(&mut request)?;
        let flags = u32::from_be_bytes(*request.first_chunk()?);
        let (_, key) = self.0.iter().find(|(own, _)| own == public)?;
        let signature = match key.key_data() {
            KeypairData::Rsa(pair) => {
                let hash = match flags {
                    flags if flags & RSA_SHA2_512 != 0 => HashAlg::Sha512,
                    flags if flags & RSA_SHA2_256 != 0 => HashAlg::Sha256,
                    // SHA-1
                    _ => return None,
                };
                (pair, Some(hash)).try_sign(data).ok()?
            }
            pair => pair.try_sign(data).ok()?,
        };
        let signature = Vec::<u8>::try_from(signature).ok()?;
        let mut answer = vec![SIGN_RESPONSE];
        put(&mut answer, &signature);
        Some(answer)
    }
}

fn decode(text: &str, passphrase: Option<&str>) -> Result<PrivateKey> {
    let wrong = |error: &dyn std::fmt::Display| match passphrase {
        Some(_) => Error::Encrypted("the passphrase is wrong, or the key is damaged".into()),
        None => Error::Key(format!("not a private key: {error}")),
    };
    let encrypted = || Error::Encrypted("the key is encrypted".into());
    if let Ok(key) = PrivateKey::from_openssh(text) {
        return match (key.is_encrypted(), passphrase) {
            (false, _) => Ok(key),
            (true, None) => Err(encrypted()),
            (true, Some(passphrase)) => key.decrypt(passphrase).map_err(|error| wrong(&error)),
        };
    }
    // Older forms.
    match russh::keys::decode_secret_key(text, passphrase) {
        Ok(key) => Ok(key),
        Err(russh::keys::Error::KeyIsEncrypted) if passphrase.is_none() => Err(encrypted()),
        Err(_) if passphrase.is_none() && text.contains("ENCRYPTED") => Err(encrypted()),
        Err(error) => Err(wrong(&error)),
    }
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

fn put(answer: &mut Vec<u8>, bytes: &[u8]) {
    answer.extend(length(bytes.len()));
    answer.extend_from_slice(bytes);
}

/// Takes bytes with their length off the beginning.
fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (head, after) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*head)).ok()?;
    let (bytes, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_requests_are_refused() {
        let keys = Keys::default();
        assert_eq!(
            keys.answer(&[REQUEST_IDENTITIES]),
            [IDENTITIES_ANSWER, 0, 0, 0, 0]
        );
        for request in [
            &[][..],
            &[SIGN_REQUEST],
            &[SIGN_REQUEST, 0, 0, 0, 200, 1],
            &[SIGN_REQUEST, 255, 255, 255, 255],
            &[SIGN_REQUEST, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0],
            // Add, remove, lock.
            &[17, 1],
            &[19],
            &[22],
        ] {
            assert_eq!(keys.answer(request), [FAILURE], "{request:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_told_so() {
        let mut keys = Keys::default();
        for text in ["", "root:x:0:0", "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n"] {
            let error = keys.add(text, None).unwrap_err();
            assert!(matches!(error, Error::Key(_)), "{text}: {error}");
        }
    }
}
