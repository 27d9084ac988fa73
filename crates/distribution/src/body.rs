//! Bodies of requests, received with limits of size and time, and of responses.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use tokio::time::{Instant, timeout, timeout_at};
use whelk_image::Digest;
use whelk_image::digest::Hashing;
use whelk_sys::fs;

use crate::error::{Error, Kind, Result};

pub(crate) type Outgoing = UnsyncBoxBody<Bytes, io::Error>;

/// Number of bytes that are read or written at a time.
pub(crate) const PIECE: usize = 256 << 10;
/// Maximum size of a body that is held in memory while it is sent.
const MAX_IN_MEMORY: usize = 64 << 10;

/// How slow a client may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// The time in which at least [`MIN_BYTES`] must arrive, or the whole of a small body.
    pub period: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(60),
        }
    }
}

const MIN_BYTES: usize = 4 << 10;

/// The body of a request. What is left of it on drop is read for a while: some clients read the
/// response only after they have sent the whole body, and may not get it if the connection is closed
/// before.
pub(crate) struct Received {
    body: Option<Incoming>,
    /// How the body has ended, if not at its end.
    failure: Option<Error>,
    pace: Pace,
    /// The client sends the body only on request (`Expect: 100-continue`), which hyper sends when
    /// the body is polled.
    awaits_request: bool,
}

impl Received {
    pub(crate) fn new(body: Incoming, pace: Pace, awaits_request: bool) -> Self {
        Self {
            body: Some(body),
            failure: None,
            pace,
            awaits_request,
        }
    }

    /// Returns the next pieces, about [`PIECE`] bytes if the client is fast. There are none at the
    /// end.
    ///
    /// # Errors
    /// Returns an error if the client is too slow, or has gone.
    pub(crate) async fn pieces(&mut self) -> Result<Vec<Bytes>> {
        self.awaits_request = false;
        let deadline = Instant::now() + self.pace.period;
        let (mut pieces, mut length) = (Vec::new(), 0);
        while length < PIECE {
            let Some(body) = &mut self.body else {
                break;
            };
            match timeout_at(deadline, body.frame()).await {
                Err(_) if length < MIN_BYTES => {
                    self.body = None;
                    return Err(Kind::TooSlow.error("the request's body arrives too slowly"));
                }
                Err(_) => break,
                Ok(None) => self.body = None,
                Ok(Some(Err(error))) => {
                    self.body = None;
                    // What has arrived counts: the next call returns the error.
                    let text = format!("the request's body ends early: {error}");
                    self.failure = Some(Kind::UploadInvalid.error(text));
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(piece) = frame.into_data() {
                        length += piece.len();
                        pieces.push(piece);
                    }
                }
            }
        }
        pieces.retain(|piece| !piece.is_empty());
        match self.failure.take_if(|_| pieces.is_empty()) {
            Some(error) => Err(error),
            None => Ok(pieces),
        }
    }

    /// Returns the whole body, which has at most `most` bytes.
    pub(crate) async fn all(&mut self, most: usize) -> Result<Vec<u8>> {
        let period = self.pace.period;
        let receive = async {
            let mut content = Vec::new();
            loop {
                let pieces = self.pieces().await?;
                if pieces.is_empty() {
                    return Ok(content);
                }
                for piece in pieces {
                    content.extend_from_slice(&piece);
                }
                if content.len() > most {
                    return Err(Kind::TooLarge.error(format!("more than {most} bytes")));
                }
            }
        };
        let received = timeout(period, receive).await;
        received.map_err(|_| Kind::TooSlow.error("the request's body arrives too slowly"))?
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        const MAX_DRAINED: usize = 64 << 20;
        let awaits_request = self.awaits_request;
        let Some(mut body) = self
            .body
            .take()
            .filter(|body| !body.is_end_stream() && !awaits_request)
        else {
            return;
        };
        tokio::spawn(timeout(self.pace.period, async move {
            let mut length = 0;
            while let Some(Ok(frame)) = body.frame().await
                && length < MAX_DRAINED
            {
                length += frame.data_ref().map_or(0, Bytes::len);
            }
        }));
    }
}

pub(crate) fn full(content: impl Into<Bytes>) -> Outgoing {
    Full::new(content.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Returns a body whose content waits in a file of `directory` without a name if it is large: a client
/// may take long to read it.
///
/// # Errors
/// Returns an error if the file cannot be written. Blocking.
pub(crate) fn spooled(directory: &Path, content: Vec<u8>) -> Result<Outgoing> {
    if content.len() <= MAX_IN_MEMORY {
        return Ok(full(content));
    }
    let path = directory.join(crate::names::random());
    let write = |mut file: File| {
        file.write_all(&content).map_err(fs::at("write", &path))?;
        fs::open(&path)
    };
    let opened = fs::create(&path, 0o600).and_then(write);
    fs::remove_if_exists(&path)?;
    Ok(file(opened?, 0, content.len() as u64))
}

/// Returns a body of all `size` bytes of a blob's file. The end is sent only if the content has the digest;
/// if not, `damaged` is called with the file, and the response is aborted.
pub(crate) fn verified(
    file: File,
    size: u64,
    digest: Digest,
    damaged: impl FnOnce(&File) + Send + 'static,
) -> Outgoing {
    let begin = (Hashing::with(digest.algorithm(), file), digest, damaged);
    let pieces = stream::try_unfold((Some(begin), size), async |(begin, left)| {
        let Some((mut file, digest, damaged)) = begin else {
            return Ok(None);
        };
        let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let rest = left - length as u64;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; length];
            let read = file.read_exact(&mut piece);
            // A file that has become shorter is damaged too.
            let is_short =
                matches!(&read, Err(error) if error.kind() == io::ErrorKind::UnexpectedEof);
            if !is_short {
                read?;
                if rest > 0 {
                    return Ok((piece, Some((file, digest, damaged))));
                }
            }
            let (actual, _, file) = file.finish();
            if is_short || actual != digest {
                damaged(&file);
                return Err(io::Error::other(format!("blob {digest} is damaged")));
            }
            Ok((piece, None))
        });
        let (piece, begin) = read.await.map_err(io::Error::other)??;
        Ok(Some((Frame::data(Bytes::from(piece)), (begin, rest))))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// Returns a body of `length` bytes of a file, from `first`. An error, such as a file that has become
/// shorter, aborts the response.
pub(crate) fn file(mut file: File, first: u64, length: u64) -> Outgoing {
    let begin = file.seek(SeekFrom::Start(first)).map(|_| file);
    let pieces = stream::try_unfold((begin, length), async |(file, left)| {
        if left == 0 {
            return Ok(None);
        }
        let mut file = file?;
        let size = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; size];
            file.read_exact(&mut piece).map(|()| (piece, file))
        });
        let (piece, file) = read.await.map_err(io::Error::other)??;
        let frame = Frame::data(Bytes::from(piece));
        Ok(Some((frame, (Ok(file), left - size as u64))))
    });
    StreamBody::new(pieces).boxed_unsync()
}
