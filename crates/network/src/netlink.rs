//! Encodes netlink messages and exchanges them with the kernel.
//!
//! ```text
//! length:u32 type:u16 flags:u16 sequence:u32 port:u32   family header   attribute …
//!                                                        attribute = length:u16 kind:u16 value, padded to 4
//! ```
//! Sources: netlink(7), rtnetlink(7), `linux/netlink.h`.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, getsockname,
    recv, send, socket_with, sockopt,
};

use crate::error::{Error, Result};

const HEADER: usize = 16;
const NESTED: u16 = 0x8000;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const APPEND: u16 = 0x800;
pub(crate) const DUMP: u16 = 0x300;

const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A request under construction.
#[derive(Clone, Debug)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Starts a message. `header` is the fixed header of the message's family (`ifinfomsg`,
    /// `nfgenmsg`, …).
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(header);
        let mut message = Self(bytes);
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(&value[..usize::from(length) - 4]);
        self.pad();
        self
    }

    pub(crate) fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    pub(crate) fn u16(self, kind: u16, value: u16) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a number in network byte order, as netfilter uses it.
    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a NUL-terminated string.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn ip(self, kind: u16, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.bytes(kind, &address.octets()),
            IpAddr::V6(address) => self.bytes(kind, &address.octets()),
        }
    }

    /// Adds an attribute that contains others.
    pub(crate) fn nest(mut self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        self = inner(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Appends raw bytes: a fixed header inside an attribute, or attributes that the kernel
    /// returned.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// A message from the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) kind: u16,
    body: Vec<u8>,
}

impl Reply {
    /// Splits the body into the family's fixed header of `length` bytes and the attributes after
    /// it. Returns `None` if it is too short.
    pub(crate) fn split(&self, length: usize) -> Option<(&[u8], Attributes<'_>)> {
        let rest = self.body.get(length.next_multiple_of(4)..)?;
        Some((&self.body[..length], Attributes(rest)))
    }
}

/// An iterator over attributes: the type without flags, and the value. Ends at malformed data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    pub(crate) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        Iterator::find(&mut self, |(found, _)| *found == kind).map(|(_, value)| value)
    }

    pub(crate) fn text(self, kind: u16) -> Option<String> {
        let value = self.find(kind)?;
        Some(
            String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default())
                .into_owned(),
        )
    }

    pub(crate) fn ip(self, kind: u16) -> Option<IpAddr> {
        let value = self.find(kind)?;
        <[u8; 4]>::try_from(value)
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
            .ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A netlink socket for one subsystem, bound to the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Receive buffer size in bytes; the kernel fills up to 32 KiB per dump message.
const BUFFER: usize = 64 << 10;

impl Socket {
    /// Opens a socket and joins multicast `groups`. A `protocol` of `None` means rtnetlink.
    pub(crate) fn open(protocol: Option<Protocol>, groups: u32) -> Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(|error| Error::kernel("open a netlink socket", error))?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))
            .map_err(|error| Error::kernel("bind a netlink socket", error))?;
        // A ruleset with all its elements is sent as one batch.
        const WANTED: usize = 4 << 20;
        let _ = sockopt::set_socket_send_buffer_size_force(&fd, WANTED)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&fd, WANTED));
        let _ = sockopt::set_socket_recv_buffer_size_force(&fd, WANTED)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&fd, WANTED));
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends one message and waits for the acknowledgement.
    pub(crate) fn request(&mut self, message: Message) -> std::result::Result<(), Errno> {
        self.exchange(message, ACK, &mut |_| {})
    }

    /// Sends a dump request and returns all replies.
    pub(crate) fn dump(&mut self, message: Message) -> std::result::Result<Vec<Reply>, Errno> {
        let mut replies = Vec::new();
        self.exchange(message, DUMP, &mut |reply| replies.push(reply))?;
        Ok(replies)
    }

    /// Sends one message and returns the reply before the acknowledgement.
    pub(crate) fn get(&mut self, message: Message) -> std::result::Result<Option<Reply>, Errno> {
        let mut found = None;
        self.exchange(message, ACK, &mut |reply| found = Some(reply))?;
        Ok(found)
    }

    fn exchange(
        &mut self,
        mut message: Message,
        flags: u16,
        take: &mut impl FnMut(Reply),
    ) -> std::result::Result<(), Errno> {
        let all = u16::from_ne_bytes([message.0[6], message.0[7]]) | flags;
        message.0[6..8].copy_from_slice(&all.to_ne_bytes());
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.send(&message.finish(sequence))?;
        let mut buffer = vec![0; BUFFER];
        loop {
            for (found, reply) in self.receive(&mut buffer)? {
                if found != sequence {
                    // A reply to an earlier, aborted exchange.
                    continue;
                }
                match reply.kind {
                    DONE => return Ok(()),
                    ERROR => return outcome(&reply),
                    _ => take(reply),
                }
            }
        }
    }

    /// Sends messages as one nfnetlink transaction, which the kernel applies completely or not at
    /// all. The first and the last message delimit the batch. Returns the first error.
    pub(crate) fn batch(&mut self, messages: Vec<Message>) -> std::result::Result<(), Errno> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let count = messages.len();
        for (index, mut message) in messages.into_iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            if index + 2 == count {
                // Only the last message inside the batch requests an acknowledgement, which reports
                // success.
                let flags = u16::from_ne_bytes([message.0[6], message.0[7]]) | ACK;
                message.0[6..8].copy_from_slice(&flags.to_ne_bytes());
            }
            bytes.extend(message.finish(self.sequence));
        }
        let last = self.sequence.wrapping_sub(1);
        self.send(&bytes)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let mut result = None;
            for (sequence, reply) in self.receive(&mut buffer)? {
                let ours = sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                if ours && reply.kind == ERROR && (result.is_none() || result == Some(Ok(()))) {
                    result = Some(outcome(&reply));
                }
            }
            if let Some(result) = result {
                return result;
            }
        }
    }

    /// Returns the socket's port id.
    pub(crate) fn port(&self) -> std::result::Result<u32, Errno> {
        Ok(SocketAddrNetlink::try_from(getsockname(&self.fd)?)?.pid())
    }

    fn send(&self, bytes: &[u8]) -> std::result::Result<(), Errno> {
        whelk_sys::fallible_step().map_err(|_| Errno::IO)?;
        loop {
            match send(&self.fd, bytes, SendFlags::empty()) {
                Err(Errno::INTR) => {}
                result => return result.map(drop),
            }
        }
    }

    /// Blocks until the next datagram and returns its messages with their sequence numbers.
    pub(crate) fn receive(
        &self,
        buffer: &mut [u8],
    ) -> std::result::Result<Vec<(u32, Reply)>, Errno> {
        let length = loop {
            match recv(&self.fd, &mut *buffer, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                result => break result?.0,
            }
        };
        Ok(messages(&buffer[..length]))
    }
}

/// Splits a datagram into messages with their sequence numbers. Ends at malformed data.
pub(crate) fn messages(datagram: &[u8]) -> Vec<(u32, Reply)> {
    let mut rest = datagram;
    let mut replies = Vec::new();
    while let Some((sequence, reply, next)) = split_first(rest) {
        replies.push((sequence, reply));
        rest = next;
    }
    replies
}

fn split_first(bytes: &[u8]) -> Option<(u32, Reply, &[u8])> {
    let number = |range: std::ops::Range<usize>| {
        Some(u32::from_ne_bytes(bytes.get(range)?.try_into().ok()?))
    };
    let length = number(0..4)? as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?.to_vec();
    Some((
        number(8..12)?,
        Reply { kind, body },
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

/// Decodes an error message: it contains a negated errno, or zero for an acknowledgement.
///
/// # Errors
/// Returns `EPROTO` if it contains neither.
pub(crate) fn outcome(reply: &Reply) -> std::result::Result<(), Errno> {
    /// The negated number of the last error (`MAX_ERRNO`).
    const LOWEST: i32 = -4095;
    let code = reply.body.first_chunk().copied().map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        Some(code @ LOWEST..0) => Err(Errno::from_raw_os_error(-code)),
        _ => Err(Errno::PROTO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_message_is_a_negated_errno() {
        let outcome = |body: &[u8]| {
            outcome(&Reply {
                kind: ERROR,
                body: body.to_vec(),
            })
        };
        let of = |code: i32| outcome(&code.to_ne_bytes());
        assert_eq!(of(0), Ok(()));
        assert_eq!(of(-2), Err(Errno::NOENT));
        for code in [1, -4096, i32::MIN, i32::MAX] {
            assert_eq!(of(code), Err(Errno::PROTO), "{code}");
        }
        assert_eq!(outcome(&[0; 3]), Err(Errno::PROTO));
    }

    #[test]
    fn attributes_nest_and_are_padded() {
        let message = Message::new(16, 0, &[0; 16])
            .text(3, "br0")
            .nest(18, |inner| inner.text(1, "bridge"));
        let bytes = message.finish(7);
        assert_eq!(bytes.len() % 4, 0);
        let (sequence, reply, rest) = split_first(&bytes).unwrap();
        assert_eq!((sequence, reply.kind, rest.len()), (7, 16, 0));
        let (_, attributes) = reply.split(16).unwrap();
        assert_eq!(attributes.text(3).as_deref(), Some("br0"));
        assert_eq!(
            Attributes(attributes.find(18).unwrap()).text(1).as_deref(),
            Some("bridge")
        );
    }

    #[test]
    fn malformed_messages_end_the_iteration() {
        for length in 0..40 {
            let bytes = vec![0xff; length];
            assert!(split_first(&bytes).is_none());
            assert_eq!(Attributes(&bytes).count(), 0);
        }
    }
}
