//! Sends a request to a running shim, and waits for the reply.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use whelk_shim::protocol::{self, Reply, Request};

use super::ShimAddress;
use super::connection::connect_noting;
use super::messages::read_message;
use crate::error::{Error, Result};

/// Time limit for a shim's answer to a request that does not depend on the container's processes.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request may take before the shim is asked whether it still answers, and the time limit
/// for that answer.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends a request to a container's shim, and returns the reply and the connection.
///
/// # Errors
/// Returns an error if there is no shim, [`Error::ShimSilent`] if it does not answer within
/// [`ANSWER_TIMEOUT`], and [`Error::Unavailable`] if the engine had no file descriptor to connect
/// to it.
pub async fn request(address: &ShimAddress, request: &Request) -> Result<(Reply, UnixStream)> {
    request_within(address, request, ANSWER_TIMEOUT).await
}

/// Like [`request`], with another time limit.
pub(crate) async fn request_within(
    address: &ShimAddress,
    request: &Request,
    limit: Duration,
) -> Result<(Reply, UnixStream)> {
    let attempt = Attempt::default();
    tokio::time::timeout(limit, exchange(address, request, &attempt))
        .await
        .unwrap_or_else(|_| Err(attempt.timed_out(address)))
}

/// How far a request to a shim has come.
#[derive(Debug, Default)]
struct Attempt {
    /// The shim's pid, once the engine has connected to it.
    shim: OnceLock<i32>,
    /// Whether the engine had no free file descriptor when it tried last to connect.
    lacks_descriptors: AtomicBool,
}

impl Attempt {
    /// Returns the error of a request that was not answered in time.
    fn timed_out(&self, address: &ShimAddress) -> Error {
        if self.lacks_descriptors.load(Ordering::Relaxed) {
            return Error::Unavailable(format!(
                "connect to the shim of {address}: too many open files: raise the engine's limit (LimitNOFILE, ulimit -n)"
            ));
        }
        let pid = self.shim.get().map_or("?".into(), ToString::to_string);
        Error::ShimSilent(format!("{address}: the shim (pid {pid}) does not answer"))
    }
}

/// Like [`request`], for a request whose duration depends on the container's processes: it may take
/// as long as it needs while the shim answers other requests.
pub async fn request_while_alive(
    address: &ShimAddress,
    request: &Request,
) -> Result<(Reply, UnixStream)> {
    let attempt = Attempt::default();
    while_alive(address, exchange(address, request, &attempt)).await
}

/// Waits for a shim's answer for as long as it answers others.
///
/// # Errors
/// Returns [`Error::ShimSilent`] if it does not, else the error of `answer`.
pub(super) async fn while_alive<T>(
    address: &ShimAddress,
    answer: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut answer = std::pin::pin!(answer);
    loop {
        if let Ok(answer) = tokio::time::timeout(PING_TIMEOUT, &mut answer).await {
            return answer;
        }
        tokio::select! {
            answer = &mut answer => return answer,
            silent = check_alive(address) => silent?,
        }
    }
}

/// Checks that a shim's event loop runs, on a connection of its own.
///
/// # Errors
/// Returns [`Error::ShimSilent`] if the shim does not answer within [`PING_TIMEOUT`]. That there is
/// none, or that the engine cannot connect to it, is no error.
pub(crate) async fn check_alive(address: &ShimAddress) -> Result<()> {
    match request_within(address, &Request::Processes, PING_TIMEOUT).await {
        Err(error @ Error::ShimSilent(_)) => Err(error),
        _ => Ok(()),
    }
}

/// Sends a request and reads the reply.
async fn exchange(
    address: &ShimAddress,
    request: &Request,
    attempt: &Attempt,
) -> Result<(Reply, UnixStream)> {
    let fail = |error: std::io::Error| {
        let error_text = whelk_sys::errno_text(&error);
        let text = format!("connect to the shim of {address}: {error_text}");
        Error::kernel(text, &error)
    };
    let mut socket = connect_noting(address, &attempt.lacks_descriptors)
        .await
        .map_err(fail)?;
    if let Ok(Some(pid)) = socket.peer_cred().map(|peer| peer.pid()) {
        let _ = attempt.shim.set(pid);
    }
    let message = protocol::encode(request).map_err(|error| Error::internal(error.to_string()))?;
    let lost = |error: std::io::Error| {
        Error::internal(format!(
            "the shim of {address} ended: {}",
            whelk_sys::errno_text(&error)
        ))
    };
    socket.write_all(&message).await.map_err(lost)?;
    let reply = read_message(&mut socket).await?;
    Ok((reply, socket))
}

/// Checks that a shim has done what it was asked for; `step` is the prefix of the error's text.
///
/// # Errors
/// Returns [`Error::Conflict`] if the container's state does not allow it, else
/// [`Error::Internal`].
pub(crate) fn expect_done(reply: Reply, step: &str) -> Result<()> {
    match reply {
        Reply::Failed(whelk_runtime::Error::State(text)) => {
            Err(Error::conflict(format!("{step}: {text}")))
        }
        Reply::Failed(error) => Err(Error::internal(format!("{step}: {error}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::WorkloadKind;
    use super::*;

    /// Answers a ping at once, and any other request after a while.
    async fn serve(mut socket: UnixStream) -> Result<()> {
        let reply = if matches!(read_message(&mut socket).await?, Request::Processes) {
            Reply::Processes(Vec::new())
        } else {
            tokio::time::sleep(PING_TIMEOUT + Duration::from_secs(2)).await;
            Reply::Done
        };
        let message = protocol::encode(&reply).unwrap();
        socket.write_all(&message).await.unwrap();
        Ok(())
    }

    #[tokio::test]
    async fn a_slow_request_is_waited_for_while_the_shim_answers_others() {
        let scratch = whelk_sys::Scratch::temporary("alive").unwrap();
        let address = ShimAddress {
            kind: WorkloadKind::Container,
            id: "one".into(),
            directory: scratch.path().to_owned(),
        };
        let listener = tokio::net::UnixListener::bind(address.directory.join("shim.sock")).unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket));
            }
        });
        let answer = request_while_alive(&address, &Request::Pause).await;
        assert_eq!(answer.unwrap().0, Reply::Done);
    }
}
