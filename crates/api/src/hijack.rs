//! Requests whose connection becomes a raw stream in both directions: attach and exec.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Response, StatusCode, header};
use futures_util::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::server::ClientSocket;

/// What precedes the live stream: recorded output, for attach with logs.
pub(crate) type Prelude = Option<tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>>;

const RAW: &str = "application/vnd.docker.raw-stream";
const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get(header::CONNECTION)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.to_lowercase().contains("upgrade"))
}

/// What a client is connected to: recorded output first, then a live stream.
#[derive(Default)]
pub(crate) struct Source {
    pub prelude: Prelude,
    pub stream: Option<UnixStream>,
}

/// Connects a request to what `source` opens; `last` is waited for before its end is shown. With `Upgrade` the connection
/// itself becomes the stream (101); without, the output is the body of an ordinary answer, and input is what comes as the
/// request's body.
///
/// The answer's head goes out before anything is opened: clients with buffered readers lose what comes in one piece with
/// it.
pub(crate) fn connect(
    mut request: Request,
    multiplexed: bool,
    source: impl Future<Output = Source> + Send + 'static,
    last: impl Future<Output = ()> + Send + 'static,
) -> axum::response::Response {
    // What must be so before the client sees the end; but no client waits for ever for it.
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
    let last = tokio::time::timeout(PATIENCE, last);
    let content_type = if multiplexed { MULTIPLEXED } else { RAW };
    if !wants_upgrade(request.headers()) {
        return ordinary(request, source, content_type);
    }
    let socket = request.extensions().get::<crate::server::ClientSocket>().cloned();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let upgraded = upgrade.await;
        // Also for a client that is gone: what was asked for is done.
        let Source { mut prelude, stream } = source.await;
        let Ok(upgraded) = upgraded else { return };
        let mut client = TokioIo::new(upgraded);
        if let Some(prelude) = &mut prelude {
            while let Some(Ok(piece)) = prelude.recv().await {
                if client.write_all(&piece).await.is_err() {
                    return;
                }
            }
        }
        if let Some(mut stream) = stream {
            bridge(&mut client, &mut stream, socket.as_ref()).await;
        }
        let _ = last.await;
        let _ = client.shutdown().await;
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "tcp")
        .header(header::CONTENT_TYPE, content_type)
        .body(Body::empty())
        .unwrap_or_default()
}

/// Copies both ways. The end of the output ends everything; the end of the input is only passed on, unless the client
/// is gone altogether.
async fn bridge(
    client: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
    stream: &mut UnixStream,
    socket: Option<&ClientSocket>,
) {
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut stream_read, mut stream_write) = stream.split();
    let input = async {
        let result = tokio::io::copy(&mut client_read, &mut stream_write).await;
        let _ = stream_write.shutdown().await;
        // A half-closed client still wants its output. One that is gone altogether would show only when something is
        // written to it, which may be never: its socket is asked instead.
        const INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);
        while result.is_ok() && !socket.is_some_and(ClientSocket::is_gone) {
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let output = async {
        let _ = tokio::io::copy(&mut stream_read, &mut client_write).await;
        let _ = client_write.flush().await;
    };
    tokio::select! {
        () = input => {}
        () = output => {}
    }
}

fn ordinary(request: Request, source: impl Future<Output = Source> + Send + 'static, content_type: &str) -> axum::response::Response {
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        let Source { prelude, stream } = source.await;
        if let Some(mut prelude) = prelude {
            while let Some(piece) = prelude.recv().await {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        }
        let Some(stream) = stream else { return };
        let (mut read, mut write) = stream.into_split();
        tokio::spawn(async move {
            let mut pieces = request.into_body().into_data_stream();
            while let Some(Ok(piece)) = pieces.next().await {
                if write.write_all(&piece).await.is_err() {
                    return;
                }
            }
            let _ = write.shutdown().await;
        });
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            if sender.send(Ok(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                return;
            }
        }
    });
    Response::builder()
        .status(StatusCode::OK)
        .header(header::CONTENT_TYPE, content_type)
        .body(crate::stream::from_channel(receiver))
        .unwrap_or_default()
}
