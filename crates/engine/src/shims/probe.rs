//! Finds out whether a container has a shim, and subscribes to its events.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use whelk_shim::protocol::{self, Event, Reply, Request};

use super::ShimAddress;
use super::connection::connect;
use super::messages::read_message;
use crate::error::{Error, Result};

/// The result of [`probe`].
#[derive(Debug)]
pub enum ShimStatus {
    /// The shim has reported the container's state, and sends its events on the connection.
    Running { state: Event, events: UnixStream },
    /// There is no shim.
    Gone,
    /// There may be a shim, but it does not answer.
    Unresponsive,
}

/// Connects to a container's shim and subscribes to its events; tries for `patience`. Returns
/// [`ShimStatus::Gone`] only if nothing listens on its socket: any other error may be temporary,
/// and the container runs without the engine.
pub async fn probe(address: &ShimAddress, patience: Duration) -> ShimStatus {
    const AGAIN: Duration = Duration::from_millis(50);
    let attempts = async {
        loop {
            match connect(address).await {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    return ShimStatus::Gone;
                }
                Err(error) => tracing::debug!("connect to the shim of {address}: {error}"),
                Ok(socket) => match subscribe(socket).await {
                    Ok(status) => return status,
                    Err(error) => tracing::debug!("{address}: {error}"),
                },
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    tokio::time::timeout(patience, attempts)
        .await
        .unwrap_or(ShimStatus::Unresponsive)
}

async fn subscribe(mut events: UnixStream) -> Result<ShimStatus> {
    let message = protocol::encode(&Request::Subscribe)
        .map_err(|error| Error::internal(error.to_string()))?;
    events
        .write_all(&message)
        .await
        .map_err(|error| Error::internal(error.to_string()))?;
    match read_message(&mut events).await? {
        Reply::Done => Ok(ShimStatus::Running {
            state: read_message(&mut events).await?,
            events,
        }),
        other => Err(Error::internal(format!(
            "unexpected reply of a shim: {other:?}"
        ))),
    }
}
