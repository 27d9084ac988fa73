//! Requests to registries: authentication, redirects, mirrors, and retries.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION,
    RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use whelk_client::{Body, full_body, no_body};
use whelk_image::Reference;
use whelk_sys::sync::IgnorePoison as _;

use crate::attempts::{Attempts, MAX_WAIT};
use crate::auth::{Access, Credentials, Token, Tokens, bearer};
use crate::challenge::{self, Challenge};
use crate::connector::{self, Connector};
use crate::endpoints::{Endpoint, Transport, endpoints};
use crate::error::{Error, Kind, Reported, Result};
use crate::settings::Settings;

/// How long a registry may take to begin a response.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Unused connections that are kept for each host.
const IDLE_CONNECTIONS: usize = 8;
/// Maximum number of redirects of one request.
const MAX_REDIRECTS: usize = 5;
/// Maximum size of an error's body, and of a response with a token, in bytes.
const MAX_ANSWER: usize = 256 << 10;
/// Maximum number of errors of a response that are shown, and of characters of each message.
const MAX_ERRORS: usize = 8;
const MAX_MESSAGE: usize = 1024;

/// The connections and tokens of an engine, and its settings for registries.
#[derive(Debug)]
pub struct Client {
    pub(crate) settings: Settings,
    proxies: Arc<Matcher>,
    user_agent: HeaderValue,
    /// With the state of the certificate files that they were created from.
    pools: Mutex<HashMap<Trusted, (connector::Stamp, Connections)>>,
    /// Whether an insecure registry supports TLS, by host.
    speaks_tls: Mutex<HashMap<String, bool>>,
    pub(crate) tokens: Tokens,
}

type Connections = Pool<Connector, Body>;

/// Which certificates are accepted on a pool's connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trusted {
    /// Those of the host's authorities.
    System,
    /// Those of the host's authorities, and of the authorities in a registry's directory.
    Directory(PathBuf),
    Anyone,
}

impl Client {
    /// # Errors
    /// Returns an error if the setting `user_agent` cannot be in a header.
    pub fn new(settings: Settings) -> Result<Arc<Self>> {
        let user_agent = HeaderValue::from_str(&settings.user_agent)
            .map_err(|_| Error::Settings("the user agent has control characters".into()))?;
        Ok(Arc::new(Self {
            proxies: Arc::new(settings.proxies.matcher()),
            user_agent,
            settings,
            pools: Mutex::default(),
            speaks_tls: Mutex::default(),
            tokens: Tokens::default(),
        }))
    }

    /// Returns the repository that a reference names, to pull from it as `credentials`.
    ///
    /// # Errors
    /// Returns an error if a mirror's URL is not valid.
    pub fn pull(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Credentials,
    ) -> Result<Repository> {
        Ok(Repository {
            endpoints: endpoints(&self.settings, &reference.domain)?,
            client: self.clone(),
            path: reference.path.clone(),
            scope: format!("repository:{}:pull", reference.path),
            credentials,
        })
    }

    /// Returns which certificates are accepted from a server. Only the server's own name decides: the
    /// settings of a registry do not apply to its authorization service or to redirect targets.
    fn trusted(&self, host: &str) -> Trusted {
        let directory = self.settings.certificates.join(host);
        if self.settings.is_insecure(host) {
            Trusted::Anyone
        } else if directory.is_dir() {
            Trusted::Directory(directory)
        } else {
            Trusted::System
        }
    }

    /// Returns the pool of connections to a server. If certificate files have changed since the last
    /// request, it is a new one.
    fn pool(&self, host: &str) -> Result<Connections> {
        let trusted = self.trusted(host);
        let stamp = match &trusted {
            Trusted::Directory(directory) => connector::stamp(directory)?,
            Trusted::System | Trusted::Anyone => connector::Stamp::default(),
        };
        if let Some((known, pool)) = self.pools.lock().ignore_poison().get(&trusted)
            && *known == stamp
        {
            return Ok(pool.clone());
        }
        let tls = match &trusted {
            Trusted::System => connector::verified(None),
            Trusted::Directory(directory) => connector::verified(Some(directory)),
            Trusted::Anyone => connector::unverified(),
        }?;
        let pool = Pool::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_timer(TokioTimer::new())
            .build(Connector {
                tls,
                proxies: self.proxies.clone(),
            });
        self.pools
            .lock()
            .ignore_poison()
            .insert(trusted, (stamp, pool.clone()));
        Ok(pool)
    }

    /// Returns whether a server was found not to support TLS.
    pub(crate) fn is_known_to_be_plain(&self, host: &str) -> bool {
        self.speaks_tls.lock().ignore_poison().get(host) == Some(&false)
    }

    /// Sends a request and returns the response when its head has arrived.
    pub(crate) async fn send(
        &self,
        method: &Method,
        target: &Target,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response<Incoming>> {
        self.send_watched(method, target, headers, body, &AtomicU64::new(0))
            .await
    }

    /// Like [`Client::send`], with a body that may take long. `sent` counts what was sent of it; the
    /// timeout starts again as long as it increases.
    pub(crate) async fn send_watched(
        &self,
        method: &Method,
        target: &Target,
        headers: &HeaderMap,
        body: Body,
        sent: &AtomicU64,
    ) -> Result<Response<Incoming>> {
        let operation = target.operation(method);
        // Some servers require a Content-Length of 0, which hyper omits.
        let is_empty = body.is_end_stream() && matches!(*method, Method::POST | Method::PUT);
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = target.url.clone();
        *request.headers_mut() = headers.clone();
        if is_empty {
            let zero = HeaderValue::from_static("0");
            request.headers_mut().insert(CONTENT_LENGTH, zero);
        }
        request
            .headers_mut()
            .insert(USER_AGENT, self.user_agent.clone());
        let host = target.authority();
        let proxy = self
            .proxies
            .intercept(&target.url)
            .filter(|_| !target.is_tls());
        if let Some(credentials) = proxy.as_ref().and_then(|proxy| proxy.basic_auth()) {
            let name = HeaderName::from_static("proxy-authorization");
            request.headers_mut().insert(name, credentials.clone());
        }
        let mut answer = self.pool(host)?.request(request);
        let mut before = 0;
        let answer = loop {
            match tokio::time::timeout(HEAD_TIMEOUT, &mut answer).await {
                Ok(answer) => break answer,
                Err(_) if sent.load(Ordering::Relaxed) > before => {
                    before = sent.load(Ordering::Relaxed);
                }
                Err(_) => {
                    return Err(Error::interrupted(
                        &operation,
                        format!("no answer within {} s", HEAD_TIMEOUT.as_secs()),
                    ));
                }
            }
        };
        match answer {
            Ok(response) => Ok(response),
            Err(error) if error.is_connect() => Err(Error::Unreachable {
                host: host.to_owned(),
                cause: innermost(&error),
                is_lasting: is_lasting(&error),
            }),
            Err(error) => Err(Error::interrupted(&operation, innermost(&error))),
        }
    }
}

/// Returns the text of an error's innermost source, which is the cause.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    loop {
        if let Some(reason) = error
            .downcast_ref::<io::Error>()
            .and_then(whelk_client::tls_reason)
        {
            return reason;
        }
        match error.source() {
            Some(source) => error = source,
            None => break,
        }
    }
    match error.downcast_ref::<io::Error>() {
        // Without "(os error N)".
        Some(error) if error.raw_os_error().is_some() => {
            let text = error.to_string();
            text.split(" (os error")
                .next()
                .unwrap_or_default()
                .to_lowercase()
        }
        _ => error.to_string(),
    }
}

/// Returns whether a retry of the connection would fail too: the host name does not exist, or TLS
/// fails. A name server that does not respond is a temporary failure.
fn is_lasting(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let text = error.to_string();
            let is_unknown = text.starts_with("failed to lookup address information")
                // The texts of musl and glibc for EAI_AGAIN.
                && !text.contains("Try again")
                && !text.contains("Temporary failure");
            if is_unknown || whelk_client::tls_reason(error).is_some() {
                return true;
            }
        }
        next = error.source();
    }
    false
}

/// A URL, and whether TLS is required.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    url: Uri,
    /// The URL and its redirects may be without TLS.
    may_be_plain: bool,
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
    fn is_at(&self, other: &Self) -> bool {
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
    fn redirected(&self, response: &Response<Incoming>) -> std::result::Result<Self, String> {
        let located = self.located(response.headers());
        located.map_err(|problem| format!("a redirect {problem}"))
    }

    /// Returns the URL in a response's header `Location`, which may be relative to this one.
    pub(crate) fn located(&self, headers: &HeaderMap) -> std::result::Result<Self, &'static str> {
        const NO_URL: &str = "to what is not a URL";
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
        Ok(Self {
            url,
            may_be_plain: self.may_be_plain,
        })
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
}

impl Query {
    pub(crate) fn new(method: Method, path: String) -> Self {
        Self {
            method,
            path,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            scope: String::new(),
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
        let base = format!("{scheme}://{}{}/v2/", endpoint.host, endpoint.prefix);
        let url = if self.path.is_empty() {
            base
        } else {
            format!("{base}{}/{}", self.path, query.path)
        };
        Ok(Target {
            url: url
                .parse()
                .map_err(|_| Error::Settings(format!("{url} is not a URL")))?,
            may_be_plain: endpoint.transport != Transport::Tls,
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
            Transport::Insecure => {
                let known = self
                    .client
                    .speaks_tls
                    .lock()
                    .ignore_poison()
                    .get(&endpoint.host)
                    .copied();
                known.unwrap_or(true)
            }
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
                    Err((error, _)) => matches!(error.kind(), Kind::Denied | Kind::NotFound),
                };
                if answers_as_registry {
                    let mut known = self.client.speaks_tls.lock().ignore_poison();
                    known.insert(endpoint.host.clone(), false);
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

    /// Returns the header `Authorization` for a server's challenges; `None` if there are no credentials
    /// for them.
    pub(crate) async fn authorize(
        &self,
        target: &Target,
        access: &Access,
        challenges: &[Challenge],
    ) -> Result<Option<HeaderValue>> {
        if matches!(access.credentials, Credentials::RegistryToken(_)) {
            return Ok(None);
        }
        let service = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service } => Some((realm, service)),
            Challenge::Basic => None,
        });
        let token = match service {
            Some((realm, service)) => Some(self.token(target, access, realm, service).await?),
            None if challenges.is_empty() => None,
            None => access.credentials.basic().map(Token::lasting),
        };
        let Some(token) = token else { return Ok(None) };
        let value = token.value.clone();
        self.client.tokens.put(access.clone(), token);
        Ok(Some(value))
    }

    /// Requests a token from an authorization service.
    async fn token(
        &self,
        target: &Target,
        access: &Access,
        realm: &str,
        service: &str,
    ) -> Result<Token> {
        let operation = target.operation(&Method::GET);
        let refuse = |problem: &str| {
            Err(Error::invalid(
                &operation,
                format!("authorization service {}: {problem}", shown(realm)),
            ))
        };
        let (url, query) = realm.split_once('?').unwrap_or((realm, ""));
        let mut parameters: Vec<String> = Vec::new();
        let mut add = |name: &str, value: &str| {
            if !value.is_empty() {
                parameters.push(format!("{name}={}", encoded(value)));
            }
        };
        add("service", service);
        match access.credentials {
            // A form has all scopes in one field.
            Credentials::IdentityToken(_) => add("scope", &access.scope),
            _ => access
                .scope
                .split(' ')
                .for_each(|scope| add("scope", scope)),
        }
        let is_login = access.scope.is_empty();
        let mut headers = HeaderMap::new();
        let mut body = None;
        match &access.credentials {
            Credentials::Password { user, .. } => {
                add("account", user);
                if is_login {
                    add("client_id", "whelk");
                    add("offline_token", "true");
                }
                headers.extend(
                    access
                        .credentials
                        .basic()
                        .map(|value| (AUTHORIZATION, value)),
                );
            }
            Credentials::IdentityToken(token) => {
                add("client_id", "whelk");
                add("grant_type", "refresh_token");
                add("refresh_token", token);
                let form = HeaderValue::from_static("application/x-www-form-urlencoded");
                headers.insert(CONTENT_TYPE, form);
                body = Some(std::mem::take(&mut parameters).join("&"));
            }
            Credentials::Anonymous | Credentials::RegistryToken(_) => {}
        }
        // The realm's own parameters stay in the URL, also with a form.
        if !query.is_empty() {
            parameters.insert(0, query.to_owned());
        }
        let url = if parameters.is_empty() {
            url.to_owned()
        } else {
            format!("{url}?{}", parameters.join("&"))
        };
        let Ok(url) = url.parse::<Uri>() else {
            return refuse("not a URL");
        };
        let may_be_plain = target.may_be_plain;
        match url.scheme_str() {
            Some("https") => {}
            Some("http") if may_be_plain => {}
            _ => return refuse("want an https:// URL"),
        }
        let service = Target { url, may_be_plain };
        let (response, service, method) = self.ask_service(service, headers, body).await?;
        let (response, operation) = accept(&service, &method, response)
            .await
            .map_err(|(error, _)| error)?;
        let body = read(response, MAX_ANSWER, &operation).await?;
        Token::parse(&body).map_err(|problem| Error::invalid(&operation, problem))
    }

    /// Sends a request to an authorization service and follows redirects, as
    /// [`Repository::follow`]. With a form it is a POST; the form is not sent to another server.
    async fn ask_service(
        &self,
        mut service: Target,
        mut headers: HeaderMap,
        mut form: Option<String>,
    ) -> Result<(Response<Incoming>, Target, Method)> {
        for _ in 0..=MAX_REDIRECTS {
            let method = match form {
                Some(_) => Method::POST,
                None => Method::GET,
            };
            let body = form.clone().map_or_else(no_body, full_body);
            let response = self.client.send(&method, &service, &headers, body).await?;
            let status = response.status().as_u16();
            if !is_redirect(status) {
                return Ok((response, service, method));
            }
            let refuse = |problem: String| Error::invalid(&service.operation(&method), problem);
            let next = service.redirected(&response).map_err(refuse)?;
            if !next.is_at(&service) {
                headers.remove(AUTHORIZATION);
            }
            if form.is_some() {
                // As in Go's clients, only these statuses repeat method and body.
                if !matches!(status, 307 | 308) {
                    form = None;
                    headers.remove(CONTENT_TYPE);
                } else if !next.is_at(&service) {
                    return Err(refuse("a redirect of an identity token".into()));
                }
            }
            service = next;
        }
        Err(Error::invalid(
            &service.operation(&Method::GET),
            format!("more than {MAX_REDIRECTS} redirects"),
        ))
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
    Error::Denied(format!("{method} {url:?}: no basic auth credentials"))
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Returns whether an error is about the server itself, and not about a redirect target.
fn is_about(error: &Error, endpoint: &Endpoint) -> bool {
    matches!(error, Error::Unreachable { host, .. } if *host == endpoint.host)
}

/// Returns a successful response, or else the error that it reports, with its `Retry-After`.
pub(crate) async fn accept(
    target: &Target,
    method: &Method,
    response: Response<Incoming>,
) -> std::result::Result<(Response<Incoming>, String), (Error, Option<Duration>)> {
    let operation = target.operation(method);
    let status = response.status();
    if status.is_success() {
        return Ok((response, operation));
    }
    let wait = response.headers().get(RETRY_AFTER).and_then(retry_after);
    let refusal = challenge_error(response.headers());
    // Without a readable body, the error has only the status.
    let body = read(response, MAX_ANSWER, &operation)
        .await
        .unwrap_or_default();
    let error = Error::Refused {
        operation,
        status,
        errors: refusal.into_iter().chain(reported(&body)).collect(),
    };
    Err((error, wait))
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read(
    response: Response<Incoming>,
    limit: usize,
    operation: &str,
) -> Result<Bytes> {
    let body = Limited::new(response.into_body(), limit).collect();
    match tokio::time::timeout(HEAD_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<hyper::Error>() => {
            Err(Error::interrupted(operation, innermost(&*error)))
        }
        Ok(Err(_)) => Err(Error::invalid(
            operation,
            format!("the answer is larger than {limit} bytes"),
        )),
        Err(_) => Err(Error::interrupted(
            operation,
            format!(
                "the answer has not come within {} s",
                HEAD_TIMEOUT.as_secs()
            ),
        )),
    }
}

pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(challenge::parse)
        .collect()
}

/// Returns the error of a refused token in the header `WWW-Authenticate` (RFC 6750, section 3.1), with
/// Docker's text.
fn challenge_error(headers: &HeaderMap) -> Option<Reported> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    let mut errors = values
        .filter_map(|value| value.to_str().ok())
        .filter_map(challenge::error);
    let (code, message) = match errors.next()? {
        challenge::TokenError::Invalid => ("UNAUTHORIZED", "authentication required"),
        challenge::TokenError::InsufficientScope => {
            ("DENIED", "requested access to the resource is denied")
        }
    };
    Some(Reported {
        code: code.into(),
        message: message.into(),
    })
}

/// Parses the errors in a response's body. Messages are truncated, and control characters removed.
fn reported(body: &[u8]) -> Vec<Reported> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Entry>,
        /// The format of authorization services.
        #[serde(default)]
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: Option<String>,
    }
    let Ok(body) = serde_json::from_slice::<Body>(body) else {
        return Vec::new();
    };
    let details = body.details.into_iter().map(|message| Entry {
        code: String::new(),
        message: Some(message),
    });
    body.errors
        .into_iter()
        .chain(details)
        .take(MAX_ERRORS)
        .map(|entry| Reported {
            code: shown(&entry.code),
            message: shown(&entry.message.unwrap_or_default()),
        })
        .collect()
}

/// Truncates untrusted text and removes its control characters.
fn shown(text: &str) -> String {
    text.chars()
        .filter(|char| !char.is_control())
        .take(MAX_MESSAGE)
        .collect()
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

/// Parses the header `Retry-After`: seconds, or a date.
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            date.duration_since(jiff::Timestamp::now())
                .try_into()
                .ok()?
        }
    };
    Some(wait.min(MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_selected_by_the_host_of_each_request() {
        let certificates = std::env::temp_dir().join(format!("whelk-certs-{}", std::process::id()));
        whelk_sys::fs::create_dir_all(certificates.join("own.corp:443"), 0o700).unwrap();
        let client = Client::new(Settings {
            insecure: vec!["registry.corp:5000".parse().unwrap()],
            certificates: certificates.clone(),
            ..Settings::default()
        })
        .unwrap();
        for (host, expected) in [
            ("registry.corp:5000", Trusted::Anyone),
            ("127.0.0.1:5000", Trusted::Anyone),
            ("registry.corp", Trusted::System),
            ("token.corp", Trusted::System),
            (
                "own.corp:443",
                Trusted::Directory(certificates.join("own.corp:443")),
            ),
        ] {
            assert_eq!(client.trusted(host), expected, "{host}");
        }
        whelk_sys::fs::remove_tree(certificates).unwrap();
    }

    #[test]
    fn missing_credentials_have_dockers_error_text() {
        let error = no_credentials("HEAD http://r/v2/a/manifests/1");
        let text = "Head \"http://r/v2/a/manifests/1\": no basic auth credentials";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn locations_may_be_absolute_or_relative() {
        let check = |base: &str, location: &str, expected: std::result::Result<&str, &str>| {
            let base = Target {
                url: base.parse().unwrap(),
                may_be_plain: base.starts_with("http:"),
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
        check(base, "https://", Err("to what is not a URL"));
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
            };
            let target = target.with_parameter("digest", "sha256:00").unwrap();
            assert_eq!(target.url.to_string(), expected);
        }
    }
}
