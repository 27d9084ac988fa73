//! Who the client is: credentials, and the access tokens that they are exchanged for.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hyper::header::HeaderValue;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use whelk_sys::sync::IgnorePoison as _;

/// Maximum length of a token in bytes: it is sent in a header.
const MAX_TOKEN: usize = 32 << 10;
/// How long a token is valid if the service does not say.
const DEFAULT_VALIDITY: Duration = Duration::from_secs(60);
/// A token is not used in the last part of its time.
const MARGIN: Duration = Duration::from_secs(5);
/// Number of tokens that are kept.
const MAX_TOKENS: usize = 1_000;

/// Credentials of a client for a registry. `Debug` does not print secrets.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub enum Credentials {
    #[default]
    Anonymous,
    Password {
        user: String,
        password: String,
    },
    /// A refresh token of an authorization service.
    IdentityToken(String),
    /// An access token, which is sent unchanged.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Password { .. } => "Password",
            Self::IdentityToken(_) => "IdentityToken",
            Self::RegistryToken(_) => "RegistryToken",
        })
    }
}

/// An `AuthConfig` of the Engine API. An empty field counts as absent.
#[derive(Default)]
pub struct AuthConfig {
    pub username: Option<String>,
    pub password: Option<String>,
    /// `USER:PASSWORD` in base64, an older form of both.
    pub auth: Option<String>,
    pub identitytoken: Option<String>,
    pub registrytoken: Option<String>,
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthConfig")
    }
}

impl<'de> Deserialize<'de> for AuthConfig {
    /// Reads the fields as Go's decoder does: names are case-insensitive, the last of several
    /// occurrences wins, and `null` is ignored.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = AuthConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AuthConfig, A::Error> {
                let mut config = AuthConfig::default();
                while let Some(name) = map.next_key::<String>()? {
                    // Go compares letters with several lower-case forms, such as "s" and "ſ", as equal.
                    let field = match name.to_uppercase().to_lowercase().as_str() {
                        "username" => &mut config.username,
                        "password" => &mut config.password,
                        "auth" => &mut config.auth,
                        "identitytoken" => &mut config.identitytoken,
                        "registrytoken" => &mut config.registrytoken,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    if let Some(text) = map.next_value::<Option<String>>()? {
                        *field = Some(text);
                    }
                }
                Ok(config)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl TryFrom<AuthConfig> for Credentials {
    type Error = String;

    /// # Errors
    /// Returns a text without any part of the value.
    fn try_from(config: AuthConfig) -> Result<Self, String> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = given(config.registrytoken) {
            return Ok(Self::RegistryToken(token));
        }
        if let Some(token) = given(config.identitytoken) {
            return Ok(Self::IdentityToken(token));
        }
        if let Some(user) = given(config.username) {
            return Ok(Self::Password {
                user,
                password: config.password.unwrap_or_default(),
            });
        }
        let Some(auth) = given(config.auth) else {
            return Ok(Self::Anonymous);
        };
        let decoded = STANDARD
            .decode(auth)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let (user, password) = decoded
            .as_deref()
            .and_then(|text| text.split_once(':'))
            .ok_or("auth is not USER:PASSWORD in base64")?;
        Ok(Self::Password {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        })
    }
}

/// Decodes base64 of either alphabet.
fn decode(value: &str) -> Result<Vec<u8>, String> {
    // Clients differ in their use of padding.
    let url_safe = GeneralPurpose::new(
        &URL_SAFE,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let value = value.trim();
    url_safe
        .decode(value)
        .or_else(|_| STANDARD.decode(value))
        .map_err(|_| "not base64".to_owned())
}

impl Credentials {
    /// Decodes the header `X-Registry-Auth` of the Engine API: an `AuthConfig` in base64.
    ///
    /// # Errors
    /// Returns a text without any part of the value.
    pub fn from_header(value: &str) -> Result<Self, String> {
        let json = decode(value)?;
        if json.is_empty() {
            return Ok(Self::Anonymous);
        }
        let config = serde_json::from_slice::<Option<AuthConfig>>(&json)
            .map_err(|_| "not a JSON object with texts")?
            .unwrap_or_default();
        config.try_into()
    }

    /// Decodes the header `X-Registry-Config` of the Engine API: `AuthConfig`s by the registry's name, in base64.
    /// That of the default registry is `docker.io`, which clients write as an address.
    ///
    /// # Errors
    /// Returns a text without any part of the value.
    pub fn all_from_header(value: &str) -> Result<BTreeMap<String, Self>, String> {
        let json = decode(value)?;
        if json.is_empty() {
            return Ok(BTreeMap::new());
        }
        let configs = serde_json::from_slice::<Option<BTreeMap<String, AuthConfig>>>(&json)
            .map_err(|_| "not a JSON object with texts")?;
        let mut all = BTreeMap::new();
        for (server, config) in configs.unwrap_or_default() {
            let name = server.trim_start_matches("https://");
            let name = name.trim_start_matches("http://");
            let name = match name.split('/').next().unwrap_or_default() {
                "index.docker.io" | "registry-1.docker.io" => "docker.io",
                name => name,
            };
            all.insert(name.to_owned(), config.try_into()?);
        }
        Ok(all)
    }

    /// Returns the header `Authorization` of the scheme `Basic`; `None` without a password.
    pub(crate) fn basic(&self) -> Option<HeaderValue> {
        let Self::Password { user, password } = self else {
            return None;
        };
        secret(&format!(
            "Basic {}",
            STANDARD.encode(format!("{user}:{password}"))
        ))
    }
}

/// Returns the header `Authorization` with an access token; `None` if the token has characters that
/// a header must not have.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

fn secret(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The answer of an authorization service.
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
    refresh_token: Option<String>,
}

/// A value of the header `Authorization` that a server accepts for a time.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) value: HeaderValue,
    expires: Instant,
    /// The identity token that came with it.
    refresh: Option<String>,
}

impl Token {
    /// How long an accepted password is sent without another challenge.
    const PASSWORD_VALIDITY: Duration = Duration::from_secs(60 * 60);

    /// Returns an accepted password's header, to be sent with later requests.
    pub(crate) fn lasting(value: HeaderValue) -> Self {
        Self {
            value,
            expires: Instant::now() + Self::PASSWORD_VALIDITY,
            refresh: None,
        }
    }

    /// Reads the body of an authorization service's answer.
    ///
    /// # Errors
    /// Returns a text without any part of the token.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, &'static str> {
        let answer: Answer =
            serde_json::from_slice(body).map_err(|_| "the answer is not a token in JSON")?;
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let token = given(answer.token)
            .or_else(|| given(answer.access_token))
            .ok_or("the answer has no token")?;
        if token.len() > MAX_TOKEN {
            return Err("the token is too long");
        }
        const A_DAY: f64 = 24.0 * 60.0 * 60.0;
        let validity = match answer.expires_in {
            Some(seconds) if seconds > 0.0 => Duration::from_secs_f64(seconds.min(A_DAY)),
            _ => DEFAULT_VALIDITY,
        };
        Ok(Self {
            value: bearer(&token).ok_or("the token has control characters")?,
            expires: Instant::now() + validity.saturating_sub(MARGIN),
            refresh: given(answer.refresh_token).filter(|token| token.len() <= MAX_TOKEN),
        })
    }
}

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Access {
    pub(crate) host: String,
    /// Empty for a login, which also requests an identity token.
    pub(crate) scope: String,
    pub(crate) credentials: Credentials,
}

/// The tokens of an engine that are still valid.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<HashMap<Access, Token>>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    pub(crate) fn get(&self, access: &Access) -> Option<HeaderValue> {
        let tokens = self.lock();
        let token = tokens.get(access)?;
        (token.expires > Instant::now()).then(|| token.value.clone())
    }

    /// Returns the identity token that came with a token.
    pub(crate) fn identity(&self, access: &Access) -> Option<String> {
        self.lock().get(access)?.refresh.clone()
    }

    pub(crate) fn put(&self, access: Access, token: Token) {
        let mut tokens = self.lock();
        if tokens.len() >= MAX_TOKENS {
            let now = Instant::now();
            tokens.retain(|_, token| token.expires > now);
            if tokens.len() >= MAX_TOKENS {
                tokens.clear();
            }
        }
        tokens.insert(access, token);
    }

    pub(crate) fn forget(&self, access: &Access) {
        self.lock().remove(access);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Access, Token>> {
        self.0.lock().ignore_poison()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(json: &str) -> Result<Credentials, String> {
        Credentials::from_header(&STANDARD.encode(json))
    }

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password {
            user: user.into(),
            password: password.into(),
        }
    }

    #[test]
    fn x_registry_config_headers_are_decoded() {
        let decode = |json: &str| Credentials::all_from_header(&STANDARD.encode(json));
        let json = r#"{"https://index.docker.io/v1/":{"username":"u","password":"p"},"host:5000":{"identitytoken":"t"}}"#;
        let all = decode(json).unwrap();
        assert_eq!(all["docker.io"], password("u", "p"));
        assert_eq!(all["host:5000"], Credentials::IdentityToken("t".into()));
        for empty in ["", "{}", "null"] {
            assert!(decode(empty).unwrap().is_empty(), "{empty}");
        }
        assert!(decode("[]").is_err() && Credentials::all_from_header("%").is_err());
    }

    #[test]
    fn x_registry_auth_headers_are_decoded() {
        for (json, expected) in [
            ("", Credentials::Anonymous),
            ("{}", Credentials::Anonymous),
            ("null", Credentials::Anonymous),
            (
                r#"{"serveraddress":"x","email":null}"#,
                Credentials::Anonymous,
            ),
            (
                r#"{"username":"u","password":"p:?>"}"#,
                password("u", "p:?>"),
            ),
            (r#"{"username":"u"}"#, password("u", "")),
            (r#"{"Username":"u","PASSWORD":"p"}"#, password("u", "p")),
            (
                r#"{"username":"a","userName":"u","username":null,"x":{}}"#,
                password("u", ""),
            ),
            (
                r#"{"identityToken":"i"}"#,
                Credentials::IdentityToken("i".into()),
            ),
            (r#"{"auth":"dTpwOnE="}"#, password("u", "p:q")),
            (
                r#"{"username":"u","password":"","identitytoken":"i"}"#,
                Credentials::IdentityToken("i".into()),
            ),
            (
                r#"{"identitytoken":"i","registrytoken":"r"}"#,
                Credentials::RegistryToken("r".into()),
            ),
        ] {
            assert_eq!(header(json).unwrap(), expected, "{json}");
        }
        // Each base64 of {"username":"u","password":"p:?>"} that clients send.
        for value in [
            "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InA6Pz4ifQ==",
            "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InA6Pz4ifQ",
        ] {
            assert_eq!(
                Credentials::from_header(value).unwrap(),
                password("u", "p:?>")
            );
        }
    }

    #[test]
    fn errors_and_debug_output_contain_no_secrets() {
        for (value, expected) in [
            (
                header(r#"{"password":"secret","auth":"c2VjcmV0"}"#),
                "auth is not",
            ),
            (header(r#"["secret"]"#), "not a JSON object"),
            (header(r#"{"username":7}"#), "not a JSON object"),
            (Credentials::from_header("§secret"), "not base64"),
        ] {
            let error = value.unwrap_err();
            assert!(
                error.contains(expected) && !error.contains("secret"),
                "{error}"
            );
        }
        let all = [
            password("u", "secret"),
            Credentials::IdentityToken("secret".into()),
            Credentials::RegistryToken("secret".into()),
        ];
        assert!(!format!("{all:?} {:?}", all[0].basic()).contains("secret"));
        assert!(!format!("{:?}", all[0].basic()).contains("dTpzZWNyZXQ"));
    }

    #[test]
    fn tokens_expire_and_are_cached_by_credentials() {
        let access = |credentials| Access {
            host: "r".into(),
            scope: "repository:a:pull".into(),
            credentials,
        };
        let tokens = Tokens::default();
        let token = Token::parse(br#"{"token":"t","expires_in":300}"#).unwrap();
        tokens.put(access(password("u", "p")), token);
        let found = tokens.get(&access(password("u", "p"))).unwrap();
        assert_eq!(found, "Bearer t");
        assert!(tokens.get(&access(Credentials::Anonymous)).is_none());
        let short = Token::parse(br#"{"access_token":"t","expires_in":5}"#).unwrap();
        tokens.put(access(Credentials::Anonymous), short);
        assert!(tokens.get(&access(Credentials::Anonymous)).is_none());
        tokens.forget(&access(password("u", "p")));
        assert!(tokens.get(&access(password("u", "p"))).is_none());
    }

    #[test]
    fn token_responses_are_validated() {
        let long = format!(r#"{{"token":"{}"}}"#, "x".repeat(MAX_TOKEN + 1));
        for (body, expected) in [
            ("", "not a token in JSON"),
            ("{}", "has no token"),
            (r#"{"token":""}"#, "has no token"),
            (r#"{"token":"a\nb"}"#, "control characters"),
            (&long, "too long"),
        ] {
            let error = Token::parse(body.as_bytes()).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
        for body in [
            r#"{"token":"t","expires_in":-1}"#,
            r#"{"token":"t","expires_in":1e300}"#,
        ] {
            let validity = Token::parse(body.as_bytes()).unwrap().expires - Instant::now();
            assert!(validity > Duration::from_secs(50) && validity < Duration::from_secs(90_000));
        }
    }
}
