//! Connections that the kernel remembers. A UDP sender that never pauses keeps its entry alive, and with it the
//! translation (or the lack of one) that was right when the entry was made: when a port is published or withdrawn, such
//! entries have to go.

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::netlink::{Attributes, Message, Socket};
use crate::port::{Protocol, Publication};

// linux/netfilter/nfnetlink_conntrack.h
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const HEADER: usize = 4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Forgets the UDP connections to published ports.
pub(crate) fn forget(socket: &mut Socket, publications: &[Publication]) -> Result<()> {
    let ports = |ipv4: bool| -> Vec<u16> {
        let udp = publications.iter().filter(|one| one.protocol == Protocol::Udp && one.host.is_ipv4() == ipv4);
        udp.map(|one| one.host.port()).collect()
    };
    for (family, ports) in [(AF_INET, ports(true)), (AF_INET6, ports(false))] {
        if !ports.is_empty() {
            forget_family(socket, family, &ports).map_err(|error| Error::kernel("forget UDP connections", error))?;
        }
    }
    Ok(())
}

fn forget_family(socket: &mut Socket, family: u8, ports: &[u16]) -> std::result::Result<(), Errno> {
    let message = |kind: u16| Message::new(NFNL_SUBSYS_CTNETLINK << 8 | kind, 0, &[family, 0, 0, 0]);
    let entries = match socket.dump(message(IPCTNL_MSG_CT_GET)) {
        // A kernel without the means to look has nothing to forget, as far as anybody can tell.
        Err(Errno::OPNOTSUPP | Errno::INVAL) => return Ok(()),
        entries => entries?,
    };
    for entry in &entries {
        let Some(tuple) = entry.split(HEADER).and_then(|(_, attributes)| attributes.find(CTA_TUPLE_ORIG)) else { continue };
        if udp_port(tuple).is_some_and(|port| ports.contains(&port)) {
            // Its own key, as it came.
            let delete = message(IPCTNL_MSG_CT_DELETE).nest(CTA_TUPLE_ORIG, |inner| inner.raw(tuple));
            match socket.request(delete) {
                Err(Errno::NOENT) => {}
                result => result?,
            }
        }
    }
    Ok(())
}

/// The destination port in the original direction, of a UDP connection.
fn udp_port(tuple: &[u8]) -> Option<u16> {
    let protocol = Attributes(Attributes(tuple).find(CTA_TUPLE_PROTO)?);
    let is_udp = protocol.find(CTA_PROTO_NUM)?.first() == Some(&Protocol::Udp.number());
    let port = protocol.find(CTA_PROTO_DST_PORT)?.try_into().ok().map(u16::from_be_bytes)?;
    is_udp.then_some(port)
}
