//! The serving side.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE as CONTENT_TYPE_HEADER, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message;
use tokio::sync::mpsc;

use super::frame::{self, Budget, Messages};
use super::{
    Body, CONNECTION_WINDOW, CONTENT_TYPE, Io, MAX_HEADERS, PATIENCE, PING, Result, STREAM_WINDOW,
    Status, body,
};

/// What the calls of a connection may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of calls at a time.
    pub calls: u32,
    /// Size of the incomplete messages of all calls, in bytes; `None` for no limit of all together.
    pub bytes: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            calls: 1000,
            bytes: None,
        }
    }
}

/// A call that was received.
#[derive(Debug)]
pub struct Call {
    /// `SERVICE/METHOD`.
    pub method: String,
    pub metadata: HeaderMap,
    pub requests: Messages,
    pub responses: Responses,
}

/// Sends the answers of a call.
#[derive(Clone, Debug)]
pub struct Responses(mpsc::Sender<Frame<bytes::Bytes>>);

impl Responses {
    /// # Errors
    /// Returns an error if the caller is gone.
    pub async fn send(&self, message: &impl Message) -> Result<()> {
        let frame = Frame::data(frame::encode(message));
        self.0.send(frame).await.map_err(|_| Status::canceled())
    }

    /// Like [`Responses::send`], from a thread that may block.
    ///
    /// # Errors
    /// As [`Responses::send`].
    pub fn send_blocking(&self, message: &impl Message) -> Result<()> {
        let frame = Frame::data(frame::encode(message));
        self.0.blocking_send(frame).map_err(|_| Status::canceled())
    }

    /// Waits until the caller is gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl Call {
    /// Returns the one message of a call that has no stream of them.
    ///
    /// # Errors
    /// Returns an error if it is missing or malformed.
    pub async fn request<M: Message + Default>(&mut self) -> Result<M> {
        let message = self.requests.next().await?;
        message.ok_or_else(|| Status::invalid("the request has no message"))
    }

    /// Returns the text of a metadata entry.
    pub fn entry(&self, name: &str) -> Option<&str> {
        self.metadata.get(name)?.to_str().ok()
    }
}

/// Serves the calls of a connection until it ends. A call whose caller cancels it, or whose connection ends, is dropped.
///
/// `headers` are sent with the answer of each call.
///
/// # Errors
/// Returns an error of the connection, also if the other side has closed it without a word.
pub async fn serve<S, H, F>(
    stream: S,
    limits: Limits,
    headers: impl Fn() -> HeaderMap,
    handle: H,
) -> hyper::Result<()>
where
    S: Io,
    H: Fn(Call) -> F,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let budget = limits.bytes.map(Budget::new);
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request, budget.as_ref(), headers(), &handle);
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PATIENCE)
        .max_concurrent_streams(limits.calls)
        .max_header_list_size(MAX_HEADERS);
    builder.serve_connection(stream, service).await
}

fn answer<H, F>(
    request: Request<Incoming>,
    budget: Option<&Arc<Budget>>,
    mut headers: HeaderMap,
    handle: &H,
) -> Response<Body>
where
    H: Fn(Call) -> F,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, body) = body();
    let mut response = Response::new(body);
    let (parts, requests) = request.into_parts();
    let kind = parts.headers.get(CONTENT_TYPE_HEADER);
    let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(CONTENT_TYPE.as_bytes()));
    if parts.method != Method::POST || !is_grpc {
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    headers.insert(CONTENT_TYPE_HEADER, HeaderValue::from_static(CONTENT_TYPE));
    *response.headers_mut() = headers;
    let call = Call {
        method: parts.uri.path().trim_start_matches('/').to_owned(),
        metadata: parts.headers,
        requests: match budget {
            Some(budget) => Messages::limited(requests, budget),
            None => Messages::new(requests),
        },
        responses: Responses(sender.clone()),
    };
    let handled = handle(call);
    tokio::spawn(async move {
        let result = tokio::select! {
            result = handled => result,
            // The answer's body is dropped when the stream was reset, and when the connection has ended.
            () = sender.closed() => return,
        };
        let _ = sender
            .send(Frame::trailers(Status::trailers(&result)))
            .await;
    });
    response
}
