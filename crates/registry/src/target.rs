//! URLs of requests, and the resolution of redirects and `Location` headers.

use hyper::body::Incoming;
use hyper::header::{HeaderMap, LOCATION};
use hyper::{Method, Response, Uri};

/// Maximum number of redirects of one request.
pub(crate) const MAX_REDIRECTS: usize = 5;

/// A URL, and whether TLS is required.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) url: Uri,
    /// The URL and its redirects may be without TLS.
    pub(crate) may_be_plain: bool,
    /// Certificates are verified whatever the settings of registries say, because the server is none.
    pub(crate) is_web: bool,
}

impl Target {
    pub(crate) fn authority(&self) -> &str {
        self.url
            .authority()
            .map_or("", |authority| authority.as_str())
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.url.scheme_str() == Some("https")
    }

    /// Returns whether both are on the same server, with the same protocol.
    pub(crate) fn is_at(&self, other: &Self) -> bool {
        self.url.authority() == other.url.authority() && self.is_tls() == other.is_tls()
    }

    /// Returns method and URL, without the query, which may contain a signature.
    pub(crate) fn operation(&self, method: &Method) -> String {
        let scheme = self.url.scheme_str().unwrap_or_default();
        format!(
            "{method} {scheme}://{}{}",
            self.authority(),
            self.url.path()
        )
    }

    /// Returns the target of a redirect.
    pub(crate) fn redirected(
        &self,
        response: &Response<Incoming>,
    ) -> std::result::Result<Self, String> {
        let located = self.located(response.headers());
        located.map_err(|problem| format!("a redirect {problem}"))
    }

    /// Returns the URL in a response's header `Location`, which may be relative to this one.
    pub(crate) fn located(&self, headers: &HeaderMap) -> std::result::Result<Self, &'static str> {
        const NO_URL: &str = "to an invalid URL";
        let location = headers.get(LOCATION).ok_or("without a location")?;
        let location = location.to_str().map_err(|_| NO_URL)?;
        let location = if location.contains("://") || location.starts_with('/') {
            location.to_owned()
        } else {
            let path = self.url.path();
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{directory}/{location}")
        };
        let url: Uri = location.parse().map_err(|_| NO_URL)?;
        let mut parts = url.into_parts();
        if parts.authority.is_none() {
            parts.authority = self.url.authority().cloned();
            parts.scheme = self.url.scheme().cloned();
        }
        let url = Uri::from_parts(parts).map_err(|_| NO_URL)?;
        if url
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err("to a URL with credentials");
        }
        match url.scheme_str() {
            Some("https") => {}
            Some("http") if self.may_be_plain => {}
            Some("http") => return Err("from https to http"),
            _ => return Err("to another protocol"),
        }
        Ok(Self { url, ..*self })
    }

    /// Returns the URL with one more parameter; `None` if that is not a URL.
    pub(crate) fn with_parameter(&self, name: &str, value: &str) -> Option<Self> {
        let separator = if self.url.query().is_some() { '&' } else { '?' };
        let url = format!("{}{separator}{name}={}", self.url, encoded(value));
        Some(Self {
            url: url.parse().ok()?,
            ..self.clone()
        })
    }
}

pub(crate) fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Percent-encodes a value in a query or a form.
pub(crate) fn encoded(text: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn locations_may_be_absolute_or_relative() {
        let check = |base: &str, location: &str, expected: std::result::Result<&str, &str>| {
            let base = Target {
                url: base.parse().unwrap(),
                may_be_plain: base.starts_with("http:"),
                is_web: false,
            };
            let value = HeaderValue::from_str(location).unwrap();
            let located = base.located(&HeaderMap::from_iter([(LOCATION, value)]));
            match (&located, expected) {
                (Ok(target), Ok(expected)) => assert_eq!(target.url.to_string(), expected),
                (Err(error), Err(expected)) => assert_eq!(*error, expected),
                (found, _) => panic!("{location}: {found:?}"),
            }
        };
        let base = "https://r:5000/v2/a/blobs/uploads/";
        let upload = "https://r:5000/v2/a/blobs/uploads/1?_state=x";
        for location in [upload, "/v2/a/blobs/uploads/1?_state=x", "1?_state=x"] {
            check(base, location, Ok(upload));
        }
        check(base, "http://r:5000/v2/", Err("from https to http"));
        check(
            base,
            "https://user:secret@r/",
            Err("to a URL with credentials"),
        );
        check(base, "ftp://r/", Err("to another protocol"));
        check(base, "https://", Err("to an invalid URL"));
        let plain = "http://r:5000/v2/a/blobs/uploads/";
        check(plain, "/v2/x", Ok("http://r:5000/v2/x"));
        check(
            plain,
            "https://storage/x?sig=y",
            Ok("https://storage/x?sig=y"),
        );
    }

    #[test]
    fn with_parameter_extends_or_starts_the_query() {
        for (url, expected) in [
            ("https://r/v2/x", "https://r/v2/x?digest=sha256%3A00"),
            (
                "https://r/v2/x?a=%2F",
                "https://r/v2/x?a=%2F&digest=sha256%3A00",
            ),
        ] {
            let target = Target {
                url: url.parse().unwrap(),
                may_be_plain: false,
                is_web: false,
            };
            let target = target.with_parameter("digest", "sha256:00").unwrap();
            assert_eq!(target.url.to_string(), expected);
        }
    }
}
