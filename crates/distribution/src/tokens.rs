//! Access tokens, which clients get for a password, or for none.
//!
//! Docker's engine sends a password to a registry only if the registry asks for one at the beginning,
//! and then needs one for everything. A registry that gives something to everyone must therefore
//! ask for a token. A token says who has it; what that user may do is looked up at each request.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use whelk_sys::sync::IgnorePoison as _;

use crate::names;
use crate::rights::Identity;

/// How long a token is valid.
pub(crate) const VALIDITY: Duration = Duration::from_secs(5 * 60);
/// The token of whoever has no password.
const ANONYMOUS: &str = "anonymous";
/// Number of tokens that are valid at a time. Users get them, so many are a client's error.
const MOST: usize = 10_000;

/// The tokens of users.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<String, (String, Instant)>>);

impl Tokens {
    /// Returns a token for a user, or for whoever has no password.
    pub(crate) fn issue(&self, user: Option<String>) -> String {
        let Some(user) = user else {
            return ANONYMOUS.to_owned();
        };
        let mut tokens = self.0.lock().ignore_poison();
        let now = Instant::now();
        if tokens.len() >= MOST {
            tokens.retain(|_, (_, end)| *end > now);
            if tokens.len() >= MOST {
                tokens.clear();
            }
        }
        let token = names::random();
        tokens.insert(token.clone(), (user, now + VALIDITY));
        token
    }

    /// Returns whose token it is; `None` if it is not valid any more.
    pub(crate) fn identity(&self, token: &str) -> Option<Identity> {
        if token == ANONYMOUS {
            return Some(Identity::Anonymous);
        }
        let tokens = self.0.lock().ignore_poison();
        let (user, end) = tokens.get(token)?;
        (*end > Instant::now()).then(|| Identity::User(user.clone()))
    }
}
