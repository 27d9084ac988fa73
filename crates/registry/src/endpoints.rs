//! The servers that have a repository's content: its registry, and mirrors before it.

use crate::error::{Error, Result};
use crate::settings::Settings;

/// The name of Docker Hub in references, and the host that serves it.
pub(crate) const HUB: &str = "docker.io";
const HUB_HOST: &str = "registry-1.docker.io";

/// A server that has a repository's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `HOST[:PORT]`
    pub(crate) host: String,
    /// Path before `/v2/`, without a slash at its end.
    pub(crate) prefix: String,
    pub(crate) transport: Transport,
    pub(crate) is_mirror: bool,
}

/// How a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TLS, and the server's certificate is verified.
    Tls,
    /// TLS if the server speaks it, whatever its certificate; HTTP otherwise.
    Insecure,
    /// HTTP, because a mirror's URL says so.
    Plain,
}

/// Returns the servers to pull from, in the order in which they are tried. `domain` is the registry as
/// in references.
pub(crate) fn endpoints(settings: &Settings, domain: &str) -> Result<Vec<Endpoint>> {
    let mut endpoints = settings
        .mirrors_of(domain)
        .iter()
        .map(|url| mirror(settings, url))
        .collect::<Result<Vec<_>>>()?;
    endpoints.push(registry(settings, domain));
    Ok(endpoints)
}

/// Returns the server of a registry itself. `domain` is the registry as in references.
pub(crate) fn registry(settings: &Settings, domain: &str) -> Endpoint {
    let host = if domain == HUB { HUB_HOST } else { domain };
    Endpoint {
        host: host.to_owned(),
        prefix: String::new(),
        transport: transport(settings, host),
        is_mirror: false,
    }
}

fn transport(settings: &Settings, host: &str) -> Transport {
    if settings.is_insecure(host) {
        Transport::Insecure
    } else {
        Transport::Tls
    }
}

pub(crate) fn mirror(settings: &Settings, url: &str) -> Result<Endpoint> {
    let shown = match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://xxxxx@{rest}"),
        _ => url.to_owned(),
    };
    let refuse = |why: &str| Error::Settings(format!("registry mirror {shown:?}: {why}"));
    let parsed: hyper::Uri = url.parse().map_err(|_| refuse("not a URL"))?;
    let host = parsed.authority().map(|authority| authority.as_str());
    let host = host.ok_or_else(|| refuse("no host"))?.to_owned();
    if host.contains('@') {
        return Err(refuse("mirrors are used without credentials"));
    }
    if parsed.query().is_some() {
        return Err(refuse("a query does not belong into the URL"));
    }
    let transport = match parsed.scheme_str() {
        Some("https") => transport(settings, &host),
        Some("http") => Transport::Plain,
        _ => return Err(refuse("want http:// or https://")),
    };
    Ok(Endpoint {
        prefix: parsed.path().trim_end_matches('/').to_owned(),
        host,
        transport,
        is_mirror: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mirrors: &[&str]) -> Settings {
        Settings {
            mirrors: vec![(
                "docker.io".parse().unwrap(),
                mirrors.iter().map(|url| (*url).to_owned()).collect(),
            )],
            ..Settings::default()
        }
    }

    #[test]
    fn mirrors_come_before_the_registry() {
        let settings = settings(&["http://mirror.corp:5000/hub/", "https://127.0.0.1:5000"]);
        let found = endpoints(&settings, "docker.io").unwrap();
        let expected = [
            ("mirror.corp:5000", "/hub", Transport::Plain, true),
            ("127.0.0.1:5000", "", Transport::Insecure, true),
            ("registry-1.docker.io", "", Transport::Tls, false),
        ];
        let found: Vec<_> = found
            .iter()
            .map(|endpoint| {
                (
                    endpoint.host.as_str(),
                    endpoint.prefix.as_str(),
                    endpoint.transport,
                    endpoint.is_mirror,
                )
            })
            .collect();
        assert_eq!(found, expected);
        assert_eq!(endpoints(&settings, "quay.io").unwrap().len(), 1);
    }

    #[test]
    fn invalid_mirror_urls_are_rejected() {
        for (url, expected) in [
            ("mirror.corp", "want http:// or https://"),
            ("ftp://mirror.corp", "want http:// or https://"),
            (
                "https://user:pw@mirror.corp",
                "xxxxx@mirror.corp\": mirrors are used without credentials",
            ),
            ("https://mirror.corp/?x=1", "a query does not belong"),
            ("https://", "not a URL"),
        ] {
            let error = endpoints(&settings(&[url]), "docker.io").unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
