use std::fmt;
use std::io;

use hyper::StatusCode;

/// Why something could not be transferred. The texts name the URL, without credentials and query.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry refused a request.
    #[error("{operation}: {}", reported(*.status, .errors))]
    Refused {
        /// Method and URL.
        operation: String,
        status: StatusCode,
        /// What the response's body says, if it has the protocol's form.
        errors: Vec<Reported>,
    },
    /// The registry does not accept a user.
    #[error("{0}")]
    Unauthorized(String),
    /// No connection could be opened.
    #[error("cannot connect to {host}: {cause}")]
    Unreachable {
        host: String,
        cause: String,
        obstacle: Obstacle,
    },
    /// A connection broke, or nothing arrived for too long.
    #[error("{operation}: {cause}")]
    Interrupted { operation: String, cause: String },
    /// A response breaks the protocol, or exceeds a limit.
    #[error("{operation}: {problem}")]
    Invalid { operation: String, problem: String },
    /// A setting of this host cannot be used.
    #[error("{0}")]
    Settings(String),
}

/// What prevents a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A retry would fail too: the host name does not exist, or its certificate is not accepted.
    Lasting,
    /// The host name cannot be resolved now. Mostly the whole host has no network; then the first request
    /// fails at once, as in Docker, and only transfers that have begun are retried.
    Unresolved,
    /// A retry may help, for example when the server restarts.
    Passing,
}

pub type Result<T> = std::result::Result<T, Error>;

/// An error in the body of a registry's response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// In the protocol's upper-case form, such as `MANIFEST_UNKNOWN`; may be empty.
    pub code: String,
    pub message: String,
}

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.as_str(), self.message.as_str()) {
            ("", message) => f.write_str(message),
            (code, "") => f.write_str(&words(code)),
            (code, message) => write!(f, "{}: {message}", words(code)),
        }
    }
}

/// Kinds of errors that callers distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The manifest, blob or repository does not exist.
    NotFound,
    /// Credentials are missing or wrong.
    Unauthorized,
    /// The user may not do this. Registries that hide which repositories exist say so of those, too.
    Denied,
    /// The registry limits the rate of requests.
    TooManyRequests,
    /// Temporary: no connection, a broken connection, an error of the server.
    Unavailable,
    /// Lasting: the registry, or a setting, is at fault.
    Invalid,
}

impl Error {
    /// Returns the text without the request that failed.
    pub fn cause(&self) -> String {
        match self {
            Self::Refused { status, errors, .. } => reported(*status, errors),
            Self::Interrupted { cause, .. } => cause.clone(),
            Self::Invalid { problem, .. } => problem.clone(),
            Self::Unreachable { .. } | Self::Settings(_) | Self::Unauthorized(_) => {
                self.to_string()
            }
        }
    }

    /// Returns the first error that the registry reports. Docker, too, shows only this one.
    pub fn reported(&self) -> Option<&Reported> {
        match self {
            Self::Refused { errors, .. } => errors.first(),
            _ => None,
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Refused { status, errors, .. } => {
                kind_of(*status, errors.first().map_or("", |error| &error.code))
            }
            Self::Unauthorized(_) => Kind::Unauthorized,
            Self::Unreachable { .. } | Self::Interrupted { .. } => Kind::Unavailable,
            Self::Invalid { .. } | Self::Settings(_) => Kind::Invalid,
        }
    }

    /// Returns whether a retry of the same request may succeed.
    pub(crate) fn is_temporary(&self) -> bool {
        let is_lasting = self.obstacle() == Some(Obstacle::Lasting);
        !is_lasting && matches!(self.kind(), Kind::Unavailable | Kind::TooManyRequests)
    }

    /// Returns what prevented a connection, if that is what has failed.
    pub(crate) fn obstacle(&self) -> Option<Obstacle> {
        match self {
            Self::Unreachable { obstacle, .. } => Some(*obstacle),
            _ => None,
        }
    }

    pub(crate) fn invalid(operation: &str, problem: impl Into<String>) -> Self {
        Self::Invalid {
            operation: operation.to_owned(),
            problem: problem.into(),
        }
    }

    pub(crate) fn interrupted(operation: &str, cause: impl Into<String>) -> Self {
        Self::Interrupted {
            operation: operation.to_owned(),
            cause: cause.into(),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            Kind::NotFound => io::ErrorKind::NotFound,
            Kind::Unauthorized | Kind::Denied => io::ErrorKind::PermissionDenied,
            Kind::TooManyRequests | Kind::Unavailable => io::ErrorKind::ConnectionAborted,
            Kind::Invalid => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// Returns the kind of a refusal. As in Docker, the code of the first error decides about access: some
/// registries return 404 or 401 for what is denied.
fn kind_of(status: StatusCode, code: &str) -> Kind {
    let is_about_access = matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
    );
    match (code, status) {
        ("DENIED", _) if is_about_access => Kind::Denied,
        ("UNAUTHORIZED", _) if is_about_access => Kind::Unauthorized,
        (_, StatusCode::UNAUTHORIZED) => Kind::Unauthorized,
        (_, StatusCode::FORBIDDEN) => Kind::Denied,
        (_, StatusCode::NOT_FOUND) => Kind::NotFound,
        (_, StatusCode::TOO_MANY_REQUESTS) => Kind::TooManyRequests,
        (_, StatusCode::NOT_IMPLEMENTED) => Kind::Invalid,
        (_, StatusCode::REQUEST_TIMEOUT) => Kind::Unavailable,
        _ if status.is_server_error() => Kind::Unavailable,
        _ => Kind::Invalid,
    }
}

/// Returns the text of a refusal: the errors that the registry reports, or else the status.
fn reported(status: StatusCode, errors: &[Reported]) -> String {
    let texts: Vec<String> = errors.iter().map(Reported::to_string).collect();
    if texts.is_empty() {
        format!("the registry answers {status}")
    } else {
        texts.join("; ")
    }
}

/// Returns an error code in lower case with spaces, as Docker shows it.
fn words(code: &str) -> String {
    match code {
        "TOOMANYREQUESTS" => "toomanyrequests".into(),
        code => code.to_lowercase().replace('_', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str, message: &str) -> Error {
        Error::Refused {
            operation: "GET https://r/v2/a/manifests/b".into(),
            status: StatusCode::from_u16(status).unwrap(),
            errors: vec![Reported {
                code: code.into(),
                message: message.into(),
            }],
        }
    }

    #[test]
    fn kind_and_text_follow_from_status_and_error_code() {
        for (status, code, kind, text) in [
            (
                404,
                "MANIFEST_UNKNOWN",
                Kind::NotFound,
                "manifest unknown: m",
            ),
            (404, "DENIED", Kind::Denied, "denied: m"),
            (401, "UNAUTHORIZED", Kind::Unauthorized, "unauthorized: m"),
            (403, "UNAUTHORIZED", Kind::Unauthorized, "unauthorized: m"),
            (401, "DENIED", Kind::Denied, "denied: m"),
            (401, "", Kind::Unauthorized, "m"),
            (403, "", Kind::Denied, "m"),
            (
                429,
                "TOOMANYREQUESTS",
                Kind::TooManyRequests,
                "toomanyrequests: m",
            ),
            (503, "", Kind::Unavailable, "m"),
            (400, "NAME_INVALID", Kind::Invalid, "name invalid: m"),
        ] {
            let error = refused(status, code, "m");
            assert_eq!(error.kind(), kind, "{status} {code}");
            assert_eq!(
                error.to_string(),
                format!("GET https://r/v2/a/manifests/b: {text}")
            );
        }
        let silent = Error::Refused {
            operation: "GET x".into(),
            status: StatusCode::BAD_GATEWAY,
            errors: Vec::new(),
        };
        assert_eq!(
            silent.to_string(),
            "GET x: the registry answers 502 Bad Gateway"
        );
        assert!(silent.is_temporary());
    }
}
