//! WebSocket connections (RFC 6455): the server's handshake, and a connection as a stream of bytes.
//!
//! The bytes of a client's text and binary messages are input, whatever their limits; what is written
//! becomes one frame per write. Pings and the closing handshake are answered by the crate.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Utf8Bytes};

use crate::error::{ApiError, ApiResult};

/// Maximum size of a client's message, which is held in memory until it is complete. A larger one
/// ends the connection with status 1009.
const MAX_MESSAGE_SIZE: usize = 1 << 20;

/// What the key of a handshake is hashed with (RFC 6455, section 1.3).
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The server's part of a handshake: headers of the response with status 101.
#[derive(Debug)]
pub(crate) struct Handshake {
    accept: HeaderValue,
    protocol: Option<HeaderValue>,
}

impl Handshake {
    /// Checks a client's handshake. The error texts are Docker's.
    ///
    /// # Errors
    /// Returns an error if it is no handshake of version 13, if it offers more than one protocol, or
    /// if it comes from a page of another origin: browsers let every page connect, and only tell the
    /// server which it is. They always name a host; clients that name none, as those of Go's WebSocket
    /// package on a unix socket, may give any origin.
    pub(crate) fn new(headers: &HeaderMap) -> ApiResult<Self> {
        let text = |name| {
            headers
                .get(name)
                .map_or("", |value: &HeaderValue| value.to_str().unwrap_or("?"))
                .trim()
        };
        let is_upgrade = headers.get_all(header::CONNECTION).iter().any(|value| {
            let value = value.to_str().unwrap_or_default();
            value.to_ascii_lowercase().contains("upgrade")
        });
        if !text(header::UPGRADE).eq_ignore_ascii_case("websocket") || !is_upgrade {
            return Err(ApiError::invalid("not websocket protocol"));
        }
        let key = text(header::SEC_WEBSOCKET_KEY);
        if !BASE64_STANDARD.decode(key).is_ok_and(|key| key.len() == 16) {
            return Err(ApiError::invalid("mismatch challenge/response"));
        }
        if text(header::SEC_WEBSOCKET_VERSION) != "13" {
            return Err(ApiError::invalid("missing or bad WebSocket Version"));
        }
        let protocol = text(header::SEC_WEBSOCKET_PROTOCOL);
        if protocol.contains(',') {
            return Err(ApiError::invalid("missing or bad WebSocket-Protocol"));
        }
        let (origin, host) = (text(header::ORIGIN), text(header::HOST));
        if !origin.is_empty() && !host.is_empty() && !is_same_host(origin, host) {
            let text = format!("WebSocket: the page's origin {origin:?} is not this host");
            return Err(whelk_engine::Error::Denied(text).into());
        }
        let digest = {
            let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
            hash.update(key.as_bytes());
            hash.update(KEY_SUFFIX);
            BASE64_STANDARD.encode(hash.finish())
        };
        let invalid = |_| ApiError::invalid("invalid WebSocket handshake");
        let value = |text: &str| HeaderValue::from_str(text).map_err(invalid);
        Ok(Self {
            accept: value(&digest)?,
            protocol: (!protocol.is_empty())
                .then(|| value(protocol))
                .transpose()?,
        })
    }

    /// Makes a response that upgrades the connection one to a WebSocket.
    pub(crate) fn answer(self, response: &mut Response) {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(protocol) = self.protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
    }
}

/// Returns whether an origin (`http://host:port`) is the host of the header `Host`.
fn is_same_host(origin: &str, host: &str) -> bool {
    origin
        .split_once("://")
        .is_some_and(|(_, origin)| origin.eq_ignore_ascii_case(host))
}

/// A WebSocket as a stream of bytes. Shutting it down sends a close frame.
#[derive(Debug)]
pub(crate) struct WebSocket<S> {
    frames: WebSocketStream<S>,
    /// The kind of the frames that are sent.
    kind: Data,
    /// Input that has not been read yet.
    received: Bytes,
    /// Closed when the client has ended the WebSocket.
    open: Option<oneshot::Sender<()>>,
    /// The status of the close frame.
    status: CloseCode,
    /// Whether the close frame was sent.
    is_closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Opens a WebSocket on a connection after its handshake. The future resolves when the client has
    /// closed it, or has sent something that is not allowed.
    pub(crate) async fn open(stream: S, is_binary: bool) -> (Self, impl Future<Output = ()>) {
        const BUFFER: usize = 16 << 10;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(BUFFER)
            .max_message_size(Some(MAX_MESSAGE_SIZE))
            .max_frame_size(Some(MAX_MESSAGE_SIZE));
        let frames = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        let (open, closed) = oneshot::channel();
        let socket = Self {
            frames,
            kind: if is_binary { Data::Binary } else { Data::Text },
            received: Bytes::new(),
            open: Some(open),
            status: CloseCode::Normal,
            is_closing: false,
        };
        (socket, async move { drop(closed.await) })
    }

    /// Discards what a client sends after an error. Without reading it, closing the connection would
    /// reset it, and the client may lose the close frame.
    fn discard(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 4 << 10];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(self.frames.get_mut()).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// Returns the status for a client whose message is refused.
fn status(error: &tungstenite::Error) -> CloseCode {
    match error {
        tungstenite::Error::Capacity(_) => CloseCode::Size,
        tungstenite::Error::Utf8(_) => CloseCode::Invalid,
        tungstenite::Error::Protocol(_) => CloseCode::Protocol,
        _ => CloseCode::Error,
    }
}

fn broken(error: tungstenite::Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.received.is_empty() {
                let count = this.received.len().min(buffer.remaining());
                buffer.put_slice(&this.received.split_to(count));
                return Poll::Ready(Ok(()));
            }
            if this.status != CloseCode::Normal {
                return this.discard(context);
            }
            match ready!(this.frames.poll_next_unpin(context)) {
                Some(Ok(Message::Binary(bytes))) => this.received = bytes,
                Some(Ok(Message::Text(text))) => this.received = text.into(),
                Some(Ok(_)) => {}
                ended => {
                    if let Some(Err(error)) = ended {
                        tracing::debug!("WebSocket: {error}");
                        this.status = status(&error);
                    }
                    this.open = None;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.frames.poll_ready_unpin(context)).map_err(broken)?;
        // A text frame is made without a check for UTF-8, as in Docker.
        let payload = Bytes::copy_from_slice(bytes);
        let frame = Frame::message(payload, OpCode::Data(this.kind), true);
        this.frames
            .start_send_unpin(Message::Frame(frame))
            .map_err(broken)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut()
            .frames
            .poll_flush_unpin(context)
            .map_err(broken)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_closing {
            this.is_closing = true;
            // Fails if the client has closed it first.
            let _ = this
                .frames
                .start_send_unpin(Message::Close(Some(CloseFrame {
                    code: this.status,
                    reason: Utf8Bytes::default(),
                })));
        }
        this.frames.poll_close_unpin(context).map_err(broken)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        given
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    /// The example of RFC 6455, section 1.3.
    const VALID: [(&str, &str); 6] = [
        ("host", "server.example.com"),
        ("upgrade", "WebSocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-version", "13"),
        ("origin", "http://SERVER.example.com"),
    ];

    #[test]
    fn answers_the_handshake_of_the_specification() {
        let mut response = Response::default();
        let handshake = Handshake::new(&headers(&VALID)).unwrap();
        handshake.answer(&mut response);
        assert_eq!(response.status(), 101);
        let header = |response: &Response, name: &str| {
            let value = response.headers().get(name).unwrap();
            value.to_str().unwrap().to_owned()
        };
        assert_eq!(
            header(&response, "sec-websocket-accept"),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        let mut given = headers(&VALID);
        given.insert("sec-websocket-protocol", HeaderValue::from_static("tty"));
        Handshake::new(&given).unwrap().answer(&mut response);
        assert_eq!(header(&response, "sec-websocket-protocol"), "tty");
    }

    #[test]
    fn refuses_other_handshakes() {
        let check = |name: &'static str, value: Option<&str>, expected: &str| {
            let mut given = headers(&VALID);
            given.remove(name);
            if let Some(value) = value {
                given.insert(name, value.parse().unwrap());
            }
            let error = Handshake::new(&given).unwrap_err().0.to_string();
            assert!(error.contains(expected), "{name}: {value:?}: {error}");
        };
        check("upgrade", Some("tcp"), "not websocket protocol");
        check("upgrade", None, "not websocket protocol");
        check("connection", Some("close"), "not websocket protocol");
        let key = "sec-websocket-key";
        for value in [None, Some("AAAA"), Some("%%%%"), Some("")] {
            check(key, value, "mismatch challenge/response");
        }
        for value in [None, Some("8"), Some("13, 8")] {
            check(
                "sec-websocket-version",
                value,
                "missing or bad WebSocket Version",
            );
        }
        let several = Some("a, b");
        let text = "missing or bad WebSocket-Protocol";
        check("sec-websocket-protocol", several, text);
        for origin in ["null", "http://elsewhere", "http://server.example.com.evil"] {
            check("origin", Some(origin), "is not this host");
        }
    }

    #[test]
    fn clients_that_name_no_host_may_give_any_origin() {
        let mut given = headers(&VALID);
        given.insert("origin", HeaderValue::from_static("http://localhost"));
        for host in [Some(""), None] {
            given.remove("host");
            if let Some(host) = host {
                given.insert("host", HeaderValue::from_static(host));
            }
            assert!(Handshake::new(&given).is_ok(), "{host:?}");
        }
    }

    /// A masked frame of a client.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![first];
        match u16::try_from(payload.len()) {
            Ok(length @ ..126) => frame.push(0x80 | u8::try_from(length).unwrap()),
            Ok(length) => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
            Err(_) => {
                frame.push(0x80 | 127);
                frame.extend((payload.len() as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        let masked = payload.iter().zip(mask.iter().cycle());
        frame.extend(masked.map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// Sends frames, and returns the input and everything that the server has answered after it has
    /// shut down its side.
    async fn exchange(sent: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut client, server) = duplex(1 << 12);
        let (mut socket, ended) = WebSocket::open(server, true).await;
        let served = tokio::spawn(async move {
            let mut input = Vec::new();
            socket.read_to_end(&mut input).await.unwrap();
            ended.await;
            let _ = socket.shutdown().await;
            let mut nowhere = tokio::io::sink();
            let rest = tokio::io::copy(&mut socket, &mut nowhere);
            let _ = tokio::time::timeout(Duration::from_secs(20), rest).await;
            input
        });
        // Does not end, as with a client that waits for an answer.
        client.write_all(sent).await.unwrap();
        let answer = read_until_close(&mut client).await;
        drop(client);
        (served.await.unwrap(), answer)
    }

    /// Reads small frames up to a close frame.
    async fn read_until_close(client: &mut DuplexStream) -> Vec<u8> {
        let mut answer = Vec::new();
        loop {
            let mut head = [0; 2];
            client.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; head[1].into()];
            client.read_exact(&mut payload).await.unwrap();
            answer.extend(head);
            answer.extend(payload);
            if head[0] == 0x88 {
                return answer;
            }
        }
    }

    /// A close frame with a status.
    fn close(status: u16) -> Vec<u8> {
        [&[0x88, 2][..], &status.to_be_bytes()].concat()
    }

    #[tokio::test]
    async fn messages_are_input_and_control_frames_are_answered() {
        let goodbye = frame(0x88, &1000_u16.to_be_bytes());
        let check = async |frames: &[Vec<u8>], input: &str, answer: &[u8]| {
            let sent = [&frames.concat()[..], &goodbye].concat();
            let (found, answered) = exchange(&sent).await;
            assert_eq!(String::from_utf8_lossy(&found), input, "{frames:?}");
            assert_eq!(answered, [answer, &close(1000)].concat(), "{frames:?}");
        };
        check(&[frame(0x82, b"binary")], "binary", b"").await;
        check(&[frame(0x81, b"text"), frame(0x82, b"!")], "text!", b"").await;
        let fragments = [frame(0x01, b"a"), frame(0x00, b"b"), frame(0x80, b"c")];
        check(&fragments, "abc", b"").await;
        // A control frame between fragments.
        let ping = [frame(0x02, b"a"), frame(0x89, b"hello"), frame(0x80, b"b")];
        check(&ping, "ab", b"\x8a\x05hello").await;
        check(&[frame(0x8a, b"unasked")], "", b"").await;
        let large = vec![b'x'; MAX_MESSAGE_SIZE];
        let text = String::from_utf8(large.clone()).unwrap();
        check(&[frame(0x82, &large)], &text, b"").await;
        check(&[frame(0x82, b""), frame(0x82, b"x")], "x", b"").await;
    }

    #[tokio::test]
    async fn frames_that_are_not_allowed_end_the_connection() {
        let check = async |frames: &[Vec<u8>], status: u16| {
            let (input, answered) = exchange(&frames.concat()).await;
            assert_eq!((input, answered), (Vec::new(), close(status)), "{frames:?}");
        };
        let unmasked = vec![0x82, 1, b'x'];
        check(&[unmasked], 1002).await;
        check(&[frame(0xc2, b"reserved bit")], 1002).await;
        check(&[frame(0x83, b"unknown opcode")], 1002).await;
        check(&[frame(0x8b, b"unknown control")], 1002).await;
        check(&[frame(0x80, b"continues nothing")], 1002).await;
        check(&[frame(0x02, b"a"), frame(0x82, b"within")], 1002).await;
        check(&[frame(0x09, b"fragmented ping")], 1002).await;
        check(&[frame(0x89, &[0; 126])], 1002).await;
        check(&[frame(0x81, b"\xff")], 1007).await;
        // Too large: by its head alone, in one frame, and in fragments.
        let mut head = vec![0x82, 0xff];
        head.extend(u64::MAX.to_be_bytes());
        head.extend([0; 4]);
        check(&[head], 1009).await;
        check(&[frame(0x82, &vec![0; MAX_MESSAGE_SIZE + 1])], 1009).await;
        let half = vec![0; MAX_MESSAGE_SIZE / 2 + 1];
        check(&[frame(0x02, &half), frame(0x80, &half)], 1009).await;
    }

    #[tokio::test]
    async fn output_is_sent_in_frames_of_one_kind() {
        for (is_binary, first) in [(true, 0x82), (false, 0x81)] {
            let (mut client, server) = duplex(1 << 12);
            let (mut socket, _ended) = WebSocket::open(server, is_binary).await;
            socket.write_all(b"\xffout").await.unwrap();
            socket.shutdown().await.unwrap();
            let answer = read_until_close(&mut client).await;
            let mut expected = vec![first, 4];
            expected.extend(b"\xffout");
            expected.extend(close(1000));
            assert_eq!(answer, expected);
        }
    }
}
