//! Uploads of blobs that a registry does not have, and of the manifests that refer to them.
//!
//! A blob is sent to the location that the registry returns for it: in one request if it is small,
//! else as a stream, followed by a request with its digest. After a temporary failure, the registry is
//! asked for the upload's status; the rest is sent in chunks, or everything if the registry does not
//! have the upload any more.

use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Method, StatusCode};
use tokio::sync::{mpsc, oneshot};
use whelk_image::{Digest, Reference};

use crate::attempts::{Attempts, Wait};
use crate::auth::Credentials;
use crate::endpoints::{Transport, registry};
use crate::error::{Error, Kind, Result};
use crate::exchange::{Query, Repository};
use crate::manifest::Version;
use crate::session::{Session, location};
use crate::target::encoded;
use crate::transport::Client;

/// Minimum progress in bytes after which the failures of an upload are counted from zero.
const LEAST: u64 = 16 << 10;

/// The content of a blob to upload.
#[derive(Debug)]
pub struct Source {
    pub pieces: mpsc::Receiver<Bytes>,
    /// Digest and length, sent after the last piece. If the sender is dropped, the content is
    /// incomplete.
    pub end: oneshot::Receiver<(Digest, u64)>,
}

impl Client {
    /// Returns whether the settings allow to use a registry without TLS, or with any certificate. `domain` is that of references.
    pub fn may_be_insecure(&self, domain: &str) -> bool {
        registry(&self.settings, domain).transport == Transport::Insecure
    }

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
                        .send_to(&session, &Method::DELETE, &none, Bytes::new())
                        .await;
                }
                Ok(false)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    Kind::NotFound | Kind::Unauthorized | Kind::Denied
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Uploads a blob, and returns its digest and length. `open` is called for the content at each
    /// attempt, and must always return the same. `tell` is called before each wait.
    ///
    /// # Errors
    /// Returns an error if the registry refuses the blob, if the content is incomplete, or after several
    /// failures.
    pub async fn upload(
        &self,
        mut open: impl FnMut() -> Source,
        tell: impl Fn(Wait),
    ) -> Result<(Digest, u64)> {
        let mut attempts = Attempts::of_transfer();
        let mut transfer = Transfer::default();
        loop {
            let mut failure = match self.attempt(&mut transfer, &mut open).await {
                Ok(uploaded) => return Ok(uploaded),
                Err((error, _)) if transfer.change_way(&error) => continue,
                Err(failure) => failure,
            };
            loop {
                self.after(&mut attempts, failure, &tell).await?;
                match self.find(&mut transfer).await {
                    Ok(false) => break,
                    Ok(true) => break attempts.progress(),
                    Err(again) => failure = again,
                }
            }
            if let Some((digest, length)) = &transfer.end
                && transfer.session.is_none()
                && self.has_blob(digest).await?
            {
                // Only the response to the last request was lost.
                return Ok((digest.clone(), *length));
            }
        }
    }

    /// Uploads a small blob, such as a configuration, whose digest is `digest`.
    ///
    /// # Errors
    /// As [`Repository::upload`].
    pub async fn upload_bytes(&self, digest: &Digest, content: &Bytes) -> Result<(Digest, u64)> {
        let length = content.len() as u64;
        let open = || {
            let (sender, pieces) = mpsc::channel(1);
            let (tell, end) = oneshot::channel();
            // Neither channel is full.
            let _ = sender.try_send(content.clone());
            let _ = tell.send((digest.clone(), length));
            Source { pieces, end }
        };
        self.upload(open, |_| {}).await
    }

    /// Starts an upload or resumes it, and completes it.
    async fn attempt(
        &self,
        transfer: &mut Transfer,
        open: &mut impl FnMut() -> Source,
    ) -> std::result::Result<(Digest, u64), Failure> {
        let session = transfer.session.take();
        transfer.is_continued = session.is_some();
        transfer.was_in_chunks = transfer.in_chunks;
        let session = match session {
            Some(session) => session,
            None => self.begin_upload().await?,
        };
        let session = transfer.session.insert(session);
        if let Some((digest, length)) = &transfer.end
            && session.offset == *length
        {
            self.finish(session, digest, Bytes::new()).await?;
            return Ok((digest.clone(), *length));
        }
        let mut source = open();
        let rest = if session.offset > 0 || transfer.in_chunks {
            self.send_chunks(session, &mut source.pieces).await?
        } else {
            // What lies between may not let long requests pass.
            transfer.in_chunks = true;
            self.send_stream(session, &mut source.pieces).await?
        };
        let end = source.end.await.map_err(|_| {
            let problem = "the content to upload is incomplete";
            (Error::invalid(&session.operation(), problem), None)
        })?;
        let (digest, length) = transfer.end.insert(end);
        self.finish(session, digest, rest).await?;
        Ok((digest.clone(), *length))
    }

    /// Requests the status of an interrupted upload, and drops the upload if it cannot be resumed.
    /// Returns whether it has made progress since the last time.
    async fn find(&self, transfer: &mut Transfer) -> std::result::Result<bool, Failure> {
        transfer.session.take_if(|session| !session.has_content);
        let Some(session) = transfer.session.clone() else {
            return Ok(false);
        };
        transfer.session = self.status(session).await?;
        let Some(session) = &transfer.session else {
            tracing::debug!("registry: an upload starts again");
            return Ok(false);
        };
        tracing::debug!("registry: an upload is resumed at {}", session.offset);
        let before = std::mem::replace(&mut transfer.seen, session.offset);
        Ok(session.offset >= before.saturating_add(LEAST))
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
}

/// An error with the server's `Retry-After`.
pub(crate) type Failure = (Error, Option<std::time::Duration>);

/// The state of an upload between its attempts.
#[derive(Debug, Default)]
struct Transfer {
    session: Option<Session>,
    /// Digest and length, once all of the content has been read.
    end: Option<(Digest, u64)>,
    /// The content is not sent as a stream: an attempt to do so has failed.
    in_chunks: bool,
    /// The last attempt has sent chunks.
    was_in_chunks: bool,
    /// The session was started by an earlier attempt.
    is_continued: bool,
    /// Number of received bytes in the last status.
    seen: u64,
    restarts: u32,
}

impl Transfer {
    /// How often an upload starts again at once because the registry cannot resume it.
    const MAX_RESTARTS: u32 = 3;

    /// Returns whether the upload can be retried at once in another way, because of this error.
    fn change_way(&mut self, error: &Error) -> bool {
        let Error::Refused { status, errors, .. } = error else {
            return false;
        };
        let is_too_long = matches!(
            *status,
            StatusCode::LENGTH_REQUIRED | StatusCode::PAYLOAD_TOO_LARGE
        );
        if is_too_long && !self.was_in_chunks {
            self.session = None;
            return true;
        }
        let is_lost = *status == StatusCode::RANGE_NOT_SATISFIABLE
            || *status == StatusCode::NOT_FOUND
            || errors.iter().any(|error| {
                error.code.starts_with("BLOB_UPLOAD_")
                    || matches!(error.code.as_str(), "RANGE_INVALID" | "DIGEST_INVALID")
            });
        if is_lost && self.is_continued && self.restarts < Self::MAX_RESTARTS {
            self.restarts += 1;
            self.session = None;
            return true;
        }
        false
    }
}
