//! An HTTP/1.1 client over sockets and TLS, for the Engine API and for plugins.
//!
//! Each request has a connection of its own ([`send`]). Bodies are streamed in both directions. A response
//! with status 101 turns the connection into a raw byte stream ([`upgrade`]). The meaning of paths, status
//! codes and bodies is up to the caller, and so are the texts of errors.
#![forbid(unsafe_code)]

mod program;
mod tls;
mod transport;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
pub use program::{Program, ProgramEnded, program_ended};
pub use tls::{Tls, tls_reason};
pub use transport::{Address, Connection, tcp};
pub use whelk_tls::{Trust, Unusable, system_authorities, tls_problem};

/// A request body. Its errors end the request.
pub type Body = BoxBody<Bytes, io::Error>;

/// The raw bytes of a connection after a response with status 101.
pub type RawStream = TokioIo<Upgraded>;

/// Why there is no (complete) response.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection cannot be opened.
    #[error("{0}")]
    Connect(io::Error),
    /// The request cannot be sent, or the response cannot be read.
    #[error("{0}")]
    Exchange(hyper::Error),
    /// The response's body is larger than the caller's limit.
    #[error("length limit exceeded")]
    TooLarge,
    /// There was no response within this time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns whether an open connection ended, other than by the request's body or by a response that is
    /// not HTTP.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Exchange(error) if !error.is_user() && !error.is_parse())
    }
}

/// Returns an empty body.
pub fn no_body() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// Returns a body with this content.
pub fn full_body(content: impl Into<Bytes>) -> Body {
    Full::new(content.into())
        .map_err(|never| match never {})
        .boxed()
}

/// Sends a request on a new connection, and returns the response when its head has arrived. Must be called
/// on a tokio runtime, on which the connection's task continues until the body has been read.
///
/// # Errors
/// Returns an error if the server cannot be reached, or if the connection ends before the head.
pub async fn send(address: &Address, request: Request<Body>) -> Result<Response<Incoming>> {
    let connection = address.connect().await.map_err(Error::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(connection))
        .await
        .map_err(Error::Exchange)?;
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(Error::Exchange)
}

/// Reads a response's body, at most `limit` bytes.
///
/// # Errors
/// Returns an error if the body is larger, or if the connection ends before its end.
pub async fn read_at_most(response: Response<Incoming>, limit: usize) -> Result<Bytes> {
    match Limited::new(response.into_body(), limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(error) => Error::Exchange(*error),
            Err(_) => Error::TooLarge,
        }),
    }
}

/// Returns the raw byte stream of a connection whose response has status 101.
///
/// # Errors
/// Returns an error if the server did not upgrade the connection.
pub async fn upgrade(response: Response<Incoming>) -> Result<RawStream> {
    hyper::upgrade::on(response)
        .await
        .map(TokioIo::new)
        .map_err(Error::Exchange)
}

/// Runs an exchange for at most `limit`.
///
/// # Errors
/// Returns [`Error::Timeout`] after that time; the connection is closed.
pub async fn within<T>(limit: Duration, exchange: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, exchange)
        .await
        .unwrap_or(Err(Error::Timeout(limit)))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection with these bytes after its first request, then echoes what follows, or
    /// closes the connection without `echo`.
    async fn serve(answer: &'static str, echo: bool) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap().to_string());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            if echo {
                let (mut input, mut output) = stream.split();
                tokio::io::copy(&mut input, &mut output).await.unwrap();
            }
        });
        address
    }

    async fn get(address: &Address) -> Result<Response<Incoming>> {
        let request = Request::get("/").header("host", "x").body(no_body());
        send(address, request.unwrap()).await
    }

    #[tokio::test]
    async fn responses_are_read_within_a_limit() {
        const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        for (limit, expected) in [(5, Some("hello")), (4, None)] {
            let response = get(&serve(ANSWER, false).await).await.unwrap();
            let body = read_at_most(response, limit).await;
            assert_eq!(body.ok().as_deref(), expected.map(str::as_bytes));
        }
    }

    #[tokio::test]
    async fn an_upgraded_connection_is_a_raw_stream() {
        const ANSWER: &str =
            "HTTP/1.1 101 UPGRADED\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\nfirst ";
        let address = serve(ANSWER, true).await;
        let request = Request::post("/")
            .header("host", "x")
            .header("connection", "Upgrade")
            .header("upgrade", "tcp")
            .body(no_body());
        let response = send(&address, request.unwrap()).await.unwrap();
        let mut stream = upgrade(response).await.unwrap();
        stream.write_all(b"second").await.unwrap();
        let mut buffer = [0; 12];
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"first second");
    }

    #[tokio::test]
    async fn distinguishes_connection_failures_from_lost_responses() {
        let nobody = get(&Address::Unix("/nonexistent/socket".into())).await;
        assert!(
            matches!(nobody, Err(Error::Connect(error)) if error.kind() == io::ErrorKind::NotFound)
        );
        let lost = get(&serve("HTTP/1.1 200", false).await).await.unwrap_err();
        assert!(lost.is_lost(), "{lost}");
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel";
        let response = get(&serve(cut, false).await).await.unwrap();
        assert!(matches!(
            read_at_most(response, 99).await,
            Err(Error::Exchange(_))
        ));
        let silent = serve("", true).await;
        let late = within(Duration::from_millis(20), get(&silent)).await;
        assert!(matches!(late, Err(Error::Timeout(_))));
    }
}
