//! Uploads of blobs that a registry does not have, and of the manifests that refer to them.
//!
//! A blob is sent to the location that the registry returns for it: in one request if it is small,
//! else as a stream, followed by a request with its digest. After a temporary failure, the upload
//! starts again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use hyper::{Method, Response, StatusCode};
use tokio::sync::{mpsc, oneshot};
use whelk_client::{Body, full_body};
use whelk_image::{Digest, Reference};

use crate::attempts::Attempts;
use crate::auth::{Access, Credentials, bearer};
use crate::endpoints::registry;
use crate::error::{Error, Kind, Result};
use crate::exchange::{Query, Repository};
use crate::manifest::Version;
use crate::response::{accept, challenges, read};
use crate::target::{Target, encoded};
use crate::transport::Client;

/// Maximum size in bytes of a blob that is sent in one request.
const SMALL: usize = 1 << 20;
/// Maximum size of the body of a response to an upload, in bytes. It is read and ignored.
const MAX_BODY: usize = 64 << 10;

/// The content of a blob to upload.
#[derive(Debug)]
pub struct Source {
    pub pieces: mpsc::Receiver<Bytes>,
    /// Digest and length, sent after the last piece. If the sender is dropped, the content is
    /// incomplete.
    pub end: oneshot::Receiver<(Digest, u64)>,
}

impl Client {
    /// Returns the repository that a reference names, to push to it as `credentials`. Mirrors are not
    /// used.
    pub fn push(self: &Arc<Self>, reference: &Reference, credentials: Credentials) -> Repository {
        Repository {
            endpoints: vec![registry(&self.settings, &reference.domain)],
            client: self.clone(),
            path: reference.path.clone(),
            scope: format!("repository:{}:pull,push", reference.path),
            credentials,
        }
    }
}

impl Repository {
    /// Returns whether the registry has a blob in this repository.
    ///
    /// # Errors
    /// Returns an error if the request fails.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let query = Query::new(Method::HEAD, format!("blobs/{digest}"));
        match self.ask(&query).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Mounts a blob from another repository of the registry. Returns whether the registry did so: it
    /// may decline, for example if the user may not read the other repository.
    ///
    /// # Errors
    /// Returns an error if the request fails.
    pub async fn mount(&self, digest: &Digest, from: &str) -> Result<bool> {
        let path = format!(
            "blobs/uploads/?mount={}&from={}",
            encoded(digest.as_str()),
            encoded(from)
        );
        let query = Query::new(Method::POST, path).also(format!("repository:{from}:pull"));
        match self.ask(&query).await {
            Ok((response, _)) if response.status() == StatusCode::CREATED => Ok(true),
            Ok((response, operation)) => {
                // The registry has started an upload instead, which is cancelled.
                if let Ok(session) = location(&response, &operation) {
                    let none = HeaderMap::new();
                    let _ = self
                        .send_to(&session, Method::DELETE, &none, Bytes::new())
                        .await;
                }
                Ok(false)
            }
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Denied) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Uploads a blob, and returns its digest and length. `open` is called for the content at each
    /// attempt.
    ///
    /// # Errors
    /// Returns an error if the registry refuses the blob, if the content is incomplete, or after several
    /// failures.
    pub async fn upload(&self, mut open: impl FnMut() -> Source) -> Result<(Digest, u64)> {
        let mut attempts = Attempts::default();
        loop {
            match self.upload_once(open()).await {
                Ok(uploaded) => return Ok(uploaded),
                Err(error) => self.after(&mut attempts, (error, None), |_| {}).await?,
            }
        }
    }

    /// Uploads a small blob, such as a configuration, whose digest is `digest`.
    ///
    /// # Errors
    /// As [`Repository::upload`].
    pub async fn upload_bytes(&self, digest: &Digest, content: &Bytes) -> Result<(Digest, u64)> {
        let length = content.len() as u64;
        self.upload(|| {
            let (sender, pieces) = mpsc::channel(1);
            let (tell, end) = oneshot::channel();
            // Neither channel is full.
            let _ = sender.try_send(content.clone());
            let _ = tell.send((digest.clone(), length));
            Source { pieces, end }
        })
        .await
    }

    async fn upload_once(&self, mut source: Source) -> Result<(Digest, u64)> {
        let query = Query::new(Method::POST, "blobs/uploads/".into());
        let (response, operation) = self.ask(&query).await?;
        let session = location(&response, &operation)?;
        let mut start = BytesMut::new();
        while start.len() <= SMALL {
            match source.pieces.recv().await {
                Some(piece) => start.extend_from_slice(&piece),
                None => {
                    let (digest, length) = end(source.end, &operation).await?;
                    self.finish(&session, &digest, start.freeze()).await?;
                    return Ok((digest, length));
                }
            }
        }
        let session = self.stream(&session, start.freeze(), source.pieces).await?;
        let (digest, length) = end(source.end, &operation).await?;
        self.finish(&session, &digest, Bytes::new()).await?;
        Ok((digest, length))
    }

    /// Sends the content of a blob as one stream. Returns the location for the final request.
    async fn stream(
        &self,
        session: &Target,
        start: Bytes,
        pieces: mpsc::Receiver<Bytes>,
    ) -> Result<Target> {
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        let rest = stream::unfold(pieces, async |mut pieces| {
            pieces.recv().await.map(|piece| (piece, pieces))
        });
        let frames = stream::iter([start]).chain(rest).map(move |piece| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, io::Error>(Frame::data(piece))
        });
        let body: Body = BodyExt::boxed(StreamBody::new(frames));
        let mut headers = binary();
        headers.extend(self.authorization(session));
        let method = Method::PATCH;
        let response = self
            .client
            .send_watched(&method, session, &headers, body, &sent)
            .await?;
        let (response, operation) = accept(session, &method, response)
            .await
            .map_err(|(error, _)| error)?;
        let next = if response.headers().contains_key(LOCATION) {
            resolve(session, &response, &operation)?
        } else {
            session.clone()
        };
        // The connection is used again only if the body has been read.
        let _ = read(response, MAX_BODY, &operation).await;
        Ok(next)
    }

    /// Completes an upload with the rest of the content and the digest of all of it.
    async fn finish(&self, session: &Target, digest: &Digest, rest: Bytes) -> Result<()> {
        let at = session
            .with_parameter("digest", digest.as_str())
            .ok_or_else(|| {
                Error::invalid(
                    &session.operation(&Method::PUT),
                    "the location is not a URL",
                )
            })?;
        let headers = binary();
        self.send_to(&at, Method::PUT, &headers, rest).await
    }

    /// Uploads a manifest under a tag or its digest.
    ///
    /// # Errors
    /// Returns an error if the registry refuses it.
    pub async fn put_manifest(
        &self,
        version: &Version,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<()> {
        let query = Query::new(Method::PUT, format!("manifests/{}", version.text()))
            .header(CONTENT_TYPE, media_type)
            .body(bytes.into());
        self.ask(&query).await.map(drop)
    }

    /// Sends a request to a location that the registry has returned. If that is on another server, the
    /// request has no credentials: such locations are signed.
    async fn send_to(
        &self,
        at: &Target,
        method: Method,
        headers: &HeaderMap,
        content: Bytes,
    ) -> Result<()> {
        let send = async |authorization: HeaderMap| {
            let mut headers = headers.clone();
            headers.extend(authorization);
            let body = full_body(content.clone());
            self.client.send(&method, at, &headers, body).await
        };
        let mut response = send(self.authorization(at)).await?;
        // A token lasts for minutes, an upload may take hours.
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(access) = self.access_at(at)
        {
            self.client.tokens.forget(&access);
            let challenges = challenges(response.headers());
            if self.authorize(at, &access, &challenges).await?.is_some() {
                response = send(self.authorization(at)).await?;
            }
        }
        let (response, operation) = accept(at, &method, response)
            .await
            .map_err(|(error, _)| error)?;
        // The connection is used again only if the body has been read.
        let _ = read(response, MAX_BODY, &operation).await;
        Ok(())
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

/// Waits for the digest and length that follow the content.
async fn end(end: oneshot::Receiver<(Digest, u64)>, operation: &str) -> Result<(Digest, u64)> {
    end.await
        .map_err(|_| Error::invalid(operation, "the content to upload is incomplete"))
}

fn binary() -> HeaderMap {
    let value = HeaderValue::from_static("application/octet-stream");
    HeaderMap::from_iter([(CONTENT_TYPE, value)])
}

/// Returns the location to upload a blob to.
fn location(response: &Response<Incoming>, operation: &str) -> Result<Target> {
    let base = response.extensions().get::<Target>();
    let base = base.ok_or_else(|| Error::invalid(operation, "the response has no URL"))?;
    resolve(base, response, operation)
}

fn resolve(base: &Target, response: &Response<Incoming>, operation: &str) -> Result<Target> {
    let located = base.located(response.headers());
    located.map_err(|problem| Error::invalid(operation, format!("an upload {problem}")))
}
