//! The headers of requests that the user's configuration has (`HttpHeaders`).

use std::path::Path;

use hyper::Request;
use hyper::header::{self, HeaderName, HeaderValue};
use whelk_client::Body;

use crate::config_file;

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
    /// Reads the headers of the configuration in a directory.
    pub(crate) fn of(config: &Path) -> Self {
        Self(config_file::http_headers(config))
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
                .map_err(|_| format!("invalid header field name {name:?} in HttpHeaders"))?;
            let value = HeaderValue::try_from(value)
                .map_err(|_| format!("invalid header field value for {name:?} in HttpHeaders"))?;
            if !RESERVED.contains(&header) {
                request.headers_mut().insert(header, value);
            }
        }
        Ok(())
    }
}
