//! Responses.

use hyper::http::response::Builder;
use hyper::{Response, StatusCode, header};
use serde::Serialize;
use whelk_image::Digest;
use whelk_registry::Listing;

use super::Answer;
use crate::body::{self, Outgoing};
use crate::error::{Entry, Error, Errors, Kind};

/// Returns the response to a request that has failed.
pub(super) fn failed(error: &Error) -> Response<Outgoing> {
    let (status, code) = error.kind.code();
    let message = match error.kind {
        Kind::Internal => "the registry has failed; its log says why",
        _ => &error.text,
    };
    let errors = [Entry { code, message }];
    let builder = Response::builder().status(status);
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

pub(super) fn json(builder: Builder, content: &impl Serialize) -> Answer {
    let text =
        serde_json::to_vec(content).map_err(|error| Kind::Internal.error(error.to_string()))?;
    let has_type = builder
        .headers_ref()
        .is_some_and(|headers| headers.contains_key(header::CONTENT_TYPE));
    let builder = match has_type {
        true => builder,
        false => builder.header(header::CONTENT_TYPE, "application/json"),
    };
    answer(
        builder.header(header::CONTENT_LENGTH, text.len()),
        body::full(text),
    )
}

/// Returns a list of upstream.
pub(super) fn passed_on(listing: Listing) -> Answer {
    let mut builder = Response::builder().header(header::CONTENT_TYPE, listing.media_type);
    if let Some(link) = listing.link {
        builder = builder.header(header::LINK, link);
    }
    if let Some(filters) = listing.filters {
        builder = builder.header("oci-filters-applied", filters);
    }
    let builder = builder.header(header::CONTENT_LENGTH, listing.bytes.len());
    answer(builder, body::full(listing.bytes))
}

pub(super) fn named(builder: Builder, digest: &Digest) -> Builder {
    builder.header("docker-content-digest", digest.as_str())
}

pub(super) fn created(location: &str, digest: &Digest) -> Builder {
    let builder = Response::builder().status(StatusCode::CREATED);
    named(builder.header(header::LOCATION, location), digest)
}
