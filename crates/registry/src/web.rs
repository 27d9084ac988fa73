//! Requests to servers that are no registries, with the connections, proxies and certificates of a [`Client`].
//!
//! Builds fetch files and git repositories with them.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response, Uri};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use tokio::time::timeout;
use whelk_client::full_body;

use crate::error::{Error, Result};
use crate::target::{Target, is_redirect};
use crate::transport::{Client, HEAD_TIMEOUT, innermost};

/// Maximum number of redirects, as with Go's client.
const MAX_REDIRECTS: usize = 10;

/// What a URL may not have as it is.
const UNSAFE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\');

/// A request to a server. Its `Debug` shows no credentials.
#[derive(Clone)]
pub struct WebRequest {
    target: Target,
    headers: HeaderMap,
    /// What is sent; `GET` without.
    body: Option<Bytes>,
}

impl std::fmt::Debug for WebRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("WebRequest")
            .field(&self.operation())
            .finish()
    }
}

impl WebRequest {
    /// Returns a request for a URL (`http://` or `https://`). A user and a password in it are sent as its
    /// authorization, and are in no text.
    ///
    /// # Errors
    /// Returns an error if it is no such URL; its text has no part of the URL.
    pub fn new(url: &str) -> Result<Self> {
        let invalid = |problem: &str| Error::Settings(format!("invalid URL: {problem}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| invalid("no scheme"))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let path = utf8_percent_encode(path, UNSAFE);
        let url: Uri = format!("{}://{host}{path}", scheme.to_lowercase())
            .parse()
            .map_err(|_| invalid("malformed"))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) || host.is_empty() {
            return Err(invalid("want http://HOST/… or https://HOST/…"));
        }
        let target = Target {
            may_be_plain: url.scheme_str() == Some("http"),
            url,
            is_web: true,
        };
        let request = Self {
            target,
            headers: HeaderMap::new(),
            body: None,
        };
        Ok(match user {
            None => request,
            Some(user) => {
                let (user, password) = user.split_once(':').unwrap_or((user, ""));
                let plain = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
                request.password(&plain(user), &plain(password))
            }
        })
    }

    /// Sets a header. One that cannot be sent is left out.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(mut value) = HeaderValue::from_str(value) {
            value.set_sensitive(name.eq_ignore_ascii_case("authorization"));
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    /// Sets the authorization to a user's name and password.
    #[must_use]
    pub fn password(self, user: &str, password: &str) -> Self {
        let both = STANDARD.encode(format!("{user}:{password}"));
        self.header("authorization", &format!("Basic {both}"))
    }

    /// Returns whether it has an authorization.
    pub fn is_authorized(&self) -> bool {
        self.headers.contains_key(AUTHORIZATION)
    }

    /// Sends something (`POST`).
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        Self {
            body: Some(body.into()),
            ..self
        }
    }

    fn method(&self) -> Method {
        match self.body {
            Some(_) => Method::POST,
            None => Method::GET,
        }
    }

    /// Returns method and URL, without credentials and query.
    pub fn operation(&self) -> String {
        self.target.operation(&self.method())
    }

    /// Returns the host, without a port.
    pub fn host(&self) -> &str {
        self.target.url.host().unwrap_or_default()
    }
}

/// A response whose head has arrived. Its status may be one of a failure.
#[derive(Debug)]
pub struct WebResponse {
    operation: String,
    url: Uri,
    response: Response<Incoming>,
}

impl WebResponse {
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Returns the status as text: `404 Not Found`.
    pub fn status_text(&self) -> String {
        self.response.status().to_string()
    }

    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// Returns the URL that has answered: another one after redirects.
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// Returns the next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// Returns an error if the connection breaks, or if nothing arrives for a minute.
    pub async fn piece(&mut self) -> Result<Option<Bytes>> {
        let body = self.response.body_mut();
        loop {
            let Ok(frame) = timeout(HEAD_TIMEOUT, body.frame()).await else {
                let text = format!("nothing has come for {} s", HEAD_TIMEOUT.as_secs());
                return Err(Error::interrupted(&self.operation, text));
            };
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    // The others are trailers.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => {
                    return Err(Error::interrupted(&self.operation, innermost(&error)));
                }
            }
        }
    }
}

impl Client {
    /// Sends a request, and follows redirects. The authorization is sent to no other server, and nothing from
    /// `https` to `http`. What is sent with a body is not redirected.
    ///
    /// # Errors
    /// Returns an error if there is no response. One with any status is none.
    pub async fn web(self: &Arc<Self>, request: &WebRequest) -> Result<WebResponse> {
        let mut headers = request.headers.clone();
        let mut target = request.target.clone();
        let method = request.method();
        for _ in 0..=MAX_REDIRECTS {
            let body = full_body(request.body.clone().unwrap_or_default());
            let response = self.send(&method, &target, &headers, body).await?;
            if request.body.is_some() || !is_redirect(response.status().as_u16()) {
                return Ok(WebResponse {
                    operation: target.operation(&method),
                    url: target.url,
                    response,
                });
            }
            let next = target
                .redirected(&response)
                .map_err(|problem| Error::invalid(&target.operation(&method), problem))?;
            if !next.is_at(&target) {
                headers.remove(AUTHORIZATION);
            }
            target = next;
        }
        let problem = format!("more than {MAX_REDIRECTS} redirects");
        Err(Error::invalid(&request.operation(), problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_in_no_text() {
        let request = WebRequest::new("https://user:s%40cret@host:8443/a b?token=x#y").unwrap();
        assert_eq!(request.operation(), "GET https://host:8443/a%20b");
        assert_eq!(request.target.url, "https://host:8443/a%20b?token=x");
        let value = request.headers.get(AUTHORIZATION).unwrap();
        let expected = format!("Basic {}", STANDARD.encode("user:s@cret"));
        assert_eq!(value.to_str().unwrap(), expected);
        let shown = format!("{request:?}");
        assert!(
            !shown.contains("cret") && !shown.contains("token"),
            "{shown}"
        );
    }

    #[test]
    fn other_urls_are_refused() {
        for url in [
            "host/x",
            "ftp://host/x",
            "https://",
            "http:///x",
            "https://a b/",
        ] {
            let error = WebRequest::new(url).unwrap_err().to_string();
            assert!(error.starts_with("invalid URL: "), "{url}: {error}");
        }
    }
}
