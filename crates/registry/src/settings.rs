//! The administrator's settings for registries: insecure ones, mirrors, certificates, proxies.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use ipnet::IpNet;

use crate::attempts::MAX_WAIT;

/// The settings of a [`Client`](crate::Client).
#[derive(Clone, Debug)]
pub struct Settings {
    /// Registries that may be used without TLS, or with an unverified certificate. Those on loopback
    /// always may.
    pub insecure: Vec<Insecure>,
    /// Base URLs of the mirrors that are tried before a registry, in this order. The first pattern that
    /// matches the registry is used.
    pub mirrors: Vec<(Pattern, Vec<String>)>,
    /// A directory with one directory for each registry (`HOST[:PORT]`), which has certificates of
    /// authorities (`*.crt`) and client certificates (`*.cert` with `*.key`).
    pub certificates: PathBuf,
    pub proxies: Proxies,
    /// Value of the header `User-Agent`.
    pub user_agent: String,
    /// Number of consecutive failures after which a transfer fails.
    pub attempts: u32,
    /// Maximum wait before another attempt. If a registry asks for a longer one, the transfer fails.
    pub max_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            mirrors: Vec::new(),
            certificates: "/etc/docker/certs.d".into(),
            proxies: Proxies::default(),
            user_agent: "whelk".into(),
            attempts: 5,
            max_wait: MAX_WAIT,
        }
    }
}

/// Selects registries: a host with an optional port, whose first label may be `*` for any labels, or
/// `*` for all registries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    fn matches(&self, host: &str) -> bool {
        match self.0.strip_prefix('*') {
            // "*" has an empty rest, "*.example.com" one that begins with a dot.
            Some(rest) => host.ends_with(rest) && host.len() > rest.len(),
            None => host == self.0,
        }
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = match text.strip_prefix('*') {
            Some("") => return Ok(Self(text.into())),
            Some(rest) => rest.strip_prefix('.').unwrap_or("*"),
            None => text,
        };
        let is_valid = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
        if is_valid {
            Ok(Self(text.to_lowercase()))
        } else {
            Err(format!(
                "invalid registry {text:?}: want HOST[:PORT], *.DOMAIN[:PORT] or *"
            ))
        }
    }
}

/// A registry, or several, that may be used without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Insecure {
    /// `HOST[:PORT]`, as in the names of images.
    Host(String),
    /// Registries that are named by an address in this network. Names are not resolved, because
    /// without TLS the server's identity is not verified.
    Network(IpNet),
}

impl FromStr for Insecure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        match text.parse::<Pattern>() {
            Ok(Pattern(host)) if !host.starts_with('*') => Ok(Self::Host(host)),
            _ => Err(format!(
                "insecure registry {text:?} is not valid: want HOST[:PORT] or a network in CIDR notation"
            )),
        }
    }
}

impl Settings {
    /// Checks the URLs of mirrors and proxies.
    ///
    /// # Errors
    /// Returns an error that names the URL, without credentials.
    pub fn check(&self) -> crate::Result<()> {
        self.proxies.check()?;
        let mut urls = self.mirrors.iter().flat_map(|(_, urls)| urls);
        urls.try_for_each(|url| crate::endpoints::mirror(self, url).map(drop))
    }

    /// Returns whether a registry (`HOST[:PORT]`) may be used without TLS.
    pub(crate) fn is_insecure(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let name = name_of(&host);
        let address: Option<IpAddr> = name.parse().ok();
        name == "localhost"
            || address.is_some_and(|address| address.is_loopback())
            || self.insecure.iter().any(|insecure| match insecure {
                Insecure::Host(own) => *own == host,
                Insecure::Network(network) => {
                    address.is_some_and(|address| network.contains(&address))
                }
            })
    }

    /// Returns the base URLs of a registry's mirrors.
    pub fn mirrors_of(&self, host: &str) -> &[String] {
        let host = host.to_ascii_lowercase();
        let found = self
            .mirrors
            .iter()
            .find(|(pattern, _)| pattern.matches(&host));
        found.map_or(&[], |(_, urls)| urls)
    }
}

/// Returns the host of `HOST[:PORT]`, without the brackets of an IPv6 address.
pub(crate) fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(name, _)| name),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

/// The HTTP proxies of this host, as URLs; empty for none. Credentials in them are never printed.
#[derive(Clone, Default)]
pub struct Proxies {
    /// For `http://` URLs.
    pub http: String,
    /// For `https://` URLs.
    pub https: String,
    /// Hosts, domains and networks that are reached directly, separated by commas.
    pub none: String,
}

impl Proxies {
    /// Reads the variables `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, in this or in lower case.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| {
            let set = variable(name).or_else(|| variable(&name.to_lowercase()));
            set.unwrap_or_default()
        };
        Self {
            http: get("HTTP_PROXY"),
            https: get("HTTPS_PROXY"),
            none: get("NO_PROXY"),
        }
    }

    fn check(&self) -> crate::Result<()> {
        for (kind, url) in [("http", &self.http), ("https", &self.https)] {
            if !url.is_empty() {
                check_proxy(url).map_err(|why| {
                    let (_, shown) = url.rsplit_once('@').unwrap_or(("", url));
                    let hidden = if shown.len() < url.len() {
                        "xxxxx@"
                    } else {
                        ""
                    };
                    crate::Error::Settings(format!(
                        "proxy for {kind}:// URLs \"{hidden}{shown}\": {why}"
                    ))
                })?;
            }
        }
        Ok(())
    }

    pub(crate) fn matcher(&self) -> Matcher {
        // As in Go's clients, loopback addresses are never proxied.
        let none = format!("{},localhost,127.0.0.0/8,::1", self.none);
        Matcher::builder()
            .http(self.http.clone())
            .https(self.https.clone())
            .no(none)
            .build()
    }
}

/// Checks the URL of a proxy. As with Go's clients, without a scheme it is an `http://` one.
fn check_proxy(url: &str) -> Result<(), &'static str> {
    const NO_URL: &str = "not a URL: want http://HOST[:PORT]";
    let url: hyper::Uri = url.parse().map_err(|_| NO_URL)?;
    if !matches!(url.scheme_str(), None | Some("http" | "https")) {
        return Err("want http:// or https://");
    }
    let authority = url.authority().ok_or(NO_URL)?;
    let host = authority.as_str().rsplit('@').next().unwrap_or_default();
    // The parser ignores an invalid port.
    if authority.host().is_empty() || (authority.port().is_none() && host != authority.host()) {
        return Err(NO_URL);
    }
    Ok(())
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("none", &self.none)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insecure_registries_are_named_or_on_loopback() {
        let settings = Settings {
            insecure: ["registry.corp:5000", "10.0.0.0/8", "fd00::/8"]
                .map(|text| text.parse().unwrap())
                .into(),
            ..Settings::default()
        };
        for (host, expected) in [
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("localhost:5000", true),
            ("localhost.example.com", false),
            ("registry.corp:5000", true),
            ("Registry.CORP:5000", true),
            ("LocalHost", true),
            ("registry.corp", false),
            ("10.2.3.4:80", true),
            ("11.2.3.4:80", false),
            ("[fd00::2]:5000", true),
            ("docker.io", false),
        ] {
            assert_eq!(settings.is_insecure(host), expected, "{host}");
        }
        for text in ["", "*", "http://x", "a/b", "*.corp"] {
            assert!(
                text.parse::<Insecure>()
                    .unwrap_err()
                    .contains("is not valid"),
                "{text}"
            );
        }
    }

    #[test]
    fn mirrors_are_selected_by_the_first_pattern_that_matches() {
        let mirror = |pattern: &str, url: &str| (pattern.parse().unwrap(), vec![url.to_owned()]);
        let settings = Settings {
            mirrors: vec![
                mirror("docker.io", "https://a"),
                mirror("*.corp:5000", "https://b"),
                mirror("*", "https://c"),
            ],
            ..Settings::default()
        };
        for (host, expected) in [
            ("docker.io", "https://a"),
            ("x.corp:5000", "https://b"),
            ("X.Corp:5000", "https://b"),
            ("x.y.corp:5000", "https://b"),
            (".corp:5000", "https://c"),
            ("quay.io", "https://c"),
        ] {
            assert_eq!(settings.mirrors_of(host), [expected], "{host}");
        }
        assert!(Settings::default().mirrors_of("docker.io").is_empty());
        for text in ["", "*x", "a*b", "https://x", "*."] {
            let expected =
                format!("invalid registry {text:?}: want HOST[:PORT], *.DOMAIN[:PORT] or *");
            assert_eq!(text.parse::<Pattern>(), Err(expected));
        }
    }

    #[test]
    fn invalid_proxy_urls_are_rejected() {
        let check = |url: &str| {
            let proxies = Proxies {
                https: url.to_owned(),
                ..Proxies::default()
            };
            let settings = Settings {
                proxies,
                ..Settings::default()
            };
            settings.check().map_err(|error| error.to_string())
        };
        for url in [
            "",
            "http://proxy:3128",
            "proxy.corp:3128",
            "proxy",
            "https://user:secret@[::1]:3128/",
        ] {
            assert_eq!(check(url), Ok(()), "{url}");
        }
        for (url, expected) in [
            (
                "socks5://user:secret@proxy",
                "\"xxxxx@proxy\": want http:// or https://",
            ),
            ("http://proxy:port", "\"http://proxy:port\": not a URL"),
            ("http://proxy:99999", "not a URL"),
            ("http://", "not a URL"),
            ("/proxy", "not a URL"),
            ("pro xy", "not a URL"),
        ] {
            let error = check(url).unwrap_err();
            assert!(
                error.starts_with("proxy for https:// URLs ")
                    && error.contains(expected)
                    && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn proxy_variables_have_either_case_and_loopback_is_not_proxied() {
        let proxies = Proxies::from_environment(|name| match name {
            "https_proxy" => Some("http://user:secret@proxy:3128".into()),
            "NO_PROXY" => Some(".corp,10.0.0.0/8".into()),
            _ => None,
        });
        assert!(!format!("{proxies:?}").contains("secret"));
        let matcher = proxies.matcher();
        for (url, proxied) in [
            ("https://quay.io/v2/", true),
            ("https://registry.corp/v2/", false),
            ("https://10.1.2.3/v2/", false),
            ("https://127.0.0.1:5000/v2/", false),
            ("https://[::1]:5000/v2/", false),
            ("http://quay.io/v2/", false),
        ] {
            let proxy = matcher.intercept(&url.parse().unwrap());
            assert_eq!(proxy.is_some(), proxied, "{url}");
        }
    }
}
