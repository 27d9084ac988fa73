//! Known hosts, in OpenSSH's format (sshd(8)): patterns, hashed names, and the markers of revoked keys and of authorities.

use ring::hmac;
use russh::keys::ssh_key::known_hosts::{Entry, HostPatterns, Marker};
use russh::keys::{Algorithm, HashAlg, PublicKey};

use crate::{Address, Error, Result};

/// Maximum number of bytes of a text, and of lines.
const MAX_TEXT: usize = 4 << 20;

/// The keys that servers are known by.
#[derive(Clone, Debug, Default)]
pub struct KnownHosts {
    entries: Vec<Entry>,
    /// Servers in lines whose keys cannot be used.
    unusable: Vec<HostPatterns>,
    /// Whether a server that is not listed is refused.
    is_complete: bool,
}

impl KnownHosts {
    /// Reads a text. Keys of unknown types verify nothing. If `is_complete`, servers that are not listed are refused.
    ///
    /// # Errors
    /// Returns an error if the text is too large.
    pub fn parse(text: &str, is_complete: bool) -> Result<Self> {
        if text.len() > MAX_TEXT {
            let text = format!("the list of known hosts has more than {MAX_TEXT} bytes");
            return Err(Error::HostKey(text));
        }
        let mut known = Self {
            is_complete,
            ..Self::default()
        };
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.parse() {
                Ok(entry) => known.entries.push(entry),
                Err(_) => known.unusable.extend(names(line)),
            }
        }
        Ok(known)
    }

    /// Checks the key of a server. Returns whether the server is listed.
    ///
    /// # Errors
    /// Returns an error if the server is listed with other keys, or only with some that cannot be used, if this one is revoked, and
    /// if it has to be listed.
    pub fn check(&self, address: &Address, key: &PublicKey) -> Result<bool> {
        let fingerprint = key.fingerprint(HashAlg::Sha256);
        let listed = self.of(address);
        let is_same = |entry: &Entry| entry.public_key().key_data() == key.key_data();
        let is_revoked = |entry: &Entry| entry.marker() == Some(&Marker::Revoked);
        if listed
            .iter()
            .any(|entry| is_same(entry) && is_revoked(entry))
        {
            return Err(Error::HostKey(format!(
                "host key verification failed: the key {fingerprint} is revoked"
            )));
        }
        let keys = || listed.iter().filter(|entry| entry.marker().is_none());
        if keys().any(|entry| is_same(entry)) {
            return Ok(true);
        }
        let is_authority = |entry: &&Entry| entry.marker() == Some(&Marker::CertAuthority);
        let is_listed = listed.iter().any(is_authority) || self.is_unusable(address);
        match keys().next().is_none() {
            true if is_listed => Err(Error::HostKey(format!(
                "host key verification failed: it is listed, but with no key that can be used: authorities of certificates are not supported (its key is {fingerprint})"
            ))),
            true if self.is_complete => Err(Error::HostKey(format!(
                "host key verification failed: it is not among the known hosts (its key is {fingerprint})"
            ))),
            true => Ok(false),
            false => Err(Error::HostKey(format!(
                "host key verification failed: its key {fingerprint} is not the one that it is known by"
            ))),
        }
    }

    /// Returns the algorithms that a server is to be asked for first: those of its known keys.
    pub(crate) fn algorithms(&self, address: &Address) -> Vec<Algorithm> {
        let listed = self.of(address);
        let known = listed.iter().filter(|entry| entry.marker().is_none());
        let mut algorithms = Vec::new();
        for entry in known {
            match entry.public_key().algorithm() {
                Algorithm::Rsa { .. } => algorithms.extend([
                    Algorithm::Rsa {
                        hash: Some(HashAlg::Sha512),
                    },
                    Algorithm::Rsa {
                        hash: Some(HashAlg::Sha256),
                    },
                ]),
                algorithm => algorithms.push(algorithm),
            }
        }
        algorithms
    }

    /// Returns whether lines whose keys cannot be used name a server.
    fn is_unusable(&self, address: &Address) -> bool {
        let host = address.host.to_lowercase();
        let with_port = format!("[{host}]:{}", address.port);
        let mut patterns = self.unusable.iter();
        patterns.any(|patterns| matches(patterns, &host) || matches(patterns, &with_port))
    }

    /// Returns the entries of a server: those with its port, or else those without one.
    fn of(&self, address: &Address) -> Vec<&Entry> {
        let host = address.host.to_lowercase();
        let find = |name: &str| -> Vec<&Entry> {
            let entries = self.entries.iter();
            entries
                .filter(|entry| matches(entry.host_patterns(), name))
                .collect()
        };
        match address.port {
            22 => find(&host),
            port => {
                let found = find(&format!("[{host}]:{port}"));
                if found.is_empty() { find(&host) } else { found }
            }
        }
    }
}

/// Returns the servers that a line names, whatever its key is.
fn names(line: &str) -> Option<HostPatterns> {
    let mut words = line.split_ascii_whitespace();
    let first = words.next()?;
    let names = match first.starts_with('@') {
        true => words.next()?,
        false => first,
    };
    names.parse().ok()
}

fn matches(patterns: &HostPatterns, name: &str) -> bool {
    match patterns {
        HostPatterns::HashedName { salt, hash } => {
            let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
            hmac::verify(&key, name.as_bytes(), hash).is_ok()
        }
        HostPatterns::Patterns(patterns) => {
            let mut is_found = false;
            for pattern in patterns {
                let pattern = pattern.to_lowercase();
                match pattern.strip_prefix('!') {
                    Some(pattern) if is_like(name.as_bytes(), pattern.as_bytes()) => return false,
                    Some(_) => {}
                    None => is_found |= is_like(name.as_bytes(), pattern.as_bytes()),
                }
            }
            is_found
        }
    }
}

/// Returns whether a name is like a pattern with `*` and `?`. Takes no more steps than the product of both lengths.
fn is_like(name: &[u8], pattern: &[u8]) -> bool {
    let (mut at, mut of) = (0, 0);
    // The last star, and what it stands for ends here.
    let mut star = None;
    while at < name.len() {
        match pattern.get(of) {
            Some(b'*') => {
                star = Some((of, at));
                of += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[at] => {
                at += 1;
                of += 1;
            }
            _ => match star {
                Some((place, end)) => {
                    star = Some((place, end + 1));
                    (at, of) = (end + 1, place + 1);
                }
                None => return false,
            },
        }
    }
    pattern[of..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    const ONE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const TWO: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    fn check(list: &str, host: &str, port: u16, is_complete: bool) -> Result<bool> {
        let known = KnownHosts::parse(list, is_complete).unwrap();
        let address = Address {
            user: "git".into(),
            host: host.into(),
            port,
        };
        known.check(&address, &ONE.parse().unwrap())
    }

    #[test]
    fn servers_are_known_by_their_names() {
        for (names, host, port, expected) in [
            ("h", "h", 22, true),
            ("a,H", "h", 22, true),
            ("h", "x", 22, false),
            ("*.example.com", "git.example.com", 22, true),
            ("*.example.com", "example.com", 22, false),
            ("*,!h", "h", 22, false),
            ("h?", "h1", 22, true),
            ("[h]:2222", "h", 2222, true),
            ("[h]:2222", "h", 22, false),
            // Without its port.
            ("h", "h", 2222, true),
            // Made by ssh-keygen -H of the name `h`.
            (
                "|1|Fp5O0n9zL8P6jkPkLRjwjTbM2uA=|wcVS9WcSQlnnAU8PdIFjQVwDd+c=",
                "h",
                22,
                true,
            ),
            (
                "|1|Fp5O0n9zL8P6jkPkLRjwjTbM2uA=|wcVS9WcSQlnnAU8PdIFjQVwDd+c=",
                "x",
                22,
                false,
            ),
        ] {
            let found = check(
                &format!("# names\n\n{names} {ONE} comment\n"),
                host,
                port,
                false,
            );
            assert_eq!(found.unwrap(), expected, "{names} {host}");
        }
        let salt = [7; 20];
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
        let hash = hmac::sign(&key, b"[h]:2222").as_ref().try_into().unwrap();
        let hashed = HostPatterns::HashedName {
            salt: salt.to_vec(),
            hash,
        };
        assert!(matches(&hashed, "[h]:2222") && !matches(&hashed, "h"));
    }

    #[test]
    fn other_keys_are_refused() {
        let fails = |list: &str, is_complete: bool, expected: &str| {
            let error = check(list, "h", 22, is_complete).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        fails(
            &format!("h {TWO}"),
            false,
            "not the one that it is known by",
        );
        fails(&format!("@revoked h {ONE}\nh {ONE}"), false, "is revoked");
        fails(&format!("x {ONE}"), true, "not among the known hosts");
        for unusable in ["@cert-authority h ", "h sk-new", "[h]:22 x", "@new h "] {
            for is_complete in [false, true] {
                let list = format!("{unusable}{ONE}");
                fails(&list, is_complete, "no key that can be used");
            }
        }
        assert!(check(&format!("h {TWO}\nh {ONE}"), "h", 22, true).unwrap());
        assert!(check(&format!("garbage\nh nothing\nh {ONE}"), "h", 22, true).unwrap());
        assert!(!check("garbage\n@\n|1|x h", "h", 22, false).unwrap());
        assert!(!check("", "h", 22, false).unwrap());
    }

    #[test]
    fn patterns_end() {
        let name = [b'a'; 200];
        assert!(is_like(&name, b"*a*a*"));
        assert!(!is_like(&name, &[b"*a".repeat(60), b"b".to_vec()].concat()));
    }
}
