//! Reads responses: the content up to a maximum size, or the error that the server reports.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, Response};
use serde::Deserialize;

use crate::attempts::MAX_WAIT;
use crate::challenge::{self, Challenge};
use crate::error::{Error, Reported, Result};
use crate::target::Target;
use crate::transport::{HEAD_TIMEOUT, innermost};

/// Maximum size of an error's body, and of a response with a token, in bytes.
pub(crate) const MAX_ANSWER: usize = 256 << 10;
/// Maximum number of errors of a response that are shown, and of characters of each message.
const MAX_ERRORS: usize = 8;
const MAX_MESSAGE: usize = 1024;

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
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .filter(|char| !char.is_control())
        .take(MAX_MESSAGE)
        .collect()
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
