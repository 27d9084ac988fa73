//! Stores of blobs that a client has, such as the directory of an OCI layout.

use std::io::{self, Write};

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::mpsc;

use crate::grpc::{Code, Result, Status, Stream};
use crate::pb::content::{
    ReadContentRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use crate::pieces::Pieces;
use crate::session::{Session, append};
use crate::turns::{OUTPUTS, STALLED};

/// The call that reads a blob of a store.
pub const READ: &str = "containerd.services.content.v1.Content/Read";
/// The call that writes one.
pub const WRITE: &str = "containerd.services.content.v1.Content/Write";

/// Size of a message in bytes; clients accept 4 MiB.
const PIECE: usize = 1 << 20;

/// Number of pieces that wait to be sent.
const WAITING: usize = 4;

/// A blob to put into a store.
#[derive(Clone, Debug)]
pub struct NewBlob {
    /// `sha256:…`
    pub digest: String,
    pub size: u64,
}

/// Leaves out the first bytes of what is written.
struct Rest<W> {
    output: W,
    /// Number of bytes that are still to be left out.
    present: u64,
}

impl<W: Write> Write for Rest<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.present == 0 {
            return self.output.write(bytes);
        }
        let present = usize::try_from(self.present).unwrap_or(usize::MAX);
        let count = present.min(bytes.len());
        self.present -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

impl Session {
    /// Calls for a blob of a store. The answers are [`ReadContentResponse`](crate::pb::content::ReadContentResponse)s.
    ///
    /// # Errors
    /// Returns an error if the client has no stores.
    pub async fn blob(&self, store: &str, digest: &str) -> Result<Stream> {
        self.needs(READ)?;
        let mut metadata = HeaderMap::new();
        append(
            &mut metadata,
            "buildkit-attachable-store-id",
            &[store.to_owned()],
        );
        let mut call = self.channel().stream(READ, metadata)?;
        let request = ReadContentRequest {
            digest: digest.to_owned(),
            ..ReadContentRequest::default()
        };
        call.requests.send(&request).await?;
        call.requests.close();
        Ok(call)
    }

    /// Puts a blob, which `produce` writes on a thread that may block, into the client's store of this name. Does nothing
    /// if it is there.
    ///
    /// # Errors
    /// Returns an error if the client has no such store, or cannot write it, and the error of `produce`.
    pub async fn put<T, E, F>(&self, store: &str, wanted: &NewBlob, produce: F) -> Result<Option<T>>
    where
        T: Send + 'static,
        E: std::fmt::Display + Send + 'static,
        F: FnOnce(&mut dyn Write) -> std::result::Result<T, E> + Send + 'static,
    {
        let mut metadata = HeaderMap::new();
        let name = HeaderName::from_static("buildkit-attachable-store-id");
        let value = HeaderValue::from_str(store);
        let value = value.map_err(|error| Status::invalid(format!("store {store}: {error}")))?;
        metadata.insert(name, value);
        let mut writing = Writing {
            stream: self.call(WRITE, metadata)?,
            request: WriteContentRequest {
                r#ref: format!("whelk-{}", wanted.digest),
                total: i64::try_from(wanted.size).unwrap_or(i64::MAX),
                expected: wanted.digest.clone(),
                ..WriteContentRequest::default()
            },
        };
        match writing.step(WriteAction::Stat, Bytes::new()).await {
            Err(status) if status.code == Code::AlreadyExists => return Ok(None),
            result => writing.request.offset = result?.offset,
        }
        // What is there of an earlier attempt; the client verifies the whole.
        let present = u64::try_from(writing.request.offset).unwrap_or(0);
        let (pieces, mut queue) = mpsc::channel(WAITING);
        let turn = OUTPUTS.begin().await;
        let producing = tokio::task::spawn_blocking(move || {
            let output = Pieces::new(PIECE, |piece| match turn.wait(pieces.send(piece)) {
                Some(sent) => sent.map_err(|_| io::ErrorKind::BrokenPipe.into()),
                None => Err(io::Error::other(STALLED)),
            });
            let mut rest = Rest { output, present };
            let produced = produce(&mut rest).map_err(|error| error.to_string())?;
            rest.flush().map_err(|error| error.to_string())?;
            Ok::<_, String>(produced)
        });
        while let Some(piece) = queue.recv().await {
            let length = i64::try_from(piece.len()).unwrap_or(0);
            writing.step(WriteAction::Write, piece).await?;
            writing.request.offset += length;
        }
        let produced = producing
            .await
            .map_err(|error| Status::unknown(error.to_string()))?
            .map_err(Status::unknown)?;
        match writing.step(WriteAction::Commit, Bytes::new()).await {
            Err(status) if status.code == Code::AlreadyExists => {}
            result => drop(result?),
        }
        writing.stream.requests.close();
        Ok(Some(produced))
    }
}

struct Writing {
    stream: Stream,
    request: WriteContentRequest,
}

impl Writing {
    async fn step(&mut self, action: WriteAction, data: Bytes) -> Result<WriteContentResponse> {
        self.request.action = action.into();
        let request = WriteContentRequest {
            data,
            ..self.request.clone()
        };
        // The answer says why it has failed.
        let _ = self.stream.requests.send(&request).await;
        let answer = self.stream.next().await?;
        answer
            .ok_or_else(|| Status::unavailable("the client has ended the transfer before its end"))
    }
}
