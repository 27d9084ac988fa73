//! Connections that are upgraded to a bidirectional stream, raw or a WebSocket: attach and exec.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use futures_util::{FutureExt, Stream, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::peer::Peer;
use crate::version::RAW_STREAM;
use crate::websocket::{Handshake, WebSocket};

/// Output that precedes the live stream: the log, for attach with `logs=1`.
pub(crate) type Prelude = Option<Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>>;

/// Checks `Upgrade` only, as Docker does: some clients omit `Connection: Upgrade`.
fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
}

/// What a client is attached to: recorded output, then a live stream.
#[derive(Default)]
pub(crate) struct Source {
    pub prelude: Prelude,
    pub stream: Option<UnixStream>,
}

/// How long to wait for the client to read the response head, and for `last`.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a client may continue to send input after the output has ended.
const INPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// Attaches a request to the streams that `source` opens, and closes the connection after `last`.
/// With an `Upgrade` header, the connection itself becomes the stream (status 101). Without it, the
/// output is the response body and the input is the request body.
///
/// `source` is polled only after the client has read the response head.
pub(crate) fn connect(
    mut request: Request,
    content_type: &'static str,
    source: impl Future<Output = Source> + Send + 'static,
    last: impl Future<Output = ()> + Send + 'static,
) -> axum::response::Response {
    if !wants_upgrade(request.headers()) {
        return ordinary(request, source, last);
    }
    let mut response = upgrade(&mut request, move |upgraded| async move {
        // Also if the client has disconnected: the requested operation is carried out.
        let source = source.await;
        let Some(Upgraded { stream, peer }) = upgraded else {
            return;
        };
        serve(stream, source, left(peer), last).await;
    });
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

/// Attaches a request to the streams that `source` opens, over a WebSocket.
pub(crate) fn connect_websocket(
    mut request: Request,
    handshake: Handshake,
    is_binary: bool,
    source: impl Future<Output = Source> + Send + 'static,
) -> axum::response::Response {
    let mut response = upgrade(&mut request, move |upgraded| async move {
        let source = source.await;
        let Some(Upgraded { stream, peer }) = upgraded else {
            return;
        };
        let (socket, closed) = WebSocket::open(stream, is_binary).await;
        let left = async {
            tokio::select! {
                () = left(peer) => {}
                () = closed => {}
            }
        };
        serve(socket, source, left, async {}).await;
    });
    handshake.answer(&mut response);
    response
}

/// Turns a connection into one of HTTP/2, and gives it to `serve` with the request's headers.
pub(crate) fn connect_h2c<F: Future<Output = ()> + Send + 'static>(
    mut request: Request,
    serve: impl FnOnce(hyper::upgrade::Upgraded, HeaderMap) -> F + Send + 'static,
) -> axum::response::Response {
    let wanted = request.headers().get(header::UPGRADE);
    let refused = match wanted.map(HeaderValue::as_bytes) {
        Some(b"h2c") => None,
        None => Some("no upgrade proto in request".to_owned()),
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            Some(format!("protocol {other} not supported"))
        }
    };
    if let Some(text) = refused {
        return crate::error::message(StatusCode::BAD_REQUEST, &text);
    }
    let headers = request.headers().clone();
    let mut response = upgrade(&mut request, move |upgraded| async move {
        // A client that has left was only looking whether this works.
        if let Some(Upgraded { stream, .. }) = upgraded {
            serve(stream.into_inner(), headers).await;
        }
    });
    let protocol = HeaderValue::from_static("h2c");
    response.headers_mut().insert(header::UPGRADE, protocol);
    response
}

/// Waits until the client of an upgraded connection has disconnected.
async fn left(peer: Option<Peer>) {
    match peer {
        Some(peer) => peer.left_upgraded().await,
        None => std::future::pending().await,
    }
}

/// A connection that has become a raw stream.
struct Upgraded {
    stream: TokioIo<hyper::upgrade::Upgraded>,
    /// The client's identity, if it is known.
    peer: Option<Peer>,
}

/// Answers a request with status 101 and Docker's name for a raw stream, and gives the connection to
/// `serve` as soon as the client has read the response: clients with buffered readers lose data that
/// arrives together with it. `serve` gets `None` if the client has disconnected.
fn upgrade<F: Future<Output = ()> + Send + 'static>(
    request: &mut Request,
    serve: impl FnOnce(Option<Upgraded>) -> F + Send + 'static,
) -> axum::response::Response {
    let peer = request.extensions().get::<Peer>().cloned();
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let upgraded = upgrade.await.ok();
        if let Some(peer) = peer.clone().filter(|_| upgraded.is_some()) {
            let _ = tokio::time::timeout(PATIENCE, peer.has_read_all()).await;
        }
        let stream = upgraded.map(TokioIo::new);
        serve(stream.map(|stream| Upgraded { stream, peer })).await;
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "tcp")
        .body(Body::empty())
        .unwrap_or_default()
}

/// Copies output until it ends, and input concurrently. After the client has disconnected, only
/// input that was already sent is copied.
async fn serve(
    client: impl AsyncRead + AsyncWrite,
    source: Source,
    left: impl Future<Output = ()>,
    last: impl Future<Output = ()>,
) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    if let Some(mut prelude) = source.prelude {
        while let Some(piece) = prelude.next().await {
            // As in Docker, what the container writes from now on is sent nevertheless.
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    tracing::warn!("send the recorded output to an attached client: {error}");
                    break;
                }
            };
            if to_client.write_all(&piece).await.is_err() {
                break;
            }
        }
        // TLS keeps what the socket had no room for until it is asked again.
        let _ = to_client.flush().await;
    }
    if let Some(stream) = source.stream {
        let (mut output, input) = stream.into_split();
        let left = left.shared();
        let copied = async {
            // Fails if the client has disconnected. The output is drained while there is input, so
            // that the program does not block.
            if copy(&mut output, &mut to_client).await.is_err() {
                let _ = copy(&mut output, tokio::io::sink()).await;
            }
        };
        let passed = async {
            pass_input(&mut from_client, input).await;
            left.clone().await;
        };
        let abandoned = async {
            left.clone().await;
            tokio::time::sleep(INPUT_TIMEOUT).await;
        };
        tokio::select! {
            () = copied => {}
            () = passed => {}
            () = abandoned => {}
        }
    }
    let _ = tokio::time::timeout(PATIENCE, last).await;
    // A close frame waits for a client that reads nothing.
    let _ = tokio::time::timeout(INPUT_TIMEOUT, to_client.shutdown()).await;
    // Closing a socket with unread input resets the connection, and the client may lose output that
    // it has not read yet.
    let mut nowhere = tokio::io::sink();
    let rest = tokio::io::copy(&mut from_client, &mut nowhere);
    let _ = tokio::time::timeout(INPUT_TIMEOUT, rest).await;
}

/// Copies input to the program, then closes the program's input. Input that the program does not
/// read is discarded.
async fn pass_input(client: &mut (impl AsyncRead + Unpin), mut input: impl AsyncWrite + Unpin) {
    // Fails if the program has closed its input, or if reading from the client fails.
    if copy(&mut *client, &mut input).await.is_err() {
        let _ = copy(client, tokio::io::sink()).await;
    }
    let _ = input.shutdown().await;
}

/// Copies until the input ends or fails: a stream whose peer has closed it with data unread ends with
/// an error. What was read before is written, which [`tokio::io::copy`] does not do.
///
/// # Errors
/// Returns an error if the output fails.
async fn copy(
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    const SIZE: usize = 16 << 10;
    let mut buffer = vec![0; SIZE];
    while let Ok(count @ 1..) = input.read(&mut buffer).await {
        output.write_all(&buffer[..count]).await?;
        // TLS keeps what the socket had no room for until it is asked again.
        output.flush().await?;
    }
    Ok(())
}

fn ordinary(
    request: Request,
    source: impl Future<Output = Source> + Send + 'static,
    last: impl Future<Output = ()> + Send + 'static,
) -> axum::response::Response {
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        let Source { prelude, stream } = source.await;
        if let Some(mut prelude) = prelude {
            while let Some(piece) = prelude.next().await {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        }
        let Some(stream) = stream else { return };
        let (mut output, mut input) = stream.into_split();
        let passed = async {
            let mut pieces = request.into_body().into_data_stream();
            while let Some(Ok(piece)) = pieces.next().await {
                if input.write_all(&piece).await.is_err() {
                    break;
                }
            }
            drop(pieces);
            let _ = input.shutdown().await;
            std::future::pending::<()>().await
        };
        let copied = async {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = output.read(&mut buffer).await {
                if sender
                    .send(Ok(Bytes::copy_from_slice(&buffer[..count])))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        };
        tokio::select! {
            () = copied => {}
            () = passed => {}
            () = sender.closed() => {}
        }
        let _ = tokio::time::timeout(PATIENCE, last).await;
    });
    Response::builder()
        .status(StatusCode::OK)
        .header(header::CONTENT_TYPE, RAW_STREAM)
        .body(crate::stream::from_channel(receiver))
        .unwrap_or_default()
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use tokio::io::BufStream;

    use super::*;

    #[tokio::test]
    async fn output_is_complete_if_the_program_leaves_input_unread() {
        // Less than a socket takes without a reader, and much more than the client's connection.
        const OUTPUT: usize = 100_000;
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let (stream, mut program) = UnixStream::pair().unwrap();
        let source = Source {
            prelude: None,
            stream: Some(stream),
        };
        let served = tokio::spawn(serve(server, source, std::future::pending(), async {}));
        client.write_all(b"input").await.unwrap();
        program.readable().await.unwrap();
        program.write_all(&[b'x'; OUTPUT]).await.unwrap();
        drop(program);
        let mut output = Vec::new();
        client.read_to_end(&mut output).await.unwrap();
        assert_eq!(output.len(), OUTPUT);
        drop(client);
        served.await.unwrap();
    }

    #[tokio::test]
    async fn recorded_output_arrives_before_a_quiet_stream_ends() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let (stream, program) = UnixStream::pair().unwrap();
        let recorded = async { Ok(Bytes::from_static(b"recorded")) };
        let source = Source {
            prelude: Some(Box::pin(futures_util::stream::once(recorded))),
            stream: Some(stream),
        };
        // Like TLS, this keeps what is not flushed.
        let server = BufStream::new(server);
        let served = tokio::spawn(serve(server, source, std::future::pending(), async {}));
        let mut output = [0; 8];
        let read = client.read_exact(&mut output);
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&output, b"recorded");
        drop((client, program));
        served.await.unwrap();
    }
}
