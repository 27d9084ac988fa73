//! Requests to the servers of a repository: authorized, redirected, and retried where that helps.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};
use whelk_client::full_body;

use crate::attempts::Attempts;
use crate::auth::{Access, Credentials, bearer};
use crate::challenge::Challenge;
use crate::endpoints::{Endpoint, Transport};
use crate::error::{Error, Kind, Result};
use crate::response::{accept, challenges};
use crate::target::{MAX_REDIRECTS, Target, is_redirect};
use crate::transport::Client;

/// A repository of a registry, with the credentials to use.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(crate) client: Arc<Client>,
    pub(crate) endpoints: Vec<Endpoint>,
    /// Empty for the registry itself.
    pub(crate) path: String,
    /// Scope of access tokens, such as `repository:NAME:pull`.
    pub(crate) scope: String,
    pub(crate) credentials: Credentials,
}

/// A request below a repository's URL.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) method: Method,
    /// `manifests/TAG`, for example.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    body: Bytes,
    /// Additional scope that a token needs.
    scope: String,
    /// The version of the protocol in the path.
    version: &'static str,
}

impl Query {
    pub(crate) fn new(method: Method, path: String) -> Self {
        Self {
            method,
            path,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            scope: String::new(),
            version: "v2",
        }
    }

    /// Sends the request by the older protocol, of which only searches are left.
    pub(crate) fn version_1(self) -> Self {
        Self {
            version: "v1",
            ..self
        }
    }

    pub(crate) fn body(self, body: Bytes) -> Self {
        Self { body, ..self }
    }

    /// Sets the additional scope that a token needs.
    pub(crate) fn also(self, scope: String) -> Self {
        Self { scope, ..self }
    }

    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        // An invalid value is omitted; digests and numbers are always valid.
        self.headers
            .extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }
}

impl Repository {
    /// Number of consecutive failures after which a transfer fails.
    pub(crate) fn attempts(&self) -> u32 {
        self.client.settings.attempts.max(1)
    }

    /// Sends a request to the servers of the repository, one after another, until one succeeds, and
    /// returns its response. At the registry itself, it is retried after temporary errors.
    pub(crate) async fn ask(&self, query: &Query) -> Result<(Response<Incoming>, String)> {
        let mut attempts = Attempts::default();
        loop {
            let endpoint = self.server(&attempts)?;
            match self.ask_endpoint(&endpoint, query).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => self.after(&mut attempts, failure, |_| {}).await?,
            }
        }
    }

    /// Returns the URL of a request to a server.
    fn target(&self, endpoint: &Endpoint, query: &Query, tls: bool) -> Result<Target> {
        let scheme = if tls { "https" } else { "http" };
        let (host, prefix) = (&endpoint.host, &endpoint.prefix);
        let base = format!("{scheme}://{host}{prefix}/{}/", query.version);
        let url = if self.path.is_empty() {
            format!("{base}{}", query.path)
        } else {
            format!("{base}{}/{}", self.path, query.path)
        };
        Ok(Target {
            url: url
                .parse()
                .map_err(|_| Error::Settings(format!("{url} is not a URL")))?,
            may_be_plain: endpoint.transport != Transport::Tls,
            is_web: false,
        })
    }

    /// Sends a request to one server. An error includes the server's `Retry-After`.
    pub(crate) async fn ask_endpoint(
        &self,
        endpoint: &Endpoint,
        query: &Query,
    ) -> std::result::Result<(Response<Incoming>, String), (Error, Option<Duration>)> {
        let tls = match endpoint.transport {
            Transport::Tls => true,
            Transport::Plain => false,
            Transport::Insecure => self.client.speaks_tls(&endpoint.host).unwrap_or(true),
        };
        let outcome = self.ask_over(endpoint, query, tls).await;
        if endpoint.transport != Transport::Insecure || !tls {
            return outcome;
        }
        match outcome {
            Err((error @ Error::Unreachable { .. }, wait)) if is_about(&error, endpoint) => {
                let plain = self.ask_over(endpoint, query, false).await;
                let answers_as_registry = match &plain {
                    Ok(_) => true,
                    Err((error, _)) => matches!(
                        error.kind(),
                        Kind::Unauthorized | Kind::Denied | Kind::NotFound
                    ),
                };
                if answers_as_registry {
                    self.client.note_plain(&endpoint.host);
                    return plain;
                }
                match plain {
                    // Neither works: the error of TLS is reported, which is the expected protocol.
                    Err((Error::Unreachable { .. }, _)) => Err((error, wait)),
                    outcome => outcome,
                }
            }
            outcome => outcome,
        }
    }

    async fn ask_over(
        &self,
        endpoint: &Endpoint,
        query: &Query,
        tls: bool,
    ) -> std::result::Result<(Response<Incoming>, String), (Error, Option<Duration>)> {
        let target = self
            .target(endpoint, query, tls)
            .map_err(|error| (error, None))?;
        // The credentials are for the registry, not for its mirrors.
        let credentials = if endpoint.is_mirror {
            Credentials::Anonymous
        } else {
            self.credentials.clone()
        };
        let access = Access {
            host: endpoint.host.clone(),
            scope: format!("{} {}", self.scope, query.scope).trim().to_owned(),
            credentials,
        };
        let mut authorization = match &access.credentials {
            Credentials::RegistryToken(token) => bearer(token),
            _ => self.client.tokens.get(&access),
        };
        let at_once = |error| (error, None);
        let (mut response, mut from) = self
            .follow(&target, query, authorization.take())
            .await
            .map_err(at_once)?;
        // The credentials are not sent to a redirect target that requests some.
        if response.status() == StatusCode::UNAUTHORIZED && from.is_at(&target) {
            self.client.tokens.forget(&access);
            let challenges = challenges(response.headers());
            authorization = self
                .authorize(&target, &access, &challenges)
                .await
                .map_err(at_once)?;
            let wants_password = challenges.contains(&Challenge::Basic);
            if authorization.is_none()
                && wants_password
                && access.credentials == Credentials::Anonymous
            {
                let operation = target.operation(&query.method);
                return Err(at_once(no_credentials(&operation)));
            }
            if authorization.is_some() {
                (response, from) = self
                    .follow(&target, query, authorization)
                    .await
                    .map_err(at_once)?;
            }
        }
        // Relative locations in the response are resolved against this URL.
        response.extensions_mut().insert(from);
        accept(&target, &query.method, response).await
    }

    /// Sends a request and follows redirects. The authorization is not sent to other servers. Returns
    /// the response and its URL.
    async fn follow(
        &self,
        target: &Target,
        query: &Query,
        authorization: Option<HeaderValue>,
    ) -> Result<(Response<Incoming>, Target)> {
        let mut headers = query.headers.clone();
        headers.extend(authorization.map(|value| (AUTHORIZATION, value)));
        let mut target = target.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self
                .client
                .send(
                    &query.method,
                    &target,
                    &headers,
                    full_body(query.body.clone()),
                )
                .await?;
            if !is_redirect(response.status().as_u16()) {
                return Ok((response, target));
            }
            let next = target
                .redirected(&response)
                .map_err(|problem| Error::invalid(&target.operation(&query.method), problem))?;
            if !next.is_at(&target) {
                headers.remove(AUTHORIZATION);
            }
            target = next;
        }
        Err(Error::invalid(
            &target.operation(&query.method),
            format!("more than {MAX_REDIRECTS} redirects"),
        ))
    }
}

/// Returns the error, with Docker's text, for a registry that requires a password when there is none.
fn no_credentials(operation: &str) -> Error {
    let (method, url) = operation.split_once(' ').unwrap_or_default();
    let (first, rest) = method.split_at(method.len().min(1));
    let method = format!("{first}{}", rest.to_lowercase());
    Error::Unauthorized(format!("{method} {url:?}: no basic auth credentials"))
}

/// Returns whether an error is about the server itself, and not about a redirect target.
fn is_about(error: &Error, endpoint: &Endpoint) -> bool {
    matches!(error, Error::Unreachable { host, .. } if *host == endpoint.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_credentials_have_dockers_error_text() {
        let error = no_credentials("HEAD http://r/v2/a/manifests/1");
        let text = "Head \"http://r/v2/a/manifests/1\": no basic auth credentials";
        assert_eq!(error.to_string(), text);
    }
}
