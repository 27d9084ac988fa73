//! Bodies that come in pieces: between the engine's blocking readers and writers and HTTP.

use std::io::{self, Read, Write};

use axum::body::{Body, Bytes};
use futures_util::StreamExt;
use tokio::sync::mpsc;

/// Pieces in flight between a blocking side and HTTP.
const DEPTH: usize = 8;
const PIECE: usize = 128 << 10;

/// How long a client may go on to send what nobody wants any more.
const LONGEST_REST: std::time::Duration = std::time::Duration::from_secs(60);

/// A body out of what a channel brings. It ends where the channel does; an error cuts it off.
pub(crate) fn from_channel(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    Body::from_stream(futures_util::stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|piece| (piece, receiver))))
}

/// A body out of what `write` writes on a blocking thread. If it fails, the body is cut off, so that the client does
/// not take a part for the whole.
pub(crate) fn written<E: std::fmt::Display + Send + 'static>(write: impl FnOnce(&mut dyn Write) -> Result<(), E> + Send + 'static) -> Body {
    let (sender, receiver) = mpsc::channel(DEPTH);
    tokio::task::spawn_blocking(move || {
        let mut writer = io::BufWriter::with_capacity(PIECE, ChannelWriter(sender.clone()));
        let result = write(&mut writer).map_err(|error| io::Error::other(error.to_string())).and_then(|()| writer.flush());
        if let Err(error) = result {
            tracing::warn!("a stream ended early: {error}");
            let _ = sender.blocking_send(Err(error));
        }
    });
    from_channel(receiver)
}

struct ChannelWriter(mpsc::Sender<io::Result<Bytes>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A request's body for a blocking reader.
pub(crate) fn reader(body: Body) -> BodyReader {
    let (sender, receiver) = mpsc::channel(DEPTH);
    tokio::spawn(async move {
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let failed = piece.is_err();
            let piece = piece.map_err(|error| io::Error::new(io::ErrorKind::UnexpectedEof, error.to_string()));
            if failed || sender.send(piece).await.is_err() {
                break;
            }
        }
        // What was refused before its end is read to the end all the same: most clients look for an answer only then.
        let rest = async { while let Some(Ok(_)) = pieces.next().await {} };
        let _ = tokio::time::timeout(LONGEST_REST, rest).await;
    });
    BodyReader { receiver, piece: Bytes::new() }
}

pub(crate) struct BodyReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
