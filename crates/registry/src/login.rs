//! Verifies credentials, for a login.

use std::sync::Arc;

use hyper::Method;

use crate::auth::{Access, Credentials};
use crate::endpoints::registry;
use crate::error::{Error, Kind, Result};
use crate::exchange::{Query, Repository};
use crate::transport::Client;

/// The names of Docker Hub in references, and in configurations of clients.
const HUB: &str = "docker.io";
const HUB_NAMES: [&str; 3] = ["", HUB, "index.docker.io"];

impl Client {
    /// Verifies credentials with a registry. `server` is a name as in references, or a URL, of which
    /// only the host is used; empty for Docker Hub. Mirrors are not used. Returns the identity token
    /// if the registry's authorization service issues one.
    ///
    /// # Errors
    /// Returns an error of [`Kind::Unauthorized`], with Docker's text, if the registry does not accept the
    /// credentials.
    pub async fn log_in(
        self: &Arc<Self>,
        server: &str,
        credentials: Credentials,
    ) -> Result<Option<String>> {
        let host = host_of(server)?;
        let endpoint = registry(&self.settings, host);
        let access = Access {
            host: endpoint.host.clone(),
            scope: String::new(),
            credentials: credentials.clone(),
        };
        // The password may have been changed since the token was issued.
        self.tokens.forget(&access);
        let repository = Repository {
            client: self.clone(),
            endpoints: Vec::new(),
            path: String::new(),
            scope: String::new(),
            credentials,
        };
        let query = Query::new(Method::GET, String::new());
        match repository.ask_endpoint(&endpoint, &query).await {
            Ok(_) => Ok(self.tokens.identity(&access)),
            Err((error, _)) => Err(told(error, &endpoint.host)),
        }
    }
}

/// Returns the registry, as in references, of a login's server argument.
fn host_of(server: &str) -> Result<&str> {
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| server.strip_prefix(scheme))
        .unwrap_or(server);
    let host = rest.split('/').next().unwrap_or_default();
    if HUB_NAMES.contains(&host) {
        return Ok(HUB);
    }
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if host.bytes().all(is_host) {
        Ok(host)
    } else {
        Err(Error::Settings(
            "unable to parse server address: want HOST[:PORT]".into(),
        ))
    }
}

/// Rewrites a refusal of the registry, or of its authorization service, to Docker's text.
fn told(error: Error, host: &str) -> Error {
    let Error::Refused {
        operation,
        status,
        errors,
    } = &error
    else {
        return error;
    };
    if !matches!(error.kind(), Kind::Unauthorized | Kind::Denied) {
        return error;
    }
    let url = operation.split(' ').next_back().unwrap_or_default();
    let is_registry = url
        .split("://")
        .nth(1)
        .is_some_and(|rest| rest == format!("{host}/v2/"));
    if is_registry {
        return Error::Unauthorized(format!(
            "login attempt to {url} failed with status: {status}"
        ));
    }
    let cause = error.cause();
    let cause = if errors.iter().any(|error| !error.code.is_empty()) {
        cause
    } else {
        format!("unauthorized: {cause}")
    };
    let url = format!("https://{host}/v2/");
    Error::Unauthorized(format!("Get {url:?}: {cause}"))
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;
    use crate::error::Reported;

    #[test]
    fn login_servers_are_hosts_or_urls() {
        for (server, expected) in [
            ("", HUB),
            ("docker.io", HUB),
            ("https://index.docker.io/v1/", HUB),
            ("registry-1.docker.io", "registry-1.docker.io"),
            ("http://r.corp:5000/v2/", "r.corp:5000"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(host_of(server).unwrap(), expected, "{server}");
        }
        for server in ["user:secret@r.corp", "r corp", "https://r?x=secret"] {
            let error = host_of(server).unwrap_err().to_string();
            assert!(
                error.starts_with("unable to parse server address") && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn login_errors_have_dockers_texts() {
        let refused = |url: &str, status, code: &str, message: &str| Error::Refused {
            operation: format!("GET {url}"),
            status: StatusCode::from_u16(status).unwrap(),
            errors: vec![Reported {
                code: code.into(),
                message: message.into(),
            }],
        };
        for (error, expected) in [
            (
                refused("http://r:5000/v2/", 401, "UNAUTHORIZED", "m"),
                "login attempt to http://r:5000/v2/ failed with status: 401 Unauthorized",
            ),
            (
                refused(
                    "https://auth.r/token",
                    401,
                    "",
                    "incorrect username or password",
                ),
                "Get \"https://r:5000/v2/\": unauthorized: incorrect username or password",
            ),
            (
                refused("https://auth.r/token", 403, "DENIED", "no"),
                "Get \"https://r:5000/v2/\": denied: no",
            ),
        ] {
            let error = told(error, "r:5000");
            assert_eq!(
                (error.kind(), error.to_string().as_str()),
                (Kind::Unauthorized, expected)
            );
        }
        let other = told(refused("http://r:5000/v2/", 500, "", "m"), "r:5000");
        assert_eq!(other.to_string(), "GET http://r:5000/v2/: m");
    }
}
