//! Passwords: a file of `htpasswd -B`, with a line `USER:HASH` for each user.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::Semaphore;
use whelk_image::Digest;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::names;
use crate::rights::{ANONYMOUS, EVERY};

const MAX_FILE: u64 = 1 << 20;
/// Maximum number of passwords that are verified in parallel: a hash takes 0.1 s of a processor.
const TURNS: usize = 2;
/// The hash for users that do not exist, so that the response time does not reveal which users exist.
const NOBODY: &str = "$2b$10$abcdefghijklmnopqrstuuVMAwZ9ZP7wR0JHXyX0sSg1o9BsMzCaq";

/// A user who has given the right password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub name: String,
    /// Of the line with the password's hash.
    password: Digest,
}

/// The users who may use the registry.
#[derive(Debug)]
pub struct Passwords {
    file: PathBuf,
    users: Mutex<Arc<Users>>,
    turns: Semaphore,
}

/// The content of a file.
struct Users {
    hashes: HashMap<String, String>,
    /// The passwords that were verified, hashed with `key`: each request has one.
    verified: Mutex<HashMap<String, Digest>>,
    key: String,
}

impl std::fmt::Debug for Users {
    /// Does not print the hashes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Users")
    }
}

impl Passwords {
    /// Reads the file.
    ///
    /// # Errors
    /// Returns an error that names the line if the file is malformed.
    pub fn load(file: PathBuf) -> Result<Self, String> {
        Ok(Self {
            users: Mutex::new(Users::read(&file)?.into()),
            file,
            turns: Semaphore::new(TURNS),
        })
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// See [`Self::load`]; what was read before stays in use.
    pub fn reload(&self) -> Result<(), String> {
        *self.users.lock().ignore_poison() = Users::read(&self.file)?.into();
        Ok(())
    }

    /// Returns whether there is such a user.
    pub(crate) fn has(&self, user: &str) -> bool {
        self.users().hashes.contains_key(user)
    }

    /// Returns whether a user still exists, with the same password.
    pub(crate) fn is_current(&self, user: &User) -> bool {
        let users = self.users();
        let hash = users.hashes.get(&user.name);
        hash.is_some_and(|hash| user.password.is_of(hash.as_bytes()))
    }

    fn users(&self) -> Arc<Users> {
        Arc::clone(&self.users.lock().ignore_poison())
    }

    /// Returns the user whose name and password a header `Authorization` has.
    pub(crate) async fn verify(&self, header: &str) -> Option<User> {
        let (name, password) = credentials(header)?;
        let users = self.users();
        let digest = Digest::of(format!("{}\0{name}\0{password}", users.key).as_bytes());
        let user = users.hashes.get(&name).map(|hash| User {
            password: Digest::of(hash.as_bytes()),
            name: name.clone(),
        });
        if users.verified.lock().ignore_poison().get(&name) == Some(&digest) {
            return user;
        }
        let _turn = self.turns.acquire().await.ok()?;
        let verify = move || {
            let hash = users.hashes.get(&name);
            let is_valid = bcrypt::verify(password, hash.map_or(NOBODY, String::as_str));
            let user = user.filter(|_| is_valid.unwrap_or(false))?;
            users.verified.lock().ignore_poison().insert(name, digest);
            Some(user)
        };
        tokio::task::spawn_blocking(verify).await.ok()?
    }
}

impl Users {
    fn read(file: &PathBuf) -> Result<Self, String> {
        let content = fs::read_at_most(file, MAX_FILE).map_err(|error| error.to_string())?;
        let content =
            String::from_utf8(content).map_err(|_| format!("{}: not UTF-8", file.display()))?;
        let hashes = parse(&content).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Self {
            hashes,
            verified: Mutex::default(),
            key: names::random(),
        })
    }
}

fn parse(content: &str) -> Result<HashMap<String, String>, String> {
    let mut hashes = HashMap::new();
    for (number, line) in (1..).zip(content.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (user, hash) = line
            .split_once(':')
            .ok_or(format!("line {number}: want USER:HASH"))?;
        if hash.parse::<bcrypt::HashParts>().is_err() {
            return Err(format!(
                "line {number}: not a bcrypt hash; use `htpasswd -B`"
            ));
        }
        if [ANONYMOUS, EVERY].contains(&user) {
            return Err(format!(
                "line {number}: {user:?} cannot be a user's name: it has a meaning of its own in files of rights"
            ));
        }
        hashes.insert(user.to_owned(), hash.to_owned());
    }
    Ok(hashes)
}

/// Returns the name and the password of a header `Basic …` (RFC 7617).
fn credentials(header: &str) -> Option<(String, String)> {
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
impl User {
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            password: Digest::of(b""),
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    fn header(user: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    }

    #[tokio::test]
    async fn users_with_their_passwords_are_permitted() {
        let scratch = whelk_sys::Scratch::temporary("htpasswd").unwrap();
        let file = scratch.path().join("htpasswd");
        let hash = bcrypt::hash("secret:1", 4).unwrap();
        fs::write(&file, format!("# users\n\nann:{hash}\n")).unwrap();
        let passwords = Passwords::load(file.clone()).unwrap();
        let is_user = async |user: &str, password: &str| {
            let verified = passwords.verify(&header(user, password)).await;
            verified.is_some_and(|verified| verified.name == user)
        };
        for _ in 0..2 {
            assert!(is_user("ann", "secret:1").await);
            assert!(!is_user("ann", "secret").await);
            assert!(!is_user("bob", "secret:1").await);
        }
        assert!(passwords.has("ann") && !passwords.has("bob"));
        for other in ["", "Basic", "Basic ?", "Bearer x", "Basic YQ=="] {
            assert_eq!(passwords.verify(other).await, None, "{other}");
        }
        assert!(
            bcrypt::verify("x", NOBODY).is_ok(),
            "it costs the time of a hash"
        );
        fs::write(&file, "ann:$apr1$x$y").unwrap();
        assert!(
            passwords
                .reload()
                .unwrap_err()
                .contains("line 1: not a bcrypt hash")
        );
        assert!(is_user("ann", "secret:1").await, "as before");
        fs::write(&file, format!("*:{hash}")).unwrap();
        let error = passwords.reload().unwrap_err();
        assert!(
            error.contains("line 1: \"*\" cannot be a user's name"),
            "{error}"
        );
        let ann = passwords.verify(&header("ann", "secret:1")).await.unwrap();
        assert!(passwords.is_current(&ann));
        let other = bcrypt::hash("secret:2", 4).unwrap();
        fs::write(&file, format!("ann:{other}")).unwrap();
        passwords.reload().unwrap();
        assert!(passwords.has("ann") && !passwords.is_current(&ann));
        fs::write(&file, "").unwrap();
        passwords.reload().unwrap();
        assert!(!is_user("ann", "secret:1").await);
    }
}
