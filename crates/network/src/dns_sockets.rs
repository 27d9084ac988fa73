//! Opens the sockets of the embedded DNS server: at 127.0.0.11, inside a container's network
//! namespace.
//!
//! They listen on a port other than 53, and DNAT rules inside the namespace redirect 127.0.0.11:53
//! to it, so that a name server in the container can bind port 53.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::BorrowedFd;

use rustix::net::netlink::NETFILTER;

use crate::error::{Error, Result};
use crate::netlink::Socket;
use crate::nft::{self, Hook, Rule, Table, transaction};
use crate::port::Protocol;

/// The address of the embedded DNS server, the same as Docker's.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

const PORT: u16 = 53;
const DSTNAT: i32 = -100;

/// The sockets of a container's DNS server.
#[derive(Debug)]
pub struct DnsSockets {
    pub udp: UdpSocket,
    pub tcp: TcpListener,
}

/// The preferred port of the DNS server: outside of the ports that programs usually choose and of
/// the default ephemeral range (32768 to 60999).
const PREFERRED_PORT: u16 = 64_053;
/// The chain whose rules redirect to `PREFERRED_PORT`, and the number of its rules.
const PREFERRED_CHAIN: &str = "to_64053";
const PREFERRED_RULES: usize = 2;

/// Opens non-blocking sockets in a namespace and makes sure that the DNAT rules redirect to them.
/// The sockets of an earlier engine must be closed.
pub fn open(namespace: BorrowedFd<'_>) -> Result<DnsSockets> {
    whelk_sys::net::within(namespace, open_here)
        .map_err(|error| Error::io("enter the network namespace", &error))?
}

fn open_here() -> Result<DnsSockets> {
    let step = |error: std::io::Error| Error::io("listen at 127.0.0.11", &error);
    // Rules that an earlier engine left redirect to the same port and are kept: changing rules
    // takes the kernel about ten milliseconds, and there may be a thousand namespaces.
    let (udp, tcp, chain) = match (
        UdpSocket::bind((RESOLVER, PREFERRED_PORT)),
        TcpListener::bind((RESOLVER, PREFERRED_PORT)),
    ) {
        (Ok(udp), Ok(tcp)) => (udp, tcp, PREFERRED_CHAIN),
        // A process in the container uses the port.
        _ => (
            UdpSocket::bind((RESOLVER, 0)).map_err(step)?,
            TcpListener::bind((RESOLVER, 0)).map_err(step)?,
            "output",
        ),
    };
    udp.set_nonblocking(true).map_err(step)?;
    tcp.set_nonblocking(true).map_err(step)?;
    let mut socket = Socket::open(Some(NETFILTER), 0)?;
    let table = Table {
        family: nft::INET,
        name: "whelk_names".into(),
    };
    if chain == PREFERRED_CHAIN
        && socket
            .dump(table.get_rules(PREFERRED_CHAIN))
            .is_ok_and(|rules| rules.len() == PREFERRED_RULES)
    {
        return Ok(DnsSockets { udp, tcp });
    }
    let mut messages = vec![table.add(), table.delete(), table.add()];
    messages.push(table.chain(
        chain,
        Some(Hook {
            kind: "nat",
            number: nft::OUTPUT,
            priority: DSTNAT,
        }),
    ));
    for (protocol, port) in [
        (Protocol::Udp, udp.local_addr().map_err(step)?.port()),
        (Protocol::Tcp, tcp.local_addr().map_err(step)?.port()),
    ] {
        let to_resolver = Rule::new()
            .ipv4()
            .destination4()
            .in_network(RESOLVER.into(), 32);
        let rule = to_resolver
            .protocol_is(protocol.number())
            .destination_port_is(PORT)
            .destination(RESOLVER, port);
        messages.push(table.rule(chain, rule));
    }
    socket
        .batch(transaction(messages))
        .map_err(|error| Error::kernel("redirect DNS queries to 127.0.0.11", error))?;
    Ok(DnsSockets { udp, tcp })
}
