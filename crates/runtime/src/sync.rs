//! The conversation between the starter and the half-made process, over a pair of packet sockets.
//!
//! ```text
//! starter                          child
//!    │           IdsMapped           │  only with a user namespace
//!    ├──────────────────────────────►│
//!    │           Console + pty       │  only with a terminal
//!    │◄──────────────────────────────┤
//!    │    RunHooks ⇄ HooksDone       │  only with hooks
//!    │◄─────────────────────────────►│
//!    │             Ready             │  all is set, the program was found
//!    │◄──────────────────────────────┤
//!    │             Start             │
//!    ├──────────────────────────────►│  exec: close-on-exec ends the conversation
//!    │  end of file, or Failed, or   │
//!    │          NotExecuted          │
//!    │◄──────────────────────────────┤
//! ```
//! An exec's child says `Born`, then `Console` if it has a terminal, and goes on by itself.

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
    /// Says by its sender which process it is.
    Born,
    IdsMapped,
    Console,
    RunHooks,
    HooksDone,
    Ready,
    Start,
    Failed(Error),
    /// The kernel has refused to execute the program, which counts as one that has started and
    /// ended: the kernel's words.
    NotExecuted(String),
}

/// What there was to receive.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Message, Option<OwnedFd>, Option<Sender>),
    /// The other side is gone, or has executed its program.
    End,
    Nothing,
}

/// The process that sent a message, for a receiver that has asked to be told
/// ([`Sync::tell_senders`]).
pub(crate) type Sender = rustix::process::Pid;

#[derive(Debug)]
pub(crate) struct Sync(OwnedFd);

/// Errors carry paths from outside; longer ones are cut rather than refused.
const LARGEST: usize = 16 << 10;

impl Sync {
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

    /// Has the kernel say of each message which process sent it, by its number in this process's
    /// pid namespace.
    pub(crate) fn tell_senders(&self) -> Result<()> {
        rustix::net::sockopt::set_socket_passcred(&self.0, true)
            .map_err(os("ask for senders' numbers"))
    }

    pub(crate) fn send(&self, message: &Message, fd: Option<&OwnedFd>) -> Result<()> {
        let mut text = serde_json::to_vec(message).map_err(|error| Error::Os(error.to_string()))?;
        if text.len() > LARGEST {
            text = serde_json::to_vec(&Message::Failed(Error::Os(
                "the error message is too long to pass on".into(),
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
        .map_err(os("send to the container's starter"))
    }

    /// Says that the kernel has refused to execute the program. Made by no other system call than
    /// the message on the error output: a seccomp filter may kill for others. The other side must
    /// still be there, or the kernel sends SIGPIPE.
    pub(crate) fn not_executed(&self, text: &str) {
        // Far below what a message may have, whatever JSON makes of it.
        let text = text.chars().take(1024).collect();
        if let Ok(message) = serde_json::to_vec(&Message::NotExecuted(text)) {
            let _ = rustix::io::write(&self.0, &message);
        }
    }

    /// The next message, or `None` when the other side is gone or has executed its program.
    pub(crate) fn receive(&self) -> Result<Option<(Message, Option<OwnedFd>)>> {
        match self.look(true)? {
            Received::Message(message, fd, _) => Ok(Some((message, fd))),
            Received::End | Received::Nothing => Ok(None),
        }
    }

    /// The next message. Without `wait`, [`Received::Nothing`] if none has come yet.
    pub(crate) fn look(&self, wait: bool) -> Result<Received> {
        let flags = if wait {
            RecvFlags::CMSG_CLOEXEC
        } else {
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT
        };
        let mut text = vec![0; LARGEST];
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
                result => break result.map_err(os("receive from the half-made container"))?,
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
        let message = serde_json::from_slice(&text[..received.bytes]).map_err(|error| {
            Error::Os(format!(
                "malformed message from the half-made container: {error}"
            ))
        })?;
        Ok(Received::Message(message, fd, sender))
    }

    /// Refuses what the other side has not sent yet: it gets an error when it sends something.
    pub(crate) fn refuse_more(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Read);
    }

    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// Receives what must be `expected`.
    pub(crate) fn expect(&self, expected: &Message) -> Result<Option<OwnedFd>> {
        match self.receive()? {
            Some((Message::Failed(error), _)) => Err(error),
            Some((message, fd)) if message == *expected => Ok(fd),
            Some((message, _)) => Err(Error::Os(format!(
                "unexpected message {message:?} while starting a container"
            ))),
            None => Err(Error::Os(
                "the other side ended while starting a container".into(),
            )),
        }
    }
}

impl From<OwnedFd> for Sync {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl From<Sync> for OwnedFd {
    fn from(sync: Sync) -> Self {
        sync.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_before_the_refusal_is_received() {
        let (ours, theirs) = Sync::pair().unwrap();
        ours.tell_senders().unwrap();
        theirs.send(&Message::Born, None).unwrap();
        ours.refuse_more();
        assert!(theirs.send(&Message::Console, None).is_err());
        let received = ours.look(false).unwrap();
        assert!(
            matches!(received, Received::Message(Message::Born, None, Some(pid)) if pid == rustix::process::getpid()),
            "{received:?}"
        );
        assert!(matches!(ours.look(false).unwrap(), Received::End));
    }
}
