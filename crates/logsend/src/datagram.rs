//! Connections to collectors that receive datagrams.

use std::cell::Cell;
use std::io::{self, IoSlice, Write};
use std::net::{ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::stream::dial;

#[derive(Debug)]
pub(crate) enum Datagrams {
    /// With the number of datagrams that the host has refused.
    Udp(UdpSocket, Cell<u64>),
    Unix(UnixDatagram),
}

impl Datagrams {
    pub(crate) fn udp(address: &str) -> io::Result<Self> {
        let looked_up = address.to_socket_addrs().map_err(|error| {
            io::Error::new(error.kind(), format!("dial udp: lookup {address}: {error}"))
        })?;
        let mut failed = None;
        for candidate in looked_up {
            let local = if candidate.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let connected = UdpSocket::bind(local).and_then(|socket| {
                socket.connect(candidate)?;
                Ok(socket)
            });
            match connected {
                Ok(socket) => return Ok(Self::Udp(socket, Cell::new(0))),
                Err(error) => failed = Some(dial("udp", candidate)(error)),
            }
        }
        Err(failed.unwrap_or_else(|| io::Error::other(format!("dial udp {address}: no address"))))
    }

    pub(crate) fn unix(path: &Path) -> io::Result<Self> {
        let step = dial("unixgram", path.display());
        let socket = UnixDatagram::unbound().map_err(&step)?;
        socket.connect(path).map_err(&step)?;
        // A receiver that is behind is waited for.
        socket.set_write_timeout(Some(Duration::from_millis(500)))?;
        Ok(Self::Unix(socket))
    }

    /// Sends a datagram. One that waits for its receiver fails when `give_up` returns true.
    pub(crate) fn send(&self, bytes: &[u8], give_up: &dyn Fn() -> bool) -> io::Result<()> {
        loop {
            let sent = match self {
                Self::Udp(socket, _) => socket.send(bytes),
                Self::Unix(socket) => socket.send(bytes),
            };
            match sent {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !give_up() => {}
                // An earlier datagram was refused. This one was not sent.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    let Self::Udp(_, refused) = self else {
                        return Err(error);
                    };
                    refused.set(refused.get() + 1);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the number of datagrams that were refused since the last call.
    pub(crate) fn take_refused(&self) -> u64 {
        match self {
            Self::Udp(_, refused) => refused.take(),
            Self::Unix(_) => 0,
        }
    }

    /// Sends a message that is too long for a datagram as a sealed file in memory, as journald's
    /// protocol has it.
    pub(crate) fn send_file(&self, bytes: &[u8]) -> io::Result<()> {
        let Self::Unix(socket) = self else {
            return Err(rustix::io::Errno::MSGSIZE.into());
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = std::fs::File::from(memfd_create(c"log-message", flags)?);
        file.write_all(bytes)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [file.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(
            socket,
            &[IoSlice::new(&[])],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }
}
