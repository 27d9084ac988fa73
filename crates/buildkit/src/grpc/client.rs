//! The calling side.

use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper::header::{CONTENT_TYPE as CONTENT_TYPE_HEADER, HeaderMap, HeaderValue, TE};
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinHandle;

use super::frame::{self, Messages, lost};
use super::{
    Body, CONNECTION_WINDOW, CONTENT_TYPE, Io, MAX_HEADERS, PATIENCE, PING, Result, STREAM_WINDOW,
    Status, body,
};
use crate::turns::{STALLED, Turn};

/// A connection on which calls are made. Clones share it.
#[derive(Clone, Debug)]
pub struct Channel(http2::SendRequest<Body>);

/// The work of a [`Channel`]'s connection, which ends with it.
pub type Driver<S> = http2::Connection<S, Body, TokioExecutor>;

impl Channel {
    /// Opens a channel, whose connection does its work in the returned future.
    ///
    /// # Errors
    /// Returns an error if the connection ends before.
    pub async fn open<S: Io>(stream: S) -> Result<(Self, Driver<S>)> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PATIENCE);
        let (sender, connection) = builder
            .handshake(stream)
            .await
            .map_err(|error| lost(&error))?;
        Ok((Self(sender), connection))
    }

    /// Makes a call with one message each way.
    ///
    /// # Errors
    /// Returns the status of the call, or that the connection was lost.
    pub async fn unary<M: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<M> {
        self.unary_with(method, HeaderMap::new(), request).await
    }

    /// Like [`Channel::unary`], with metadata.
    ///
    /// # Errors
    /// As [`Channel::unary`].
    pub async fn unary_with<M: Message + Default>(
        &self,
        method: &str,
        metadata: HeaderMap,
        request: &impl Message,
    ) -> Result<M> {
        let mut stream = self.stream(method, metadata)?;
        // An answer without a look at the request is an answer too.
        let _ = stream.requests.send(request).await;
        stream.requests.close();
        let answer = stream.next().await?;
        let answer = answer.ok_or_else(|| Status::unavailable("the call has no answer"))?;
        match stream.next::<M>().await? {
            None => Ok(answer),
            Some(_) => Err(Status::unknown("the call has more than one answer")),
        }
    }

    /// Begins a call with streams of messages both ways. It is cancelled when it is dropped.
    ///
    /// # Errors
    /// Returns an error if the method's name cannot be one.
    pub fn stream(&self, method: &str, metadata: HeaderMap) -> Result<Stream> {
        let (sender, body) = body();
        let mut request = Request::post(format!("http://localhost/{method}"))
            .version(Version::HTTP_2)
            .body(body)
            .map_err(|error| Status::invalid(format!("call {method}: {error}")))?;
        *request.headers_mut() = metadata;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE_HEADER, HeaderValue::from_static(CONTENT_TYPE));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        let mut channel = self.0.clone();
        let answer = tokio::spawn(async move {
            // More calls than the other side allows at a time wait.
            channel.ready().await?;
            channel.send_request(request).await
        });
        Ok(Stream {
            requests: Requests(Some(sender)),
            state: State::Waiting(Answer(answer)),
        })
    }
}

/// A call in progress.
#[derive(Debug)]
pub struct Stream {
    pub requests: Requests,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Its head has not come: some servers send it with the first message.
    Waiting(Answer),
    Open(Messages),
    Ended(Result<()>),
}

/// An answer's head, which is not waited for any more when this is dropped.
#[derive(Debug)]
struct Answer(JoinHandle<hyper::Result<Response<Incoming>>>);

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Stream {
    /// Returns the next message; `None` at the end of a call that has succeeded. Nothing is lost if it is dropped.
    ///
    /// # Errors
    /// Returns the status of the call, or that the connection was lost.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>> {
        loop {
            match &mut self.state {
                State::Waiting(answer) => {
                    let answer = (&mut answer.0).await;
                    self.state = opened(match answer {
                        Ok(answer) => answer.map_err(|error| lost(&error)),
                        Err(_) => Err(Status::canceled()),
                    });
                }
                State::Open(messages) => match messages.next().await {
                    Ok(Some(message)) => return Ok(Some(message)),
                    Ok(None) => self.state = State::Ended(messages.status()),
                    Err(status) => self.state = State::Ended(Err(status)),
                },
                State::Ended(result) => return result.clone().map(|()| None),
            }
        }
    }
}

fn opened(answer: Result<Response<Incoming>>) -> State {
    let answer = match answer {
        Ok(answer) => answer,
        Err(status) => return State::Ended(Err(status)),
    };
    if answer.status() != StatusCode::OK {
        let text = format!("the call was answered with {}", answer.status());
        return State::Ended(Err(Status::unavailable(text)));
    }
    match Status::from_trailers(answer.headers()) {
        Some(result) => State::Ended(result),
        None => State::Open(Messages::new(answer.into_body())),
    }
}

/// Sends the messages of a call.
#[derive(Clone, Debug)]
pub struct Requests(Option<mpsc::Sender<Frame<bytes::Bytes>>>);

impl Requests {
    /// # Errors
    /// Returns an error if the call has ended; its status says why.
    pub async fn send(&self, message: &impl Message) -> Result<()> {
        let ended = || Status::unavailable("the call has ended");
        let sender = self.0.as_ref().ok_or_else(ended)?;
        let frame = Frame::data(frame::encode(message));
        sender.send(frame).await.map_err(|_| ended())
    }

    /// Like [`Requests::send`], from a thread that may block. Waits as long as the call lives: it ends with its session,
    /// whose client is asked again and again whether it is there.
    ///
    /// # Errors
    /// As [`Requests::send`]; also if the other side has read nothing for some time and others need the turn.
    pub fn send_blocking(&self, message: &impl Message, turn: &Turn) -> Result<()> {
        let ended = || Status::unavailable("the call has ended");
        let sender = self.0.as_ref().ok_or_else(ended)?;
        let frame = Frame::data(frame::encode(message));
        match sender.try_send(frame) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(ended()),
            Err(TrySendError::Full(frame)) => match turn.wait(sender.send(frame)) {
                Some(sent) => sent.map_err(|_| ended()),
                None => Err(Status::unavailable(STALLED)),
            },
        }
    }

    /// Tells that there are no more messages, when all clones are closed or dropped.
    pub fn close(&mut self) {
        self.0 = None;
    }
}
