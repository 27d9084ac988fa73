//! `/v2/NAME/blobs/DIGEST`: blobs, whole or in ranges.

use std::fs::File;

use hyper::header::{self, HeaderValue};
use hyper::{Method, Response, StatusCode};
use whelk_image::Digest;

use super::answers::{answer, empty, error_response, named};
use super::{Answer, Call, unsupported};
use crate::blocking::blocking;
use crate::body::{self, Outgoing};
use crate::error::Kind;
use crate::names::RepositoryName;
use crate::upstream::Source;

impl Call {
    pub(super) async fn blob(self, repository: RepositoryName, digest: Digest) -> Answer {
        let (registry, wanted) = (self.registry.clone(), digest.clone());
        let builder = |status| {
            let builder = Response::builder()
                .status(status)
                .header(header::ACCEPT_RANGES, "bytes")
                .header(header::CONTENT_TYPE, "application/octet-stream");
            named(builder, &digest)
        };
        match self.method {
            Method::HEAD => {
                let size = match &self.upstream {
                    Some(upstream) => upstream.blob_size(&registry, &repository, &wanted).await,
                    None => blocking(move || registry.claim_blob(&repository, &wanted)).await,
                }?;
                let builder = builder(StatusCode::OK).header(header::CONTENT_LENGTH, size);
                answer(builder, body::full(""))
            }
            Method::GET => {
                let (size, source) = match &self.upstream {
                    Some(upstream) => upstream.find_blob(&registry, &repository, &wanted).await?,
                    None => {
                        let (own, name) = (registry.clone(), repository.clone());
                        let open = move || own.open_blob(&name, &wanted);
                        let (file, size) = blocking(open).await?;
                        (size, Source::Stored(file))
                    }
                };
                let range = self
                    .header(header::RANGE)
                    .and_then(|range| parse_range(range, size));
                let (builder, first, length) = match range {
                    None => (builder(StatusCode::OK), 0, size),
                    // Nothing is downloaded for a range that does not exist.
                    Some(None) => return Ok(no_such_range(size)),
                    Some(Some((first, last))) => {
                        let range = format!("bytes {first}-{last}/{size}");
                        let builder = builder(StatusCode::PARTIAL_CONTENT);
                        (
                            builder.header(header::CONTENT_RANGE, range),
                            first,
                            last - first + 1,
                        )
                    }
                };
                let builder = builder.header(header::CONTENT_LENGTH, length);
                let body = match source {
                    Source::Stored(file) if length == size => {
                        let damaged = digest.clone();
                        let set_aside = move |file: &File| registry.set_aside(&damaged, file);
                        body::verified(file, size, digest.clone(), set_aside)
                    }
                    Source::Stored(file) => body::file(file, first, length),
                    Source::Upstream(downloads, remote) => {
                        let download =
                            downloads.join(&registry, &repository, &digest, size, &remote);
                        download.await?.body(first, length)
                    }
                };
                answer(builder, body)
            }
            Method::DELETE => {
                blocking(move || registry.delete_blob(&repository, &wanted)).await?;
                empty(StatusCode::ACCEPTED)
            }
            _ => Err(unsupported()),
        }
    }
}

/// Returns the response to a request for a part that a blob does not have.
fn no_such_range(size: u64) -> Response<Outgoing> {
    let error = Kind::RangeNotSatisfiable.error("the blob has no such part");
    let mut response = error_response(&error);
    let range = HeaderValue::from_str(&format!("bytes */{size}"));
    response
        .headers_mut()
        .extend(range.map(|range| (header::CONTENT_RANGE, range)));
    response
}

/// Returns the first and the last byte of a range (RFC 9110, section 14.2): the inner `None` if the
/// content has none of it. Several ranges, and what is not valid, are ignored.
fn parse_range(range: &str, size: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = range.strip_prefix("bytes=")?.trim().split_once('-')?;
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        // A number that is too large is past every end.
        is_number.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let end = size.checked_sub(1);
    if first.is_empty() {
        let count = number(last)?;
        return Some(
            end.filter(|_| count > 0)
                .map(|end| (size.saturating_sub(count), end)),
        );
    }
    let first = number(first)?;
    let last = if last.is_empty() {
        u64::MAX
    } else {
        number(last)?
    };
    if last < first {
        return None;
    }
    Some(
        end.filter(|end| first <= *end)
            .map(|end| (first, last.min(end))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (range, size, expected) in [
            ("bytes=0-0", 5, Some(Some((0, 0)))),
            ("bytes=1-", 5, Some(Some((1, 4)))),
            ("bytes=3-99", 5, Some(Some((3, 4)))),
            ("bytes=-2", 5, Some(Some((3, 4)))),
            ("bytes=-9", 5, Some(Some((0, 4)))),
            ("bytes=5-", 5, Some(None)),
            ("bytes=99999999999999999999-", 5, Some(None)),
            ("bytes=-0", 5, Some(None)),
            ("bytes=0-", 0, Some(None)),
            ("bytes=-1", 0, Some(None)),
            ("bytes=2-1", 5, None),
            ("bytes=0-1,3-4", 5, None),
            ("bytes=+1-2", 5, None),
            ("bytes=", 5, None),
            ("bytes=-", 5, None),
            ("lines=1-2", 5, None),
        ] {
            assert_eq!(parse_range(range, size), expected, "{range} of {size}");
        }
    }
}
