//! Blobs: streamed, and continued where a connection broke.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_RANGE, RANGE};
use hyper::{Method, Response, StatusCode};
use tokio::time::{Instant, timeout_at};
use whelk_image::Digest;

use crate::error::{Error, Result};
use crate::exchange::{Query, Repository, backoff, innermost};

/// A connection is given up if less than [`LEAST`] bytes came in this time: another may be faster.
const WINDOW: Duration = Duration::from_secs(30);
const LEAST: u64 = 16 << 10;

/// The content of a blob from some offset on. It is not verified: that is for whoever has all of
/// it.
#[derive(Debug)]
pub struct Blob {
    repository: Repository,
    digest: Digest,
    /// In bytes.
    size: u64,
    /// Offset of the next byte to be returned.
    position: u64,
    source: Option<Source>,
    /// Failures since the last byte.
    failures: u32,
}

/// A response that is being read.
#[derive(Debug)]
struct Source {
    body: Incoming,
    operation: String,
    /// Bytes before [`Blob::position`] that the server sends again.
    skip: u64,
    window: Window,
}

/// Measures how slow a connection is.
#[derive(Clone, Copy, Debug)]
struct Window {
    end: Instant,
    received: u64,
}

impl Window {
    fn begin() -> Self {
        Self {
            end: Instant::now() + WINDOW,
            received: 0,
        }
    }
}

impl Repository {
    /// Returns the content of a blob of `size` bytes from `offset` on. The first request is made by
    /// [`Blob::next`].
    pub fn blob(&self, digest: &Digest, size: u64, offset: u64) -> Blob {
        Blob {
            repository: self.clone(),
            digest: digest.clone(),
            size,
            position: offset,
            source: None,
            failures: 0,
        }
    }
}

impl Blob {
    /// Returns the next piece; `None` after `size` bytes.
    ///
    /// # Errors
    /// Returns an error if the registry does not have the blob or sends more than its size, or after
    /// several failures in a row.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.position < self.size {
            match self.piece().await {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => {
                    self.failures = 0;
                    self.position += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Err(error) => {
                    self.source = None;
                    self.failures += 1;
                    if !error.is_temporary() || self.failures >= self.repository.attempts() {
                        return Err(error);
                    }
                    tracing::debug!("registry: {error}: continuing at {}", self.position);
                    tokio::time::sleep(backoff(self.failures)).await;
                }
            }
        }
        self.source = None;
        Ok(None)
    }

    /// Returns what the server sends next; empty if it was nothing new.
    async fn piece(&mut self) -> Result<Bytes> {
        let source = match &mut self.source {
            Some(source) => source,
            None => {
                let source = open(&self.repository, &self.digest, self.size, self.position).await?;
                self.source.insert(source)
            }
        };
        let left = self.size - self.position;
        let broken = |cause: &str| Error::interrupted(&source.operation, cause);
        let frame = match timeout_at(source.window.end, source.body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(broken(&innermost(&error))),
            Ok(None) => return Err(broken(&format!("the blob ends {left} bytes too early"))),
            Err(_) if source.window.received < LEAST => {
                return Err(broken(&format!(
                    "{} bytes in {} s",
                    source.window.received,
                    WINDOW.as_secs()
                )));
            }
            Err(_) => {
                source.window = Window::begin();
                return Ok(Bytes::new());
            }
        };
        let Ok(mut piece) = frame.into_data() else {
            return Ok(Bytes::new());
        };
        source.window.received += piece.len() as u64;
        let skipped = source.skip.min(piece.len() as u64);
        source.skip -= skipped;
        // At most the length of the piece.
        let piece = piece.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
        if piece.len() as u64 > left {
            return Err(Error::invalid(
                &source.operation,
                format!("the blob is longer than its {} bytes", self.size),
            ));
        }
        Ok(piece)
    }
}

/// Requests a blob from `position` on.
async fn open(
    repository: &Repository,
    digest: &Digest,
    size: u64,
    position: u64,
) -> Result<Source> {
    let mut query = Query::new(Method::GET, format!("blobs/{digest}"));
    if position > 0 {
        query = query.header(RANGE, &format!("bytes={position}-"));
    }
    let (response, operation) = repository.ask(&query).await?;
    let skip = if response.status() == StatusCode::PARTIAL_CONTENT {
        if !continues(&response, position, size) {
            return Err(Error::invalid(
                &operation,
                format!("the answer is not the range of bytes from {position} on"),
            ));
        }
        0
    } else {
        // The server sends all of it. What is known already is read again.
        position
    };
    Ok(Source {
        body: response.into_body(),
        operation,
        skip,
        window: Window::begin(),
    })
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
    fn ranges_are_parsed() {
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
