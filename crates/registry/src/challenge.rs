//! The value of a `WWW-Authenticate` header (RFC 9110, section 11.6.1): how a registry wants to be
//! told who the client is.

/// Maximum length of a header value in bytes. What is longer is ignored.
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

/// Parses a header value. Schemes that are not supported are left out, and so is everything from
/// the first error of syntax.
pub(crate) fn parse(value: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    if value.len() > MAX_LENGTH {
        return challenges;
    }
    let mut rest = value.trim_start();
    while !rest.is_empty() {
        let (scheme, after) = token(rest);
        if scheme.is_empty() {
            break;
        }
        let Some((parameters, after)) = parameters(after) else {
            break;
        };
        let get = |name: &str| {
            let found = parameters
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map_or_else(String::new, |(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") && !get("realm").is_empty() {
            challenges.push(Challenge::Bearer {
                realm: get("realm"),
                service: get("service"),
            });
        }
        rest = after;
    }
    challenges
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
        // Something other than a separator follows: not a parameter of ours.
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
    fn reads_what_registries_send() {
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
    fn leaves_out_what_is_malformed() {
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
