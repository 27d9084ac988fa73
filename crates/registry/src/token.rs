//! Authorization: answers a server's challenges, and requests tokens from authorization services.

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Response, Uri};
use whelk_client::{full_body, no_body};

use crate::auth::{Access, Credentials, Token};
use crate::challenge::Challenge;
use crate::error::{Error, Result};
use crate::exchange::Repository;
use crate::response::{MAX_ANSWER, accept, read, shown};
use crate::target::{MAX_REDIRECTS, Target, encoded, is_redirect};

impl Repository {
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
        let (url, headers, form) = request(access, realm, service);
        let Ok(url) = url.parse::<Uri>() else {
            return refuse("not a URL");
        };
        let may_be_plain = target.may_be_plain;
        match url.scheme_str() {
            Some("https") => {}
            Some("http") if may_be_plain => {}
            _ => return refuse("want an https:// URL"),
        }
        let service = Target {
            url,
            may_be_plain,
            is_web: false,
        };
        let (response, service, method) = self.ask_service(service, headers, form).await?;
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
}

/// Returns the request for a token: the URL with its parameters, the headers, and the form that an
/// identity token is sent in.
fn request(access: &Access, realm: &str, service: &str) -> (String, HeaderMap, Option<String>) {
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
    let mut form = None;
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
            let media_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(CONTENT_TYPE, media_type);
            form = Some(std::mem::take(&mut parameters).join("&"));
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
    (url, headers, form)
}
