//! Parses `WWW-Authenticate` headers (RFC 9110, section 11.6.1), which say how to authenticate.

/// Maximum length of a header value in bytes. Longer values are ignored.
const MAX_LENGTH: usize = 8 << 10;

/// A way to authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    /// A token of an authorization service.
    Bearer {
        /// URL of the service.
        realm: String,
        /// The registry's name there; may be empty.
        service: String,
    },
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenError {
    Invalid,
    InsufficientScope,
}

/// Returns why the request's token was refused.
pub(crate) fn error(value: &str) -> Option<TokenError> {
    each(value).find_map(|challenge| match challenge.get("error") {
        _ if !challenge.scheme.eq_ignore_ascii_case("bearer") => None,
        "invalid_token" => Some(TokenError::Invalid),
        "insufficient_scope" => Some(TokenError::InsufficientScope),
        _ => None,
    })
}

/// Parses a header value. Unsupported schemes are omitted, and so is everything after the first
/// syntax error.
pub(crate) fn parse(value: &str) -> Vec<Challenge> {
    let known = each(value).filter_map(|challenge| {
        let realm = challenge.get("realm");
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            Some(Challenge::Basic)
        } else if challenge.scheme.eq_ignore_ascii_case("bearer") && !realm.is_empty() {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: challenge.get("service").to_owned(),
            })
        } else {
            None
        }
    });
    known.collect()
}

/// A challenge of any scheme.
struct Any<'a> {
    scheme: &'a str,
    parameters: Vec<(String, String)>,
}

impl Any<'_> {
    /// Returns a parameter; empty if it is not given.
    fn get(&self, name: &str) -> &str {
        let mut parameters = self.parameters.iter();
        let found = parameters.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }
}

/// Returns the challenges of a header value, up to the first error of syntax.
fn each(value: &str) -> impl Iterator<Item = Any<'_>> {
    let mut rest = if value.len() > MAX_LENGTH {
        ""
    } else {
        value.trim_start()
    };
    std::iter::from_fn(move || {
        let (scheme, after) = token(rest);
        let (parameters, after) = parameters(after).filter(|_| !scheme.is_empty())?;
        rest = after;
        Some(Any { scheme, parameters })
    })
}

/// Splits off the characters of a token (RFC 9110) at the beginning.
fn token(text: &str) -> (&str, &str) {
    let is_token = |char: char| char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(char);
    text.split_at(text.find(|char| !is_token(char)).unwrap_or(text.len()))
}

/// Parses the parameters of a challenge, and returns what follows them: the next challenge. `None`
/// if a quoted string has no end.
fn parameters(text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut parameters = Vec::new();
    let mut rest = text;
    loop {
        let start = rest.trim_start_matches([' ', '\t', ',']);
        let (name, after) = token(start);
        let after = after.trim_start();
        // A token without a value begins the next challenge.
        let Some(value) = after.strip_prefix('=').filter(|_| !name.is_empty()) else {
            return Some((parameters, start));
        };
        let value = value.trim_start();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted_string(quoted)?,
            None => {
                let (value, after) = token(value);
                (value.to_owned(), after)
            }
        };
        parameters.push((name.to_owned(), value));
        // Something other than a separator follows, as in Negotiate's token68.
        rest = after;
        if !rest.is_empty() && !rest.starts_with([' ', '\t', ',']) {
            return None;
        }
    }
}

/// Reads a quoted string after its first quote, and returns what follows it.
fn quoted_string(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            char => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: &str) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.into(),
        }
    }

    #[test]
    fn parses_challenges_that_registries_send() {
        for (value, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#,
                vec![bearer("https://auth.docker.io/token", "registry.docker.io")],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Negotiate, Basic realm=x, bearer Realm = "h\"\\" , scope=a"#,
                vec![Challenge::Basic, bearer("h\"\\", "")],
            ),
            (
                r#"Digest qop="auth,auth-int", nonce="x", Basic"#,
                vec![Challenge::Basic],
            ),
        ] {
            assert_eq!(parse(value), expected, "{value}");
        }
    }

    #[test]
    fn parses_the_error_of_a_bearer_challenge() {
        for (value, expected) in [
            (
                r#"Bearer realm="https://a",error="insufficient_scope""#,
                Some(TokenError::InsufficientScope),
            ),
            ("bearer error=invalid_token", Some(TokenError::Invalid)),
            ("Basic error=invalid_token", None),
            ("Bearer error=other", None),
            ("Bearer realm=a", None),
        ] {
            assert_eq!(error(value), expected, "{value}");
        }
    }

    #[test]
    fn ignores_malformed_challenges() {
        let long = format!("Basic realm=\"{}\"", "x".repeat(MAX_LENGTH));
        for value in [
            "",
            " ",
            ",",
            "=",
            "\"",
            "Bearer",
            "Bearer scope=a",
            "Bearer realm=\"https://x",
            "Bearer realm=\"https://x\\",
            "Bearer realm=\"x\"y",
            "é",
            &long,
        ] {
            assert_eq!(parse(value), [], "{value}");
        }
    }
}
