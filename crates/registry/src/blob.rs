//! Downloads of blobs: streamed, and resumed where a connection broke.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use hyper::{Method, Response, StatusCode};
use whelk_image::Digest;

use crate::attempts::{Attempts, Wait};
use crate::error::{Error, Kind, Result};
use crate::exchange::{Query, Repository};
use crate::pace::Pace;
use crate::transport::innermost;

/// A connection is closed if fewer bytes than the minimum of this time arrive while it is spent waiting: another may be faster.
const WINDOW: Duration = Duration::from_secs(30);

/// The content of a blob from an offset on. It is not verified against the digest; the caller does
/// that, who has all of it.
#[derive(Debug)]
pub struct Blob {
    repository: Repository,
    digest: Digest,
    /// In bytes.
    size: u64,
    /// Offset of the next byte to be returned.
    position: u64,
    source: Option<Source>,
    attempts: Attempts,
    /// Bytes since the last failure.
    received: u64,
}

/// A response that is being read.
#[derive(Debug)]
struct Source {
    body: Incoming,
    operation: String,
    /// Bytes before [`Blob::position`] that the server sends again.
    skip: u64,
    pace: Pace,
}

impl Repository {
    /// Returns the size of a blob; `None` if the registry does not have it in this repository.
    ///
    /// # Errors
    /// Returns an error if the request fails, or if the response does not say how long the blob is.
    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        let query = Query::new(Method::HEAD, format!("blobs/{digest}"));
        let (response, operation) = match self.ask(&query).await {
            Ok(answer) => answer,
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let unknown = || Error::invalid(&operation, "the answer does not say how long the blob is");
        length.map(Some).ok_or_else(unknown)
    }

    /// Returns the content of a blob of `size` bytes from `offset` on. The first request is made by
    /// [`Blob::next`].
    pub fn blob(&self, digest: &Digest, size: u64, offset: u64) -> Blob {
        Blob {
            repository: self.clone(),
            digest: digest.clone(),
            size,
            position: offset,
            source: None,
            attempts: Attempts::of_transfer(),
            received: 0,
        }
    }
}

impl Blob {
    /// Returns the next piece; `None` after `size` bytes. `tell` is called before each wait for a retry.
    ///
    /// # Errors
    /// Returns an error if the registry does not have the blob or sends more than its size, or after
    /// several failures in a row.
    pub async fn next(&mut self, tell: impl Fn(Wait)) -> Result<Option<Bytes>> {
        while self.position < self.size {
            match self.piece().await {
                Ok(piece) => {
                    self.received += piece.len() as u64;
                    // A server that sends one byte per attempt makes no progress.
                    if self.received >= Pace::minimum(WINDOW) {
                        self.attempts.progress();
                    }
                    if !piece.is_empty() {
                        self.position += piece.len() as u64;
                        return Ok(Some(piece));
                    }
                }
                Err(failure) => {
                    self.source = None;
                    self.received = 0;
                    let repository = &self.repository;
                    repository.after(&mut self.attempts, failure, &tell).await?;
                    tracing::debug!("registry: blob {}: from {} on", self.digest, self.position);
                }
            }
        }
        self.source = None;
        Ok(None)
    }

    /// Reads the next frame; empty if it has no new bytes. An error includes the server's
    /// `Retry-After`.
    async fn piece(&mut self) -> std::result::Result<Bytes, (Error, Option<Duration>)> {
        let source = match &mut self.source {
            Some(source) => source,
            None => {
                let source = self.open().await?;
                self.source.insert(source)
            }
        };
        let left = self.size - self.position;
        let frame = source.body.frame();
        let frame = source.pace.wait(frame, |frame| {
            let frame = frame.as_ref()?.as_ref().ok()?;
            Some(frame.data_ref().map_or(0, Bytes::len))
        });
        let frame = frame.await;
        let broken = |cause: &str| Err((Error::interrupted(&source.operation, cause), None));
        let frame = match frame {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return broken(&innermost(&error)),
            Ok(None) => return broken(&format!("the blob ends {left} bytes too early")),
            Err(slow) => return broken(&slow.to_string()),
        };
        let Ok(mut piece) = frame.into_data() else {
            return Ok(Bytes::new());
        };
        let skipped = source.skip.min(piece.len() as u64);
        source.skip -= skipped;
        // At most the length of the piece.
        let piece = piece.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
        if piece.len() as u64 > left {
            return Err((too_long(&source.operation, self.size), None));
        }
        Ok(piece)
    }

    /// Requests the blob from the position on.
    async fn open(&self) -> std::result::Result<Source, (Error, Option<Duration>)> {
        let (position, size) = (self.position, self.size);
        let mut query = Query::new(Method::GET, format!("blobs/{}", self.digest));
        if position > 0 {
            query = query.header(RANGE, &format!("bytes={position}-"));
        }
        let at_once = |error| (error, None);
        let server = self.repository.server(&self.attempts).map_err(at_once)?;
        let (response, operation) = self.repository.ask_endpoint(&server, &query).await?;
        let invalid = |problem: String| at_once(Error::invalid(&operation, problem));
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            if !continues(&response, position, size) {
                return Err(invalid(format!(
                    "the answer is not the range of bytes from {position} on"
                )));
            }
            0
        } else {
            // The server does not support ranges: the bytes before the position are skipped.
            position
        };
        // A page of HTML with an error, for example, has another length.
        if let Some(length) = response.body().size_hint().exact() {
            let expected = size - position + skip;
            if length > expected {
                return Err(at_once(too_long(&operation, size)));
            }
            if length < expected {
                return Err(invalid(format!(
                    "the answer has {length} bytes, not {expected}"
                )));
            }
        }
        Ok(Source {
            body: response.into_body(),
            operation,
            skip,
            pace: Pace::new(WINDOW),
        })
    }
}

fn too_long(operation: &str, size: u64) -> Error {
    Error::invalid(
        operation,
        format!("the blob is longer than its {size} bytes"),
    )
}

/// Returns whether a response has the bytes of the blob from `position` on.
fn continues(response: &Response<Incoming>, position: u64, size: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE);
    range
        .and_then(|range| range.to_str().ok())
        .and_then(parse_range)
        .is_some_and(|(first, total)| first == position && total.is_none_or(|total| total == size))
}

/// Parses `bytes FIRST-LAST/TOTAL`. Returns the first and the total, which may be `*`.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    last.parse::<u64>().ok()?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first.parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range_headers_are_parsed() {
        for (text, expected) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes */10", None),
            ("bytes 5-/10", None),
            ("5-9/10", None),
            ("bytes 5-9", None),
            ("bytes -1-9/10", None),
        ] {
            assert_eq!(parse_range(text), expected, "{text}");
        }
    }
}
