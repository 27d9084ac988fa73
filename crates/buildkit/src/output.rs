//! Streams of bytes to a client, which writes them to a file.

use std::io::{self, Write};

use bytes::Bytes;

use crate::grpc::{Result, Status, Stream};
use crate::pb::BytesMessage;
use crate::pieces::Pieces;
use crate::turns::Turn;

/// Size of a message in bytes; clients accept 4 MiB.
const PIECE: usize = 256 << 10;

/// Calls `produce` on a thread that may block, for which `turn` is the right, and sends what it writes. `progress` gets the number of
/// bytes so far.
///
/// # Errors
/// Returns the status of the call, and the error of `produce`.
pub async fn write<T, E, F>(
    mut stream: Stream,
    turn: Turn,
    produce: F,
    mut progress: impl FnMut(u64),
) -> Result<T>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
    F: FnOnce(&mut dyn Write) -> std::result::Result<T, E> + Send + 'static,
{
    let (written, mut count) = tokio::sync::watch::channel(0);
    let requests = stream.requests.clone();
    let mut output = Pieces::new(PIECE, move |data: Bytes| {
        let count = data.len() as u64;
        let sent = requests.send_blocking(&BytesMessage { data }, &turn);
        sent.map_err(|status| io::Error::new(io::ErrorKind::BrokenPipe, status.message))?;
        written.send_modify(|written| *written += count);
        Ok(())
    });
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
