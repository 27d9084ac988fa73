//! The state of an upload at a registry, and the requests to its location.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{
    AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
};
use hyper::{Method, Response, StatusCode};
use tokio::sync::mpsc;
use whelk_client::{Body, full_body};

use crate::attempts::Attempts;
use crate::auth::{Access, Credentials, bearer};
use crate::error::{Error, Result};
use crate::exchange::{Query, Repository};
use crate::response::{accept, challenges, read};
use crate::target::Target;
use crate::upload::Failure;

/// Maximum size in bytes of a blob that is sent in one request.
const SMALL: usize = 1 << 20;
/// Default size of chunks in bytes, and the maximum that a registry may require.
const CHUNK: usize = 4 << 20;
const MAX_CHUNK: usize = 64 << 20;
/// Maximum size of the body of a response to an upload, in bytes. It is read and ignored.
const MAX_BODY: usize = 64 << 10;
/// The header with the minimum size of all chunks except the last, in bytes.
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// An upload that the registry has started.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    at: Target,
    /// Number of bytes that the registry has acknowledged.
    pub(crate) offset: u64,
    /// Content has been sent.
    pub(crate) has_content: bool,
    /// Size of chunks in bytes.
    chunk: usize,
}

impl Session {
    /// Returns method and URL, for errors.
    pub(crate) fn operation(&self) -> String {
        self.at.operation(&Method::PATCH)
    }

    /// Sets the location for the next request.
    fn follow(&mut self, headers: &HeaderMap, operation: &str) -> Result<()> {
        if headers.contains_key(LOCATION) {
            self.at = resolve(&self.at, headers, operation)?;
        }
        Ok(())
    }
}

impl Repository {
    /// Starts an upload.
    pub(crate) async fn begin_upload(&self) -> std::result::Result<Session, Failure> {
        let query = Query::new(Method::POST, "blobs/uploads/".into());
        let at_once = |error| (error, None);
        let server = self.server(&Attempts::default()).map_err(at_once)?;
        let (response, operation) = self.ask_endpoint(&server, &query).await?;
        let least = response.headers().get(CHUNK_MIN_LENGTH);
        let least = least.and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Session {
            at: location(&response, &operation).map_err(at_once)?,
            offset: 0,
            has_content: false,
            chunk: CHUNK.max(least.unwrap_or(0)),
        })
    }

    /// Sends the content of a blob as one stream. A small blob is returned instead, for the final request.
    pub(crate) async fn send_stream(
        &self,
        session: &mut Session,
        pieces: &mut mpsc::Receiver<Bytes>,
    ) -> std::result::Result<Bytes, Failure> {
        let mut start = BytesMut::new();
        while start.len() <= SMALL {
            match pieces.recv().await {
                Some(piece) => start.extend_from_slice(&piece),
                None => return Ok(start.freeze()),
            }
        }
        session.has_content = true;
        // The body outlives the request if the registry answers before its end.
        let pieces = std::mem::replace(pieces, mpsc::channel(1).1);
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        let rest = stream::unfold(pieces, async |mut pieces| {
            pieces.recv().await.map(|piece| (piece, pieces))
        });
        let frames = stream::iter([start.freeze()])
            .chain(rest)
            .map(move |piece| {
                count.fetch_add(1, Ordering::Relaxed);
                Ok::<_, io::Error>(Frame::data(piece))
            });
        let body: Body = BodyExt::boxed(StreamBody::new(frames));
        let mut headers = binary();
        headers.extend(self.authorization(&session.at));
        let (method, at) = (Method::PATCH, &session.at);
        let response = self
            .client
            .send_watched(&method, at, &headers, body, &sent)
            .await
            .map_err(|error| (error, None))?;
        if self.renew(at, &response).await {
            let cause = "the access token has expired";
            return Err((Error::interrupted(&at.operation(&method), cause), None));
        }
        let (response, operation) = accept(at, &method, response).await?;
        session
            .follow(response.headers(), &operation)
            .map_err(|error| (error, None))?;
        // The connection is used again only if the body has been read.
        let _ = read(response, MAX_BODY, &operation).await;
        Ok(Bytes::new())
    }

    /// Sends the missing content of a blob in chunks. A small blob is returned instead, for the final
    /// request.
    pub(crate) async fn send_chunks(
        &self,
        session: &mut Session,
        pieces: &mut mpsc::Receiver<Bytes>,
    ) -> std::result::Result<Bytes, Failure> {
        if session.chunk > MAX_CHUNK {
            let problem = format!(
                "the registry requires chunks of at least {} bytes, more than {MAX_CHUNK}",
                session.chunk
            );
            return Err((Error::invalid(&session.operation(), problem), None));
        }
        let mut skip = session.offset;
        let mut chunk = BytesMut::new();
        while let Some(mut piece) = pieces.recv().await {
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            // At most the length of the piece.
            let piece = piece.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
            chunk.extend_from_slice(&piece);
            while chunk.len() >= session.chunk {
                let full = chunk.split_to(session.chunk).freeze();
                self.send_chunk(session, full).await?;
            }
        }
        if skip > 0 {
            let problem = "the registry has more than the blob's length";
            return Err((Error::interrupted(&session.operation(), problem), None));
        }
        if session.offset == 0 && chunk.len() <= SMALL {
            return Ok(chunk.freeze());
        }
        if !chunk.is_empty() {
            self.send_chunk(session, chunk.freeze()).await?;
        }
        Ok(Bytes::new())
    }

    async fn send_chunk(
        &self,
        session: &mut Session,
        chunk: Bytes,
    ) -> std::result::Result<(), Failure> {
        session.has_content = true;
        let end = session.offset + chunk.len() as u64;
        let mut headers = binary();
        let range = format!("{}-{}", session.offset, end - 1);
        headers.extend(
            HeaderValue::from_str(&range)
                .ok()
                .map(|range| (CONTENT_RANGE, range)),
        );
        let (answer, operation) = self
            .send_to(&session.at, &Method::PATCH, &headers, chunk)
            .await?;
        session
            .follow(&answer, &operation)
            .map_err(|error| (error, None))?;
        if let Some(arrived) = arrived(&answer)
            && arrived != end
        {
            let cause = format!("{arrived} bytes have arrived, not {end}");
            return Err((Error::interrupted(&operation, cause), None));
        }
        session.offset = end;
        Ok(())
    }

    /// Requests the status of an upload; `None` if it cannot be resumed.
    ///
    /// # Errors
    /// Returns an error if the failure is temporary.
    pub(crate) async fn status(
        &self,
        mut session: Session,
    ) -> std::result::Result<Option<Session>, Failure> {
        let none = HeaderMap::new();
        let answer = self
            .send_to(&session.at, &Method::GET, &none, Bytes::new())
            .await;
        let (answer, operation) = match answer {
            Ok(answer) => answer,
            Err(failure) if failure.0.is_temporary() => return Err(failure),
            Err((error, _)) => {
                tracing::debug!("registry: {error}");
                return Ok(None);
            }
        };
        let Some(arrived) = arrived(&answer) else {
            return Ok(None);
        };
        session.offset = arrived;
        let is_known = session.follow(&answer, &operation).is_ok();
        Ok(is_known.then_some(session))
    }

    /// Completes an upload with the rest of the content and the digest of all of it.
    pub(crate) async fn finish(
        &self,
        session: &mut Session,
        digest: &whelk_image::Digest,
        rest: Bytes,
    ) -> std::result::Result<(), Failure> {
        let method = Method::PUT;
        let at = session.at.with_parameter("digest", digest.as_str());
        let at = at.ok_or_else(|| {
            let problem = "the location is not a URL";
            (
                Error::invalid(&session.at.operation(&method), problem),
                None,
            )
        })?;
        self.send_to(&at, &method, &binary(), rest).await.map(drop)
    }

    /// Sends a request to a location that the registry has returned, and returns the headers of the
    /// response. If the location is on another server, the request has no credentials: such locations
    /// are signed.
    pub(crate) async fn send_to(
        &self,
        at: &Target,
        method: &Method,
        headers: &HeaderMap,
        content: Bytes,
    ) -> std::result::Result<(HeaderMap, String), Failure> {
        let send = async || {
            let mut headers = headers.clone();
            headers.extend(self.authorization(at));
            let body = full_body(content.clone());
            let sent = self.client.send(method, at, &headers, body).await;
            sent.map_err(|error| (error, None))
        };
        let mut response = send().await?;
        if self.renew(at, &response).await {
            response = send().await?;
        }
        let (response, operation) = accept(at, method, response).await?;
        let headers = response.headers().clone();
        // The connection is used again only if the body has been read.
        let _ = read(response, MAX_BODY, &operation).await;
        Ok((headers, operation))
    }

    /// Requests another access token if the one in a request has expired: a token is valid for minutes,
    /// an upload may take hours. Returns whether there is one.
    async fn renew(&self, at: &Target, response: &Response<Incoming>) -> bool {
        if response.status() != StatusCode::UNAUTHORIZED {
            return false;
        }
        let Some(access) = self.access_at(at) else {
            return false;
        };
        self.client.tokens.forget(&access);
        let challenges = challenges(response.headers());
        let renewed = self.authorize(at, &access, &challenges).await;
        matches!(renewed, Ok(Some(_)))
    }

    /// Returns the access that requests to a location need; `None` if it is on another server.
    fn access_at(&self, at: &Target) -> Option<Access> {
        let endpoint = self.endpoints.first()?;
        let is_plain = self.client.is_known_to_be_plain(&endpoint.host);
        let is_own = at.authority() == endpoint.host && (at.is_tls() || is_plain);
        is_own.then(|| Access {
            host: endpoint.host.clone(),
            scope: self.scope.clone(),
            credentials: self.credentials.clone(),
        })
    }

    fn authorization(&self, at: &Target) -> HeaderMap {
        let value = self
            .access_at(at)
            .and_then(|access| match &access.credentials {
                Credentials::RegistryToken(token) => bearer(token),
                _ => self.client.tokens.get(&access),
            });
        value
            .into_iter()
            .map(|value| (AUTHORIZATION, value))
            .collect()
    }
}

fn binary() -> HeaderMap {
    let value = HeaderValue::from_static("application/octet-stream");
    HeaderMap::from_iter([(CONTENT_TYPE, value)])
}

/// Returns the location to upload a blob to.
pub(crate) fn location(response: &Response<Incoming>, operation: &str) -> Result<Target> {
    let base = response.extensions().get::<Target>();
    let base = base.ok_or_else(|| Error::invalid(operation, "the response has no URL"))?;
    resolve(base, response.headers(), operation)
}

fn resolve(base: &Target, headers: &HeaderMap, operation: &str) -> Result<Target> {
    let located = base.located(headers);
    located.map_err(|problem| Error::invalid(operation, format!("an upload {problem}")))
}

/// Returns the number of received bytes in the header `Range` (`0-LAST`); `None` for `0-0`, which
/// registries send for an empty upload and for one byte.
fn arrived(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(RANGE)?.to_str().ok()?;
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let last: u64 = range.strip_prefix("0-")?.parse().ok()?;
    if last == 0 { None } else { last.checked_add(1) }
}
