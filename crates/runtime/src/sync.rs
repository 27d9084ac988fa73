//! The protocol between a parent and the process that it sets up, over a `SOCK_SEQPACKET` socket
//! pair.
//!
//! ```text
//! parent                           child
//!    │           IdsMapped           │  only with a user namespace
//!    ├──────────────────────────────►│
//!    │           Console + pty       │  only with a terminal
//!    │◄──────────────────────────────┤
//!    │    RunHooks ⇄ HooksDone       │  only with hooks
//!    │◄─────────────────────────────►│
//!    │             Ready             │  set up, program found
//!    │◄──────────────────────────────┤
//!    │             Start             │
//!    ├──────────────────────────────►│  execve closes the socket (close-on-exec)
//!    │  end of file, or Failed, or   │
//!    │          NotExecuted          │
//!    │◄──────────────────────────────┤
//! ```
//! The child of an exec sends `Spawned`, then `Console` if it has a terminal, and goes on without
//! waiting.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, os};

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The process exists; its pid is in the credentials of the message.
    Spawned,
    IdsMapped,
    Console,
    RunHooks,
    HooksDone,
    Ready,
    Start,
    Failed(Error),
    /// The kernel has refused to execute the program, with the text of its error. The process
    /// counts as started and ended.
    NotExecuted(String),
}

/// Result of a receive.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Message, Option<OwnedFd>, Option<Sender>),
    /// The other side has exited, or has executed its program.
    End,
    /// No message has arrived yet.
    Nothing,
}

/// Pid of the process that sent a message; only known after [`SyncChannel::pass_credentials`].
pub(crate) type Sender = rustix::process::Pid;

/// One end of the socket pair.
#[derive(Debug)]
pub(crate) struct SyncChannel(OwnedFd);

/// Size limit of a message in bytes. Error texts contain paths of any length; one that does not fit
/// is replaced by a fixed text.
const MAX_MESSAGE: usize = 16 << 10;

impl SyncChannel {
    pub(crate) fn pair() -> Result<(Self, Self)> {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(os("socketpair"))?;
        Ok((Self(a), Self(b)))
    }

    /// Has the kernel attach to each message the pid of its sender, as numbered in the pid
    /// namespace of this process (`SO_PASSCRED`).
    pub(crate) fn pass_credentials(&self) -> Result<()> {
        rustix::net::sockopt::set_socket_passcred(&self.0, true).map_err(os("set SO_PASSCRED"))
    }

    pub(crate) fn send(&self, message: &Message, fd: Option<&OwnedFd>) -> Result<()> {
        let mut text = serde_json::to_vec(message).map_err(|error| Error::Os(error.to_string()))?;
        if text.len() > MAX_MESSAGE {
            text = serde_json::to_vec(&Message::Failed(Error::Os(
                "setup failed, and the error message is too long to be sent".into(),
            )))
            .unwrap_or_default();
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let borrowed = fd.map(|fd| [fd.as_fd()]);
        if let Some(fds) = &borrowed {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(&text)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .map(drop)
        .map_err(os("send message to the other side of container setup"))
    }

    /// Reports that the kernel has refused to execute the program. Uses only the system call that
    /// also writes the message to standard error, because a seccomp filter may kill the process
    /// for others. The other side must still exist; otherwise the kernel sends SIGPIPE.
    pub(crate) fn not_executed(&self, text: &str) {
        // Far below the size limit of a message, even after JSON escaping.
        let text = text.chars().take(1024).collect();
        if let Ok(message) = serde_json::to_vec(&Message::NotExecuted(text)) {
            let _ = rustix::io::write(&self.0, &message);
        }
    }

    /// Waits for the next message. Returns `None` when the other side has exited or has executed
    /// its program.
    pub(crate) fn receive(&self) -> Result<Option<(Message, Option<OwnedFd>)>> {
        match self.receive_next(true)? {
            Received::Message(message, fd, _) => Ok(Some((message, fd))),
            Received::End | Received::Nothing => Ok(None),
        }
    }

    /// Receives the next message. Without `wait`, returns [`Received::Nothing`] if none has arrived
    /// yet.
    pub(crate) fn receive_next(&self, wait: bool) -> Result<Received> {
        let flags = if wait {
            RecvFlags::CMSG_CLOEXEC
        } else {
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT
        };
        let mut text = vec![0; MAX_MESSAGE];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut text)],
                &mut control,
                flags,
            ) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(Received::End),
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                result => break result.map_err(os("receive message of container setup"))?,
            }
        };
        if received.bytes == 0 {
            return Ok(Received::End);
        }
        let (mut fd, mut sender) = (None, None);
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fd = fds.next(),
                RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials.pid),
                _ => {}
            }
        }
        let message = serde_json::from_slice(&text[..received.bytes])
            .map_err(|error| Error::Os(format!("malformed message of container setup: {error}")))?;
        Ok(Received::Message(message, fd, sender))
    }

    /// Shuts down receiving: what the other side sends from now on fails, while messages sent
    /// before can still be received.
    pub(crate) fn shut_down_reading(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Read);
    }

    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// Waits for the message `expected` and returns the descriptor that came with it.
    pub(crate) fn expect(&self, expected: &Message) -> Result<Option<OwnedFd>> {
        match self.receive()? {
            Some((Message::Failed(error), _)) => Err(error),
            Some((message, fd)) if message == *expected => Ok(fd),
            Some((message, _)) => Err(Error::Os(format!(
                "unexpected message {message:?} while starting a container"
            ))),
            None => Err(Error::Os(
                "the other side exited while starting a container".into(),
            )),
        }
    }
}

impl From<OwnedFd> for SyncChannel {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl From<SyncChannel> for OwnedFd {
    fn from(sync: SyncChannel) -> Self {
        sync.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_sent_before_the_shutdown_are_received() {
        let (ours, theirs) = SyncChannel::pair().unwrap();
        ours.pass_credentials().unwrap();
        theirs.send(&Message::Spawned, None).unwrap();
        ours.shut_down_reading();
        let error = theirs.send(&Message::Console, None).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("send message to the other side of container setup: broken pipe"),
            "{error}"
        );
        let received = ours.receive_next(false).unwrap();
        assert!(
            matches!(received, Received::Message(Message::Spawned, None, Some(pid)) if pid == rustix::process::getpid()),
            "{received:?}"
        );
        assert!(matches!(ours.receive_next(false).unwrap(), Received::End));
    }
}
