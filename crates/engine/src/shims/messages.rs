//! Sends and receives messages of the shim's protocol.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use whelk_shim::protocol::{self, Event};

use crate::error::{Error, Result};

/// Sends a message. The descriptors are attached to its first byte.
pub(super) async fn send(socket: &mut UnixStream, message: &[u8], fds: &[OwnedFd]) -> Result<()> {
    let lost = |error: std::io::Error| {
        Error::internal(format!(
            "the shim ended early: {}",
            whelk_sys::errno_text(&error)
        ))
    };
    let sent = loop {
        socket.writable().await.map_err(lost)?;
        let result = socket.try_io(tokio::io::Interest::WRITABLE, || {
            const MOST: usize = 253;
            let borrowed: Vec<_> = fds.iter().take(MOST).map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&borrowed));
            }
            sendmsg(
                socket.as_fd(),
                &[IoSlice::new(message)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
            .map_err(Into::into)
        });
        match result {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            result => break result.map_err(lost)?,
        }
    };
    socket.write_all(&message[sent..]).await.map_err(lost)
}

/// Reads one message from a shim.
///
/// # Errors
/// Returns an error if the connection ends, or if the message cannot be parsed.
pub async fn read_message<T: for<'de> serde::Deserialize<'de>>(
    socket: &mut UnixStream,
) -> Result<T> {
    let body = read_body(socket).await?;
    serde_json::from_slice(&body)
        .map_err(|error| Error::internal(format!("malformed message from a shim: {error}")))
}

/// Reads the next event from a shim. Unknown events, as another version's shim may send, are logged
/// and skipped.
///
/// # Errors
/// Returns an error if the connection has ended.
pub async fn read_event(socket: &mut UnixStream) -> Result<Event> {
    loop {
        match serde_json::from_slice(&read_body(socket).await?) {
            Ok(event) => return Ok(event),
            Err(error) => tracing::warn!("skip an unknown event of a shim: {error}"),
        }
    }
}

async fn read_body(socket: &mut UnixStream) -> Result<Vec<u8>> {
    let lost = |error: std::io::Error| {
        Error::internal(format!(
            "the shim ended early: {}",
            whelk_sys::errno_text(&error)
        ))
    };
    let mut head = [0; 4];
    socket.read_exact(&mut head).await.map_err(lost)?;
    let mut body = vec![0; protocol::body_length(head).map_err(lost)?];
    socket.read_exact(&mut body).await.map_err(lost)?;
    Ok(body)
}
