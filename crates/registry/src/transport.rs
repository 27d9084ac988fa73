//! Connections to servers: pools by trusted certificates, time limits, and errors.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use whelk_client::Body;
use whelk_image::Reference;
use whelk_sys::sync::IgnorePoison as _;

use crate::auth::{Credentials, Tokens};
use crate::connector::{self, Connector};
use crate::endpoints::endpoints;
use crate::error::{Error, Obstacle, Result};
use crate::exchange::Repository;
use crate::settings::Settings;
use crate::target::Target;

/// How long a registry may take to begin a response.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Unused connections that are kept for each host.
const IDLE_CONNECTIONS: usize = 8;

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

    /// Returns which certificates are accepted from a server that is no registry: an insecure registry's
    /// are verified too.
    fn trusted_on_the_web(&self, host: &str) -> Trusted {
        let directory = self.settings.certificates.join(host);
        match directory.is_dir() {
            true => Trusted::Directory(directory),
            false => Trusted::System,
        }
    }

    /// Returns the pool of connections to a server. If certificate files have changed since the last
    /// request, it is a new one.
    fn pool(&self, trusted: Trusted) -> Result<Connections> {
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
                certificates: self.settings.certificates.clone(),
            });
        self.pools
            .lock()
            .ignore_poison()
            .insert(trusted, (stamp, pool.clone()));
        Ok(pool)
    }

    /// Returns whether an insecure registry supports TLS; `None` if that is not known yet.
    pub(crate) fn speaks_tls(&self, host: &str) -> Option<bool> {
        self.speaks_tls.lock().ignore_poison().get(host).copied()
    }

    /// Records that an insecure registry does not support TLS.
    pub(crate) fn note_plain(&self, host: &str) {
        let mut known = self.speaks_tls.lock().ignore_poison();
        known.insert(host.to_owned(), false);
    }

    /// Returns whether a server was found not to support TLS.
    pub(crate) fn is_known_to_be_plain(&self, host: &str) -> bool {
        self.speaks_tls(host) == Some(false)
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
            .entry(USER_AGENT)
            .or_insert_with(|| self.user_agent.clone());
        let host = target.authority();
        let proxy = self
            .proxies
            .intercept(&target.url)
            .filter(|_| !target.is_tls());
        if let Some(credentials) = proxy.as_ref().and_then(|proxy| proxy.basic_auth()) {
            let name = HeaderName::from_static("proxy-authorization");
            request.headers_mut().insert(name, credentials.clone());
        }
        let trusted = match target.is_web {
            true => self.trusted_on_the_web(host),
            false => self.trusted(host),
        };
        let mut answer = self.pool(trusted)?.request(request);
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
            // Servers refuse a client's certificate when the connection is open.
            Err(error) => match obstacle(&error) {
                Obstacle::Passing if !error.is_connect() => {
                    Err(Error::interrupted(&operation, innermost(&error)))
                }
                obstacle => Err(Error::Unreachable {
                    host: host.to_owned(),
                    cause: innermost(&error),
                    obstacle,
                }),
            },
        }
    }
}

/// Returns the text of an error's innermost source, which is the cause.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    loop {
        if let Some(reason) = error
            .downcast_ref::<io::Error>()
            .and_then(whelk_client::tls_problem)
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

/// Returns what has prevented a connection, from its error.
fn obstacle(error: &(dyn std::error::Error + 'static)) -> Obstacle {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let text = error.to_string();
            if text.starts_with("failed to lookup address information") {
                // The texts of musl and glibc for EAI_AGAIN: no name server has answered.
                let is_temporary = text.contains("Try again") || text.contains("Temporary failure");
                return match is_temporary {
                    true => Obstacle::Unresolved,
                    false => Obstacle::Lasting,
                };
            }
            if whelk_client::tls_problem(error).is_some() {
                return Obstacle::Lasting;
            }
        }
        next = error.source();
    }
    Obstacle::Passing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_selected_by_the_host_of_each_request() {
        let scratch = whelk_sys::Scratch::temporary("certs").unwrap();
        let certificates = scratch.path();
        whelk_sys::fs::create_dir_all(certificates.join("own.corp:443"), 0o700).unwrap();
        let client = Client::new(Settings {
            insecure: vec!["registry.corp:5000".parse().unwrap()],
            certificates: certificates.to_owned(),
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
    }
}
