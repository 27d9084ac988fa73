//! Request bodies that are read from a file or from standard input.

use std::io::Read;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use crate::client::Body;
use crate::{Failure, Outcome};

pub(crate) fn file_body(path: &str) -> Outcome<Body> {
    let failed = |what: &'static str| {
        move |error: std::io::Error| {
            Failure::new(format!("{what} {path}: {}", crate::plain(&error)))
        }
    };
    let file = std::fs::File::open(path).map_err(failed("open"))?;
    if file.metadata().is_ok_and(|found| found.is_dir()) {
        return Err(failed("read")(std::io::ErrorKind::IsADirectory.into()));
    }
    Ok(reader_body(file))
}

/// Returns a request body that is read from a blocking reader on a separate thread.
pub(crate) fn reader_body(mut reader: impl Read + Send + 'static) -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Frame<Bytes>>>(4);
    std::thread::spawn(move || {
        const PIECE: usize = 256 << 10;
        loop {
            let mut piece = vec![0; PIECE];
            let message = match reader.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    Ok(Frame::data(Bytes::from(piece)))
                }
                Err(error) => Err(error),
            };
            let failed = message.is_err();
            if sender.blocking_send(message).is_err() || failed {
                return;
            }
        }
    });
    StreamBody::new(Receiver(receiver)).boxed()
}

/// Returns a request body of the pieces that `write` sends, on a separate thread. If `write` fails, the
/// request does.
pub(crate) fn pieces_body(
    write: impl FnOnce(&mut dyn FnMut(Vec<u8>) -> std::io::Result<()>) -> std::io::Result<()>
    + Send
    + 'static,
) -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Frame<Bytes>>>(4);
    std::thread::spawn(move || {
        let mut send = |piece: Vec<u8>| {
            sender
                .blocking_send(Ok(Frame::data(Bytes::from(piece))))
                .map_err(|_| std::io::ErrorKind::BrokenPipe.into())
        };
        if let Err(error) = write(&mut send) {
            let _ = sender.blocking_send(Err(error));
        }
    });
    StreamBody::new(Receiver(receiver)).boxed()
}

struct Receiver(tokio::sync::mpsc::Receiver<std::io::Result<Frame<Bytes>>>);

impl futures_core::Stream for Receiver {
    type Item = std::io::Result<Frame<Bytes>>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
