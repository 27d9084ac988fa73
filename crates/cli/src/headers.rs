//! The headers of requests that the user has set: in the configuration (`HttpHeaders`), or instead by the
//! environment variable `DOCKER_CUSTOM_HEADERS`.

use std::path::Path;

use hyper::Request;
use hyper::header::{self, HeaderName, HeaderValue};
use whelk_client::Body;

use crate::commands::container::create::mounts::fields;
use crate::{Failure, Outcome, config_file};

const VARIABLE: &str = "DOCKER_CUSTOM_HEADERS";

/// Names and values of headers. The values may be secrets, and are not in its debug output.
#[derive(Clone, Default)]
pub(crate) struct Headers(Vec<(String, String)>);

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

impl Headers {
    /// Reads the headers of the environment or, if it has none, of the configuration in a directory.
    ///
    /// # Errors
    /// Returns an error if the environment variable cannot be parsed.
    pub(crate) fn of(config: Option<&Path>) -> Outcome<Self> {
        let variable = std::env::var_os(VARIABLE).unwrap_or_default();
        if variable.is_empty() {
            return Ok(Self(
                config.map(config_file::http_headers).unwrap_or_default(),
            ));
        }
        let headers = parse(&variable.to_string_lossy());
        let headers =
            headers.map_err(|reason| Failure::new(format!("Failed to initialize: {reason}")))?;
        Ok(Self(headers))
    }

    /// Adds the headers to a request. Like Go, leaves out those that its HTTP client sets itself.
    ///
    /// # Errors
    /// Returns an error if a name or a value is not a header's.
    pub(crate) fn add_to(&self, request: &mut Request<Body>) -> Result<(), String> {
        const RESERVED: [HeaderName; 5] = [
            header::HOST,
            header::USER_AGENT,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::TRAILER,
        ];
        for (name, value) in &self.0 {
            let header = HeaderName::try_from(name)
                .map_err(|_| format!("invalid header field name {name:?}"))?;
            let value = HeaderValue::try_from(value)
                .map_err(|_| format!("invalid header field value for {name:?}"))?;
            if !RESERVED.contains(&header) {
                request.headers_mut().insert(header, value);
            }
        }
        Ok(())
    }
}

/// Parses pairs of names and values: one line of comma-separated values. A later value of a name replaces
/// those before.
///
/// # Errors
/// Returns Docker's text if it is not of this form.
fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    let line = text.trim_start_matches(['\r', '\n']).lines().next();
    let pairs = fields(line.unwrap_or_default()).map_err(|_| {
        format!(
            "failed to parse custom headers from {VARIABLE} environment variable: value must be formatted as comma-separated key=value pairs"
        )
    })?;
    let failed = |reason: &str, pair: &str| {
        format!(
            "failed to set custom headers from {VARIABLE} environment variable: {reason}: '{pair}'"
        )
    };
    let pairs = pairs.iter().map(|pair| {
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value)),
            None => (pair.trim(), None),
        };
        if name.is_empty() {
            return Err(failed(
                "value contains a key=value pair with an empty key",
                pair,
            ));
        }
        let value = value.ok_or_else(|| failed("missing \"=\" in key=value pair", pair))?;
        Ok((name.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_parsed_as_csv() {
        let pairs = parse("\none=1,\"two=2,22\", three = x,four=\nfive=5").unwrap();
        let expected = [("one", "1"), ("two", "2,22"), ("three", " x"), ("four", "")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(pairs, expected);
    }
}
