//! Messages in frames: a byte that says whether it is compressed, the length in four bytes, and the message.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::Message;

use super::{Code, MAX_MESSAGE, Result, Status};

const HEADER: usize = 5;

/// Returns a message in its frame.
pub(super) fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(HEADER + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // Only a full buffer is an error, and this one grows.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

/// Takes frames apart.
#[derive(Debug, Default)]
struct Decoder(BytesMut);

impl Decoder {
    /// Returns the next whole message.
    fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(&[compressed, a, b, c, d]) = self.0.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        if compressed != 0 {
            return Err(Status::unimplemented("compressed messages"));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > MAX_MESSAGE {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!("a message of {length} bytes is larger than {MAX_MESSAGE}"),
            ));
        }
        if self.0.len() < HEADER + length {
            return Ok(None);
        }
        self.0.advance(HEADER);
        Ok(Some(self.0.split_to(length).freeze()))
    }
}

/// Limits the bytes of the incomplete messages of all calls of a connection.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            limit,
        })
    }
}

/// What a call has of a budget.
#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// Takes as many bytes in place of those that it has.
    fn take(&mut self, bytes: usize) -> Result<()> {
        let used = &self.budget.used;
        let others = used.fetch_sub(self.bytes, Ordering::Relaxed) - self.bytes;
        self.bytes = bytes;
        used.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 && others + bytes > self.budget.limit {
            let limit = self.budget.limit;
            let text = format!("the messages of all calls are larger than {limit} bytes");
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let used = &self.budget.used;
        used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Messages that are received.
#[derive(Debug)]
pub struct Messages {
    body: Incoming,
    decoder: Decoder,
    share: Option<Share>,
    /// The status in the trailers.
    status: Option<Result<()>>,
    is_ended: bool,
}

impl Messages {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            decoder: Decoder::default(),
            share: None,
            status: None,
            is_ended: false,
        }
    }

    /// Like [`Messages::new`], with a limit that other calls have a share in.
    pub(super) fn limited(body: Incoming, budget: &Arc<Budget>) -> Self {
        Self {
            share: Some(Share {
                budget: budget.clone(),
                bytes: 0,
            }),
            ..Self::new(body)
        }
    }

    /// Returns the next message; `None` when the other side has sent all. Nothing is lost if it is dropped.
    ///
    /// # Errors
    /// Returns an error if the connection ends before, and for a message that is malformed or too large.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>> {
        loop {
            let complete = self.decoder.next()?;
            if let Some(share) = &mut self.share {
                share.take(self.decoder.0.len())?;
            }
            if let Some(bytes) = complete {
                let decoded = M::decode(bytes);
                return decoded
                    .map(Some)
                    .map_err(|error| Status::invalid(format!("malformed message: {error}")));
            }
            if self.is_ended {
                return Ok(None);
            }
            match self.body.frame().await {
                None => {
                    self.is_ended = true;
                    if !self.decoder.0.is_empty() {
                        return Err(Status::unavailable("the stream has ended in a message"));
                    }
                }
                Some(Err(error)) => return Err(lost(&error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.decoder.0.extend_from_slice(&data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().ok();
                        self.status = trailers.as_ref().and_then(Status::from_trailers);
                    }
                },
            }
        }
    }

    /// Returns what the trailers say, when all messages were received.
    pub(super) fn status(&mut self) -> Result<()> {
        self.status
            .take()
            .unwrap_or_else(|| Err(Status::unavailable("the call has ended without a status")))
    }
}

/// The error of a connection, or of a stream that was reset.
pub(super) fn lost(error: &hyper::Error) -> Status {
    let mut text = format!("connection lost: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    Status::unavailable(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::BytesMessage;

    #[test]
    fn frames_may_be_cut_anywhere() {
        let message = |text: &'static str| BytesMessage {
            data: Bytes::from_static(text.as_bytes()),
        };
        let whole = [encode(&message("one")), encode(&message(""))].concat();
        for cut in 0..=whole.len() {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for part in [&whole[..cut], &whole[cut..]] {
                decoder.0.extend_from_slice(part);
                while let Ok(Some(bytes)) = decoder.next() {
                    found.push(BytesMessage::decode(bytes).unwrap_or_default());
                }
            }
            assert_eq!(found, [message("one"), message("")], "{cut}");
            assert!(decoder.0.is_empty());
        }
    }

    #[test]
    fn calls_share_a_budget() {
        let budget = Budget::new(10);
        let share = || Share {
            budget: budget.clone(),
            bytes: 0,
        };
        let (mut one, mut other) = (share(), share());
        assert!(one.take(6).is_ok() && other.take(4).is_ok() && one.take(5).is_ok());
        let code = |result: Result<()>| result.map_err(|status| status.code);
        assert_eq!(code(other.take(6)), Err(Code::ResourceExhausted));
        drop(other);
        assert!(one.take(10).is_ok());
        drop(one);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn hostile_frames_are_refused() {
        for (bytes, expected) in [
            (&[1, 0, 0, 0, 0][..], Code::Unimplemented),
            (&[0, 255, 255, 255, 255], Code::ResourceExhausted),
        ] {
            let mut decoder = Decoder(BytesMut::from(bytes));
            assert_eq!(decoder.next().map_err(|error| error.code), Err(expected));
        }
    }
}
