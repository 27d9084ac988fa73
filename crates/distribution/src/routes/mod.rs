//! Decodes requests, runs their operations on blocking threads, and encodes the responses. Each
//! operation is in the file of its resource.

mod access;
mod answers;
mod blobs;
mod lists;
mod manifests;
mod referrers;
mod uploads;

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio::sync::Semaphore;

use crate::auth::Passwords;
use crate::body::{Outgoing, Pace, Received};
use crate::error::{Error, Kind, Result};
use crate::names::{self, ManifestKey, RepositoryName};
use crate::records::Registry;
use crate::rights::{Action, Rights};
use crate::tokens::Tokens;
use crate::upstream::Upstream;
use access::Permission;
use answers::{error_response, json};

/// Maximum number of manifests that are received in parallel, because they are held in memory.
pub(crate) const MAX_MANIFESTS: usize = 16;
/// Maximum number of lists that are made, or fetched from upstream, in parallel.
pub(crate) const MAX_LISTS: usize = 16;

/// What requests use.
#[derive(Debug)]
pub(crate) struct Server {
    pub registry: Arc<Registry>,
    pub passwords: Option<Arc<Passwords>>,
    /// Without them, every user may do everything.
    pub rights: Option<Arc<Rights>>,
    pub tokens: Tokens,
    pub is_tls: bool,
    pub upstream: Option<Arc<Upstream>>,
    pub pace: Pace,
    pub manifests: Semaphore,
    pub lists: Semaphore,
}

/// A decoded request.
struct Call {
    registry: Arc<Registry>,
    upstream: Option<Arc<Upstream>>,
    permission: Permission,
    method: Method,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Received,
}

type Answer = Result<Response<Outgoing>>;

/// Answers a request.
pub(crate) async fn respond(
    server: Arc<Server>,
    request: Request<Incoming>,
) -> std::result::Result<Response<Outgoing>, Infallible> {
    let (head, body) = request.into_parts();
    let awaits_request = head.headers.contains_key(header::EXPECT);
    let body = Received::new(body, server.pace, awaits_request);
    let (method, path) = (head.method.clone(), head.uri.path().to_owned());
    let challenge = server.challenge(&head.headers);
    let mut response = answer(&server, head, body).await.unwrap_or_else(|error| {
        if matches!(error.kind, Kind::Internal | Kind::Damaged) {
            tracing::error!("{method} {path}: {error}");
        }
        let mut response = error_response(&error);
        if error.kind == Kind::Unauthorized {
            let headers = response.headers_mut();
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    });
    tracing::debug!("{method} {path}: {}", response.status());
    let version = HeaderValue::from_static("registry/2.0");
    response
        .headers_mut()
        .insert("docker-distribution-api-version", version);
    Ok(response)
}

/// Answers a request of whoever is permitted to send it.
async fn answer(server: &Arc<Server>, head: Parts, body: Received) -> Answer {
    let path = head.uri.path();
    if path == "/token" {
        return server.token(&head.method, &head.headers).await;
    }
    let is_ping = matches!(path, "/v2" | "/v2/");
    let call = Call {
        registry: server.registry.clone(),
        upstream: server.upstream.clone(),
        permission: server.identify(&head.headers, is_ping).await?,
        method: head.method,
        query: query(head.uri.query().unwrap_or_default()),
        body,
        headers: head.headers,
    };
    route(server, call, path).await
}

/// Calls the operation of a path and a method. The last components of a path select it, because a
/// repository's name may contain any of the words.
async fn route(server: &Server, call: Call, path: &str) -> Answer {
    let not_found = || Kind::NotFound.error("no such resource");
    let path = path.strip_prefix("/v2").ok_or_else(not_found)?;
    let components: Vec<_> = path
        .split('/')
        .skip(1)
        .map(|component| percent_decode_str(component).decode_utf8_lossy())
        .collect();
    if let Some(upstream) = &call.upstream
        && !matches!(call.method, Method::GET | Method::HEAD)
    {
        return Err(upstream.read_only());
    }
    let components: Vec<&str> = components.iter().map(AsRef::as_ref).collect();
    let action = match (&call.method, &components[..]) {
        (&Method::GET | &Method::HEAD, [.., "blobs", "uploads", _]) => Action::Push,
        (&Method::GET | &Method::HEAD, _) => Action::Pull,
        (&Method::DELETE, [.., "blobs" | "manifests", _]) => Action::Delete,
        _ => Action::Push,
    };
    let permission = call.permission.clone();
    let repository = |name: &[&str]| -> Result<RepositoryName> {
        let repository = RepositoryName::parse(&name.join("/"))?;
        permission.check(action, &repository)?;
        Ok(repository)
    };
    match components[..] {
        [] | [""] => call.only_get()?.version(),
        ["_catalog"] => {
            let _turn = server.lists.acquire().await;
            call.only_get()?.catalog().await
        }
        [ref name @ .., "tags", "list"] => {
            let (call, repository) = (call.only_get()?, repository(name)?);
            let _turn = server.lists.acquire().await;
            call.tags(repository).await
        }
        [ref name @ .., "referrers", subject] => {
            let (repository, subject) = (repository(name)?, names::digest(subject)?);
            let call = call.only_get()?;
            let _turn = server.lists.acquire().await;
            call.referrers(repository, subject).await
        }
        [ref name @ .., "manifests", version] => {
            let (repository, version) = (repository(name)?, ManifestKey::parse(version));
            let is_push = call.method == Method::PUT;
            // A manifest with an invalid tag cannot exist.
            let version = version.map_err(|error| match error.kind {
                Kind::ManifestInvalid if !is_push => Kind::ManifestUnknown.error(error.text),
                _ => error,
            })?;
            if !is_push {
                return call.manifest(repository, version).await;
            }
            let _turn = server.manifests.acquire().await;
            call.push_manifest(repository, version).await
        }
        [ref name @ .., "blobs", "uploads", ""] | [ref name @ .., "blobs", "uploads"] => {
            call.begin_upload(repository(name)?).await
        }
        [ref name @ .., "blobs", "uploads", id] => {
            call.upload(repository(name)?, names::upload(id)?).await
        }
        [ref name @ .., "blobs", digest] => {
            call.blob(repository(name)?, names::digest(digest)?).await
        }
        _ => Err(not_found()),
    }
}

impl Call {
    fn only_get(self) -> Result<Self> {
        match self.method {
            Method::GET | Method::HEAD => Ok(self),
            _ => Err(unsupported()),
        }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns a path with the request's parameters.
    fn with_query(&self, path: &str) -> String {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let pairs = self.query.iter();
        let pairs: Vec<String> = pairs
            .map(|(key, value)| format!("{}={}", encode(key), encode(value)))
            .collect();
        match pairs.is_empty() {
            true => path.to_owned(),
            false => format!("{path}?{}", pairs.join("&")),
        }
    }

    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn version(&self) -> Answer {
        json(Response::builder(), &serde_json::Map::new())
    }

    fn last(&self) -> String {
        self.parameter("last").unwrap_or_default().to_owned()
    }
}

fn unsupported() -> Error {
    Kind::UnsupportedMethod.error("the resource does not have this method")
}

/// Returns the parameters of a query. As in Go, `+` is a space.
fn query(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let parsed = query("a=b%2Bc&&d=e+f&g&a=%FF");
        let expected = [
            pair("a", "b+c"),
            pair("d", "e f"),
            pair("g", ""),
            pair("a", "\u{fffd}"),
        ];
        assert_eq!(parsed, expected);
    }
}
