//! Responses.

use hyper::http::response::Builder;
use hyper::{Response, StatusCode, header};
use serde::Serialize;
use whelk_image::Digest;
use whelk_registry::Listing;

use super::{Answer, Call};
use crate::blocking::blocking;
use crate::body::{self, Outgoing};
use crate::error::{Entry, Error, Errors, Kind, Result};

/// The media type of answers.
pub(super) const JSON: &str = "application/json";

/// The time in seconds after which clients are told to try again.
const RETRY_AFTER: u64 = 10;

/// Returns the response to a request that has failed.
pub(super) fn error_response(error: &Error) -> Response<Outgoing> {
    let (status, code) = error.kind.code();
    let message = match error.kind {
        Kind::Internal => "the registry has failed; its log says why",
        _ => &error.text,
    };
    let errors = [Entry { code, message }];
    let mut builder = Response::builder().status(status);
    if error.kind.is_temporary() {
        builder = builder.header(header::RETRY_AFTER, RETRY_AFTER);
    }
    json(builder, &Errors { errors }).unwrap_or_else(|_| {
        let mut response = Response::new(body::full(""));
        *response.status_mut() = status;
        response
    })
}

pub(super) fn answer(builder: Builder, body: Outgoing) -> Answer {
    builder
        .body(body)
        .map_err(|error| Kind::Internal.error(error.to_string()))
}

pub(super) fn empty(status: StatusCode) -> Answer {
    answer(Response::builder().status(status), body::full(""))
}

pub(super) fn encode(content: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(content).map_err(|error| Kind::Internal.error(error.to_string()))
}

pub(super) fn json(builder: Builder, content: &impl Serialize) -> Answer {
    let text = encode(content)?;
    let builder = builder
        .header(header::CONTENT_TYPE, JSON)
        .header(header::CONTENT_LENGTH, text.len());
    answer(builder, body::full(text))
}

impl Call {
    /// Returns a list, which may be long.
    pub(super) async fn list(&self, builder: Builder, content: Vec<u8>) -> Answer {
        let directory = self.registry.temporary();
        let builder = builder.header(header::CONTENT_LENGTH, content.len());
        let body = blocking(move || body::spooled(&directory, content)).await?;
        answer(builder, body)
    }

    /// Returns a list of upstream.
    pub(super) async fn forward_listing(&self, listing: Listing) -> Answer {
        let mut builder = Response::builder().header(header::CONTENT_TYPE, listing.media_type);
        if let Some(link) = listing.link {
            builder = builder.header(header::LINK, link);
        }
        if let Some(filters) = listing.filters {
            builder = builder.header("oci-filters-applied", filters);
        }
        self.list(builder, listing.bytes).await
    }
}

pub(super) fn named(builder: Builder, digest: &Digest) -> Builder {
    builder.header("docker-content-digest", digest.as_str())
}

pub(super) fn created(location: &str, digest: &Digest) -> Builder {
    let builder = Response::builder().status(StatusCode::CREATED);
    named(builder.header(header::LOCATION, location), digest)
}
