//! Deletes entries of the kernel's connection tracking table.
//!
//! A UDP sender that never pauses keeps its conntrack entry alive, and with it the translation (or
//! the absence of one) that was right when the entry was created. When a port is published or
//! withdrawn, such entries have to be deleted.

use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::netlink::{Attributes, Message, Socket};
use crate::port::{PortMapping, Protocol};

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

/// Deletes the conntrack entries of UDP connections to published ports.
pub(crate) fn forget(socket: &mut Socket, mappings: &[PortMapping]) -> Result<()> {
    let ports = |ipv4: bool| -> Vec<SocketAddr> {
        let udp = mappings.iter().filter(|one| {
            one.protocol == Protocol::Udp && !one.is_direct() && one.host.is_ipv4() == ipv4
        });
        udp.map(|one| one.host).collect()
    };
    for (family, ports) in [(AF_INET, ports(true)), (AF_INET6, ports(false))] {
        if !ports.is_empty() {
            forget_family(socket, family, &ports).map_err(|error| {
                Error::kernel("delete conntrack entries of UDP connections", error)
            })?;
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
        // A kernel without conntrack netlink support has no entries that could be listed.
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
        if destination(tuple).is_some_and(|to| ports.iter().any(|port| is_published_at(to, *port)))
        {
            // The entry's own tuple, unchanged, is the key.
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

/// Returns whether a packet to address `to` went to the published port `port`: to the port's own
/// address, or to any address of the host if the port is published on all of them. Packets that
/// containers send to the same port number elsewhere are not affected.
fn is_published_at(to: SocketAddr, port: SocketAddr) -> bool {
    let is_local = || std::net::UdpSocket::bind(SocketAddr::new(to.ip(), 0)).is_ok();
    to.port() == port.port() && (to.ip() == port.ip() || port.ip().is_unspecified() && is_local())
}

/// Returns the original destination of a UDP connection, or `None` for other protocols.
pub(crate) fn destination(tuple: &[u8]) -> Option<SocketAddr> {
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
