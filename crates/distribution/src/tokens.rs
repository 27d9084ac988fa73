//! Access tokens, which clients get for a password, or for none.
//!
//! Docker's engine sends a password to a registry only if the registry asks for one at the beginning,
//! and then needs one for everything. A registry that gives something to everyone must therefore
//! ask for a token. A token says who has it; what that user may do, and whether the password is still the
//! same, is looked up at each request.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use whelk_sys::sync::IgnorePoison as _;

use crate::auth::User;
use crate::names;

/// How long a token is valid.
pub(crate) const VALIDITY: Duration = Duration::from_secs(5 * 60);
/// The token of clients without a password.
const ANONYMOUS: &str = "anonymous";
/// Number of tokens that are valid at a time. Users get them, so many are a client's error.
const MAX_TOKENS: usize = 10_000;

/// The tokens of users.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<String, (User, Instant)>>);

/// Who has a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Anonymous,
    User(User),
}

impl Tokens {
    /// Returns a token for a user, or the one of clients without a password.
    pub(crate) fn issue(&self, user: Option<User>) -> String {
        self.issue_until(user, Instant::now() + VALIDITY)
    }

    fn issue_until(&self, user: Option<User>, end: Instant) -> String {
        let Some(user) = user else {
            return ANONYMOUS.to_owned();
        };
        let mut tokens = self.0.lock().ignore_poison();
        if tokens.len() >= MAX_TOKENS {
            let now = Instant::now();
            tokens.retain(|_, (_, end)| *end > now);
            if tokens.len() >= MAX_TOKENS {
                tokens.clear();
            }
        }
        let token = names::random();
        tokens.insert(token.clone(), (user, end));
        token
    }

    /// Returns whose token it is; `None` if it has expired.
    pub(crate) fn holder(&self, token: &str) -> Option<Holder> {
        if token == ANONYMOUS {
            return Some(Holder::Anonymous);
        }
        let tokens = self.0.lock().ignore_poison();
        let (user, end) = tokens.get(token)?;
        (*end > Instant::now()).then(|| Holder::User(user.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_expire_and_are_limited_in_number() {
        let tokens = Tokens::default();
        let ann = User::named("ann");
        let anonymous = tokens.issue(None);
        assert_eq!(tokens.holder(&anonymous), Some(Holder::Anonymous));
        let (first, second) = (
            tokens.issue(Some(ann.clone())),
            tokens.issue(Some(ann.clone())),
        );
        assert_ne!(first, second);
        assert_eq!(tokens.holder(&first), Some(Holder::User(ann.clone())));
        assert_eq!(tokens.holder("none"), None);
        let expired = tokens.issue_until(Some(ann.clone()), Instant::now());
        assert_eq!(tokens.holder(&expired), None);
        // Those that have expired are removed first, and the others if that is not enough.
        for _ in 3..MAX_TOKENS {
            tokens.issue(Some(ann.clone()));
        }
        assert!(tokens.holder(&first).is_some());
        tokens.issue(Some(ann.clone()));
        assert!(tokens.holder(&first).is_some());
        let last = tokens.issue(Some(ann));
        assert!(tokens.holder(&first).is_none() && tokens.holder(&last).is_some());
        assert_eq!(tokens.0.lock().ignore_poison().len(), 1);
    }
}
