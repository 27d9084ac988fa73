//! The Engine API, client side: requests over a unix socket or TCP, each on a connection of its own.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::{Failure, Outcome};

/// The version of the API that this client speaks.
const API: &str = "/v1.51";

/// Where the engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Unix(String),
    Tcp(String),
}

pub(crate) const DEFAULT_SOCKET: &str = "/run/whelk/whelk.sock";

impl Host {
    /// From `--host`, `WHELK_HOST` or `DOCKER_HOST`; says also whether it is the default.
    pub(crate) fn choose(flag: Option<&str>) -> Outcome<(Self, bool)> {
        let from_environment =
            || ["WHELK_HOST", "DOCKER_HOST"].iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        match flag.map(str::to_owned).or_else(from_environment) {
            None => Ok((Self::Unix(DEFAULT_SOCKET.into()), true)),
            Some(text) => Self::parse(&text).map(|host| (host, false)),
        }
    }

    fn parse(text: &str) -> Outcome<Self> {
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Self::Unix(path.to_owned()));
        }
        if let Some(address) = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")) {
            let address = address.trim_end_matches('/');
            return Ok(Self::Tcp(if address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
                address.to_owned()
            } else {
                format!("{address}:2375")
            }));
        }
        Err(Failure::new(format!("unable to parse docker host {text:?}: use unix:///PATH or tcp://HOST:PORT")))
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// A connection of either kind.
pub(crate) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

macro_rules! delegate {
    ($self:ident, $method:ident, $($argument:expr),*) => {
        match $self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).$method($($argument),*),
            Connection::Tcp(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        delegate!(self, poll_read, cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        delegate!(self, poll_write, cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        delegate!(self, poll_flush, cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        delegate!(self, poll_shutdown, cx)
    }
}

/// An error that the engine answered.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::new(error.to_string())
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.status == StatusCode::MISDIRECTED_REQUEST {
            f.write_str(&self.message)
        } else {
            write!(f, "Error response from daemon: {}", self.message)
        }
    }
}

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;
pub(crate) type ApiResult<T> = Result<T, ApiError>;

#[derive(Clone, Debug)]
pub(crate) struct Client {
    host: Host,
}

pub(crate) fn no_body() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

impl Client {
    pub(crate) fn new(host: Host) -> Self {
        Self { host }
    }

    pub(crate) async fn connect(&self) -> std::io::Result<Connection> {
        match &self.host {
            Host::Unix(path) => UnixStream::connect(path).await.map(Connection::Unix),
            Host::Tcp(address) => TcpStream::connect(address).await.map(Connection::Tcp),
        }
    }

    /// The engine cannot be reached.
    pub(crate) fn unreachable(&self, error: &std::io::Error) -> ApiError {
        let message = if error.kind() == std::io::ErrorKind::PermissionDenied {
            format!("permission denied while trying to connect to the Docker daemon socket at {}", self.host)
        } else {
            format!("Cannot connect to the Docker daemon at {}. Is the docker daemon running? ({error})", self.host)
        };
        // A status that the engine never sends marks errors on the way to it.
        ApiError { status: StatusCode::MISDIRECTED_REQUEST, message }
    }

    /// Sends a request; answers above 399 are errors with the engine's message.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> ApiResult<Response<hyper::body::Incoming>> {
        check_named(path)?;
        let connection = self.connect().await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(connection))
            .await
            .map_err(|error| self.unreachable(&std::io::Error::other(error)))?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(method).uri(format!("{API}{path}")).header("host", "whelk");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let failed = |message: String| ApiError { status: StatusCode::MISDIRECTED_REQUEST, message };
        let request = request.body(body).map_err(|error| failed(format!("the request cannot be sent: {error}")))?;
        let response = sender.send_request(request).await.map_err(|error| {
            // What a file that is being sent says of itself is not the engine's fault.
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            failed(format!("error during connect: {}: {error}{cause}", self.host))
        })?;
        if response.status().is_client_error() || response.status().is_server_error() {
            let status = response.status();
            let text = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let message = serde_json::from_slice::<Value>(&text).ok().and_then(|value| value["message"].as_str().map(str::to_owned));
            return Err(ApiError { status, message: message.unwrap_or_else(|| String::from_utf8_lossy(&text).trim().to_owned()) });
        }
        Ok(response)
    }

    pub(crate) async fn get(&self, path: &str) -> ApiResult<Value> {
        read(self.send(Method::GET, path, &[], no_body()).await?).await
    }

    pub(crate) async fn post(&self, path: &str, body: Option<&Value>) -> ApiResult<Value> {
        let (headers, body) = json_body(body);
        read(self.send(Method::POST, path, &headers, body).await?).await
    }

    pub(crate) async fn delete(&self, path: &str) -> ApiResult<Value> {
        read(self.send(Method::DELETE, path, &[], no_body()).await?).await
    }

    /// Asks for the connection itself: afterwards it carries raw bytes.
    pub(crate) async fn hijack(&self, path: &str, body: Option<&Value>) -> ApiResult<TokioIo<hyper::upgrade::Upgraded>> {
        let (mut headers, body) = json_body(body);
        headers.extend([("connection", "Upgrade"), ("upgrade", "tcp")]);
        let response = self.send(Method::POST, path, &headers, body).await?;
        let status = response.status();
        hyper::upgrade::on(response)
            .await
            .map(TokioIo::new)
            .map_err(|error| ApiError { status, message: format!("the connection was not handed over: {error}") })
    }
}

/// # Errors
/// A path without the name of what it is about: the engine would take it for another path.
fn check_named(path: &str) -> ApiResult<()> {
    let mut parts = path.split(['/', '?']).skip(1);
    match (parts.next(), parts.next()) {
        (Some(kind @ ("containers" | "networks" | "volumes")), Some("")) => Err(ApiError {
            status: StatusCode::MISDIRECTED_REQUEST,
            message: format!("invalid {} name or ID: value is empty", kind.trim_end_matches('s')),
        }),
        _ => Ok(()),
    }
}

fn json_body(body: Option<&Value>) -> (Vec<(&'static str, &'static str)>, Body) {
    match body {
        Some(value) => (vec![("content-type", "application/json")], Full::from(value.to_string()).map_err(|never| match never {}).boxed()),
        None => (Vec::new(), no_body()),
    }
}

/// The JSON of an answer; `null` for one without a body.
pub(crate) async fn read(response: Response<hyper::body::Incoming>) -> ApiResult<Value> {
    let status = response.status();
    let broken = |error: &dyn std::fmt::Display| ApiError { status, message: format!("reading the engine's answer: {error}") };
    let body = response.into_body().collect().await.map_err(|error| broken(&error))?.to_bytes();
    if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body).map_err(|error| broken(&error)) }
}

/// A part of a path or a query value, with everything that could mean something else escaped.
pub(crate) fn escape(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// An image's name in a path: slashes stay.
pub(crate) fn escape_name(text: &str) -> String {
    escape(text.trim_start_matches('/')).replace("%2F", "/").replace("%3A", ":").replace("%40", "@")
}

/// A query out of pairs; empty values are left out.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let list: Vec<String> =
        pairs.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("{key}={}", escape(value))).collect();
    if list.is_empty() { String::new() } else { format!("?{}", list.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        assert_eq!(Host::parse("unix:///x.sock").unwrap(), Host::Unix("/x.sock".into()));
        assert_eq!(Host::parse("tcp://h:1").unwrap(), Host::Tcp("h:1".into()));
        assert_eq!(Host::parse("tcp://h").unwrap(), Host::Tcp("h:2375".into()));
        assert!(Host::parse("ftp://x").is_err());
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(query(&[("a", "x y&z"), ("b", "")]), "?a=x%20y%26z");
        assert_eq!(escape_name("a/b:c@d e"), "a/b:c@d%20e");
    }

    #[test]
    fn a_missing_name_is_told() {
        let checked = |path: &str| check_named(path).map_err(|error| error.to_string());
        assert_eq!(checked("/volumes/?force=1"), Err("invalid volume name or ID: value is empty".into()));
        assert_eq!(checked("/containers//start"), Err("invalid container name or ID: value is empty".into()));
        for path in ["/volumes", "/volumes?a=b", "/volumes/x", "/images//json"] {
            assert_eq!(checked(path), Ok(()), "{path}");
        }
    }
}
