//! Who has sent a request, and whether they may do what it asks for. `GET /token` issues tokens.

use std::sync::Arc;

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Response};
use serde::Serialize;

use super::answers::json;
use super::{Answer, Server, unsupported};
use crate::error::{Error, Kind, Result};
use crate::names::RepositoryName;
use crate::rights::{Action, Identity};
use crate::tokens::{Holder, VALIDITY};

/// What a request may do.
#[derive(Clone, Debug)]
pub(super) struct Permission {
    server: Arc<Server>,
    identity: Identity,
}

impl Server {
    /// Returns whether there is something that needs no password.
    fn has_anonymous(&self) -> bool {
        self.rights
            .as_ref()
            .is_some_and(|rights| rights.has_anonymous())
    }

    /// Returns the value of `WWW-Authenticate` for a request that needs a user.
    pub(super) fn challenge(&self, headers: &HeaderMap) -> HeaderValue {
        const BASIC: HeaderValue = HeaderValue::from_static("Basic realm=\"whelk registry\"");
        if !self.has_anonymous() {
            return BASIC;
        }
        let text = |name| {
            headers
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        // Set by proxies that do TLS for this registry.
        let is_tls = self.is_tls || text("x-forwarded-proto") == Some("https");
        let scheme = if is_tls { "https" } else { "http" };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        let host = text("host").filter(|host| host.bytes().all(is_host));
        let challenge = host.map(|host| {
            let value =
                format!("Bearer realm=\"{scheme}://{host}/token\",service=\"whelk registry\"");
            HeaderValue::from_str(&value)
        });
        challenge.and_then(std::result::Result::ok).unwrap_or(BASIC)
    }

    /// Returns what the sender of a request may do.
    ///
    /// # Errors
    /// Returns [`Kind::Unauthorized`] if it needs a user.
    pub(super) async fn identify(
        self: &Arc<Self>,
        headers: &HeaderMap,
        is_ping: bool,
    ) -> Result<Permission> {
        let header = headers.get(header::AUTHORIZATION);
        let header = header.map(|value| value.to_str().unwrap_or_default());
        let identity = match (&self.passwords, header) {
            (None, _) => Some(Identity::Anyone),
            // Clients learn from the answer that there are tokens.
            (Some(_), None) => (self.has_anonymous() && !is_ping).then_some(Identity::Anonymous),
            (Some(passwords), Some(header)) => match header.split_once(' ') {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                    match self.tokens.holder(token.trim()) {
                        Some(Holder::User(user)) if passwords.is_current(&user) => {
                            Some(Identity::User(user.name))
                        }
                        Some(Holder::Anonymous) if self.has_anonymous() => {
                            Some(Identity::Anonymous)
                        }
                        _ => None,
                    }
                }
                _ => {
                    let user = passwords.verify(header).await;
                    user.map(|user| Identity::User(user.name))
                }
            },
        };
        let needed = || Kind::Unauthorized.error("user name and password required");
        Ok(Permission {
            server: self.clone(),
            identity: identity.ok_or_else(needed)?,
        })
    }

    /// Issues a token, for the password of the request if it has one.
    pub(super) async fn token(&self, method: &Method, headers: &HeaderMap) -> Answer {
        #[derive(Serialize)]
        struct Issued {
            token: String,
            access_token: String,
            expires_in: u64,
        }
        let Some(passwords) = self.passwords.as_ref().filter(|_| self.has_anonymous()) else {
            return Err(Kind::NotFound.error("no such resource"));
        };
        if method != Method::GET {
            return Err(unsupported());
        }
        let user = match headers.get(header::AUTHORIZATION) {
            None => None,
            Some(header) => {
                let user = passwords.verify(header.to_str().unwrap_or_default()).await;
                let wrong = || Kind::Unauthorized.error("incorrect user name or password");
                Some(user.ok_or_else(wrong)?)
            }
        };
        let token = self.tokens.issue(user);
        let issued = Issued {
            access_token: token.clone(),
            token,
            expires_in: VALIDITY.as_secs(),
        };
        json(Response::builder(), &issued)
    }
}

impl Permission {
    pub(super) fn has(&self, action: Action, repository: &RepositoryName) -> bool {
        let rights = self.server.rights.as_ref();
        rights.is_none_or(|rights| rights.permit(&self.identity, action, repository))
    }

    /// # Errors
    /// Returns [`Kind::Denied`] if the user may not do this, and [`Kind::Unauthorized`] if another
    /// one may.
    pub(super) fn check(&self, action: Action, repository: &RepositoryName) -> Result<()> {
        if self.has(action, repository) {
            return Ok(());
        }
        Err(match &self.identity {
            Identity::User(user) => denied(user, action, repository),
            _ => Kind::Unauthorized.error("user name and password required"),
        })
    }
}

fn denied(user: &str, action: Action, repository: &RepositoryName) -> Error {
    Kind::Denied.error(format!("{user} may not {action} {repository}"))
}
