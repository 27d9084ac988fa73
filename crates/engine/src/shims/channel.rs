//! A connection to a shim for execs that tell their exit ([`ExecLaunch::tells_exit`]), one after
//! another: without a new connection and an event for each, an exec costs the engine two wakeups.
//!
//! [`ExecLaunch::tells_exit`]: whelk_shim::protocol::ExecLaunch::tells_exit

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use whelk_shim::protocol::{self, EXIT_STREAM, Exit, Reply, Request};

use super::ShimAddress;
use super::request::{self, while_alive};
use crate::error::{Error, Result};

/// Size of the header of a frame in bytes: stream number, three zero bytes, length.
const HEADER: usize = 8;

/// A connection on which at most one exec runs at a time.
#[derive(Debug)]
pub(crate) struct ExecChannel {
    stream: UnixStream,
    /// What was received and not returned yet.
    inbox: Vec<u8>,
}

/// What a shim says of an exec that runs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Output(Vec<u8>),
    /// It has ended; the channel can be used for another one.
    Exit(Exit),
    /// The connection has ended: the shim has, or it does not know how to tell an exit.
    Closed,
}

impl ExecChannel {
    /// Sends a request on a channel of which an earlier exec has ended, or on a new one if there is
    /// none or if it was closed. Returns the reply and the channel. Waits as
    /// [`super::request_while_alive`] does.
    ///
    /// # Errors
    /// As [`super::request`].
    pub(crate) async fn start(
        earlier: Option<Self>,
        address: &ShimAddress,
        request: &Request,
    ) -> Result<(Reply, Self)> {
        if let Some(mut channel) = earlier {
            // Closed by the shim, for example because its container was started again since.
            let answer = while_alive(address, channel.exchange(request)).await;
            match answer {
                Err(Error::ShimSilent(text)) => return Err(Error::ShimSilent(text)),
                Err(_) => {}
                Ok(reply) => return Ok((reply, channel)),
            }
        }
        let (reply, stream) = request::request_while_alive(address, request).await?;
        let inbox = Vec::new();
        Ok((reply, Self { stream, inbox }))
    }

    async fn exchange(&mut self, request: &Request) -> Result<Reply> {
        let failed = |error: std::io::Error| Error::internal(error.to_string());
        let message = protocol::encode(request).map_err(failed)?;
        self.stream.write_all(&message).await.map_err(failed)?;
        loop {
            if let Some(reply) = protocol::take(&mut self.inbox).map_err(failed)? {
                return Ok(reply);
            }
            if self.receive().await == 0 {
                return Err(Error::internal("the shim has closed the connection"));
            }
        }
    }

    /// Waits for more output of the exec, or for its end.
    pub(crate) async fn next(&mut self) -> Told {
        loop {
            match self.take_frame() {
                Some((EXIT_STREAM, frame)) => {
                    return serde_json::from_slice(&frame).map_or(Told::Closed, Told::Exit);
                }
                Some((_, frame)) => return Told::Output(frame),
                None if self.receive().await == 0 => return Told::Closed,
                None => {}
            }
        }
    }

    /// Removes the first frame of what was received, if it is complete.
    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let &[stream, _, _, _, a, b, c, d] = self.inbox.first_chunk::<HEADER>()?;
        // The shim sends no frames that are larger than its buffer.
        let end = HEADER.checked_add(u32::from_be_bytes([a, b, c, d]) as usize)?;
        let frame = self.inbox.get(HEADER..end)?.to_vec();
        self.inbox.drain(..end);
        Some((stream, frame))
    }

    /// Receives more. Returns the number of bytes: 0 at the end or after an error.
    async fn receive(&mut self) -> usize {
        /// In bytes: more than a reply or an exit needs.
        const FEW: usize = 1 << 10;
        // As much again as is there, so that a large frame takes few calls.
        self.inbox.reserve(FEW.max(self.inbox.len()));
        self.stream.read_buf(&mut self.inbox).await.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{WorkloadKind, messages::read_message};
    use super::*;
    use tokio::net::UnixListener;

    /// Answers each request of a connection as a shim answers a check that prints its number, and
    /// closes the connection after `most` of them.
    async fn serve(mut socket: UnixStream, most: usize) {
        for number in 0..most {
            if read_message::<Request>(&mut socket).await.is_err() {
                return;
            }
            let reply = protocol::encode(&Reply::Started { pid: 7 }).unwrap();
            let text = number.to_string();
            let exit = serde_json::to_vec(&exit()).unwrap();
            let header = protocol::output_header;
            let parts = [
                &reply[..],
                &header(1, text.len()),
                text.as_bytes(),
                &header(EXIT_STREAM, exit.len()),
                &exit,
            ];
            // Byte by byte, as the kernel may deliver it.
            for byte in parts.concat() {
                socket.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    }

    fn exit() -> Exit {
        Exit {
            code: 3,
            ..Exit::default()
        }
    }

    #[tokio::test]
    async fn a_channel_serves_execs_one_after_another_and_is_opened_again_when_it_was_closed() {
        let scratch = whelk_sys::Scratch::temporary("channel").unwrap();
        let address = ShimAddress {
            kind: WorkloadKind::Container,
            id: "one".into(),
            directory: scratch.path().to_owned(),
        };
        let listener = UnixListener::bind(address.directory.join("shim.sock")).unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, 2));
            }
        });
        let mut kept = None;
        let mut outputs = Vec::new();
        for _ in 0..5 {
            let (reply, mut channel) = ExecChannel::start(kept.take(), &address, &Request::Pause)
                .await
                .unwrap();
            assert_eq!(reply, Reply::Started { pid: 7 });
            match channel.next().await {
                Told::Output(output) => outputs.extend(output),
                other => panic!("{other:?}"),
            }
            assert_eq!(channel.next().await, Told::Exit(exit()));
            kept = Some(channel);
        }
        // Each connection counts from 0.
        assert_eq!(outputs, b"01010");
        let (mut ended, _) = UnixStream::pair().unwrap();
        ended.shutdown().await.unwrap();
        let inbox = protocol::output_header(1, 5).to_vec();
        let mut ended = ExecChannel {
            stream: ended,
            inbox,
        };
        assert_eq!(ended.next().await, Told::Closed);
    }
}
