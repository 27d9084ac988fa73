//! Connections that the kernel remembers. A UDP sender that never pauses keeps its entry alive, and
//! with it the translation (or the lack of one) that was right when the entry was made: when a port
//! is published or withdrawn, such entries have to go.

use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::netlink::{Attributes, Message, Socket};
use crate::port::{Protocol, Publication};

// linux/netfilter/nfnetlink_conntrack.h
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_DST: u16 = 4;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const HEADER: usize = 4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Forgets the UDP connections to published ports.
pub(crate) fn forget(socket: &mut Socket, publications: &[Publication]) -> Result<()> {
    let ports = |ipv4: bool| -> Vec<SocketAddr> {
        let udp = publications.iter().filter(|one| {
            one.protocol == Protocol::Udp && !one.is_direct() && one.host.is_ipv4() == ipv4
        });
        udp.map(|one| one.host).collect()
    };
    for (family, ports) in [(AF_INET, ports(true)), (AF_INET6, ports(false))] {
        if !ports.is_empty() {
            forget_family(socket, family, &ports)
                .map_err(|error| Error::kernel("forget UDP connections", error))?;
        }
    }
    Ok(())
}

fn forget_family(
    socket: &mut Socket,
    family: u8,
    ports: &[SocketAddr],
) -> std::result::Result<(), Errno> {
    let message =
        |kind: u16| Message::new(NFNL_SUBSYS_CTNETLINK << 8 | kind, 0, &[family, 0, 0, 0]);
    let entries = match socket.dump(message(IPCTNL_MSG_CT_GET)) {
        // A kernel without the means to look has nothing to forget, as far as anybody can tell.
        Err(Errno::OPNOTSUPP | Errno::INVAL) => return Ok(()),
        entries => entries?,
    };
    for entry in &entries {
        let Some(tuple) = entry
            .split(HEADER)
            .and_then(|(_, attributes)| attributes.find(CTA_TUPLE_ORIG))
        else {
            continue;
        };
        if destination(tuple).is_some_and(|to| ports.iter().any(|port| is_at(to, *port))) {
            // Its own key, as it came.
            let delete =
                message(IPCTNL_MSG_CT_DELETE).nest(CTA_TUPLE_ORIG, |inner| inner.raw(tuple));
            match socket.request(delete) {
                Err(Errno::NOENT) => {}
                result => result?,
            }
        }
    }
    Ok(())
}

/// Whether what was sent to an address went to a published port: its own address, or with none of
/// its own any of the host's. What containers send to the same port elsewhere is none of it.
fn is_at(to: SocketAddr, port: SocketAddr) -> bool {
    let is_local = || std::net::UdpSocket::bind(SocketAddr::new(to.ip(), 0)).is_ok();
    to.port() == port.port() && (to.ip() == port.ip() || port.ip().is_unspecified() && is_local())
}

/// The destination in the original direction, of a UDP connection.
fn destination(tuple: &[u8]) -> Option<SocketAddr> {
    let tuple = Attributes(tuple);
    let protocol = Attributes(tuple.find(CTA_TUPLE_PROTO)?);
    let is_udp = protocol.find(CTA_PROTO_NUM)?.first() == Some(&Protocol::Udp.number());
    let port = protocol
        .find(CTA_PROTO_DST_PORT)?
        .try_into()
        .ok()
        .map(u16::from_be_bytes)?;
    let addresses = Attributes(tuple.find(CTA_TUPLE_IP)?);
    let ip = match addresses.find(CTA_IP_V4_DST) {
        Some(bytes) => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        None => IpAddr::from(<[u8; 16]>::try_from(addresses.find(CTA_IP_V6_DST)?).ok()?),
    };
    is_udp.then_some(SocketAddr::new(ip, port))
}
