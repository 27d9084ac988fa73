//! Streams of bytes to a client, which writes them to a file.

use std::io::{self, Write};

use bytes::BytesMut;

use crate::grpc::{Requests, Result, Status, Stream};
use crate::pb::BytesMessage;

/// Size of a message in bytes; clients accept 4 MiB.
const PIECE: usize = 256 << 10;

/// What is written for a client. Nothing may be missing when it is dropped: it is flushed before.
#[derive(Debug)]
pub struct Output {
    requests: Requests,
    buffer: BytesMut,
    written: tokio::sync::watch::Sender<u64>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == PIECE {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = self.buffer.split().freeze();
        self.buffer.reserve(PIECE);
        let count = data.len() as u64;
        let sent = self.requests.send_blocking(&BytesMessage { data });
        sent.map_err(|status| io::Error::new(io::ErrorKind::BrokenPipe, status.message))?;
        self.written.send_modify(|written| *written += count);
        Ok(())
    }
}

/// Calls `produce` on a thread that may block, and sends what it writes. `progress` gets the number of bytes so far.
///
/// # Errors
/// Returns the status of the call, and the error of `produce`.
pub async fn write<T, E, F>(
    mut stream: Stream,
    produce: F,
    mut progress: impl FnMut(u64),
) -> Result<T>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
    F: FnOnce(&mut Output) -> std::result::Result<T, E> + Send + 'static,
{
    let (written, mut count) = tokio::sync::watch::channel(0);
    let mut output = Output {
        requests: stream.requests.clone(),
        buffer: BytesMut::with_capacity(PIECE),
        written,
    };
    let mut producing = tokio::task::spawn_blocking(move || {
        let produced = produce(&mut output).map_err(|error| Status::unknown(error.to_string()))?;
        output
            .flush()
            .map_err(|error| Status::unknown(error.to_string()))?;
        Ok(produced)
    });
    let produced = loop {
        tokio::select! {
            produced = &mut producing => {
                break produced.unwrap_or_else(|error| Err(Status::unknown(error.to_string())));
            }
            // The client says nothing but that it has ended.
            next = stream.next::<BytesMessage>() => match next {
                Ok(Some(_)) => {}
                Ok(None) => return Err(Status::unavailable("the client has ended the transfer before its end")),
                Err(status) => return Err(status),
            },
            Ok(()) = count.changed() => progress(*count.borrow_and_update()),
        }
    };
    let produced = match produced {
        Ok(produced) => produced,
        Err(error) => {
            // If it has failed because the client has, its reason counts.
            if error.message.contains("the call has ended")
                && let Err(status) = stream.next::<BytesMessage>().await
            {
                return Err(status);
            }
            return Err(error);
        }
    };
    stream.requests.close();
    while stream.next::<BytesMessage>().await?.is_some() {}
    Ok(produced)
}
